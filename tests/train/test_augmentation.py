"""Augmentation of images: what changes, and what must not."""

from __future__ import annotations

import colorsys

import pytest
import torch

from perception.scenes import get_style
from train.data.augmentation import chromatic, photometric


def test_other_colours_keep_their_names_and_their_light():
    """Every colour of the scenes stays nearest in hue to itself; its luma stays where no channel was cut off."""
    palette = torch.tensor(get_style("standard").palette)  # (8, 3)
    images = palette.T[None, :, :, None].expand(500, -1, -1, 1)  # (B, 3, 8, 1)
    changed = chromatic(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 1
    hues = torch.tensor([colorsys.rgb_to_hsv(*color)[0] for color in palette.tolist()])
    saturations = []
    for image in changed[..., 0].permute(0, 2, 1).tolist():  # (8, 3)
        for number, color in enumerate(image):
            hue, saturation, _ = colorsys.rgb_to_hsv(*color)
            apart = (hues - hue).abs()
            assert int(torch.minimum(apart, 1 - apart).argmin()) == number
            saturations.append(saturation / colorsys.rgb_to_hsv(*palette[number].tolist())[1])
    assert min(saturations) < 0.75 and max(saturations) > 1.1
    luma = torch.tensor([0.299, 0.587, 0.114])
    whole = (changed > 0).all(1) & (changed < 1).all(1)  # (B, 8, 1)
    before, after = (torch.einsum("c,bchw->bhw", luma, both) for both in (images, changed))
    assert whole.float().mean() > 0.5
    assert after[whole].tolist() == pytest.approx(before[whole].tolist(), abs=2e-3)


@pytest.mark.parametrize("change", [chromatic, photometric])
def test_the_generator_alone_decides(change):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    first, again, other = (change(images, torch.Generator().manual_seed(seed)) for seed in (2, 2, 3))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0] - images[0], first[1] - images[1]), "drawn once per image"
    assert change(images[:0], torch.Generator()).shape == (0, 3, 8, 8), "no image of a small batch may be chosen"


def test_grey_stays_grey():
    grey = torch.full((3, 3, 2, 2), 0.4)
    assert torch.allclose(chromatic(grey, torch.Generator().manual_seed(0)), grey, atol=2e-3)
