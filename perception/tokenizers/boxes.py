"""`BoxTokenizer`: boxes as locations x1 y1 x2 y2, each a bin of [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from perception.model.images import load_image
from perception.tokenizers.locations import as_places, draw_label, mark_color, text_to_codes, to_bins, to_places
from perception.vocabulary.names import PerceptionVocabulary, Span

ROWS = 10
"""Number of rows that the image is cut into to order boxes"""


def _as_boxes(value: Any) -> NDArray[np.float64]:
    boxes = as_places(value, 4, "boxes")  # (n, 4)
    flipped = (boxes[:, 2:] < boxes[:, :2]).any(1)  # (n,)
    if flipped.any():
        raise ValueError(
            f"boxes must have x2 >= x1 and y2 >= y1, got {boxes[flipped][0].tolist()}; turn x, y, w, h into corners"
        )
    return boxes


def reading_order(bins: NDArray[np.int64], num_locations: int) -> NDArray[np.int64]:
    """Places (n,) of boxes (n, 4) in bins, in the order in which they are written (see `BoxTokenizer`)."""
    columns, heights = bins[:, 0] + bins[:, 2], bins[:, 1] + bins[:, 3]  # (n,), twice the centres
    return np.lexsort((*bins.T, columns, heights * ROWS // (2 * num_locations)))  # the last key counts first


class BoxTokenizer:
    """Converts boxes to flat location bins and back; a decoded side is off by at most half a bin.

    Boxes are written row by row: the image is cut into `ROWS` rows, a box belongs to the row of its centre, and boxes
    of a row are ordered from left to right by their centres, then by their sides. This is the order in which a model
    that scans the image's tokens finds the objects.
    """

    modality = "boxes"

    def __init__(self, num_locations: int = 100, naming: str = "default"):
        self.num_locations = num_locations
        self.vocabulary = PerceptionVocabulary(num_locations=num_locations, naming=naming)

    def encode(self, boxes_xyxy: Any) -> list[int]:
        """Codes (4n,) of boxes (n, 4) in [0, 1]: array, tensor or nested lists. No boxes give no codes.

        Raises:
            ValueError: for another shape, NaN, pixel boxes, or x2 < x1 or y2 < y1.
        """
        boxes = _as_boxes(boxes_xyxy)  # (n, 4)
        bins = to_bins(boxes, self.num_locations)  # (n, 4)
        return [int(code) for code in bins[reading_order(bins, self.num_locations)].ravel()]

    def mirror(self, codes: Sequence[int]) -> list[int]:
        """Codes (4n,) of the same boxes in the image's mirror image, left and right exchanged.

        They are in the order of `encode` again; codes that were not keep their order.
        """
        bins = np.array(codes, dtype=np.int64).reshape(-1, 4)
        mirrored = bins.copy()
        mirrored[:, [0, 2]] = self.num_locations - 1 - bins[:, [2, 0]]
        if (reading_order(bins, self.num_locations) == np.arange(len(bins))).all():
            mirrored = mirrored[reading_order(mirrored, self.num_locations)]
        return [int(code) for code in mirrored.ravel()]

    def decode(self, codes: Sequence[int]) -> NDArray[np.float64]:
        """Boxes (n, 4), xyxy in [0, 1], for codes (4n,), in their order.

        Raises:
            ValueError: for codes that do not make whole boxes, are out of range, or have x2 < x1 or y2 < y1.
        """
        boxes = to_places(codes, self.num_locations, 4, "boxes")  # (n, 4)
        if (boxes[:, 2:] < boxes[:, :2]).any():
            raise ValueError(
                "codes of boxes must have x2 >= x1 and y2 >= y1; generate with SpanGrammar(ordered_boxes=True) or drop "
                "such boxes"
            )
        return boxes

    def to_text(self, codes: Sequence[int]) -> str:
        """The span by token names, without spaces."""
        return self.vocabulary.span_text(Span(self.modality, tuple(codes)))

    def from_text(self, text: str) -> list[int]:
        """Codes of exactly one span. Raises SpanError for anything else."""
        return text_to_codes(self.vocabulary, self.modality, text)

    def draw(self, boxes_xyxy: Any, image: Image.Image) -> Image.Image:
        """A copy of the image with boxes (n, 4) in [0, 1] outlined, numbered from 1. Raises ValueError as `encode`."""
        boxes = _as_boxes(boxes_xyxy)  # (n, 4)
        drawn = load_image(image)
        canvas = ImageDraw.Draw(drawn)
        scale = np.array([drawn.width - 1, drawn.height - 1] * 2)
        for i, box in enumerate(boxes * scale):
            x1, y1, x2, y2 = (round(side) for side in box)
            canvas.rectangle((x1, y1, x2, y2), outline=mark_color(i), width=max(1, min(drawn.size) // 100))
            draw_label(canvas, drawn, (x1, y1), str(i + 1), mark_color(i))
        return drawn
