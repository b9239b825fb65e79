"""Held-out examples answered by generation: figures per task, and pictures of what the data and the model draw."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.ops import box_iou

from perception.answers import read_answer, same_words
from perception.chains import Answer, Example, kind_of_question
from perception.evaluation.report import CaptionedImage, drawn_answer, html_table, write_report
from perception.model.perception_model import PerceptionModel, Prompt
from perception.tokenizers import BoxTokenizer, PointTokenizer
from perception.tokenizers.masks import MaskTokenizer, mask_iou
from perception.vocabulary.names import MODALITIES, Span
from vqvae.metrics import values_at

if TYPE_CHECKING:
    from vqvae import VQVAE

SAME_BOX_IOU = 0.5
"""Intersection over union from which a drawn box counts as found"""
SAME_POINT = 0.05
"""Distance, in [0, 1] of the image's sides, up to which a drawn point counts as found"""
_PAIRS = 500
"""Pairs of places at which two depth maps are compared"""


@dataclass(frozen=True)
class AnsweredExample:
    """An example on an image, and what the model answered."""

    image: Image.Image
    example: Example
    answer: Answer

    @property
    def correct(self) -> bool | None:
        """True if the final answer is the data's, both read alike; None for a task that draws alone.

        Case and end marks do not count, and no answer is none of the data's.
        """
        if not self.example.answer:
            return None
        question = self.example.question
        wanted = read_answer(self.example.answer, kind_of_question(question), question)
        given = self.answer.value
        return given is not None and same_words(str(given), self.example.answer if wanted is None else str(wanted))


def answer_examples(
    model: PerceptionModel, asked: Sequence[tuple[Image.Image, Example]], batch_size: int = 16
) -> list[AnsweredExample]:
    """Put each example's question to the model about its image, and return the answers in the same order."""
    prompts = [Prompt(image, example.question, kind_of_question(example.question)) for image, example in asked]
    order = sorted(range(len(asked)), key=lambda n: asked[n][1].task)
    answered: dict[int, AnsweredExample] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        for n, answer in zip(rows, model.answer([prompts[n] for n in rows]), strict=True):
            answered[n] = AnsweredExample(*asked[n], answer)
    return [answered[n] for n in range(len(asked))]


def figures(
    answered: Sequence[AnsweredExample],
    num_locations: int,
    vqvae: VQVAE | None = None,
    mask_vqvae: VQVAE | None = None,
) -> dict[str, float]:
    """Measure answers and drawings; a figure is missing where the examples have nothing of its kind.

    Args:
        vqvae: depth tokenizer that decodes the maps; None leaves maps out.
        mask_vqvae: tokenizer that decodes the masks; None leaves masks out.

    Returns:
        accuracy/TASK: share of right final answers per task.
        boxes_f1: F1 of the drawn boxes over all examples, at an intersection over union of 0.5.
        points_found: share of the data's points that are drawn, under their letter, within 0.05 of the image's sides.
        map_order: share of pairs of places that the drawn map and the data's map put in the same order of nearness; 0
            where no map is drawn.
        masks_iou: mean intersection over union of the data's masks with the drawn ones; 0 for a mask that is missing,
            and for one too many.
    """
    found: dict[str, float] = {}
    for task in dict.fromkeys(one.example.task for one in answered):
        marks = [one.correct for one in answered if one.example.task == task and one.correct is not None]
        if marks:
            found[f"accuracy/{task}"] = float(np.mean(marks))
    pairs = [(_spans(one.answer.spans), _spans(one.example.target), one.example) for one in answered]
    of_boxes = [(_codes(drawn["boxes"]), _codes(given["boxes"])) for drawn, given, _ in pairs if given["boxes"]]
    if of_boxes:
        found["boxes_f1"] = _boxes_f1([tuple(map(BoxTokenizer(num_locations).decode, pair)) for pair in of_boxes])
    of_points = [
        (_codes(drawn["points"]), _codes(given["points"]))
        for drawn, given, example in pairs
        if given["points"] and example.places_given
    ]
    if of_points:
        found["points_found"] = _points_found(
            [tuple(map(PointTokenizer(num_locations).decode, pair)) for pair in of_points]
        )
    of_maps = [(drawn["depth"], given["depth"]) for drawn, given, _ in pairs if given["depth"]]
    if of_maps and vqvae is not None:
        found["map_order"] = float(np.mean([_map_order(drawn, given, vqvae) for drawn, given in of_maps]))
    if mask_vqvae is not None:
        tokenizer = MaskTokenizer(mask_vqvae, num_locations)
        overlaps = [
            overlap
            for one, (drawn, given, _) in zip(answered, pairs, strict=True)
            if given["masks"]
            for overlap in _mask_overlaps(drawn["masks"], given["masks"], tokenizer, one.image)
        ]
        found |= {"masks_iou": float(np.mean(overlaps))} if overlaps else {}
    return found


def _spans(parts: Sequence[str | Span]) -> dict[str, list[Span]]:
    spans = [part for part in parts if isinstance(part, Span)]
    return {name: [span for span in spans if span.modality == name] for name in MODALITIES}


