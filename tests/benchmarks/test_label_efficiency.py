"""The benchmark of label efficiency: which run is chosen, what is compared, and its page."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import label_efficiency
from benchmarks.label_efficiency import ARMS, CURVES, STYLES, Cell, bars, figures, joined, kept, main, page, tune
from perception.evaluation.scenes import Item, scene_items

SCORES = {100: 0.4, 200: 0.5, 400: 0.5, 800: 0.6, 1600: 0.6, 3200: 0.5, 6400: 0.9}


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return scene_items("shifted", 6, 2)


def outcomes(items: list[Item], share: float) -> list[int]:
    return [int(i < share * len(items)) for i in range(len(items))]


def given(tmp_path: Path, **changes: object) -> argparse.Namespace:
    defaults = vars(label_efficiency.build_parser().parse_args([]))
    return argparse.Namespace(**{**defaults, "runs": str(tmp_path), "words": [], **changes})


def run(commit: str, *sizes: int) -> dict[str, object]:
    machine = {"processor": "x", "cores": 2, "torch": "2", "commit": commit, "uncommitted_changes": False}
    return {"command": "made so", "sizes": list(sizes), **machine, "training_minutes": 1}


def test_longer_runs_are_tried_until_two_are_no_better(
    items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Cell] = []

    def measured(cell: Cell, given: argparse.Namespace, name: str, items: list[Item]) -> dict[str, list[int]]:
        asked.append(cell)
        return {"directly": [cell.steps, int(1e6 * cell.learning_rate)]}

    def score(outcomes: dict[str, list[int]], items: list[Item]) -> float:
        steps, rate = outcomes["directly"]
        return SCORES[steps] + (0.05 if rate == 1000 else 0.0)

    monkeypatch.setattr(Cell, "outcomes", measured)
    monkeypatch.setattr(label_efficiency, "score", score)
    best, scores = tune("direct", 500, given(tmp_path), items)
    assert (best.steps, best.learning_rate) == (800, 1e-3), "1,600 and 3,200 steps were no better: 6,400 not tried"
    assert [cell.steps for cell in asked] == [100, 200, 400, 800, 1600, 3200, 800] and len(scores) == 7
    best, _ = tune("direct", 500, given(tmp_path, most_steps=200), items)
    assert best.steps == 200


def test_the_gain_is_over_the_better_of_the_direct_arms(items: list[Item]) -> None:
    right, half, wrong = outcomes(items, 1), [int(i % 2 == 0) for i in range(len(items))], outcomes(items, 0)
    correct = dict(zip(CURVES, ([wrong] * 2, [half] * 2, [right] * 2, [half] * 2), strict=True))
    found = figures(correct, items)
    for row in label_efficiency.ROWS:
        picked = [half[i] for i in label_efficiency.pick(items, row)]
        gain = found["gain"][row]
        assert gain["against"] == "directly, after perception" and gain["mean"] == pytest.approx(1 - np.mean(picked))
        assert found["accuracy"]["drawing first"][row]["mean"] == 1


def test_a_run_keeps_the_numbers_of_answers_that_it_does_not_measure(tmp_path: Path) -> None:
    asked = given(tmp_path, sizes=[500, 10_000], out=tmp_path / "label_efficiency.json")
    same = label_efficiency.settings(asked)
    stored = {**same, "runs": [run("a", 100, 500), run("b", 10_000)], "answers": {"100": 1, "500": 2, "10000": 3}}
    assert kept(asked, same) == {"answers": {}, "runs": []}, "there is no file"
    asked.out.write_text(json.dumps(stored))
    before = kept(asked, same)
    result = joined({**same, "runs": [run("c", 500, 10_000)], "answers": {"500": 4, "10000": 5}}, before)
    assert result["answers"] == {"100": 1, "500": 4, "10000": 5} and next(iter(result["answers"])) == "100"
    assert [(r["commit"], r["sizes"]) for r in result["runs"]] == [("a", [100]), ("c", [500, 10_000])]
    other = {**same, "seeds": [0]}
    with pytest.raises(ValueError, match=r"label_efficiency\.json holds 100 with other seeds; give another --out"):
        kept(asked, other)
    asked.sizes.append(100)
    assert kept(asked, other) == {"answers": {}, "runs": []}


def test_the_minutes_of_a_training_count_once(tmp_path: Path) -> None:
    for name, minutes in (("a", 2.4), ("b", 1.2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps({"minutes": minutes}))
    assert label_efficiency.training_minutes([tmp_path / "a", str(tmp_path / "a"), tmp_path / "b"]) == 4


def test_targets_and_page_come_from_the_stored_result(
    items: list[Item], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = figures({curve: [outcomes(items, 1 if "drawing" in curve else 0)] * 3 for curve in CURVES}, items)
    chosen = {arm: {"steps": 200, "learning_rate": 5e-4, "scores": {}} for arm in ARMS}
    result = {
        **{"seeds": [0, 1, 2], "scenes": 40_000, "runs": [run("c", 500)]},
        "answers": {"500": {"chosen": chosen, "styles": dict.fromkeys(STYLES, cell)}},
    }
    assert [(bar.figure, bar.bar) for bar in bars(result)] == [(100, 10), (100, 15)]
    for answers, wanted in (("2000", [10, 15]), ("40000", [10, 15, 8, 2])):
        more = {**result, "answers": {**result["answers"], answers: result["answers"]["500"]}}
        assert [bar.bar for bar in bars(more)] == wanted, "all answers are one about every scene"
    text = page(result)
    assert "## Counting, shifted style" in text and "| 500 | drawing first | 200 | 0.0005 |" in text
    assert "- 500 answers: `made so`, x, 2 cores, torch 2, commit `c`; 1 minutes of training" in text
    out = tmp_path / "r.json"
    out.write_text(json.dumps(result))
    assert main(["--check", "--out", str(out)]) == 0
    assert (
        "500 answers, counting: drawing first over directly: 100.0 points, target 10.0, met" in capsys.readouterr().out
    )
    label_efficiency.draw(result, tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 10_000
    assert main(["--sizes", "50000"]) == 2 and "as many scenes" in capsys.readouterr().err
