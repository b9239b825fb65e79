"""Line drawings as in a geometry textbook, with letters and numbers whose places are known exactly.

Places are (x, y) in [0, 1] from the top left; lengths are shares of the side. `Figure.render` draws the figure;
`Figure.fits` tells beforehand whether everything written is legible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Point = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in [0, 1]"""

TEXT = 0.092
"""Height of the font, but for small print"""
LINE = 0.009
"""Width of the lines"""
_SUPERSAMPLING = 3
_MEASURED_AT = 200
_GAP = 0.008
"""Smallest distance between a text and anything else"""
_ARC, _SQUARE, _TICK, _CHEVRON = 0.07, 0.05, 0.026, 0.028


@lru_cache
def _font(pixels: int) -> Any:
    return ImageFont.load_default(size=pixels)


@lru_cache(maxsize=4096)
def _extent(text: str, font: float = TEXT) -> tuple[float, float]:
    """Half the width and half the height of a text, by the height of its font."""
    left, top, right, bottom = _font(_MEASURED_AT).getbbox(text, anchor="mm")
    scale = font / _MEASURED_AT / 2
    return (right - left) * scale, (bottom - top) * scale


def unit(vector: Point) -> Point:
    """The vector scaled to length 1."""
    return np.asarray(vector / max(1e-9, float(np.hypot(*vector))))


def at(x: float, y: float) -> Point:
    return np.array([x, y], dtype=np.float64)


def direction(degrees: float) -> Point:
    """A vector of length 1. Angles run clockwise from the right, because y points down."""
    radians = np.deg2rad(degrees)
    return at(float(np.cos(radians)), float(np.sin(radians)))


@dataclass(frozen=True)
class Mark:
    """A text in a figure, or the word for a small drawing."""

    text: str
    place_xy: tuple[float, float]
    """centre"""
    font: float = TEXT
    """height of the font"""

    @property
    def box(self) -> Box:
        """The box of the text."""
        (x, y), (width, height) = self.place_xy, _extent(self.text, self.font)
        return x - width, y - height, x + width, y + height


def around(*parts: Mark | Point, margin: float = 0.02) -> Box:
    """The box around marks and points, clipped to the picture."""
    boxes = [part.box if isinstance(part, Mark) else (*part, *part) for part in parts]
    low, high = np.min([box[:2] for box in boxes], 0), np.max([box[2:] for box in boxes], 0)
    x1, y1 = np.clip(low - margin, 0, 1).tolist()
    x2, y2 = np.clip(high + margin, 0, 1).tolist()
    return x1, y1, x2, y2


