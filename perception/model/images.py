"""The one loader of pictures: every image that a user gives is decoded here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from perception.model.prepared_images import PreparedImage

ImageLike = Any
"""A path, a PIL image, a (H, W, 3) uint8 array or tensor, or a `PreparedImage`"""


def load_image(image: ImageLike) -> Image.Image:
    """Return an RGB PIL image for a path, a PIL image, a (H, W, 3) uint8 array or tensor, or a `PreparedImage`.

    Raises:
        ValueError: naming the file that is missing, is no image, or is corrupt; or the shape that was given.
    """
    if isinstance(image, PreparedImage):
        return image.image
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise ValueError(f"{path} does not exist or is not a file; give the path of an image")
        try:
            return decode_image(path)
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not an image in a known format; give a PNG or JPEG file") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is a corrupt image ({error}); save it anew or give another") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} is too large an image ({error}); scale it down") from error
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or str(dtype) != "uint8":
        got = type(array).__name__ if shape is None else f"{tuple(shape)} {dtype}"
        raise ValueError(f"an image array must be (H, W, 3) uint8, got {got}; scale to 0..255 and move colours last")
    return Image.fromarray(array)


def decode_image(
    file: Path | BinaryIO,
    formats: tuple[str, ...] | None = None,
    check_size: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Decode an image file in RGB. Errors are PIL's, for callers with words of their own; others use `load_image`.

    Args:
        formats: accepted file formats; None for all that PIL reads.
        check_size: called with width and height before any pixel is decoded; may raise.
    """
    with Image.open(file, formats=formats) as opened:
        if check_size is not None:
            check_size(opened.width, opened.height)
        return opened.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the image that `load_image` would give, without decoding its pixels.

    Raises:
        ValueError: naming the file that is missing or cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return opened.height, opened.width
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image ({error}); save it anew or take it out") from error
