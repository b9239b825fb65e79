"""The one loader of pictures: every image that a user gives is decoded here.

What a file holds becomes one upright 8-bit RGB picture:

| file | picture |
|---|---|
| EXIF orientation (photos of phones and cameras) | turned upright; boxes and points refer to the upright picture |
| transparency, in a channel or a palette | over white |
| grey of more than 8 bits, floating point | scaled from its smallest and largest value to 0..255; said once |
| colours of 16 bits per channel | scaled from 0..65535; refused if almost black, or in a TIFF of separate planes |
| several frames or pages (GIF, WebP, APNG, TIFF) | the first one; said once |
| a side over `MAX_ASPECT` times the other | refused, as vision-language models refuse it or enlarge it beyond memory |
"""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from perception.model.prepared_images import PreparedImage

ImageLike = Any
"""A path, a PIL image, a (H, W, 3) uint8 array or tensor, or a `PreparedImage`"""
MAX_ASPECT = 200
"""Longest side over shortest side; the limit of Qwen-VL's processors"""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation"""
_SWAPS_SIDES = (5, 6, 7, 8)
_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_LEAST_BRIGHT = 16
"""A picture of deep colours without a brighter pixel is of 10 or 12 bits in 16, and would be nearly black"""
_BITS, _PLANES = 258, 284
"""Tags of TIFF: bits of each channel, and whether each has a plane of its own (2)"""
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "PA")
_ONE_PICTURE = ("MPO", "PSD")
"""Formats whose further frames are previews, gain maps or layers of the first one"""
_ERRORS = (OSError, EOFError, SyntaxError, ValueError, LookupError, TypeError, RuntimeError, struct.error)
"""What PIL raises for damaged files"""

_logger = logging.getLogger(__name__)
_said = set[str]()


class ImageError(ValueError):
    """Why a picture cannot be used, as the rest of a sentence that begins with its name."""


class DamagedImage(ImageError):
    """A file of a known format that cannot be decoded."""


class UnknownFormat(ImageError):
    """A file that is not an image, or not in a format that is accepted."""


def load_image(image: ImageLike, least_side: int | None = None) -> Image.Image:
    """Return an upright RGB PIL image for a path, a PIL image, a (H, W, 3) uint8 array or tensor, or a `PreparedImage`.

    Args:
        least_side: see `decode_image`; for paths.

    Raises:
        ValueError: naming the file that is missing, is no image, is corrupt, or is too long and thin; or the shape that
            was given.
    """
    if isinstance(image, PreparedImage):
        return image.image
    if isinstance(image, str | Path):
        path = Path(image)
        if re.match(r"\w{2,}:/", str(image)):
            raise ValueError(f"{image} is an address; fetch the image, and give its path")
        if not path.is_file():
            raise ValueError(f"{path} does not exist or is not a file; give the path of an image")
        try:
            return decode_image(path, least_side=least_side)
        except ImageError as error:
            raise ValueError(f"{path} {error}") from error
    if isinstance(image, Image.Image):
        name = getattr(image, "filename", None) or "the image"
        try:
            return _picture(image, str(name))
        except ImageError as error:
            raise ValueError(f"{name} {error}") from error
    shape, dtype = getattr(image, "shape", None), str(getattr(image, "dtype", None)).removeprefix("torch.")
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != "uint8":
        got = type(image).__name__ if shape is None else f"{tuple(shape)} {dtype}"
        raise ValueError(f"an image array must be (H, W, 3) uint8, got {got}; scale to 0..255 and move colours last")
    return load_image(Image.fromarray(image.cpu().numpy() if isinstance(image, Tensor) else image))


def decode_image(
    file: Path | BinaryIO,
    formats: tuple[str, ...] | None = None,
    check_size: Callable[[int, int], None] | None = None,
    least_side: int | None = None,
) -> Image.Image:
    """Decode an image file as an upright RGB picture. `load_image` names the file in errors; this is for other callers.

    Args:
        formats: accepted file formats; None for all that PIL reads.
        check_size: called with width and height before any pixel is decoded; may raise.
        least_side: a JPEG is decoded at a half, a quarter or an eighth of its size, which takes a fraction of the time,
            as long as its shorter side keeps this many pixels; None: at its own size.

    Raises:
        ImageError: for a file that is no image, is damaged or too large, or a picture that is too long and thin.
    """
    with _errors_of_pil():
        opened = Image.open(file, formats=formats)
    with opened:
        if check_size is not None:
            check_size(opened.width, opened.height)
        if least_side is not None and (share := least_side / max(1, min(opened.size))) < 1:
            opened.draft(None, (math.ceil(share * opened.width), math.ceil(share * opened.height)))
        return _picture(opened, str(file) if isinstance(file, Path) else "an image")


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the image that `load_image` would give: of the upright picture, where EXIF turns it.

    Reads the header only, but for PNG and TIFF, which may keep their orientation behind the pixels.

    Raises:
        ValueError: naming the file that is missing, cannot be read, or is too long and thin.
    """
    try:
        with _errors_of_pil(), Image.open(path) as opened:
            if opened.format == "TIFF":
                opened.load()  # which turns the picture
            height, width = opened.height, opened.width
            if _orientation(opened) in _SWAPS_SIDES:
                height, width = width, height
            _check_shape(width, height)
            return height, width
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except ImageError as error:
        raise ValueError(f"{path} cannot be read as an image: it {error}") from error


