"""The benchmark of decoding: which bars it holds up, and that its parts measure what they say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import generation_speed
from benchmarks.generation_speed import agreement, approximate, bars, compiled_race, held_out, race, shape_costs
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped


def result(accuracies: dict[int, float]) -> dict[str, Any]:
    """Sweeps lose so much accuracy, and are the faster the fewer they are."""
    speed = {"ours": 3.0, "plain": 1.0, **{f"{n} sweeps": 10.0 / n for n in accuracies}}
    curve = [{"sweeps": None}, *({"sweeps": n, "over_exact": {"mean": loss}} for n, loss in accuracies.items())]
    races = [{"question": "depth", "batch_size": size, "speed_over_plain": speed} for size in (1, 8)]
    return {
        "races": races,
        "identity": {"questions": 10, "same": 9},
        "grammar": {"percent": 1.5},
        "approximate": curve,
        "memory_mb": {"ours": 105, "plain": 100},
    }


def test_the_fastest_way_within_a_point_counts():
    found = {bar.name: bar for bar in bars(result({2: -0.03, 4: -0.009, 6: 0.0}))}
    assert found["approximate mode within a point: over plain"].figure == 3.0, "the exact way is among them"
    figures = {name: bar.figure for name, bar in found.items()}
    assert figures["same ids on 10 questions"] == 90 and not found["same ids on 10 questions"].met
    assert figures["peak memory at batch 32, room to a tenth above plain"] == pytest.approx(5)
    assert figures["depth question, batch 1: over plain constrained generate"] == 3.0
    fast = {bar.name: bar.figure for bar in bars(result({2: -0.01, 4: 0.0}))}
    assert fast["approximate mode within a point: over plain"] == 5.0


def test_the_shipped_model_is_raced_and_settled_early(monkeypatch: pytest.MonkeyPatch):
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    monkeypatch.setattr(generation_speed, "SWEEPS", (2, 40))
    found = race(model, "depth", 1, 2)
    assert set(found["speed_over_plain"]) == {*generation_speed._PEERS, "2 sweeps", "40 sweeps"}
    assert found["speed_over_plain"]["plain"] == 1 and found["forwards"] < found["tokens_a_row"]
    exact, early, late = approximate(model, 4, batch_size=4)
    assert exact["same_codes"] == 1 and early["same_codes"] < late["same_codes"] <= 1
    assert len(held_out("depth", 4)) == 4


def test_agreement_is_counted_in_every_precision():
    rows = agreement(str(shipped("aurora-tiny")), 2, batch_size=2)
    assert [row["precision"] for row in rows] == ["float32", "float16", "bfloat16"]
    assert rows[0]["ours_as_plain"] == rows[0]["plain_one_at_a_time_as_plain"] == rows[0]["questions"] == 2
    assert all(0 <= row["ours_one_at_a_time_as_plain"] <= 2 for row in rows)


def test_larger_shapes_are_built_and_timed(monkeypatch: pytest.MonkeyPatch):
    small = {name: 128 for name in generation_speed.SHAPES["135M (SmolLM2)"]} | {"num_hidden_layers": 1}
    monkeypatch.setitem(generation_speed.SHAPES, "small", small | {"num_attention_heads": 2, "num_key_value_heads": 1})
    found = shape_costs("small", (1, 4), repeats=2, read=1e6)
    assert set(found["forward_ms"]) == {1, 4} and found["floor_ms"] > 0


def test_compiled_ways_are_raced_and_compared():
    found = compiled_race(str(shipped("aurora-tiny")), 1, 1, backend="eager")
    assert set(found["speed_over_plain"]) == {"ours", "plain", "ours, compiled", "plain, compiled"}
    assert found["same_ids_as_plain"] == "4 of 4"
