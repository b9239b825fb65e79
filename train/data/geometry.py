"""The geometry problems of `perception.geometry` as rows of interleaved training, drawn once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perception.datasets.store import Part, Store
from perception.geometry.families import ProblemSet
from perception.geometry.figure import Mark
from perception.geometry.problems import GeometryProblem, Split, covered_cells, numbered_problem, problems
from train.data.interleaved import ChainProblem, ChainStep


@dataclass(frozen=True)
class GeometryData:
    """Geometry problems to draw."""

    problems: ProblemSet = "plane"
    """plane: plane geometry. fine: charts, tables and drawings whose values are small print"""
    split: Split = "train"
    """held-out: families of problems that training never sees"""
    count: int = 24_000
    """number of problems"""
    seed: int = 0
    image_size: int = 128
    """side of a figure, in pixels"""
    grid_size: int = 8
    """visual tokens per side of a figure in the model that reads them"""
    store: str = "runs/geometry/problems"
    """folder that keeps the drawn problems; fine ones are drawn when they are asked for"""

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_size, self.grid_size

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings that determine problems of plane geometry, which are those that a store keeps."""
        return {name: value for name, value in asdict(self).items() if name not in ("store", "problems")}

    @property
    def folder(self) -> Path:
        """Where problems of these settings are kept."""
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]
        return Path(self.store) / f"{self.split}-{self.count}-{digest}"


class ProblemStore(Sequence[ChainProblem]):
    """Problems on disk, whose images stay there until they are asked for."""

    def __init__(self, store: Store):
        self._store = store

    @classmethod
    def build(
        cls, folder: str | Path, settings: dict[str, Any], draw: Callable[[], Iterable[ChainProblem]]
    ) -> ProblemStore:
        """Open the store of these settings; draw the problems first if they are not there.

        Args:
            draw: gives problems whose images are (H, W, 3) uint8 arrays or tensors of one size.
        """
        settings = {"kind": "problems", **settings}
        return cls(Store.build(folder, settings, 1, lambda _: _part(draw()), "drawing problems"))

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        row = json.loads(self._store.lines[index])
        row["steps"] = tuple(ChainStep(step["text"], tuple(step["tokens"])) for step in row["steps"])
        for name in ("marks", "signs"):
            row[name] = tuple(Mark(**mark | {"place_xy": tuple(mark["place_xy"])}) for mark in row[name])
        return ChainProblem(image=torch.from_numpy(np.array(self._store.arrays["images"][index])), **row)


def _part(drawn: Iterable[ChainProblem]) -> Part:
    images, rows = list[np.ndarray](), list[dict[str, Any]]()
    for problem in drawn:
        images.append(np.asarray(problem.image, dtype=np.uint8))
        row = {name: value for name, value in vars(problem).items() if name != "image"}
        rows.append(row | {name: [asdict(item) for item in row[name]] for name in ("steps", "marks", "signs")})
    return Part({"images": np.stack(images)}, rows)


def chain_problem(problem: GeometryProblem, grid: tuple[int, int]) -> ChainProblem:
    """A drawn problem on the visual tokens of a model: its steps look at the cells that their regions cover."""
    steps = tuple(ChainStep(step.text, covered_cells(step.regions, grid)) for step in problem.steps)
    answer, marks, signs = str(problem.answer), problem.marks, problem.signs
    return ChainProblem(problem.image, problem.question, answer, steps, problem.family, marks, signs)


def draw_problems(data: GeometryData) -> Iterable[ChainProblem]:
    """Draw the problems of `data`."""
    drawn = problems(data.split, data.count, seed=data.seed, image_size=data.image_size)
    return (chain_problem(problem, data.grid) for problem in drawn)


@dataclass(frozen=True)
class DrawnProblems(Sequence[ChainProblem]):
    """Problems that are drawn when they are asked for; large figures would take gigabytes of disk."""

    data: GeometryData

    def __len__(self) -> int:
        return self.data.count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} problems, got number {index}")
        one = self.data
        drawn = numbered_problem(int(index), one.split, one.seed, one.image_size, one.problems)
        return replace(chain_problem(drawn, one.grid), image=torch.from_numpy(drawn.image))


def read_problems(
    data: GeometryData, draw: Callable[[GeometryData], Iterable[ChainProblem]] = draw_problems
) -> Sequence[ChainProblem]:
    """The problems of `data`. Those of plane geometry are kept in a store: the first process that asks draws them, the
    others wait."""
    if data.problems == "fine":
        return DrawnProblems(data)
    return ProblemStore.build(data.folder, data.settings, lambda: draw(data))
