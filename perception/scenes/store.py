"""Scenes on disk: rendered once by several processes, read as memory maps by every training run.

A store is a folder of plain `.npy` arrays and one `scenes.json`, made in shards; a build that is killed goes on where
it stopped. The JSON is written last, so a folder without it is half built and says so.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from rich.progress import Progress

from perception.scenes.render import SceneObject, render_scenes

SHARD = 512
_BATCH = 32
_ARRAYS = ("images", "depth", "object_ids")


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.npz"


def _fields(item: SceneObject) -> list[str | float]:
    box = (round(value, 5) for value in item.box_xyxy)
    return [item.color, item.shape, *box, round(item.depth, 4), round(item.visible_share, 3)]


def _render_shard(job: tuple[Path, int, list[int], str, int]) -> int:
    folder, index, seeds, style, image_size = job
    parts = [render_scenes(seeds[i : i + _BATCH], style, image_size) for i in range(0, len(seeds), _BATCH)]
    objects = [[_fields(item) for item in row] for part in parts for row in part.objects]
    path = _shard_path(folder, index)
    temporary = path.with_suffix(f".tmp{os.getpid()}.npz")
    np.savez(
        temporary,
        images=torch.cat([p.images for p in parts]).numpy(),
        depth=torch.cat([p.depth for p in parts]).to(torch.float16).numpy(),
        object_ids=torch.cat([p.object_ids for p in parts]).to(torch.uint8).numpy(),
        objects=np.frombuffer(json.dumps(objects).encode(), dtype=np.uint8),
    )
    temporary.replace(path)
    return len(seeds)


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
    """(N, H, W) uint8, 0 background"""
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
        """Renders `seeds` into `folder` with `workers` processes (default: one a core) and opens the result.

        A finished store of the same seeds, style and size is opened as it is; one of others is an error.
        """
        folder = Path(folder)
        wanted = {"style": style, "image_size": image_size, "seeds": [int(s) for s in seeds]}
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of several processes of one training the first renders, the others wait
            if not (folder / "scenes.json").exists():
                cls._render(folder, wanted, workers)
        store = cls.open(folder)
        same = store.style == style and list(store.seeds) == wanted["seeds"] and store.images.shape[1] == image_size
        if not same:
            raise ValueError(f"{folder} holds other scenes than asked for; delete it or name another folder")
        return store

    @classmethod
    def _render(cls, folder: Path, wanted: dict, workers: int | None) -> None:
        """Renders what is missing of the shards, then joins them."""
        plan = folder / "plan.json"
        if plan.exists() and json.loads(plan.read_text()) != wanted:
            raise ValueError(f"{folder} is a half-built store of other scenes; delete it or name another folder")
        plan.write_text(json.dumps(wanted))
        seeds, style, size = wanted["seeds"], wanted["style"], wanted["image_size"]
        shards = [seeds[i : i + SHARD] for i in range(0, len(seeds), SHARD)]
        jobs = [(folder, i, s, style, size) for i, s in enumerate(shards) if not _shard_path(folder, i).exists()]
        with Progress(transient=True) as progress:
            task = progress.add_task(f"rendering {style} scenes", total=sum(len(j[2]) for j in jobs))
            workers = min(workers or os.cpu_count() or 1, max(1, len(jobs)))
            if workers == 1:
                for job in jobs:
                    progress.advance(task, _render_shard(job))
            else:  # "spawn": a forked child of a process that has used torch's threads can hang
                with multiprocessing.get_context("spawn").Pool(workers, torch.set_num_threads, (1,)) as pool:
                    for done in pool.imap_unordered(_render_shard, jobs):
                        progress.advance(task, done)
        cls._join(folder, wanted, len(shards))

    @staticmethod
    def _join(folder: Path, wanted: dict, num_shards: int) -> None:
        """Turns the shards into one memory map an array, then writes the JSON that makes the store valid."""
        total, size = len(wanted["seeds"]), wanted["image_size"]
        shapes = {"images": ((total, size, size, 3), np.uint8), "depth": ((total, size, size), np.float16)}
        shapes["object_ids"] = ((total, size, size), np.uint8)
        maps = {
            name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
            for name, (shape, dtype) in shapes.items()
        }
        objects, start = [], 0
        for index in range(num_shards):
            with np.load(_shard_path(folder, index)) as shard:
                stop = start + len(shard["images"])
                for name, array in maps.items():
                    array[start:stop] = shard[name]
                objects += json.loads(shard["objects"].tobytes())
            start = stop
        for array in maps.values():
            array.flush()
        temporary = folder / "scenes.json.tmp"
        temporary.write_text(json.dumps({**wanted, "objects": objects}))
        temporary.replace(folder / "scenes.json")
        for index in range(num_shards):
            _shard_path(folder, index).unlink()
        (folder / "plan.json").unlink()

    @classmethod
    def open(cls, folder: str | Path) -> SceneStore:
        """Opens a finished store; raises ValueError naming the folder for one that is missing or half built."""
        folder = Path(folder)
        path = folder / "scenes.json"
        if not path.exists():
            raise ValueError(f"{folder} is not a finished scene store (no scenes.json); build it with SceneStore.build")
        data = json.loads(path.read_text())
        objects = [
            [SceneObject(o[0], o[1], (o[2], o[3], o[4], o[5]), o[6], o[7]) for o in row] for row in data["objects"]
        ]
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        return cls(folder, data["style"], tuple(data["seeds"]), objects=objects, **arrays)
