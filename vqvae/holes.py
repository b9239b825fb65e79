"""Holes filled in smoothly from what lies around them: push and pull over a pyramid (Gortler et al. 1996)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.normalisation import valid_pixels


def fill(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B, H, W) with those outside `mask` (B, H, W) made up; the others stay as they are, to the bit.

    Each level of the pyramid is the mean of the measured pixels beneath it, and a hole takes what the next coarser
    level has there. A map without a measured pixel becomes 0.
    """
    height, width = values.shape[1:]
    if height == width == 1:
        return torch.where(mask, values, 0)
    weight = mask.to(values.dtype)
    both = torch.stack([torch.where(mask, values, 0), weight], 1)  # (B, 2, H, W)
    both = F.avg_pool2d(F.pad(both, (0, width % 2, 0, height % 2)), 2)  # (B, 2, H/2, W/2)
    coarser = both[:, 0] / both[:, 1].clamp_min(1e-6)
    filled = fill(coarser, both[:, 1] > 0)
    size = (height + height % 2, width + width % 2)
    around = F.interpolate(filled[:, None], size=size, mode="bilinear", align_corners=False)[:, 0, :height, :width]
    return torch.where(mask, values, around)


def fill_holes(depth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Depth (B, H, W) with its holes filled in, through inverse depth: a plane in space is a plane there.

    Raises:
        ValueError: for depth that is not (B, H, W), a mask of another shape, or a map without a valid pixel.
    """
    depth = depth.float()
    valid = valid_pixels(depth, mask)
    inverse = 1 / torch.where(valid, depth, 1)
    return torch.where(valid, depth, 1 / fill(inverse, valid))
