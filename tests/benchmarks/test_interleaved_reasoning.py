"""The benchmark of interleaved reasoning on toy figures: every arm is trained, looks as it should, and is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_figures import make_toy_folder, toy_problems

from benchmarks.interleaved_reasoning import ARMS, Recipes, Scale, bars, chooser, measure, plan, row_of
from benchmarks.reasoning_page import page
from train import interleave, reinforce
from train.data.geometry import GeometryData

SHORTEST = Scale(problems=8, text=1, second=1, batch_size=2, sums=0, reinforced=1, test=3)
DATA = GeometryData(image_size=32, grid_size=4)


def problems(data: GeometryData):
    return toy_problems(data.count, data.seed, data.image_size, data.grid)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers of models that know nothing."""
    config = reinforce.ReinforceConfig
    monkeypatch.setattr(reinforce, "ReinforceConfig", lambda **k: config(**k, batch_size=2, max_completion_length=6))
    monkeypatch.setattr("benchmarks.interleaved_reasoning.MAX_NEW_TOKENS", 6)


def test_every_arm_is_trained_once_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toy_folder(tmp_path / "base")
    recipes = Recipes(tmp_path, SHORTEST, DATA, problems, tmp_path / "base")
    assert plan(recipes, list(ARMS), (0,), finished=True) == {"base": [0]}
    seeds = plan(recipes, list(ARMS), (0,))
    table = measure(recipes, seeds, "test")
    assert list(table) == ["base", *ARMS] and all(len(row["right"][0]) == 3 for row in table.values())
    assert plan(recipes, list(ARMS), (0, 1), finished=True) == seeds
    assert {bar.name for bar in bars(table)} == {
        "interleaved SFT over text-only SFT",
        "interleaved SFT + RL over interleaved SFT",
        "interleaved SFT over random selection",
        "F1 of the selection",
    }
    assert table["text-only SFT"]["selection_f1"] is None and table["oracle regions"]["selection_f1"] is not None
    assert interleave.read_interleaved(tmp_path / "text-own-0").settings.max_looks == 0

    def never(*_: object) -> None:
        raise AssertionError("it is trained already")

    for module in (interleave, reinforce):
        monkeypatch.setattr(module, "train", never)
    again = measure(recipes, seeds, "test")
    assert [row_of(name, again) for name in again] == [row_of(name, table) for name in table]


def test_arms_look_at_what_they_should() -> None:
    problem = toy_problems(1, 0, 128, (8, 8))[0]
    true = set(problem.steps[0].tokens)
    own = torch.zeros(64, dtype=torch.bool)
    own[[9, 27]] = True

    def looked(name: str, look: int = 0) -> set[int]:
        choose = chooser(ARMS[name], (8, 8), 0, lambda scores: own)
        assert choose is not None
        return set(choose(problem, torch.zeros(64), look).nonzero()[:, 0].tolist())

    assert looked("oracle regions") == true and looked("oracle regions", 7) == set()
    assert looked("whole image again") == set(range(64))
    assert looked("bounding boxes") == {8 * row + column for row in (1, 2, 3) for column in (1, 2, 3)}
    assert len(looked("random selection")) == len(true) and looked("random selection") != true
    assert chooser(ARMS["interleaved SFT"], (8, 8), 0, lambda scores: own) is None


def test_bars_compare_the_same_problems() -> None:
    row = {"selection_f1": 0.8, "example": ""}
    table = {
        "text-only SFT": {**row, "right": {0: np.array([1.0, 0.0] * 20), 1: np.ones(40)}},
        "interleaved SFT": {**row, "right": {0: np.array([1.0, 1.0, 1.0, 0.0] * 10)}},
    }
    gain, f1 = bars(table)  # of the seed that both have
    assert gain.figure == pytest.approx(25) and gain.met and f1.figure == pytest.approx(80)
    assert replace(gain, figure=2.9).met is False
    rows = [row_of(name, table) for name in table]
    assert rows[1]["gain over text-only SFT"]["mean"] == pytest.approx(0.25)
    record = {**vars(SHORTEST), "seeds": [0], "rows": {"test": rows}, "bars": [gain.to_json(), f1.to_json()]}
    text = page(record)
    assert "intervals over problems in" in text
    assert "intervals over seeds and problems" in page({**record, "intervals_over": "seeds and problems together"})
    assert "| interleaved SFT | 75.0 [" in text and "25.0 points, target 3, met" in text


def test_intervals_hold_for_another_seed_too() -> None:
    """A gain that one seed shows and another does not is no gain."""
    row = {"selection_f1": 0.8, "example": ""}
    table = {
        "text-only SFT": {**row, "right": {0: np.zeros(40), 1: np.ones(40)}},
        "interleaved SFT": {**row, "right": {0: np.ones(40), 1: np.array([1.0, 0.0] * 20)}},
    }
    gained = row_of("interleaved SFT", table)["gain over text-only SFT"]
    assert gained["mean"] == pytest.approx(0.25) and gained["low"] < 0 < gained["high"]
    accuracy = row_of("text-only SFT", table)["accuracy"]
    assert (accuracy["low"], accuracy["high"]) == (0, 1)
