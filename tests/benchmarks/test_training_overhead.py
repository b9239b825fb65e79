"""The benchmark of the step: both trainers take the same steps, and the bar is on the ratio."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.training_overhead import bars, race, settings
from train.loop.provenance import ROOT


def test_both_trainers_take_the_same_steps(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    config = settings(str(ROOT / "models" / "tiny-base"), 2, 2, depth_tokenizer="", new_rows="mean")
    found = race(config, 1, tmp_path)
    assert len(found["ratios"]) == 1 and found["ours_ms"] > 0 and found["trl_ms"] > 0
    assert found["largest_difference_of_losses"] < 1e-3


def test_a_step_that_takes_a_tenth_longer_misses_the_bar() -> None:
    assert [bar.met for bar in bars({"a": {"ratio": 1.1}, "b": {"ratio": 1.04}, "c": {"ratio": 0.9}})] == [
        False,
        True,
        True,
    ]
