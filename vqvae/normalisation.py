"""Conversion of depth in any unit to nearness in [0, 1] and back, with holes kept apart from measurements."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vqvae.config import VQVAEConfig

_FEW = 0.002
"""Largest share of a map's pixels that can be wild at one end of its range"""
_WILD = 0.25
"""Distance from the rest at which pixels are wild, as a share of the rest's range. On rendered scenes and measured maps
the first 0.2 % of the pixels reach no farther than 0.05"""


@dataclass(frozen=True)
class Normalised:
    """A batch of B maps that can be encoded."""

    values: Tensor
    """(B, 1, S, S) in [-1, 1]: 2 * nearness - 1, where nearness 1 is the nearest; 0 in holes"""
    mask: Tensor
    """(B, 1, S, S) bool: pixels that cover at least one measured pixel of the input"""
    depth_range: Tensor
    """(B, 2): depth at nearness 1 and at nearness 0, in the unit of the input; pass it to `decode` to get depth"""

    @property
    def nearness(self) -> Tensor:
        """(B, S, S) in [0, 1]; 0.5 in holes"""
        return (self.values[:, 0] + 1) / 2


def usable_pixels(depth: Tensor) -> Tensor:
    """True where depth, of any shape, is a measurement: finite, with a finite inverse."""
    return depth.isfinite() & (depth >= torch.finfo(torch.float32).tiny)


def check_mask(mask: Tensor, name: str = "mask") -> None:
    """Raise ValueError for a mask that is no tensor of truth values or numbers."""
    if not isinstance(mask, Tensor):
        raise ValueError(f"{name} must be a tensor (B, H, W), got {type(mask).__name__}; e.g. torch.as_tensor({name})")


def valid_pixels(depth: Tensor, mask: Tensor | None) -> Tensor:
    """Pixels (B, H, W) that hold a measurement: finite, positive, and inside `mask` if it is given.

    Raises:
        ValueError: for depth that is not (B, H, W), a mask of another shape or that is no tensor, or a map with no
            valid pixel.
    """
    if depth.ndim != 3:
        hint = "add or drop dimensions, e.g. depth[None]"
        if depth.ndim == 4:
            hint = f"maps have no channels: {'depth[..., 0]' if depth.shape[-1] == 1 else 'depth[:, 0]'}"
        raise ValueError(f"depth must be (B, H, W), got shape {tuple(depth.shape)}; {hint}")
    if not 0 < depth.numel():
        raise ValueError(f"depth must hold at least one pixel, got shape {tuple(depth.shape)}")
    valid = usable_pixels(depth)
    if mask is not None:
        check_mask(mask)
        if mask.shape != depth.shape:
            raise ValueError(
                f"mask must have depth's shape {tuple(depth.shape)}, got {tuple(mask.shape)}; resize it with "
                "mode='nearest' or pass mask=None"
            )
        valid = valid & mask.bool()
    empty = (~valid.flatten(1).any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"no valid pixel in map(s) {empty} of the batch: valid means finite, greater than 0 and inside the mask; "
            "leave such maps out"
        )
    return valid


