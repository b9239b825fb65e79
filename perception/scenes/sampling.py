"""Draw the parameters of scenes: objects and their places, camera, and light.

A scene is a pure function of its seed and its style. All its random numbers come from one counter-based stream with
these two as key, so the scene is the same alone, in any batch, and with any number of workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perception.scenes.styles import COLORS, SHAPES, TEXTURES, Style, get_style

MAX_OBJECTS = 15
NUM_DECALS = 3
CANDIDATES = 24  # places tried per object before it is dropped
_PER_OBJECT = 12 + 2 * CANDIDATES
_PER_DECAL = 8
_NUM_GLOBALS = 40


@dataclass(frozen=True)
class SceneParameters:
    """Parameters of B scenes with up to M = 15 objects. Axes: x to the right, y up, z ahead along the floor."""

    style: str
    present: Tensor
    """(B, M) bool"""
    shape: Tensor
    """(B, M) long, index into `SHAPES`"""
    color: Tensor
    """(B, M) long, index into `COLORS`"""
    rgb: Tensor
    """(B, M, 3)"""
    position: Tensor
    """(B, M, 2), x and z of the centre on the floor, metres"""
    radius: Tensor
    """(B, M), metres"""
    height: Tensor
    """(B, M), metres"""
    yaw: Tensor
    """(B, M), radians"""
    texture: Tensor
    """(B, M) long, index into `TEXTURES`"""
    texture_contrast: Tensor
    """(B, M)"""
    texture_phase: Tensor
    """(B, M)"""
    camera_height: Tensor
    """(B,), metres"""
    camera_pitch: Tensor
    """(B,), radians downwards"""
    camera_yaw: Tensor
    """(B,), radians"""
    field_of_view: Tensor
    """(B,), radians, of the square image's side"""
    wall_distance: Tensor
    """(B,), metres"""
    light: Tensor
    """(B, 3), unit vector towards the light"""
    light_rgb: Tensor
    """(B, 3)"""
    ambient: Tensor
    """(B,)"""
    floor_rgb: Tensor
    """(B, 3)"""
    wall_rgb: Tensor
    """(B, 3)"""
    floor_texture: Tensor
    """(B,) long"""
    floor_contrast: Tensor
    """(B,)"""
    decals: Tensor
    """(B, D, 8), flat clutter: on the wall (1) or floor (0), centre u v, half sizes u v, grey shade, yaw, strength"""


def _between(u: np.ndarray, low_high: tuple[float, float]) -> np.ndarray:
    return low_high[0] + u * (low_high[1] - low_high[0])


def _choose(u: np.ndarray, count: int) -> np.ndarray:
    return np.minimum((u * count).astype(np.int64), count - 1)


def _uniforms(seeds: Sequence[int], style: str) -> np.ndarray:
    """Uniform random numbers (B, N), from one Philox stream per scene."""
    size = _NUM_GLOBALS + MAX_OBJECTS * _PER_OBJECT + NUM_DECALS * _PER_DECAL
    key = zlib.crc32(style.encode())
    rows = [
        np.random.Generator(np.random.Philox(key=[key, int(seed)])).random(size, dtype=np.float64) for seed in seeds
    ]
    return np.stack(rows) if rows else np.zeros((0, size))


def _place(u: np.ndarray, wanted: np.ndarray, radius: np.ndarray, style: Style, half_fov: np.ndarray) -> tuple:
    """Put objects on the floor one after another, at the first candidate place that touches no earlier object.

    Returns:
        positions (B, M, 2), and the mask (B, M) of objects that found a place.
    """
    batch = u.shape[0]
    position = np.zeros((batch, MAX_OBJECTS, 2))
    placed = np.zeros((batch, MAX_OBJECTS), dtype=bool)
    rows = np.arange(batch)
    for slot in range(MAX_OBJECTS):
        z = _between(u[:, slot, :CANDIDATES], style.distance)  # (B, C)
        side = (z * np.tan(half_fov)[:, None] * 0.92 - 0.3).clip(0.5)  # half of the visible width at that distance
        x = (2 * u[:, slot, CANDIDATES:] - 1) * side  # (B, C)
        gap_x = x[:, :, None] - position[:, None, :, 0]  # (B, C, M)
        gap_z = z[:, :, None] - position[:, None, :, 1]
        room = radius[:, slot, None, None] + radius[:, None, :] + 0.12
        free = ((gap_x**2 + gap_z**2 > room**2) | ~placed[:, None, :]).all(-1)  # (B, C)
        first = free.argmax(1)
        placed[:, slot] = wanted[:, slot] & free.any(1)
        position[:, slot, 0], position[:, slot, 1] = x[rows, first], z[rows, first]
    return position, placed


