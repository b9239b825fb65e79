"""Pictures of a thought: boxes over the image, the depth map as it fills in, its codes, its surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demos.thoughts import OpenSpan
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.depth import DepthTokenizer, color_table
from perception.tokenizers.locations import draw_label, mark_color
from perception.vocabulary.names import Span

if TYPE_CHECKING:
    import plotly.graph_objects

SIDE = 480
"""longer side of a map on the page, in pixels"""
_SCALE_WIDTH, _MARGIN = 22, 64
_HOLE = np.nan


def enlarged(image: Image.Image, side: int = SIDE) -> Image.Image:
    """The image with its longer side at `side` pixels; small images would look blurred in a browser."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC if scale < 2 else Image.Resampling.LANCZOS)


def draw_boxes(image: Image.Image, span: Span | OpenSpan | None, tokenizer: BoxTokenizer) -> Image.Image:
    """Draw the boxes so far, numbered; a box is left out until it has all four locations."""
    picture = enlarged(image)
    codes = () if span is None else span.codes[: len(span.codes) // 4 * 4]
    return tokenizer.draw(tokenizer.decode(codes), picture) if codes else picture


def draw_points(image: Image.Image, points: NDArray[Any]) -> Image.Image:
    """Lettered discs at points (n, 2), xy in [0, 1]."""
    picture = enlarged(image)
    canvas = ImageDraw.Draw(picture)
    for index, (x, y) in enumerate(points):
        centre = (round(x * (picture.width - 1)), round(y * (picture.height - 1)))
        color = mark_color(index)
        canvas.ellipse(
            [centre[0] - 6, centre[1] - 6, centre[0] + 6, centre[1] + 6], fill=color, outline="white", width=2
        )
        draw_label(canvas, picture, (centre[0] + 8, centre[1] - 8), "ABCDE"[index], color)
    return picture


def nearness_so_far(span: Span | OpenSpan | None, tokenizer: DepthTokenizer) -> NDArray[np.float32]:
    """Nearness (S, S) of a depth map that may be half drawn, NaN in missing cells."""
    config = tokenizer.vqvae.config
    codes = [] if span is None else list(span.codes)
    missing = config.num_codes - len(codes)
    if missing == config.num_codes:
        return np.full((config.image_size, config.image_size), _HOLE, dtype=np.float32)
    # The decoder looks far around a cell: what is not there yet stands in as the last row's cells, and is hidden again.
    filler = codes[-config.grid_size :]
    whole = codes + (filler * (missing // len(filler) + 1))[:missing]
    nearness = tokenizer.decode(whole)  # (S, S)
    order = np.asarray(config.cell_order)
    drawn = np.zeros(config.num_codes, dtype=bool)
    drawn[order[: len(codes)]] = True
    cells = drawn.reshape(config.grid_size, config.grid_size).repeat(config.downsample, 0).repeat(config.downsample, 1)
    return np.where(cells, nearness, _HOLE)


def draw_map(
    nearness: NDArray[Any],
    title: str = "",
    grid: int | None = None,
    chosen: tuple[int, int] | None = None,
    ends: tuple[str, str] = ("near", "far"),
) -> Image.Image:
    """Draw a map (H, W) in colours beside its scale, with a grid of cells and a chosen cell (row, column).

    `ends` are the values that 1 and 0 stand for.
    """
    picture = DepthTokenizer.draw(np.clip(nearness, 0, 1))
    scale = SIDE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(picture, "RGBA")  # lines blend with what is below them
    if grid is not None:
        for n in range(1, grid):
            x, y = n * size[0] / grid, n * size[1] / grid
            canvas.line([(x, 0), (x, size[1])], fill=(255, 255, 255, 50))
            canvas.line([(0, y), (size[0], y)], fill=(255, 255, 255, 50))
        if chosen is not None:
            width, height = size[0] / grid, size[1] / grid
            row, column = chosen
            corner = [column * width, row * height, (column + 1) * width, (row + 1) * height]
            canvas.rectangle(corner, outline=(80, 255, 160), width=3)
    page = Image.new("RGB", (size[0] + _MARGIN, size[1]), "white")
    page.paste(picture, (0, 0))
    bar = color_table()[np.linspace(255, 0, size[1]).astype(np.uint8)][:, None].repeat(_SCALE_WIDTH, 1)
    page.paste(Image.fromarray(bar), (size[0] + 8, 0))
    text = ImageDraw.Draw(page)
    text.text((size[0] + 12 + _SCALE_WIDTH, 2), ends[0], fill="black", font_size=13)
    text.text((size[0] + 12 + _SCALE_WIDTH, size[1] - 18), ends[1], fill="black", font_size=13)
    if title:
        text.text((8, 6), title, fill="white", font_size=16, stroke_width=2, stroke_fill="black")
    return page


def surface(nearness: NDArray[Any]) -> plotly.graph_objects.Figure:
    """Plot a map of nearness (H, W) as a surface to turn; holes stay holes."""
    import plotly.graph_objects as go

    colors = [[n / 255, f"rgb{tuple(int(v) for v in color)}"] for n, color in enumerate(color_table())][::15]
    colors.append([1.0, f"rgb{tuple(int(v) for v in color_table()[255])}"])
    figure = go.Figure(go.Surface(z=nearness[::-1], colorscale=colors, cmin=0, cmax=1, showscale=False))
    figure.update_layout(
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        height=420,
        scene={
            "zaxis": {"title": "nearness", "range": [0, 1.05]},
            "xaxis": {"title": "", "showticklabels": False},
            "yaxis": {"title": "", "showticklabels": False},
            "aspectratio": {"x": 1, "y": nearness.shape[0] / nearness.shape[1], "z": 0.5},
            "camera": {"eye": {"x": 0.2, "y": -1.5, "z": 1.3}},
        },
    )
    return figure
