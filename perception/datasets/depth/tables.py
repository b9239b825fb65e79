"""Read depth maps from parquet tables with one map per row.

The column `depth` (or the one named by `DepthFormat.key`) holds one of

- a flat list of height * width numbers, row by row, with the columns `height` and `width` (as
  `perception.scenes.export` writes it);
- a list of rows, with or without a dimension of one channel;
- an encoded grey picture, as bytes or as a struct with `bytes` (as Hugging Face's `datasets` stores images).

The column `name` is optional; other columns are ignored.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from perception.datasets.depth.code_files import is_code_file
from perception.datasets.depth.files import DepthFormat, as_maps, picture_depth, to_depth
from perception.datasets.listing import files_beneath

_ROWS = 64


def table_files(path: Path) -> list[Path]:
    """The parquet file itself, or all parquet files of maps beneath a folder, sorted by name; may be empty."""
    if path.is_file():
        return [path] if path.suffix.lower() == ".parquet" else []
    return [file for file in files_beneath(path, (".parquet",)) if not is_code_file(file)]


def read_depth_table(path: Path, meant: DepthFormat) -> Iterator[tuple[str, Tensor | ValueError]]:
    """Yield (name, depth (H, W) float32) for every row, or (name, ValueError) for a row that cannot be read.

    A row without a `name` is named by its number: ":0", ":1", .. Larger depth is farther; NaN and values up to 0 are
    holes.

    Raises:
        ValueError: naming the file, if it is not a parquet file or lacks the column.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path} needs the package pyarrow: pip install pyarrow") from error
    column = meant.key or "depth"
    try:
        file = parquet.ParquetFile(path)
        known = file.schema_arrow.names
        if column not in known:
            raise ValueError(f"it has no column {column!r} but {', '.join(known)}; choose one by its key")
        columns = [name for name in (column, "height", "width", "name") if name in known]
        index = 0
        for batch in file.iter_batches(_ROWS, columns=columns):
            for row in range(batch.num_rows):
                values = {name: batch.column(name)[row].as_py() for name in columns if name != column}
                cell: Any = batch.column(column)[row]
                yield str(values.get("name") or f":{index}"), _map_or_error(cell, values, meant)
                index += 1
    except (ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a table of depth maps ({error}); download or write it again"
        ) from error


def _map_or_error(cell: Any, values: dict[str, Any], meant: DepthFormat) -> Tensor | ValueError:
    try:
        return _map(cell, values, meant)
    except Exception as error:  # a damaged picture raises whatever its library's code meets, as in `read_depth`
        return ValueError(str(error) or type(error).__name__)


def _map(cell: Any, values: dict[str, Any], meant: DepthFormat) -> Tensor:
    """Convert a cell of the depth column to a map (H, W)."""
    value = cell.as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    if value is None:
        raise ValueError("there is no depth in this row")
    if isinstance(value, bytes):
        return to_depth(*_single(*picture_depth(io.BytesIO(value), meant)), meant)
    array = np.asarray(value)
    if array.dtype.kind not in "iu":  # whole numbers stay such, for presets
        array = np.asarray(value, dtype=np.float32)
    if array.ndim == 1:
        height, width = values.get("height"), values.get("width")
        if height is None or width is None or len(array) != height * width:
            raise ValueError(
                f"{len(array)} values of depth, with height {height} and width {width}; give both columns, or depth as "
                "a list of rows"
            )
        array = array.reshape(height, width)
    return to_depth(*_single(array, 1.0), meant)


def _single(array: NDArray[Any], unit: float) -> tuple[NDArray[Any], float]:
    """The only map (H, W) of an array, and the unit it came with."""
    maps = as_maps(array)  # (N, H, W)
    if len(maps) != 1:
        raise ValueError(f"holds {len(maps)} maps; write one per row")
    return maps[0], unit
