"""Conversations with any number of images and a system turn, as the model's own chat template writes them.

The template is rendered with marks in place of all texts. What it writes between them is encoded with its control
tokens; questions are encoded as plain text, as `perception.chains.ChatPrompt` does for one question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jinja2
from PIL import Image
from torch import Tensor

from perception.chains import IMAGE, ChatPrompt
from perception.model.image_inputs import TOKEN_TYPES, image_inputs
from perception.vocabulary.continuation import (
    adds_space,
    adds_space_behind,
    split_before_tokens,
    split_behind_tokens,
)
from perception.vocabulary.names import PerceptionVocabulary

_MARK = "\u241f{}\u241f"
_MARKS = re.compile(r"\u241f(\d+)\u241f")


@dataclass(frozen=True)
class AskedTurn:
    """What a model reads before an answer, from the end of the answer before it."""

    ids: list[int]
    types: dict[str, list[int]]
    """numbers per token that the processor gives beside ids, by name"""


@dataclass(frozen=True)
class _TemplatePart:
    """A piece of the template, the plain text that stands behind it, and whether an answer follows."""

    piece: str
    plain: str = ""
    alone: bool = False
    """see `PerceptionVocabulary.encode_plain`"""
    answered: bool = False


@dataclass(frozen=True)
class ConversationPrompt:
    """Renders and encodes conversations for one model."""

    processor: Any
    vocabulary: PerceptionVocabulary

    def check(self, system: str, questions: Sequence[str]) -> None:
        """Raise ValueError if the model's chat template does not take a conversation of this form."""
        self._pieces(system, questions)

    def encode(
        self, system: str, questions: Sequence[str], images: Sequence[Image.Image]
    ) -> tuple[list[AskedTurn], dict[str, Tensor]]:
        """What is read before each answer, image tokens expanded, and the processor's image inputs.

        Args:
            system: system turn; empty for none.
            questions: with `chains.IMAGE` where the next of the images is shown.
        """
        tokenizer, eos = self.processor.tokenizer, self.processor.tokenizer.eos_token
        parts = self._parts(*self._pieces(system, questions))
        # One call for all pieces, so that the processor sees all images of the conversation; the pieces are told apart
        # by the token that ends a sequence.
        joined = eos.join(part.piece for part in parts)
        inputs = dict(
            self.processor(text=joined, images=list(images) or None, return_tensors="pt", add_special_tokens=False)
        )
        ids = inputs["input_ids"][0].tolist()
        ends = [n for n, token in enumerate(ids) if token == tokenizer.eos_token_id]
        types = {name: inputs[name][0].tolist() for name in TOKEN_TYPES if name in inputs}
        begin = ChatPrompt.begin_ids(tokenizer, ids)
        turns, current = [], AskedTurn(list(begin), {name: [0] * len(begin) for name in types})
        start, passed = 0, 0
        for number, part in enumerate(parts):
            passed += part.piece.count(eos)
            end = ends[passed] if number + 1 < len(parts) else len(ids)
            passed += 1
            _add(current, ids[start:end], {name: values[start:end] for name, values in types.items()})
            start = end + 1
            plain = self.vocabulary.encode_plain(tokenizer, part.plain, part.alone) if part.plain else []
            _add(current, plain, {name: [0] * len(plain) for name in types})
            if part.answered:
                turns.append(current)
                current = AskedTurn([], {name: [] for name in types})
        return turns, image_inputs(inputs)

    def _parts(self, pieces: Sequence[str], texts: Sequence[str | None]) -> list[_TemplatePart]:
        """The template's pieces with the texts behind them.

        For tokenizers that put a space before every text, plain text goes from one special token to the next, as
        `ChatPrompt` has it: it begins with the end of a piece and goes on with the beginning of the next one.
        """
        tokenizer = self.processor.tokenizer
        if not adds_space(tokenizer):
            return [_TemplatePart(p, t or "", answered=t is None) for p, t in zip(pieces, texts, strict=True)]
        parts = list[_TemplatePart]()
        begun: _TemplatePart | None = None
        before = ""  # the special token in front of what begins
        for piece, text in zip(pieces, texts, strict=True):
            head, tail = split_behind_tokens(tokenizer, piece)
            if begun is not None and head:
                after, head = split_before_tokens(tokenizer, head)
                parts.append(replace(begun, plain=begun.plain + after))
                begun = None
            if begun is None:
                begun = _TemplatePart(head, alone=adds_space_behind(tokenizer, head or before))
            begun = replace(begun, plain=begun.plain + tail + (text or ""))
            if text is None:
                parts.append(replace(begun, answered=True))
                begun, before = None, tokenizer.eos_token
        return parts

    def _pieces(self, system: str, questions: Sequence[str]) -> tuple[list[str], list[str | None]]:
        """What the template writes before each text, and the texts; None stands for an answer."""
        texts: list[str | None] = []

        def part(text: str | None) -> dict[str, str]:
            texts.append(text)
            return {"type": "text", "text": _MARK.format(len(texts) - 1)}

        turns: list[dict[str, Any]] = []
        if system:
            turns.append({"role": "system", "content": [part(system)]})
        for question in questions:
            content: list[dict[str, str]] = []
            for number, text in enumerate(question.split(IMAGE)):
                content += [{"type": "image"}] if number else []
                content += [part(text)] if text.strip() else []
            turns += [{"role": "user", "content": content}, {"role": "assistant", "content": [part(None)]}]
        try:
            rendered = self.processor.apply_chat_template(turns)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            said = " ".join(str(error).split())
            raise ValueError(f"the base's chat template does not take this conversation ({said:.120})") from error
        *pieces, _ = _MARKS.split(rendered)[::2]
        if [int(number) for number in _MARKS.findall(rendered)] != list(range(len(texts))):
            form = f"{'a system turn and ' * bool(system)}{len(questions)} questions"
            raise ValueError(
                f"the base's chat template does not write each text of a conversation of {form} once, in order"
            )
        eos = self.processor.tokenizer.eos_token
        for number, answered in enumerate(text is None for text in texts):
            if answered:  # answers begin with the space and end with the token that ends a sequence
                pieces[number] = pieces[number].rstrip(" ")
            if number and texts[number - 1] is None:
                pieces[number] = pieces[number].removeprefix(eos)
        return pieces, texts


def _add(turn: AskedTurn, ids: Sequence[int], types: dict[str, list[int]]) -> None:
    turn.ids.extend(ids)
    for name, values in types.items():
        turn.types[name].extend(values)
