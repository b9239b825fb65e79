"""The nearest of several points through a drawn depth map, which a visitor can edit. Independent of Gradio."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from demos.guards import Refused, read_image
from demos.pictures import draw_map, draw_points, enlarged, nearness_so_far
from demos.thoughts import Thought, last, rethink, think
from perception.answers import POINT_LETTERS
from perception.model.perception_model import PerceptionModel
from perception.scenes.markers import MIN_SPACING
from perception.scenes.questions import depth_text
from perception.scenes.render import render_scenes
from perception.tokenizers.depth import DepthTokenizer, readings_at
from perception.vocabulary.names import Span

_EXAMPLES = Path(__file__).parent / "examples"
_EXAMPLE = re.compile(r"scene-(standard|shifted)-(\d+)\.png$")


@dataclass(frozen=True)
class DepthView:
    """One state of the depth tab."""

    picture: Image.Image
    """The depth map as far as it is drawn, beside its scale"""
    answer: str
    direct: str
    thought: Thought
    nearness: np.ndarray
    """(S, S) in [0, 1], NaN where nothing is drawn yet"""


def depth_tokenizer(model: PerceptionModel) -> DepthTokenizer:
    """The model's depth tokenizer. Raises Refused if it has none."""
    if model.depth_tokenizer is None:
        raise Refused("this model came without a depth tokenizer: its maps cannot be drawn")
    return DepthTokenizer(model.depth_tokenizer)


def add_point(points: Sequence[tuple[float, float]], place: tuple[float, float]) -> list[tuple[float, float]]:
    """Add a point to the points (x, y) in [0, 1].

    Raises:
        Refused: for a sixth point, or one that lies on another.
    """
    if len(points) == len(POINT_LETTERS):
        raise Refused(f"{len(POINT_LETTERS)} points are the most that are asked about; clear them to begin anew")
    if any(np.hypot(x - place[0], y - place[1]) < MIN_SPACING for x, y in points):
        raise Refused("this is too close to another point; click somewhere else")
    return [*points, place]


def checked_points(places: object) -> list[tuple[float, float]]:
    """Points (x, y) from what a program sent. Raises Refused for anything but numbers in [0, 1]."""
    try:
        points = [(float(x), float(y)) for x, y in places]  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise Refused("the points must be a list of [x, y] in [0, 1], such as [[0.2, 0.9], [0.7, 0.4]]") from None
    if not all(0 <= value <= 1 for point in points for value in point):
        raise Refused(f"the points must lie in [0, 1] of the image's width and height, got {points[:5]}")
    chosen: list[tuple[float, float]] = []
    for point in points:
        chosen = add_point(chosen, point)
    return chosen


def marked(image: Image.Image, points: Sequence[tuple[float, float]]) -> Image.Image:
    """The image with lettered points, for the page."""
    return draw_points(image, np.asarray(points, dtype=np.float64).reshape(-1, 2)) if points else enlarged(image)


def _view(model: PerceptionModel, thought: Thought, direct: str = "") -> DepthView:
    tokenizer = depth_tokenizer(model)
    span = thought.span("depth")
    nearness = nearness_so_far(span, tokenizer)
    drawn = 0 if span is None else len(span.codes)
    if thought.done:
        order = _order(nearness, thought.points)
        value = "no letter" if thought.value is None else str(thought.value)
        answer = f"{value} is closest. On the map, from near to far: {order}" if thought.value else value
        if thought.caution:
            answer += f". {thought.caution}"
    else:
        answer = f"drawing .. {drawn} of {tokenizer.num_codes} cells" if drawn else "looking .."
    picture = draw_map(nearness, grid=tokenizer.vqvae.config.grid_size)
    return DepthView(picture, answer, direct, thought, nearness)


