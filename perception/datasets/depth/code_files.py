"""Files of depth codes: parquet, NumPy with a JSON file beside it, or text with one span per line."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.datasets.lines import read_text, text_lines
from perception.tokenizers.locations import text_to_codes
from perception.vocabulary.names import PerceptionVocabulary, Span
from vqvae.files import write_together, write_whole

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


@dataclass(frozen=True)
class DepthCodes:
    """The codes of N depth maps, and what is needed to decode them at their own size and in their own range."""

    names: tuple[str, ...]
    codes: NDArray[np.int64]
    """(N, h * w) in the order of the tokenizer's sequences: row by row, or coarse to fine if it is nested"""
    ranges: NDArray[np.float64]
    """(N, 2), near and far of each map; in metres, or 1 / nearness where that was relative (`is_metric`)"""
    sizes: NDArray[np.int64]
    """(N, 2), height and width of each map"""
    tokenizer: str
    """fingerprint of the tokenizer that made the codes"""
    codebook_size: int
    grid: tuple[int, int]
    range_percentile: float | None = None
    """how the ends of each range were chosen (`VQVAEConfig.range_percentile`)"""
    sources: str | None = None
    """`depth.jobs.sources_digest` of the files that one job read; None if that is not known"""
    is_metric: bool | None = None
    """whether the ranges are in metres; false if one of them may not be, None if that is not known"""

    def __post_init__(self) -> None:
        count, cells = len(self.names), self.grid[0] * self.grid[1]
        shapes = (self.codes.shape, self.ranges.shape, self.sizes.shape)
        if shapes != ((count, cells), (count, 2), (count, 2)):
            raise ValueError(
                f"{count} maps of {cells} codes need codes, ranges and sizes of shapes {(count, cells)}, {(count, 2)} "
                f"and {(count, 2)}, got {', '.join(map(str, shapes))}"
            )
        if count and not 0 <= self.codes.min() <= self.codes.max() < self.codebook_size:
            raise ValueError(
                f"codes must lie in 0..{self.codebook_size - 1}, got {self.codes.min()}..{self.codes.max()}"
            )

    @property
    def header(self) -> dict[str, Any]:
        """JSON values that all maps share."""
        made_by = {"tokenizer": self.tokenizer, "codebook_size": self.codebook_size, "grid": list(self.grid)}
        made_by |= {"range_percentile": self.range_percentile}
        known = {"sources": self.sources, "is_metric": self.is_metric}
        return made_by | {name: value for name, value in known.items() if value is not None}

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            ValueError: as `check_out` does.
        """
        check_out(path)
        writer = _of(path, _WRITERS)
        if path.suffix == ".npy":
            _write_numpy(self, path)
        else:
            write_whole(path, lambda partial: writer(self, partial))

    @classmethod
    def read(cls, path: Path) -> DepthCodes:
        """Read a file of codes. Raises ValueError naming a file that is missing, damaged or holds something else."""
        reader = _of(path, _READERS)
        try:
            return reader(path)
        except ImportError as error:
            raise ValueError(f"{path} needs the package {error.name}: pip install {error.name}") from error
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename or path} does not exist; write it with `perception tokenize`") from error
        except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(
                f"{path} is not a complete file of depth codes ({error}); write it again with `perception tokenize`"
            ) from error

    @classmethod
    def of_header(cls, header: dict[str, Any], names: Any, codes: Any, ranges: Any, sizes: Any) -> DepthCodes:
        """Codes of N maps with what `header` holds. Raises KeyError, TypeError or ValueError if they do not fit."""
        return _build(header, names, codes, ranges, sizes)

    def take(self, rows: Sequence[int]) -> DepthCodes:
        """The maps of these numbers, in this order."""
        at = np.asarray(rows, np.int64)
        names = tuple(self.names[n] for n in rows)
        return replace(self, names=names, codes=self.codes[at], ranges=self.ranges[at], sizes=self.sizes[at])

    @classmethod
    def joined(cls, parts: list[DepthCodes]) -> DepthCodes:
        """Concatenate parts. Raises ValueError if their tokenizers differ, or a map is in two of them."""
        headers = [replace(part, sources=None, is_metric=None).header for part in parts]
        for header in headers[1:]:
            if header != headers[0]:
                raise ValueError(f"parts of one tokenizer can be joined, got {header} beside {headers[0]}")
        twice = [name for name, times in Counter(name for part in parts for name in part.names).items() if times > 1]
        if twice:
            raise ValueError(f"{twice[0]} is in two of the parts; give each part once")
        metric = {part.is_metric for part in parts}
        return cls(
            tuple(name for part in parts for name in part.names),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.ranges for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            parts[0].tokenizer,
            parts[0].codebook_size,
            parts[0].grid,
            parts[0].range_percentile,
            is_metric=False if False in metric else None if None in metric else True,
        )


def join_files(files: Sequence[Path], out: Path) -> DepthCodes:
    """Join the files that the shards of one job wrote, in the order in which one job would have written the maps.

    Raises:
        ValueError: if files are shards of several jobs, if a shard of those that the names count (-00001-of-00004) is
            missing, or as `DepthCodes.read` and `DepthCodes.joined` do.
    """
    check_out(out)
    named = [(file, name) for file in files if (name := _SHARD.search(file.stem))]
    jobs = {(name.string[: name.start()], name[2]): file.name for file, name in named}
    if len(jobs) > 1:
        raise ValueError(f"{' and '.join(sorted(jobs.values())[:2])} are shards of different jobs; join those of one")
    found = {(int(name[1]), int(name[2])) for _, name in named}
    missing = [f"{i:05d}-of-{n:05d}" for n in {n for _, n in found} for i in range(n) if (i, n) not in found]
    if missing:
        raise ValueError(f"the shard {missing[0]} is missing; run its job, and give all shards")
    codes = DepthCodes.joined([DepthCodes.read(file) for file in files])
    order = sorted(range(len(codes.names)), key=lambda n: _place(codes.names[n]))
    codes = codes.take(order)
    codes.write(out)
    return codes


def _place(name: str) -> tuple[tuple[str, ...], int]:
    """Sorts maps by their file's path and their number in it ("a/b.npy:3")."""
    file, _, index = name.rpartition(":")
    return (PurePosixPath(file).parts, int(index)) if file and index.isdigit() else (PurePosixPath(name).parts, -1)


