"""`PointTokenizer`: points as locations x y, each a bin of [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perception.model.images import load_image
from perception.tokenizers.locations import as_places, draw_label, mark_color, text_to_codes, to_bins, to_places
from perception.vocabulary.names import PerceptionVocabulary, Span


def letter(index: int) -> str:
    """Name of the point at an index: A, B, ..., Z, AA, AB, ..."""
    name = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        name = chr(ord("A") + rest) + name
    return name


class PointTokenizer:
    """Converts points to flat location bins and back, in the order of their letters; off by at most half a bin."""

    modality = "points"

    def __init__(self, num_locations: int = 100, naming: str = "default"):
        self.num_locations = num_locations
        self.vocabulary = PerceptionVocabulary(num_locations=num_locations, naming=naming)

    def encode(self, points_xy: Any) -> list[int]:
        """Codes (2n,) of points (n, 2) in [0, 1]: array, tensor or nested lists.

        Raises:
            ValueError: for another shape, NaN, or points in pixels.
        """
        bins = to_bins(as_places(points_xy, 2, "points"), self.num_locations)  # (n, 2)
        return [int(code) for code in bins.ravel()]

    def decode(self, codes: Sequence[int]) -> NDArray[np.float64]:
        """Points (n, 2), xy in [0, 1], of codes (2n,).

        Raises:
            ValueError: for codes that do not make whole points or are out of range.
        """
        return to_places(codes, self.num_locations, 2, "points")

    def to_text(self, codes: Sequence[int]) -> str:
        """The span by token names, without spaces."""
        return self.vocabulary.span_text(Span(self.modality, tuple(codes)))

    def from_text(self, text: str) -> list[int]:
        """Codes of exactly one span. Raises SpanError for anything else."""
        return text_to_codes(self.vocabulary, self.modality, text)

    def draw(self, points_xy: Any, image: Image.Image) -> Image.Image:
        """A copy of the image with points (n, 2) in [0, 1] marked, lettered from A. Raises ValueError as `encode`."""
        points = as_places(points_xy, 2, "points")  # (n, 2)
        drawn = load_image(image)
        canvas = ImageDraw.Draw(drawn)
        radius = max(2.0, min(drawn.size) / 60)
        for i, (x, y) in enumerate(points * np.array([drawn.width - 1, drawn.height - 1])):
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=mark_color(i), outline="white")
            draw_label(canvas, drawn, (float(x) + radius, float(y) + radius), letter(i), mark_color(i))
        return drawn
