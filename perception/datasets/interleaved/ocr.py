"""Words in an image and their boxes, read by an offline OCR engine or given with the data."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from perception.geometry.figure import Box

_LEAST_SIDE = 512
"""Pixels that the shorter side is enlarged to, because single letters of small figures are missed otherwise"""
_MOST_SIDE = 2048
"""Pixels that the longer side is enlarged to at most"""
_PIECE = re.compile(r"[^\s=]+")


@dataclass(frozen=True)
class Word:
    """A word in an image."""

    text: str
    box: Box
    """x1, y1, x2, y2 in [0, 1]"""
    exact: bool = False
    """True if the text is known. An OCR engine confuses single characters such as x and X, or O and 0"""


ReadWords = Callable[[Image.Image, Sequence[Word]], list[Word]]
"""(image in RGB, words that the row gives) -> words"""


def given_marks(image: Image.Image, marks: Sequence[Word]) -> list[Word]:
    """The words that the row gives. Raises ValueError if there are none."""
    if not marks:
        raise ValueError('the row has no "marks"; give them, or read the image with --making.ocr rapidocr')
    return list(marks)


class RapidOcr:
    """Reads words with rapidocr, whose weights come with its package. Threads take turns.

    Raises:
        ValueError: if rapidocr is not installed.
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
        pixels = np.ascontiguousarray(np.asarray(larger)[..., ::-1])  # (H, W, 3) in BGR
        try:
            with self._lock:
                found = self._engine(pixels, use_cls=False)  # words in figures are upright
        except Exception as error:  # onnxruntime and rapidocr raise their own classes
            raise ValueError(f"rapidocr fails on the image ({error}); save it again or remove it") from error
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
    """Split a line ("AB = 5") into words (AB and 5); each gets its characters' share of the line's box."""
    x1, y1, x2, y2 = box
    width = (x2 - x1) / max(1, len(text))
    return [
        Word(piece[0], (x1 + piece.start() * width, y1, x1 + piece.end() * width, y2))
        for piece in _PIECE.finditer(text)
    ]


OcrEngine = Literal["rapidocr", "marks"]
OCR_ENGINES: dict[OcrEngine, Callable[[], ReadWords]] = {"rapidocr": RapidOcr, "marks": lambda: given_marks}
"""Sources of words: the rapidocr engine, or the words given with each row."""
