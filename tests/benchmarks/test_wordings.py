"""Other words than a model was taught: the questions, and the targets."""

from __future__ import annotations

from benchmarks import wordings
from perception import PerceptionModel
from perception.evaluation.scenes import scene_items
from perception.model.shipped import shipped
from perception.model.wording import taught_words


def test_every_wording_says_what_the_taught_one_does() -> None:
    for item in scene_items("standard", 4, 1, 96_000_000):
        taught, *others = [wordings.worded(item, wording) for wording in wordings.WORDINGS[item.kind]]
        assert taught == item.question
        assert {taught_words(other) for other in others} == {taught}
        assert taught not in others


def test_words_cost_nothing_when_they_are_put_in_the_taught_ones() -> None:
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    found = wordings.measure(model, 8, 1)
    assert model.taught == ("count", "depth")
    for rows in found.values():
        assert len({ways[wordings.PUT]["mean"] for ways in rows.values()}) == 1
        first = next(iter(rows.values()))
        assert first[wordings.PUT] == first[wordings.AS_IT_IS]
    assert all(bar.met for bar in wordings.bars(found))


def test_a_wording_that_costs_more_misses_the_target() -> None:
    rows = {"taught": {wordings.PUT: {"mean": 0.8}}, "other": {wordings.PUT: {"mean": 0.7}}}
    (bar,) = wordings.bars({"count": rows})
    assert not bar.met and "the worst of 1 other wordings" in bar.line()
