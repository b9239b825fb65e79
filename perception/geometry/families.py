"""The families of plane-geometry problems.

A family is a function that makes a random `Sketch`, or returns None if the random numbers give no valid figure. All
given values are written in the figure; the question only asks for x, an area or a perimeter.
"""

from __future__ import annotations

from perception.geometry import angles, lengths
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