def is_code_file(path: Path) -> bool:
    """True for a .npy or .parquet file of codes, by the header beside or inside it, which names a tokenizer."""
    try:
        if path.suffix == ".npy":
            text = read_text(_sidecar(path)) if _sidecar(path).is_file() else "{}"
        elif path.suffix == ".parquet":
            from pyarrow import parquet

            text = (parquet.read_schema(path).metadata or {}).get(b"perception", b"{}")
        else:
            return False
        return {"tokenizer", "codebook_size", "grid"} <= json.loads(text).keys()
    except (ImportError, OSError, ValueError, AttributeError):
        return False


def check_out(path: Path) -> None:
    """Raise ValueError where a file of codes cannot be written to `path`; jobs ask before the work.

    The name has an unknown ending or is a folder's, .parquet lacks its package, or the JSON file beside a .npy file
    would replace one of another kind.
    """
    _of(path, _WRITERS)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow; or end it in .npy") from error
    if path.suffix == ".npy" and _sidecar(path).exists() and not is_code_file(path):
        raise ValueError(f"{_sidecar(path)} is there and belongs to no codes; give another name, or move it")


def _of(path: Path, table: dict[str, Any]) -> Any:
    if path.suffix not in table:
        raise ValueError(f"{path}: files of codes end in {', '.join(table)}; got {path.suffix or 'no ending'!r}")
    return table[path.suffix]


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_numpy(codes: DepthCodes, path: Path) -> None:
    """Write the array and the JSON file, which holds the array's digest, so that none is read beside another's."""
    buffer = io.BytesIO()
    np.save(buffer, codes.codes.astype(np.int32))
    rest = {"names": codes.names, "ranges": codes.ranges.tolist(), "sizes": codes.sizes.tolist()}
    rest["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    write_together({_sidecar(path): json.dumps(codes.header | rest) + "\n", path: buffer.getvalue()})


def _read_numpy(path: Path) -> DepthCodes:
    rest = json.loads(_sidecar(path).read_text(encoding="utf-8"))
    if rest.get("sha256", digest := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
        raise ValueError(f"{_sidecar(path).name} belongs to other codes")
    return _build(rest, rest["names"], np.load(path, allow_pickle=False), rest["ranges"], rest["sizes"])


def _write_parquet(codes: DepthCodes, path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"name": list(codes.names), "codes": codes.codes.astype(np.int32).tolist()}
    columns |= {"near": codes.ranges[:, 0].tolist(), "far": codes.ranges[:, 1].tolist()}
    columns |= {"height": codes.sizes[:, 0].tolist(), "width": codes.sizes[:, 1].tolist()}
    table = pa.table(columns).replace_schema_metadata({"perception": json.dumps(codes.header)})
    parquet.write_table(table, path)


def _read_parquet(path: Path) -> DepthCodes:
    from pyarrow import parquet

    table = parquet.read_table(path)
    header = json.loads((table.schema.metadata or {})[b"perception"])
    rows = table.to_pydict()
    ranges, sizes = (list(zip(rows[a], rows[b], strict=True)) for a, b in (("near", "far"), ("height", "width")))
    return _build(header, rows["name"], rows["codes"], ranges, sizes)


def _write_text(codes: DepthCodes, path: Path) -> None:
    vocabulary = PerceptionVocabulary(depth_codes=codes.codebook_size, depth_grid=codes.grid)
    with path.open("w", encoding="utf-8") as file:
        file.write(f"# {json.dumps(codes.header)}\n")
        rows = zip(codes.names, codes.codes.tolist(), codes.ranges.tolist(), codes.sizes.tolist(), strict=True)
        for name, row, (near, far), (height, width) in rows:
            span = vocabulary.span_text(Span("depth", tuple(row)))
            file.write(f"{json.dumps(name)}\t{near!r}\t{far!r}\t{height}\t{width}\t{span}\n")


def _read_text(path: Path) -> DepthCodes:
    first, *lines = text_lines(path.read_text(encoding="utf-8-sig"))
    header = json.loads(first.removeprefix("# "))
    vocabulary = PerceptionVocabulary(depth_codes=header["codebook_size"], depth_grid=tuple(header["grid"]))
    cells = [line.split("\t") for line in lines]
    codes = [text_to_codes(vocabulary, "depth", row[5]) for row in cells]
    ranges, sizes = ([(kind(row[at]), kind(row[at + 1])) for row in cells] for kind, at in ((float, 1), (int, 3)))
    return _build(header, [json.loads(row[0]) for row in cells], codes, ranges, sizes)


def _build(header: dict[str, Any], names: Any, codes: Any, ranges: Any, sizes: Any) -> DepthCodes:
    grid = (int(header["grid"][0]), int(header["grid"][1]))
    return DepthCodes(
        tuple(str(name) for name in names),
        np.asarray(codes, np.int64).reshape(len(names), -1),
        np.asarray(ranges, np.float64).reshape(-1, 2),
        np.asarray(sizes, np.int64).reshape(-1, 2),
        str(header["tokenizer"]),
        int(header["codebook_size"]),
        grid,
        header.get("range_percentile", 0.0),  # older files do not say so: they were min-max
        header.get("sources"),
        header.get("is_metric"),
    )


_WRITERS: dict[str, Callable[[DepthCodes, Path], None]] = {
    ".npy": _write_numpy,
    ".parquet": _write_parquet,
    ".txt": _write_text,
}
_READERS: dict[str, Callable[[Path], DepthCodes]] = {
    ".npy": _read_numpy,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}