@contextmanager
def _errors_of_pil() -> Iterator[None]:
    """Turn what PIL raises into an `ImageError`; a missing file stays a FileNotFoundError."""
    try:
        yield
    except (ImageError, FileNotFoundError):
        raise
    except UnidentifiedImageError:
        raise UnknownFormat("is not an image in a known format; give a PNG or JPEG file") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"is too large an image ({error}); scale it down") from error
    except _ERRORS as error:
        raise DamagedImage(f"is a corrupt image ({error}); save it anew or give another") from error


def _check_shape(width: int, height: int) -> None:
    short, long = sorted((width, height))
    if not short:
        raise ImageError(f"has no pixels ({width} x {height}); give another image")
    if long > MAX_ASPECT * short:
        raise ImageError(
            f"has {width} x {height} pixels; a side may be at most {MAX_ASPECT} times the other: crop or split it"
        )


def _picture(image: Image.Image, name: str) -> Image.Image:
    """The upright RGB picture of an image of PIL, which stays as it is. Raises ImageError."""
    _check_shape(image.width, image.height)
    with _errors_of_pil():
        if image.format not in _ONE_PICTURE and getattr(image, "is_animated", False) and not image.tell():
            _say_once("frames", f"{name} has several frames or pages; of such images the first one is used")
        deep = has_deep_colours(image)
        image.load()
        turn = _TURNS.get(_orientation(image))
        if deep and np.asarray(image.convert("RGB")).max() < _LEAST_BRIGHT:
            raise ImageError("has 16 bits per channel and uses only the lowest of them; scale it to 8 bits per channel")
        picture = _rgb(image, name)
    picture.info = {}  # without the EXIF data, which would turn it again
    return picture if turn is None else picture.transpose(turn)


def has_deep_colours(image: Image.Image) -> bool:
    """True for a file with colours of more than 8 bits per channel that PIL has opened and will read as 8 bits.

    Raises:
        ImageError: if PIL would read wrong bytes of it.
    """
    tags = getattr(image, "tag_v2", {})
    if max(tags.get(_BITS, ()), default=0) > 8 and tags.get(_PLANES) == 2:
        raise ImageError("is a TIFF of 16 bits and one plane per channel, which is not read; save it as PNG or JPEG")
    return image.mode not in _DEEP_MODES and ";16" in str(getattr(image, "tile", ""))


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 to 8; 1 where there is none or the EXIF data cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except _ERRORS:
        return 1
    return found if found in _TURNS else 1


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """A copy in RGB: transparency over white, deep grey scaled to 8 bits."""
    if image.mode == "LAB":
        raise ImageError("is in the colour space LAB, which is not read; save it in RGB")
    if image.mode in _DEEP_MODES:
        return _scaled(image, name)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        over = Image.new("RGB", image.size, "white")
        over.paste(image, mask=image.getchannel("A"))
        return over
    return image.convert("RGB")


def _scaled(image: Image.Image, name: str) -> Image.Image:
    """Grey of more than 8 bits in RGB, its smallest value black and its largest white; values that are not finite are
    black."""
    values = np.asarray(image).astype(np.float64)  # (H, W)
    finite = np.isfinite(values)
    if not finite.any():
        raise ImageError("holds no finite value; give a picture that shows something")
    low, high = (float(end(values[finite])) for end in (np.min, np.max))
    _say_once(
        "range",
        f"{name} is grey with more than 8 bits and was scaled from {low:g}..{high:g} to 0..255; such images are each "
        "scaled by their own range: convert them to 8 bits where another range is meant",
    )
    grey = np.where(finite, (values - low) * (255 / (high - low) if high > low else 0), 0)
    return Image.fromarray(grey.round().astype(np.uint8)).convert("RGB")


def _say_once(kind: str, text: str) -> None:
    if kind not in _said:
        _said.add(kind)
        _logger.warning(text)
