"""Encode folders of depth maps to files of codes, and decode them. Encoding can be resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from perception.datasets.depth.code_files import DepthCodes, check_ending
from perception.datasets.depth.files import DepthFormat, depth_files, read_depth, scale_hint, write_exr
from perception.datasets.shards import PLAN, Plan
from perception.tokenizers.depth import DepthTokenizer
from vqvae import VQVAE
from vqvae.normalisation import nearness_to_depth

FILES_PER_PART = 64
FORMATS = {"npy": ".npy", "tiff": ".tiff", "exr": ".exr", "png": ".png", "color": ".color.png"}
"""Endings of decoded maps: float32 in the unit of the input, PNG with 16-bit millimetres, or a coloured picture"""
_PNG_RANGE = (0.05, 65.535)  # metres; nearer than that, millimetres are coarser than 1 %


def tokenize(
    source: Path,
    out: Path,
    model: VQVAE,
    meant: DepthFormat = DepthFormat(),  # noqa: B008
    batch_size: int = 32,
    shard: tuple[int, int] = (0, 1),
) -> DepthCodes:
    """Encode a depth file, or all depth files beneath a folder, and write the codes to `out` (.parquet, .npy, .txt).

    Finished parts are kept in the folder `out`.parts until the end, so that a job that was killed, or stopped at a bad
    file, goes on from there.

    Args:
        shard: (i, n) encodes only files i, i + n, i + 2 n, .. of the sorted list, so that n jobs can run side by side.

    Raises:
        ValueError: naming the file, if it cannot be read or holds no valid pixel.
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
    settings = {"files": [str(f.relative_to(root)) for f in files], "tokenizer": model.fingerprint(), **asdict(meant)}
    settings["range_percentile"] = model.config.range_percentile
    parts = out.with_name(out.name + ".parts")
    Plan(parts / PLAN, settings).begin()
    starts = range(0, len(files), FILES_PER_PART)
    for start in track(starts, description="encoding", transient=True, disable=len(starts) < 2):
        part = parts / f"part-{start // FILES_PER_PART:05d}.npy"
        if not part.exists():
            maps = _maps(root, files[start : start + FILES_PER_PART], meant)
            encode_maps(maps, model, batch_size).write(part)
    codes = DepthCodes.joined([DepthCodes.read(part) for part in sorted(parts.glob("part-*.npy"))])
    codes.write(out)
    shutil.rmtree(parts)
    _print_hint(codes, {f.relative_to(root).as_posix(): f for f in files}, meant)
    return codes


def _print_hint(codes: DepthCodes, files: Mapping[str, Path], meant: DepthFormat) -> None:
    """Say, once, if the farthest map looks as if its numbers meant something else."""
    row = int(codes.ranges[:, 1].argmax())
    file = next((path for name, path in files.items() if codes.names[row] in (name, f"{name}:0")), None)
    hint = None if file is None else scale_hint(file, float(codes.ranges[row, 1]), meant)
    if hint is not None:
        Console(stderr=True).print(f"note: {hint}", markup=False, highlight=False, soft_wrap=True)


def _maps(root: Path, files: Sequence[Path], meant: DepthFormat) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        for suffix, depth in read_depth(file, meant):
            yield file.relative_to(root).as_posix() + suffix, depth


def encode_maps(maps: Iterator[tuple[str, Tensor]], model: VQVAE, batch_size: int) -> DepthCodes:
    """Encode named depth maps (H, W); consecutive maps of one size share a batch.

    Raises:
        ValueError: naming a map that holds no valid pixel.
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
            raise ValueError(f"{name} holds no valid depth (finite and above 0); remove the file, or correct it")
        if waiting and (waiting[0].shape != depth.shape or len(waiting) == batch_size):
            encode()
        names.append(name)
        waiting.append(depth.to(device))
    encode()
    codes, ranges, sizes = (torch.cat(tensors).numpy() for tensors in zip(*rows, strict=True))
    config = model.config
    grid = (config.grid_size, config.grid_size)
    made_by = (model.fingerprint(), config.codebook_size, grid, config.range_percentile)
    return DepthCodes(tuple(names), codes, ranges.astype(np.float64), sizes, *made_by)


def detokenize(
    codes: DepthCodes,
    folder: Path,
    model: VQVAE,
    form: str = "npy",
    batch_size: int = 32,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> list[Path]:
    """Decode every map to a file in `folder`, at its own size and in its own unit; returns the files.

    Args:
        decode: decodes sequences of codes (b, h*w) to nearness (b, S, S); None for the tokenizer's decoder.

    Raises:
        ValueError: if another tokenizer made the codes, the form is unknown, or a map does not fit 16-bit millimetres.
    """
    if form not in FORMATS:
        raise ValueError(f"unknown format {form!r}; known: {', '.join(FORMATS)}")
    if codes.tokenizer != model.fingerprint():
        raise ValueError(
            f"these codes were made by tokenizer {codes.tokenizer}, this one is {model.fingerprint()}; "
            "decode with the one that made them"
        )
    if form == "png":
        _check_millimetres(codes)
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


def _check_millimetres(codes: DepthCodes) -> None:
    """Raise ValueError naming the first map whose depth 16-bit millimetres cannot hold."""
    least, most = _PNG_RANGE
    for name, (near, far) in zip(codes.names, codes.ranges.tolist(), strict=True):
        if near < least or far > most + 1e-3:
            raise ValueError(
                f"{name}: depth from {near:.4g} to {far:.4g} does not fit 16-bit millimetres ({least} to {most} m); "
                "write tiff, exr or npy, or give the scale in metres when tokenizing"
            )


def _write_map(values: Tensor, path: Path, form: str) -> Path:
    path = path.with_name(path.name + FORMATS[form])
    path.parent.mkdir(parents=True, exist_ok=True)
    if form == "npy":
        np.save(path, values.numpy())
    elif form == "png":
        Image.fromarray((values.numpy() * 1000).round().clip(0, 65535).astype(np.uint16)).save(path)
    elif form == "tiff":
        Image.fromarray(values.numpy()).save(path)
    elif form == "exr":
        write_exr(path, values.numpy())
    else:
        DepthTokenizer.draw(values).save(path)
    return path
