"""Fill holes smoothly from their surroundings: push and pull over a pyramid (Gortler et al. 1996)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.normalisation import valid_pixels


def fill(values: Tensor, mask: Tensor) -> Tensor:
    """Fill in values (B, H, W) outside `mask` (B, H, W); the others stay the same bit for bit.

    Each level of the pyramid is the mean of the measured pixels beneath it, and a hole takes the value of the next
    coarser level. A map without a measured pixel becomes 0.
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
    """Fill in holes of depth (B, H, W) through inverse depth, in which a plane in space is a plane.

    Raises:
        ValueError: for depth that is not (B, H, W), a mask of another shape, or a map without a valid pixel.
    """
    depth = depth.float()
    valid = valid_pixels(depth, mask)
    inverse = 1 / torch.where(valid, depth, 1)
    return torch.where(valid, depth, 1 / fill(inverse, valid))
