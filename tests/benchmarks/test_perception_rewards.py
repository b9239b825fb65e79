"""The benchmark of perception rewards: what is trained is kept, gains are over the same questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import perception_rewards
from benchmarks.perception_rewards import BEFORE, BOTH, COUNT, main
from train.reinforce_scenes import SceneReinforceConfig

QUESTIONS = 60


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Trainings that take no time: paid for boxes too, a model is right 15 times more, and its boxes lie better."""
    runs: list[str] = []

    def train(config: SceneReinforceConfig) -> None:
        runs.append(config.run_dir)
        Path(config.out).mkdir(parents=True)
        (Path(config.out) / "training.json").write_text("{}")

    def asked(folder: Path, items: list[int]) -> dict[str, list[float]]:
        right = 45 if "boxes" in str(folder) else 30
        return {"right": [float(n < right) for n in items], "iou": [0.8 if right == 45 else 0.6] * len(items)}

    monkeypatch.setattr(perception_rewards, "train", train)
    monkeypatch.setattr(perception_rewards, "asked", asked)
    monkeypatch.setattr(perception_rewards, "scene_items", lambda style, count, depth, seed: list(range(count)))
    monkeypatch.setattr(perception_rewards, "RESULT", tmp_path / "result.json")
    return runs


def test_what_is_trained_is_kept_and_compared(trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--runs", str(tmp_path), "--questions", str(QUESTIONS)]
    assert main(words) == 0 and len(set(trained)) == len(trained) == 4
    assert main(words) == 0 and len(trained) == 4
    rows = {row["arm"]: row for row in json.loads((tmp_path / "result.json").read_text())["rows"]}
    assert list(rows) == [BEFORE, BOTH, COUNT] and "accuracy_gain" not in rows[BEFORE]
    assert rows[BOTH]["accuracy_gain"]["mean"] == pytest.approx(0.25) and rows[COUNT]["accuracy_gain"]["mean"] == 0
    assert rows[BOTH]["box_iou_gain"]["low"] == pytest.approx(0.2) and rows[BOTH]["by_seed"] == {"0": 0.75, "1": 0.75}
    assert main([*words, "--check"]) == 0
    assert capsys.readouterr().out.count(", met") == 6


def test_a_gain_of_one_seed_alone_is_none() -> None:
    before = {"right": [0.0, 1.0] * 20, "iou": [0.5] * 40}
    worse, better = {"right": [0.0] * 40, "iou": [0.4] * 40}, {"right": [1.0] * 40, "iou": [0.9] * 40}
    gain = perception_rewards.rows_of({BEFORE: {0: before}, BOTH: {0: worse, 1: better}})[1]["box_iou_gain"]
    assert gain["mean"] == pytest.approx(0.15) and gain["low"] < 0 < gain["high"]
