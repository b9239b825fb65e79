"""Depth maps that tokenizers are measured on, and the measurements.

The maps are held-out rendered scenes and measured maps, each with sets of 2 to 5 points whose order is checked. Depth
is compared in each map's own range, because codes of relative depth do not hold the range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from perception.datasets.depth.measured import MeasuredMap
from perception.evaluation.bootstrap import bootstrap_interval
from perception.scenes.markers import MIN_GAP, MIN_SPACING, choose_markers, smooth_mask
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from vqvae import VQVAE, VQVAEConfig
from vqvae.metrics import boundary_f1, depth_errors, nearest_is_right, order_is_right, slope_error
from vqvae.normalisation import depth_ranges, depth_to_nearness, nearness_to_depth
from vqvae.quantizer import codebook_usage, perplexity

FIRST_SEED = 60_000_000
"""First seed of held-out scenes; no training uses seeds from here up"""
POINT_COUNTS = (2, 3, 4, 5)
_BATCH = 50
_SETS_A_MAP = 100
"""Number of sets of points per measured map, for each number of points"""
_DRAWS = 40_000
_INVERSE = VQVAEConfig()

Figures = dict[str, object]
Reconstruct = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Depth (B, H, W), NaN in holes, to nearness (B, H, W) in [0, 1] and codes (B, h, w) or (B, n)"""


@dataclass(frozen=True)
class DepthSet:
    """Maps to measure on."""

    depth: tuple[Tensor, ...]
    """(B, H, W) each, NaN in holes"""
    points: dict[int, tuple[list[Tensor], ...]]
    """per number of points P, and per map of each batch: (n, P, 2), n sets of points (x, y) in [0, 1]"""


def reconstruct_with(model: VQVAE, first: int | None = None) -> Reconstruct:
    """A function that encodes and decodes maps at their own size; a nested tokenizer uses its first `tokens` codes."""

    def reconstruct(depth: Tensor) -> tuple[Tensor, Tensor]:
        codes = model.to_sequence(model.encode(depth))[:, :first]
        return model.decode(codes, size=(depth.shape[1], depth.shape[2])), codes

    return reconstruct


def scene_set(style: str, count: int, image_size: int = 80) -> DepthSet:
    """`count` held-out scenes, with one set of markers per number of points where the scene has room."""
    depth: list[Tensor] = []
    points: dict[int, list[list[Tensor]]] = {number: [] for number in POINT_COUNTS}
    for start in range(FIRST_SEED, FIRST_SEED + count, _BATCH):
        batch = render_scenes(range(start, min(start + _BATCH, FIRST_SEED + count)), style, image_size)
        depth.append(batch.depth)
        chosen: dict[int, list[Tensor]] = {number: [] for number in POINT_COUNTS}
        for index, seed in enumerate(batch.seeds):
            rng = np.random.default_rng((seed, len(style)))
            for number in POINT_COUNTS:
                markers = choose_markers(Scene.from_batch(batch, index), number, rng)
                found = np.empty((0, number, 2), np.float32) if markers is None else markers[None]
                chosen[number].append(torch.from_numpy(found))
        for number, sets in chosen.items():
            points[number].append(sets)
    return DepthSet(tuple(depth), {number: tuple(sets) for number, sets in points.items()})


def measured_set(maps: Sequence[MeasuredMap]) -> DepthSet:
    """Measured maps, each with random sets of points: as far apart as markers are, away from edges and holes."""
    depth = tuple(one.depth[None] for one in maps)
    points = {number: tuple([_random_points(one.depth, number)] for one in maps) for number in POINT_COUNTS}
    return DepthSet(depth, points)


