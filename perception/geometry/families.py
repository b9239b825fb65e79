"""The kinds of plane-geometry problems: what is drawn, what is given in the figure, how it is solved.

A family draws a `Sketch` from a generator of random numbers, or None where the draw leads to nothing that can be drawn.
What has to be known stands in the figure alone; the question only asks for x, or for an area.
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
"""Families that no training sees"""
