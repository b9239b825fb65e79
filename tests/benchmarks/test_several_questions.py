"""The benchmark of several questions about one image: all ways give the same answers, and the bars are as measured."""

from __future__ import annotations

from benchmarks.several_questions import MODEL, WAYS, bars, measure
from perception.model.perception_model import PerceptionModel


def test_all_ways_give_the_same_answers() -> None:
    result = measure(PerceptionModel.from_pretrained(MODEL), images=1)
    for mode in ("direct", "chain"):
        assert result[mode]["images_with_the_same_answers"] == result[mode]["images_asked_about"] == 2
        assert result[mode]["times_as_fast"].keys() == set(WAYS) and result[mode]["times_as_fast"][WAYS[0]] == 1


def test_bars_tell_slow_ways_and_other_answers() -> None:
    mode = {
        "times_as_fast": dict(zip(WAYS, (1.0, 1.5, 0.9), strict=True)),
        "images_with_the_same_answers": 2,
        "images_asked_about": 3,
    }
    found = bars({"direct": mode, "chain": {**mode, "images_with_the_same_answers": 3}})
    assert [bar.met for bar in found] == [True, False, False, True, False, True]
