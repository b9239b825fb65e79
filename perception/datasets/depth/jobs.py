"""Folders of depth maps to files of codes and back: in shards, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.progress import track
from torch import Tensor

from perception.datasets.depth.code_files import DepthCodes, check_ending
from perception.datasets.depth.files import DepthFormat, depth_files, read_depth
from perception.tokenizers.depth import DepthTokenizer
from vqvae import VQVAE
from vqvae.normalisation import nearness_to_depth

FILES_A_PART = 64
FORMATS = ("npy", "png", "color")
"""of decoded maps: float32 in the unit of the input, 16-bit millimetres, a coloured picture"""
_LARGEST_PNG = 65.535  # metres


def tokenize(
    source: Path,
    out: Path,
    model: VQVAE,
    meant: DepthFormat = DepthFormat(),  # noqa: B008
    batch_size: int = 32,
    shard: tuple[int, int] = (0, 1),
) -> DepthCodes:
    """Encodes a depth file, or all beneath a folder, and writes their codes to `out` (.parquet, .npy or .txt).

    What is done is kept in `out`.parts until all is: a job that is killed or stopped by a bad file goes on from there.

    Args:
        shard: (i, n): only files i, i + n, i + 2 n .. of the sorted list, for n jobs side by side.

    Raises:
        ValueError: naming the file, for one that cannot be read or holds no valid pixel.
    """
    check_ending(out)
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be i/n with 0 <= i < n, got {shard[0]}/{shard[1]}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    root = source if source.is_dir() else source.parent
    files = depth_files(source)[shard[0] :: shard[1]]
    if not files:
        raise ValueError(f"shard {shard[0]}/{shard[1]} of {source} is empty; make fewer shards")
    plan = {"files": [str(f.relative_to(root)) for f in files], "tokenizer": model.fingerprint(), **asdict(meant)}
    parts = _parts_folder(out, plan)
    starts = range(0, len(files), FILES_A_PART)
    for start in track(starts, description="encoding", transient=True, disable=len(starts) < 2):
        part = parts / f"part-{start // FILES_A_PART:05d}.npy"
        if not part.exists():
            maps = _maps(root, files[start : start + FILES_A_PART], meant)
            encode_maps(maps, model, batch_size).write(part)
    codes = DepthCodes.joined([DepthCodes.read(part) for part in sorted(parts.glob("part-*.npy"))])
    codes.write(out)
    shutil.rmtree(parts)
    return codes


def _parts_folder(out: Path, plan: dict) -> Path:
    """The folder of what is done of this job; of another job is an error."""
    parts = out.with_name(out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    file = parts / "plan.json"
    if file.exists() and json.loads(file.read_text()) != plan:
        raise ValueError(f"{parts} is what another job has done so far (other files or settings); delete it, or --out")
    file.write_text(json.dumps(plan))
    return parts


def _maps(root: Path, files: Sequence[Path], meant: DepthFormat) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        for suffix, depth in read_depth(file, meant):
            yield file.relative_to(root).as_posix() + suffix, depth


def encode_maps(maps: Iterator[tuple[str, Tensor]], model: VQVAE, batch_size: int) -> DepthCodes:
    """Codes of named depth maps (H, W), maps of one size that follow each other in one batch.

    Raises:
        ValueError: naming the map that holds no valid pixel.
    """
    names: list[str] = []
    rows: list[tuple[Tensor, Tensor, Tensor]] = []
    waiting: list[Tensor] = []

    def encode() -> None:
        depth = torch.stack(waiting)  # (b, H, W)
        sizes = torch.tensor([depth.shape[1:]] * len(depth))
        rows.append((model.to_sequence(model.encode(depth)).cpu(), model.normalise(depth).depth_range.cpu(), sizes))
        waiting.clear()

    device = next(model.parameters()).device
    for name, depth in maps:
        if not bool((depth.isfinite() & (depth > 0)).any()):
            raise ValueError(f"{name} holds no valid depth (finite and above 0); take the file out, or mend it")
        if waiting and (waiting[0].shape != depth.shape or len(waiting) == batch_size):
            encode()
        names.append(name)
        waiting.append(depth.to(device))
    encode()
    codes, ranges, sizes = (torch.cat(tensors).numpy() for tensors in zip(*rows, strict=True))
    config = model.config
    grid = (config.grid_size, config.grid_size)
    return DepthCodes(
        tuple(names), codes, ranges.astype(np.float64), sizes, model.fingerprint(), config.codebook_size, grid
    )


def detokenize(
    codes: DepthCodes,
    folder: Path,
    model: VQVAE,
    form: str = "npy",
    batch_size: int = 32,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> list[Path]:
    """Decodes every map to a file of its name in `folder`, at its own size and in its own unit; returns the files.

    Args:
        decode: sequences of codes (b, h*w) to nearness (b, S, S), in place of the tokenizer's own decoder.

    Raises:
        ValueError: for codes of another tokenizer, an unknown form, or depth that 16-bit millimetres cannot hold.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
    if codes.tokenizer != model.fingerprint():
        raise ValueError(
            f"these codes were made by tokenizer {codes.tokenizer}, this one is {model.fingerprint()}; "
            "decode with the one that made them"
        )
    written = []
    device = next(model.parameters()).device
    for start in track(range(0, len(codes.names), batch_size), description="decoding", transient=True):
        chunk = slice(start, start + batch_size)
        nearness = (decode or model.decode)(torch.from_numpy(codes.codes[chunk]).to(device))  # (b, S, S)
        for index, name in enumerate(codes.names[chunk], start):
            size = (int(codes.sizes[index, 0]), int(codes.sizes[index, 1]))
            near = nearness[None, None, index - start]  # (1, 1, S, S)
            values = F.interpolate(near, size=size, mode="bilinear", antialias=True)[:, 0]  # (1, H, W)
            if form != "color":
                depth_range = torch.from_numpy(codes.ranges[index : index + 1]).float().to(device)
                values = nearness_to_depth(values, depth_range, model.config)
            written.append(_write_map(values[0].cpu(), folder / name.replace(":", "-"), form))
    return written


def _write_map(values: Tensor, path: Path, form: str) -> Path:
    path = path.with_name(path.name + {"npy": ".npy", "png": ".png", "color": ".color.png"}[form])
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "npy":
        np.save(path, values.numpy())
    elif form == "png":
        if float(values.max()) > _LARGEST_PNG:
            raise ValueError(
                f"{path}: depth up to {float(values.max()):g} m does not fit 16-bit millimetres (65.5 m); write npy"
            )
        Image.fromarray((values.numpy() * 1000).round().astype(np.uint16)).save(path)
    else:
        DepthTokenizer.draw(values).save(path)
    return path
