"""Counting through drawn boxes, which a visitor can edit. Independent of Gradio."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demos.guards import Refused, read_image, read_question
from demos.pictures import draw_boxes
from demos.thoughts import Thought, last, rethink, think
from perception.chains import kind_of_question
from perception.model.perception_model import PerceptionModel
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

MAX_BOXES = 30


@dataclass(frozen=True)
class CountingView:
    """One state of the counting tab."""

    picture: Image.Image
    """The image with the boxes drawn so far, numbered"""
    answer: str
    direct: str
    """The answer of the same model when it does not draw; empty until it is known"""
    thought: Thought


def _tokenizer(model: PerceptionModel) -> BoxTokenizer:
    return BoxTokenizer(model.vocabulary.num_locations)


def _view(model: PerceptionModel, thought: Thought, direct: str = "") -> CountingView:
    span = thought.span("boxes")
    drawn = 0 if span is None else len(span.codes) // 4
    if thought.done:
        value = "no number" if thought.value is None else str(thought.value)
        answer = f"{value} (boxes drawn: {drawn})"
        if thought.caution:
            answer += f". {thought.caution}"
    else:
        answer = f"drawing .. box {drawn}" if drawn else "looking .."
    return CountingView(draw_boxes(thought.image, span, _tokenizer(model)), answer, direct, thought)


def count(model: PerceptionModel, image_path: str | None, question: str | None) -> Iterator[CountingView]:
    """Answer a counting question by drawing first, with a view after each step, and then directly for comparison.

    Raises:
        Refused: for an upload or a question that is not accepted.
    """
    image, asked = read_image(image_path), read_question(question)
    if kind_of_question(asked) != "count":
        raise Refused("this tab counts: ask 'How many ..?', or go to the depth tab")
    thought: Thought | None = None
    for thought in think(model, image, asked, "chain"):
        yield _view(model, thought)
    assert thought is not None
    at_once = last(think(model, image, asked, "direct"))
    yield _view(model, thought, "no number" if at_once.value is None else str(at_once.value))


def boxes_of(thought: Thought, model: PerceptionModel) -> np.ndarray:
    """Boxes (n, 4) in [0, 1], in the order of their numbers."""
    span = thought.span("boxes")
    return np.zeros((0, 4)) if span is None else _tokenizer(model).decode(span.codes)


def recount(model: PerceptionModel, thought: Thought, boxes_xyxy: Sequence[Sequence[float]]) -> Iterator[CountingView]:
    """Answer again from edited boxes (n, 4) in [0, 1].

    Raises:
        Refused: for values that are no boxes, or too many.
    """
    if len(boxes_xyxy) > MAX_BOXES:
        raise Refused(f"{len(boxes_xyxy)} boxes are more than the {MAX_BOXES} that fit into an answer")
    try:
        codes = _tokenizer(model).encode(np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4))
    except ValueError as error:
        raise Refused(str(error)) from error
    for step in rethink(model, thought, Span("boxes", tuple(codes))):
        yield _view(model, step)


def with_box(boxes: np.ndarray, first: tuple[float, float], second: tuple[float, float]) -> np.ndarray:
    """Add to boxes (n, 4) a box between two corners (x, y) in [0, 1], in any order.

    Raises:
        Refused: if the corners enclose no area.
    """
    (x1, x2), (y1, y2) = (sorted(pair) for pair in zip(first, second, strict=True))
    if x2 - x1 < 0.01 or y2 - y1 < 0.01:
        raise Refused("the two corners are the same place; click the opposite corner of the box")
    return np.concatenate([boxes, [[x1, y1, x2, y2]]])


def with_dragged(boxes: np.ndarray, dragged: str) -> np.ndarray:
    """Apply a drag to boxes (n, 4), as the page writes it: {"index": n, "box_xyxy": [..]}, -1 for a new one.

    Raises:
        Refused: for anything else, or a box without area.
    """
    try:
        found = json.loads(dragged)
        index, box = found["index"], np.asarray(found["box_xyxy"], dtype=np.float64)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused("this is no box; drag on the picture again") from error
    if type(index) is not int or not -1 <= index < len(boxes) or box.shape != (4,) or not np.isfinite(box).all():
        raise Refused("this box does not belong to the picture; drag on the picture again")
    box = box.clip(0, 1)
    if box[2] - box[0] < 0.01 or box[3] - box[1] < 0.01:
        raise Refused("the box has no area; drag from one corner to the opposite one")
    if index < 0:
        return np.concatenate([boxes, box[None]])
    edited = boxes.copy()
    edited[index] = box
    return edited


def without_box(boxes: np.ndarray, place: tuple[float, float]) -> np.ndarray:
    """Remove from boxes (n, 4) the smallest one that contains a place (x, y).

    Raises:
        Refused: if no box contains it.
    """
    x, y = place
    inside = (boxes[:, 0] <= x) & (x <= boxes[:, 2]) & (boxes[:, 1] <= y) & (y <= boxes[:, 3])
    if not inside.any():
        raise Refused("no box lies there; click inside the box that should go")
    areas = np.where(inside, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), np.inf)
    return np.delete(boxes, int(areas.argmin()), axis=0)
