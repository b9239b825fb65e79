"""Lettered markers on images, as BLINK's relative-depth questions draw them, and where to put them.

Points are (x, y) in [0, 1] of the image. Relative depth is *nearness*: inverse depth, min-max per image, 1 = nearest.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perception.scenes.scene import Scene

LETTERS = "ABCDE"
MIN_GAP = 20 / 255
"""Smallest difference in nearness between any two markers of a question."""
MIN_SPACING = 0.17
"""Smallest distance between two markers, as a share of the image's side: discs never touch."""
_MARGIN = 0.08
_DISC_RADIUS = 0.066

_GLYPHS = {  # 5 x 5
    "A": (".###.", "#...#", "#####", "#...#", "#...#"),
    "B": ("####.", "#...#", "####.", "#...#", "####."),
    "C": (".####", "#....", "#....", "#....", ".####"),
    "D": ("####.", "#...#", "#...#", "#...#", "####."),
    "E": ("#####", "#....", "####.", "#....", "#####"),
}


def nearness(depth: Tensor) -> Tensor:
    """Relative inverse depth of maps (B, H, W): 1 at the nearest valid pixel of each map, 0 at the farthest."""
    inverse = 1 / depth
    low, high = inverse.amin((1, 2), keepdim=True), inverse.amax((1, 2), keepdim=True)
    return (inverse - low) / (high - low).clamp_min(1e-9)


def smooth_mask(near: Tensor, window: int) -> Tensor:
    """Pixels (B, H, W) around which a window of `window` pixels holds no jump in nearness above half of `MIN_GAP`."""
    padded = F.pad(near[:, None], (window // 2,) * 4, mode="replicate")
    high, low = _largest(padded, window)[:, 0], -_largest(-padded, window)[:, 0]
    return high - low < MIN_GAP / 2


def _largest(maps: Tensor, window: int) -> Tensor:
    """Maxima of windows, down and then across: the same as in one go, in a fraction of the time on large maps."""
    return F.max_pool2d(F.max_pool2d(maps, (window, 1), 1), (1, window), 1)


def _draw_points(rng: np.random.Generator, near: np.ndarray, allowed: np.ndarray, objects: np.ndarray, count: int):
    """One set of `count` points that keeps the rules, or None after a few tries."""
    size = near.shape[0]
    places, on_objects = np.argwhere(allowed), np.argwhere(allowed & objects)
    if len(places) < 50:
        return None
    chosen: list[tuple[int, int]] = []
    for _ in range(60):
        pool = on_objects if len(on_objects) and rng.random() < 0.65 else places
        y, x = pool[rng.integers(len(pool))]
        apart = all((y - v) ** 2 + (x - u) ** 2 >= (MIN_SPACING * size) ** 2 for v, u in chosen)
        if apart and all(abs(near[y, x] - near[v, u]) >= MIN_GAP for v, u in chosen):
            chosen.append((int(y), int(x)))
            if len(chosen) == count:
                return chosen
    return None


def choose_markers(scene: Scene, count: int, rng: np.random.Generator) -> np.ndarray | None:
    """Places for `count` markers on a scene: (count, 2) points (x, y), or None where the scene has no room.

    Markers stand at least `MIN_SPACING` and `MIN_GAP` apart, off depth edges, mostly on objects. In half of the sets
    the nearest marker is not the lowest in the image, so that height alone does not answer (HardBLINK's point). Letters
    are balanced: the order is random.
    """
    if not 2 <= count <= len(LETTERS):
        raise ValueError(f"count of markers must be 2 to {len(LETTERS)}, got {count}")
    near_map = nearness(scene.depth[None])
    size = near_map.shape[-1]
    allowed = smooth_mask(near_map, max(3, size * 5 // 80 | 1))[0].numpy()
    margin = round(_MARGIN * size)
    inner = np.zeros_like(allowed)
    inner[margin : size - margin, margin : size - margin] = True
    near, objects = near_map[0].numpy(), (scene.object_ids > 0).numpy()
    want_hard, fallback = rng.random() < 0.5, None
    for _ in range(6):
        chosen = _draw_points(rng, near, allowed & inner, objects, count)
        if chosen is None:
            continue
        nearest = max(chosen, key=lambda p: near[p])
        is_hard = nearest != max(chosen)  # (y, x): the largest y is the lowest in the image
        fallback = chosen
        if is_hard == want_hard:
            break
    if fallback is None:
        return None
    points = np.array([[(x + 0.5) / size, (y + 0.5) / size] for y, x in fallback], dtype=np.float32)
    return points[rng.permutation(count)]


def marker_nearness(depth: Tensor, points: np.ndarray) -> np.ndarray:
    """Nearness (count,) of one depth map (H, W) at `points` (count, 2) in [0, 1]."""
    near = nearness(depth[None])[0].numpy()
    height, width = near.shape
    columns = np.clip((points[:, 0] * width).astype(int), 0, width - 1)
    rows = np.clip((points[:, 1] * height).astype(int), 0, height - 1)
    return near[rows, columns]


def disc_radius(height: int, width: int) -> float:
    """Pixels from the centre of a marker to its rim, on an image of this size."""
    return max(4.0, _DISC_RADIUS * min(height, width))


def draw_markers(image: Tensor, points: np.ndarray) -> Tensor:
    """A copy of `image` (H, W, 3) uint8 with a lettered disc centred on each of `points` (count, 2) in [0, 1]."""
    out = image.clone()
    height, width = out.shape[:2]
    radius = disc_radius(height, width)
    scale = max(1, round(min(height, width) * 5 / 80 / 5))
    rows = torch.arange(height)[:, None] + 0.5
    columns = torch.arange(width)[None] + 0.5
    for letter, (x, y) in zip(LETTERS, points, strict=False):
        distance = ((rows - y * height) ** 2 + (columns - x * width) ** 2).sqrt()
        out[distance <= radius] = torch.tensor([20, 20, 20], dtype=torch.uint8)
        glyph = torch.tensor([[c == "#" for c in line] for line in _GLYPHS[letter]])
        glyph = glyph.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        top = min(max(int(y * height - glyph.shape[0] / 2 + 0.5), 0), height - glyph.shape[0])
        left = min(max(int(x * width - glyph.shape[1] / 2 + 0.5), 0), width - glyph.shape[1])
        out[top : top + glyph.shape[0], left : left + glyph.shape[1]][glyph] = 255
    return out
