"""A single scene, from a batch or a store: questions, captions and markers are made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from perception.scenes.render import SceneBatch, SceneObject
from perception.scenes.store import SceneStore

_BLURRED = 4
"""side of the image that a canvas is a blurred copy of"""


@dataclass(frozen=True)
class Scene:
    """An image with its exact depth and objects."""

    image: Tensor
    """(H, W, 3) uint8"""
    depth: Tensor
    """(H, W) float32, metres"""
    object_ids: Tensor
    """(H, W) int; 0 is background, k is `objects[k - 1]`"""
    objects: list[SceneObject]

    @classmethod
    def from_batch(cls, batch: SceneBatch, index: int) -> Scene:
        return cls(batch.images[index], batch.depth[index], batch.object_ids[index].long(), batch.objects[index])

    @classmethod
    def from_store(cls, store: SceneStore, index: int) -> Scene:
        return cls(
            torch.from_numpy(store.images[index].copy()),
            torch.from_numpy(store.depth[index].astype("float32")),
            torch.from_numpy(store.object_ids[index].astype("int64")),
            store.objects[index],
        )

    def mask_of(self, number: int) -> NDArray[np.bool_]:
        """Mask (H, W) of the visible pixels of `objects[number - 1]`."""
        return self.object_ids.numpy() == number

    def flipped(self) -> Scene:
        """The mirror image, with objects renumbered in row-major order of their boxes."""
        mirrored = []
        for number, item in enumerate(self.objects, start=1):
            x1, y1, x2, y2 = item.box_xyxy
            mirrored.append((number, replace(item, box_xyxy=(1 - x2, y1, 1 - x1, y2))))
        mirrored.sort(key=lambda pair: (pair[1].box_xyxy[1], pair[1].box_xyxy[0]))
        renumber = torch.zeros(len(mirrored) + 1, dtype=torch.long)
        for new, (old, _) in enumerate(mirrored, start=1):
            renumber[old] = new
        return Scene(
            self.image.flip(1), self.depth.flip(1), renumber[self.object_ids.flip(1)], [item for _, item in mirrored]
        )

    def zoomed_out(self, scale: tuple[float, float], place: tuple[float, float]) -> Scene:
        """The image made smaller and put on a blurred copy of itself, with the boxes of its objects there.

        Such images teach a detector about smaller things in other places (Liu et al., SSD, ECCV 2016, section 3.6).
        There is no depth map and no mask of the whole canvas: those of the new scene are empty.

        Args:
            scale: width and height of the image on the canvas, in (0, 1] of it.
            place: of the free space, the share on the left and at the top, in [0, 1].
        """
        size = self.image.shape[:2]
        pixels = self.image.permute(2, 0, 1)[None].float()
        height, width = (max(1, round(side * share)) for side, share in zip(size, reversed(scale), strict=True))
        top, left = (
            round((side - own) * share) for side, own, share in zip(size, (height, width), reversed(place), strict=True)
        )
        canvas = F.interpolate(F.adaptive_avg_pool2d(pixels, _BLURRED), size, mode="bilinear")
        small = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        canvas[..., top : top + height, left : left + width] = small
        moved = []
        for item in self.objects:
            x1, y1, x2, y2 = item.box_xyxy
            box = (
                (left + x1 * width) / size[1],
                (top + y1 * height) / size[0],
                (left + x2 * width) / size[1],
                (top + y2 * height) / size[0],
            )
            moved.append(replace(item, box_xyxy=box))
        image = canvas[0].permute(1, 2, 0).round().to(torch.uint8)
        return Scene(image, self.depth[:0], self.object_ids[:0], moved)
