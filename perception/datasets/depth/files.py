"""Depth maps from files, as the field publishes them.

`.npy`, `.npz`, 16-bit PNG and TIFF, PFM (Middlebury), EXR (renderers), HDF5 and MATLAB 7.3 (NYUv2's labelled file).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

MEANINGS = ("depth", "inverse")
MILLIMETRES = 0.001
_KEYS = ("depth", "depths", "Z", "Y", "R")
"""Names a depth array goes by, where a file holds several and none is asked for"""


@dataclass(frozen=True)
class DepthFormat:
    """How the numbers of a file are meant."""

    meaning: str = "depth"
    """depth (larger is farther), or inverse (disparity and inverse depth: larger is nearer)"""
    scale: float | None = None
    """metres a unit; None: a thousandth in 16-bit images, one elsewhere. Of inverse values, the only ones that 8-bit
    images hold: depth = scale / value"""
    key: str | None = None
    """which array of a file that holds several"""

    def __post_init__(self) -> None:
        if self.meaning not in MEANINGS:
            raise ValueError(f"unknown meaning {self.meaning!r}; known: {', '.join(MEANINGS)}")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")


def depth_files(path: Path) -> list[Path]:
    """The file itself, or all depth files beneath a folder, sorted by name.

    Raises:
        ValueError: where there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; give a depth file or a folder of them")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _READERS and p.is_file())
    if not found:
        raise ValueError(f"{path} holds no depth file; known endings: {', '.join(sorted(_READERS))}")
    return found


def read_depth(path: Path, meant: DepthFormat = DepthFormat()) -> Iterator[tuple[str, Tensor]]:
    """(suffix, depth (H, W) float32) of every map of a file; larger is farther, NaN and values up to 0 are holes.

    The suffix tells maps of one file apart: ":0", ":1" .. where it holds (N, H, W), "" where it holds (H, W).

    Raises:
        ValueError: naming the file, for one that is cut short, of an unknown kind, or holds no depth.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(sorted(_READERS))}")
    try:
        array, unit = reader(path, meant.key)
    except ImportError as error:
        raise ValueError(f"{path} needs the package {error.name}: pip install {error.name}") from error
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, SyntaxError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as depth ({error}); fetch or write it anew") from error
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}; depth is numbers of shape (H, W), or (N, H, W) for "
            "several maps"
        )
    if reader is _image:
        check_bits(array, meant, f"{path} is a picture")
    for index, values in enumerate(array if array.ndim == 3 else array[None]):
        yield ("" if array.ndim == 2 else f":{index}"), to_depth(values, unit, meant)


def to_depth(values: NDArray[Any], unit: float, meant: DepthFormat) -> Tensor:
    """Depth (H, W) float32 of stored numbers (H, W), whose unit is `unit` metres where the format does not say."""
    scale = unit if meant.scale is None else meant.scale
    depth = torch.from_numpy(np.asarray(values, dtype=np.float32).copy())  # (H, W)
    if meant.meaning == "inverse":
        return torch.where(depth > 0, scale / depth, torch.nan)
    return depth * scale


def _numpy(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    return np.load(path, mmap_mode="r", allow_pickle=False), 1.0


def _numpy_archive(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    with np.load(path, allow_pickle=False) as archive:
        return archive[_choose(list(archive), key)], 1.0


def _image(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    return picture_depth(path)


def check_bits(values: NDArray[Any], meant: DepthFormat, what: str) -> None:
    """Raises ValueError for values of 8 bits that are meant to be depth. `what` begins the message."""
    if values.dtype == np.uint8 and meant.meaning == "depth":
        raise ValueError(
            f"{what} of mode L; 8 bits hold relative nearness (brighter is nearer), which meaning 'inverse' reads, but "
            "no depth: save that as 16-bit grey"
        )


def picture_depth(source: Path | BinaryIO) -> tuple[NDArray[Any], float]:
    """Values (H, W) of a grey picture and metres a unit. Raises ValueError for one with colours."""
    with Image.open(source) as image:
        if image.mode not in ("I;16", "I;16B", "I", "F", "L"):
            raise ValueError(
                f"a picture of mode {image.mode} has 8 bits a channel and no depth in it; save depth as 16-bit grey"
            )
        array = np.asarray(image)
    return array, MILLIMETRES if array.dtype.kind in "iu" and array.dtype != np.uint8 else 1.0


def _pfm(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    """One grey map, rows from the bottom up; a negative scale in the header means little-endian."""
    with path.open("rb") as file:
        if (kind := file.readline().strip()) != b"Pf":
            raise ValueError(f"not a grey PFM: it begins with {kind[:8]!r}")
        width, height = (int(word) for word in file.readline().split())
        order = "<f4" if float(file.readline()) < 0 else ">f4"
        data = file.read()
    if len(data) != 4 * width * height:
        raise ValueError(f"{width} x {height} values announced, {len(data) // 4} there")
    return np.frombuffer(data, order).reshape(height, width)[::-1].astype(np.float32), 1.0


def _exr(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    import OpenEXR

    with OpenEXR.File(str(path), separate_channels=True) as file:
        channels = {name: channel.pixels for name, channel in file.channels().items()}
    return channels[_choose(list(channels), key)], 1.0


def _hdf5(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    import h5py

    with h5py.File(path, "r") as file:
        name = _choose([n for n, item in file.items() if isinstance(item, h5py.Dataset)], key)
        array = file[name][()]
    # MATLAB writes columns first: what it calls (H, W, N) lies in the file as (N, W, H).
    return (np.swapaxes(array, -1, -2) if path.suffix.lower() == ".mat" and array.ndim > 1 else array), 1.0


def _choose(names: list[str], key: str | None) -> str:
    """The array asked for, the only one, or the first that is called as depth is."""
    wanted = [key] if key is not None else names if len(names) == 1 else [name for name in _KEYS if name in names]
    if not wanted or wanted[0] not in names:
        asked = f"no array called {key!r}" if key is not None else "several arrays and none called depth"
        raise ValueError(f"{asked}; it holds {', '.join(names) or 'none'}, choose one by its key")
    return wanted[0]


_Reader = Callable[[Path, str | None], tuple[NDArray[Any], float]]
_READERS: dict[str, _Reader] = {
    ".npy": _numpy,
    ".npz": _numpy_archive,
    ".png": _image,
    ".tif": _image,
    ".tiff": _image,
    ".pfm": _pfm,
    ".exr": _exr,
    ".mat": _hdf5,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}
