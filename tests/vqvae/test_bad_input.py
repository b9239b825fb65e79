"""What a tokenizer makes of input that is strange (a sound result) or wrong (an error that says what to do)."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE, CheckpointError, VQVAEConfig
from vqvae.holes import fill_holes
from vqvae.metrics import depth_errors, slope_error

SHIPPED = Path(__file__).parents[2] / "tokenizers" / "depth-scenes-100"


@pytest.fixture
def folder(tiny: VQVAE, tmp_path: Path) -> Path:
    tiny.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 8, 8), r"got shape \(2, 1, 8, 8\); maps have no channels: depth\[:, 0\]"),
        ((2, 3, 8, 8), "maps have no channels"),
        ((8, 8), r"e.g. depth\[None\]"),
        ((8,), r"must be \(B, H, W\)"),
        ((1, 0, 8), "at least one pixel"),
    ],
)
def test_channels_and_other_shapes_are_refused(tiny: VQVAE, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.encode(torch.ones(shape))


@pytest.mark.parametrize(
    ("depth", "kind"),
    [
        (np.ones((1, 8, 8), np.float32), "ndarray"),
        ([[[1.0]]], "list"),
        (torch.ones(1, 8, 8, dtype=torch.bool), "torch.bool"),
        (torch.ones(1, 8, 8, dtype=torch.complex64), "torch.complex64"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_refused(tiny: VQVAE, depth: object, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"must be a tensor of numbers \(B, H, W\), got .*{kind}"):
        tiny.encode(depth)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.uint8])
def test_numbers_of_any_kind_are_the_same_depth(tiny: VQVAE, dtype: torch.dtype) -> None:
    depth = torch.arange(1, 65).view(1, 8, 8)
    assert tiny.encode(depth.to(dtype)).equal(tiny.encode(depth.float()))


@pytest.mark.parametrize("worst", [torch.nan, torch.inf, -torch.inf, 0.0, -3.0])
def test_maps_without_a_valid_pixel_are_named(tiny: VQVAE, depth: Tensor, worst: float) -> None:
    depth[1], depth[3] = worst, worst
    with pytest.raises(ValueError, match=r"no valid pixel in map\(s\) \[1, 3\] of the batch: valid means finite"):
        tiny.encode(depth)
    with pytest.raises(ValueError, match=r"no valid pixel in map\(s\) \[0\]"):
        tiny.encode(depth[:1], torch.zeros(1, 20, 24))


@pytest.mark.parametrize("value", [1e-45, 1e-39, 1e300, 1e39])
def test_numbers_beyond_float32_are_holes(tiny: VQVAE, depth: Tensor, value: float) -> None:
    strange = depth.double()
    strange[:, 3:6, 2:5] = value
    holed = depth.clone()
    holed[:, 3:6, 2:5] = torch.nan
    assert tiny.normalise(strange).values.equal(tiny.normalise(holed).values)
    assert tiny.encode(strange).equal(tiny.encode(holed))


@pytest.mark.parametrize("value", [1.2e-38, 1e-20, 3.0, 1e20, 3e38])
def test_constant_maps_come_back_as_they_were(tiny: VQVAE, value: float) -> None:
    depth = torch.full((2, 9, 7), value)
    scale = tiny.normalise(depth).depth_range
    decoded = tiny.decode(tiny.encode(depth), scale, size=(9, 7))
    torch.testing.assert_close(decoded, depth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 37), (200, 1), (3, 20_000), (20_000, 2)])
def test_maps_of_one_pixel_and_very_wide_ones_come_back_in_their_size(tiny: VQVAE, size: tuple[int, int]) -> None:
    depth = 2 + torch.linspace(0, 5, size[0] * size[1]).view(1, *size)
    codes = tiny.encode(depth)
    decoded = tiny.decode(codes, tiny.normalise(depth).depth_range, size=size)
    assert codes.shape == (1, 4, 4) and decoded.shape == (1, *size) and bool(decoded.isfinite().all())
    assert 2 - 1e-4 <= float(decoded.min()) and float(decoded.max()) <= 7 + 1e-4


@pytest.mark.parametrize("wrong", [(0.0, 2.0), (3.0, 2.0), (1.0, torch.inf), (torch.nan, 2.0)])
def test_a_range_that_no_map_has_is_refused(tiny: VQVAE, wrong: tuple[float, float]) -> None:
    codes = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="0 < near <= far"):
        tiny.decode(codes, torch.tensor([wrong]))


def test_one_measured_pixel_is_enough(tiny: VQVAE) -> None:
    depth = torch.full((1, 40, 40), torch.nan)
    depth[0, 17, 33] = 4.0
    normalised = tiny.normalise(depth)
    assert normalised.depth_range.tolist() == [[4.0, 4.0]] and 1 <= int(normalised.mask.sum()) <= 4
    assert bool((tiny.decode(tiny.encode(depth), normalised.depth_range) == 4).all())


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 4, 4), 16), r"codes must lie in 0\.\.15, got 16\.\.16"),
        (torch.full((1, 4, 4), -1), r"codes must lie in 0\.\.15, got -1\.\.-1"),
        (torch.zeros(1, 15, dtype=torch.long), "exactly 16 codes a map"),
        (torch.zeros(1, 17, dtype=torch.long), "exactly 16 codes a map"),
        (torch.zeros(16, dtype=torch.long), "exactly 16 codes a map"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), "codes must be integers, got torch.bool"),
        ([[0] * 16], "codes must be a tensor of integers, got list"),
        (np.zeros((1, 16), np.int64), "codes must be a tensor of integers, got ndarray"),
    ],
)
def test_codes_that_cannot_be_are_refused(tiny: VQVAE, codes: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.decode(codes)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_codes_are_integers_of_any_kind(tiny: VQVAE, dtype: torch.dtype) -> None:
    codes = torch.arange(16).view(1, 4, 4)
    assert tiny.decode(codes.to(dtype)).equal(tiny.decode(codes))
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.15, got 1\.\.16"):
        tiny.decode((codes + 1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer", ["ema", "fsq"])
def test_a_tokenizer_in_half_precision_encodes_and_decodes(depth: Tensor, quantizer: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    levels = {"fsq_levels": (4, 4), "codebook_dim": 2} if quantizer == "fsq" else {}
    whole = VQVAE(replace(TINY, quantizer=quantizer, **levels)).eval()
    half = copy.deepcopy(whole).to(dtype)
    depth[0, 3:5, 2:9] = torch.nan
    codes = half.encode(depth)
    assert (codes == whole.encode(depth)).float().mean() > 0.8
    decoded = half.decode(codes, half.normalise(depth).depth_range)
    torch.testing.assert_close(decoded, whole.decode(codes, whole.normalise(depth).depth_range), rtol=0.1, atol=0.1)
    assert half.encode_confidence(depth).shape == codes.shape
    assert half(depth).reconstruction.isfinite().all()
    likely = F.one_hot(codes.flatten(1), 16).float()
    torch.testing.assert_close(half.decode_soft(likely), half.decode(codes), rtol=0.01, atol=0.01)


def test_masks_that_are_no_tensors_are_refused(tiny: VQVAE, depth: Tensor) -> None:
    mask: Any = np.ones(depth.shape, bool)
    for asked in (tiny.encode, tiny.encode_confidence, tiny, tiny.sort_codebook, fill_holes):
        with pytest.raises(ValueError, match="mask must be a tensor .* got ndarray; e.g. torch.as_tensor"):
            asked(depth, mask)
    with pytest.raises(ValueError, match="visible must be a tensor"):
        tiny(depth, visible=mask)
    for measured in (depth_errors, slope_error):
        with pytest.raises(ValueError, match="mask must be a tensor"):
            measured(depth, depth, mask)


def test_no_codes_at_all_are_no_maps(tiny: VQVAE) -> None:
    assert tiny.decode(torch.zeros(0, 4, 4, dtype=torch.long)).shape == (0, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"attention_heads": 8},
            r"unknown config keys \['attention_heads'\].*newer version wrote them, update this one",
        ),
        ({"image_size": "80"}, r"image_size must be of type int, got '80'"),
        ({"image_size": None}, r"image_size must be of type int, got None"),
        ({"decay": True}, r"decay must be of type float, got True"),
        ({"fsq_levels": 8}, r"fsq_levels must be of type tuple"),
        ({"nested": 1}, r"nested must be of type bool, got 1"),
    ],
)
def test_configs_of_other_versions_are_refused(folder: Path, change: dict[str, object], message: str) -> None:
    values = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        VQVAE.from_pretrained(folder)


def test_a_config_of_an_older_version_is_read(tiny: VQVAE, folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values["nested"], values["max_depth"]
    (folder / "config.json").write_text(json.dumps(values))
    assert VQVAE.from_pretrained(folder).config == TINY


class Trap:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


def test_pickles_are_named_and_never_read(tiny: VQVAE, folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a pickle .*never read; write it anew"):
        VQVAE.from_pretrained(folder)
    torch.save(tiny.state_dict(), weights)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a pickle"):
        VQVAE.from_pretrained(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"is missing \(pytorch_model\.bin beside it is pickled and never read\)"):
        VQVAE.from_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_codes_do_not_depend_on_the_batch_or_the_file(tmp_path: Path) -> None:
    """Bit for bit: over batch sizes, and over saving and loading."""
    tokenizer = VQVAE.from_pretrained(SHIPPED)
    generator = torch.Generator().manual_seed(0)
    coarse = 1 + 4 * torch.rand((12, 1, 5, 6), generator=generator)
    depth = torch.nn.functional.interpolate(coarse, size=(60, 90), mode="bilinear")[:, 0]
    depth[6:, 20:40, 30:60] = 0.8
    codes = tokenizer.encode(depth)
    assert codes.unique().numel() > 40
    for size in (1, 5):
        assert torch.cat([tokenizer.encode(chunk) for chunk in depth.split(size)]).equal(codes)
    tokenizer.save_pretrained(tmp_path)
    again = VQVAE.from_pretrained(tmp_path)
    assert again.encode(depth).equal(codes) and again.decode(codes).equal(tokenizer.decode(codes))
    assert again.fingerprint() == tokenizer.fingerprint()


def test_the_shipped_tokenizer_s_codes_are_fixed() -> None:
    """A change of these is a change of a language that models have learned."""
    tokenizer = VQVAE.from_pretrained(SHIPPED)
    assert tokenizer.config == VQVAEConfig()
    y, x = torch.meshgrid(torch.linspace(0, 1, 80), torch.linspace(0, 1, 80), indexing="ij")
    depth = (2 + 3 * (1 - y) + x)[None].clone()
    depth[:, 30:50, 20:60] = 1.5
    depth[:, :8, :8] = 0.0
    codes = tokenizer.encode(depth)
    assert codes[0, 4].tolist() == [43, 25, 96, 127, 127, 127, 127, 88, 17, 19]
    assert tokenizer.fingerprint() == "e6edb1457cf6"
