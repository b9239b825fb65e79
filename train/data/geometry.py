"""The embedded geometry problems as rows of interleaved training, drawn once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from perception.geometry.problems import GeometryProblem, covered_cells, problems
from train.data.interleaved import ChainProblem, ChainStep, Mark
from train.data.problem_store import ProblemStore, save_problems


@dataclass(frozen=True)
class GeometryData:
    """Which problems are read."""

    split: str = "train"
    """train, test, or held-out for the families that training never sees"""
    count: int = 24_000
    seed: int = 0
    image_size: int = 128
    """Pixels a side"""
    grid_size: int = 8
    """Visual tokens a side of the model that reads them"""
    store: str = "runs/geometry/problems"
    """Folder that keeps what is drawn"""

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_size, self.grid_size

    @property
    def folder(self) -> Path:
        """Where these very problems are kept."""
        settings = {name: value for name, value in asdict(self).items() if name != "store"}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
        return Path(self.store) / f"{self.split}-{self.count}-{digest}"


def chain_problem(problem: GeometryProblem, grid: tuple[int, int]) -> ChainProblem:
    """A drawn problem on the visual tokens of a model: the cells that its steps' regions cover."""
    steps = tuple(ChainStep(step.text, covered_cells(step.regions, grid)) for step in problem.steps)
    marks, signs = (tuple(Mark(one.text, one.place_xy) for one in found) for found in (problem.marks, problem.signs))
    return ChainProblem(problem.image, problem.question, str(problem.answer), steps, problem.family, marks, signs)


def draw_problems(data: GeometryData) -> Iterable[ChainProblem]:
    """The problems of `data`, drawn anew."""
    drawn = problems(data.split, data.count, seed=data.seed, image_size=data.image_size)
    return (chain_problem(problem, data.grid) for problem in drawn)


def read_problems(
    data: GeometryData, draw: Callable[[GeometryData], Iterable[ChainProblem]] = draw_problems
) -> Sequence[ChainProblem]:
    """The problems of `data`, from its store; drawn by the first who asks, of several processes too."""
    folder = data.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.exists():
            return save_problems(draw(data), folder)
    return ProblemStore(folder)