def true_nearness(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Nearness (B, H, W) of depth (B, H, W), 0.5 in holes, and the range (B, 2) that it spans."""
    valid = depth.isfinite()
    whole = torch.where(valid, depth, 1)
    ranges = depth_ranges(whole, valid, _INVERSE)
    return torch.where(valid, depth_to_nearness(whole, ranges, _INVERSE), 0.5), ranges


def _random_points(depth: Tensor, number: int) -> Tensor:
    """Sets (n, P, 2) of points on a map (H, W), at least `MIN_GAP` apart in nearness and `MIN_SPACING` in the image."""
    height, width = depth.shape
    near, _ = true_nearness(depth[None])
    near = torch.where(depth.isfinite(), near[0], torch.nan)
    window = max(3, min(height, width) * 5 // 80 | 1)
    smooth = smooth_mask(torch.nan_to_num(near, nan=-1.0)[None], window)[0] & near.isfinite()
    places = smooth.nonzero().numpy()  # (M, 2), y and x
    if len(places) < number:
        return torch.empty(0, number, 2)
    rng = np.random.default_rng((FIRST_SEED, number))
    drawn = places[rng.integers(len(places), size=(_DRAWS, number))]  # (D, P, 2)
    at = np.sort(near.numpy()[drawn[..., 0], drawn[..., 1]], 1)  # (D, P)
    xy = (drawn[..., ::-1] + 0.5) / np.array([width, height])  # (D, P, 2)
    apart = np.linalg.norm(xy[:, :, None] - xy[:, None], axis=-1) + 9 * np.eye(number)  # (D, P, P)
    good = (np.diff(at, axis=1).min(1) >= MIN_GAP) & (apart.min((1, 2)) >= MIN_SPACING)
    return torch.from_numpy(xy[good][:_SETS_A_MAP].astype(np.float32))


def interval(values: Tensor) -> Figures:
    """Mean with its 95 % bootstrap interval, as JSON."""
    return asdict(bootstrap_interval(values.double().numpy()))


@torch.no_grad()
def figures(reconstruct: Reconstruct, depth_set: DepthSet, codebook_size: int) -> Figures:
    """All measurements on a set: means over maps, or over sets of points, with 95 % bootstrap intervals.

    `order_P` is the share of sets of P points that are completely in order, `nearest_P` the share whose nearest
    point is right.
    """
    values: dict[str, list[Tensor]] = {}
    counts = torch.zeros(codebook_size, dtype=torch.long)
    for batch, depth in enumerate(depth_set.depth):
        decoded, codes = reconstruct(depth)
        counts += torch.bincount(codes.flatten(), minlength=codebook_size)
        near, ranges = true_nearness(depth)
        for name, value in map_figures(decoded, near, depth, ranges).items():
            values.setdefault(name, []).append(value)
        for number, sets in depth_set.points.items():
            for index, places in enumerate(sets[batch]):
                maps = (decoded[index].expand(len(places), -1, -1), near[index].expand(len(places), -1, -1))
                values.setdefault(f"order_{number}", []).append(order_is_right(*maps, places))
                values.setdefault(f"nearest_{number}", []).append(nearest_is_right(*maps, places))
    found = {name: torch.cat(parts) for name, parts in values.items()}
    usage = {"codebook_usage": codebook_usage(counts), "perplexity": float(perplexity(counts))}
    maps_seen = sum(len(depth) for depth in depth_set.depth)
    return {"maps": maps_seen, **usage, **{name: interval(value) for name, value in found.items() if len(value)}}


def map_figures(decoded: Tensor, near: Tensor, depth: Tensor, ranges: Tensor) -> dict[str, Tensor]:
    """Errors (B,) of decoded nearness (B, H, W): of depth in the map's own range, of nearness in 1/255, at edges."""
    valid = depth.isfinite()
    back = nearness_to_depth(decoded, ranges, _INVERSE)
    errors = dict(vars(depth_errors(back, depth, valid)))
    errors["nearness_l1_255"] = 255 * torch.where(valid, (decoded - near).abs(), 0).sum((1, 2)) / valid.sum((1, 2))
    errors["boundary_f1"] = boundary_f1(back, depth, valid)
    errors["slope_error_255"] = 255 * slope_error(decoded, near, valid)
    return errors
