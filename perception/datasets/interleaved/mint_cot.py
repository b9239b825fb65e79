"""Read and write MINT-CoT's published layout: solutions whose steps name the visual tokens that they look at.

A file is a JSON list of rows. Each row has `images` (one path), `messages` (the solution in words) and
`messages_interleave_ra`, the same solution with comma-separated cell numbers between `<interleave>` and
`</interleave>`. Cells are numbered row by row on a grid over the image: the grid of Qwen2-VL, for which the data were
made, or the row's `grid` ([rows, columns]). `on_grid` converts cells to the grid of another model.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.datasets.lines import json_rows
from perception.model.images import image_size
from vqvae.files import write_whole

OPEN, CLOSE = "<interleave>", "</interleave>"
_TAG = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)
_HEADING = re.compile(
    r"(?:(?:^|(?<=[.!?]\s))[ \t#*]*Step\s*\d+\s*[:.]?|[#*]*\bStep\s*\d+\s*:)[\s*]*\Z", re.IGNORECASE | re.MULTILINE
)
"""Heading in front of a tag; not "as in step 1" """
_UNTAGGED = re.compile(r"^[ \t#*]*Step\s*\d+\s*(?::|\.(?!\d))[ \t*]*", re.IGNORECASE | re.MULTILINE)
"""Heading of a step without a tag"""
_IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class InterleavedStep:
    """A step of a solution."""

    text: str
    cells: tuple[int, ...]
    """cells of the problem's grid, ascending"""


@dataclass(frozen=True)
class InterleavedProblem:
    """A question about an image with an interleaved solution."""

    name: str
    """file and number of the row, for messages"""
    image: Path
    question: str
    opening: str
    """text of the solution before its first step"""
    steps: tuple[InterleavedStep, ...]
    grid: tuple[int, int]
    """rows and columns of the grid that cells are numbered on"""


@dataclass(frozen=True)
class InterleavedRows:
    """The rows of a file."""

    problems: tuple[InterleavedProblem, ...]
    skipped: tuple[str, ...]
    """one line per row that cannot be used, saying why"""


def qwen_grid(
    width: int, height: int, cell: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 14 * 14 * 4 * 1280
) -> tuple[int, int]:
    """Rows and columns of Qwen2-VL's visual tokens over an image of width x height pixels.

    Qwen2-VL resizes the image to multiples of `cell`, with an area between the limits and about the same proportions.
    """
    rows, columns = max(1, round(height / cell)), max(1, round(width / cell))
    area = rows * columns * cell * cell
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return max(1, math.floor(height / shrink / cell)), max(1, math.floor(width / shrink / cell))
    if area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * grow / cell), math.ceil(width * grow / cell)
    return rows, columns


def on_grid(cells: Sequence[int], grid: tuple[int, int], other: tuple[int, int], least: float = 0.5) -> tuple[int, ...]:
    """Convert cells to another grid: the cells of `other` that `cells` cover by at least `least` of their area.

    If no cell is covered that much, the one that is covered most is returned, so that no look is lost.

    Args:
        cells: numbered row by row on `grid`.
        grid, other: (rows, columns).

    Raises:
        ValueError: if a cell lies outside `grid`.
    """
    if not cells:
        return ()
    rows, columns = grid
    outside = [cell for cell in cells if not 0 <= cell < rows * columns]
    if outside:
        raise ValueError(f"cells {outside[:5]} lie outside the grid of {rows} x {columns}, 0 to {rows * columns - 1}")
    mask = np.zeros(grid)
    mask.flat[list(cells)] = 1.0
    covered = _shares(rows, other[0]) @ mask @ _shares(columns, other[1]).T  # other
    found = np.flatnonzero(covered >= least - 1e-9)
    return tuple(found.tolist()) if len(found) else (int(covered.argmax()),)


def _shares(parts: int, others: int) -> np.ndarray:
    """Shares (others, parts) of each of `others` equal pieces of a line that lie in each of `parts` equal pieces."""
    ends, marks = np.arange(others + 1) / others, np.arange(parts + 1) / parts
    low = np.maximum(ends[:-1, None], marks[None, :-1])
    high = np.minimum(ends[1:, None], marks[None, 1:])
    return np.clip(high - low, 0, None) * others


def read_mint_cot(
    path: str | Path,
    images: str | Path | None = None,
    grid_of: Callable[[int, int], tuple[int, int]] = qwen_grid,
) -> InterleavedRows:
    """Read the problems of a file in the published layout.

    Args:
        path: file with a JSON list, or JSON lines.
        images: folder that image paths are relative to; None for the folder of the file.
        grid_of: (width, height) in pixels -> (rows, columns), for rows without a grid.

    Raises:
        ValueError: if the file is missing, is not JSON, or holds no usable row.
    """
    path = Path(path)
    root = Path(images) if images is not None else path.parent
    problems, skipped = list[InterleavedProblem](), list[str]()
    for number, row in enumerate(_rows(path)):
        name = f"{path.name}:{number + 1}"
        try:
            problems.append(_problem(row, name, root, grid_of))
        except ValueError as error:
            skipped.append(f"{name}: {error}")
    if not problems:
        raise ValueError(f"{path} holds no row that can be used; the first: {skipped[0] if skipped else 'it is empty'}")
    return InterleavedRows(tuple(problems), tuple(skipped))


