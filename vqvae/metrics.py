"""Figures of merit of depth maps. Maps are (B, H, W); `mask` is (B, H, W) bool, True where a pixel counts.

Every figure is one of each map, to be averaged over maps: a map full of holes counts as much as a full one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DepthErrors:
    """Errors of each of B maps, (B,) each. Predictions and targets are depth in one unit, both positive."""

    delta1: Tensor
    """Share of pixels with max(p/t, t/p) < 1.25"""
    delta2: Tensor
    """... < 1.25^2"""
    delta3: Tensor
    """... < 1.25^3"""
    abs_rel: Tensor
    """Mean of |p - t| / t"""
    rmse: Tensor
    """Root of the mean squared error, in the unit of depth"""
    silog: Tensor
    """100 * standard deviation of log p - log t: what is left after the best common scale (KITTI's SILog)"""

    def means(self) -> dict[str, float]:
        """Means over the maps, by name."""
        return {name: float(value.mean()) for name, value in vars(self).items()}


def _check_shapes(predicted: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    if predicted.ndim != 3 or predicted.shape != target.shape:
        raise ValueError(
            f"predicted and target must be (B, H, W) alike, got {tuple(predicted.shape)} and {tuple(target.shape)}; "
            "decode with size=target.shape[-2:]"
        )
    if mask is None:
        mask = torch.ones_like(target, dtype=torch.bool)
    if mask.shape != target.shape:
        raise ValueError(f"mask must have the maps' shape {tuple(target.shape)}, got {tuple(mask.shape)}")
    return mask.bool()


def _mean_over_pixels(values: Tensor, mask: Tensor) -> Tensor:
    """(B,) means of (B, H, W) over the pixels in `mask`."""
    return torch.where(mask, values, 0).sum((1, 2)) / mask.sum((1, 2))


def depth_errors(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> DepthErrors:
    """Errors of depth (B, H, W) over finite, positive target pixels inside `mask`.

    Raises:
        ValueError: for shapes that differ, a map without such a pixel, or a prediction that is not positive there.
    """
    mask = _check_shapes(predicted, target, mask) & target.isfinite() & (target > 0)
    if not bool(mask.any(2).any(1).all()):
        raise ValueError("a map has no valid target pixel; leave such maps out")
    if not bool((predicted[mask] > 0).all()):
        raise ValueError("predicted depth must be positive where the target is valid; clamp it, e.g. clamp_min(1e-3)")
    p, t = torch.where(mask, predicted, 1).double(), torch.where(mask, target, 1).double()
    ratio = torch.maximum(p / t, t / p)
    log_error = p.log() - t.log()
    variance = _mean_over_pixels(log_error.square(), mask) - _mean_over_pixels(log_error, mask).square()
    within = [_mean_over_pixels((ratio < 1.25**power).double(), mask) for power in (1, 2, 3)]
    return DepthErrors(
        delta1=within[0],
        delta2=within[1],
        delta3=within[2],
        abs_rel=_mean_over_pixels((p - t).abs() / t, mask),
        rmse=_mean_over_pixels((p - t).square(), mask).sqrt(),
        silog=100 * variance.clamp_min(0).sqrt(),
    )


def values_at(maps: Tensor, points: Tensor) -> Tensor:
    """Values (B, P) of maps (B, H, W) in the pixels of points (B, P, 2), (x, y) in [0, 1].

    Raises:
        ValueError: for points that are not (B, P, 2) in [0, 1].
    """
    if points.ndim != 3 or points.shape[0] != maps.shape[0] or points.shape[2] != 2:
        raise ValueError(f"points must be (B, P, 2) with B = {maps.shape[0]}, got {tuple(points.shape)}")
    if points.numel() and not 0 <= float(points.min()) <= float(points.max()) <= 1:
        raise ValueError("points must lie in [0, 1]; divide pixel coordinates by (width, height)")
    height, width = maps.shape[1:]
    columns = (points[..., 0] * width).long().clamp(0, width - 1)  # (B, P)
    rows = (points[..., 1] * height).long().clamp(0, height - 1)  # (B, P)
    return maps[torch.arange(len(maps), device=maps.device)[:, None], rows, columns]


def order_is_right(predicted: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """(B,) bool: whether the map puts *all* P points in the target's order.

    `predicted` and `target` are (B, H, W) nearness, or both depth; `points` (B, P, 2). Ties in the prediction are wrong
    wherever the target has none.
    """
    p, t = values_at(predicted, points), values_at(target, points)  # (B, P)
    true_order = (t[:, :, None] - t[:, None, :]).sign()  # (B, P, P)
    return ((p[:, :, None] - p[:, None, :]).sign() == true_order).flatten(1).all(1)


def nearest_is_right(predicted: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """(B,) bool: whether the point with the largest predicted *nearness* is the target's nearest (BLINK's question)."""
    return values_at(predicted, points).argmax(1) == values_at(target, points).argmax(1)
