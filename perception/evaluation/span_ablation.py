"""The Token Replacement Test of a `PerceptionModel`: its questions, the spans it draws, and a page that shows both."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.table import Table

from perception.answers import LETTERS, asks_for_farthest
from perception.chains import Answer, kind_of_question, prompt_for, read_ids
from perception.datasets.progress import Progress
from perception.evaluation.ablation import AnswerCases, Condition, ablate, commonest_share
from perception.evaluation.published_scores import score
from perception.evaluation.published_sets import NUMBER, OPTION, PublishedItem
from perception.evaluation.replacement import Case, span_replacements, true_span
from perception.evaluation.report import CaptionedImage, write_report
from perception.evaluation.scenes import Item, depth_tokenizer_of
from perception.model.images import ImageLike, load_image
from perception.model.perception_model import PerceptionModel, Prompt, Read
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.depth import DepthTokenizer, readings_at
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import Span
from vqvae.files import write_whole

NAMES = {"count": "counting", "depth": "depth"}
"""Kinds of questions that chains fit"""
_DRAWN = {"count": "boxes", "depth": "depth"}
"""Modality of the span that is replaced, by kind"""
_AFTERWARDS = {"count": (), "depth": ("points",)}
"""Modalities that may be drawn after the replaced span, which must not be drawn anew"""


@dataclass(frozen=True)
class ChainQuestion:
    """One question for a chain of perception."""

    kind: str
    """A key of NAMES"""
    text: str
    """As it is put to the model, with the request to draw"""
    truth: int | str
    load: Callable[[], ImageLike]
    """Loads the image"""
    read: Callable[[Answer], int | str | None]
    """Reads the final answer, in the form of `truth`"""
    count_as: Callable[[int], int | str] = int
    """Brings a number of boxes into the form of `truth`"""
    points_xy: NDArray[Any] | None = None
    """(n, 2) in [0, 1], where a map is read: the true points, or those that the model named; None where unknown"""
    oracle: Span | None = None
    prefix: tuple[int, ...] = ()
    """Ids that the model wrote before its span; set by `draw_cases`"""


def scene_question(model: PerceptionModel, item: Item) -> ChainQuestion:
    """A question about a rendered scene, whose true span is known. Raises ValueError without a depth tokenizer."""
    points = item.points_xy if item.kind == "depth" else None
    text = prompt_for(item.question, "chain")[0]
    return ChainQuestion(
        item.kind,
        text,
        item.answer,
        lambda: item.image,
        lambda answer: answer.value,
        points_xy=points,
        oracle=true_span(model, item),
    )


def published_questions(items: Sequence[PublishedItem]) -> list[ChainQuestion]:
    """The questions of a published set that a chain fits: counting, and depth with lettered options."""
    scoring = {"count": NUMBER, "depth": OPTION}
    return [
        ChainQuestion(
            kind,
            prompt_for(item.question, "chain")[0],
            item.truth,
            item.image.load,
            lambda answer, item=item: score(item, answer.text)[0],  # type: ignore[misc]
            count_as=str,
        )
        for item in items
        if (kind := kind_of_question(item.question)) is not None and item.scoring == scoring[kind]
    ]


def draw_cases(
    model: PerceptionModel, questions: Sequence[ChainQuestion], read: Read, batch_size: int = 32, title: str = "drawing"
) -> list[Case[Span]]:
    """Let the model draw: the questions for which it draws the span that is to be replaced, with that span."""
    vocabulary, tokenizer = model.vocabulary, model.processor.tokenizer
    cases: list[Case[Span]] = []
    with Progress(title, len(questions)) as progress:
        for start in range(0, len(questions), batch_size):
            part = questions[start : start + batch_size]
            prompts = [Prompt(question.load(), question.text, question.kind) for question in part]
            for question, ids in zip(part, model.generate_ids(prompts, read=read), strict=True):
                modality = _DRAWN[question.kind]
                if vocabulary.start_id(modality) not in ids:
                    continue
                begin = ids.index(vocabulary.start_id(modality))
                end = ids.index(vocabulary.end_id(modality), begin) + 1
                (own,) = vocabulary.parse(ids[begin:end])
                points = question.points_xy
                if points is None and question.kind == "depth":
                    points = _named_points(model, read_ids(tokenizer, vocabulary, ids, question.kind))
                asked = replace(question, points_xy=points, prefix=tuple(ids[:begin]))
                cases.append(Case(asked, question.truth, own, question.oracle))  # type: ignore[arg-type]
            progress.advance(len(part))
    return cases


def _named_points(model: PerceptionModel, answer: Answer) -> NDArray[Any] | None:
    """Points (n, 2) that an answer names, in their order; None for fewer than two."""
    codes = [code for span in answer.spans if span.modality == "points" for code in span.codes]
    points = PointTokenizer(model.vocabulary.num_locations).decode(codes)  # (n, 2)
    return points.astype(np.float32) if len(points) > 1 else None


def answerer(model: PerceptionModel, kind: str, read: Read) -> AnswerCases[Span]:
    """Return the function that lets a model answer after replaced spans; it cannot draw such a span anew."""
    after, silent = (model.under(replace(model.grammar, allow=allow)) for allow in (_AFTERWARDS[kind], ()))
    vocabulary, tokenizer = model.vocabulary, model.processor.tokenizer

    def answer(cases: Sequence[Case[Span]], spans: Sequence[Span | None]) -> list[int | str | None]:
        begun: list[tuple[int, ...]] = [
            () if span is None else (*case.question.prefix, *_ids(model, span))
            for case, span in zip(cases, spans, strict=True)
        ]
        prompts = [
            Prompt(case.question.load(), case.question.text, kind, ids) for case, ids in zip(cases, begun, strict=True)
        ]
        rows = (silent if spans[0] is None else after).generate_ids(prompts, read=read)
        answers = []
        for case, span, forced, ids in zip(cases, spans, begun, rows, strict=True):
            # Without the replaced span, which may be no whole one.
            said = [*(() if span is None else case.question.prefix), *ids[len(forced) :]]
            answers.append(case.question.read(read_ids(tokenizer, vocabulary, said, kind)))
        return answers

    return answer


def _ids(model: PerceptionModel, span: Span) -> list[int]:
    """Ids of a span; of its two markers where it has no codes, which is no whole map."""
    vocabulary = model.vocabulary
    if span.codes:
        return vocabulary.span_ids(span)
    return [vocabulary.start_id(span.modality), vocabulary.end_id(span.modality)]


def sayer(model: PerceptionModel, kind: str) -> AnswerCases[Span]:
    """Return the function that reads spans by themselves: the number of boxes, or the nearest point of a map."""

    def count(cases: Sequence[Case[Span]], spans: Sequence[Span | None]) -> list[int | str | None]:
        return [
            None if span is None else case.question.count_as(len(span.codes) // 4)
            for case, span in zip(cases, spans, strict=True)
        ]

    def nearest(cases: Sequence[Case[Span]], spans: Sequence[Span | None]) -> list[int | str | None]:
        letters: list[int | str | None] = [None] * len(cases)
        read = [
            i
            for i, (case, span) in enumerate(zip(cases, spans, strict=True))
            if span is not None and span.codes and case.question.points_xy is not None
        ]
        if read:
            vqvae = depth_tokenizer_of(model)
            codes = torch.tensor([span.codes for i in read if (span := spans[i]) is not None])  # (n, h*w)
            with torch.no_grad():
                maps = vqvae.decode(codes.to(vqvae.codebook.device)).cpu()  # (n, S, S)
            for i, nearness in zip(read, maps, strict=True):
                asked = cases[i].question
                readings = readings_at(nearness[None], asked.points_xy)  # (points,)
                readings = -readings if asks_for_farthest(asked.text) else readings
                if (readings == readings.max()).sum() == 1:  # with a tie the map says nothing
                    letters[i] = LETTERS[int(readings.argmax())]
        return letters

    return count if kind == "count" else nearest


# Tests, and their page


@dataclass(frozen=True)
class SpanAblation:
    """The test on questions of one kind."""

    name: str
    """Such as "counting, shifted style" """
    kind: str
    asked: int
    """Number of questions; those for which the model drew nothing are left out of the conditions"""
    commonest: float
    """Accuracy of always giving the commonest right answer"""
    conditions: Mapping[str, Condition[Span]]
    example: Case[Span]
    example_at: int

    @property
    def drew(self) -> int:
        """Number of questions for which the model drew the span that is replaced."""
        return self.conditions["own"].accuracy.count

    def to_json(self) -> dict[str, Any]:
        conditions = {name: condition.to_json() for name, condition in self.conditions.items()}
        numbers = {"asked": self.asked, "drew": self.drew, "commonest_answer": self.commonest}
        return {"name": self.name, "kind": self.kind, **numbers, "conditions": conditions}


def ablate_spans(
    model: PerceptionModel,
    questions: Sequence[ChainQuestion],
    name: str,
    read: Read,
    seeds: Sequence[int],
    batch_size: int = 32,
) -> SpanAblation:
    """Run the test on questions of one kind.

    Args:
        name: of the test, for bars and tables.
        read: who reads the maps, replaced ones as well ("markers only" leaves no map to read, so the model does).

    Raises:
        ValueError: where the model draws for fewer than two of the questions, or has no depth tokenizer for depth.
    """
    kind = questions[0].kind
    if kind == "depth":
        depth_tokenizer_of(model)
    cases = draw_cases(model, questions, read, batch_size, f"{name}: drawing")
    if len(cases) < 2:
        drawn = {"count": "boxes", "depth": "a depth map"}[kind]
        raise ValueError(
            f"{name}: the model drew {drawn} for {len(cases)} of {len(questions)} questions, so there is nothing to "
            "replace (two at least); test a model that draws before it answers, or another kind of question"
        )
    example = max(range(len(cases)), key=lambda i: min(3, len(cases[i].own.codes) // 4))  # with boxes to see, if any
    conditions = ablate(
        cases,
        answerer(model, kind, read),
        span_replacements(model.vocabulary, _DRAWN[kind]),
        seeds,
        sayer(model, kind),
        batch_size,
        f"{name}: replacing",
        example,
    )
    return SpanAblation(name, kind, len(questions), commonest_share(cases), conditions, cases[example], example)


_HEADER = ("put in", "questions", "accuracy, %", "below its own, points", "follows it, %", "no answer, %")
_BLANK = 200
"""Grey that stands for nothing in a picture"""
_SIDE = 320


def ablation_table(test: SpanAblation) -> Table:
    """The test as a table for a terminal of 80 characters."""
    table = Table(title=f"{test.name}: % ±95 % interval", title_justify="left")
    for column in ("put in", "n", "accuracy", "below its own", "follows it", "no answer"):
        table.add_column(column, justify="left" if column == "put in" else "right", no_wrap=column == "put in")
    for name, c in test.conditions.items():
        measured = (c.accuracy, None if name == "own" else c.below_own, c.follows)
        cells = ("-" if i is None else f"{100 * i.mean:.1f} ±{50 * (i.high - i.low):.1f}" for i in measured)
        table.add_row(name, str(c.accuracy.count), *cells, f"{100 * c.unanswered:.1f}")
    return table


def _table_html(test: SpanAblation) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in _HEADER)
    rows = ""
    for name, c in test.conditions.items():
        put = f"{html.escape(name)}<br><small>{html.escape(c.about)}</small>"
        below, follows = "-" if name == "own" else c.below_own, "-" if c.follows is None else c.follows
        cells = (put, c.accuracy.count, c.accuracy, below, follows, f"{100 * c.unanswered:.1f}")
        rows += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    left_out = "" if test.drew == test.asked else f" It drew for {test.drew} of {test.asked}; the others are left out."
    return (
        f"<h2>{html.escape(test.name[0].upper() + test.name[1:])}</h2><p>Always the commonest right answer: "
        f"{100 * test.commonest:.1f} %.{left_out}</p><table><tr>{head}</tr>{rows}</table>"
    )


def _picture(model: PerceptionModel, image: Image.Image, span: Span | None, question: ChainQuestion) -> Image.Image:
    """Boxes on the image; the map with the points where it is read; grey for nothing."""
    if span is None or (span.modality == "depth" and not span.codes):
        return Image.new("RGB", image.size, (_BLANK,) * 3)
    if span.modality == "boxes":
        tokenizer = BoxTokenizer(model.vocabulary.num_locations)
        return tokenizer.draw(tokenizer.decode(span.codes), image)
    drawn = DepthTokenizer.draw(DepthTokenizer(depth_tokenizer_of(model)).decode(span.codes), image)
    points = question.points_xy
    return drawn if points is None else PointTokenizer(model.vocabulary.num_locations).draw(points, drawn)


def _figures(model: PerceptionModel, test: SpanAblation) -> list[CaptionedImage]:
    """The image of one question, then what was put in, a picture per condition."""
    question = test.example.question
    image, says = load_image(question.load()), sayer(model, test.kind)
    image = image.resize((_SIDE, round(image.height * _SIDE / image.width)))
    figures = [CaptionedImage(image, f"<b>{html.escape(question.text)}</b><br>right: {test.example.truth}")]
    for name, condition in test.conditions.items():
        if test.example_at not in condition.answers:
            continue
        (meant,) = says([test.example], [condition.example])
        said = condition.answers[test.example_at][0]
        verdict = "right" if said == test.example.truth else "wrong"
        answered = "gives no answer" if said is None else f"answers {html.escape(str(said))}"
        caption = (
            f"<b>{html.escape(name)}</b>: {html.escape(condition.about)}<br>"
            f"{'says nothing' if meant is None else f'says {html.escape(str(meant))}'}; the model "
            f'<span class="{verdict}">{answered} ({verdict})</span>'
        )
        figures.append(CaptionedImage(_picture(model, image, condition.example, question), caption))
    return figures


_READ = {
    "decoded": "The package decoded the maps, replaced ones as well, and wrote their readings into the chain: an "
    "answer that follows a replaced map shows that the model concludes from readings, not that it reads maps.",
    "model": "The model read the maps itself.",
}


def write_ablation(
    stem: Path, model: PerceptionModel, tests: Sequence[SpanAblation], settings: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write the tests as STEM.json and as a page with pictures, STEM.html; returns both paths.

    Args:
        settings: what was tested and how: model, set, read, seeds.
    """
    results, page = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.html")
    written = {**settings, "tests": [test.to_json() for test in tests]}
    write_whole(results, json.dumps(written, indent=1) + "\n")
    intro = (
        "What the model drew before it answered was replaced, and the model wrote the rest; image, question and "
        "decoding stay. <b>Below its own</b>: accuracy with the model's own span minus accuracy with what was put in, "
        "on the same questions; negative where it is better. <b>Follows it</b>: share of answers equal to what the "
        "span that was put in says (its number of boxes; the nearest point of its map), where it says anything. "
        "<b>No answer</b>: share of answers in which none could be read; they count as wrong. Brackets are 95 % "
        "bootstrap intervals over questions, of each question's mean over the seeds. "
    )
    intro += _READ[settings["read"]] if any(test.kind == "depth" for test in tests) else ""
    listed = ", ".join(f"{name}: {value}" for name, value in settings.items())
    sections: list[str | Sequence[CaptionedImage]] = [f"<p><small>{html.escape(listed)}</small></p>"]
    for test in tests:
        sections += [_table_html(test), "<h3>What was put in, for one question</h3>", _figures(model, test)]
    write_report(page, f"Token Replacement Test: {settings['model']}", intro, sections)
    return results, page
