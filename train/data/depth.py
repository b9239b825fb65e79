"""Depth maps from files of any kind, read once, resized, and kept as one memory map that every training run reads.

Files and rows that cannot be used are left out; they are named when they are met and again at the end.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from perception.datasets.depth.files import DepthFormat, depth_files, read_depth
from perception.datasets.depth.tables import read_depth_table, table_files
from perception.datasets.listing import stamps_digest
from perception.datasets.photographs import Photographs
from perception.datasets.store import Part, Store
from vqvae import VQVAEConfig
from vqvae.normalisation import depth_ranges, resize_masked, usable_pixels

FILES_PER_PART = 64
PHOTO_SIZE = 128
"""Side in pixels at which the maps of photographs are kept; parts of them are cut out"""
_NAMED = 10
"""Files left out that the summary names"""


@dataclass(frozen=True)
class DepthStore:
    """N depth maps of one size. `depth` is a memory map: reading a map copies that map only."""

    folder: Path
    depth: np.ndarray
    """(N, S, S) float32, in the unit of the files; NaN in holes"""
    names: tuple[str, ...]
    """file relative to the source, and the row or number in it"""
    skipped: dict[str, str]
    """what was left out, and why"""
    digest: str
    """SHA-256 of the maps; empty in stores of an older version"""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        source: str | Path,
        meant: DepthFormat,
        image_size: int,
        inverse: bool = True,
        range_percentile: float | None = None,
    ) -> DepthStore:
        """Open the store of these depth maps; read them into `folder` first if they are not there, or were replaced.

        Args:
            source: a folder of depth files or of parquet tables, or one such file.
            inverse: whether maps are resized as inverse depth, as a tokenizer of inverse depth does, or as depth.
            range_percentile: ends of each map's range (`VQVAEConfig`), to which it is clamped before it is resized.

        Raises:
            ValueError: if the source has no usable map, or the folder holds a store of something else.
        """
        source = Path(source)
        tables = table_files(source) if source.exists() else []
        files = tables or depth_files(source)
        root = source if source.is_dir() else source.parent
        settings: dict[str, Any] = {"kind": "depth maps", "files": [f.relative_to(root).as_posix() for f in files]}
        settings |= {"image_size": image_size, "inverse": inverse, **asdict(meant)}
        settings["range_percentile"] = range_percentile
        kind = "relative_inverse" if inverse else "relative"
        config = VQVAEConfig(normalisation=kind, range_percentile=range_percentile)
        read = partial(_read_part, root, files, meant, image_size, config)
        num_parts = -(-len(files) // FILES_PER_PART)
        summary = partial(_summarise, root, len(files))
        made_of = stamps_digest(root, files)
        store = Store.build(folder, settings, num_parts, read, "reading depth maps", check=summary, sources=made_of)
        names = tuple(json.loads(line) for line in store.lines)
        skipped = {name: reason for name, reason in store.notes}
        return cls(store.folder, store.arrays["depth"], names, skipped, store.digest)


def photo_maps(folder: str | Path, split: str = "train") -> np.ndarray:
    """Return the depth maps of one part of a folder of photographs, as uint8 (N, M, M), 255 nearest.

    Each is resized to M = 128 pixels per side without regard to its aspect, as a tokenizer does.

    Raises:
        ValueError: see `perception.datasets.photographs.Photographs`.
    """
    photos = Photographs(folder, split)
    maps = np.empty((len(photos), PHOTO_SIZE, PHOTO_SIZE), np.uint8)
    for index in range(len(photos)):
        near = torch.from_numpy(photos.nearness(index))[None]
        near, _ = resize_masked(near, torch.ones_like(near, dtype=torch.bool), (PHOTO_SIZE, PHOTO_SIZE))
        maps[index] = (255 * near[0]).round().numpy()
    return maps


def _summarise(root: Path, num_files: int, num_maps: int, skipped: Sequence[tuple[str, str]]) -> None:
    """Say what was read and what was left out. Raises ValueError if no map can be used."""
    listed = "".join(f"\n  {name}: {reason}" for name, reason in skipped[:_NAMED])
    more = f"\n  and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    if not num_maps:
        raise ValueError(f"{root} holds no usable depth map; {len(skipped)} could not be used:{listed}{more}")
    _say(f"{num_maps} depth maps of {num_files} file(s); left out: {len(skipped)}{listed}{more}")


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _maps_of(file: Path, meant: DepthFormat) -> Iterator[tuple[str, Tensor | ValueError]]:
    """(suffix or row, map) of a file; a ValueError in place of a map that cannot be read."""
    try:
        yield from (read_depth_table if file.suffix.lower() == ".parquet" else read_depth)(file, meant)
    except ValueError as error:
        yield "", error


def _read_part(
    root: Path, files: Sequence[Path], meant: DepthFormat, size: int, config: VQVAEConfig, number: int
) -> Part:
    maps, names, skipped = list[np.ndarray](), list[str](), list[tuple[str, str]]()
    for file in files[number * FILES_PER_PART : (number + 1) * FILES_PER_PART]:
        for suffix, depth in _maps_of(file, meant):
            name = file.relative_to(root).as_posix() + (suffix if suffix[:1] in ("", ":") else f":{suffix}")
            if isinstance(depth, Tensor) and not bool(usable_pixels(depth).any()):
                depth = ValueError("no valid pixel: valid means finite and greater than 0")
            if isinstance(depth, Tensor):
                maps.append(_resized(depth, size, config).numpy())
                names.append(name)
            else:
                skipped.append((name, " ".join(str(depth).split())))
                _say(f"left out: {name}: {skipped[-1][1]}")
    stacked = np.stack(maps) if maps else np.zeros((0, size, size), np.float32)
    return Part({"depth": stacked}, names, skipped)


def _resized(depth: Tensor, size: int, config: VQVAEConfig) -> Tensor:
    """A map (H, W) clamped to its range and resized to (S, S), NaN in holes; neither holes nor wild pixels bleed."""
    inverse, valid = config.normalisation == "relative_inverse", usable_pixels(depth)
    near, far = depth_ranges(depth[None], valid[None], config)[0]
    depth = depth.clamp(near, far)
    values = torch.where(valid, 1 / depth if inverse else depth, 0)
    values, valid = resize_masked(values[None], valid[None], (size, size))
    return torch.where(valid, 1 / values if inverse else values, torch.nan)[0]
