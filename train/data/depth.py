"""Depth maps of any files, read once, resized and kept as one memory map that every training run reads.

Made in parts; a build that is killed goes on where it stopped. `maps.json` is written last, so a folder without it is
half built. Files and rows that cannot be read are named as they come and at the end, and left out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import track
from torch import Tensor

from perception.datasets.depth.files import DepthFormat, depth_files, read_depth
from perception.datasets.depth.tables import read_depth_table, table_files
from vqvae.normalisation import resize_masked, usable_pixels

FILES_A_PART = 64
_NAMED = 10


@dataclass(frozen=True)
class DepthStore:
    """N depth maps of one size. `depth` is a memory map: reading a map copies that map only."""

    folder: Path
    depth: np.ndarray
    """(N, S, S) float32, in the unit of the files; NaN in holes"""
    names: tuple[str, ...]
    """file beneath the source, and row or number in it"""
    skipped: dict[str, str]
    """what could not be used, and why"""

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def build(
        cls, folder: str | Path, source: str | Path, meant: DepthFormat, image_size: int, inverse: bool = True
    ) -> DepthStore:
        """Reads all depth maps of `source` (a folder of depth files or of parquet tables, or one such file) into
        `folder` and opens the result; a finished store of the same files, format and size is opened as it is.

        Args:
            inverse: whether maps are resized as inverse depth, as a tokenizer of inverse depth does, or as depth.

        Raises:
            ValueError: for a source without usable maps, or a folder that holds other ones.
        """
        folder, source = Path(folder), Path(source)
        tables = table_files(source) if source.exists() else []
        files = tables or depth_files(source)
        root = source if source.is_dir() else source.parent
        plan: dict[str, Any] = {"files": [f.relative_to(root).as_posix() for f in files], "image_size": image_size}
        plan |= {"inverse": inverse, **asdict(meant)}
        if (folder / "scenes.json").exists():
            raise ValueError(f"{folder} holds rendered scenes; name another folder for the maps of {source}")
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of several processes of one training the first reads, the others wait
            if not (folder / "maps.json").exists():
                _read_all(folder, root, files, meant, plan)
        found = json.loads((folder / "maps.json").read_text())
        if found["plan"] != plan:
            raise ValueError(f"{folder} holds maps of other files or settings; delete it or name another folder")
        depth = np.load(folder / "depth.npy", mmap_mode="r")
        return cls(folder, depth, tuple(found["names"]), found["skipped"])


def _read_all(folder: Path, root: Path, files: Sequence[Path], meant: DepthFormat, plan: dict[str, Any]) -> None:
    """Reads what is missing of the parts, joins them, and says what was left out."""
    console, parts = Console(stderr=True), folder / "parts"
    parts.mkdir(exist_ok=True)
    planned = parts / "plan.json"
    if planned.exists() and json.loads(planned.read_text()) != plan:
        raise ValueError(f"{folder} is a half-built store of other maps; delete it or name another folder")
    planned.write_text(json.dumps(plan))
    starts = range(0, len(files), FILES_A_PART)
    for start in track(starts, description="reading depth maps", transient=True, disable=len(starts) < 2):
        path = parts / f"{start // FILES_A_PART:06d}.npz"
        if not path.exists():
            _read_part(path, root, files[start : start + FILES_A_PART], meant, plan, console)
    names, skipped = _join(folder, sorted(parts.glob("*.npz")), plan["image_size"])
    listed = "".join(f"\n  {name}: {reason}" for name, reason in list(skipped.items())[:_NAMED])
    more = f"\n  and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    if not names:
        shutil.rmtree(parts)
        (folder / "depth.npy").unlink()
        raise ValueError(f"{root} holds no usable depth map; {len(skipped)} could not be used:{listed}{more}")
    said = f"{len(names)} depth maps of {len(files)} file(s); left out: {len(skipped)}{listed}{more}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    partial = folder / "maps.json.partial"
    partial.write_text(json.dumps({"plan": plan, "names": names, "skipped": skipped}))
    partial.replace(folder / "maps.json")
    shutil.rmtree(parts)


def _maps_of(file: Path, meant: DepthFormat) -> Iterator[tuple[str, Tensor | ValueError]]:
    """(suffix or row, map) of a file; a ValueError in place of what cannot be read."""
    try:
        yield from (read_depth_table if file.suffix.lower() == ".parquet" else read_depth)(file, meant)
    except ValueError as error:
        yield "", error


def _read_part(
    path: Path, root: Path, files: Sequence[Path], meant: DepthFormat, plan: dict[str, Any], console: Console
) -> None:
    size = plan["image_size"]
    maps, names, skipped = list[np.ndarray](), list[str](), dict[str, str]()
    for file in files:
        for suffix, depth in _maps_of(file, meant):
            name = file.relative_to(root).as_posix() + (suffix if suffix[:1] in ("", ":") else f":{suffix}")
            if isinstance(depth, Tensor) and not bool(usable_pixels(depth).any()):
                depth = ValueError("no valid pixel: valid means finite and greater than 0")
            if isinstance(depth, Tensor):
                maps.append(_resized(depth, size, plan["inverse"]).numpy())
                names.append(name)
            else:
                skipped[name] = " ".join(str(depth).split())
                console.print(f"left out: {name}: {skipped[name]}", markup=False, highlight=False, soft_wrap=True)
    stacked = np.stack(maps) if maps else np.zeros((0, size, size), np.float32)
    said = np.frombuffer(json.dumps({"names": names, "skipped": skipped}).encode(), dtype=np.uint8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as stream:
        np.savez(stream, depth=stacked, said=said)
    partial.replace(path)


def _resized(depth: Tensor, size: int, inverse: bool) -> Tensor:
    """A map (H, W) as (S, S), NaN in holes, which do not bleed into what was measured."""
    valid = usable_pixels(depth)
    values = torch.where(valid, 1 / depth if inverse else depth, 0)
    values, valid = resize_masked(values[None], valid[None], (size, size))
    return torch.where(valid, 1 / values if inverse else values, torch.nan)[0]


def _join(folder: Path, parts: Sequence[Path], size: int) -> tuple[list[str], dict[str, str]]:
    """Turns the parts into `depth.npy`; returns the maps' names, and what was left out."""
    names, skipped, counts = list[str](), dict[str, str](), list[int]()
    for path in parts:
        with np.load(path) as part:
            said = json.loads(part["said"].tobytes())
        names += said["names"]
        skipped |= said["skipped"]
        counts.append(len(said["names"]))
    shape = (max(1, len(names)), size, size)
    joined = np.lib.format.open_memmap(folder / "depth.npy", mode="w+", dtype=np.float32, shape=shape)
    start = 0
    for path, count in zip(parts, counts, strict=True):
        with np.load(path) as part:
            joined[start : start + count] = part["depth"]
        start += count
    joined.flush()
    return names, skipped
