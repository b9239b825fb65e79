"""Rendered scenes on disk: rendered once by several processes, then read as memory maps."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from perception.datasets.store import Part, Store
from perception.scenes.render import SceneObject, render_scenes

SHARD = 512
"""Scenes that are rendered as one part of a store"""
_BATCH = 32


@dataclass(frozen=True)
class SceneStore:
    """N rendered scenes of one style. Arrays are memory maps: reading an item copies that item only."""

    folder: Path
    style: str
    seeds: tuple[int, ...]
    images: np.ndarray
    """(N, H, W, 3) uint8"""
    depth: np.ndarray
    """(N, H, W) float16, metres"""
    object_ids: np.ndarray
    """(N, H, W) uint8; 0 is background"""
    objects: list[list[SceneObject]]

    def __len__(self) -> int:
        return len(self.seeds)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    @classmethod
    def build(
        cls,
        folder: str | Path,
        seeds: Sequence[int],
        style: str = "standard",
        image_size: int = 80,
        workers: int | None = None,
    ) -> SceneStore:
        """Open the store of these scenes; render them into `folder` first if they are not there.

        Args:
            workers: processes that render; None for one per CPU core.

        Raises:
            ValueError: if the folder holds a store of other scenes.
        """
        seeds = [int(seed) for seed in seeds]
        settings = {"kind": "scenes", "style": style, "image_size": image_size, "seeds": seeds}
        shards = [seeds[start : start + SHARD] for start in range(0, len(seeds), SHARD)]
        render = partial(_render_shard, shards, style, image_size)
        title, workers = f"rendering {style} scenes", workers or os.cpu_count() or 1
        return cls._of(Store.build(folder, settings, len(shards), render, title, workers))

    @classmethod
    def open(cls, folder: str | Path) -> SceneStore:
        """Open a finished store. Raises ValueError naming the folder if there is none."""
        return cls._of(Store.open(folder))

    @classmethod
    def _of(cls, store: Store) -> SceneStore:
        objects = [
            [SceneObject(o[0], o[1], (o[2], o[3], o[4], o[5]), o[6], o[7]) for o in json.loads(line)]
            for line in store.lines
        ]
        return cls(
            store.folder, store.settings["style"], tuple(store.settings["seeds"]), objects=objects, **store.arrays
        )


def _render_shard(shards: Sequence[Sequence[int]], style: str, image_size: int, number: int) -> Part:
    seeds = shards[number]
    batches = [render_scenes(seeds[i : i + _BATCH], style, image_size) for i in range(0, len(seeds), _BATCH)]
    arrays = {
        "images": torch.cat([b.images for b in batches]).numpy(),
        "depth": torch.cat([b.depth for b in batches]).to(torch.float16).numpy(),
        "object_ids": torch.cat([b.object_ids for b in batches]).to(torch.uint8).numpy(),
    }
    return Part(arrays, [[_fields(item) for item in row] for batch in batches for row in batch.objects])


def _fields(item: SceneObject) -> list[str | float]:
    box = (round(value, 5) for value in item.box_xyxy)
    return [item.color, item.shape, *box, round(item.depth, 4), round(item.visible_share, 3)]
