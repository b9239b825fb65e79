"""Chains of perception: how a task becomes a prompt and a target, and how an answer is read back.

Three kinds of task (AURORA, arXiv 2412.03548, section 4): *atomic* tasks ask for perception itself, *chain* tasks
draw perception first and then answer, *direct* tasks answer at once. A target is a sequence of plain text and `Span`s;
what a model writes is read back into the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from perception.answers import POINT_LETTERS, read_answer
from perception.model.image_inputs import TOKEN_TYPES
from perception.vocabulary.names import PerceptionVocabulary, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATOMIC_DEPTH, ATOMIC_BOXES, ATOMIC_POINTS = "atomic_depth", "atomic_boxes", "atomic_points"
ATOMIC_READINGS = "atomic_readings"
CHAIN_COUNT, CHAIN_DEPTH = "chain_count", "chain_depth"
DIRECT_COUNT, DIRECT_DEPTH = "direct_count", "direct_depth"
DIRECT_OTHER = "direct_other"
ATOMIC = (ATOMIC_DEPTH, ATOMIC_BOXES, ATOMIC_POINTS, ATOMIC_READINGS)
CHAIN = (CHAIN_COUNT, CHAIN_DEPTH)
DIRECT = (DIRECT_COUNT, DIRECT_DEPTH)
TASKS = (*ATOMIC, *CHAIN, *DIRECT, DIRECT_OTHER)
"""DIRECT_OTHER, any question of neither kind, comes with data of one's own: no curriculum over scenes draws it."""

BOXES_FIRST = "Draw their boxes first."
DEPTH_FIRST = "Draw the depth map first."

_COUNT_QUESTION = re.compile(r"\bhow many\b|\bcount\b|\bnumber of\b", re.IGNORECASE)
_DEPTH_QUESTION = re.compile(r"\bclos(er|est)\b|\bnear(er|est)\b|\bfarth(er|est)\b|\bdepth\b", re.IGNORECASE)


@dataclass(frozen=True)
class Example:
    """One task on one image. `answer` is the final answer alone: "4", "B", "" for atomic tasks."""

    task: str
    question: str
    target: tuple[str | Span, ...]
    answer: str

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known tasks: {', '.join(TASKS)}")
        if not self.question.strip():
            raise ValueError("the question is empty; ask something")


ATOMIC_DEPTH_QUESTION = "Draw the depth map."


def atomic_depth(depth: Span) -> Example:
    return Example(ATOMIC_DEPTH, ATOMIC_DEPTH_QUESTION, (depth,), "")


def atomic_boxes(things: str, boxes: Span) -> Example:
    """`things`: the plural of what is drawn, "red cubes"."""
    return Example(ATOMIC_BOXES, f"Draw the boxes of the {things}.", (boxes,), "")


def atomic_points(points: Span) -> Example:
    return Example(ATOMIC_POINTS, "Draw the marked points.", (points,), "")


def atomic_readings(depth: Span, points: Sequence[Span], readings: Sequence[int]) -> Example:
    """A depth map, then places on it (spans of one point) and what the map says there: 0 farthest .. 99 nearest."""
    read: list[str | Span] = []
    for point, value in zip(points, readings, strict=True):
        read += [point, f" {value}"]
    return Example(ATOMIC_READINGS, "Draw the depth map and read it at points.", (depth, *read), "")


def direct_task(question: str) -> str:
    """The task of answering a question at once."""
    return {"count": DIRECT_COUNT, "depth": DIRECT_DEPTH}.get(kind_of_question(question) or "", DIRECT_OTHER)


def direct(task: str, question: str, answer: str) -> Example:
    return Example(task, question, (f" {answer}.",), answer)


