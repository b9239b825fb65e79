"""Effect of missing pixels on the codes of a depth map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.depth_sets import Figures, interval, map_figures, true_nearness
from train.data.depth_augmentation import visible_patches
from vqvae import VQVAE

MISSING = 0.5
"""Share of the pixels that are missing"""
_SEED = 97_000_000


def missing_masks(count: int, size: int) -> dict[str, Tensor]:
    """Masks (N, S, S) bool, False for the missing half of each map.

    The patterns are single pixels, the patches of AiT, and the connected blobs of a smooth random field, like the
    holes of a depth camera.
    """
    generator = torch.Generator().manual_seed(_SEED)
    field = F.interpolate(torch.randn((count, 1, 8, 8), generator=generator), size=(size, size), mode="bicubic")[:, 0]
    return {
        "single pixels": torch.rand((count, size, size), generator=generator) >= MISSING,
        "patches": visible_patches(count, size, 1.0, MISSING, generator),
        "blobs": field >= field.flatten(1).quantile(MISSING, dim=1)[:, None, None],
    }


@torch.no_grad()
def missing_figures(model: VQVAE, depth: Tensor) -> Figures:
    """Figures per pattern, for maps (N, S, S) with half of their pixels missing.

    They are the share of codes that stay the same, and the distance of the decoded map from the whole map's decoded
    map and from the truth, at all pixels. All is compared in the range of the whole map: what is measured is the
    filling in, not a range without its ends.
    """
    size = (depth.shape[1], depth.shape[2])
    near, ranges = true_nearness(depth)
    codes = model.encode(depth)
    whole = model.decode(codes, size=size)
    found: Figures = {"whole": _errors(whole, near, depth, ranges)}
    for name, mask in missing_masks(len(depth), depth.shape[-1]).items():
        # The ends of the range are kept, so that both normalisations agree.
        kept = mask | (near == near.amax((1, 2), keepdim=True)) | (near == near.amin((1, 2), keepdim=True))
        holed = model.encode(depth, kept)
        decoded = model.decode(holed, size=size)
        found[name] = {
            "same_codes": interval((holed == codes).double().mean((1, 2))),
            "from_whole_l1_255": interval(255 * (decoded - whole).abs().mean((1, 2))),
            **_errors(decoded, near, depth, ranges),
        }
    return found


def _errors(decoded: Tensor, near: Tensor, depth: Tensor, ranges: Tensor) -> Figures:
    measured = map_figures(decoded, near, depth, ranges)
    return {name: interval(measured[name]) for name in ("abs_rel", "delta1", "nearness_l1_255")}
