"""The families of problems: plane geometry, and `fine` ones whose values are small print.

A family is a function that makes a random `Sketch`, or returns None if the random numbers give no valid figure. All
given values are written in the figure; the question only asks for x, an area, a perimeter or a sum.
"""

from __future__ import annotations

from typing import Literal, get_args

from perception.geometry import angles, lengths
from perception.geometry.fine import FINE_FAMILIES, FINE_HELD_OUT
from perception.geometry.sketch import Family

FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        angles.third_angle,
        angles.isosceles_apex,
        angles.exterior_angle,
        angles.alternate_angles,
        angles.allied_angles,
        angles.straight_line,
        angles.around_a_point,
        angles.right_triangle_angle,
        lengths.hypotenuse,
        lengths.rectangle_area,
        lengths.rectangle_perimeter,
        lengths.triangle_area,
        angles.inscribed_angle,
        angles.semicircle,
        angles.fourth_angle,
        lengths.midsegment,
        angles.parallelogram,
        angles.cyclic_quadrilateral,
    )
}
HELD_OUT = ("parallelogram", "cyclic_quadrilateral")
"""Families that are not trained on"""

ProblemSet = Literal["plane", "fine"]
PROBLEM_SETS: tuple[str, ...] = get_args(ProblemSet)
SETS: dict[str, tuple[dict[str, Family], tuple[str, ...]]] = {
    "plane": (FAMILIES, HELD_OUT),
    "fine": (FINE_FAMILIES, FINE_HELD_OUT),
}
"""Families of each set, and those that are not trained on"""
