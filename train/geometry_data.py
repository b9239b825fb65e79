"""The embedded geometry problems as rows of interleaved training, drawn once and kept on disk."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from train.interleaved_rows import ChainProblem, ChainStep, tokens_of_boxes

_SOURCE = "perception.scenes.geometry"


@dataclass(frozen=True)
class GeometryData:
    """Which problems are read."""

    split: str = "train"
    """train, test, or held-out for the families that training never sees"""
    count: int = 8000
    seed: int = 0
    image_size: int = 128
    """Pixels a side"""
    grid_size: int = 8
    """Visual tokens a side of the model that reads them"""

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_size, self.grid_size


def chain_problem(problem: Any, grid: tuple[int, int]) -> ChainProblem:
    """A drawn problem on the visual tokens of a model: the cells that its steps' regions cover."""
    steps = tuple(ChainStep(step.text, tokens_of_boxes(step.regions, grid)) for step in problem.steps)
    return ChainProblem(problem.image, problem.question, str(problem.answer), steps, problem.family)


def read_problems(data: GeometryData) -> Sequence[ChainProblem]:
    """The problems of `data`, drawn anew."""
    source = importlib.import_module(_SOURCE)
    drawn = source.problems(data.split, data.count, seed=data.seed, image_size=data.image_size)
    return [chain_problem(problem, data.grid) for problem in drawn]
