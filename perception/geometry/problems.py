"""Problems with figures, step-by-step solutions, and the exact regions that the steps look at.

Of plane geometry 16 families are for training and two are held out; of the `fine` set, whose values are small print
(`perception.geometry.fine`), five and two. A hash of a problem's parameters assigns it to training or testing, so that
no test problem is trained on, however its figure is turned. Everything is a function of the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from perception.geometry.families import PROBLEM_SETS, SETS, ProblemSet
from perception.geometry.figure import Box, Mark
from perception.geometry.sketch import Family, Sketch, Step

Split = Literal["train", "test", "held-out"]
SPLITS: tuple[str, ...] = get_args(Split)
TEST_SHARE = 0.2
"""Share of the parameters of each family that belongs to testing"""
_DRAWS = 400


@dataclass(frozen=True)
class GeometryProblem:
    """A figure with a question and its solution."""

    image: NDArray[np.uint8]
    """(S, S, 3)"""
    question: str
    steps: tuple[Step, ...]
    answer: int
    family: str
    marks: tuple[Mark, ...]
    """all texts in the figure"""
    signs: tuple[Mark, ...] = ()
    """small drawings with a meaning, by the word for it: right, equal, parallel, centre"""

    @property
    def solution(self) -> str:
        """The solution as text."""
        lines = [f"Step {number}: {step.text}" for number, step in enumerate(self.steps, start=1)]
        return "\n".join([*lines, f"Answer: {self.answer}"])


def is_tested(family: str, parameters: Sequence[int | str]) -> bool:
    """True if a problem's parameters belong to testing."""
    digest = hashlib.sha256(f"{family} {tuple(parameters)}".encode()).digest()
    return digest[0] < 256 * TEST_SHARE


def families_of(split: str, problem_set: ProblemSet = "plane") -> tuple[str, ...]:
    """The families of a split. Raises ValueError if the split or the set is unknown."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if problem_set not in PROBLEM_SETS:
        raise ValueError(f"the set of problems must be one of {', '.join(PROBLEM_SETS)}, got {problem_set!r}")
    families, held_out = SETS[problem_set]
    return held_out if split == "held-out" else tuple(name for name in families if name not in held_out)


def problem(
    seed: int,
    split: str = "train",
    image_size: int = 128,
    family: str | None = None,
    problem_set: ProblemSet = "plane",
) -> GeometryProblem:
    """Make one problem.

    Args:
        seed: the same seed gives the same problem at every size.
        split: "train", "test" (other parameters of the same families), or "held-out" (other families).
        image_size: pixels per side; letters are legible from about 100, small print from about 384.
        family: one of the split's families; None for a random one.
        problem_set: "plane", or "fine" for problems with small print.

    Raises:
        ValueError: if split or set is unknown, the family belongs to another split, or `image_size` is below 16.
    """
    chosen = families_of(split, problem_set)
    if family is not None and family not in chosen:
        raise ValueError(f"family must be one of {', '.join(chosen)} in split {split}, got {family!r}")
    if image_size < 16:
        raise ValueError(f"image_size must be at least 16, got {image_size}")
    rng = np.random.default_rng((seed, SPLITS.index(split)))
    name = family or chosen[int(rng.integers(len(chosen)))]
    sketch = _sketch(SETS[problem_set][0][name], name, split, rng)
    figure = sketch.figure
    image = figure.render(image_size)
    return GeometryProblem(
        image, sketch.question, sketch.steps, sketch.answer, name, tuple(figure.marks), tuple(figure.signs)
    )


def _sketch(family: Family, name: str, split: str, rng: np.random.Generator) -> Sketch:
    for _ in range(_DRAWS):
        found = family(rng)
        if found is None or (split != "held-out" and is_tested(name, found.parameters) != (split == "test")):
            continue
        if found.figure.fits():
            return found
    raise RuntimeError(f"{name} gave no legible figure in {_DRAWS} draws; this is a bug in the family")


def numbered_problem(
    number: int, split: str, seed: int = 0, image_size: int = 128, problem_set: ProblemSet = "plane"
) -> GeometryProblem:
    """Make one of a split's problems, by its number; the families come in turn."""
    chosen = families_of(split, problem_set)
    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return problem(own, split, image_size, chosen[number % len(chosen)], problem_set)


def problems(
    split: str, count: int, seed: int = 0, image_size: int = 128, problem_set: ProblemSet = "plane"
) -> Iterator[GeometryProblem]:
    """Make the first `count` problems of a split."""
    for number in range(count):
        yield numbered_problem(number, split, seed, image_size, problem_set)


def _covered(low: float, high: float, count: int) -> NDArray[np.float64]:
    """Share (count,) of each of `count` equal parts of [0, 1] that lies between low and high."""
    parts = np.arange(count)
    return np.clip(np.minimum(high * count, parts + 1) - np.maximum(low * count, parts), 0, 1)


def covered_cells(boxes: Sequence[Box], grid: tuple[int, int], least: float = 0.15) -> tuple[int, ...]:
    """Cells of a grid (rows, columns), numbered row by row, that boxes cover by at least `least` of the cell's area.

    A box that covers no cell that much gives the cell of its centre.
    """
    rows, columns = grid
    cells: set[int] = set()
    for x1, y1, x2, y2 in boxes:
        hit = np.flatnonzero(np.outer(_covered(y1, y2, rows), _covered(x1, x2, columns)) >= least).tolist()
        middle = min(rows - 1, int((y1 + y2) / 2 * rows)) * columns + min(columns - 1, int((x1 + x2) / 2 * columns))
        cells |= set(hit or [middle])
    return tuple(sorted(cells))
