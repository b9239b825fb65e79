"""The benchmark of interleaved generation: all ways write the same, no slot is stale, bars say what is so."""

from __future__ import annotations

from benchmarks.interleaved_speed import bars, race
from train.interleave import read_interleaved


def test_cached_chains_are_the_recomputed_ones_and_no_slot_is_stale() -> None:
    folder = read_interleaved("models/geometry-tiny")
    folder.model.eval()
    run = race(folder, batch_size=2, batches=2)
    assert run["same_chains"] and run["stale_slots"] == 0
    assert run["looks"] >= 3 and run["tokens"] > 30
    assert run["speed_over_recomputed"] > 0 and run["speed_over_plain"] > 0


def test_bars_are_those_of_batch_eight() -> None:
    run = {"batch_size": 8, "quartiles": {"recomputed": [4, 4.5, 5], "plain": [0.7, 0.8, 0.9]}, "stale_slots": 0}
    found = bars([{**run, "batch_size": 1, "quartiles": {"recomputed": [1, 1, 1], "plain": [1, 1, 1]}}, run])
    assert [bar.met for bar in found] == [True, False, True]
    assert not bars([{**run, "stale_slots": 2}])[-1].met