def chain_count(question: str, boxes: Span) -> Example:
    """Boxes, then their number."""
    count = str(len(boxes.codes) // 4)
    return Example(CHAIN_COUNT, f"{question} {BOXES_FIRST}", (boxes, f" {count}."), count)


def chain_depth(question: str, points: Sequence[Span], depth: Span, readings: Sequence[int], answer: str) -> Example:
    """The depth map, each letter with its point (spans of one point) and what the map says there, the answer.

    AURORA's chain names the points' coordinates, draws the map and concludes. Here a point stands where it is looked
    up, and what the map says there (0 farthest .. 99 nearest, ours) makes the look-up dense in supervision: the same
    words as in `atomic_readings`.
    """
    read: list[str | Span] = []
    before = ""
    for letter, point, value in zip(POINT_LETTERS, points, readings, strict=False):
        read += [f"{before} {letter}", point]
        before = f" {value},"
    return Example(CHAIN_DEPTH, f"{question} {DEPTH_FIRST}", (depth, *read, f"{before} so {answer}."), answer)


def kind_of_question(question: str) -> str | None:
    """ "count", "depth", or None where the question is neither."""
    if _COUNT_QUESTION.search(question):
        return "count"
    return "depth" if _DEPTH_QUESTION.search(question) else None


def choose_mode(question: str, mode: str) -> str:
    """Choose how to answer a question: "chain" or "direct". Mode "auto" is "chain" where a chain fits the question.

    Raises:
        ValueError: for an empty question, an unknown mode, or mode "chain" with a question that no chain fits.
    """
    if not question.strip():
        raise ValueError("the question is empty; ask something, such as 'How many red cubes are there?'")
    if mode not in ("chain", "direct", "auto"):
        raise ValueError(f"unknown mode {mode!r}; known modes: chain, direct, auto")
    fits = kind_of_question(question) is not None
    if mode == "chain" and not fits:
        raise ValueError(
            f"no chain of perception fits the question {question.strip()!r}: ask 'how many ...' or which point is "
            "closest, or use mode='direct'"
        )
    return "chain" if mode != "direct" and fits else "direct"


def prompt_for(question: str, mode: str) -> tuple[str, str | None]:
    """Return the text that puts a question to the model in a mode, and the question's kind.

    A chain's text asks for the perception that the kind calls for. Raises ValueError as `choose_mode` does.
    """
    chosen, question, kind = choose_mode(question, mode), question.strip(), kind_of_question(question)
    if chosen == "direct":
        return question, kind
    return f"{question} {BOXES_FIRST if kind == 'count' else DEPTH_FIRST}", kind


@dataclass(frozen=True)
class ChatPrompt:
    """A chat template cut open where the user's words go, so that they are encoded apart and stay plain text."""

    before: str
    after: str
    completed: bool = False
    """whether the processor puts `after` behind every text by itself"""

    @classmethod
    def from_processor(cls, processor: Any) -> ChatPrompt:
        """Renders the processor's own chat template around one image and one question.

        PaliGemma has none: its prompt is an image, the question and a line break, which its processor adds.

        Raises ValueError where another processor has no chat template.
        """
        if not getattr(processor, "chat_template", None):
            if type(processor).__name__ == "PaliGemmaProcessor":
                return cls(processor.image_token, "\n", completed=True)
            raise ValueError("the processor has no chat template; set processor.chat_template to the model's own")
        mark = "\u241fQUESTION\u241f"
        content = [{"type": "image"}, {"type": "text", "text": mark}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        before, _, after = text.partition(mark)
        return cls(before, after)

    def head_ids(self, processor: Any, image: Any) -> tuple[list[int], dict[str, Any]]:
        """Ids up to the question, image tokens expanded, and the processor's other outputs (pixel values, ...)."""
        inputs = processor(text=self.before, images=image, return_tensors="pt", add_special_tokens=False)
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        inputs.pop("labels", None)
        begin = self._begin(processor.tokenizer, ids)
        tail = processor.tokenizer.encode(self.after, add_special_tokens=False) if self.completed else []
        end = len(ids) - len(tail)
        for name in TOKEN_TYPES:
            if name in inputs:
                types = inputs[name][:, :end]
                inputs[name] = F.pad(types, (len(begin), 0))
        return begin + ids[:end], dict(inputs)

    @staticmethod
    def _begin(tokenizer: Any, ids: list[int]) -> list[int]:
        """The beginning of sequence where the tokenizer would write it and the template does not (LLaVA-1.5)."""
        bos = tokenizer.bos_token_id
        writes_it = bos is not None and tokenizer("a")["input_ids"][0] == bos
        return [bos] if writes_it and bos not in ids else []

    def tail_ids(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, question: str
    ) -> list[int]:
        """Ids of the question, as plain text whatever it holds, and of what the template puts behind it."""
        return vocabulary.encode_plain(tokenizer, question) + tokenizer.encode(self.after, add_special_tokens=False)


def encode_target(
    tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, target: Sequence[str | Span]
) -> list[int]:
    """Ids of a target, without an end of sequence."""
    ids: list[int] = []
    for part in target:
        ids += vocabulary.span_ids(part) if isinstance(part, Span) else vocabulary.encode_plain(tokenizer, part)
    return ids


@dataclass(frozen=True)
class Answer:
    """What a model answered.

    `text` is all plain text, `spans` the perception it drew, in order, `value` the final answer: a number, a letter, or
    the text itself; None where none could be read. `mode` is how it was asked for, "chain" or "direct", where that was
    chosen by `PerceptionModel.ask` or `ask_many`.
    """

    text: str
    spans: tuple[Span, ...]
    value: int | str | None
    mode: str = ""


def read_ids(
    tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, ids: Sequence[int], kind: str | None
) -> Answer:
    """Reads generated ids back. The final answer stands in the text after the last span.

    Raises SpanError where a span is malformed.
    """
    parts: list[str | Span] = []
    run: list[int] = []
    for part in vocabulary.parse(ids):
        if isinstance(part, Span):
            parts += [tokenizer.decode(run, skip_special_tokens=True), part]
            run = []
        else:
            run.append(part)
    parts.append(tokenizer.decode(run, skip_special_tokens=True))
    texts = [p for p in parts if isinstance(p, str)]
    spans = tuple(p for p in parts if isinstance(p, Span))
    return Answer("".join(texts).strip(), spans, read_answer(texts[-1], kind))