class Figure:
    """Lines, circles and texts of a drawing."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.signs: list[Mark] = []
        """small drawings with a meaning, by the word for it: right, equal, parallel, centre"""
        self._lines: list[tuple[Point, Point, bool]] = []
        self._arcs: list[tuple[Point, float, float, float]] = []
        self._dots: list[Point] = []
        self._small: list[list[Point]] = []  # strokes of ticks, squares and chevrons

    # Lines

    def line(self, start: Point, end: Point, dashed: bool = False) -> None:
        self._lines.append((start, end, dashed))

    def polygon(self, corners: Sequence[Point]) -> None:
        for start, end in zip(corners, [*corners[1:], corners[0]], strict=True):
            self.line(start, end)

    def circle(self, centre: Point, radius: float) -> None:
        self._arcs.append((centre, radius, 0.0, 360.0))

    def dot(self, place: Point) -> None:
        """Mark the centre of a circle with a dot."""
        self._dots.append(place)
        self._sign("centre", place)

    def _sign(self, word: str, place: Point) -> None:
        self.signs.append(Mark(word, (float(place[0]), float(place[1]))))

    def ticks(self, start: Point, end: Point, count: int = 1) -> None:
        """Put short strokes across a side; sides with the same number of strokes are equal."""
        along = unit(end - start)
        across = at(-along[1], along[0])
        self._sign("equal", (start + end) / 2)
        for number in range(count):
            middle = (start + end) / 2 + along * 0.022 * (number - (count - 1) / 2)
            self._small.append([middle - across * _TICK, middle + across * _TICK])

    def chevron(self, start: Point, end: Point, share: float = 0.5) -> None:
        """Put an arrow head on a line; lines with one are parallel."""
        along = unit(end - start)
        across = at(-along[1], along[0])
        tip = start + (end - start) * share
        self._sign("parallel", tip)
        self._small.append(
            [tip - along * _CHEVRON + across * _CHEVRON, tip, tip - along * _CHEVRON - across * _CHEVRON]
        )

    def right_angle(self, corner: Point, first: Point, second: Point) -> None:
        one, two = unit(first - corner) * _SQUARE, unit(second - corner) * _SQUARE
        self._small.append([corner + one, corner + one + two, corner + two])
        self._sign("right", corner + (one + two) / 2)

    # Texts

    def write(self, text: str, place: Point, font: float = TEXT) -> Mark:
        self.marks.append(Mark(text, (float(place[0]), float(place[1])), font))
        return self.marks[-1]

    def angle(self, corner: Point, first: Point, second: Point, text: str) -> Mark:
        """Draw an arc between the directions to two points, the shorter way round, and write its measure."""
        one, two = (float(np.rad2deg(np.arctan2(*(p - corner)[::-1]))) for p in (first, second))
        span = (two - one) % 360
        if span > 180:
            one, span = two, 360 - span
        self._arcs.append((corner, _ARC, one, one + span))
        # Far enough out for the text to fit between the two sides and outside the arc.
        bisector, extent = direction(one + span / 2), np.array(_extent(text))
        away = _ARC + 0.01 + float(np.abs(bisector) @ extent)
        for side in (first, second):
            along = unit(side - corner)
            needed = float(np.abs(at(-along[1], along[0])) @ extent) + _GAP + LINE / 2
            away = max(away, needed / max(0.1, float(np.sin(np.deg2rad(span / 2)))))
        return self.write(text, corner + bisector * away)

    def name(self, corner: Point, inside: Point, text: str) -> Mark:
        """Write the letter of a corner, on the side away from `inside`."""
        return self.write(text, corner + unit(corner - inside) * 0.062)

    def length(self, start: Point, end: Point, inside: Point, text: str) -> Mark:
        """Write the length of a side beside it, away from `inside`."""
        along = unit(end - start)
        across = at(-along[1], along[0])
        middle = (start + end) / 2
        if float(across @ (middle - inside)) < 0:
            across = -across
        width, height = _extent(text)
        return self.write(text, middle + across * (0.022 + abs(across[0]) * width + abs(across[1]) * height))

    # Drawing

    def fits(self, since: int = 0) -> bool:
        """True if everything lies in the picture, and no text touches a line or another text.

        Args:
            since: number of the first text to check; -1 for the newest, where all others fit.
        """
        boxes = np.array([mark.box for mark in self.marks]).reshape(-1, 4)
        known, boxes = (boxes[:since], boxes[since:]) if since else (boxes[:0], boxes)
        if (boxes[:, :2] < 0.012).any() or (boxes[:, 2:] > 0.988).any():
            return False
        for n, box in enumerate(boxes):
            rest = np.concatenate([known, boxes[n + 1 :]])
            apart = (rest[:, :2] > box[2:] + _GAP).any(1) | (rest[:, 2:] < box[:2] - _GAP).any(1)
            if not apart.all():
                return False
        tips = np.array([end for start, end, _ in self._lines] + [start for start, end, _ in self._lines])
        if len(tips) and (tips.min() < 0.015 or tips.max() > 0.985):
            return False
        strokes = [(start, end) for start, end, _ in self._lines]
        strokes += [pair for part in self._small for pair in zip(part, part[1:], strict=False)]
        for centre, radius, first, last in self._arcs:
            turns = np.linspace(first, last, max(3, int((last - first) / 10)))
            points = [centre + radius * direction(turn) for turn in turns]
            strokes += list(zip(points, points[1:], strict=False))
        if not strokes:
            return True
        starts, ends = (np.array([stroke[end] for stroke in strokes]) for end in (0, 1))
        return not any(_crossed(box, starts, ends) for box in boxes)

    def render(self, size: int) -> NDArray[np.uint8]:
        """Draw the figure, black on white, as (size, size, 3)."""
        side = size * _SUPERSAMPLING
        image = Image.new("L", (side, side), 255)
        canvas = ImageDraw.Draw(image)
        width = max(1, round(LINE * side))
        for start, end, dashed in self._lines:
            pieces = _dashes(start, end) if dashed else [(start, end)]
            for one, two in pieces:
                canvas.line([*(one * side), *(two * side)], fill=0, width=width)
        for stroke in self._small:
            canvas.line([tuple(place * side) for place in stroke], fill=0, width=width, joint="curve")
        for centre, radius, first, last in self._arcs:
            low, high = (centre - radius) * side, (centre + radius) * side
            canvas.arc([*low, *high], first, last, fill=0, width=width)
        for place in self._dots:
            canvas.ellipse([*((place - 1.5 * LINE) * side), *((place + 1.5 * LINE) * side)], fill=0)
        for mark in self.marks:
            (x, y), font = mark.place_xy, _font(max(1, round(mark.font * side)))
            canvas.text((x * side, y * side), mark.text, fill=0, font=font, anchor="mm")
        small = image.resize((size, size), Image.Resampling.BOX)
        return np.repeat(np.asarray(small)[..., None], 3, axis=2)


def _dashes(start: Point, end: Point) -> list[tuple[Point, Point]]:
    count = max(1, int(np.hypot(*(end - start)) / 0.05))
    shares = (np.arange(count)[:, None] + np.array([0.0, 0.6])) / count
    return [(start + (end - start) * one, start + (end - start) * two) for one, two in shares]


def _crossed(box: Any, starts: Point, ends: Point) -> bool:
    """True if any segment from (n, 2) to (n, 2) enters a box, by clipping to it (Liang and Barsky 1984)."""
    low, high = np.asarray(box[:2]) - _GAP / 2, np.asarray(box[2:]) + _GAP / 2
    steps = ends - starts
    with np.errstate(divide="ignore", invalid="ignore"):
        one, two = (low - starts) / steps, (high - starts) / steps
    still = np.abs(steps) < 1e-12
    inside = (starts >= low) & (starts <= high)
    enter = np.where(still, np.where(inside, -np.inf, np.inf), np.minimum(one, two)).max(1)
    leave = np.where(still, np.where(inside, np.inf, -np.inf), np.maximum(one, two)).min(1)
    return bool((np.maximum(enter, 0) <= np.minimum(leave, 1)).any())
