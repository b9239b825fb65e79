"""Families of geometry problems that ask for an angle."""

from __future__ import annotations

import numpy as np

from perception.geometry.figure import Figure, Point, around, at, direction
from perception.geometry.sketch import (
    FIND_X,
    Sketch,
    Step,
    angle_is,
    fives,
    left_first,
    less,
    letters_for,
    named,
    placed,
    slanted,
    triangle,
)


def third_angle(rng: np.random.Generator) -> Sketch | None:
    """Two angles of a triangle are given; the three add up to 180."""
    a, b = fives(rng, 30, 100), fives(rng, 30, 100)
    if not 30 <= 180 - a - b <= 110:
        return None
    figure, names = Figure(), letters_for(rng, 3)
    corners = triangle(rng, (a, b, 180 - a - b))
    figure.polygon(corners)
    letters = named(figure, corners, names)
    p, q, r = corners
    first, second = figure.angle(p, q, r, str(a)), figure.angle(q, r, p, str(b))
    unknown = figure.angle(r, p, q, "x")
    corner = dict(zip(names, letters, strict=True))
    (m, one, v), (n, two, w) = left_first((first, names[0], a), (second, names[1], b))
    steps = (
        Step(angle_is(one, v), (around(m, corner[one]),)),
        Step(angle_is(two, w), (around(n, corner[two]),)),
        Step(f"{v} + {w} = {a + b}. {less(180, a + b)}", (around(unknown, letters[2]),)),
    )
    return Sketch(figure, FIND_X, steps, 180 - a - b, tuple(sorted((a, b))))


def isosceles_apex(rng: np.random.Generator) -> Sketch | None:
    """Two sides are marked as equal, so the base angles are equal; the three angles add up to 180."""
    base = int(rng.integers(30, 81))
    figure, names = Figure(), letters_for(rng, 3)
    corners = triangle(rng, (base, base, 180 - 2 * base))
    figure.polygon(corners)
    letters = named(figure, corners, names)
    p, q, r = corners
    figure.ticks(p, r)
    figure.ticks(q, r)
    given, unknown = figure.angle(p, q, r, str(base)), figure.angle(r, p, q, "x")
    sides = (around((p + r) / 2, margin=0.05), around((q + r) / 2, margin=0.05))
    (_, one, _), (_, two, _) = left_first((letters[0], names[0], base), (letters[1], names[1], base))
    steps = (
        Step(f"sides {one}{names[2]} and {two}{names[2]} are equal.", sides),
        Step(angle_is(names[0], base), (around(given, letters[0]),)),
        Step(f"{base} + {base} = {2 * base}. {less(180, 2 * base)}", (around(unknown, letters[2]),)),
    )
    return Sketch(figure, FIND_X, steps, 180 - 2 * base, (base,))


def exterior_angle(rng: np.random.Generator) -> Sketch | None:
    """A side is extended; the exterior angle is the sum of the two opposite angles."""
    a, b = fives(rng, 30, 80), fives(rng, 30, 80)
    if not 60 <= a + b <= 140:
        return None
    figure, names = Figure(), letters_for(rng, 2)
    # A lies at the origin and C at (1, 0); the law of sines gives B.
    side = float(np.sin(np.deg2rad(a + b)) / np.sin(np.deg2rad(b)))
    places = np.array([at(0, 0), at(1, 0), direction(a) * side, at(1.4, 0)])
    p, q, r, end = placed(rng, places, slanted(rng), room=0.78)
    figure.polygon([p, q, r])
    figure.line(q, end)
    middle = (p + q + r) / 3
    letters = [figure.name(corner, middle, name) for corner, name in zip((p, r), names, strict=True)]
    first, second = figure.angle(p, q, r, str(a)), figure.angle(r, p, q, str(b))
    unknown = figure.angle(q, r, end, "x")
    corner = dict(zip(names, letters, strict=True))
    (m, one, v), (n, two, w) = left_first((first, names[0], a), (second, names[1], b))
    steps = (
        Step(angle_is(one, v), (around(m, corner[one]),)),
        Step(angle_is(two, w), (around(n, corner[two]),)),
        Step(f"x = {v} + {w} = {a + b}.", (around(unknown, q),)),
    )
    return Sketch(figure, FIND_X, steps, a + b, tuple(sorted((a, b))))