def _codes(spans: Sequence[Span]) -> list[int]:
    return [code for span in spans for code in span.codes]


def _boxes_f1(pairs: Sequence[tuple[NDArray[np.float64], ...]]) -> float:
    """F1 of drawn against given boxes, (n, 4) and (m, 4) each; 1 where neither has any."""
    hits = drawn_count = given_count = 0
    for drawn, given in pairs:
        drawn_count, given_count = drawn_count + len(drawn), given_count + len(given)
        iou = box_iou(torch.from_numpy(drawn), torch.from_numpy(given)).numpy()  # (n, m)
        hits += len(_best_pairs(iou, SAME_BOX_IOU))
    total = drawn_count + given_count
    return 2 * hits / total if total else 1.0


def _best_pairs(iou: NDArray[np.float64], least: float) -> list[float]:
    """IoU of pairs of a row and a column of iou (n, m), the best first and each used once; none is below `least`."""
    left, found = iou.copy(), list[float]()
    while left.size and left.max() >= least:
        n, m = np.unravel_index(left.argmax(), left.shape)
        found.append(float(left[n, m]))
        left[n], left[:, m] = -1, -1
    return found


def _points_found(pairs: Sequence[tuple[NDArray[np.float64], ...]]) -> float:
    near = [
        n < len(drawn) and bool(np.abs(drawn[n] - point).max() <= SAME_POINT)
        for drawn, given in pairs
        for n, point in enumerate(given)
    ]
    return float(np.mean(near)) if near else 1.0


@torch.no_grad()
def _map_order(drawn: Sequence[Span], given: Sequence[Span], vqvae: VQVAE) -> float:
    if not drawn:
        return 0.0
    device = next(vqvae.parameters()).device
    codes = torch.tensor([drawn[-1].codes, given[-1].codes], device=device)  # (2, h * w)
    places = torch.rand(1, 2 * _PAIRS, 2, generator=torch.Generator().manual_seed(0)).expand(2, -1, -1)
    values = values_at(vqvae.decode(codes).cpu(), places)  # (2, 2 * _PAIRS)
    order = (values[:, :_PAIRS] - values[:, _PAIRS:]).sign()  # (2, _PAIRS)
    return float((order[0] == order[1]).float().mean())


def _mask_overlaps(
    drawn: Sequence[Span], given: Sequence[Span], tokenizer: MaskTokenizer, image: Image.Image
) -> list[float]:
    """IoU of pairs of a drawn and a given mask, the best pairs first; 0 for each mask without a partner."""
    size = image.height, image.width
    made, true = ([tokenizer.decode(span.codes, size) for span in spans] for spans in (drawn, given))
    iou = np.array([[mask_iou(mask, other) for other in true] for mask in made]).reshape(len(made), len(true))  # (n, m)
    paired = _best_pairs(iou, 0.0)
    return [*paired, *[0.0] * (max(iou.shape) - len(paired))]


# The page


def held_out_picture(model: PerceptionModel, one: AnsweredExample) -> CaptionedImage:
    """The model's drawing with its answer, over the drawing of the data where they draw something."""
    spans = [part for part in one.example.target if isinstance(part, Span)]
    drawings = [list(one.answer.spans), spans] if spans else [list(one.answer.spans)]
    decoded = {"depth": model.depth_tokenizer, "masks": model.mask_tokenizer}  # others need no tokenizer's weights
    unseen = {modality for modality, tokenizer in decoded.items() if tokenizer is None}
    drawings = [[span for span in drawing if span.modality not in unseen] for drawing in drawings]
    sheets = [drawn_answer(model, one.image, replace(one.answer, spans=tuple(drawing))) for drawing in drawings]
    sheet = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for image in sheets:
        sheet.paste(image, (0, top))
        top += image.height
    caption = f"<b>{html.escape(one.example.question)}</b><br>"
    if one.correct is not None:
        name = "right" if one.correct else "wrong"
        said = f'<span class="{name}">{html.escape(str(one.answer.value))} ({name})</span>'
        caption += f"answer: {html.escape(one.example.answer)}; the model's: {said}<br>"
    caption += "above what the model draws, below what the data have" if spans else ""
    return CaptionedImage(sheet, f"{caption}<br><small>{html.escape(one.answer.text)}</small>")


def write_held_out_page(
    path: Path, pictures: Sequence[CaptionedImage], evaluations: Sequence[tuple[int, Mapping[str, float]]]
) -> None:
    """Write the page of a run: pictures of the last evaluation, and a table of all.

    Args:
        evaluations: the number of steps and the figures of each evaluation, in order; at least one.
    """
    steps, last = evaluations[-1]
    names = ["loss", *sorted(name for name in last if name != "loss")]
    rows = [(step, *(f"{values[n]:.4g}" if n in values else "-" for n in names)) for step, values in evaluations]
    write_report(
        path,
        f"Held-out data after {steps} steps",
        "Written again at each evaluation; reload it to see the newest.",
        [list(pictures), html_table(("steps", *names), rows)],
    )