def resize_masked(values: Tensor, mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Resize maps (B, H, W) so that holes do not bleed: each new pixel is the mean of the *valid* pixels beneath it.

    Returns the values (B, *size), 0 in holes, and their mask (B, *size): True if any valid pixel lay beneath.
    """
    weight = mask.to(values.dtype)  # (B, H, W)
    weighted = torch.where(mask, values, 0)  # not a product: 0 * nan is nan
    if tuple(values.shape[1:]) != size:
        both = torch.stack([weighted, weight], 1)  # (B, 2, H, W)
        both = F.interpolate(both, size=size, mode="bilinear", antialias=True, align_corners=False)
        weighted, weight = both.unbind(1)  # (B, *size) each
    least = min(1e-3, 0.05 * size[0] * size[1] / values[0].numel())  # what a pixel beneath has, also in large maps
    resized_mask = weight > least
    return torch.where(resized_mask, weighted / weight.clamp_min(least), 0), resized_mask


def _inverts(config: VQVAEConfig) -> bool:
    return config.normalisation == "relative_inverse"


def depth_ranges(depth: Tensor, valid: Tensor, config: VQVAEConfig) -> Tensor:
    """Depth (B, 2) that becomes nearness 1 and nearness 0, for maps (B, H, W).

    These are the nearest and the farthest valid pixel, or the percentiles that the config asks for. By default, an end
    is moved to the rest of the map if the 0.2 % of the pixels there are wild, as a false reading of the sensor is: they
    lie apart from the rest by more than a quarter of its range. They are then clamped. In inverse depth nothing lies
    below 0, so the far end is never wild in a map whose rest spans 1 : 5 or more.
    """
    if config.normalisation == "metric":
        assert config.min_depth is not None and config.max_depth is not None
        return depth.new_tensor([config.min_depth, config.max_depth]).expand(depth.shape[0], 2)
    share = _FEW if config.range_percentile is None else config.range_percentile / 100
    most = int(share * valid[0].numel())
    nearest = torch.where(valid, depth, torch.inf).flatten(1).topk(most + 1, largest=False).values  # (B, most + 1)
    farthest = torch.where(valid, depth, -torch.inf).flatten(1).topk(most + 1).values
    rank = (share * valid.flatten(1).sum(1, keepdim=True)).long().clamp(max=most)  # (B, 1)
    rest = torch.cat([nearest.gather(1, rank), farthest.gather(1, rank)], 1)  # (B, 2)
    if config.range_percentile is not None:
        return rest
    ends = torch.stack([nearest[:, 0], farthest[:, 0]], 1)  # (B, 2)
    a, b = (1 / rest, 1 / ends) if _inverts(config) else (rest, ends)
    wild = (b - a).abs() > _WILD * (a[:, :1] - a[:, 1:]).abs()  # (B, 2)
    return torch.where(wild, rest, ends)


def depth_to_nearness(depth: Tensor, depth_range: Tensor, config: VQVAEConfig) -> Tensor:
    """Nearness (B, H, W) in [0, 1] of valid depth; 0.5 everywhere in a map whose range is a single value."""
    near, far = depth_range[:, 0, None, None], depth_range[:, 1, None, None]
    if _inverts(config):
        depth, near, far = 1 / depth, 1 / near, 1 / far
    span = near - far  # negative unless inverted; the sign cancels
    flat = span.abs() <= 1e-6 * near.abs()
    nearness = (depth - far) / torch.where(flat, 1, span)
    return torch.where(flat, 0.5, nearness).clamp(0, 1)


def nearness_to_depth(nearness: Tensor, depth_range: Tensor, config: VQVAEConfig) -> Tensor:
    """Depth (B, H, W) in the unit of `depth_range` (B, 2); the inverse of `depth_to_nearness`.

    Raises:
        ValueError: for a depth_range that is no tensor (B, 2) of 0 < near <= far; near may be 0 where nearness is no
            inverse depth.
    """
    if not isinstance(depth_range, Tensor):
        raise ValueError(
            f"depth_range must be a tensor (B, 2), got {type(depth_range).__name__}; pass normalise(depth).depth_range"
        )
    if depth_range.shape != (nearness.shape[0], 2):
        raise ValueError(
            f"depth_range must be (B, 2) = ({nearness.shape[0]}, 2), near and far of each map, got "
            f"{tuple(depth_range.shape)}; pass normalise(depth).depth_range"
        )
    near, far = depth_range.to(nearness).unbind(1)
    can_be = (near > 0) if _inverts(config) else (near >= 0)
    if not bool((can_be & (near <= far) & far.isfinite()).all()):
        raise ValueError(
            f"depth_range must hold 0 < near <= far of each map, got {depth_range.tolist()}; pass "
            "normalise(depth).depth_range"
        )
    near, far = near[:, None, None], far[:, None, None]
    if _inverts(config):
        return 1 / (1 / far + nearness * (1 / near - 1 / far))
    return far + nearness * (near - far)


def normalise_depth(depth: Tensor, mask: Tensor | None, config: VQVAEConfig) -> Normalised:
    """Normalise depth maps (B, H, W) in any unit, larger is farther; NaN, infinite and non-positive pixels are holes.

    Raises:
        ValueError: see `valid_pixels`.
    """
    if not isinstance(depth, Tensor) or depth.is_complex() or depth.dtype == torch.bool:
        kind = f"a tensor of {depth.dtype}" if isinstance(depth, Tensor) else type(depth).__name__
        raise ValueError(f"depth must be a tensor of numbers (B, H, W), got {kind}; e.g. torch.as_tensor(depth)[None]")
    depth = depth.float()  # first: what float32 cannot hold is a hole
    valid = valid_pixels(depth, mask)
    depth = torch.where(valid, depth, 1)  # holes hold a harmless 1 until they are zeroed
    depth_range = depth_ranges(depth, valid, config)  # (B, 2)
    values = 2 * depth_to_nearness(depth, depth_range, config) - 1  # (B, H, W)
    size = (config.image_size, config.image_size)
    values, valid = resize_masked(values, valid, size)  # (B, S, S)
    return Normalised(values[:, None], valid[:, None], depth_range)
