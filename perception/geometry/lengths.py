"""Families of geometry problems that ask for a length or an area."""

from __future__ import annotations

import numpy as np

from perception.geometry.figure import Figure, Mark, Point, around
from perception.geometry.sketch import (
    FIND_X,
    Sketch,
    Step,
    left_first,
    letters_for,
    named,
    placed,
    slanted,
    triangle,
)

TRIPLES = ((3, 4, 5), (6, 8, 10), (9, 12, 15), (12, 16, 20), (5, 12, 13), (8, 15, 17), (15, 20, 25), (10, 24, 26))


def hypotenuse(rng: np.random.Generator) -> Sketch | None:
    """Two sides of a right triangle are given; the third follows from Pythagoras' theorem."""
    a, b, c = TRIPLES[int(rng.integers(len(TRIPLES)))]
    if rng.random() < 0.5:
        a, b = b, a
    figure, names = Figure(), letters_for(rng, 3)
    angle = float(np.rad2deg(np.arctan2(b, a)))
    p, q, r = corners = triangle(rng, (90, angle, 90 - angle))
    figure.polygon(corners)
    figure.right_angle(p, q, r)
    letters = named(figure, corners, names)
    middle = np.mean(corners, axis=0)
    leg = rng.random() < 0.4  # whether a leg is asked for, else the hypotenuse
    given = (a, b) if leg else sorted((a, b))  # two legs in the other order make the same problem
    texts = [str(a), "x" if leg else str(b), str(c) if leg else "x"]
    sides = [(p, q), (p, r), (q, r)]
    marks = [figure.length(*side, middle, text) for side, text in zip(sides, texts, strict=True)]
    known, asked = (marks[2], marks[1]) if leg else (marks[1], marks[2])
    second = f"side {names[1]}{names[2]} is {c}." if leg else f"side {names[0]}{names[2]} is {b}."
    last = f"x x = {c * c} - {a * a} = {b * b}. x = {b}." if leg else f"x x = {a * a} + {b * b} = {c * c}. x = {c}."
    steps = (
        Step(f"angle {names[0]} is a right angle.", (around(p, letters[0], margin=0.05),)),
        Step(f"side {names[0]}{names[1]} is {a}.", (around(marks[0]),)),
        Step(second, (around(known),)),
        Step(last, (around(asked),)),
    )
    return Sketch(figure, FIND_X, steps, b if leg else c, (*given, c, int(leg)))


def _rectangle(rng: np.random.Generator) -> tuple[Figure, int, int, Mark, Mark, Point]:
    a, b = (int(v) for v in rng.choice(np.arange(2, 13), 2, replace=False))
    share = min(1.0, max(0.55, min(a, b) / max(a, b)))
    width, height = (1.0, share) if a > b else (share, 1.0)
    figure, names = Figure(), letters_for(rng, 4)
    corners = placed(rng, np.array([[0, 0], [width, 0], [width, height], [0, height]]), slanted(rng), room=0.6)
    figure.polygon(corners)
    figure.right_angle(corners[0], corners[1], corners[3])
    named(figure, corners, names)
    middle = np.mean(corners, axis=0)
    one = figure.length(corners[0], corners[1], middle, str(a))
    two = figure.length(corners[1], corners[2], middle, str(b))
    (one, _, a), (two, _, b) = left_first((one, "", a), (two, "", b))
    return figure, a, b, one, two, middle


def rectangle_area(rng: np.random.Generator) -> Sketch | None:
    """The area is width times height."""
    figure, a, b, one, two, middle = _rectangle(rng)
    steps = (
        Step(f"one side is {a}.", (around(one),)),
        Step(f"the other side is {b}.", (around(two),)),
        Step(f"the area is {a} * {b} = {a * b}.", (around(middle, margin=0.15),)),
    )
    return Sketch(figure, "Find the area.", steps, a * b, tuple(sorted((a, b))))


def rectangle_perimeter(rng: np.random.Generator) -> Sketch | None:
    """The perimeter is twice the sum of width and height."""
    figure, a, b, one, two, middle = _rectangle(rng)
    steps = (
        Step(f"one side is {a}.", (around(one),)),
        Step(f"the other side is {b}.", (around(two),)),
        Step(f"{a} + {b} = {a + b}. the perimeter is 2 * {a + b} = {2 * (a + b)}.", (around(middle, margin=0.15),)),
    )
    return Sketch(figure, "Find the perimeter.", steps, 2 * (a + b), tuple(sorted((a, b))))


def triangle_area(rng: np.random.Generator) -> Sketch | None:
    """The area is half of base times height; the height is a dashed line."""
    base, height = 2 * int(rng.integers(2, 9)), int(rng.integers(3, 13))
    figure = Figure()
    foot = rng.uniform(0.35, 0.65)
    p, q, r, f = placed(rng, np.array([[0, 0], [1, 0], [foot, rng.uniform(0.6, 0.8)], [foot, 0]]), slanted(rng))
    figure.polygon([p, q, r])
    figure.line(r, f, dashed=True)
    figure.right_angle(f, r, q)
    one = figure.length(p, q, r, str(base))
    two = figure.length(f + (r - f) * 0.1, f + (r - f) * 0.7, q if foot > 0.5 else p, str(height))
    steps = (
        Step(f"the base is {base}.", (around(one),)),
        Step(f"the height is {height}.", (around(two),)),
        Step(
            f"{base} / 2 = {base // 2}. the area is {base // 2} * {height} = {base // 2 * height}.", (around(p, q, r),)
        ),
    )
    return Sketch(figure, "Find the area.", steps, base // 2 * height, (base, height))


def midsegment(rng: np.random.Generator) -> Sketch | None:
    """A line between the midpoints of two sides is half as long as the third side."""
    base = 2 * int(rng.integers(2, 50))
    figure = Figure()
    p, q, r = placed(rng, np.array([[0, 0], [1, 0], [rng.uniform(0.25, 0.75), rng.uniform(0.75, 0.95)]]), slanted(rng))
    one, two = (p + r) / 2, (q + r) / 2
    figure.polygon([p, q, r])
    figure.line(one, two)
    for half in ((p, one), (one, r)):
        figure.ticks(*half)
    for half in ((q, two), (two, r)):
        figure.ticks(*half, count=2)
    given, unknown = figure.length(p, q, r, str(base)), figure.length(one, two, r, "x")
    steps = (
        Step("the ticks mark the middles of two sides.", (around(one, margin=0.06), around(two, margin=0.06))),
        Step(f"the base is {base}.", (around(given),)),
        Step(f"x = {base} / 2 = {base // 2}.", (around(unknown),)),
    )
    return Sketch(figure, FIND_X, steps, base // 2, (base,))
