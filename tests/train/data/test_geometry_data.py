"""Geometry problems on disk: the same as were drawn, drawn once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_figures import toy_problems

from train.data.geometry import GeometryData, ProblemStore, read_problems


def test_what_is_read_is_what_was_drawn(tmp_path: Path) -> None:
    problems = [replace(p, truths={"count": n}) for n, p in enumerate(toy_problems(5))]
    store = ProblemStore.build(tmp_path / "problems", {}, lambda: problems)
    assert len(store) == 5 and len(store[1:3]) == 2
    for problem, read in zip(problems, store, strict=True):
        assert torch.equal(problem.image, read.image)
        assert replace(problem, image=None) == replace(read, image=None)
    with pytest.raises(IndexError):
        store[5]


def test_problems_are_drawn_once_by_their_settings(tmp_path: Path) -> None:
    drawn = []

    def draw(data: GeometryData):
        drawn.append(data)
        return toy_problems(data.count, data.seed)

    data = GeometryData(count=3, store=str(tmp_path))
    first, again = read_problems(data, draw), read_problems(data, draw)
    other = read_problems(replace(data, seed=1), draw)
    assert len(drawn) == 2 and first[0].question == again[0].question != other[0].question


def test_geometry_comes_with_looks_and_marks_on_the_model_s_grid(tmp_path: Path) -> None:
    store = read_problems(GeometryData(count=20, store=str(tmp_path), grid_size=8))
    assert len({problem.kind for problem in store}) > 10
    for problem in store:
        looks = [step.tokens for step in problem.steps]
        assert problem.image.shape == (128, 128, 3) and any(looks) and problem.marks
        assert all(0 <= token < 64 for look in looks for token in look)
        assert all(0 <= place < 1 for mark in problem.marks for place in mark.place_xy)


def test_a_store_that_lost_rows_is_refused(tmp_path: Path) -> None:
    def build() -> ProblemStore:
        return ProblemStore.build(tmp_path / "problems", {}, lambda: toy_problems(3))

    build()
    rows = tmp_path / "problems" / "rows.jsonl"
    rows.write_text("\n".join(rows.read_text().splitlines()[:2]))
    with pytest.raises(ValueError, match="holds 3 images and 2 rows; delete the folder and build it again"):
        build()
