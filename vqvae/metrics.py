"""Metrics of depth maps. Maps are (B, H, W); `mask` is (B, H, W) bool, True where a pixel counts.

Each metric has one value per map, to be averaged over maps: a map full of holes counts as much as a full one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae.normalisation import check_mask


@dataclass(frozen=True)
class DepthErrors:
    """Errors per map, (B,) each. Predictions and targets are depth in the same unit, both positive."""

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
    """100 * standard deviation of log p - log t: the error left after the best common scale (KITTI's SILog)"""

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
    check_mask(mask)
    if mask.shape != target.shape:
        raise ValueError(f"mask must have the maps' shape {tuple(target.shape)}, got {tuple(mask.shape)}")
    return mask.bool()


def _mean_over_pixels(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) of values (B, H, W) over the pixels inside `mask`."""
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
    """True for each map that puts *all* P points in the target's order, (B,) bool.

    `predicted` and `target` are (B, H, W) nearness, or both depth; `points` is (B, P, 2). Ties in the prediction
    are wrong where the target has none.
    """
    p, t = values_at(predicted, points), values_at(target, points)  # (B, P)
    true_order = (t[:, :, None] - t[:, None, :]).sign()  # (B, P, P)
    return ((p[:, :, None] - p[:, None, :]).sign() == true_order).flatten(1).all(1)


def nearest_is_right(predicted: Tensor, target: Tensor, points: Tensor) -> Tensor:
    """True for each map whose point of largest predicted *nearness* is the target's nearest, (B,) bool."""
    return values_at(predicted, points).argmax(1) == values_at(target, points).argmax(1)


BOUNDARY_THRESHOLDS = (1.05, 1.10, 1.15, 1.20, 1.25)
_STEPS = ((0, 1), (1, 0))
"""Offsets, in rows and columns, to the neighbours of a pixel"""


def boundary_f1(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """F1 of depth edges, (B,): how well the edges of depth (B, H, W) match those of the target.

    A pair of neighbouring pixels is an edge if one is more than t times as far as the other. A predicted edge is
    right if the target has an edge between the same pixels with the same side in front. The result is the mean over
    thresholds t of 1.05 to 1.25, in which larger ones weigh more (Bochkovskii et al. 2024, "Depth Pro", section
    3.3; without their thinning of edges, so that a blurred edge counts as missed, not as many). Thresholds at which
    a target has no edge are left out. A map without any edge scores 1 if none is predicted, else 0.

    Raises:
        ValueError: for shapes that differ.
    """
    mask = _check_shapes(predicted, target, mask) & target.isfinite() & (target > 0)
    p, t = torch.where(mask, predicted, 1), torch.where(mask, target, 1)
    total, weights, stray = (torch.zeros(len(p), dtype=torch.double, device=p.device) for _ in range(3))
    for threshold in BOUNDARY_THRESHOLDS:
        right, found, there = _count_edges(p, t, mask, threshold)
        present = (threshold - 1) * (there > 0)  # the threshold's weight
        total += present * 2 * right / (found + there).clamp_min(1)
        weights += present
        stray += found
    return torch.where(weights > 0, total / weights.clamp_min(1e-12), (stray == 0).double())


def _count_edges(p: Tensor, t: Tensor, mask: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of right edges of predictions p, of all their edges, and of the edges of targets t, (B,) each."""
    right, found, there = (torch.zeros(len(p), dtype=torch.double, device=p.device) for _ in range(3))
    for step in _STEPS:
        (p0, p1), (t0, t1), (m0, m1) = (_neighbours(maps, step) for maps in (p, t, mask))
        for near_p, far_p, near_t, far_t in ((p0, p1, t0, t1), (p1, p0, t1, t0)):
            edge, true_edge = (far_p > threshold * near_p) & m0 & m1, (far_t > threshold * near_t) & m0 & m1
            right += (edge & true_edge).sum((1, 2))
            found += edge.sum((1, 2))
            there += true_edge.sum((1, 2))
    return right, found, there


def _neighbours(maps: Tensor, step: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Maps (B, H, W) without their last, and without their first, row (step (1, 0)) or column (step (0, 1))."""
    down, across = step
    height, width = maps.shape[1:]
    return maps[:, : height - down, : width - across], maps[:, down:, across:]


def slope_error(predicted: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error (B,) of the differences between neighbouring pixels, of nearness or depth (B, H, W).

    It measures the cost of blur, above all at edges.

    Raises:
        ValueError: for shapes that differ.
    """
    mask = _check_shapes(predicted, target, mask) & target.isfinite()
    error = torch.where(mask, predicted - torch.where(mask, target, 0), 0).double()
    sums, counts = torch.zeros_like(error[:, 0, 0]), torch.zeros_like(error[:, 0, 0])
    for step in _STEPS:
        (e0, e1), (m0, m1) = _neighbours(error, step), _neighbours(mask, step)
        sums += ((e1 - e0).abs() * (m0 & m1)).sum((1, 2))
        counts += (m0 & m1).sum((1, 2))
    return sums / counts.clamp_min(1)
