"""The ablation of losses: resumed without training twice, and a verdict that follows the intervals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import loss_ablation
from benchmarks.loss_ablation import BASE, PLAIN, VARIANTS, Scale
from train.aurora import AuroraConfig
from train.loop.provenance import ROOT

SCALE = Scale(str(ROOT / "models" / "aurora-tiny"), 100, 50)
GROUPS = ["count", "depth-2", "depth-3", "depth-4", "depth-5"] * 20


def stand_in(monkeypatch: pytest.MonkeyPatch, trained: list[str], stop_at: int) -> None:
    """Trainings that take no time: the marker loss helps counting, the reconstruction hurts depth."""

    def train(config: AuroraConfig) -> None:
        if len(trained) == stop_at:
            raise KeyboardInterrupt
        trained.append(config.out)
        Path(config.out).mkdir(parents=True)
        (Path(config.out) / "training.json").write_text("{}")

    def evaluate(model: str, items: Any, mode: str) -> list[Any]:
        right = [True] * 50 + [False] * 50
        if "marker" in model:
            right = [r or g == "count" for r, g in zip(right, GROUPS, strict=True)]
        if "reconstruction" in model:
            right = [r and g == "count" for r, g in zip(right, GROUPS, strict=True)]
        answer = SimpleNamespace(value=1)
        return [SimpleNamespace(group=g, correct=r, answer=answer) for g, r in zip(GROUPS, right, strict=True)]

    monkeypatch.setattr(loss_ablation, "train", train)
    monkeypatch.setattr(loss_ablation, "PerceptionModel", SimpleNamespace(from_pretrained=str))
    monkeypatch.setattr(loss_ablation, "evaluate_items", evaluate)
    monkeypatch.setattr(loss_ablation, "map_order_accuracy", lambda model, items, outcomes: {"depth-2": 0.9})
    monkeypatch.setattr(loss_ablation, "scene_items", lambda style, count, depth: GROUPS)


def test_a_stopped_ablation_goes_on_and_says_what_is_worth_having(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_ablation, "RESULT", tmp_path / "loss_ablation.json")
    words = ["--runs", str(tmp_path / "runs"), "--seeds", "0", "1"]
    trained: list[str] = []
    stand_in(monkeypatch, trained, stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        loss_ablation.main(words)
    stand_in(monkeypatch, trained, stop_at=99)
    assert loss_ablation.main(words) == 0
    assert len(trained) == len(set(trained)) == 2 * len(VARIANTS)
    result = json.loads((tmp_path / "loss_ablation.json").read_text())
    assert [row["losses"] for row in result["rows"]] == [BASE, *VARIANTS]
    assert result["worth_having"] == ["marker"]
    plain = result["rows"][1]
    assert plain["losses"] == PLAIN and plain["counting"]["accuracy"]["mean"] == 0.5 and "gain" not in plain["counting"]
    page = (tmp_path / "loss_ablation.md").read_text()
    assert "Worth having by these intervals: marker." in page and "| reconstruction | 50.0" in page


def test_recipes_differ_in_their_losses_alone(tmp_path: Path) -> None:
    recipes = [loss_ablation.training(name, 3, tmp_path, SCALE) for name in VARIANTS]
    assert [recipe.losses for recipe in recipes] == list(VARIANTS.values())
    assert len({recipe.run_dir for recipe in recipes}) == len(recipes)
    assert len({(r.store, r.num_scenes, r.loop, r.curriculum, r.weights, r.base) for r in recipes}) == 1
    assert not SCALE.from_the_start and recipes[0].style == "shifted" and recipes[0].curriculum.schedule == "constant"
    started = loss_ablation.training(PLAIN, 3, tmp_path, Scale(str(ROOT / "models" / "tiny-base"), 100, 50))
    assert started.curriculum.schedule == "phases", "a model without perception tokens draws first"
