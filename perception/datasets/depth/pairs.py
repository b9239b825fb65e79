"""Images and their depth maps: two folders with names alike (ADE20K-style), or files that hold both (NYUv2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from perception.datasets.depth.files import DepthFormat, depth_files, read_depth
from perception.datasets.images import ARRAY_ENDINGS, ENDINGS, ImageFile, array_shape

ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the shapes of an image and its depth map, which may differ in resolution"""
_DEPTH_WORD = re.compile(r"[_.-]?(?:depth|depths|disp|disparity)$", re.IGNORECASE)
_IMAGE_WORD = re.compile(r"[_.-]?(?:rgb|image|img|color|colour)$", re.IGNORECASE)


@dataclass(frozen=True)
class DepthPair:
    """An image and the depth map that belongs to it."""

    image: ImageFile
    depth: Path
    index: int | None = None
    """which map of a file that holds several"""

    def name_in(self, root: Path) -> str:
        """The map's name among the codes of all maps beneath `root` (`perception.datasets.depth.jobs.tokenize`)."""
        return self.depth.relative_to(root).as_posix() + ("" if self.index is None else f":{self.index}")


def find_pairs(depth: Path, images: Path | None = None) -> list[DepthPair]:
    """Every depth map at `depth`, a folder or a file, with its image.

    Args:
        images: folder of images of the same names: depth/a/1.png belongs to images/a/1.jpg, and so does
            depth/a/1_depth.png. Images without a depth map are left alone. None: the depth files hold their images too
            (HDF5, or MATLAB 7.3 as NYUv2 publishes its labelled set).

    Raises:
        ValueError: naming the depth map that has no image, the images that share a name, or the file that holds none.
    """
    files = depth_files(depth)
    if images is None:
        return [pair for file in files for pair in _pairs_inside(file)]
    if not images.is_dir():
        raise ValueError(f"{images} is not a folder; give the one that holds the images of {depth}")
    root = depth if depth.is_dir() else depth.parent
    by_name = _images_by_name(images)
    pairs, missing = [], []
    for file in files:
        image = by_name.get(_name(file, root, _DEPTH_WORD))
        if image is None:
            missing.append(file)
        else:
            pairs.append(DepthPair(ImageFile(image), file))
    if missing:
        first = missing[0].relative_to(root)
        raise ValueError(
            f"{len(missing)} of {len(files)} depth maps beneath {root} have no image, the first is {first}; put "
            f"{images / first.with_suffix('.jpg')} there (any of {', '.join(ENDINGS)}), or take the map out"
        )
    return pairs


def read_pairs(pairs: list[DepthPair], meant: DepthFormat = DepthFormat()) -> Iterator[tuple[DepthPair, Tensor]]:  # noqa: B008
    """Each pair and its depth (H, W), larger is farther, NaN and values up to 0 are holes; pairs of one file together.

    Raises:
        ValueError: naming the file that cannot be read, or whose shape is not its image's.
    """
    by_file: dict[Path, dict[int | None, DepthPair]] = {}
    for pair in pairs:
        by_file.setdefault(pair.depth, {})[pair.index] = pair
    for file, wanted in by_file.items():
        for suffix, depth in read_depth(file, meant):
            found = wanted.get(int(suffix[1:]) if suffix else None)
            if found is None and None in wanted:
                raise ValueError(f"{file} holds several maps for the one image {wanted[None].image}; write one a file")
            if found is not None:
                _check_shape(found, depth)
                yield found, depth


def _check_shape(pair: DepthPair, depth: Tensor) -> None:
    (height, width), (h, w) = pair.image.size(), depth.shape
    if abs(height * w / (width * h) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{pair.depth} is {w} x {h} and its image {pair.image} {width} x {height} pixels; a depth map must have "
            "its image's proportions: crop one as the other was"
        )


def _images_by_name(images: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file():
            name = _name(path, images, _IMAGE_WORD)
            if name in found:
                raise ValueError(f"{found[name]} and {path} go by one name; keep one, or put them into folders")
            found[name] = path
    if not found:
        raise ValueError(f"{images} holds no image; known endings: {', '.join(ENDINGS)}")
    return found


def _name(path: Path, root: Path, word: re.Pattern[str]) -> str:
    """What an image and its map have in common: folders beneath the root and the stem, without "_depth" or "_rgb"."""
    relative = path.relative_to(root).with_suffix("")
    stem = word.sub("", relative.name) or relative.name
    return (relative.parent / stem).as_posix()


def _pairs_inside(file: Path) -> list[DepthPair]:
    if file.suffix.lower() not in ARRAY_ENDINGS:
        raise ValueError(f"{file} holds depth alone; name the folder of its image")
    count = array_shape(file)[0]
    if count == 1 and not _holds_several(file):
        return [DepthPair(ImageFile(file), file)]
    return [DepthPair(ImageFile(file, index), file, index) for index in range(count)]


def _holds_several(file: Path) -> bool:
    """Whether the images are (N, ...), so that the maps are too."""
    import h5py

    with h5py.File(file, "r") as opened:
        return "images" in opened and opened["images"].ndim == 4