def _parallels(rng: np.random.Generator, tilt: float) -> tuple[Figure, Point, Point, Point, Point, Point]:
    """Draw two marked parallels and a line that crosses them at `tilt` degrees.

    Returns:
        the figure, the two crossings, the direction of the parallels, and both ends of the crossing line.
    """
    figure, turn = Figure(), rng.uniform(-25, 25)
    along, cross = direction(turn), direction(turn + tilt)
    gap = rng.uniform(0.17, 0.2) / float(np.sin(np.deg2rad(tilt)))
    middle = at(0.5, 0.5) + rng.uniform(-0.03, 0.03, 2)
    upper, lower = middle - cross * gap, middle + cross * gap
    for crossing in (upper, lower):
        figure.line(crossing - along * 0.37, crossing + along * 0.37)
        figure.chevron(crossing - along * 0.37, crossing + along * 0.37, 0.93)
    over = 0.17
    figure.line(upper - cross * over, lower + cross * over)
    return figure, upper, lower, along, upper - cross * over, lower + cross * over


def alternate_angles(rng: np.random.Generator) -> Sketch | None:
    """Alternate angles at parallels are equal."""
    a = int(rng.integers(45, 136))
    figure, upper, lower, along, _, _ = _parallels(rng, a)
    given = figure.angle(upper, upper + along, lower, str(a))
    unknown = figure.angle(lower, lower - along, upper, "x")
    steps = (
        Step(
            "the lines are parallel.",
            tuple(around(crossing + along * 0.31, margin=0.07) for crossing in (upper, lower)),
        ),
        Step(f"the alternate angle is {a}.", (around(given, upper),)),
        Step(f"x = {a}.", (around(unknown, lower),)),
    )
    return Sketch(figure, FIND_X, steps, a, (a,))


def allied_angles(rng: np.random.Generator) -> Sketch | None:
    """Allied angles, between parallels on the same side of the crossing line, add up to 180."""
    a = int(rng.integers(45, 136))
    figure, upper, lower, along, _, _ = _parallels(rng, a)
    given = figure.angle(upper, upper + along, lower, str(a))
    unknown = figure.angle(lower, lower + along, upper, "x")
    steps = (
        Step(
            "the lines are parallel.",
            tuple(around(crossing + along * 0.31, margin=0.07) for crossing in (upper, lower)),
        ),
        Step(f"the allied angle is {a}.", (around(given, upper),)),
        Step(less(180, a), (around(unknown, lower),)),
    )
    return Sketch(figure, FIND_X, steps, 180 - a, (a,))


def straight_line(rng: np.random.Generator) -> Sketch | None:
    """Angles on one side of a line add up to 180."""
    a, b = fives(rng, 35, 95), fives(rng, 35, 95)
    if not 35 <= 180 - a - b <= 110:
        return None
    figure, turn = Figure(), rng.uniform(-20, 20) + 180 * float(rng.integers(2))
    centre = at(0.5, 0.5) + 0.2 * direction(turn - 90 + 180)
    rays = [turn, turn - a, turn - a - b, turn - 180]
    ends = [centre + direction(ray) * length for ray, length in zip(rays, (0.4, 0.47, 0.47, 0.4), strict=True)]
    figure.line(ends[0], ends[3])
    figure.line(centre, ends[1])
    figure.line(centre, ends[2])
    order = [str(a), str(b), "x"]
    marks = [figure.angle(centre, ends[n], ends[n + 1], order[n]) for n in range(3)]
    (m, _, v), (n, _, w) = left_first((marks[0], "", a), (marks[1], "", b))
    steps = (
        Step(f"one angle is {v}.", (around(m),)),
        Step(f"one angle is {w}.", (around(n),)),
        Step(f"{v} + {w} = {a + b}. {less(180, a + b)}", (around(marks[2]),)),
    )
    return Sketch(figure, FIND_X, steps, 180 - a - b, tuple(sorted((a, b))))


