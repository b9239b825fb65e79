"""Lettered markers for depth questions (as in BLINK): where to place them, and how to draw them.

Points are (x, y) in [0, 1] of the image. Relative depth is *nearness*: inverse depth, min-max scaled per image, so that
1 is nearest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.scenes.scene import Scene

MIN_GAP = 20 / 255
"""Smallest difference in nearness between any two markers of a question."""
MIN_SPACING = 0.17
"""Smallest distance between two markers, as a share of the image's side, so that discs never touch."""
_MARGIN = 0.08
_DRAWS = 25  # tries for an easy or a hard set before the other kind is tried
_DISC_RADIUS = 0.066
_LETTERED = 20
"""Shortest side of an image in pixels that letters fit on"""

_GLYPHS = {  # 5 x 5
    "A": (".###.", "#...#", "#####", "#...#", "#...#"),
    "B": ("####.", "#...#", "####.", "#...#", "####."),
    "C": (".####", "#....", "#....", "#....", ".####"),
    "D": ("####.", "#...#", "#...#", "#...#", "####."),
    "E": ("#####", "#....", "####.", "#....", "#####"),
}


def nearness(depth: Tensor) -> Tensor:
    """Nearness of depth maps (B, H, W): 1 at the nearest pixel of each map, 0 at the farthest."""
    inverse = 1 / depth
    low, high = inverse.amin((1, 2), keepdim=True), inverse.amax((1, 2), keepdim=True)
    return (inverse - low) / (high - low).clamp_min(1e-9)


