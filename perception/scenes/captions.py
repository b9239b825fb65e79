"""Training texts of the tiny base model: captions and simple questions about scenes, with places as plain numbers.

They neither count nor compare depth, because fine-tuning teaches that, with or without perception tokens. Places are
hundredths of the image's side, so "34" covers the same strip of the image as location token 34 of 100.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.scenes.markers import choose_markers, draw_markers
from perception.scenes.questions import draw_selection, select, things_text
from perception.scenes.render import SceneObject
from perception.scenes.scene import Scene
from perception.scenes.styles import COLORS, SHAPES
from perception.tokenizers.boxes import ROWS


@dataclass(frozen=True)
class Conversation:
    """An image and its questions and answers."""

    image: Tensor
    turns: tuple[tuple[str, str], ...]
    """(question, answer) pairs"""
    points_xy: np.ndarray | None = None
    """(count, 2) centres of the markers drawn on the image, or None"""


_Asker = Callable[[Scene, np.random.Generator], tuple[str, str]]


def place(value: float) -> int:
    """Convert a share of the image's side to hundredths."""
    return min(99, max(0, int(value * 100)))


def place_text(values: Iterable[float]) -> str:
    return " ".join(str(place(v)) for v in values)


def _list_boxes(items: list[SceneObject], named: bool) -> str:
    """Boxes as text, in the order of `BoxTokenizer`: by the row of their centre (of ten), then from left to right."""
    if not items:
        return "nothing."
    items = sorted(items, key=lambda o: (int(o.center_xy[1] * ROWS), o.center_xy[0]))
    names = (f"{o.color} {o.shape} " if named else "" for o in items)
    return ", ".join(name + place_text(o.box_xyxy) for name, o in zip(names, items, strict=True)) + "."


def caption(scene: Scene) -> tuple[str, str]:
    """A question and answer that list every object with its box, in row-major order."""
    return "Describe the image.", _list_boxes(scene.objects, named=True)


def _ask_where(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    color, shape = draw_selection(scene, rng, share_of_all=0.15)
    return f"Where are the {things_text(color, shape)}?", _list_boxes(select(scene, color, shape), named=False)


def _ask_what(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    height, width = scene.object_ids.shape
    hits = scene.object_ids.nonzero()
    if len(hits) and rng.random() < 0.8:
        row, column = (int(v) for v in hits[rng.integers(len(hits))])
    else:
        row, column = int(rng.integers(height)), int(rng.integers(width))
    number = int(scene.object_ids[row, column])
    what = f"{scene.objects[number - 1].color} {scene.objects[number - 1].shape}" if number else "nothing"
    return f"What is at {place_text(((column + 0.5) / width, (row + 0.5) / height))}?", f"{what}."


def _ask_whether(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    if scene.objects and rng.random() < 0.5:
        chosen = scene.objects[rng.integers(len(scene.objects))]
        color, shape = chosen.color, chosen.shape
    else:
        color, shape = COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
    return f"Is there a {color} {shape}?", "yes." if select(scene, color, shape) else "no."


def _ask_letters(points: np.ndarray, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    letters = POINT_LETTERS[: len(points)]
    if rng.random() < 0.5:
        listed = ", ".join(f"{name} {place_text(p)}" for name, p in zip(letters, points, strict=True))
        return "Which points are marked?", f"{listed}."
    index = int(rng.integers(len(points)))
    if rng.random() < 0.6:
        return f"Where is {letters[index]}?", f"{place_text(points[index])}."
    height, width = scene.object_ids.shape
    number = int(scene.object_ids[int(points[index, 1] * height), int(points[index, 0] * width)])
    what = f"{scene.objects[number - 1].color} {scene.objects[number - 1].shape}" if number else "nothing"
    return f"What is {letters[index]} on?", f"{what}."


def markers_only(scene: Scene, rng: np.random.Generator, count: int) -> Conversation | None:
    """Questions about the places of `count` markers, in random order; None if the scene has no room for them."""
    points = choose_markers(scene, max(2, count), rng)
    if points is None:
        return None
    points = points[:count]
    turns = [(f"Where is {name}?", f"{place_text(p)}.") for name, p in zip(POINT_LETTERS, points, strict=False)]
    return Conversation(draw_markers(scene.image, points), tuple(turns[i] for i in rng.permutation(count)), points)


def lookups(scene: Scene, rng: np.random.Generator, count: int = 7) -> Conversation:
    """A conversation of up to `count` questions with short answers, each about one place or one marker."""
    points = choose_markers(scene, int(rng.integers(2, len(POINT_LETTERS) + 1)), rng)
    image = scene.image if points is None else draw_markers(scene.image, points)
    askers: list[_Asker] = [_ask_what]
    if points is not None:
        askers += [partial(_ask_letters, points)] * 2
    turns = dict(askers[rng.integers(len(askers))](scene, rng) for _ in range(count))
    return Conversation(image, tuple(turns.items()), points)


def conversation(scene: Scene, rng: np.random.Generator, budget: int = 75) -> Conversation:
    """A conversation of about `budget` words: simple questions and, in half of the conversations, a caption.

    Half of the images have lettered markers. Conversations are of similar length so that batches need little padding.
    """
    points = choose_markers(scene, int(rng.integers(2, len(POINT_LETTERS) + 1)), rng) if rng.random() < 0.5 else None
    image = scene.image if points is None else draw_markers(scene.image, points)
    turns = dict([caption(scene)]) if rng.random() < 0.5 else {}
    askers: list[_Asker] = [*[_ask_where] * 5, *[_ask_what] * 3, _ask_whether]
    if points is not None:
        askers += [partial(_ask_letters, points)] * 3
    for _ in range(14):
        if sum(len(q.split()) + len(a.split()) + 2 for q, a in turns.items()) >= budget:
            break
        question, answer = askers[rng.integers(len(askers))](scene, rng)
        turns[question] = answer
    listed = list(turns.items())
    return Conversation(image, tuple(listed[i] for i in rng.permutation(len(listed))), points)
