from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train.diffusion_decoder import DiffusionTrainingConfig, train
from train.loop.command_line import fingerprint
from train.loop.fit import LoopConfig
from vqvae import VQVAE, VQVAEConfig
from vqvae.diffusion import DiffusionDecoder

TINY = VQVAEConfig(image_size=16, downsample=4, codebook_size=16, codebook_dim=4, channels=32, num_res_blocks=1)


def tiny_config(folder: Path, steps: int) -> DiffusionTrainingConfig:
    torch.manual_seed(0)
    VQVAE(TINY).save_pretrained(folder / "tokenizer")
    return DiffusionTrainingConfig(
        tokenizer=str(folder / "tokenizer"),
        run_dir=str(folder / "run"),
        out=str(folder / "finished"),
        store=str(folder / "scenes"),
        num_scenes=8,
        num_held_out=4,
        batch_size=4,
        image_size=32,
        channels=(16,),
        loop=LoopConfig(steps=steps, learning_rate=1e-3, ema_decay=0.9, evaluate_every=2),
    )


def test_a_training_ends_in_a_decoder_that_loads_and_a_killed_one_goes_on(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=4)
    tokenizer = VQVAE.from_pretrained(config.tokenizer or "")
    assert train(config).resumed_from is None
    decoder = DiffusionDecoder.from_pretrained(config.out, tokenizer)
    assert decoder.config.image_size == 32 and 0 < decoder.config.residual_scale < 1
    codes = tokenizer.encode(1 + torch.rand(2, 20, 20))
    assert decoder.decode(codes, size=(20, 20)).shape == (2, 20, 20)
    assert train(config).resumed_from == 4  # nothing left to do
    more = replace(config, start=config.out, run_dir=str(tmp_path / "more"), out=str(tmp_path / "more" / "finished"))
    train(replace(more, loop=LoopConfig(steps=1, learning_rate=1e-9)))
    again = DiffusionDecoder.from_pretrained(more.out, tokenizer)
    torch.testing.assert_close(again.decode(codes), decoder.decode(codes), atol=2e-3, rtol=0)  # went on from there
    with pytest.raises(ValueError, match="make them the same"):
        train(replace(more, patch_size=8))


def test_sizes_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        replace(DiffusionTrainingConfig(), batch_size=0)


def test_what_decides_a_training_is_in_its_fingerprint() -> None:
    names = fingerprint(DiffusionTrainingConfig(), [])
    assert {"image_size", "patch_size", "channels", "num_scenes", "batch_size"} <= set(names)
