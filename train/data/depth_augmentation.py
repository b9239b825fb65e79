"""Augmentation of depth maps for training a tokenizer.

Scenes alone would train a tokenizer for one kind of room. Bending, cropping and holes, and random piecewise-smooth
surfaces, add what all depth maps share (edges between smooth surfaces, missing pixels), so that the tokenizer also fits
measured maps from stereo rigs and depth cameras. Maps of photographs add real outlines and real grounds; where they
come from a depth network, their edges are soft, so things are also cut out of them and laid over others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PATCHES_PER_SIDE = 15
"""Patches per side of a map in `visible_patches`. AiT (arXiv 2301.02229) has patches of 16 pixels in 240 x 240 maps."""


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _smooth_field(count: int, cells: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth noise (N, size, size) with about `cells` bumps per side, standard normal at its knots."""
    knots = torch.randn((count, 1, cells + 2, cells + 2), generator=generator)
    return F.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True)[:, 0]


def _pixel_grid(size: int) -> tuple[Tensor, Tensor]:
    """x and y (1, S, S) of pixel centres in [0, 1]."""
    axis = (torch.arange(size) + 0.5) / size
    return axis[None, None, :].expand(1, size, size), axis[None, :, None].expand(1, size, size)


def random_surfaces(count: int, size: int, generator: torch.Generator, max_shapes: int = 12) -> Tensor:
    """Random positive inverse depth (N, S, S): a tilted, slightly bent ground covered by tilted boxes and discs."""
    x, y = _pixel_grid(size)

    def plane(spread: float) -> Tensor:
        tilt = _uniform((count, 2, 1, 1), -spread, spread, generator)
        return tilt[:, 0] * (x - 0.5) + tilt[:, 1] * (y - 0.5)  # (N, S, S)

    bend = _uniform((count, 1, 1), 0, 0.08, generator) * _smooth_field(count, 4, size, generator)
    inverse = 0.35 + plane(0.6) + bend
    num_shapes = torch.randint(0, max_shapes + 1, (count, 1, 1), generator=generator)
    for number in range(max_shapes):
        u, v = _uniform((2, count, 1, 1), 0, 1, generator)
        turn = _uniform((count, 1, 1), 0, torch.pi, generator)
        a = (x - u) * turn.cos() + (y - v) * turn.sin()
        b = (y - v) * turn.cos() - (x - u) * turn.sin()
        half_a, half_b = _uniform((2, count, 1, 1), 0.03, 0.28, generator)
        inside_box = (a.abs() < half_a) & (b.abs() < half_b)
        bulge = 1 - (a / half_a).square() - (b / half_b).square()
        is_disc = torch.rand((count, 1, 1), generator=generator) < 0.5
        inside = torch.where(is_disc, bulge > 0, inside_box) & (number < num_shapes)
        level = _uniform((count, 1, 1), 0.05, 1.2, generator) + plane(0.3)
        level = level + is_disc * _uniform((count, 1, 1), 0, 0.15, generator) * bulge.clamp_min(0).sqrt()
        inverse = torch.where(inside, level, inverse)
    return inverse.clamp_min(0.02)


