"""MINT-CoT's files: what is read is what was written, on any grid; bad rows are named and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perception.datasets.interleaved.mint_cot import (
    InterleavedProblem,
    InterleavedStep,
    on_grid,
    parse_solution,
    qwen_grid,
    read_mint_cot,
    write_mint_cot,
    written,
)

SOLUTION = (
    "### Step 1: <interleave>3,4, 12</interleave> AB is 5.\n### Step 2: <interleave></interleave>So x is 10.\n"
    "The answer is 10."
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (280, 140), "white").save(tmp_path / "figure.png")
    return tmp_path


def row(**changed: Any) -> dict[str, Any]:
    talk = [{"role": "user", "content": "<image>Find x."}, {"role": "assistant", "content": SOLUTION}]
    return {"messages": talk, "messages_interleave_ra": talk, "images": ["figure.png"]} | changed


def assistant(text: str) -> dict[str, Any]:
    talk = [{"role": "user", "content": "<image>Find x."}, {"role": "assistant", "content": text}]
    return row(messages_interleave_ra=talk)


def test_a_published_row(folder: Path) -> None:
    (folder / "rows.json").write_text(json.dumps([row()]))
    (problem,) = read_mint_cot(folder / "rows.json").problems
    assert problem.grid == (5, 10)
    assert problem.question == "Find x."
    assert [step.cells for step in problem.steps] == [(3, 4, 12), ()]
    assert problem.steps[0].text == "AB is 5."
    assert problem.steps[1].text == "So x is 10.\nThe answer is 10."


def test_what_is_written_is_read_again(folder: Path) -> None:
    steps = (InterleavedStep("AB is 5.", (0, 7)), InterleavedStep("x is 10.\nAnswer: 10", ()))
    problem = InterleavedProblem("here", folder / "figure.png", "Find x.", "Style at the figure.", steps, (4, 4))
    write_mint_cot([problem, problem], folder / "mine.json")
    found = read_mint_cot(folder / "mine.json").problems
    assert [(p.question, p.opening, p.steps, p.grid) for p in found] == [
        ("Find x.", "Style at the figure.", steps, (4, 4))
    ] * 2
    raw = json.loads((folder / "mine.json").read_text())
    assert raw[0]["images"] == ["figure.png"]
    assert "<interleave>" not in raw[0]["messages"][1]["content"]
    assert written(problem).count("<interleave>") == 2


def test_bad_rows_are_named_and_the_rest_is_kept(folder: Path) -> None:
    bad = {
        "left open": assistant("Step 1: <interleave>3 AB is 5."),
        "outside the grid": assistant("Step 1: <interleave>3,50</interleave> AB is 5."),
        "whole numbers": assistant("Step 1: <interleave>three</interleave> AB is 5."),
        "does not exist": row(images=["gone.png"]),
        "images missing": row(images=[]),
        "must have one image": row(images=["figure.png", "figure.png"]),
        "must hold a user's": row(messages_interleave_ra=[{"role": "user", "content": "Find x."}]),
        "must be an object": 7,
        "grid must be": row(grid=[3]),
    }
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(one) for one in [*bad.values(), row()]))
    found = read_mint_cot(folder / "rows.jsonl")
    assert len(found.problems) == 1
    for number, (words, line) in enumerate(zip(bad, found.skipped, strict=True), start=1):
        assert line.startswith(f"rows.jsonl:{number}: ")
        assert words in line


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        read_mint_cot(folder / "gone.json")
    (folder / "cut.json").write_text('[{"images": ')
    with pytest.raises(ValueError, match="half written"):
        read_mint_cot(folder / "cut.json")
    (folder / "empty.json").write_text("[]")
    with pytest.raises(ValueError, match="no row that can be used"):
        read_mint_cot(folder / "empty.json")


def test_cells_are_carried_over_by_overlap() -> None:
    assert on_grid((0, 1, 4, 5), (4, 4), (2, 2)) == (0,)
    assert on_grid((0,), (2, 2), (4, 4)) == (0, 1, 4, 5)
    assert on_grid((5,), (4, 4), (2, 2)) == (0,)  # a quarter of it: less than asked for, but the style is not lost
    assert on_grid((), (4, 4), (2, 2)) == ()
    rng = np.random.default_rng(0)
    for _ in range(20):
        grid = tuple(int(v) for v in rng.integers(1, 9, 2))
        cells = tuple(np.flatnonzero(rng.random(grid[0] * grid[1]) < 0.4).tolist())
        assert on_grid(cells, grid, grid) == cells
        every = tuple(range(grid[0] * grid[1]))
        assert on_grid(every, grid, (5, 7)) == tuple(range(35))
    with pytest.raises(ValueError, match="outside the grid"):
        on_grid((16,), (4, 4), (2, 2))


def test_qwen_s_grid_keeps_to_its_limits() -> None:
    assert qwen_grid(280, 140) == (5, 10)
    assert qwen_grid(10, 10) == (2, 2)
    rows, columns = qwen_grid(8000, 4000)
    assert rows * columns * 28 * 28 <= 14 * 14 * 4 * 1280
    assert columns / rows == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("text", "opening", "steps"),
    [
        ("### Step 1: Look.\n### Step 2: T3 So x is 10.", "", [("Look.", ()), ("So x is 10.", (3,))]),
        ("Hi.\nStep 1: T3 AB is 5.\nStep 2: x is 10.", "Hi.", [("AB is 5.", (3,)), ("x is 10.", ())]),
        ("**Step 1:** T3 AB.\n**Step 2:** CD.\n**Step 3:** T4 x.", "", [("AB.", (3,)), ("CD.", ()), ("x.", (4,))]),
        ("Step 1: T3 AB. Step 2: T4 x, as in step 1.", "", [("AB.", (3,)), ("x, as in step 1.", (4,))]),
        ("### Step 1: Sides\nT3 AB.\n### Step 2\nT4 x.", "", [("Sides\nAB.", (3,)), ("x.", (4,))]),
        ("Step 1: T3 the side of step 1 T4 is 5.", "", [("the side of step 1", (3,)), ("is 5.", (4,))]),
    ],
)
def test_steps_without_a_tag_look_at_nothing(text: str, opening: str, steps: list[tuple[str, tuple[int, ...]]]) -> None:
    tagged = text.replace("T3", "<interleave>3</interleave>").replace("T4", "<interleave>4</interleave>")
    assert parse_solution(tagged, (4, 4)) == (opening, tuple(InterleavedStep(*step) for step in steps))


def test_a_solution_without_tags_has_no_steps() -> None:
    assert parse_solution("The answer is 10.", (4, 4)) == ("The answer is 10.", ())