def around_a_point(rng: np.random.Generator) -> Sketch | None:
    """Angles around a point add up to 360."""
    a, b = fives(rng, 70, 150), fives(rng, 70, 150)
    if not 70 <= 360 - a - b <= 175:
        return None
    figure, turn = Figure(), rng.uniform(0, 360)
    centre = at(0.5, 0.5) + rng.uniform(-0.04, 0.04, 2)
    ends = [centre + direction(ray) * 0.42 for ray in (turn, turn + a, turn + a + b)]
    for end in ends:
        figure.line(centre, end)
    marks = [figure.angle(centre, ends[n], ends[(n + 1) % 3], text) for n, text in enumerate((str(a), str(b), "x"))]
    (m, _, v), (n, _, w) = left_first((marks[0], "", a), (marks[1], "", b))
    steps = (
        Step(f"one angle is {v}.", (around(m),)),
        Step(f"one angle is {w}.", (around(n),)),
        Step(f"{v} + {w} = {a + b}. {less(360, a + b)}", (around(marks[2]),)),
    )
    return Sketch(figure, FIND_X, steps, 360 - a - b, tuple(sorted((a, b))))


def right_triangle_angle(rng: np.random.Generator) -> Sketch | None:
    """A square marks the right angle; the other two angles add up to 90."""
    a = int(rng.integers(25, 66))
    figure, names = Figure(), letters_for(rng, 3)
    p, q, r = corners = triangle(rng, (90, a, 90 - a))
    figure.polygon(corners)
    figure.right_angle(p, q, r)
    letters = named(figure, corners, names)
    given, unknown = figure.angle(q, r, p, str(a)), figure.angle(r, p, q, "x")
    steps = (
        Step(f"angle {names[0]} is a right angle.", (around(p, letters[0], margin=0.05),)),
        Step(angle_is(names[1], a), (around(given, letters[1]),)),
        Step(less(90, a), (around(unknown, letters[2]),)),
    )
    return Sketch(figure, FIND_X, steps, 90 - a, (a,))


