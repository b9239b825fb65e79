"""Files of depth codes: parquet, NumPy with a JSON file beside it, or text with one span per line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception.tokenizers.locations import text_to_codes
from perception.vocabulary.names import PerceptionVocabulary, Span
from vqvae.files import write_whole


@dataclass(frozen=True)
class DepthCodes:
    """The codes of N depth maps, and what is needed to decode them at their own size and in their own unit."""

    names: tuple[str, ...]
    codes: NDArray[np.int64]
    """(N, h * w) in the order of the tokenizer's sequences: row by row, or coarse to fine if it is nested"""
    ranges: NDArray[np.float64]
    """(N, 2), near and far of each map, in its unit"""
    sizes: NDArray[np.int64]
    """(N, 2), height and width of each map"""
    tokenizer: str
    """fingerprint of the tokenizer that made the codes"""
    codebook_size: int
    grid: tuple[int, int]
    range_percentile: float | None = None
    """how the ends of each range were chosen (`VQVAEConfig.range_percentile`)"""

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
        return made_by | {"range_percentile": self.range_percentile}

    def write(self, path: Path) -> None:
        """Write the file whole or not at all. Raises ValueError for an unknown ending."""
        writer = _of(path, _WRITERS)
        if path.suffix == ".npy":
            rest = {"names": self.names, "ranges": self.ranges.tolist(), "sizes": self.sizes.tolist()}
            write_whole(_sidecar(path), json.dumps(self.header | rest) + "\n")
        write_whole(path, lambda partial: writer(self, partial))

    @classmethod
    def read(cls, path: Path) -> DepthCodes:
        """Read a file of codes. Raises ValueError naming a file that is missing, damaged or holds something else."""
        reader = _of(path, _READERS)
        try:
            return reader(path)
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename or path} does not exist; write it with `perception tokenize`") from error
        except (OSError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(
                f"{path} is not a complete file of depth codes ({error}); write it again with `perception tokenize`"
            ) from error

    @classmethod
    def joined(cls, parts: list[DepthCodes]) -> DepthCodes:
        """Concatenate parts that one tokenizer made."""
        return cls(
            tuple(name for part in parts for name in part.names),
            np.concatenate([part.codes for part in parts]),
            np.concatenate([part.ranges for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            parts[0].tokenizer,
            parts[0].codebook_size,
            parts[0].grid,
            parts[0].range_percentile,
        )


def check_ending(path: Path) -> None:
    """Raise ValueError unless the name of a file of codes may end as `path` does."""
    _of(path, _WRITERS)


def _of(path: Path, table: dict[str, Any]) -> Any:
    if path.suffix not in table:
        raise ValueError(f"{path}: files of codes end in {', '.join(table)}; got {path.suffix or 'no ending'!r}")
    return table[path.suffix]


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _write_numpy(codes: DepthCodes, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, codes.codes.astype(np.int32))


def _read_numpy(path: Path) -> DepthCodes:
    rest = json.loads(_sidecar(path).read_text())
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
    first, *lines = path.read_text(encoding="utf-8").splitlines()
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
