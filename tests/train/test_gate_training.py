"""The gate's recipe from end to end on a random model: answers kept, a gate beside the model, a second run that asks
nothing."""

from __future__ import annotations

import pytest
import torch
from tiny_perception import build_perception

from perception.evaluation.scenes import scene_items
from perception.model.perception_model import PerceptionModel
from train.gate import GateConfig, answer_both, main


def test_a_run_writes_a_gate_and_a_second_one_asks_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    build_perception(1).save_pretrained(folder)
    command = ["--model", folder, "--run_dir", tmp_path / "run", "--num_count", "8", "--num_depth", "2"]
    main([str(word) for word in command])
    gate = PerceptionModel.from_pretrained(folder).gate
    assert gate is not None and gate.settings[0].price == -100 and gate.settings[0].drawn == 1.0
    assert gate.settings[-1].drawn == 0.0 and gate.price in [setting.price for setting in gate.settings]
    monkeypatch.setattr("train.gate.answer_both", None)
    main([str(word) for word in command])
    assert torch.equal(PerceptionModel.from_pretrained(folder).gate.weight, gate.weight)


def test_answers_of_both_kinds_are_scored_and_counted():
    model, items = build_perception(1), scene_items("standard", 3, 1)
    made = answer_both(model, items, batch_size=4)
    assert {name: len(value) for name, value in made.items()} == dict.fromkeys(made, 7)
    assert made["depth"].tolist() == [False] * 3 + [True] * 4
    whole = answer_both(model, items, batch_size=7)
    assert torch.equal(whole["tokens"], made["tokens"]) and torch.equal(whole["right"], made["right"])
    assert torch.allclose(whole["features"], made["features"], atol=1e-4) and int(made["tokens"].min()) >= 1


def test_bad_settings():
    with pytest.raises(ValueError, match="held_out must lie between 0 and 1, got 1"):
        GateConfig(held_out=1)
    with pytest.raises(ValueError, match="must be at least 1"):
        GateConfig(num_count=0)
