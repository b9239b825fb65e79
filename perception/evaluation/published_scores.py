"""Answer and score the questions of a published set. Every answer is kept, so that a stopped run can be continued."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from PIL import Image

from perception.answers import (
    LETTERS,
    final_announcement,
    final_answer,
    read_number,
    read_option,
    same_answer,
    same_words,
)
from perception.chains import Answer, kind_of_question
from perception.datasets.lines import text_lines
from perception.datasets.progress import Progress
from perception.evaluation.bootstrap import Interval, accuracy_interval
from perception.evaluation.published_sets import NUMBER, OPTION, TEXT, EncodedImage, PublishedItem
from perception.evaluation.report import CaptionedImage, drawn_answer, write_report
from perception.interleave.reasoner import Reasoner, draw_reasoning
from perception.model.perception_model import PerceptionModel, Prompt
from perception.vocabulary.names import Span
from vqvae.files import write_whole

_ROOM = 512
MODES = ("chain", "direct", "interleaved")


@dataclass(frozen=True)
class PublishedAnswer:
    """A model's answer to one question of a published set."""

    key: str
    group: str
    question: str
    truth: str
    text: str
    said: str | None
    """The letter, number or expression that was read from the text; None where none could be read"""
    right: bool
    spans: tuple[Span, ...] = ()

    def to_json(self) -> str:
        spans = [{"modality": span.modality, "codes": list(span.codes)} for span in self.spans]
        return json.dumps({**vars(self), "spans": spans}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> PublishedAnswer:
        values = json.loads(line)
        spans = tuple(Span(span["modality"], tuple(span["codes"])) for span in values.pop("spans"))
        return cls(**values, spans=spans)


def score(item: PublishedItem, text: str) -> tuple[str | None, bool]:
    """Read the answer out of a text, and return it and whether it is right."""
    if item.scoring == OPTION:
        letter = read_option(text, item.options, item.question)
        return letter, letter == item.truth
    if item.scoring == NUMBER:
        number = read_number(text, item.question)
        return None if number is None else f"{number:g}", number is not None and number == float(item.truth)
    if item.scoring == TEXT:
        announced = final_announcement(text)
        words = (announced.said if announced else text).strip()
        return words or None, same_words(words, item.truth)
    said = final_answer(text)
    return said or None, same_answer(said, item.truth)


def published_room(model: PerceptionModel | Reasoner) -> int:
    """Most tokens per answer where none is given: 512, or more if a chain with a map of the model's grid needs more."""
    return _ROOM if isinstance(model, Reasoner) else max(_ROOM, model.room.default)


Ask = Callable[[Sequence[PublishedItem]], list[Answer]]
"""Answers a batch of items"""


def asker(model: PerceptionModel | Reasoner, mode: str, max_new_tokens: int) -> Ask:
    """Return a function that answers batches in a mode. Raises ValueError for an unknown mode.

    In chain mode questions that no chain fits are answered directly.
    """
    if isinstance(model, Reasoner):

        def solve(items: Sequence[PublishedItem]) -> list[Answer]:
            solved = [model.solve(item.image.load(), item.question, max_new_tokens) for item in items]
            return [Answer(one.text, (), one.value) for one in solved]

        return solve
    if mode not in ("chain", "direct"):
        raise ValueError(f"unknown mode {mode!r}; known modes: {', '.join(MODES)}")

    def answer(items: Sequence[PublishedItem]) -> list[Answer]:
        put = [model.put(item.question, "auto" if mode == "chain" else "direct", _points_of(item)) for item in items]
        prompts = [Prompt(item.image.load(), text, kind) for item, (text, kind) in zip(items, put, strict=True)]
        return model.answer(prompts, max_new_tokens)

    return answer


def unlike_taught(model: PerceptionModel | Reasoner, items: Sequence[PublishedItem]) -> str:
    """Say how many questions a small model was taught in other words, or not at all; empty where there are none."""
    if isinstance(model, Reasoner):
        return ""
    said = [model.strange(item.question, _points_of(item)) for item in items]
    strange = [one for one in said if one]
    return f"{len(strange)} of {len(items)} questions are strange to the model: {strange[0]}" if strange else ""


def _points_of(item: PublishedItem) -> int:
    """Number of lettered points in the image of a question whose options are their letters; else 0."""
    return len(item.options) if item.options == tuple(LETTERS[: len(item.options)]) else 0


def answer_published(
    items: Sequence[PublishedItem], ask: Ask, path: Path, batch_size: int = 16, title: str = "answering"
) -> list[PublishedAnswer]:
    """Answer the questions that have no answer in a file yet, and return all answers in the items' order.

    Args:
        path: JSON lines. Answers are appended as they are made; a line that was cut short is answered again.

    Raises:
        ValueError: where the file holds answers to other questions, or an image cannot be read.
    """
    given = _kept(path, items)
    write_whole(path, "".join(one.to_json() + "\n" for one in given.values()))  # without a line that was cut short
    open_items = [item for item in items if item.key not in given]
    # Similar questions go into one batch, as a batch is as slow as its longest answer.
    order = sorted(open_items, key=lambda item: (kind_of_question(item.question) or "", item.group))
    before = len(items) - len(open_items)
    with Progress(title, len(items), before) as progress, path.open("a", encoding="utf-8") as file:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            for item, answer in zip(batch, ask(batch), strict=True):
                said, right = score(item, answer.text)
                one = PublishedAnswer(
                    item.key, item.group, item.question, item.truth, answer.text, said, right, answer.spans
                )
                given[item.key] = one
                file.write(one.to_json() + "\n")
            file.flush()
            progress.advance(len(batch))
    return [given[item.key] for item in items]


def _kept(path: Path, items: Sequence[PublishedItem]) -> dict[str, PublishedAnswer]:
    by_key = {item.key: item for item in items}
    kept: dict[str, PublishedAnswer] = {}
    for line in text_lines(path.read_text(encoding="utf-8")) if path.exists() else ():
        try:
            one = PublishedAnswer.from_json(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run
        item = by_key.get(one.key)
        if item is not None:
            if (item.question, item.truth) != (one.question, one.truth):
                raise ValueError(
                    f"{path} holds answers to other questions ({one.key}); give another --out, or delete it"
                )
            said, right = score(item, one.text)  # as texts are read today
            one = replace(one, said=said, right=right)
        kept[one.key] = one
    return kept


def accuracies(items: Sequence[PublishedItem], given: Sequence[PublishedAnswer]) -> dict[str, Interval]:
    """Accuracy per group, and over all groups where there are several, with 95 % bootstrap intervals over images."""
    rows = [(one.group, float(one.right), _shown(item)) for item, one in zip(items, given, strict=True)]
    groups = dict.fromkeys(group for group, *_ in rows)
    chosen = {group: [row for row in rows if row[0] == group] for group in groups}
    chosen |= {"all": rows} if len(groups) > 1 else {}
    return {
        group: accuracy_interval([right for _, right, _ in own], [image for *_, image in own])
        for group, own in chosen.items()
    }


def _shown(item: PublishedItem) -> Hashable:
    """What two questions about one image have in common."""
    return item.image.data if isinstance(item.image, EncodedImage) else item.image


def mean_of_sources(items: Sequence[PublishedItem], given: Sequence[PublishedAnswer]) -> float | None:
    """Return the accuracy that counts every source of a set alike: the mean of its widest, each that of those in it.

    CV-Bench's own score (arXiv 2406.16860): the mean of 2D, which is that of ADE20K and COCO, and 3D. None where a set
    names no sources.
    """
    right: dict[str, dict[str, list[float]]] = {}
    for item, one in zip(items, given, strict=True):
        if not item.source:
            return None
        wide, narrow = item.source
        right.setdefault(wide, {}).setdefault(narrow, []).append(float(one.right))
    return fmean(fmean(fmean(values) for values in parts.values()) for parts in right.values())


def write_page(
    path: Path,
    title: str,
    model: PerceptionModel | Reasoner,
    items: Sequence[PublishedItem],
    given: Sequence[PublishedAnswer],
    max_new_tokens: int,
    each: int = 6,
) -> Path:
    """Write a page with the first right and the first wrong answers of every group, and what was drawn for them.

    Args:
        max_new_tokens: as the answers were made with; a reasoner solves again what is shown.
    """
    figures: list[CaptionedImage] = []
    shown: dict[tuple[str, bool], int] = {}
    for item, one in zip(items, given, strict=True):
        place = (item.group, one.right)
        shown[place] = shown.get(place, 0) + 1
        if shown[place] <= each:
            figures.append(_figure(model, item, one, max_new_tokens))
    rows = "".join(
        f"<tr><td>{html.escape(g)}</td><td>{i.count}</td><td>{i}</td></tr>" for g, i in accuracies(items, given).items()
    )
    table = f"<table><tr><th>group</th><th>n</th><th>right, % [95 %]</th></tr>{rows}</table>"
    intro = f"The first {each} right and the first {each} wrong answers of every group."
    return write_report(path, title, intro, [table, figures])


def _figure(
    model: PerceptionModel | Reasoner, item: PublishedItem, one: PublishedAnswer, max_new_tokens: int
) -> CaptionedImage:
    name = "right" if one.right else "wrong"
    caption = (
        f"<b>{html.escape(item.question)}</b><br>truth: {html.escape(one.truth)}<br>"
        f'<span class="{name}">{html.escape(str(one.said))} ({name})</span><br><small>{html.escape(one.text)}</small>'
    )
    return CaptionedImage(_picture(model, item, one, max_new_tokens), caption)


def _picture(
    model: PerceptionModel | Reasoner, item: PublishedItem, one: PublishedAnswer, max_new_tokens: int
) -> Image.Image:
    image = item.image.load()
    if isinstance(model, Reasoner):
        return draw_reasoning(model.solve(image, item.question, max_new_tokens))  # selected tokens are not kept
    return drawn_answer(model, image, Answer(one.text, one.spans, one.said))
