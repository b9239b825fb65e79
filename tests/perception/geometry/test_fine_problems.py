"""Problems with small print: exact regions, true sums, separate splits, and values that scaling down destroys."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from perception.geometry.fine import FINE_FAMILIES, FINE_HELD_OUT, PRINT
from perception.geometry.problems import families_of, is_tested, numbered_problem, problem, problems
from train.data.geometry import GeometryData, read_problems

SPLIT_OF = {name: "held-out" if name in FINE_HELD_OUT else "train" for name in FINE_FAMILIES}


def values_of(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("name", FINE_FAMILIES)
def test_steps_look_at_the_letter_that_is_asked_for_and_its_value(name: str) -> None:
    for seed in range(8):
        found = problem(seed, SPLIT_OF[name], 16, name, "fine")
        asked = re.findall(r"\b[A-Z]\b", found.question.removeprefix("Find"))
        reads, last = found.steps[:-1], found.steps[-1]
        assert [step.text.split()[0] for step in reads] == asked and not last.regions
        for step, letter in zip(reads, asked, strict=True):
            ((x1, y1, x2, y2),) = step.regions
            inside = [
                mark
                for mark in found.marks
                if mark.font == PRINT and x1 <= mark.box[0] and mark.box[2] <= x2 and y1 <= mark.box[1] <= y2
            ]
            assert [mark.text for mark in inside] == [str(values_of(step.text)[0])]
            large = {mark.text: np.array(mark.place_xy) for mark in found.marks if mark.font > PRINT}
            assert x1 < large[letter][0] < x2 and y1 < large[letter][1] < y2
            away = np.abs(large[letter] - inside[0].place_xy)
            others = [float(np.hypot(*(place - inside[0].place_xy))) for place in large.values()]
            assert float(np.hypot(*away)) == min(others) < 0.14
        assert eval(last.text.rstrip(".").replace("=", "==")) and last.text.endswith(f"= {found.answer}.")


def test_at_the_first_size_other_values_look_the_same() -> None:
    """Two values differ by many grey levels where the figure has 384 pixels, and by few where it has 96."""
    found = problem(1, "train", 384, "table", "fine")
    value = str(values_of(found.steps[0].text)[0])
    (box,) = (mark.box for mark in found.marks if mark.font == PRINT and mark.text == value)

    def print_at(size: int) -> np.ndarray:
        x1, y1, x2, y2 = (round(place * size) for place in box)
        image = Image.fromarray(found.image).resize((size, size), Image.Resampling.BICUBIC)
        return np.asarray(image.convert("L"))[y1:y2, x1:x2].astype(float)

    assert print_at(384).min() < 60 and print_at(96).min() > 80
    assert (print_at(384) < 128).any(1).sum() >= 6, "as many rows of pixels as a digit needs"
    assert (print_at(96) < 128).any(1).sum() <= 2


def test_families_and_values_of_the_test_are_held_out() -> None:
    assert not set(families_of("train", "fine")) & set(families_of("held-out", "fine"))
    for split in ("train", "test"):
        for found in problems(split, 20, 3, 16, "fine"):
            numbers = tuple(sorted(values_of(step.text)[0] for step in found.steps[:-1]))
            assert is_tested(found.family, numbers) == (split == "test")
    with pytest.raises(ValueError, match="set of problems must be one of plane, fine"):
        families_of("train", "small")  # type: ignore[arg-type]


def test_problems_are_drawn_when_they_are_asked_for() -> None:
    data = GeometryData(problems="fine", count=6, image_size=64, store="nowhere")
    read = read_problems(data)
    assert len(read) == 6 and len(read[1:3]) == 2
    drawn = numbered_problem(4, "train", 0, 64, "fine")
    assert read[4].question == drawn.question and np.array_equal(read[4].image.numpy(), drawn.image)
    assert read[4].steps[0].tokens and read[4].steps[-1].tokens == ()
    with pytest.raises(IndexError, match="there are 6 problems"):
        read[6]
