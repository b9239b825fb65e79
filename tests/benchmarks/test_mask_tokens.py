from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import mask_tokens
from train.mask_tokenizer import MaskTokenizerConfig
from vqvae import VQVAE


def test_the_shipped_tokenizer_passes_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert mask_tokens.main(["--check", "--scenes", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.endswith("target 90.0, met") for line in lines)


def test_an_untrained_tokenizer_fails_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    VQVAE(MaskTokenizerConfig().model).save_pretrained(tmp_path)
    assert mask_tokens.main(["--check", "--scenes", "4", "--tokenizer", str(tmp_path)]) == 1
    assert "MISSED" in capsys.readouterr().out


def test_a_tokenizer_of_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer of masks has 'metric' normalisation from 1 to 2.*masks-scenes-16"):
        mask_tokens.main(["--check", "--tokenizer", "tokenizers/depth-scenes-100"])
