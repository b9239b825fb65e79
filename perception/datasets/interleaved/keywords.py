"""Names the keywords of each step of a solution: the words in the image that the step refers to.

Keywords come from rules that fit the built-in geometry problems, from a language model behind an HTTP endpoint, or from
a local language model of transformers.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from perception.datasets.interleaved.endpoint import Ask, EndpointSettings, KeywordError, endpoint

Keywords = tuple[tuple[str, ...], ...]
"""The keywords of each step"""
MakeKeywords = Callable[[str, Sequence[str], Sequence[str]], Keywords]
"""(question, steps, texts written in the image) -> the keywords of each step. Raises KeywordError."""

MOST_KEYWORDS = 8
"""Keywords per step that are kept at most"""
_REPLY_TOKENS = 512
"""Tokens per reply at most: the JSON for a long solution has about 200"""
_LONGEST = 40
_LONGEST_REPLY = 50_000
_FIGURE_WORDS = ("base", "height", "width", "length", "radius", "diameter", "centre", "center", "side", "area", "chord")
_UNKNOWN = re.compile(r"(?<![A-Za-z])[xyz](?![A-Za-z])")
_LETTERS = re.compile(r"(?<![A-Za-z])[A-Z]{1,4}(?![A-Za-z'])")
_ARTICLE = re.compile(r"(?:^|[.!?]\s+)A(?= [a-z]{3,})")
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")
_RESULTS = re.compile(r"=\s*(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class KeywordSettings:
    """The language model that names keywords."""

    endpoint: EndpointSettings = field(default_factory=EndpointSettings)
    """HTTP endpoint, for keywords by endpoint"""
    model: str = ""
    """folder of a text model of transformers, for keywords: model"""
    device: str = "cpu"
    """device of the model of transformers"""


def rule_keywords(question: str, steps: Sequence[str], texts: Sequence[str]) -> Keywords:
    """Keywords by rules: names in capitals, numbers, unknowns, and words such as base or height.

    A number that follows "=" in this or an earlier step is calculated, not written in the figure, so it is no keyword.
    In a step with an unknown, numbers are no keywords either, because earlier steps looked at them.
    """
    calculated: set[str] = set()
    found = []
    for step in steps:
        names = _LETTERS.findall(_ARTICLE.sub(" ", step))
        names += [word for word in _FIGURE_WORDS if re.search(rf"\b{word}s?\b", step)]
        calculated |= set(_RESULTS.findall(step))
        unknowns = _UNKNOWN.findall(step)
        numbers = [] if unknowns else [number for number in _NUMBERS.findall(step) if number not in calculated]
        found.append(tuple(dict.fromkeys([*names, *unknowns, *numbers])))
    return tuple(found)


# Language models


_INSTRUCTION = """\
A figure belongs to a question and its solution. For each step of the solution, name what a reader has to look at in the
figure: letters of points ("A"), names of lines or angles ("AB", "ABC"), numbers and unknowns ("40", "x"), labels
("height"). Only what is written in the figure; numbers that the step calculates are not. A step that needs no look at
the figure gets an empty list.
Reply with one JSON object and nothing else: {"steps": [["A", "40"], ["AB"], []]}, one list per step, in their order."""


def instructions(question: str, steps: Sequence[str], texts: Sequence[str]) -> str:
    """The prompt for a language model."""
    lines = [_INSTRUCTION, "", f"Question: {question}"]
    if texts:
        lines.append(f"Written in the figure: {json.dumps(list(texts), ensure_ascii=False)}")
    lines += [f"Step {number}: {' '.join(step.split())}" for number, step in enumerate(steps, start=1)]
    return "\n".join([*lines, "", f"The reply has {len(steps)} lists."])


def parse_reply(reply: str, num_steps: int) -> Keywords:
    """Read keywords from a reply: its last JSON value that fits, whatever text stands around it.

    Raises:
        KeywordError: if no JSON value has a list of texts for each step.
    """
    for value in reversed(_json_values(reply[-_LONGEST_REPLY:])):
        lists = value.get("steps", value) if isinstance(value, dict) else value
        if isinstance(lists, dict):  # {"1": [...], "2": [...]}
            lists = list(lists.values())
        if isinstance(lists, list) and len(lists) == num_steps and all(_is_texts(one) for one in lists):
            return tuple(_tidied(one) for one in lists)
    raise KeywordError(f'expected {{"steps": [..]}} with {num_steps} lists of texts, got {reply.strip()[:120]!r}')


def _json_values(text: str) -> list[Any]:
    """The outermost JSON objects and lists in a text, in order."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while found := re.compile(r"[{\[]").search(text, at):
        try:
            value, at = decoder.raw_decode(text, found.start())
            values.append(value)
        except (json.JSONDecodeError, RecursionError):
            at = found.start() + 1
    return values


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str | int | float) for item in value)


def _tidied(items: Sequence[Any]) -> tuple[str, ...]:
    texts = (str(item).strip()[:_LONGEST] for item in items if not isinstance(item, bool))
    return tuple(dict.fromkeys(text for text in texts if text))[:MOST_KEYWORDS]


def asked_keywords(ask: Ask) -> MakeKeywords:
    """Keywords by asking a language model, which is asked a second time if its first reply is unusable."""

    def make(question: str, steps: Sequence[str], texts: Sequence[str]) -> Keywords:
        prompt = instructions(question, steps, texts)
        try:
            return parse_reply(ask(prompt, False), len(steps))
        except KeywordError as error:
            if error.final:
                raise
        return parse_reply(ask(prompt, True), len(steps))

    return make


def local_model(settings: KeywordSettings) -> Ask:
    """Return a function that asks a text model of transformers: greedily first, by sampling the second time.

    Raises:
        ValueError: if the folder holds no such model, or its tokenizer has no chat template.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not settings.model:
        raise ValueError("keywords from a model need the folder of a text model: --making.language.model FOLDER")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
        model: Any = AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto").to(settings.device).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{settings.model} cannot be loaded as a text model of transformers ({error})") from error
    if not tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {settings.model} has no chat template; give an instruction-tuned model")
    lock = threading.Lock()

    def ask(prompt: str, again: bool) -> str:
        talk = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(settings.device)
        with lock, torch.no_grad():
            ids = model.generate(**inputs, do_sample=again, max_new_tokens=_REPLY_TOKENS)
        return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return ask


KeywordMaker = Literal["rules", "endpoint", "model"]
KEYWORD_MAKERS: dict[KeywordMaker, Callable[[KeywordSettings], MakeKeywords]] = {
    "rules": lambda settings: rule_keywords,
    "endpoint": lambda settings: asked_keywords(endpoint(settings.endpoint, _REPLY_TOKENS)),
    "model": lambda settings: asked_keywords(local_model(settings)),
}
"""Sources of keywords: rules for the built-in problems, an OpenAI-style endpoint, or a model of transformers."""