def _rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give MINT-CoT's JSON file")
    return [row for _, row in json_rows(path, "it is half written or no JSON; fetch it again")]


def _problem(row: Any, name: str, root: Path, grid_of: Callable[[int, int], tuple[int, int]]) -> InterleavedProblem:
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object, got {type(row).__name__}")
    missing = [key for key in ("images", "messages_interleave_ra") if not row.get(key)]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing")
    said = {message.get("role"): message.get("content") for message in row["messages_interleave_ra"]}
    for role in ("user", "assistant"):
        if said.get(role) is not None and not isinstance(said[role], str):
            raise ValueError(f"the {role}'s message must be text, got {said[role]!r:.80}")
    if not said.get("user") or not said.get("assistant"):
        raise ValueError("messages_interleave_ra must hold a user's and an assistant's message")
    if len(row["images"]) != 1:
        raise ValueError(f"a row must have one image, got {len(row['images'])}")
    image = root / str(row["images"][0])
    grid = tuple(int(side) for side in row["grid"]) if row.get("grid") else grid_of(*image_size(image)[::-1])
    if len(grid) != 2 or min(grid) < 1:
        raise ValueError(f"grid must be [rows, columns], got {row.get('grid')}")
    opening, steps = parse_solution(said["assistant"], (grid[0], grid[1]))
    question = said["user"].replace(_IMAGE_MARK, "").strip()
    return InterleavedProblem(name, image, question, opening, steps, (grid[0], grid[1]))


def parse_solution(text: str, grid: tuple[int, int]) -> tuple[str, tuple[InterleavedStep, ...]]:
    """Split a solution into the text before its first step and its steps, without headings ("Step 2:").

    Every tag begins a step, with the words that stand between it and its heading. A heading at the start of a line that
    no tag follows begins one, too, which looks at no cells. A solution without any tag has no steps.

    Raises:
        ValueError: if a tag is left open, a cell is not a number, or a cell lies outside the grid.
    """
    if text.count(OPEN) != text.count(CLOSE) or text.count(OPEN) != len(_TAG.findall(text)):
        raise ValueError(f"an {OPEN} tag is left open, or closed twice")
    pieces = _TAG.split(text)  # words, numbers, words, numbers, .., words
    if len(pieces) == 1:
        return text.strip(), ()
    most, all_cells = grid[0] * grid[1], list[tuple[int, ...]]()
    for numbers in pieces[1::2]:
        try:
            found = sorted({int(part) for part in numbers.split(",") if part.strip()})
        except ValueError:
            raise ValueError(f"cells must be whole numbers separated by commas, got {numbers[:40]!r}") from None
        if found and (found[0] < 0 or found[-1] >= most):
            raise ValueError(f"cell {found[-1] if found[0] >= 0 else found[0]} lies outside the grid of {grid}")
        all_cells.append(tuple(found))
    words = [_untagged(piece, before_tag=n < len(all_cells)) for n, piece in enumerate(pieces[::2])]
    steps = [InterleavedStep(other, ()) for other in words[0].others]
    for cells, before, own in zip(all_cells, words, words[1:], strict=False):
        steps.append(InterleavedStep("\n".join(filter(None, (before.title, own.first))), cells))
        steps += [InterleavedStep(other, ()) for other in own.others]
    return words[0].first, tuple(steps)


@dataclass(frozen=True)
class _Words:
    """Words between two tags."""

    first: str
    """those up to the first heading"""
    others: tuple[str, ...] = ()
    """those of steps without a tag"""
    title: str = ""
    """those between a heading and the tag behind them, which belong to the tag's step"""


def _untagged(text: str, before_tag: bool) -> _Words:
    said = text.strip()
    bare = _HEADING.sub("", said) if before_tag else said
    first, *others = (part.strip() for part in _UNTAGGED.split(bare))
    title = others.pop() if before_tag and others and bare == said else ""
    return _Words(first, tuple(others), title)


def written(problem: InterleavedProblem, looks: bool = True) -> str:
    """A solution as text of the published layout, with or without its cells."""
    lines = [problem.opening] if problem.opening else []
    for number, step in enumerate(problem.steps, start=1):
        tag = f"{OPEN}{','.join(map(str, step.cells))}{CLOSE} " if looks else ""
        lines.append(f"Step {number}: {tag}{step.text}")
    return "\n".join(lines)


def write_mint_cot(problems: Sequence[InterleavedProblem], path: str | Path) -> None:
    """Write problems and their grids in the published layout, whole or not at all.

    Images below the file's folder are named relative to it.
    """
    path = Path(path)
    rows = []
    for problem in problems:
        inside = problem.image.is_relative_to(path.parent)
        question = f"{_IMAGE_MARK}{problem.question}"
        rows.append(
            {
                "messages": _talk(question, written(problem, looks=False)),
                "messages_interleave_ra": _talk(question, written(problem)),
                "images": [str(problem.image.relative_to(path.parent) if inside else problem.image)],
                "grid": list(problem.grid),
            }
        )
    write_whole(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


def _talk(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