def random_parts(maps: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Cut a random part of 45-100 % of each side out of each map (N, M, M) without holes, as (N, size, size)."""
    count = len(maps)
    side = _uniform((count, 2), 0.45, 1, generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side.unbind(1)
    theta[:, :, 2] = _uniform((count, 2), -1, 1, generator) * (1 - side)
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)  # (N, S, S, 2)
    return F.grid_sample(maps[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def lay_over(below: Tensor, above: Tensor, generator: torch.Generator) -> Tensor:
    """Lay the near part of maps `above` over maps `below`, (N, S, S) nearness in [0, 1] each, with sharp edges.

    What is laid over ends at a random nearness, and lies at a random distance with a random relief of its own.
    """
    shape = (len(below), 1, 1)
    inside = above > _uniform(shape, 0.3, 0.9, generator)
    relief = _uniform(shape, 0.1, 1, generator) * (above - 0.5)
    return torch.where(inside, _uniform(shape, 0.2, 1.2, generator) + relief, below).clamp_min(0)


def bend_and_crop(inverse: Tensor, generator: torch.Generator) -> Tensor:
    """Crop each map of inverse depth (N, S, S) to 45-100 % of its side, bend it by a power, and tilt it in depth.

    Holes (NaN) stay holes. A map is not cropped if its crop would consist of holes only.
    """
    count, size = inverse.shape[0], inverse.shape[-1]
    side = _uniform((count,), 0.45, 1, generator)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = side
    theta[:, :, 2] = _uniform((count, 2), -1, 1, generator) * (1 - side[:, None])
    grid = F.affine_grid(theta, [count, 1, size, size], align_corners=False)  # (N, S, S, 2)
    cropped = F.grid_sample(inverse[:, None], grid, mode="nearest", align_corners=False)[:, 0]
    inverse = torch.where(cropped.isfinite().flatten(1).any(1)[:, None, None], cropped, inverse)
    measured = inverse.isfinite()
    low = torch.where(measured, inverse, torch.inf).amin((1, 2), keepdim=True)
    high = torch.where(measured, inverse, -torch.inf).amax((1, 2), keepdim=True)
    nearness = (inverse - low) / (high - low).clamp_min(1e-6)  # (N, S, S) in [0, 1]
    power = _uniform((count, 1, 1), -0.7, 0.7, generator).exp()
    x, y = _pixel_grid(size)
    tilt = _uniform((count, 2, 1, 1), -0.3, 0.3, generator)
    bent = nearness**power + tilt[:, 0] * (x - 0.5) + tilt[:, 1] * (y - 0.5)
    return (bent + 0.4).clamp_min(0.02)


def random_holes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Masks (N, S, S) bool, False in holes: blobs, single pixels and a border; at most about half of a map."""
    blobs = _smooth_field(count, 6, size, generator) < _uniform((count, 1, 1), 0.2, 2.5, generator)
    specks = torch.rand((count, size, size), generator=generator) > _uniform((count, 1, 1), 0, 0.15, generator)
    x, _ = _pixel_grid(size)
    border = x > _uniform((count, 1, 1), -0.2, 0.2, generator)
    mask = blobs & specks & border
    mask[:, size // 2, size // 2] = True  # never an empty map
    return mask


def visible_patches(
    count: int, size: int, masked_maps: float, masked_share: float, generator: torch.Generator
) -> Tensor:
    """Masks (N, S, S) bool, False in patches that are hidden from the encoder.

    Args:
        masked_maps: share of the maps that have hidden patches.
        masked_share: share of the patches that are hidden in those maps.
    """
    rank = torch.rand((count, PATCHES_PER_SIDE**2), generator=generator).argsort(1).argsort(1)  # (N, P)
    hidden = (rank < round(masked_share * PATCHES_PER_SIDE**2)).view(count, 1, PATCHES_PER_SIDE, PATCHES_PER_SIDE)
    hidden = hidden & (torch.rand((count, 1, 1, 1), generator=generator) < masked_maps)
    return F.interpolate(hidden.float(), size=(size, size))[:, 0] < 0.5


def photo_batch(nearness: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augment maps of photographs (N, M, M), nearness in [0, 1] without holes.

    A random part of each map is taken and mirrored at random. A third of them stay so; the next third is bent and
    tilted (`bend_and_crop`), and things cut out of other maps are laid over the last (`lay_over`). Half of all maps get
    holes. The result depends only on the inputs and the generator's state.

    Returns:
        depth and mask, (N, size, size) each.
    """
    count = len(nearness)
    parts = random_parts(nearness, size, generator)
    flip = torch.rand((count, 1, 1), generator=generator) < 0.5
    parts = torch.where(flip, parts.flip(2), parts)
    plain, bent = parts[: count // 3], parts[count // 3 : 2 * count // 3]
    below = parts[2 * count // 3 :]
    pieces = [plain + 0.05, bend_and_crop(bent, generator), lay_over(below, parts[: len(below)], generator) + 0.05]
    inverse = torch.cat([piece for piece in pieces if len(piece)])
    holed = torch.rand((count, 1, 1), generator=generator) < 0.5
    mask = torch.where(holed, random_holes(count, size, generator), True)
    return 1 / inverse, mask


def training_batch(
    scenes: Tensor, generator: torch.Generator, augment: bool = True, metric: bool = False
) -> tuple[Tensor, Tensor]:
    """Augment a batch of depth maps (N, S, S), NaN in holes.

    Half of the maps, and at least one, stay plain; a quarter is bent and cropped, and a quarter is replaced by random
    surfaces. All maps are mirrored at random, random surfaces are also turned upside down, and half of the maps that
    are not plain get holes. The result depends only on the inputs and the generator's state.

    Args:
        augment: whether to augment; otherwise all maps are only mirrored at random.
        metric: leave depths as they are: no map is bent or replaced.

    Returns:
        depth and mask, (N, S, S) each.
    """
    count, size = scenes.shape[0], scenes.shape[-1]
    plain = max(1, count // 2) if augment else count
    bent = 0 if metric else min(count // 4, count - plain)
    made = 0 if metric else count - plain - bent
    inverse = 1 / scenes
    parts = [inverse[: count - bent - made]]
    if bent:
        parts.append(bend_and_crop(inverse[plain : plain + bent], generator))
    if made:
        parts.append(random_surfaces(made, size, generator))
    inverse = torch.cat(parts)
    flip = torch.rand((count, 1, 1), generator=generator) < 0.5
    inverse = torch.where(flip, inverse.flip(2), inverse)
    turn = torch.rand((count, 1, 1), generator=generator) < 0.5
    turn[: count - made] = False
    inverse = torch.where(turn, inverse.flip(1), inverse)
    measured = inverse.isfinite()
    holed = torch.rand((count, 1, 1), generator=generator) < 0.5
    holed[:plain] = False
    mask = torch.where(holed, random_holes(count, size, generator) & measured, measured)
    mask = torch.where(mask.flatten(1).any(1)[:, None, None], mask, measured)  # never an empty map
    return 1 / inverse, mask
