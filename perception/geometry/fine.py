"""Families of problems in which seeing is what is hard: charts, tables and drawings whose values are small print.

A value stands beside a large letter: below it, or right of it in a table. The letters are legible where a figure is
scaled down to 64 or 96 pixels, the values only where it has 384 or more. Nothing but one easy sum is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perception.geometry.figure import Box, Figure, Point, around, at, direction
from perception.geometry.sketch import Family, Sketch, Step, letters_for

PRINT = 0.024
"""Height of the small print"""
_BELOW = at(0, 0.06)
_SMALLEST, _LARGEST = 11, 89


def _values(rng: np.random.Generator, count: int) -> list[int]:
    return [int(n) for n in rng.choice(np.arange(_SMALLEST, _LARGEST + 1), count, replace=False)]


def _tag(figure: Figure, place: Point, letter: str, value: int, away: Point = _BELOW) -> Box:
    """Write a letter, and its value in small print `away` from it; returns the box around both."""
    return around(figure.write(letter, place), figure.write(str(value), place + away, PRINT), margin=0.01)


def _asked(
    rng: np.random.Generator, figure: Figure, letters: Sequence[str], values: Sequence[int], tags: Sequence[Box]
) -> Sketch | None:
    """Ask for the sum of two values, or for twice a value, in a figure with more small print where it has room."""
    if not figure.fits():
        return None
    for place in rng.uniform(0.05, 0.95, (5, 2)):
        figure.write(str(int(rng.integers(_SMALLEST, _LARGEST + 1))), place, PRINT)
        if not figure.fits(since=-1):
            figure.marks.pop()
    first, second = (int(n) for n in rng.choice(len(values), 2, replace=False))
    a, b = values[first], values[second]
    steps = [Step(f"{letters[first]} is {a}.", (tags[first],))]
    if rng.random() < 0.3:
        steps.append(Step(f"2 * {a} = {2 * a}.", ()))
        return Sketch(figure, f"Find 2 * {letters[first]}.", tuple(steps), 2 * a, (a,))
    steps.append(Step(f"{letters[second]} is {b}.", (tags[second],)))
    steps.append(Step(f"{a} + {b} = {a + b}.", ()))
    question = f"Find {letters[first]} + {letters[second]}."
    return Sketch(figure, question, tuple(steps), a + b, tuple(sorted((a, b))))


def bars(rng: np.random.Generator) -> Sketch | None:
    """A bar chart; the values stand on the bars, and small print at the axis."""
    count = int(rng.integers(4, 7))
    figure, letters, values = Figure(), letters_for(rng, count), _values(rng, count)
    floor, tallest, tags = 0.93, 0.62, list[Box]()
    left = 0.12
    figure.line(at(left, 0.2), at(left, floor))
    figure.line(at(left, floor), at(0.97, floor))
    for value in range(0, 81, 20):
        figure.write(str(value), at(left - 0.05, floor - 0.02 - value / 100 * tallest), PRINT)
    pitch = (0.97 - left) / count
    for number, (letter, value) in enumerate(zip(letters, values, strict=True)):
        x, top = left + (number + 0.5) * pitch, floor - value / 100 * tallest
        tags.append(_tag(figure, at(x, top - 0.1), letter, value, at(0, 0.066)))
        figure.polygon([at(x - 0.03, top), at(x + 0.03, top), at(x + 0.03, floor), at(x - 0.03, floor)])
    return _asked(rng, figure, letters, values, tags)


def curve(rng: np.random.Generator) -> Sketch | None:
    """A line chart; the values stand above its points."""
    count = int(rng.integers(4, 6))
    figure, letters, values = Figure(), letters_for(rng, count), _values(rng, count)
    places = [
        at(0.14 + (n + 0.5) * 0.82 / count, 0.85 - value / 100 * 0.5 + rng.uniform(-0.03, 0.03))
        for n, value in enumerate(values)
    ]
    for start, end in zip(places, places[1:], strict=False):
        figure.line(start, end)
    figure.line(at(0.05, 0.95), at(0.97, 0.95))
    tags = []
    for place, letter, value in zip(places, letters, values, strict=True):
        figure.dot(place)
        tags.append(_tag(figure, place - at(0, 0.1), letter, value, at(0, 0.063)))
    return _asked(rng, figure, letters, values, tags)


def table(rng: np.random.Generator) -> Sketch | None:
    """A ruled table; a value stands right of its letter."""
    rows, columns = int(rng.integers(3, 6)), 2
    figure, letters, values = Figure(), letters_for(rng, rows * columns), _values(rng, rows * columns)
    width, height = rng.uniform(0.4, 0.44), rng.uniform(0.14, 0.16)
    left, top = (1 - columns * width) / 2 + rng.uniform(-0.03, 0.03), (1 - rows * height) / 2
    for row in range(rows + 1):
        figure.line(at(left, top + row * height), at(left + columns * width, top + row * height))
    for column in range(columns + 1):
        figure.line(at(left + column * width, top), at(left + column * width, top + rows * height))
    tags = []
    for number, (letter, value) in enumerate(zip(letters, values, strict=True)):
        row, column = divmod(number, columns)
        place = at(left + (column + 0.25) * width, top + (row + 0.5) * height)
        tags.append(_tag(figure, place, letter, value, at(0.12, 0)))
    return _asked(rng, figure, letters, values, tags)


def polygon(rng: np.random.Generator) -> Sketch | None:
    """A polygon; the lengths of its sides stand outside."""
    count = int(rng.integers(3, 6))
    figure, letters, values = Figure(), letters_for(rng, count), _values(rng, count)
    centre, turn = at(0.5, 0.48), rng.uniform(0, 360)
    turns = turn + (np.arange(count) + rng.uniform(-0.15, 0.15, count)) * 360 / count
    corners = [centre + rng.uniform(0.28, 0.34) * direction(one) for one in turns]
    figure.polygon(corners)
    tags = []
    for number, (letter, value) in enumerate(zip(letters, values, strict=True)):
        middle = (corners[number] + corners[(number + 1) % count]) / 2
        out = (middle - centre) / float(np.hypot(*(middle - centre)))
        tags.append(_tag(figure, middle + out * 0.1 - at(0, 0.02), letter, value))
    return _asked(rng, figure, letters, values, tags)


def _apart(rng: np.random.Generator, count: int, margin: float, gap: float) -> list[Point]:
    """Random places, inside a margin, at a distance from each other; fewer where there is no room."""
    places: list[Point] = []
    for place in rng.uniform(margin, 1 - margin, (60, 2)):
        if len(places) < count and all(np.hypot(*(place - other)) > gap for other in places):
            places.append(place)
    return places


def places(rng: np.random.Generator) -> Sketch | None:
    """A map; the values stand below the letters of its places."""
    found = _apart(rng, int(rng.integers(5, 8)), 0.1, 0.24)
    figure, letters, values = Figure(), letters_for(rng, len(found)), _values(rng, len(found))
    tags = []
    for place, letter, value in zip(found, letters, values, strict=True):
        figure.circle(place + at(-0.065, 0), 0.015)
        tags.append(_tag(figure, place, letter, value))
    return _asked(rng, figure, letters, values, tags)


def pie(rng: np.random.Generator) -> Sketch | None:
    """A circle cut into sectors, whose values stand outside."""
    count = int(rng.integers(4, 6))
    figure, letters, values = Figure(), letters_for(rng, count), _values(rng, count)
    centre, radius, turn = at(0.5, 0.48), 0.25, rng.uniform(0, 360)
    figure.circle(centre, radius)
    spans = 360 * np.array(values) / sum(values)
    tags = []
    for letter, value, span in zip(letters, values, spans, strict=True):
        figure.line(centre, centre + radius * direction(turn))
        tags.append(_tag(figure, centre + (radius + 0.12) * direction(turn + span / 2) - at(0, 0.02), letter, value))
        turn += span
    return _asked(rng, figure, letters, values, tags)


def network(rng: np.random.Generator) -> Sketch | None:
    """Lettered points joined by dashed lines; the values stand below the letters."""
    found = sorted(_apart(rng, int(rng.integers(4, 6)), 0.13, 0.3), key=lambda place: float(place[0]))
    figure, letters, values = Figure(), letters_for(rng, len(found)), _values(rng, len(found))
    for start, end in zip(found, found[1:], strict=False):
        along = (end - start) / float(np.hypot(*(end - start)))
        figure.line(start + along * 0.11, end - along * 0.11, dashed=True)
    tags = [_tag(figure, place, name, value) for place, name, value in zip(found, letters, values, strict=True)]
    return _asked(rng, figure, letters, values, tags)


FINE_FAMILIES: dict[str, Family] = {
    family.__name__: family for family in (bars, curve, table, polygon, places, pie, network)
}
FINE_HELD_OUT = ("pie", "network")
"""Families that are not trained on"""
