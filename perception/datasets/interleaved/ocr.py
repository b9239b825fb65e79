"""What is written in an image and where: words with boxes, from an engine that runs offline or given with the data."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from perception.geometry.figure import Box

_LEAST_SIDE = 512
"""Pixels that the shorter side is brought to before it is read: single letters of small figures are missed otherwise"""
_MOST_SIDE = 2048
"""Pixels that the longer side is not brought above"""
_PIECE = re.compile(r"[^\s=]+")


@dataclass(frozen=True)
class Word:
    """Something written in an image."""

    text: str
    box: Box
    """x1, y1, x2, y2 in [0, 1]"""
    exact: bool = False
    """Whether the text is known rather than read: a reader cannot tell x from X, nor O from 0, that stand alone"""


ReadWords = Callable[[Image.Image, Sequence[Word]], list[Word]]
"""(image in RGB, what the row says is written in it) -> words"""


def given_marks(image: Image.Image, marks: Sequence[Word]) -> list[Word]:
    """The words that came with the row. Raises ValueError where none did."""
    if not marks:
        raise ValueError('the row has no "marks"; give them, or read the image with --ocr rapidocr')
    return list(marks)


class RapidOcr:
    """The engine of rapidocr, whose weights ship in its package. Reads one image at a time, whoever calls.

    Raises:
        ValueError: where it is not installed.
    """

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ValueError(
                f"reading images needs rapidocr and onnxruntime ({error}): pip install 'perception-tokens[ocr]'"
            ) from error
        self._engine: Any = RapidOCR(params={"Global.log_level": "error"})
        self._lock = threading.Lock()

    def __call__(self, image: Image.Image, marks: Sequence[Word] = ()) -> list[Word]:
        width, height = image.size
        scale = max(1.0, min(_LEAST_SIDE / min(width, height), _MOST_SIDE / max(width, height)))
        size = (round(width * scale), round(height * scale))
        larger = image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)
        pixels = np.ascontiguousarray(np.asarray(larger)[..., ::-1])  # (H, W, 3), blue first
        try:
            with self._lock:
                found = self._engine(pixels, use_cls=False)  # words of figures stand upright
        except Exception as error:  # onnxruntime and rapidocr raise classes of their own
            raise ValueError(f"rapidocr fails on the image ({error}); save it anew or take it out") from error
        if found.txts is None or found.boxes is None:
            return []
        words = []
        for text, corners in zip(found.txts, np.asarray(found.boxes), strict=True):  # (4, 2) pixels
            places = np.clip(corners / np.array(size), 0, 1)
            x1, y1 = places.min(0).tolist()
            x2, y2 = places.max(0).tolist()
            words += split_line(text, (x1, y1, x2, y2))
        return words


def split_line(text: str, box: Box) -> list[Word]:
    """The words of a line that was read as one, "AB = 5" as AB and 5: each has its characters' share of the box."""
    x1, y1, x2, y2 = box
    width = (x2 - x1) / max(1, len(text))
    return [
        Word(piece[0], (x1 + piece.start() * width, y1, x1 + piece.end() * width, y2))
        for piece in _PIECE.finditer(text)
    ]


OCR_ENGINES: dict[str, Callable[[], ReadWords]] = {"rapidocr": RapidOcr, "marks": lambda: given_marks}
"""What makes a reader: a neural engine, or the boxes that are given with the row."""
