"""The quickstart with several seeds: what it trains, keeps and compares, and its targets."""

from __future__ import annotations

import json
from functools import partial

import pytest
from one_step import measure

from benchmarks import quickstart
from benchmarks.label_efficiency import ROWS, STYLES, pick
from benchmarks.quickstart import bars, figures, main
from perception.evaluation.scenes import scene_items
from train.loop.config import LoopConfig
from train.quickstart import QuickstartConfig


def test_gains_are_of_the_same_questions_and_seeds_and_the_targets_want_the_intervals_apart():
    items = scene_items("shifted", 40, 10)
    right, wrong = [1] * len(items), [0] * len(items)
    half = [int(i in pick(items, "counting")[::2]) for i in range(len(items))]
    found = figures({"direct": [half, half], "aurora": [right, wrong]}, items)
    assert found["counting"]["gain of each seed"] == [0.5, -0.5] and found["counting"]["gain"]["mean"] == 0
    assert found["depth, 3-5 points"]["directly"]["mean"] == 0
    far = figures({"direct": [half, half], "aurora": [right, right]}, items)
    for cell, met in ((found, [False, False, True, False]), (far, [True] * 4)):
        assert [bar.met for bar in bars({"styles": {"shifted": cell}})] == met
    close = {row: dict(cell, directly=far[row]["drawing first"]) for row, cell in far.items()}
    assert [bar.met for bar in bars({"styles": {"shifted": close}})] == [True, False] * 2, "no gap, no target met"


@pytest.mark.slow
def test_both_arms_of_every_seed_are_trained_once_and_their_outcomes_kept(tmp_path, capsys):
    words = ["--seeds", "0", "1", "--num-count", "3", "--num-depth", "1", "--runs", str(tmp_path / "runs")]
    short = partial(QuickstartConfig, num_scenes=8, answers=4, batch_size=4, loop=LoopConfig(steps=1, warmup_steps=0))
    first = measure(quickstart, words, tmp_path / "first.json", QuickstartConfig=short)
    models = [tmp_path / "runs" / f"seed-{seed}" / arm / "model" for seed in (0, 1) for arm in ("direct", "aurora")]
    assert len({(model / "model.safetensors").read_bytes() for model in models}) == 4
    for style in STYLES:
        for row in ROWS:
            cell = first["styles"][style][row]
            assert 0 <= cell["directly"]["mean"] <= 1 and len(cell["gain of each seed"]) == 2
    again = measure(
        quickstart, words, tmp_path / "again.json", QuickstartConfig=short, train=lambda config: pytest.fail("trained")
    )
    assert again["styles"] == first["styles"]
    more = measure(quickstart, [*words, "--num-count", "5"], tmp_path / "more.json", QuickstartConfig=short)
    assert more["styles"]["shifted"]["counting"]["directly"]["count"] == 10, "of five questions and two seeds"
    capsys.readouterr()
    stored = json.loads((tmp_path / "again.json").read_text())
    assert main(["--check", "--out", str(tmp_path / "again.json")]) == int(
        not all(bar["met"] for bar in stored["bars"])
    )
    assert len([line for line in capsys.readouterr().out.splitlines() if "target" in line]) == 4
    assert main(["--check", "--out", str(tmp_path / "none.json")]) == 1 and "measure first" in capsys.readouterr().out
