"""Geometry problems: legible, exact, solvable from the figure alone, and split without overlap."""

from __future__ import annotations

import re

import numpy as np
import pytest

from perception.geometry.families import FAMILIES, HELD_OUT
from perception.geometry.figure import Figure, Mark, at
from perception.geometry.problems import (
    covered_cells,
    families_of,
    is_tested,
    problem,
    problems,
)

SPLIT_OF = {name: "held-out" if name in HELD_OUT else "train" for name in FAMILIES}
_SUM = re.compile(r"\d[\d +*/-]*$")


def test_there_are_families_enough_and_those_held_out_are_never_trained_on() -> None:
    assert len(families_of("train")) >= 12
    assert len(HELD_OUT) >= 2
    assert not set(families_of("train")) & set(HELD_OUT)
    assert families_of("train") == families_of("test")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family(name: str) -> None:
    for seed in range(12):
        found = problem(seed, SPLIT_OF[name], 64, name)
        assert found.image.shape == (64, 64, 3)
        assert 0.5 < (found.image > 200).mean() < 0.99
        assert found.steps[-1].text.rstrip(".").endswith(f"{found.answer}")
        assert found.solution.endswith(f"Answer: {found.answer}")
        written = {mark.text for mark in found.marks}
        assert "x" in written or "Find the" in found.question
        assert not re.search(r"\d", found.question)
        # What the first steps read off stands in the figure.
        for step in found.steps[:-1]:
            read = re.fullmatch(r".* is (\d+)\.", step.text)
            assert read is None or read.group(1) in written
        for step in found.steps:
            assert step.regions
            for x1, y1, x2, y2 in step.regions:
                assert 0 <= x1 < x2 <= 1
                assert 0 <= y1 < y2 <= 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_arithmetic_of_a_solution_is_true(name: str) -> None:
    for seed in range(30):
        for step in problem(seed, SPLIT_OF[name], 16, name).steps:
            for sentence in step.text.rstrip(".").split(". "):
                sums = [_SUM.search(part.strip()) for part in sentence.split(" = ")]
                assert len({eval(found.group()) for found in sums if found}) <= 1, step.text


def test_what_a_step_reads_lies_in_its_region() -> None:
    for found in problems("train", 64, seed=3, image_size=16):
        for step in found.steps[:-1]:
            read = re.fullmatch(r".* is (\d+)\.", step.text)
            if read is None:
                continue
            marks = [mark for mark in found.marks if mark.text == read.group(1)]
            inside = [
                mark
                for mark in marks
                for x1, y1, x2, y2 in step.regions
                if x1 <= mark.place_xy[0] <= x2 and y1 <= mark.place_xy[1] <= y2
            ]
            assert inside, (found.family, step)


def test_what_is_given_is_read_from_left_to_right() -> None:
    for found in problems("train", 96, seed=5, image_size=16):
        if found.family in ("hypotenuse", "triangle_area"):  # a leg before the hypotenuse, the base before the height
            continue
        read = [m.group(1) for step in found.steps[:-1] if (m := re.fullmatch(r".* is (\d+)\.", step.text))]
        left = sorted((mark for mark in found.marks if mark.text.isdigit()), key=lambda mark: mark.place_xy)
        assert read == [mark.text for mark in left], found.family


def test_signs_stand_where_they_are_drawn() -> None:
    seen = set()
    for found in problems("train", 64, seed=4, image_size=128):
        for sign in found.signs:
            x, y = (round(place * 128) for place in sign.place_xy)
            assert found.image[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].min() < 128, (found.family, sign)
        words = {sign.text for sign in found.signs}
        seen |= words
        said = found.solution
        assert ("right" in words) >= ("is a right angle" in said), found.family
        assert ("equal" in words) == ("are equal" in said or "ticks" in said), found.family
        assert ("parallel" in words) == ("are parallel" in said), found.family
    assert seen == {"right", "equal", "parallel", "centre"}


def test_training_and_testing_share_no_parameters() -> None:
    for name in families_of("train"):
        drawn = [family for seed in range(300) if (family := FAMILIES[name](np.random.default_rng(seed))) is not None]
        tested = {sketch.parameters for sketch in drawn if is_tested(name, sketch.parameters)}
        trained = {sketch.parameters for sketch in drawn} - tested
        assert tested
        assert len(trained) > len(tested)
    ours = [FAMILIES["third_angle"], "third_angle"]
    for split in ("train", "test"):
        found = problem(5, split, 16, str(ours[1]))
        numbers = tuple(sorted(int(m.text) for m in found.marks if m.text.isdigit()))
        assert is_tested("third_angle", numbers) == (split == "test")


def test_legs_in_the_other_order_are_the_same_problem() -> None:
    drawn = [FAMILIES["hypotenuse"](np.random.default_rng(seed)) for seed in range(300)]
    asked = {sketch.parameters for sketch in drawn if sketch is not None and not sketch.parameters[-1]}
    assert len(asked) == 8 and all(a < b < c for a, b, c, _ in asked)


def test_the_same_seed_is_the_same_problem_and_another_another() -> None:
    one, same, other = (list(problems("test", 6, seed, 48)) for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.solution == b.solution
    assert [p.solution for p in one] != [p.solution for p in other]


def test_a_figure_says_when_it_is_not_legible() -> None:
    figure = Figure()
    figure.line(at(0.1, 0.5), at(0.9, 0.5))
    figure.write("A", at(0.5, 0.3))
    assert figure.fits()
    figure.write("B", at(0.52, 0.3))
    assert not figure.fits()
    crossed = Figure()
    crossed.line(at(0.1, 0.5), at(0.9, 0.5))
    crossed.write("A", at(0.5, 0.5))
    assert not crossed.fits()
    cut = Figure()
    cut.line(at(0.5, 0.5), at(1.0, 0.5))
    assert not cut.fits()
    outside = Figure()
    outside.write("A", at(0.99, 0.5))
    assert not outside.fits()


def test_labels_stand_clear_of_each_other() -> None:
    for found in problems("train", 48, seed=9, image_size=16):
        boxes = [mark.box for mark in found.marks]
        for n, (x1, y1, x2, y2) in enumerate(boxes):
            for u1, v1, u2, v2 in boxes[n + 1 :]:
                assert x2 < u1 or u2 < x1 or y2 < v1 or v2 < y1


def test_cells_of_a_region() -> None:
    assert covered_cells([(0.0, 0.0, 0.5, 0.5)], (4, 4)) == (0, 1, 4, 5)
    assert covered_cells([(0.3, 0.3, 0.31, 0.31)], (2, 2)) == (0,)
    assert covered_cells([(0.9, 0.9, 1.0, 1.0)], (2, 2)) == (3,)
    assert covered_cells([], (2, 2)) == ()
    assert Mark("50", (0.5, 0.5)).box[0] < 0.5 < Mark("50", (0.5, 0.5)).box[2]


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="split must be one of"):
        problem(0, "validation")
    with pytest.raises(ValueError, match="family must be one of"):
        problem(0, "train", family="parallelogram")
    with pytest.raises(ValueError, match="image_size"):
        problem(0, image_size=8)
