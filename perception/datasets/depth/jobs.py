"""Encode folders of depth maps to files of codes, and decode them. Encoding can be resumed."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as DeflateError

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from torch import Tensor

from perception.datasets.depth.code_files import DepthCodes, check_out
from perception.datasets.depth.files import DepthFormat, depth_files, read_depth, scale_hint, write_exr
from perception.datasets.listing import stamp, stamps_digest
from perception.datasets.progress import track
from perception.datasets.shards import locked
from perception.tokenizers.depth import DepthTokenizer
from perception.tokenizers.masks import INSIDE, OUTSIDE
from vqvae import VQVAE
from vqvae.files import write_whole
from vqvae.normalisation import nearness_to_depth

FILES_PER_PART = 64
FORMATS = {"npy": ".npy", "tiff": ".tiff", "exr": ".exr", "png": ".png", "color": ".color.png"}
"""Endings of decoded maps: float32 depth in metres (1 / value of relative nearness), PNG with 16-bit millimetres, or a
coloured picture of nearness"""
_PNG_RANGE = (0.05, 65.535)  # metres; nearer than that, millimetres are coarser than 1 %
_KEYED = (".npz", ".exr", ".mat", ".h5", ".hdf5")
"""Endings of files that can hold several arrays, of which `DepthFormat.key` chooses one"""
_NO_DEPTH = "holds no valid depth (finite and above 0)"


def tokenize(
    source: Path,
    out: Path,
    model: VQVAE,
    meant: DepthFormat = DepthFormat(),  # noqa: B008
    batch_size: int = 32,
    shard: tuple[int, int] = (0, 1),
    glob: str = "",
    skip_bad: bool = False,
    remedy: str = "",
) -> DepthCodes:
    """Encode a depth file, or all depth files beneath a folder, and write the codes to `out` (.parquet, .npy, .txt).

    Finished parts are kept in the folder `out`.parts until the end. A job that was killed, or stopped at a bad file,
    goes on from there: what is used again of them are the files that are still there, unchanged, and for which nothing
    that decides their codes is asked otherwise.

    Args:
        shard: (i, n) encodes only files i, i + n, i + 2 n, .. of the sorted list, so that n jobs can run side by side.
            `join_files` joins what they write.
        glob: pattern of the files that are encoded, as in `files_beneath`.
        skip_bad: leave out what cannot be read or holds no valid pixel, and list it in the file `skipped_list(out)`.
        remedy: what errors about files advise, by the caller's settings; empty: the flag of `perception tokenize`.

    Raises:
        ValueError: naming the file, if it cannot be read or holds no valid pixel; if `out` cannot be written or another
            process writes it; or for a tokenizer of masks.
    """
    check_out(out)
    check_encodes_depth(model)
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard must be i/n with 0 <= i < n, got {shard[0]}/{shard[1]}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    root = source if source.is_dir() else source.parent
    parts = out.with_name(out.name + ".parts")
    files = depth_files(source, glob, (out, parts))[shard[0] :: shard[1]]
    if not files:
        raise ValueError(f"shard {shard[0]}/{shard[1]} of {source} is empty; make fewer shards")
    names = {file: file.relative_to(root).as_posix() for file in files}
    made_by = {"tokenizer": model.fingerprint(), **model.config.settings}
    keys = {name: _key(file, name, meant, made_by) for file, name in names.items()}
    sources = sources_digest(root, files, meant)  # before they are read
    skipped: dict[str, str] = {}
    empty = _no_depth(meant, remedy)
    with locked(parts):
        found = _finished(parts, keys)
        done = {name for part in found for name in part.files}
        left = [file for file, name in names.items() if name not in done]
        starts = range(0, len(left), FILES_PER_PART)
        for start in track(starts, "encoding"):
            chunk = left[start : start + FILES_PER_PART]
            maps = _maps(root, chunk, meant, skipped if skip_bad else None, empty)
            try:
                codes = encode_maps(maps, model, batch_size, empty)
            except ValueError as error:
                raise ValueError(f"{error}; {remedy or '--skip-bad leaves out such files'}") from error
            bad = {name.rpartition(":")[0] for name in skipped} | skipped.keys()
            whole = {names[file]: keys[names[file]] for file in chunk if names[file] not in bad}
            of_map = tuple(name if name in keys else name.rpartition(":")[0] for name in codes.names)
            found.append(_EncodedFiles(codes, of_map, whole))
            if codes.names:  # else all of these files are bad
                found[-1].write(parts)
        order = {name: n for n, name in enumerate(keys)}
        place = [order[name] for part in found for name in part.files]
        codes = DepthCodes.joined([part.codes for part in found])
        if not codes.names:
            name, reason = next(iter(skipped.items()))
            said = f"none of the {len(files)} files can be used; the first is {name}: {reason}"
            raise ValueError(f"{said}; {remedy}" if remedy else said)
        codes = codes.take(sorted(range(len(place)), key=place.__getitem__))
        codes = replace(codes, sources=sources, is_metric=meant.is_metric)
        codes.write(out)
        lines = [json.dumps({"map": name, "reason": reason}, ensure_ascii=False) for name, reason in skipped.items()]
        skipped_list(out).unlink(missing_ok=True)
        if lines:
            write_whole(skipped_list(out), "".join(f"{line}\n" for line in lines))
    shutil.rmtree(parts)
    _print_hint(codes, {f.relative_to(root).as_posix(): f for f in files}, meant)
    return codes


def check_encodes_depth(model: VQVAE) -> None:
    """Raise ValueError for a tokenizer of masks."""
    if (model.config.normalisation, model.config.min_depth, model.config.max_depth) == ("metric", INSIDE, OUTSIDE):
        raise ValueError(
            "this is a tokenizer of masks, and encodes no depth; give one of depth, such as depth-scenes-100"
        )


def _print_hint(codes: DepthCodes, files: Mapping[str, Path], meant: DepthFormat) -> None:
    """Say, once, if the farthest map looks as if its numbers meant something else."""
    row = int(codes.ranges[:, 1].argmax())
    file = next((path for name, path in files.items() if codes.names[row] in (name, f"{name}:0")), None)
    hint = None if file is None else scale_hint(file, float(codes.ranges[row, 1]), meant)
    if hint is not None:
        Console(stderr=True).print(f"note: {hint}", markup=False, highlight=False, soft_wrap=True)


def sources_digest(root: Path, files: Sequence[Path], meant: DepthFormat) -> str:
    """A digest of depth files, and how their numbers are read where that is declared (`DepthCodes.sources`)."""
    stamps = stamps_digest(root, files)
    return stamps if meant == DepthFormat() else f"{stamps} {meant}"


def skipped_list(out: Path) -> Path:
    """The JSON lines file beside a file of codes that names what was left out, and why; it is there if anything was."""
    return out.with_name(f"{out.stem}.skipped.jsonl")


@dataclass(frozen=True)
class _EncodedFiles:
    """The codes of some files, and a digest of what they were made from."""

    codes: DepthCodes
    files: tuple[str, ...]
    """file of each map, relative to the source"""
    keys: dict[str, str]
    """digest of each file that was read whole, by its name"""

    def write(self, folder: Path) -> None:
        text = json.dumps(
            {"header": self.codes.header, "names": self.codes.names, "files": self.files, "keys": self.keys}
        )
        arrays: dict[str, Any] = {"codes": self.codes.codes, "ranges": self.codes.ranges, "sizes": self.codes.sizes}
        buffer = io.BytesIO()
        np.savez(buffer, text=np.frombuffer(text.encode(), np.uint8), **arrays)
        name = hashlib.sha256("".join(sorted(self.keys.values())).encode()).hexdigest()[:16]
        write_whole(folder / f"part-{name}.npz", buffer.getvalue())

    @classmethod
    def read(cls, file: Path) -> _EncodedFiles:
        """Read a part; every array of a zip archive has a checksum. Raises ValueError if it is damaged."""
        try:
            with np.load(file, allow_pickle=False) as arrays:
                text = json.loads(arrays["text"].tobytes())
                values = (arrays["codes"], arrays["ranges"], arrays["sizes"])
                codes = DepthCodes.of_header(text["header"], text["names"], *values)
            return cls(codes, tuple(text["files"]), text["keys"])
        except (OSError, EOFError, KeyError, TypeError, ValueError, BadZipFile, DeflateError) as error:
            raise ValueError(f"{file} is damaged ({error}); its files are encoded again") from error

    def of(self, keys: Mapping[str, str], but: Collection[str]) -> _EncodedFiles:
        """The part of the files that would be made with the same digests, without those in `but`."""
        same = {name: key for name, key in self.keys.items() if keys.get(name) == key and name not in but}
        rows = [n for n, name in enumerate(self.files) if name in same]
        return _EncodedFiles(self.codes.take(rows), tuple(self.files[n] for n in rows), same)


def _finished(parts: Path, keys: Mapping[str, str]) -> list[_EncodedFiles]:
    """What can be used again of the parts in a folder, each file once; says what cannot."""
    found: list[_EncodedFiles] = []
    done, stale = set[str](), set[str]()
    say = Console(stderr=True)
    for file in sorted(parts.glob("part-*.npz")):
        try:
            part = _EncodedFiles.read(file)
        except ValueError as error:
            say.print(str(error), markup=False, soft_wrap=True)
            continue
        stale |= keys.keys() & part.keys.keys()
        found.append(part.of(keys, done))
        done |= found[-1].keys.keys()
    if changed := sorted(stale - done):
        said = (
            f"{len(changed)} finished files were replaced, or are asked for otherwise now, and are encoded again; the"
        )
        say.print(f"{said} first is {changed[0]}", markup=False, soft_wrap=True)
    return found


def _key(file: Path, name: str, meant: DepthFormat, made_by: Mapping[str, Any]) -> str:
    """A digest of all that decides the codes of a file: its name, size and time, the tokenizer, and the format."""
    settings = asdict(meant)
    if file.suffix.lower() not in _KEYED:
        del settings["key"]  # an error of one file advises it; it changes nothing of the others
    return hashlib.sha256(json.dumps([name, stamp(file), made_by, settings]).encode()).hexdigest()


def _maps(
    root: Path, files: Sequence[Path], meant: DepthFormat, skipped: dict[str, str] | None, empty: str
) -> Iterator[tuple[str, Tensor]]:
    """(name, map) of all files. What cannot be read is put into `skipped` with its reason, or raises if that is None.

    So are maps without a valid pixel, for the reason `empty`; if `skipped` is None, they are left to `encode_maps`.
    """
    for file in files:
        name = file.relative_to(root).as_posix()
        try:
            for suffix, depth in read_depth(file, meant):
                if skipped is not None and not _holds_depth(depth):
                    skipped[name + suffix] = empty
                else:
                    yield name + suffix, depth
        except ValueError as error:
            if skipped is None:
                raise
            skipped[name] = str(error)


def _no_depth(meant: DepthFormat, remedy: str) -> str:
    """What is said of a map without a valid pixel, by the flags of `perception tokenize` if there is no remedy."""
    dashes, max_depth = ("", "max_depth") if remedy else ("--", "--max-depth")
    given = ((max_depth, meant.max_depth), (f"{dashes}invalid", meant.invalid))
    said = " and ".join(f"{name} {value:.10g}" for name, value in given if value is not None)
    return f"{_NO_DEPTH} with {said}; check that, and {dashes}scale, the metres per unit" if said else _NO_DEPTH


def _holds_depth(depth: Tensor) -> bool:
    return bool((depth.isfinite() & (depth > 0)).any())


def encode_maps(
    maps: Iterator[tuple[str, Tensor]], model: VQVAE, batch_size: int, empty: str = _NO_DEPTH
) -> DepthCodes:
    """Encode named depth maps (H, W); consecutive maps of one size share a batch.

    Args:
        empty: what is said of a map that holds no valid pixel, behind its name.

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
        if not _holds_depth(depth):
            raise ValueError(f"{name} {empty}; remove the file, or correct it")
        if waiting and (waiting[0].shape != depth.shape or len(waiting) == batch_size):
            encode()
        names.append(name)
        waiting.append(depth.to(device))
    config = model.config
    if waiting:
        encode()
    if not rows:
        rows.append(
            (torch.zeros(0, config.grid_size**2, dtype=torch.long), torch.zeros(0, 2), torch.zeros(0, 2).long())
        )
    codes, ranges, sizes = (torch.cat(tensors).numpy() for tensors in zip(*rows, strict=True))
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
    """Decode every map to a file in `folder`, at its own size and in its own range; returns the files.

    All but "color" hold depth, larger is farther: in metres, or as 1 / value of relative nearness.

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
    for start in track(range(0, len(codes.names), batch_size), "decoding"):
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
    """Raise ValueError for relative nearness, or naming the first map whose depth 16-bit millimetres cannot hold."""
    advice = "write tiff, exr or npy, or give the scale in metres when tokenizing"
    if codes.is_metric is False:
        raise ValueError(f"relative nearness has no metres, and does not fit 16-bit millimetres; {advice}")
    least, most = _PNG_RANGE
    for name, (near, far) in zip(codes.names, codes.ranges.tolist(), strict=True):
        if near < least or far > most + 1e-3:
            raise ValueError(
                f"{name}: depth from {near:.4g} to {far:.4g} does not fit 16-bit millimetres "
                f"({least} to {most} m); {advice}"
            )


def _write_map(values: Tensor, path: Path, form: str) -> Path:
    """Write a map (H, W) whole, and return its file."""
    path = path.with_name(path.name + FORMATS[form])
    write_whole(path, partial(_MAP_WRITERS[form], values))
    return path


def _write_array(values: Tensor, path: Path) -> None:
    with path.open("wb") as file:  # given a path, NumPy adds an ending of its own
        np.save(file, values.numpy())


def _write_millimetres(values: Tensor, path: Path) -> None:
    Image.fromarray((values.numpy() * 1000).round().clip(0, 65535).astype(np.uint16)).save(path, format="PNG")


_MAP_WRITERS: dict[str, Callable[[Tensor, Path], None]] = {
    "npy": _write_array,
    "tiff": lambda values, path: Image.fromarray(values.numpy()).save(path, format="TIFF"),
    "exr": lambda values, path: write_exr(path, values.numpy()),
    "png": _write_millimetres,
    "color": lambda values, path: DepthTokenizer.draw(values).save(path, format="PNG"),
}
