"""Find the grid cells that a step looks at: where the step's keywords are written in the image."""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perception.datasets.interleaved.ocr import Word
from perception.geometry.figure import Box
from perception.geometry.problems import covered_cells

_FUZZY_LETTERS, _FUZZY_RATIO = 4, 0.8
_POINTS_ON_A_LINE = 64
_NAME = re.compile(r"[A-Z]{2,6}")
_NUMBER = re.compile(r"(\d+(?:[.,]\d+)?)(?:°|º|cm|mm|km|m|ft|in)?")
_AROUND = " \t.,;:!?()[]{}∠△°º˚\"'="
_ALIKE = ("oO0", "lI1|", "xX", "cC", "kK", "pP", "sS", "uU", "vV", "wW", "zZ")
"""Characters that an OCR engine confuses if they stand alone"""
_VALUE = re.compile(r"[\d.,]+|[a-z]")


@dataclass(frozen=True)
class RegionRule:
    """How large the region around a word is."""

    margin: float = 0.02
    """margin around a word, as a share of the image's side"""
    reach: float = 0.3
    """largest distance between the centres of a corner's letter and a value for which the region covers both and what
    lies between; 0 for never"""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 0.5 or self.reach < 0:
            raise ValueError(f"margin must be in [0, 0.5) and reach at least 0, got {self.margin} and {self.reach}")


@dataclass(frozen=True)
class Match:
    """A keyword and the places where it is written."""

    text: str
    places: tuple[tuple[Box, ...], ...]
    """one tuple per occurrence: the boxes of its words, and points on the lines between them"""


def step_cells(
    keywords: Sequence[str], words: Sequence[Word], grid: tuple[int, int], rule: RegionRule | None = None
) -> tuple[int, ...]:
    """Cells of a grid (rows, columns), numbered row by row, that a step with these keywords looks at.

    Empty if no keyword is written in the image.
    """
    rule = rule or RegionRule()
    matches = [match for keyword in dict.fromkeys(keywords) for match in find_keyword(keyword, words)]
    settled = _nearest_places({match.text: match for match in matches})
    boxes = [box for match in settled for place in match.places for box in place]
    wide = [_widened(box, rule.margin) if box[0] < box[2] else box for box in boxes + _corners(settled, rule.reach)]
    return covered_cells(wide, grid)


def find_keyword(keyword: str, words: Sequence[Word]) -> list[Match]:
    """Find where a keyword is written; empty if it is not.

    It looks for the whole keyword first, then for the letters of a name (AB: both letters and the line between), then
    for its parts ("angle A": A).
    """
    text = _normal(keyword)
    if not text:
        return []
    if found := _written(text, words):
        return [Match(text, tuple((word.box,) for word in found))]
    if _NAME.fullmatch(text):
        return _compound(text, words)
    parts = text.split()
    return [match for part in parts for match in find_keyword(part, words)] if len(parts) > 1 else []


def _normal(text: str) -> str:
    text = text.strip(_AROUND)
    number = _NUMBER.fullmatch(text.replace(" ", ""))
    return number[1] if number else text


def _written(text: str, words: Sequence[Word]) -> list[Word]:
    """The words that match a text: exactly, else up to characters that OCR confuses, else approximately."""
    if exact := [word for word in words if _normal(word.text) == text]:
        return exact
    if len(text) == 1:
        alike = next((group for group in _ALIKE if text in group), "")
        read = [word for word in words if not word.exact]
        return [word for word in read if _normal(word.text) in tuple(alike)]
    if sum(letter.isalpha() for letter in text) < _FUZZY_LETTERS:
        return []
    ratios = [difflib.SequenceMatcher(None, text.casefold(), _normal(w.text).casefold()).ratio() for w in words]
    best = max(ratios, default=0.0)
    return [word for word, ratio in zip(words, ratios, strict=True) if ratio == best >= _FUZZY_RATIO]


def _compound(name: str, words: Sequence[Word]) -> list[Match]:
    """Find a name by its single letters; its region also covers the lines from each letter to the next."""
    found = [_written(letter, words) for letter in name]
    if not all(found):
        return []
    chosen = min(itertools.product(*[some[:4] for some in found[:4]]), key=_length)
    chosen += tuple(some[0] for some in found[4:])
    lines = [point for one, two in itertools.pairwise(chosen) for point in _line(one.box, two.box)]
    return [Match(name, ((*(word.box for word in chosen), *lines),))]


def _length(words: Sequence[Word]) -> float:
    return sum(math.dist(_centre(one.box), _centre(two.box)) for one, two in itertools.pairwise(words))


def _line(one: Box, two: Box) -> list[Box]:
    """Points, as boxes without extent, on the line between the centres of two words."""
    shares = np.linspace(0, 1, _POINTS_ON_A_LINE)[:, None]
    points = np.array(_centre(one)) * (1 - shares) + np.array(_centre(two)) * shares  # (P, 2)
    return [(x, y, x, y) for x, y in points.tolist()]


def _nearest_places(matches: dict[str, Match]) -> list[Match]:
    """Settle keywords that are written in several places.

    The place nearest to a keyword that is written once is kept; if there is no such keyword, all places are kept.
    """
    sure = [_centre(match.places[0][0]) for match in matches.values() if len(match.places) == 1]
    settled = []
    for match in matches.values():
        if len(match.places) > 1 and sure:
            nearest = min(match.places, key=lambda place: min(math.dist(_centre(place[0]), other) for other in sure))
            match = Match(match.text, (nearest,))
        settled.append(match)
    return settled


def _corners(matches: Sequence[Match], reach: float) -> list[Box]:
    """Boxes around the letter of a corner and the value at it; the corner lies between them."""
    letters = [m for m in matches if len(m.text) == 1 and m.text.isupper() and len(m.places) == 1]
    values = [m for m in matches if _VALUE.fullmatch(m.text) and len(m.places) == 1]
    found = []
    for value in values:
        (box,) = value.places[0]
        near = [(math.dist(_centre(box), _centre(one.places[0][0])), one.places[0][0]) for one in letters]
        if near and min(near)[0] <= reach:
            found.append(_hull(box, min(near)[1]))
    return found


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _hull(one: Box, two: Box) -> Box:
    return min(one[0], two[0]), min(one[1], two[1]), max(one[2], two[2]), max(one[3], two[3])


def _widened(box: Box, margin: float) -> Box:
    x1, y1, x2, y2 = box
    return max(0.0, x1 - margin), max(0.0, y1 - margin), min(1.0, x2 + margin), min(1.0, y2 + margin)
