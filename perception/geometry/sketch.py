"""The parts that families of geometry problems share: sketches, steps, and random placement of corners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perception.geometry.figure import Box, Figure, Mark, Point, at

LETTERS = "ABCDEFGHKLMNPQRST"
FIND_X = "Find x."


@dataclass(frozen=True)
class Step:
    """One step of a solution, and the parts of the figure that it refers to."""

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
    """values that define the problem, however its figure is drawn"""


Family = Callable[[np.random.Generator], Sketch | None]
"""Makes a random problem, or None if the random numbers give no valid figure."""


def letters_for(rng: np.random.Generator, count: int) -> list[str]:
    return [str(letter) for letter in rng.choice(list(LETTERS), count, replace=False)]


def fives(rng: np.random.Generator, low: int, high: int) -> int:
    """A multiple of 5 from low to high."""
    return 5 * int(rng.integers(low // 5, high // 5 + 1))


def triangle(rng: np.random.Generator, angles: Sequence[float], turn: float | None = None) -> list[Point]:
    """Corners of a triangle with these angles in degrees, turned at random unless `turn` is given, and placed."""
    a, b, c = np.deg2rad(angles)
    # The law of sines gives the side opposite to each angle.
    corners = np.array([[0.0, 0.0], [np.sin(c), 0.0], [np.sin(b) * np.cos(a), np.sin(b) * np.sin(a)]])
    return placed(rng, corners, turn)


def placed(rng: np.random.Generator, corners: Point, turn: float | None = None, room: float = 0.68) -> list[Point]:
    """Turn corners (n, 2), mirror them at random, scale them to the middle `room` of the picture, and move them."""
    radians = np.deg2rad(rng.uniform(0, 360) if turn is None else turn)
    matrix = np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    flipped = corners * (at(1, -1) if rng.random() < 0.5 else at(1, 1))
    turned = flipped @ matrix.T
    low, high = turned.min(0), turned.max(0)
    scale = room * rng.uniform(0.92, 1.08) / float((high - low).max())
    moved = (turned - (low + high) / 2) * scale + 0.5 + rng.uniform(-0.03, 0.03, 2)
    return list(moved)


def slanted(rng: np.random.Generator) -> float:
    """A random turn in degrees that keeps a shape nearly level."""
    return float(rng.uniform(-14, 14)) + 180 * float(rng.integers(2))


def named(figure: Figure, corners: Sequence[Point], names: Sequence[str]) -> list[Mark]:
    """Write the names of corners into a figure."""
    middle = np.mean(corners, axis=0)
    return [figure.name(corner, middle, name) for corner, name in zip(corners, names, strict=True)]


def left_first(*givens: tuple[Mark, str, int]) -> list[tuple[Mark, str, int]]:
    """Sort given values (mark, name, value) from left to right in the figure.

    A solution could begin with any of them; a fixed order lets a model learn where to look first.
    """
    return sorted(givens, key=lambda given: given[0].place_xy)


def angle_is(name: str, value: int) -> str:
    return f"angle {name} is {value}."


def less(whole: int, part: int) -> str:
    return f"x = {whole} - {part} = {whole - part}."
