"""Averages of weights, looks at held-out data and early stops, on a model of eight numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.loop.checkpoints import Checkpoints, ResumeError
from train.loop.evaluation import Evaluation
from train.loop.fit import FitResult, LoopConfig, fit

CONFIG = LoopConfig(steps=12, learning_rate=0.05, num_workers=0, log_every=4, checkpoint_every_seconds=0)


class Stop(Exception):
    """Stands for a run that is killed."""


def make_batch(step: int, shard: int, num_shards: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step))
    return x, x.sum(1, keepdim=True)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    return (model(batch[0]) - batch[1]).square().mean(), {}


def tiny() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 1, bias=False)


def run(folder: Path, config: LoopConfig, evaluate=None, stop: int | None = None) -> tuple[FitResult, Tensor]:
    def batches(step: int, shard: int, num_shards: int) -> tuple[Tensor, Tensor]:
        if step == stop:
            raise Stop
        return make_batch(step, shard, num_shards)

    model = tiny()
    result = fit(model, batches, loss_fn, config, folder, evaluate=evaluate)
    return result, model.weight.detach()


def test_the_model_ends_with_the_average_of_its_weights_also_when_it_is_resumed(tmp_path: Path) -> None:
    raw = [tiny().weight.detach()]
    for steps in range(1, 7):
        # A constant rate, so that shorter runs are beginnings of the longest.
        raw.append(run(tmp_path / f"raw{steps}", replace(CONFIG, steps=steps, schedule="constant"))[1])
    average = raw[0].clone()
    for number, weights in enumerate(raw[1:], 1):
        decay = 0.0 if number == 1 else min(0.9, number / (9 + number))
        average = decay * average + (1 - decay) * weights
    config = replace(CONFIG, steps=6, schedule="constant", ema_decay=0.9)
    averaged = run(tmp_path / "averaged", config)[1]
    torch.testing.assert_close(averaged, average)
    with pytest.raises(Stop):
        run(tmp_path / "killed", config, stop=4)
    assert (tmp_path / "killed" / "checkpoint-4" / "averages.safetensors").exists()
    assert run(tmp_path / "killed", config)[1].equal(averaged)
    assert run(tmp_path / "killed", config, stop=0)[1].equal(averaged), "a finished run is not repeated"
    with pytest.raises(ResumeError, match=r"loop.ema_decay: 0.9 there, None now"):
        run(tmp_path / "killed", replace(config, ema_decay=None))


def test_frozen_weights_are_not_averaged(tmp_path: Path) -> None:
    """They would take their size in memory and in each checkpoint, and those of 4 bits have no averages."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    model[0].requires_grad_(False)
    frozen = model[0].weight.clone()
    fit(model, make_batch, loss_fn, replace(CONFIG, ema_decay=0.9), tmp_path)
    assert load_file(tmp_path / "checkpoint-12" / "averages.safetensors").keys() == {"1.weight", "1.bias"}
    assert model[0].weight.equal(frozen)


def test_training_stops_where_held_out_loss_no_longer_falls_and_keeps_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Tensor] = []
    script = [3.0, 2.0, 2.5, 2.0]

    def evaluate(model: nn.Linear) -> Evaluation:
        assert not model.training
        seen.append(model.weight.detach().clone())
        return Evaluation(script[len(seen) - 1], {"figure": 7.0}, {"map": np.zeros((4, 4, 3), np.uint8)})

    config = replace(CONFIG, steps=40, evaluate_every=2, patience=2)
    result, weights = run(tmp_path, config, evaluate)
    assert result.steps == 8 and weights.equal(seen[1])
    assert "stopped after 8 steps: held-out loss was lowest after 4 steps (2)" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    looks = [(line["step"], line["held_out"]) for line in lines if "held_out" in line]
    assert looks == [(2 * n, {"loss": loss, "figure": 7.0}) for n, loss in enumerate(script, 1)]
    again, same = run(tmp_path, config, evaluate, stop=8)
    assert again.steps == 8 and same.equal(weights), "a stopped run stays stopped"


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_a_killed_run_stops_where_one_that_was_not_does(tmp_path: Path, ema_decay: float | None) -> None:
    def evaluate(model: nn.Linear) -> Evaluation:
        return Evaluation(abs(float(model.weight.detach().mean()) - 0.3))  # passed on the way to 1

    config = replace(CONFIG, steps=60, evaluate_every=2, patience=3, ema_decay=ema_decay)
    whole, weights = run(tmp_path / "whole", config, evaluate)
    assert 8 < whole.steps < 60
    with pytest.raises(Stop):
        run(tmp_path / "killed", config, evaluate, stop=whole.steps - 3)
    resumed, same = run(tmp_path / "killed", config, evaluate)
    assert (resumed.resumed_from, resumed.steps) == (whole.steps - 3, whole.steps)
    assert resumed.final_loss == whole.final_loss and same.equal(weights)


def test_what_is_looked_at_are_the_averages_and_training_goes_on_with_its_own(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def evaluate(model: nn.Linear) -> Evaluation:
        seen.append(model.weight.detach().clone())
        return Evaluation(1.0)

    config = replace(CONFIG, steps=6, ema_decay=0.9)
    _, averaged = run(tmp_path / "seen", replace(config, evaluate_every=3), evaluate)
    assert len(seen) == 2 and seen[1].equal(averaged)
    assert run(tmp_path / "unseen", config)[1].equal(averaged), "looking changes nothing"


def test_checkpoints_from_before_these_settings_are_taken_up(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(tmp_path, CONFIG, stop=5)
    path = tmp_path / "checkpoint-5" / "state.json"
    state = json.loads(path.read_text())
    for name in ("best_loss", "best_step", "stale_evaluations"):
        del state[name]
    for name in ("ema_decay", "evaluate_every", "patience"):
        del state["settings"][f"loop.{name}"]
    path.write_text(json.dumps(state))
    assert run(tmp_path, CONFIG)[0].resumed_from == 5
    later = Checkpoints(tmp_path, {**state["settings"], "model.nested": False})
    later._check_settings(tmp_path, state["settings"])
    with pytest.raises(ResumeError, match=r"weight: None there, 0.0 now"):
        Checkpoints(tmp_path, {"weight": 0.0})._check_settings(tmp_path, {"weight": None})
    with pytest.raises(ResumeError, match="model.nested: None there, True now"):
        Checkpoints(tmp_path, {**state["settings"], "model.nested": True})._check_settings(tmp_path, state["settings"])


def test_settings_that_go_together_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"patience \(3\) counts evaluations on held-out data; set evaluate_every"):
        LoopConfig(patience=3)
    with pytest.raises(ValueError, match="ema_decay must lie between 0 and 1, got 1.5"):
        LoopConfig(ema_decay=1.5)
    with pytest.raises(ValueError, match=r"evaluate_every \(2\) needs held-out data"):
        run(tmp_path, replace(CONFIG, evaluate_every=2))
