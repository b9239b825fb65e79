"""Curriculum: the shares of the tasks as a function of the training step.

AURORA trains on atomic tasks first and gradually mixes in chains and direct answers. In its authors' runs the share of
atomic tasks falls 1.0, 0.9, .. 0.1 over ten pseudo-epochs ("phases" below); the paper describes a softmax over
difficulty instead. Both are available, as are a linear and a constant schedule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np

from perception.chains import (
    ATOMIC_BOXES,
    ATOMIC_DEPTH,
    ATOMIC_MASKS,
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
    """Shares of the tasks over a run. The fields from `depth_share` on apply only to rendered scenes."""

    schedule: Literal["phases", "linear", "constant", "softmax"] = "phases"
    """phases (AURORA's runs), linear, constant (atomic_end throughout), softmax (AURORA's paper)"""
    phases: int = 10
    """number of phases; only phases uses it"""
    atomic_start: float = 1.0
    """share of atomic tasks at the start of the run"""
    atomic_end: float = 0.1
    """share of atomic tasks at the end of the run"""
    chain_share: float = 0.8
    """share of chains among the tasks that are not atomic; the rest are direct answers"""
    temperature: tuple[float, float] = (0.3, 3.0)
    """softmax only: first and last temperature over the difficulties 0 (atomic), 1 (chain), 2 (direct)"""

    depth_share: float = 0.5
    """share of depth tasks in every kind; the rest are counting tasks"""
    points_share: float = 0.15
    """share of the atomic depth tasks that draw marked points instead of the map"""
    readings_share: float = 0.3
    """share of the atomic depth tasks that read a map, first at the points marked in the image and then at random ones,
    and say which of a few is nearest. Two in five of the maps are mosaics of other images' maps, which are not learned;
    on the image's own, what is nearest of the marked points is not learned. Finding a place on a map takes long to
    learn, and a chain does it only two to five times"""
    masks_share: float = 0.0
    """share of the atomic counting tasks that draw masks of one to three things instead of boxes; needs mask_tokenizer
    in the recipe"""
    box_turns: int = 0
    """number of further questions for boxes in every row with an atomic task: a conversation of several turns about one
    image, which costs far less than a row for every question. None with a chat template that takes one question"""
    foreign_maps: float = 0.35
    """share of the depth chains whose map is a mosaic of other images' maps. The model does not learn to draw it, but
    reads it and answers from it. Otherwise it could take the answer from the image and ignore the map that it drew"""
    noisy_maps: float = 0.3
    """share of the other maps in which a random part of the codes that the model reads is random. It learns to continue
    after mistakes, and to draw from the image rather than from its last tokens, which also makes it possible to draw
    many tokens at once (`perception.decoding.decoder`)"""
    maps_from_image: bool = False
    """learn every map after codes of other images' maps (a mosaic) instead of its own true codes. When the model draws,
    the codes before are its own, mistakes included, so it should draw from the image and not continue them. All maps
    that are read are then mosaics, and foreign_maps and noisy_maps do not apply. It pays where a model draws much worse
    than it does after true codes (`benchmarks.codes_before`), as on photographs"""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.phases < 1:
            raise ValueError(f"phases must be at least 1, got {self.phases}")
        if self.box_turns < 0:
            raise ValueError(f"box_turns must not be negative, got {self.box_turns}; 0 asks one question per row")
        if not min(self.temperature) > 0:
            raise ValueError(f"temperatures must be above 0, got {self.temperature}; small ones leave the easiest task")
        for name in (item.name for item in fields(self) if item.type in (float, "float")):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.points_share + self.readings_share > 1:
            raise ValueError(
                f"points_share ({self.points_share}) and readings_share ({self.readings_share}) must not exceed 1 "
                "together"
            )


def kind_shares(config: CurriculumConfig, progress: float) -> tuple[float, float, float]:
    """Return the shares of atomic, chain and direct tasks at `progress` in [0, 1] of a run; they sum to 1."""
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
    """Return the share of every task at `progress` in [0, 1] of a run; they sum to 1."""
    atomic, chain, direct = kind_shares(config, progress)
    depth, count = config.depth_share, 1 - config.depth_share
    return {
        ATOMIC_DEPTH: atomic * depth * (1 - config.points_share - config.readings_share),
        ATOMIC_POINTS: atomic * depth * config.points_share,
        ATOMIC_READINGS: atomic * depth * config.readings_share,
        ATOMIC_BOXES: atomic * count * (1 - config.masks_share),
        ATOMIC_MASKS: atomic * count * config.masks_share,
        CHAIN_DEPTH: chain * depth,
        CHAIN_COUNT: chain * count,
        DIRECT_DEPTH: direct * depth,
        DIRECT_COUNT: direct * count,
    }


def direct_only(config: CurriculumConfig) -> dict[str, float]:
    """Return the shares of the tasks for the baseline, which trains only on direct answers."""
    return {DIRECT_DEPTH: config.depth_share, DIRECT_COUNT: 1 - config.depth_share}


def draw_tasks(shares: dict[str, float], size: int, rng: np.random.Generator) -> list[str]:
    """Draw `size` tasks with probabilities proportional to their shares."""
    weights = np.array([shares.get(task, 0.0) for task in TASKS])
    return [TASKS[i] for i in rng.choice(len(TASKS), size=size, p=weights / weights.sum())]
