"""Draw the README's picture: a counting and a depth question, each with what the model drew and said.

`python -m benchmarks.figures` asks the shipped `models/aurora-tiny` about scenes it has never seen, rendered at 320 x
320 for the eye (the model's processor resizes them to its own size), and writes `docs/answer.png`. The rule: it takes
the first scenes from --first-seed that have enough objects and where every detail is right. That is the answer, each
box (IoU of 0.7 with the true one), each point (within 3 % of the image's side), and no other reading ties with the
largest. With --any it takes the first scenes whatever the answer. The picture shows how the model works;
`benchmarks/results/` says how often it is right.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.ops import box_iou

from perception.chains import Answer
from perception.evaluation.report import spans_to_draw
from perception.evaluation.scenes import depth_tokenizer_of
from perception.model.images import load_image
from perception.model.perception_model import PerceptionModel
from perception.scenes.questions import count_question, depth_question
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from perception.tokenizers import BoxTokenizer, DepthTokenizer, PointTokenizer
from train.loop.provenance import ROOT

FIRST_SEED = 95_000_000
RENDERED = 320
_PANEL, _GAP, _WORDS, _HEAD = 300, 16, 380, 30
_INK, _FAINT, _RIGHT, _WRONG = "#202124", "#5f6368", "#188038", "#c5221f"
_TRIES = 400
_IOU, _NEAR = 0.7, 0.03


@dataclass(frozen=True)
class Question:
    """A question about an image, and its true answer."""

    text: str
    image: Tensor
    """(H, W, 3) uint8"""
    answer: int | str
    places: np.ndarray
    """(n, 4) boxes of what is counted, or (n, 2) points, in [0, 1]"""


@dataclass(frozen=True)
class Answered:
    """A question with what the model drew and said."""

    question: Question
    answer: Answer

    @property
    def right(self) -> bool:
        return self.answer.value == self.question.answer

    def faultless(self, num_locations: int) -> bool:
        """True if the answer is right, and so is every box or point that was drawn, and no two readings tie."""
        places, true = self.answer.spans, self.question.places
        if true.shape[1] == 4:
            codes = [code for span in places if span.modality == "boxes" for code in span.codes]
            tokenizer = BoxTokenizer(num_locations)  # encoding puts the true boxes in the order of the drawn ones
            boxes, wanted = (torch.from_numpy(tokenizer.decode(some)) for some in (codes, tokenizer.encode(true)))
            same = len(boxes) == len(wanted) and bool((box_iou(boxes, wanted).diag() >= _IOU).all())
        else:
            codes = [code for span in places if span.modality == "points" for code in span.codes]
            points, readings = PointTokenizer(num_locations).decode(codes), re.findall(r"\d+", self.answer.text)
            same = len(points) == len(true) and bool((np.linalg.norm(points - true, axis=1) <= _NEAR).all())
            same = same and readings.count(max(readings, key=int, default="")) == 1
        return self.right and same


def questions(kind: str, style: str, first_seed: int) -> Iterator[Question]:
    """Questions of a kind, "count" or "depth", about scenes with at least six objects; counts of three to six."""
    for seed in count(first_seed):
        scene = Scene.from_batch(render_scenes([seed], style, RENDERED), 0)
        rng = np.random.default_rng(seed)
        if len(scene.objects) < 6:
            continue
        if kind == "count":
            asked = count_question(scene, rng)
            if 3 <= asked.answer <= 6 and asked.answer < len(scene.objects):
                yield Question(asked.text, scene.image, asked.answer, asked.boxes_xyxy)
        elif (marked := depth_question(scene, rng, 4)) is not None:
            yield Question(marked.text, marked.image, marked.answer, marked.points_xy)


def first_answer(model: PerceptionModel, kind: str, style: str, first_seed: int, whatever: bool = False) -> Answered:
    """The first question that the model answers without a fault, or simply the first.

    Raises:
        ValueError: if it answers none of many so.
    """
    for asked in islice(questions(kind, style, first_seed), _TRIES):
        answered = Answered(asked, model.ask(asked.image, asked.text, mode="chain"))
        if whatever or answered.faultless(model.vocabulary.num_locations):
            return answered
    raise ValueError(
        f"the model answers none of {_TRIES} {kind} questions without a fault; train it longer, or give --any"
    )


def drawn_panel(model: PerceptionModel, answered: Answered) -> tuple[Image.Image, str]:
    """What the model drew, as one picture, and its caption."""
    image = load_image(answered.question.image).resize((_PANEL, _PANEL), Image.Resampling.LANCZOS)
    bins, picture, said = model.vocabulary.num_locations, image, []
    for span in spans_to_draw(answered.answer.spans):
        if span.modality == "depth":
            picture = DepthTokenizer.draw(DepthTokenizer(depth_tokenizer_of(model)).decode(span.codes), image)
            said.append(f"{len(span.codes)} depth tokens")
        elif span.modality == "boxes":
            picture = BoxTokenizer(bins).draw(BoxTokenizer(bins).decode(span.codes), picture)
            said.append(f"{len(span.codes) // 4} boxes")
        else:
            picture = PointTokenizer(bins).draw(PointTokenizer(bins).decode(span.codes), picture)
            said.append(f"{len(span.codes) // 2} points")
    return picture, ", ".join(said) if said else "nothing"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _row(model: PerceptionModel, answered: Answered) -> Image.Image:
    """Image, drawing and words, side by side on white."""
    width = 2 * _PANEL + 2 * _GAP + _WORDS
    row = Image.new("RGB", (width, _PANEL + _HEAD), "white")
    canvas = ImageDraw.Draw(row)
    drawing, caption = drawn_panel(model, answered)
    image = load_image(answered.question.image).resize((_PANEL, _PANEL), Image.Resampling.LANCZOS)
    for left, picture, words in ((0, image, "what it is shown"), (_PANEL + _GAP, drawing, f"what it draws: {caption}")):
        canvas.text((left, 4), words, _FAINT, _font(15))
        row.paste(picture, (left, _HEAD))
    verdict = f"right: {answered.question.answer}" if answered.right else f"wrong: it is {answered.question.answer}"
    left, top = 2 * (_PANEL + _GAP), _HEAD
    paragraphs = [
        ("asked", 15, _FAINT),
        (answered.question.text, 22, _INK),
        ("says, having drawn", 15, _FAINT),
        (answered.answer.text or "nothing", 22, _INK),
        ("answer", 15, _FAINT),
        (str(answered.answer.value), 48, _INK),
        (verdict, 15, _RIGHT if answered.right else _WRONG),
    ]
    for text, size, color in paragraphs:
        wrapped = _wrapped(text, _font(size), _WORDS)
        canvas.multiline_text((left, top), wrapped, color, _font(size), spacing=6)
        bottom = canvas.multiline_textbbox((left, top), wrapped, _font(size), spacing=6)[3]
        top = round(bottom) + (6 if color == _FAINT else 16)
    return row


def answer_sheet(model: PerceptionModel, answers: list[Answered]) -> Image.Image:
    """One row per answer, on a white sheet about a thousand pixels wide."""
    rows = [_row(model, answered) for answered in answers]
    margin = 2 * _GAP
    height = sum(row.height for row in rows) + (len(rows) + 1) * margin
    sheet = Image.new("RGB", (max(row.width for row in rows) + 2 * margin, height), "white")
    top = margin
    for row in rows:
        sheet.paste(row, (margin, top))
        top += row.height + margin
    return sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "aurora-tiny", help="folder of the model")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "answer.png", help="where the picture goes")
    parser.add_argument("--style", default="standard", choices=("standard", "shifted"), help="style of the scenes")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="where the search for scenes begins")
    parser.add_argument("--any", action="store_true", help="take the first scenes, answered right or not")
    arguments = parser.parse_args(argv)
    try:
        model = PerceptionModel.from_pretrained(arguments.model)
        answers = [
            first_answer(model, kind, arguments.style, arguments.first_seed, arguments.any)
            for kind in ("count", "depth")
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    answer_sheet(model, answers).save(arguments.out, optimize=True)
    for answered in answers:
        print(f"{answered.question.text} said {answered.answer.value}, true {answered.question.answer}")
    print(f"written: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