def _themed_kinds(u: np.ndarray, globals_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shapes and colours (B, M). One colour and one shape prevail in a scene, so that "red cubes" often exceed one."""
    lead_shape, lead_color = _choose(globals_[:, 0], len(SHAPES)), _choose(globals_[:, 1], len(COLORS))
    share_shape, share_color = 0.15 + 0.7 * globals_[:, 2], 0.05 + 0.7 * globals_[:, 3]
    shape = np.where(u[:, :, 0] < share_shape[:, None], lead_shape[:, None], _choose(u[:, :, 1], len(SHAPES)))
    color = np.where(u[:, :, 2] < share_color[:, None], lead_color[:, None], _choose(u[:, :, 3], len(COLORS)))
    return shape, color


def _texture_ids(u: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    table = np.array([TEXTURES.index(name) for name in names])
    return table[_choose(u, len(names))]


def _light(globals_: np.ndarray, style: Style) -> np.ndarray:
    azimuth = np.radians(_between(globals_[:, 8], style.light_azimuth))
    elevation = np.radians(_between(globals_[:, 9], style.light_elevation))
    return np.stack(
        [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), -np.cos(azimuth) * np.cos(elevation)], axis=1
    )


def _decals(u: np.ndarray, style: Style) -> np.ndarray:
    decals = np.zeros((u.shape[0], NUM_DECALS, 8))
    on_wall = u[:, :, 0] < 0.4
    decals[:, :, 0] = on_wall
    decals[:, :, 1] = (2 * u[:, :, 1] - 1) * np.where(on_wall, 4.0, 2.5)
    decals[:, :, 2] = np.where(on_wall, 0.5 + 2.5 * u[:, :, 2], _between(u[:, :, 2], style.distance))
    decals[:, :, 3], decals[:, :, 4] = 0.3 + 0.9 * u[:, :, 3], 0.3 + 0.9 * u[:, :, 4]
    decals[:, :, 5] = 0.25 + 0.6 * u[:, :, 5]
    decals[:, :, 6] = np.where(on_wall, 0.0, u[:, :, 6] * np.pi)
    decals[:, :, 7] = np.where(u[:, :, 7] < 0.55, 0.55, 0.0)  # a little under half are absent
    return decals


def sample_scenes(seeds: Sequence[int], style: str = "standard") -> SceneParameters:
    """Draw one scene per seed, with 0 to 15 objects. Objects that find no place on the floor are dropped.

    Raises:
        ValueError: if the style is unknown or a seed is negative.
    """
    ranges = get_style(style)
    if any(int(seed) < 0 for seed in seeds):
        raise ValueError(f"seeds must be non-negative integers, got {min(int(s) for s in seeds)}")
    u = _uniforms(seeds, style)
    batch = u.shape[0]
    g = u[:, :_NUM_GLOBALS]
    objects = u[:, _NUM_GLOBALS : _NUM_GLOBALS + MAX_OBJECTS * _PER_OBJECT].reshape(batch, MAX_OBJECTS, _PER_OBJECT)
    decals = u[:, _NUM_GLOBALS + MAX_OBJECTS * _PER_OBJECT :].reshape(batch, NUM_DECALS, _PER_DECAL)

    shape, color = _themed_kinds(objects, g)
    radius = _between(objects[:, :, 4], ranges.radius)
    ratio = np.where(np.isin(shape, (0, 1)), 1.0, _between(objects[:, :, 5], ranges.height_ratio))
    count = _choose(g[:, 4], MAX_OBJECTS + 1)
    field_of_view = np.radians(_between(g[:, 5], ranges.field_of_view))
    wanted = np.arange(MAX_OBJECTS)[None] < count[:, None]
    position, placed = _place(objects[:, :, 12:], wanted, radius, ranges, field_of_view / 2)
    jitter = (2 * objects[:, :, 6:9] - 1) * ranges.color_jitter
    rgb = (np.array(ranges.palette)[color] + jitter).clip(0.02, 1.0)
    camera_height = _between(g[:, 6], ranges.camera_height)
    aim = (
        0.5 * (ranges.distance[0] + ranges.distance[1]) - 0.3 + 0.6 * g[:, 10]
    )  # the floor point in the image's middle
    floor_tone, wall_tone = 0.85 + 0.3 * g[:, 11], 0.85 + 0.3 * g[:, 12]

    def real(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))

    return SceneParameters(
        style=style,
        present=torch.from_numpy(placed),
        shape=torch.from_numpy(shape),
        color=torch.from_numpy(color),
        rgb=real(rgb),
        position=real(position),
        radius=real(radius),
        height=real(2 * radius * ratio),
        yaw=real(objects[:, :, 9] * np.pi / 2),
        texture=torch.from_numpy(_texture_ids(objects[:, :, 10], ranges.object_textures)),
        texture_contrast=real(_between(objects[:, :, 11], ranges.texture_contrast)),
        texture_phase=real(objects[:, :, 8] * 6.28),
        camera_height=real(camera_height),
        camera_pitch=real(np.arctan2(camera_height - 0.4, aim)),
        camera_yaw=real(np.radians((2 * g[:, 7] - 1) * ranges.camera_yaw)),
        field_of_view=real(field_of_view),
        wall_distance=real(_between(g[:, 13], ranges.wall_distance)),
        light=real(_light(g, ranges)),
        light_rgb=real(np.array(ranges.light_color)[None] * (0.75 + 0.35 * g[:, 14:15])),
        ambient=real(_between(g[:, 15], ranges.ambient)),
        floor_rgb=real(
            np.array(ranges.floor_colors)[_choose(g[:, 16], len(ranges.floor_colors))] * floor_tone[:, None]
        ),
        wall_rgb=real(np.array(ranges.wall_colors)[_choose(g[:, 17], len(ranges.wall_colors))] * wall_tone[:, None]),
        floor_texture=torch.from_numpy(_texture_ids(g[:, 18], ranges.floor_textures)),
        floor_contrast=real(_between(g[:, 19], ranges.texture_contrast)),
        decals=real(_decals(decals, ranges)),
    )
