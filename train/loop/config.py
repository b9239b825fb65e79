"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SCHEDULES = ("cosine", "constant", "wsd", "exponential")
PRECISIONS = ("bf16", "fp32")
_FREE_TO_CHANGE = ("checkpoint_every_seconds", "keep_checkpoints", "log_every", "num_workers", "prefetch", "compile")


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a training run."""

    steps: int = 1000
    """optimiser steps"""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    """of matrices (and convolutions, embeddings); vectors never decay"""
    warmup_steps: int = 0
    """steps over which the learning rate rises from 0"""
    schedule: str = "cosine"
    """after the warm-up: cosine, constant, wsd (constant, then a straight line down over the last decay_share), or
    exponential (by the same factor each step)"""
    min_lr_ratio: float = 0.1
    """last learning rate over the highest; all but constant"""
    decay_share: float = 0.2
    """wsd: share of the steps that decay"""
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    """largest norm of the gradient; 0 leaves it as it is"""
    precision: str = "fp32"
    """fp32, or bf16: autocast, on CPU and CUDA; weights stay in their own precision"""
    gradient_accumulation: int = 1
    """batches to an optimiser step, a device; 1 device with 8 sees the batches of 8 devices with 1"""
    checkpoint_every_seconds: float = 180.0
    keep_checkpoints: int = 2
    log_every: int = 10
    """steps between lines of log.jsonl and tensorboard points"""
    seed: int = 0
    num_workers: int = 1
    """processes that make batches; 0 makes them in between steps"""
    prefetch: int = 4
    """batches that a worker makes ahead"""
    compile: bool = False
    """torch.compile the model"""
    find_unused_parameters: bool = False
    """several devices only: allow steps that leave trained parameters without a gradient"""
    ema_decay: float | None = None
    """decay of a moving average of the weights ; the model ends with the averages; none: no average"""
    evaluate_every: int | None = None
    """steps between looks at held-out data, in recipes that have some; none: never"""
    patience: int | None = None
    """early stop: training ends after so many looks at held-out data in a row without a lower loss than before, and the
    model ends with the weights of the lowest; none: never"""

    def __post_init__(self) -> None:
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        for name in ("steps", "gradient_accumulation", "keep_checkpoints", "log_every", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "grad_clip", "num_workers", "checkpoint_every_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("min_lr_ratio", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        self._check_held_out()

    def _check_held_out(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}; none keeps no average")
        for name in ("evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or none, got {value}")
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError(f"patience ({self.patience}) counts looks at held-out data; set evaluate_every too")


def deciding_settings(config: LoopConfig) -> dict[str, Any]:
    """What decides the outcome; `gradient_accumulation` counts through `num_shards`."""
    free = (*_FREE_TO_CHANGE, "gradient_accumulation", "find_unused_parameters")
    values = {name: getattr(config, name) for name in LoopConfig.__dataclass_fields__ if name not in free}
    return {f"loop.{name}": list(v) if isinstance(v, tuple) else v for name, v in values.items()}
