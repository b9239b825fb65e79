from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from perception.model.shipped import shipped
from vqvae import VQVAE
from vqvae.holes import fill, fill_holes


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (16, 16), (13, 30)])
def test_what_was_measured_stays_to_the_bit(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    depth = 1 + torch.rand((3, *size), generator=generator)
    mask = torch.rand((3, *size), generator=generator) < 0.5
    mask[:, 0, 0] = True
    filled = fill_holes(torch.where(mask, depth, torch.nan))
    assert filled[mask].equal(depth[mask])
    assert bool(filled.isfinite().all())
    low, high = depth[mask].min(), depth[mask].max()
    assert low - 1e-4 <= float(filled.min()) and float(filled.max()) <= high + 1e-4


def test_holes_in_a_plane_take_its_values() -> None:
    inverse = torch.linspace(0.2, 0.8, 64)[None, None].expand(1, 64, 64).contiguous()
    mask = torch.rand((1, 64, 64), generator=torch.Generator().manual_seed(1)) < 0.5
    assert (fill(inverse, mask) - inverse).abs().max() < 0.05
    assert (fill(inverse, mask) - inverse).abs().mean() < 0.005


def test_a_map_does_not_depend_on_its_batch() -> None:
    maps = 1 + torch.rand(4, 20, 20)
    mask = torch.rand(4, 20, 20) < 0.4
    mask[1] = True
    together = fill(maps, mask)
    assert together[1].equal(maps[1])
    assert all(fill(maps[i : i + 1], mask[i : i + 1])[0].equal(together[i]) for i in range(4))


@pytest.mark.slow
def test_codes_hold_when_half_of_the_pixels_are_missing() -> None:
    """Filled in they nearly do; as zeros behind a mask they do not."""
    from perception.scenes.render import render_scenes

    model = VQVAE.from_pretrained(shipped("depth-scenes-100"))
    assert model.config.fill_holes
    depth = render_scenes(range(60_000_000, 60_000_016), "standard").depth
    ends = (depth == depth.amin((1, 2), keepdim=True)) | (depth == depth.amax((1, 2), keepdim=True))
    seen = (torch.rand(depth.shape, generator=torch.Generator().manual_seed(2)) < 0.5) | ends
    whole = model.encode(depth)
    same = (model.encode(depth, seen) == whole).float().mean()
    apart = (model.decode(model.encode(depth, seen)) - model.decode(whole)).abs().mean()
    assert same > 0.75 and apart < 2 / 255
    model.config = replace(model.config, fill_holes=False)
    assert model.encode(depth).equal(whole)  # without holes there is no difference
    assert (model.encode(depth, seen) == whole).float().mean() < 0.5
