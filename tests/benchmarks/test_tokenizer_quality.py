from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import tokenizer_quality
from perception.datasets.depth.measured import MeasuredMap, motorcycle_depth
from vqvae import VQVAE, CheckpointError, VQVAEConfig


def test_the_shipped_tokenizer_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenizer_quality.main(["--check", "--scenes", "60"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "target" in line]
    assert len(lines) == 11 and not any("missed" in line for line in lines)


def test_an_untrained_tokenizer_fails_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    VQVAE(VQVAEConfig(channels=32, num_res_blocks=0)).save_pretrained(tmp_path)
    assert tokenizer_quality.main(["--check", "--scenes", "20", "--tokenizer", str(tmp_path)]) == 1
    assert "missed" in capsys.readouterr().out


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json is missing"):
        tokenizer_quality.main(["--check", "--tokenizer", str(tmp_path)])


def test_a_wild_pixel_costs_the_shipped_tokenizer_nothing() -> None:
    depth = torch.linspace(1, 5, 90).expand(60, 90).clone()
    ramp = MeasuredMap("ramp", depth, ground_truth=True)
    assert tokenizer_quality.with_wild_pixel(ramp).depth[30, 45] == pytest.approx(0.05) and depth.min() == 1
    found = tokenizer_quality.measure_measured(VQVAE.from_pretrained(tokenizer_quality.TOKENIZER), [ramp])
    clean, wild = found[tokenizer_quality.GROUND_TRUTH], found[tokenizer_quality.WILD]
    assert wild["delta1"]["mean"] == pytest.approx(clean["delta1"]["mean"], abs=0.005)  # type: ignore[index]
    assert wild["delta1"]["mean"] > 0.98 and list(clean["each"]) == ["ramp"]  # type: ignore[index,call-overload]


def test_targets_compare_with_the_shipped_tokenizer_on_each_map() -> None:
    def one(abs_rel: float) -> tokenizer_quality.Figures:
        return {"abs_rel": {"mean": abs_rel}, "order_5": {"mean": 0.9}, "codebook_usage": 1.0}

    styles = {"standard": one(0.01), "shifted": one(0.01)}
    ours = {**styles, tokenizer_quality.GROUND_TRUTH: {**one(0.02), "each": {"a": one(0.01), "b": one(0.03)}}}
    theirs = {**styles, tokenizer_quality.GROUND_TRUTH: {**one(0.03), "each": {"a": one(0.02), "b": one(0.02)}}}
    missed = [name for name, figure, bar in tokenizer_quality.against(ours, theirs) if figure < bar]
    truth = f"{tokenizer_quality.GROUND_TRUTH}: order of 5 points"
    assert missed == [truth, "b: AbsRel of the shipped tokenizer over its own"]


def test_the_motorcycle_is_a_room_with_holes() -> None:
    pytest.importorskip("skimage")
    depth = motorcycle_depth()
    assert depth is not None and depth.shape == (500, 741)
    assert math.isclose(float(depth.isnan().float().mean()), 0.0735, abs_tol=1e-3)
    assert 2 < float(depth.nan_to_num(9).min()) and float(depth.nan_to_num(0).max()) < 5.1  # metres