def _order(nearness: np.ndarray, points: Sequence[tuple[float, float]]) -> str:
    places = np.asarray(points, dtype=np.float32).reshape(-1, 2)
    readings = readings_at(torch.from_numpy(np.nan_to_num(nearness).astype(np.float32))[None], places)
    return ", ".join(f"{POINT_LETTERS[n]} ({readings[n]})" for n in np.argsort(-readings, kind="stable"))


def judge(model: PerceptionModel, image_path: str | None, points: Sequence[tuple[float, float]]) -> Iterator[DepthView]:
    """Name the closest of 2 to 5 points, with a view after each step; then answer directly for comparison.

    Raises:
        Refused: for an upload that is not accepted, or too few points.
    """
    image = read_image(image_path)
    depth_tokenizer(model)
    if len(points) < 2:
        raise Refused("click at least two points on the image first")
    asked = model.marked(image, points)
    question = depth_text(len(points))
    thought: Thought | None = None
    for thought in think(model, asked, question, "chain", points):
        yield _view(model, thought)
    assert thought is not None
    at_once = last(think(model, asked, question, "direct"))
    said = "no letter" if at_once.value is None else f"{at_once.value} is closest"
    yield _view(model, thought, said)


def cell_at(model: PerceptionModel, place: tuple[float, float]) -> tuple[int, int]:
    """Row and column of the cell at a place (x, y) in [0, 1]."""
    grid = depth_tokenizer(model).vqvae.config.grid_size
    column, row = (min(grid - 1, int(share * grid)) for share in place)
    return row, column


def code_at(model: PerceptionModel, thought: Thought, cell: tuple[int, int]) -> int:
    """The code of a cell (row, column): 0 farthest .. K-1 nearest. Raises Refused if there is no map."""
    span = thought.span("depth")
    if not isinstance(span, Span):
        raise Refused("there is no whole map yet; ask first")
    config = depth_tokenizer(model).vqvae.config
    return span.codes[config.cell_order.index(cell[0] * config.grid_size + cell[1])]


def draw_cell(model: PerceptionModel, thought: Thought, cell: tuple[int, int]) -> Image.Image:
    """The drawn map with one cell (row, column) framed."""
    tokenizer = depth_tokenizer(model)
    nearness = nearness_so_far(thought.span("depth"), tokenizer)
    return draw_map(nearness, grid=tokenizer.vqvae.config.grid_size, chosen=cell)


def rejudge(
    model: PerceptionModel,
    thought: Thought,
    cell: tuple[int, int],
    code: int,
    reach: int = 0,
) -> Iterator[DepthView]:
    """Answer again, about the same points, from a map in which a cell (row, column) has a new code, with those up to
    `reach` cells away.

    Raises:
        Refused: if there is no whole map, or no such code.
    """
    code_at(model, thought, cell)
    span, config = thought.span("depth"), depth_tokenizer(model).vqvae.config
    assert span is not None
    if not 0 <= code < config.codebook_size:
        raise Refused(f"codes go from 0 (far) to {config.codebook_size - 1} (near), got {code}")
    codes = list(span.codes)
    for place, number in enumerate(config.cell_order):
        row, column = divmod(number, config.grid_size)
        if abs(row - cell[0]) <= reach and abs(column - cell[1]) <= reach:
            codes[place] = code
    for step in rethink(model, thought, Span("depth", tuple(codes))):
        yield _view(model, step)


def true_map(image_path: str | None) -> Image.Image | None:
    """The true depth of an example, by the number in its name; None for any other image, whatever it is called."""
    found = _EXAMPLE.search(Path(image_path).name) if image_path else None
    if found is None or image_path is None or not (example := _EXAMPLES / found[0]).is_file():
        return None
    if example.read_bytes() != Path(image_path).read_bytes():
        return None
    depth = render_scenes([int(found.group(2))], found.group(1), 160).depth[0]
    inverse = 1 / depth
    return draw_map(((inverse - inverse.min()) / (inverse.max() - inverse.min())).numpy(), "true depth")
