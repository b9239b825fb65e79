"""Image files, and images inside HDF5 or MATLAB 7.3 files (as NYUv2 is published)."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perception.model.images import image_size, load_image

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
ARRAY_ENDINGS = (".mat", ".h5", ".hdf5")
_KEYS = ("images", "image", "rgb")
"""Usual names of an array of images: in NYUv2's labelled file, and in single frames of depth completion sets"""


@dataclass(frozen=True)
class ImageFile:
    """One image on disk."""

    path: Path
    index: int | None = None
    """number of the image in a file that holds several; None for the only one"""

    def __str__(self) -> str:
        return str(self.path) if self.index is None else f"{self.path}:{self.index}"

    def load(self, least_side: int | None = None) -> Image.Image:
        """Load the image in RGB, a JPEG no larger than `least_side` needs (see `perception.model.images.decode_image`).

        Raises ValueError naming the file if it is missing, damaged or not an image.
        """
        if self.path.suffix.lower() in ARRAY_ENDINGS:
            return Image.fromarray(_from_array_file(self.path, self.index))
        return load_image(self.path, least_side)

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, read from the header. Raises ValueError as `load`."""
        if self.path.suffix.lower() in ARRAY_ENDINGS:
            return array_shape(self.path)[1:]
        check_exists(self.path)
        return image_size(self.path)


def pictures_of(images: Iterable[ImageFile]) -> dict[ImageFile, Hashable]:
    """Return, for each image, what all files that show it have in common.

    Links and parent folders in a path do not count, and files of one content are one picture under any name.
    """
    paths = {image: image.path.resolve() for image in images}
    sizes: dict[int, set[Path]] = {}
    for path in {*paths.values()}:
        if path.is_file():
            sizes.setdefault(path.stat().st_size, set()).add(path)
    alike = {path for same in sizes.values() if len(same) > 1 for path in same}
    contents = {path: _content(path) for path in alike}
    return {image: (contents.get(path, path), image.index) for image, path in paths.items()}


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_exists(path: Path, wanted_by: str = "") -> None:
    """Raise ValueError if a file is missing, naming the entry that needs it."""
    if not path.is_file():
        by = f"{wanted_by}: image " if wanted_by else ""
        raise ValueError(f"{by}{path} does not exist; put it there, give the right folder, or remove the entry")


def array_shape(path: Path) -> tuple[int, int, int]:
    """(number, height, width) of the images in an HDF5 or MATLAB file. Raises ValueError if there are none."""
    with _opened(path) as file:
        shape = _dataset(path, file).shape
    shape = shape if len(shape) == 4 else (1, *shape)
    height, width = _height_and_width(path, shape[1:])
    return shape[0], height, width


def _height_and_width(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) of an image as stored: (3, W, H) by MATLAB, which stores columns first; else (3, H, W) or
    (H, W, 3)."""
    if shape[0] == 3:
        return (shape[2], shape[1]) if path.suffix.lower() == ".mat" else (shape[1], shape[2])
    return shape[0], shape[1]


def _from_array_file(path: Path, index: int | None) -> np.ndarray:
    with _opened(path) as file:
        data = _dataset(path, file)
        if data.ndim == 4 and not 0 <= (index or 0) < len(data):
            raise ValueError(f"{path} holds images 0..{len(data) - 1}, asked for {index}")
        try:
            values = np.asarray(data[index or 0] if data.ndim == 4 else data[()])
        except OSError as error:
            raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again") from error
    if values.shape[0] == 3:
        values = values.transpose(2, 1, 0) if path.suffix.lower() == ".mat" else values.transpose(1, 2, 0)  # (H, W, 3)
    return np.ascontiguousarray(values)


def _opened(path: Path) -> Any:
    check_exists(path)
    try:
        import h5py
    except ImportError as error:
        raise ValueError(f"{path} needs h5py: pip install 'perception-tokens[readers]'") from error
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); MATLAB files must be of version 7.3") from error


def _dataset(path: Path, file: Any) -> Any:
    for key in _KEYS:
        if key in file:
            data = file[key]
            if str(data.dtype) == "uint8" and data.ndim in (3, 4) and 3 in (data.shape[-3], data.shape[-1]):
                return data
            raise ValueError(f"{path}: {key} is {data.dtype} of shape {data.shape}; images are uint8 with 3 colours")
    raise ValueError(f"{path} holds no images (an array called {', '.join(_KEYS)}); it has {', '.join(file)}")
