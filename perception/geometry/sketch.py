"""What families of geometry problems are made of: sketches, steps, and corners that are drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perception.geometry.figure import Box, Figure, Mark, Point, at

LETTERS = "ABCDEFGHKLMNPQRST"
FIND_X = "Find x."


@dataclass(frozen=True)
class Step:
    """One step of a solution, and the parts of the figure that it speaks of."""

    text: str
    regions: tuple[Box, ...]


@dataclass(frozen=True)
class Sketch:
    """A problem before it is drawn."""

    figure: Figure
    question: str
    steps: tuple[Step, ...]
    answer: int
    parameters: tuple[int | str, ...]
    """What makes the problem another one, whatever its figure looks like"""


Family = Callable[[np.random.Generator], Sketch | None]


def letters_for(rng: np.random.Generator, count: int) -> list[str]:
    return [str(letter) for letter in rng.choice(list(LETTERS), count, replace=False)]


def fives(rng: np.random.Generator, low: int, high: int) -> int:
    """A multiple of 5 from low to high."""
    return 5 * int(rng.integers(low // 5, high // 5 + 1))


def triangle(rng: np.random.Generator, angles: Sequence[float], turn: float | None = None) -> list[Point]:
    """Corners of a triangle with these angles in degrees, turned anyhow and as large as the picture allows."""
    a, b, c = np.deg2rad(angles)
    # By the law of sines, the side opposite to each angle.
    corners = np.array([[0.0, 0.0], [np.sin(c), 0.0], [np.sin(b) * np.cos(a), np.sin(b) * np.sin(a)]])
    return placed(rng, corners, turn)


def placed(rng: np.random.Generator, corners: Point, turn: float | None = None, room: float = 0.68) -> list[Point]:
    """Corners (n, 2) turned, mirrored at random, scaled into the middle `room` of the picture and moved a little."""
    radians = np.deg2rad(rng.uniform(0, 360) if turn is None else turn)
    matrix = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    flipped = corners * (at(1, -1) if rng.random() < 0.5 else at(1, 1))
    turned = flipped @ matrix.T
    low, high = turned.min(0), turned.max(0)
    scale = room * rng.uniform(0.92, 1.08) / float((high - low).max())
    moved = (turned - (low + high) / 2) * scale + 0.5 + rng.uniform(-0.03, 0.03, 2)
    return list(moved)


def slanted(rng: np.random.Generator) -> float:
    """A turn in degrees that keeps a shape nearly level."""
    return float(rng.uniform(-14, 14)) + 180 * float(rng.integers(2))


def named(figure: Figure, corners: Sequence[Point], names: Sequence[str]) -> list[Mark]:
    middle = np.mean(corners, axis=0)
    return [figure.name(corner, middle, name) for corner, name in zip(corners, names, strict=True)]


def left_first(*givens: tuple[Mark, str, int]) -> list[tuple[Mark, str, int]]:
    """What is given (where it is written, whose it is, how much) from left to right in the figure.

    Of several givens a solution could begin with any. Were that left to chance, nobody could learn where to look first.
    """
    return sorted(givens, key=lambda given: given[0].place_xy)


def angle_is(name: str, value: int) -> str:
    return f"angle {name} is {value}."


def less(whole: int, part: int) -> str:
    return f"x = {whole} - {part} = {whole - part}."
