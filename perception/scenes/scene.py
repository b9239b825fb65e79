"""A single scene, from a batch or a store: questions, captions and markers are made from it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.scenes.render import SceneBatch, SceneObject
from perception.scenes.store import SceneStore


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
