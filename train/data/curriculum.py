"""Which task a training sample is, as a function of the step.

AURORA trains on atomic tasks first and mixes in chains and direct answers as it goes. As run by its authors the share
of atomic tasks falls 1.0, 0.9, .. 0.1 over ten pseudo-epochs ("phases" below); its paper writes a softmax over
difficulty instead. Both are here, a straight line and a constant beside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from perception.chains import (
    ATOMIC_BOXES,
    ATOMIC_DEPTH,
    ATOMIC_POINTS,
    ATOMIC_READINGS,
    CHAIN_COUNT,
    CHAIN_DEPTH,
    DIRECT_COUNT,
    DIRECT_DEPTH,
    TASKS,
)
from train.loop.config import check_choices


@dataclass(frozen=True)
class CurriculumConfig:
    """Shares of the tasks over a run. The shares of depth tasks and of maps are of rendered scenes alone."""

    schedule: Literal["phases", "linear", "constant", "softmax"] = "phases"
    """phases (AURORA as run), linear, constant (atomic_end throughout), softmax (AURORA as written)"""
    phases: int = 10
    atomic_start: float = 1.0
    atomic_end: float = 0.1
    chain_share: float = 0.8
    """of what is not atomic, the share of chains; the rest answers directly"""
    temperature: tuple[float, float] = (0.3, 3.0)
    """softmax only: first and last temperature over the difficulties 0 (atomic), 1 (chain), 2 (direct)"""

    depth_share: float = 0.5
    """share of depth tasks beside counting tasks, in every kind"""
    points_share: float = 0.15
    """of the atomic depth tasks, the share that draws marked points instead of the map"""
    readings_share: float = 0.3
    """of the atomic depth tasks, the share that reads a map, a mosaic of other images', at many points: to find a place
    on a map by its location tokens takes long to learn, and a chain asks for it two to five times only"""
    foreign_maps: float = 0.35
    """of the depth chains, the share whose map is a mosaic of other images': not learned, but read, and answered from.
    The image shows the truth too, so without these nothing makes a model read the map it drew"""
    noisy_maps: float = 0.3
    """of the other maps, the share that is drawn behind random codes, up to half of them, put in the place of those
    drawn so far: the model learns to draw on after mistakes, from the image rather than from its last tokens, which is
    also what lets many tokens be drawn at once (`perception.decoding.decoder`)"""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.phases < 1:
            raise ValueError(f"phases must be at least 1, got {self.phases}")
        for name in (item.name for item in fields(self) if item.type in (float, "float")):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.points_share + self.readings_share > 1:
            raise ValueError(
                f"points_share ({self.points_share}) and readings_share ({self.readings_share}) must not exceed 1 "
                "together"
            )


def kind_shares(config: CurriculumConfig, progress: float) -> tuple[float, float, float]:
    """Shares of atomic, chain and direct tasks at `progress` in [0, 1] of a run; they sum to one."""
    if config.schedule == "softmax":
        low, high = config.temperature
        tau = low * (high / low) ** progress
        weights = [math.exp(-difficulty / tau) for difficulty in (0, 1, 2)]
        atomic, chain, direct = (w / sum(weights) for w in weights)
        return atomic, chain, direct
    if config.schedule == "constant":
        atomic = config.atomic_end
    elif config.schedule == "linear":
        atomic = config.atomic_start + (config.atomic_end - config.atomic_start) * progress
    else:
        phase = min(int(progress * config.phases), config.phases - 1)
        done = phase / max(1, config.phases - 1)
        atomic = config.atomic_start + (config.atomic_end - config.atomic_start) * done
    return atomic, (1 - atomic) * config.chain_share, (1 - atomic) * (1 - config.chain_share)


def task_shares(config: CurriculumConfig, progress: float) -> dict[str, float]:
    """Share of every task at `progress`; they sum to one."""
    atomic, chain, direct = kind_shares(config, progress)
    depth, count = config.depth_share, 1 - config.depth_share
    return {
        ATOMIC_DEPTH: atomic * depth * (1 - config.points_share - config.readings_share),
        ATOMIC_POINTS: atomic * depth * config.points_share,
        ATOMIC_READINGS: atomic * depth * config.readings_share,
        ATOMIC_BOXES: atomic * count,
        CHAIN_DEPTH: chain * depth,
        CHAIN_COUNT: chain * count,
        DIRECT_DEPTH: direct * depth,
        DIRECT_COUNT: direct * count,
    }


def direct_only(config: CurriculumConfig) -> dict[str, float]:
    """Shares of the baseline, which only ever answers directly."""
    return {DIRECT_DEPTH: config.depth_share, DIRECT_COUNT: 1 - config.depth_share}


def draw_tasks(shares: dict[str, float], size: int, rng: np.random.Generator) -> list[str]:
    """`size` tasks drawn by their shares."""
    weights = np.array([shares.get(task, 0.0) for task in TASKS])
    return [TASKS[i] for i in rng.choice(len(TASKS), size=size, p=weights / weights.sum())]