def inscribed_angle(rng: np.random.Generator) -> Sketch | None:
    """An inscribed angle is half of the central angle over the same chord."""
    central = 2 * int(rng.integers(30, 71))
    figure, names = Figure(), letters_for(rng, 3)
    centre, radius = at(0.5, 0.5) + rng.uniform(-0.02, 0.02, 2), 0.38
    turn = rng.uniform(0, 360)
    p, q = (centre + radius * direction(turn + sign * central / 2) for sign in (-1, 1))
    r = centre + radius * direction(turn + 180 + rng.uniform(-25, 25))
    figure.circle(centre, radius)
    for one, two in ((centre, p), (centre, q), (r, p), (r, q)):
        figure.line(one, two)
    letters = [figure.name(corner, centre, name) for corner, name in zip((p, q, r), names, strict=True)]
    given, unknown = figure.angle(centre, p, q, str(central)), figure.angle(r, p, q, "x")
    steps = (
        Step(f"the angle at the centre is {central}.", (around(given, centre),)),
        Step(f"x = {central} / 2 = {central // 2}.", (around(unknown, letters[2]),)),
    )
    return Sketch(figure, FIND_X, steps, central // 2, (central,))


def semicircle(rng: np.random.Generator) -> Sketch | None:
    """The angle over a diameter is right (Thales), so the other two add up to 90."""
    a = int(rng.integers(25, 66))
    figure, names = Figure(), letters_for(rng, 3)
    centre, radius = at(0.5, 0.5) + rng.uniform(-0.02, 0.02, 2), 0.38
    turn = rng.uniform(0, 360)
    p, q = centre + radius * direction(turn), centre - radius * direction(turn)
    r = centre + radius * direction(turn + 180 - 2 * a)
    figure.circle(centre, radius)
    figure.polygon([p, q, r])
    figure.dot(centre)
    letters = [figure.name(corner, centre, name) for corner, name in zip((p, q, r), names, strict=True)]
    given, unknown = figure.angle(p, q, r, str(a)), figure.angle(q, p, r, "x")
    steps = (
        Step(
            f"{names[0]}{names[1]} is a diameter, so angle {names[2]} is right.", (around(r, letters[2], margin=0.04),)
        ),
        Step(angle_is(names[0], a), (around(given, letters[0]),)),
        Step(less(90, a), (around(unknown, letters[1]),)),
    )
    return Sketch(figure, FIND_X, steps, 90 - a, (a,))


def fourth_angle(rng: np.random.Generator) -> Sketch | None:
    """Three angles of a quadrilateral are given; the four add up to 360."""
    a, b, c = (fives(rng, 65, 120) for _ in range(3))
    rest = 360 - a - b - c
    if not 65 <= rest <= 120:
        return None
    # The first side is given, with angle a at its start and b at its end.
    low, high = np.deg2rad(a), np.deg2rad(b)
    up = rng.uniform(0.6, 1.0)
    r = at(1, 0) + up * at(-np.cos(high), np.sin(high))
    # The last corner lies on the ray from the first one, where the angle at r is c.
    ray, back = at(np.cos(low), np.sin(low)), np.pi - high + (np.pi - np.deg2rad(c))
    other = at(np.cos(back), np.sin(back))
    system = np.stack([ray, -other], 1)
    if abs(float(np.linalg.det(system))) < 1e-6:
        return None
    along, far = np.linalg.solve(system, r)
    if not (0.45 < along < 1.4 and 0.45 < far < 1.4):
        return None
    corners = placed(rng, np.array([at(0, 0), at(1, 0), r, ray * along]), room=0.72)
    figure, names = Figure(), letters_for(rng, 4)
    figure.polygon(corners)
    letters = named(figure, corners, names)
    texts = (str(a), str(b), str(c), "x")
    marks = [figure.angle(corners[n], corners[n - 1], corners[(n + 1) % 4], texts[n]) for n in range(4)]
    total, corner = a + b + c, dict(zip(names, letters, strict=True))
    givens = left_first(*zip(marks[:3], names[:3], (a, b, c), strict=True))
    u, v, w = (given[2] for given in givens)
    steps = (
        *(Step(angle_is(name, value), (around(mark, corner[name]),)) for mark, name, value in givens),
        Step(f"{u} + {v} = {u + v}. {u + v} + {w} = {total}. {less(360, total)}", (around(marks[3], letters[3]),)),
    )
    return Sketch(figure, FIND_X, steps, rest, tuple(sorted((a, b, c))))


def parallelogram(rng: np.random.Generator) -> Sketch | None:
    """Adjacent angles of a parallelogram add up to 180."""
    a = int(rng.integers(50, 131))
    figure, names = Figure(), letters_for(rng, 4)
    side = rng.uniform(0.55, 0.8) * at(np.cos(np.deg2rad(a)), np.sin(np.deg2rad(a)))
    corners = placed(rng, np.array([at(0, 0), at(1, 0), at(1, 0) + side, side]), slanted(rng))
    p, q, r, s = corners
    figure.polygon(corners)
    figure.chevron(p, q, 0.55)
    figure.chevron(s, r, 0.55)
    letters = named(figure, corners, names)
    given, unknown = figure.angle(p, q, s, str(a)), figure.angle(q, p, r, "x")
    steps = (
        Step(angle_is(names[0], a), (around(given, letters[0]),)),
        Step(less(180, a), (around(unknown, letters[1]),)),
    )
    return Sketch(figure, FIND_X, steps, 180 - a, (a,))


def cyclic_quadrilateral(rng: np.random.Generator) -> Sketch | None:
    """Opposite angles of a quadrilateral in a circle add up to 180."""
    figure, names = Figure(), letters_for(rng, 4)
    a = int(rng.integers(65, 116))
    centre, radius, turn = at(0.5, 0.5), 0.38, rng.uniform(0, 360)
    # The arc opposite to corner A, which the inscribed angle a looks at, spans 2a.
    first, third = rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)
    places = [(360 - 2 * a) * first, 0.0, -2 * a * third, -2 * a]
    corners = [centre + radius * direction(turn + place) for place in places]
    p, q, r, s = corners
    figure.circle(centre, radius)
    figure.polygon(corners)
    letters = [figure.name(corner, centre, name) for corner, name in zip(corners, names, strict=True)]
    given, unknown = figure.angle(p, q, s, str(a)), figure.angle(r, q, s, "x")
    steps = (
        Step(angle_is(names[0], a), (around(given, letters[0]),)),
        Step(less(180, a), (around(unknown, letters[2]),)),
    )
    return Sketch(figure, FIND_X, steps, 180 - a, (a,))
