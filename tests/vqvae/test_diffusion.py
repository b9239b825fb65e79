from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE, CheckpointError

pytest.importorskip("diffusers")
from vqvae.diffusion import DiffusionDecoder, DiffusionDecoderConfig


def tiny_tokenizer(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(TINY).eval()


def tiny_decoder(tokenizer: VQVAE) -> DiffusionDecoder:
    torch.manual_seed(1)
    config = DiffusionDecoderConfig(tokenizer.fingerprint(), image_size=32, patch_size=4, channels=(16, 32))
    return DiffusionDecoder(tokenizer, config).eval()


def maps(count: int = 3) -> Tensor:
    return 1 + torch.rand((count, 40, 30), generator=torch.Generator().manual_seed(2))


@pytest.mark.slow
def test_a_seed_fixes_the_map_and_another_seed_gives_another() -> None:
    tokenizer = tiny_tokenizer()
    decoder, codes = tiny_decoder(tokenizer), tokenizer.encode(maps())
    first = decoder.decode(codes, num_steps=3, seed=7)
    torch.manual_seed(99)  # the global generator has no say
    assert first.equal(decoder.decode(codes, num_steps=3, seed=7))
    assert not first.equal(decoder.decode(codes, num_steps=3, seed=8))
    assert 0 <= float(first.min()) and float(first.max()) <= 1
    alone = decoder.decode(codes[1:2], num_steps=3, seed=7)
    torch.testing.assert_close(alone, first[1:2], atol=1e-5, rtol=0)


def test_maps_come_in_any_size_and_in_the_unit_of_the_input() -> None:
    tokenizer = tiny_tokenizer()
    decoder, depth = tiny_decoder(tokenizer), maps()
    codes, ranges = tokenizer.encode(depth), tokenizer.normalise(depth).depth_range
    assert decoder.decode(codes).shape == (3, 32, 32)
    assert decoder.decode(tokenizer.to_sequence(codes)).equal(decoder.decode(codes))
    metres = decoder.decode(codes, ranges, size=(40, 30), num_steps=1)
    assert metres.shape == (3, 40, 30)
    assert bool((metres >= ranges[:, :1, None] - 1e-4).all()) and bool((metres <= ranges[:, 1:, None] + 1e-4).all())


def test_a_nested_sequence_is_the_map_of_its_grid() -> None:
    tokenizer = VQVAE(replace(TINY, nested=True)).eval()
    decoder = tiny_decoder(tokenizer)
    codes = torch.randint(tokenizer.config.codebook_size, (3, *[tokenizer.config.grid_size] * 2))
    assert decoder.decode(tokenizer.to_sequence(codes)).equal(decoder.decode(codes))
    assert not tokenizer.to_sequence(codes).equal(codes.flatten(1))


@pytest.mark.slow
def test_training_moves_the_decoder_alone_and_lowers_its_loss() -> None:
    tokenizer = tiny_tokenizer()
    decoder, depth = tiny_decoder(tokenizer).train(), maps(4)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    names = {name for name, _ in decoder.named_parameters()}
    assert names and all(name.startswith("unet.") for name in names)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        torch.manual_seed(step)
        loss = decoder(depth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert all(value.equal(before[name]) for name, value in tokenizer.state_dict().items())
    assert tokenizer.fingerprint() == decoder.config.tokenizer


def test_no_loss_is_taken_in_holes() -> None:
    decoder = tiny_decoder(tiny_tokenizer())
    depth = maps(2)
    hole = torch.zeros_like(depth, dtype=torch.bool)
    hole[:, 10:30, 5:20] = True
    _, residual, valid = decoder.residual(torch.where(hole, torch.nan, depth))
    assert bool((residual[~valid] == 0).all()) and 0.4 < float(valid.float().mean()) < 0.9


@pytest.mark.slow
def test_saving_and_loading_keeps_the_maps(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    decoder, codes = tiny_decoder(tokenizer), tokenizer.encode(maps())
    decoder.save_pretrained(tmp_path)
    again = DiffusionDecoder.from_pretrained(tmp_path, tokenizer)
    assert again.config == decoder.config
    assert again.decode(codes).equal(decoder.decode(codes))


def test_the_wrong_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_decoder(tiny_tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="give the one it was trained with"):
        DiffusionDecoder.from_pretrained(tmp_path, tiny_tokenizer(seed=5))


def test_half_a_file_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tiny_decoder(tokenizer).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="model.safetensors is cut short"):
        DiffusionDecoder.from_pretrained(tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 30}, "image_size"),
        ({"channels": (20, 40)}, "multiples of 16"),
        ({"residual_scale": 0.0}, "residual_scale"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionDecoderConfig("0" * 12, **settings)


def test_steps_and_codes_that_cannot_be_are_refused() -> None:
    tokenizer = tiny_tokenizer()
    decoder, codes = tiny_decoder(tokenizer), tokenizer.encode(maps())
    with pytest.raises(ValueError, match="num_steps must lie in 1..1000, got 0"):
        decoder.decode(codes, num_steps=0)
    with pytest.raises(ValueError, match="codes must be whole, 16 a map, got 9"):
        decoder.decode(codes.flatten(1)[:, :9])
