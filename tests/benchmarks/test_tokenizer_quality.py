from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import tokenizer_quality
from perception.datasets.depth.measured import motorcycle_depth
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


def test_the_motorcycle_is_a_room_with_holes() -> None:
    pytest.importorskip("skimage")
    depth = motorcycle_depth()
    assert depth is not None and depth.shape == (500, 741)
    assert math.isclose(float(depth.isnan().float().mean()), 0.0735, abs_tol=1e-3)
    assert 2 < float(depth.nan_to_num(9).min()) and float(depth.nan_to_num(0).max()) < 5.1  # metres
