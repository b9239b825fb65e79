"""Maps drawn behind codes that are given: which codes are read, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import codes_before
from perception import PerceptionModel
from perception.evaluation.scenes import depth_tokenizer_of, scene_items
from perception.model.shipped import shipped
from train.data.photos import codes_of


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return PerceptionModel.from_pretrained(shipped("aurora-tiny"))


def test_each_code_is_predicted_from_those_before_it_alone(model: PerceptionModel) -> None:
    items = scene_items("standard", 0, 1, 98_000_000)[:2]
    codes = codes_of(depth_tokenizer_of(model), torch.stack([item.scene.depth for item in items]))
    behind = codes_before.logits_behind(model, items, codes, codes)
    changed = codes.copy()
    changed[:, 40] = (changed[:, 40] + 1) % 128
    after = codes_before.logits_behind(model, items, codes, changed)
    assert behind.shape == (2, codes.shape[1], 128)
    torch.testing.assert_close(after[:, :41], behind[:, :41])
    assert not torch.allclose(after[:, 41], behind[:, 41])


def test_what_a_model_draws_is_what_it_predicts_behind_its_own_codes(model: PerceptionModel) -> None:
    found = codes_before.measure(model, scene_items("standard", 0, 2, 98_000_000))
    itself, behind = found["drawn by itself"], found[f"behind {codes_before.OWN}"]
    assert itself["error"]["mean"] == pytest.approx(behind["error"]["mean"], abs=1e-3)
    assert found[f"behind {codes_before.TRUE}"]["loss"]["mean"] < found[f"behind {codes_before.OTHER}"]["loss"]["mean"]
    assert 0 < found["codes that are the same by itself and at once"] <= 1
    assert found["maps"] == 6 and len(codes_before.lines({"a": found})) == 4


def test_the_true_map_is_off_by_nothing_and_right(model: PerceptionModel) -> None:
    items = scene_items("standard", 0, 3, 98_000_000)
    codes = codes_of(depth_tokenizer_of(model), torch.stack([item.scene.depth for item in items]))
    assert codes_before.judged(model, items, codes, codes)["error"]["mean"] == 0
    far = codes_before.judged(model, items, np.zeros_like(codes), codes)
    assert far["error"]["mean"] > 0.1 and far["right"]["mean"] < 1


def test_maps_of_one_image_are_resampled_together(model: PerceptionModel) -> None:
    items = scene_items("standard", 0, 1, 98_000_000)
    codes = codes_of(depth_tokenizer_of(model), torch.stack([item.scene.depth for item in items]))
    far, thrice = np.zeros_like(codes), np.repeat(codes, 3, axis=0)
    once = codes_before.judged(model, items, far, codes)["error"]
    again = codes_before.judged(model, [i for i in items for _ in range(3)], np.repeat(far, 3, axis=0), thrice)["error"]
    assert again == pytest.approx({**once, "count": 3 * len(items)})


def test_the_other_image_is_another_one() -> None:
    items = scene_items("standard", 0, 2, 98_000_000)
    twice = [items[0], items[0], *items[1:]]
    assert codes_before._another(twice, 0) == 2 and codes_before._another(twice, len(twice) - 1) == 0


def test_a_model_that_trusts_the_codes_before_misses_the_target() -> None:
    rows = {"drawn by itself": {"right": {"mean": 0.9}}, f"behind {codes_before.OTHER}": {"right": {"mean": 0.7}}}
    (bar,) = codes_before.bars({"a, photographs": rows, "b, shifted style": rows})
    assert not bar.met and bar.figure == pytest.approx(-20)
