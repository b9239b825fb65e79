"""Lettered markers on photographs, drawn in many ways, so that a model reads those of others as well.

Published sets and people mark points by rings, discs or dots, with the letter inside or beside, plain, outlined or on a
box, in many colours (BLINK and HardBLINK: a red ring of some 10 pixels and a white letter on a black box above it, on
images of 336 pixels). All markers of an image share a style.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.scenes.markers import draw_markers

_COLORS = {
    "red": (235, 30, 30),
    "white": (250, 250, 250),
    "yellow": (250, 225, 30),
    "black": (10, 10, 10),
    "green": (40, 210, 60),
    "blue": (40, 90, 240),
    "magenta": (235, 50, 220),
    "cyan": (40, 220, 230),
}
_LIKELY = {"red": 0.3, "white": 0.2, "yellow": 0.15, "black": 0.1, "green": 0.1, "blue": 0.05}
_DISCS = 0.15  # share of images with the markers of rendered scenes, which the demos draw
_PUBLISHED = 0.25  # share of styles that are those of published sets
_FONTS = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif-Bold.ttf")


@dataclass(frozen=True)
class MarkStyle:
    """How the markers of an image are drawn; lengths are shares of the image's side."""

    shape: str
    """ring, disc, dot, square, or none (the letter alone)"""
    radius: float
    color: tuple[int, int, int]
    letter: float
    """height of a letter"""
    letter_color: tuple[int, int, int]
    where: str
    """place of the letter: inside, above, below, right, left"""
    behind: str
    """what is behind the letter: nothing, box, outline"""
    font: str
    """file of a TrueType font; empty: Pillow's own"""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> MarkStyle:
        """Draw a style."""
        if rng.random() < _PUBLISHED:
            return cls.published(rng)

        def color() -> tuple[int, int, int]:
            names = [*_COLORS]
            weights = np.array([_LIKELY.get(name, 0.05) for name in names])
            base = np.array(_COLORS[names[int(rng.choice(len(names), p=weights / weights.sum()))]])
            red, green, blue = np.clip(base + rng.integers(-15, 16, size=3), 0, 255).tolist()
            return red, green, blue

        shape = str(rng.choice(["ring", "disc", "dot", "square", "none"], p=[0.45, 0.2, 0.15, 0.1, 0.1]))
        letter = float(rng.uniform(0.026, 0.065))
        inside = shape == "none" or (shape in ("ring", "disc", "square") and rng.random() < 0.3)
        where = "inside" if inside else str(rng.choice(["above", "right", "below", "left"], p=[0.5, 0.3, 0.1, 0.1]))
        radius = letter * rng.uniform(0.7, 0.95) if inside else rng.uniform(0.008, 0.028)
        fill = color()
        letters = color() if rng.random() < 0.6 else _COLORS["white"]
        behind = str(rng.choice(["box", "outline", "nothing"], p=[0.5, 0.4, 0.1]))
        if shape in ("disc", "dot") and inside and _alike(fill, letters):
            letters = _opposite(fill)
        fonts = ("", *_fonts())
        return cls(shape, float(radius), fill, letter, letters, where, behind, fonts[int(rng.integers(len(fonts)))])

    @classmethod
    def published(cls, rng: np.random.Generator) -> MarkStyle:
        """Draw a style of BLINK or HardBLINK: a red ring and a small white letter on a black box above or beside it."""
        red, white, fonts = (255, 0, 0), (255, 255, 255), ("", *_fonts())
        radius, letter = rng.uniform((0.012, 0.021), (0.034, 0.032)).tolist()
        where = "above" if rng.random() < 0.8 else "right"
        return cls("ring", radius, red, letter, white, where, "box", fonts[int(rng.integers(len(fonts)))])


def mark(
    image: Tensor, points: np.ndarray, rng: np.random.Generator | None = None, *, published: bool = False
) -> Tensor:
    """Return a copy of `image` (H, W, 3) uint8 with a lettered marker at each of `points` (count, 2) in [0, 1].

    Without `rng` the markers are those of rendered scenes (`perception.scenes.markers.draw_markers`); with `published`
    they are always those of BLINK and HardBLINK.
    """
    if rng is None or (not published and rng.random() < _DISCS):
        return draw_markers(image, points)
    canvas = Image.fromarray(image.numpy().copy())
    draw_styled(canvas, points, MarkStyle.published(rng) if published else MarkStyle.draw(rng))
    return torch.from_numpy(np.array(canvas))


def draw_styled(canvas: Image.Image, points: np.ndarray, style: MarkStyle) -> None:
    """Draw markers at `points` (count, 2) in [0, 1] onto an RGB image, in place."""
    pen, side = ImageDraw.Draw(canvas), min(canvas.size)
    radius, height = max(2.0, style.radius * side), max(7.0, style.letter * side)
    font = _font(style.font, round(1.35 * height))  # a capital is some 0.74 of a font's size
    for letter, (px, py) in zip(POINT_LETTERS, points, strict=False):
        x, y = px * canvas.width, py * canvas.height
        box = (x - radius, y - radius, x + radius, y + radius)
        if style.shape in ("disc", "dot"):
            pen.ellipse(box if style.shape == "disc" else _around(x, y, max(2.0, radius / 2)), fill=style.color)
        elif style.shape == "ring":
            pen.ellipse(box, outline=style.color, width=max(1, round(radius / 4)))
        elif style.shape == "square":
            pen.rectangle(box, outline=style.color, width=max(1, round(radius / 4)))
        away = 0.0 if style.where == "inside" else radius + 0.75 * height
        dx, dy = {"above": (0, -1), "below": (0, 1), "right": (1, 0), "left": (-1, 0)}.get(style.where, (0, 0))
        half = 0.7 * height
        u = min(max(x + dx * away, half), canvas.width - half)
        v = min(max(y + dy * away, half), canvas.height - half)
        behind = style.behind
        if behind == "box":
            pen.rectangle(_around(u, v, half), fill=_opposite(style.letter_color))
        stroke: dict[str, Any] = (
            {"stroke_width": 1, "stroke_fill": _opposite(style.letter_color)} if behind == "outline" else {}
        )
        pen.text((u, v), letter, fill=style.letter_color, font=font, anchor="mm", **stroke)


def _around(x: float, y: float, half: float) -> tuple[float, float, float, float]:
    return x - half, y - half, x + half, y + half


def _alike(first: tuple[int, int, int], second: tuple[int, int, int]) -> bool:
    return abs(_light(first) - _light(second)) < 90


def _light(color: tuple[int, int, int]) -> float:
    return 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2]


def _opposite(color: tuple[int, int, int]) -> tuple[int, int, int]:
    return _COLORS["black"] if _light(color) > 110 else _COLORS["white"]


@cache
def _fonts() -> tuple[str, ...]:
    """Return font files of matplotlib, where it is installed: more kinds of letters to learn from."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return ()
    folder = Path(get_data_path()) / "fonts" / "ttf"
    return tuple(str(folder / name) for name in _FONTS if (folder / name).exists())


@cache
def _font(file: str, size: int) -> Any:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