def smooth_mask(near: Tensor, window: int) -> Tensor:
    """Mask (B, H, W) of pixels whose window of `window` pixels has a range of nearness below half of `MIN_GAP`."""
    padded = F.pad(near[:, None], (window // 2,) * 4, mode="replicate")
    high, low = _largest(padded, window)[:, 0], -_largest(-padded, window)[:, 0]
    return high - low < MIN_GAP / 2


def _largest(maps: Tensor, window: int) -> Tensor:
    """Maxima of windows, first down and then across, which is much faster on large maps than both at once."""
    return F.max_pool2d(F.max_pool2d(maps, (window, 1), 1), (1, window), 1)


def _draw_points(
    rng: np.random.Generator, near: np.ndarray, allowed: np.ndarray, objects: np.ndarray, count: int, hard: bool
) -> list[tuple[int, int]] | None:
    """Draw `count` pixels (y, x) that keep the rules, the nearest first; None if the draw leads nowhere.

    In an easy set, the nearest is the lowest in the image. In a hard set, at least the second is lower.
    """
    rows, columns = np.indices(near.shape)
    free, chosen = allowed.copy(), list[tuple[int, int]]()
    for number in range(count):
        room = free
        if hard and number == 0:  # a farther pixel must exist somewhere below
            farthest = np.where(allowed, near, np.inf).min(1)  # per row
            below = np.append(np.minimum.accumulate(farthest[::-1])[-2::-1], np.inf)  # over the rows below
            room = free & (near - below[:, None] >= MIN_GAP)
        elif hard and number == 1:
            room = free & (rows > chosen[0][0])
        on_objects = room & objects
        places = np.argwhere(on_objects if on_objects.any() and rng.random() < 0.65 else room)
        if not len(places):
            return None
        y, x = (int(v) for v in places[rng.integers(len(places))])
        chosen.append((y, x))
        free &= (rows - y) ** 2 + (columns - x) ** 2 >= (MIN_SPACING * near.shape[0]) ** 2
        free &= np.abs(near - near[y, x]) >= MIN_GAP
        if number == 0:
            free &= near < near[y, x]
            free &= hard | (rows < y)
    return chosen


def choose_markers(scene: Scene, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """Choose points (count, 2) for markers on a scene, in random order; None if the scene has no room for them.

    Markers are at least `MIN_SPACING` and `MIN_GAP` apart, away from depth edges, and mostly on objects. In half of the
    sets, if the scene allows it, the nearest marker is not the lowest in the image, so that height does not give the
    answer away (as in HardBLINK).
    """
    if not 2 <= count <= len(POINT_LETTERS):
        raise ValueError(f"the number of markers must be 2 to {len(POINT_LETTERS)}, got {count}")
    near_map = nearness(scene.depth[None])
    size = near_map.shape[-1]
    allowed = smooth_mask(near_map, max(3, size * 5 // 80 | 1))[0].numpy()
    margin = round(_MARGIN * size)
    inner = np.zeros_like(allowed)
    inner[margin : size - margin, margin : size - margin] = True
    near, objects = near_map[0].numpy(), (scene.object_ids > 0).numpy()
    hard = bool(rng.random() < 0.5)
    for wanted in [hard] * _DRAWS + [not hard] * _DRAWS:
        chosen = _draw_points(rng, near, allowed & inner, objects, count, wanted)
        if chosen is not None:
            points = np.array([[(x + 0.5) / size, (y + 0.5) / size] for y, x in chosen], dtype=np.float32)
            return points[rng.permutation(count)]
    return None


def scatter_markers(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Places (x, y) for `count` markers, (count, 2): pixel centres anywhere on an image of `size`, but apart.

    Reading a marker takes no depth, so the rules of depth questions (`choose_markers`), which took half of the time of
    making a batch, are left out.
    """
    margin = round(0.08 * size)
    points: list[np.ndarray] = []
    while len(points) < count:
        point = (rng.integers(margin, size - margin, size=2) + 0.5) / size
        if all(np.linalg.norm(point - other) >= MIN_SPACING for other in points):
            points.append(point)
    return np.array(points, dtype=np.float32)


def marker_nearness(depth: Tensor, points: np.ndarray) -> np.ndarray:
    """Nearness (count,) of a depth map (H, W) at `points` (count, 2) in [0, 1]."""
    near = nearness(depth[None])[0].numpy()
    height, width = near.shape
    columns = np.clip((points[:, 0] * width).astype(int), 0, width - 1)
    rows = np.clip((points[:, 1] * height).astype(int), 0, height - 1)
    return near[rows, columns]


def disc_radius(height: int, width: int) -> float:
    """Radius of a marker in pixels, on an image of this size."""
    return max(4.0, _DISC_RADIUS * min(height, width))


def lettered(image: Image.Image, points: Sequence[Sequence[float]]) -> Image.Image:
    """Return a copy of an image with lettered discs centred on points (x, y) in [0, 1]. An image that is too small for
    letters is enlarged."""
    if (least := min(image.size)) < _LETTERED:
        image = image.resize((-(-_LETTERED // least) * image.width, -(-_LETTERED // least) * image.height))
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return Image.fromarray(draw_markers(pixels, np.asarray(points, dtype=np.float32)).numpy())


def draw_markers(image: Tensor, points: np.ndarray) -> Tensor:
    """Return a copy of `image` (H, W, 3) uint8 with a lettered disc centred on each of `points` (count, 2)."""
    out = image.clone()
    height, width = out.shape[:2]
    radius = disc_radius(height, width)
    scale = max(1, round(min(height, width) * 5 / 80 / 5))
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None] + 0.5
    for letter, (x, y) in zip(POINT_LETTERS, points, strict=False):
        distance = ((rows - y * height) ** 2 + (columns - x * width) ** 2).sqrt()
        out[distance <= radius] = torch.tensor([20, 20, 20], dtype=torch.uint8)
        glyph = torch.tensor([[c == "#" for c in line] for line in _GLYPHS[letter]])
        glyph = glyph.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        top = min(max(int(y * height - glyph.shape[0] / 2 + 0.5), 0), height - glyph.shape[0])
        left = min(max(int(x * width - glyph.shape[1] / 2 + 0.5), 0), width - glyph.shape[1])
        out[top : top + glyph.shape[0], left : left + glyph.shape[1]][glyph] = 255
    return out
