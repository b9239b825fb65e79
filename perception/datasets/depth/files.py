"""Read depth maps from the file formats in which data sets publish them.

These are `.npy`, `.npz`, 16-bit PNG and TIFF, PFM (Middlebury), EXR (renderers), HDF5, and MATLAB 7.3 (NYUv2's labelled
file).
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
"""Usual names of a depth array, tried in order if a file holds several arrays and no key is given"""


@dataclass(frozen=True)
class DepthFormat:
    """How the numbers in a depth file are to be understood."""

    meaning: str = "depth"
    """depth (larger is farther), or inverse (disparity and inverse depth: larger is nearer)"""
    scale: float | None = None
    """metres per unit; None for 0.001 in 16-bit images and 1 elsewhere. For inverse values (the only ones that 8-bit
    images can hold) depth = scale / value"""
    key: str | None = None
    """name of the array to read, if a file holds several"""

    def __post_init__(self) -> None:
        if self.meaning not in MEANINGS:
            raise ValueError(f"unknown meaning {self.meaning!r}; known: {', '.join(MEANINGS)}")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale must be above 0, got {self.scale}")


def depth_files(path: Path) -> list[Path]:
    """The file itself, or all depth files beneath a folder, sorted by name. Raises ValueError if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path} does not exist; give a depth file or a folder of them")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _READERS and p.is_file())
    if not found:
        raise ValueError(f"{path} holds no depth file; known endings: {', '.join(sorted(_READERS))}")
    return found


def read_depth(path: Path, meant: DepthFormat = DepthFormat()) -> Iterator[tuple[str, Tensor]]:
    """Yield (suffix, depth (H, W) float32) for every map of a file.

    Larger depth is farther; NaN and values up to 0 are holes. The suffix tells the maps of one file apart: ":0", ":1",
    .. for an array (N, H, W), "" for (H, W).

    Raises:
        ValueError: naming the file, if it is damaged, has an unknown ending, or holds no depth.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; known: {', '.join(sorted(_READERS))}")
    try:
        array, unit = reader(path, meant.key)
    except ImportError as error:
        raise ValueError(f"{path} needs the package {error.name}: pip install {error.name}") from error
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, SyntaxError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as depth ({error}); fetch or write it again") from error
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}; depth must be numbers of shape "
            "(H, W), or (N, H, W) for several maps"
        )
    if reader is _image:
        check_bits(array, meant, f"{path} is a picture")
    for index, values in enumerate(array if array.ndim == 3 else array[None]):
        yield ("" if array.ndim == 2 else f":{index}"), to_depth(values, unit, meant)


def to_depth(values: NDArray[Any], unit: float, meant: DepthFormat) -> Tensor:
    """Convert stored numbers (H, W) to depth (H, W) float32; `unit`, in metres, applies if the format has no scale."""
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
    """Raise ValueError for 8-bit values that are meant to be depth. `what` begins the message."""
    if values.dtype == np.uint8 and meant.meaning == "depth":
        raise ValueError(
            f"{what} of mode L; its 8 bits can hold relative nearness (brighter is nearer), which meaning 'inverse' "
            "reads, but not depth: save depth as 16-bit grey"
        )


def picture_depth(source: Path | BinaryIO) -> tuple[NDArray[Any], float]:
    """Values (H, W) of a grey picture, and metres per unit. Raises ValueError for a picture with colours."""
    with Image.open(source) as image:
        if image.mode not in ("I;16", "I;16B", "I", "F", "L"):
            raise ValueError(
                f"a picture of mode {image.mode} has 8 bits per channel and holds no depth; save depth as 16-bit grey"
            )
        array = np.asarray(image)
    return array, MILLIMETRES if array.dtype.kind in "iu" and array.dtype != np.uint8 else 1.0


def _pfm(path: Path, key: str | None) -> tuple[NDArray[Any], float]:
    """Read one grey map, stored from the bottom row up; a negative scale in the header means little-endian."""
    with path.open("rb") as file:
        if (kind := file.readline().strip()) != b"Pf":
            raise ValueError(f"not a grey PFM: it begins with {kind[:8]!r}")
        width, height = (int(word) for word in file.readline().split())
        order = "<f4" if float(file.readline()) < 0 else ">f4"
        data = file.read()
    if len(data) != 4 * width * height:
        raise ValueError(f"the header announces {width} x {height} values, the file holds {len(data) // 4}")
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
    # MATLAB stores columns first: its (H, W, N) is (N, W, H) in the file.
    return (np.swapaxes(array, -1, -2) if path.suffix.lower() == ".mat" and array.ndim > 1 else array), 1.0


def _choose(names: list[str], key: str | None) -> str:
    """The array named `key`, else the only array, else the first with a usual name for depth."""
    wanted = [key] if key is not None else names if len(names) == 1 else [name for name in _KEYS if name in names]
    if not wanted or wanted[0] not in names:
        asked = f"no array called {key!r}" if key is not None else "several arrays and none called depth"
        raise ValueError(f"{asked}; it holds {', '.join(names) or 'none'}: choose one by its key")
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
