"""The arithmetic of the gate's and the frames' benchmarks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.frames import FULL, Tally, name_of, report
from benchmarks.thinking_gate import bars, calibration, measure, policy, random_for_tokens
from perception.extras.frames import FrameConfig
from perception.model.gate import NUM_PLAIN, Setting, ThinkingGate


def made(count: int = 400) -> tuple[ThinkingGate, dict[str, torch.Tensor]]:
    """A gate that knows: drawing (20 tokens, always right) helps where feature 0 is below 0; direct answers take 2."""
    features = torch.randn(count, NUM_PLAIN + 4, generator=torch.Generator().manual_seed(0))
    right = torch.stack([features[:, 0] > 0, torch.ones(count, dtype=torch.bool)], 1)
    tokens = torch.tensor([[2, 20]]).expand(count, 2)
    weight = torch.zeros(3, NUM_PLAIN + 4)
    weight[0, 0] = 50
    size = torch.zeros(NUM_PLAIN + 4)
    settings = tuple(Setting(price, 0.5, 10.0, 1.0) for price in (-100.0, 1.0, 100.0))
    bias = torch.tensor([0.0, 20.0, float(np.log(20))])
    gate = ThinkingGate(weight, bias, size, size + 1, torch.zeros(512), 1.0, settings)
    return gate, {"features": features, "right": right, "tokens": tokens, "depth": right[:, 0]}


def test_policies_are_ordered_as_they_must_be():
    gate, answers = made()
    found = measure(gate, answers)
    need = float((~answers["right"][:, 0]).float().mean())
    assert found["always"]["accuracy"]["mean"] == 100 and found["always"]["tokens"] == 20
    assert (
        found["never"]["accuracy"]["mean"] == pytest.approx(100 * (1 - need), abs=0.01)
        and found["never"]["tokens"] == 2
    )
    assert found["oracle"] == {**found["oracle"], "tokens": round(2 + 18 * need, 2), "drawn": round(need, 4)}
    assert found["auto"]["accuracy"]["mean"] > 98 and found["auto"]["tokens"] < 13
    assert found["random_at_share"]["accuracy"]["mean"] < 80
    assert [point["drawn"] for point in found["curve"]][::2] == [1.0, 0.0]
    assert all(bar.met for bar in bars({"standard": {"all": found}}))
    assert calibration(gate, answers)["chain"] < 0.01 and calibration(gate, answers)["direct"] < 3


def test_random_drawing_lies_on_the_line_between_never_and_always():
    _, answers = made()
    never, always = policy(answers, torch.zeros(400)), policy(answers, torch.ones(400))
    assert random_for_tokens(answers, 2) == pytest.approx(never["accuracy"]["mean"], abs=0.01)
    assert random_for_tokens(answers, 20) == pytest.approx(always["accuracy"]["mean"], abs=0.01)
    half = policy(answers, torch.full((400,), 0.5))
    assert half["tokens"] == 11 and random_for_tokens(answers, 11) == pytest.approx(half["accuracy"]["mean"], abs=0.01)


def test_a_gate_no_better_than_chance_falls_short():
    gate, answers = made()
    blind = answers | {"features": answers["features"].flip(0)}
    assert not all(bar.met for bar in bars({"standard": {"all": measure(gate, blind)}}))


def test_frames_are_compared_with_decoding_anew():
    full = Tally([100, 100], [], [0.2, 0.3], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0], 4.0)
    kept = Tally([10, 30], [3, 5], [0.25, 0.35], [1.0, 0.0], [0.9, 0.7], [0.1, 0.2], 1.0)
    row = report({name_of(FULL): full, name_of(FrameConfig()): kept})[name_of(FrameConfig())]
    assert (row["codes_decoded"], row["forwards"], row["times_as_fast"], row["codes_as_anew"]) == (20, 4, 4, 80)
    assert row["abs_rel"][0] == 0.3 and row["abs_rel_added"] == [0.05] * 3 and row["order_of_4_right"][0] == 50
