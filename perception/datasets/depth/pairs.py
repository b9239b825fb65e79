"""Pairs of images and depth maps: two folders with matching names (as ADE20K), or files that hold both (as NYUv2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from perception.datasets.depth.files import DepthFormat, depth_files, read_depth
from perception.datasets.images import ARRAY_ENDINGS, ENDINGS, ImageFile, array_shape
from perception.datasets.listing import files_beneath
from perception.datasets.records import bad_row

ASPECT_TOLERANCE = 0.02
"""Largest relative difference between the aspect ratios of an image and its depth map; resolutions may differ"""
_DEPTH_WORD = re.compile(r"[_.-]?(?:depth|depths|disp|disparity)$", re.IGNORECASE)
_IMAGE_WORD = re.compile(r"[_.-]?(?:rgb|image|img|color|colour)$", re.IGNORECASE)


@dataclass(frozen=True)
class DepthPair:
    """An image and its depth map."""

    image: ImageFile
    depth: Path
    index: int | None = None
    """number of the map in a file that holds several"""

    def name_in(self, root: Path) -> str:
        """The map's name in the codes that `tokenize` (in `depth.jobs`) makes of all maps beneath `root`."""
        return self.depth.relative_to(root).as_posix() + ("" if self.index is None else f":{self.index}")


def find_pairs(depth: Path, images: Path | None = None, skipped: list[str] | None = None) -> list[DepthPair]:
    """Find the image of every depth map in a folder or file.

    Args:
        images: folder of images with matching names: depth/a/1.png and depth/a/1_depth.png both belong to
            images/a/1.jpg. Images without a depth map are ignored. None if the depth files also hold the images (HDF5,
            or MATLAB 7.3 as in NYUv2's labelled set).
        skipped: gets a message for each map without an image, and the others are returned; None: it is an error.

    Raises:
        ValueError: naming the depth map that has no image, two images with the same name, or a file without images.
            With `skipped`, if no map has an image.
    """
    files, pairs = depth_files(depth), list[DepthPair]()
    if images is None:
        for file in files:
            with bad_row(skipped):
                pairs += _pairs_inside(file)
        if not pairs and skipped:
            raise ValueError(f"no file beneath {depth} holds images and depth; the first: {skipped[0]}")
        return pairs
    if not images.is_dir():
        raise ValueError(f"{images} is not a folder; give the folder that holds the images of {depth}")
    root = depth if depth.is_dir() else depth.parent
    by_name = _images_by_name(images)
    missing = list[Path]()
    for file in files:
        image = by_name.get(_name(file, root, _DEPTH_WORD))
        if image is None:
            missing.append(file)
        else:
            pairs.append(DepthPair(ImageFile(image), file))
    if skipped is not None and pairs:
        skipped += [f"{file} has no image in {images}; put it there, or remove the map" for file in missing]
    elif missing:
        first = missing[0].relative_to(root)
        raise ValueError(
            f"{len(missing)} of {len(files)} depth maps beneath {root} have no image, the first is {first}; put "
            f"{images / first.with_suffix('.jpg')} there (any of {', '.join(ENDINGS)}), or remove the map"
        )
    return pairs


def read_pairs(
    pairs: list[DepthPair],
    meant: DepthFormat = DepthFormat(),  # noqa: B008
    skipped: list[str] | None = None,
) -> Iterator[tuple[DepthPair, Tensor]]:
    """Yield each pair with its depth (H, W): larger is farther, NaN and values up to 0 are holes.

    Pairs of one file come together, so that each file is read once.

    Args:
        skipped: gets a message for each pair that cannot be used, and the others are read; None: it is an error.

    Raises:
        ValueError: naming a file that cannot be read, or whose proportions differ from its image's.
    """
    by_file: dict[Path, dict[int | None, DepthPair]] = {}
    for pair in pairs:
        by_file.setdefault(pair.depth, {})[pair.index] = pair
    for file, wanted in by_file.items():
        with bad_row(skipped):
            for suffix, depth in read_depth(file, meant):
                found = wanted.get(int(suffix[1:]) if suffix else None)
                if found is None and None in wanted:
                    raise ValueError(
                        f"{file} holds several maps for one image, {wanted[None].image}; write one map per file"
                    )
                with bad_row(skipped):
                    if found is not None:
                        check_proportions(found, depth)
                        yield found, depth


def check_proportions(pair: DepthPair, depth: Tensor) -> None:
    """Raise ValueError, naming both files, if depth (H, W) has other proportions than its image."""
    (height, width), (h, w) = pair.image.size(), depth.shape
    if abs(height * w / (width * h) - 1) > ASPECT_TOLERANCE:
        raise ValueError(
            f"{pair.depth} is {w} x {h} and its image {pair.image} {width} x {height} pixels; a depth map must have "
            "the proportions of its image: crop both alike"
        )


def _images_by_name(images: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in files_beneath(images, ENDINGS):
        name = _name(path, images, _IMAGE_WORD)
        if name in found:
            raise ValueError(
                f"{found[name]} and {path} go by one name; keep one of them, or put them into different folders"
            )
        found[name] = path
    if not found:
        raise ValueError(f"{images} holds no image; known endings: {', '.join(ENDINGS)}")
    return found


def _name(path: Path, root: Path, word: re.Pattern[str]) -> str:
    """The name that an image and its map share: path beneath the root, without the ending, "_depth" and "_rgb"."""
    relative = path.relative_to(root).with_suffix("")
    stem = word.sub("", relative.name) or relative.name
    return (relative.parent / stem).as_posix()


def _pairs_inside(file: Path) -> list[DepthPair]:
    if file.suffix.lower() not in ARRAY_ENDINGS:
        raise ValueError(f"{file} holds depth alone; name the folder of its image")
    count = array_shape(file)[0]
    if count == 1:
        return [DepthPair(ImageFile(file), file)]
    return [DepthPair(ImageFile(file, index), file, index) for index in range(count)]
