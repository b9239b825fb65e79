"""Limits on what visitors may send (size, kind and length), with friendly messages for what is refused."""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from perception.datasets.depth.files import DepthFormat, NotDepth, as_maps, picture_depth, to_depth
from perception.model.images import DamagedImage, ImageError, UnknownFormat, decode_image

MAX_BYTES = 20 * 1024 * 1024
MAX_PIXELS = 40_000_000
MAX_QUESTION = 300
"""characters"""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
DEPTH_ENDINGS = (".png", ".npy")
_LONGEST = 1024
"""longest side, in pixels, of the picture that is kept; no model here uses more"""


class Refused(ValueError):
    """Something a visitor sent that is not accepted; the message is for the visitor."""


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise Refused("the upload is gone; send it again")
    if path.stat().st_size > MAX_BYTES:
        raise Refused(f"the file is larger than {MAX_BYTES // 2**20} MB; scale it down")
    return path.read_bytes()


def read_image(path: str | Path | None) -> Image.Image:
    """Read an upload as an RGB image, scaled down to what is needed.

    Raises:
        Refused: for no file, one that is too large, of another kind, or damaged.
    """
    if path is None:
        raise Refused("choose an image first: upload one, or click an example")
    data = _bytes_of(Path(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at below
        try:
            picture = decode_image(io.BytesIO(data), IMAGE_FORMATS, _check_pixels)
        except UnknownFormat:
            raise Refused(f"this is no image that can be read here; send one of {', '.join(IMAGE_FORMATS)}") from None
        except DamagedImage as error:
            raise Refused(f"the image is damaged ({error.__cause__}); save it anew and send it again") from None
        except ImageError as error:
            raise Refused(f"the image {error}") from None
    picture.thumbnail((_LONGEST, _LONGEST))
    return picture


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Refused(
            f"the image has {width} x {height} pixels, more than {MAX_PIXELS // 10**6} megapixels; scale it down"
        )


def read_question(text: str | None) -> str:
    """Read a question, stripped. Raises Refused for one that is empty or too long."""
    question = (text or "").strip()
    if not question:
        raise Refused("write a question first, such as: How many red cubes are there?")
    if len(question) > MAX_QUESTION:
        raise Refused(f"the question has {len(question):,} characters; {MAX_QUESTION} are enough for anyone")
    return question


def read_depth_map(path: str | Path | None, inverse: bool) -> Tensor:
    """Read an upload as depth (H, W), NaN in holes.

    The file is a grey PNG of 8 or 16 bits in any unit, or an array in NPY. Zeros are holes in depth,
    and the farthest in inverse depth.

    Args:
        inverse: the file holds disparity or inverse depth, larger is nearer.

    Raises:
        Refused: as `read_image`, or for an array that is no map, or a map without a valid pixel.
    """
    if path is None:
        raise Refused("choose a depth map first: upload one, or click an example")
    path = Path(path)
    data = _bytes_of(path)
    ending = path.suffix.lower()
    if ending == ".npy":
        values = _read_array(data)
    elif ending == ".png":
        values = _read_grey(data)
    else:
        raise Refused(f"a depth map must end in {' or '.join(DEPTH_ENDINGS)}, got {ending or 'no ending'}")
    try:
        maps = as_maps(values)  # (N, H, W)
    except NotDepth as error:
        raise Refused(f"the file {error}") from None
    if len(maps) != 1:
        raise Refused(f"the file holds {len(maps)} maps; upload one")
    depth = to_depth(maps[0], 1.0, DepthFormat("inverse" if inverse else "depth"))  # (H, W)
    depth = torch.where(depth.isfinite() & (depth > 0), depth, torch.nan)
    if not bool(depth.isfinite().any()):
        raise Refused("the map holds no valid pixel (finite and above 0)")
    return depth


def _read_array(data: bytes) -> np.ndarray:
    try:
        header = io.BytesIO(data)
        version = np.lib.format.read_magic(header)
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(header)
        if len(shape) not in (2, 3, 4) or dtype.kind not in "fiu" or 0 in shape:
            raise Refused(f"a depth map must be (H, W) numbers, got {shape} of {dtype}")
        _check_pixels(shape[-1], math.prod(shape[:-1]))
        array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    except Refused:
        raise
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise Refused(f"the NPY file is damaged ({error}); save it anew") from None
    return array


def _read_grey(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=["PNG"]) as opened:
                _check_pixels(opened.width, opened.height)
            return picture_depth(io.BytesIO(data), DepthFormat("inverse"))[0]  # which takes 8 bits too
        except Refused:
            raise
        except NotDepth as error:
            raise Refused(f"the file {error}") from None
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            raise Refused(f"the PNG is damaged ({error}); save it anew") from None
