"""Location bins of [0, 1], which boxes and points share, and drawing of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perception.vocabulary.names import PerceptionVocabulary, Span, SpanError

_TOLERANCE = 1e-6
_MARK_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


def text_to_codes(vocabulary: PerceptionVocabulary, modality: str, text: str) -> list[int]:
    """Return the codes of a text that is exactly one span of `modality`.

    Raises:
        SpanError: for a malformed span, another modality, or anything before or after it.
    """
    pieces = vocabulary.parse_text(text)
    if len(pieces) == 1 and isinstance(pieces[0], Span) and pieces[0].modality == modality:
        return list(pieces[0].codes)
    found = [piece.modality if isinstance(piece, Span) else "text" for piece in pieces]
    raise SpanError(
        f"expected one {modality} span, {vocabulary.start_name(modality)} to {vocabulary.end_name(modality)}, and "
        f"nothing else, got {found or 'an empty text'}; vocabulary.parse_text finds the spans of a whole answer"
    )


def as_places(value: Any, width: int, noun: str) -> NDArray[np.float64]:
    """Return `value` as an array (n, width) in [0, 1]; an empty one of any shape becomes (0, width).

    Raises:
        ValueError: for another shape, NaN, or values outside [0, 1].
    """
    places = np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=np.float64)
    if places.size == 0:
        return places.reshape(0, width)
    if places.ndim != 2 or places.shape[1] != width:
        columns = "x1, y1, x2, y2" if width == 4 else "x, y"
        raise ValueError(f"{noun} must be (n, {width}): {columns}; got shape {places.shape}")
    if not np.isfinite(places).all():
        raise ValueError(f"{noun} must be finite, got NaN or infinity; leave such {noun} out")
    if places.min() < -_TOLERANCE or places.max() > 1 + _TOLERANCE:
        divisor = "(width, height, width, height)" if width == 4 else "(width, height)"
        raise ValueError(
            f"{noun} must lie in [0, 1], got {places.min():g}..{places.max():g}; divide pixel {noun} by {divisor}"
        )
    return places


def to_bins(places: NDArray[np.float64], num_locations: int) -> NDArray[np.int64]:
    """Bin of each place in [0, 1]: floor(place * N), where 1 belongs to the last bin."""
    return np.clip((places * num_locations).astype(np.int64), 0, num_locations - 1)


def to_places(codes: Sequence[int], num_locations: int, width: int, noun: str) -> NDArray[np.float64]:
    """Return the centres (n, width) of the bins of flat codes.

    Raises:
        ValueError: for codes that do not fill rows of `width`, or lie outside 0..num_locations-1.
    """
    bins = np.asarray(codes)
    if bins.size == 0:
        return np.zeros((0, width))
    if bins.ndim != 1 or bins.size % width or not np.issubdtype(bins.dtype, np.integer):
        raise ValueError(
            f"codes of {noun} must be a flat list of integers, {width} each, got shape {bins.shape} of {bins.dtype}"
        )
    if bins.min() < 0 or bins.max() >= num_locations:
        raise ValueError(
            f"codes of {noun} must lie in 0..{num_locations - 1}, got {bins.min()}..{bins.max()}; "
            "use the num_locations they were encoded with"
        )
    return (bins.reshape(-1, width) + 0.5) / num_locations  # (n, width)


def mark_color(index: int) -> str:
    return _MARK_COLORS[index % len(_MARK_COLORS)]


def draw_label(
    canvas: ImageDraw.ImageDraw, image: Image.Image, corner: tuple[float, float], text: str, color: str
) -> None:
    """Draw white text on `color` with its upper left corner at `corner` in pixels, or so far moved that it fits."""
    font = ImageFont.load_default(size=max(9, min(image.size) // 18))
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(corner[0], image.width - width))
    y = max(0, min(corner[1], image.height - height))
    canvas.rectangle((x, y, x + width, y + height), fill=color)
    canvas.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)
