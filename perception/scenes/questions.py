"""Counting and depth questions about scenes, with their answers and the boxes or points behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.scenes.markers import choose_markers, draw_markers, marker_nearness
from perception.scenes.render import SceneObject
from perception.scenes.scene import Scene
from perception.scenes.styles import COLORS, SHAPES


@dataclass(frozen=True)
class CountQuestion:
    """How many objects of a kind are there?"""

    text: str
    things: str
    """what is counted, in the plural ("red cubes")"""
    boxes_xyxy: np.ndarray
    """(answer, 4) in [0, 1], row-major: the boxes of the counted objects"""
    answer: int


@dataclass(frozen=True)
class DepthQuestion:
    """Which of 2 to 5 lettered points is closest to the camera?"""

    text: str
    image: Tensor
    """(H, W, 3) uint8, with the markers drawn on it"""
    points_xy: np.ndarray
    """(count, 2) in [0, 1], in the order of the letters"""
    nearness: np.ndarray
    """(count,), relative inverse depth at the points"""
    answer: str


def kind_of(item: SceneObject) -> tuple[str, str]:
    return item.color, item.shape


def select(scene: Scene, color: str | None, shape: str | None) -> list[SceneObject]:
    """The objects of a colour and a shape; None means any."""
    return [o for o in scene.objects if (color is None or o.color == color) and (shape is None or o.shape == shape)]


def things_text(color: str | None, shape: str | None) -> str:
    """The plural that names a selection: "objects", "red objects", "cubes", "red cubes"."""
    return f"{color} {shape or 'object'}s" if color else f"{shape or 'object'}s"


def boxes_of(items: list[SceneObject]) -> np.ndarray:
    """Boxes (n, 4) of objects, in [0, 1]."""
    return np.array([o.box_xyxy for o in items], dtype=np.float32).reshape(-1, 4)


def draw_selection(scene: Scene, rng: np.random.Generator, share_of_all: float = 0.3) -> tuple[str | None, str | None]:
    """Draw a colour and shape to ask about; None means any. One draw in eight may name a kind that is absent."""
    if rng.random() < share_of_all:
        return None, None
    form = rng.integers(3)
    if not scene.objects or rng.random() < 0.125:
        color, shape = COLORS[rng.integers(len(COLORS))], SHAPES[rng.integers(len(SHAPES))]
    else:
        color, shape = kind_of(scene.objects[rng.integers(len(scene.objects))])
    return (color if form != 0 else None), (shape if form != 1 else None)


def count_question(scene: Scene, rng: np.random.Generator) -> CountQuestion:
    """Ask how many objects of a kind there are, zero included."""
    color, shape = draw_selection(scene, rng)
    items, things = select(scene, color, shape), things_text(color, shape)
    return CountQuestion(f"How many {things} are there?", things, boxes_of(items), len(items))


def letters_text(count: int) -> str:
    """The first letters as text: "A or B", "A, B or C", ..."""
    return ", ".join(POINT_LETTERS[: count - 1]) + " or " + POINT_LETTERS[count - 1]


def depth_text(count: int, farthest: bool = False) -> str:
    """The question which of `count` lettered points is closest to the camera, or farthest from it."""
    return f"Which point is {'farthest from' if farthest else 'closest to'} the camera, {letters_text(count)}?"


def depth_question(scene: Scene, rng: np.random.Generator, count: int | None = None) -> DepthQuestion | None:
    """Ask which of `count` marked points (None: 2 to 5 at random) is closest; None if the scene has no room."""
    count = int(rng.integers(2, len(POINT_LETTERS) + 1)) if count is None else count
    points = choose_markers(scene, count, rng)
    if points is None:
        return None
    near = marker_nearness(scene.depth, points)
    return DepthQuestion(
        text=depth_text(count),
        image=draw_markers(scene.image, points),
        points_xy=points,
        nearness=near,
        answer=POINT_LETTERS[int(near.argmax())],
    )
