"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

_FREE_TO_CHANGE = (
    "checkpoint_every_seconds", "keep_checkpoints", "log_every", "trackers", "num_workers", "prefetch", "compile",
)  # fmt: skip
TRACKERS = ("tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a training run."""

    steps: int = 1000
    """number of optimiser steps"""
    learning_rate: float | None = 1e-3
    """highest learning rate; none: by what trains and the size of the model, in recipes that choose one
    (train.finetune)"""
    weight_decay: float = 0.01
    """weight decay of matrices, convolutions and embeddings; vectors never decay"""
    warmup_steps: int | float = 0
    """number of steps over which the learning rate rises linearly from 0; a number below 1 is a share of all steps"""
    schedule: Literal["cosine", "constant", "wsd", "exponential"] = "cosine"
    """schedule of the learning rate after the warm-up. wsd: constant, then linear decay over the last decay_share of
    the steps. exponential: decay by the same factor at each step"""
    min_lr_ratio: float = 0.1
    """ratio of the last learning rate to the highest; constant does not use it, and exponential needs one above 0"""
    decay_share: float = 0.2
    """share of the steps in which the learning rate decays; only wsd uses it"""
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    """maximum norm of the gradient; 0 turns clipping off"""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16: the forward pass autocasts to bfloat16 on devices that support it natively; on others, where bfloat16 is
    far slower, it stays in float32. Weights keep their own precision"""
    gradient_accumulation: int = 1
    """batches per optimiser step and device; 1 device with 8 sees the same batches as 8 devices with 1"""
    checkpoint_every_seconds: float = 180.0
    """seconds between checkpoints"""
    keep_checkpoints: int = 2
    """number of newest checkpoints to keep"""
    log_every: int = 10
    """number of steps between lines of log.jsonl and points of the trackers"""
    trackers: tuple[str, ...] = ("tensorboard",)
    """where figures go beside log.jsonl, by name: tensorboard (a folder in run_dir), wandb, trackio; the flag without a
    name turns all off"""
    seed: int = 0
    num_workers: int = 1
    """number of processes that make batches; 0: the training process makes them between steps"""
    prefetch: int = 4
    """number of batches that each worker prepares ahead"""
    compile: bool = False
    """compile the model with torch.compile"""
    find_unused_parameters: bool = False
    """allow steps in which some trained parameters get no gradient; only matters on several devices"""
    ema_decay: float | None = None
    """decay of a moving average of the weights, which the finished model gets; none: no average"""
    evaluate_every: int | None = None
    """number of steps between evaluations on held-out data, in recipes that have held-out data; none: never. The
    weights with the lowest loss are kept in run_dir/best.safetensors"""
    patience: int | None = None
    """early stopping: training ends after this many evaluations in a row without a new lowest loss, and the model gets
    the weights with the lowest loss; none: no early stopping, and the model gets the last weights"""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("steps", "gradient_accumulation", "keep_checkpoints", "log_every", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "grad_clip", "num_workers", "checkpoint_every_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        for name in ("min_lr_ratio", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.schedule == "exponential" and not self.min_lr_ratio:
            raise ValueError(
                "schedule exponential with min_lr_ratio 0 has no learning rate behind the warm-up's last step; set "
                "min_lr_ratio above 0, such as 0.01"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if unknown := [name for name in self.trackers if name not in TRACKERS]:
            raise ValueError(f"unknown tracker {unknown[0]!r}; known: {', '.join(TRACKERS)}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must not exceed steps ({self.steps})")
        self._check_held_out()

    @property
    def peak_rate(self) -> float:
        """The highest learning rate. Raises ValueError if it has not been chosen."""
        if self.learning_rate is None:
            raise ValueError("this recipe does not choose a learning rate; set learning_rate")
        return self.learning_rate

    @property
    def num_warmup_steps(self) -> int:
        return round(self.warmup_steps if self.warmup_steps >= 1 else self.warmup_steps * self.steps)

    def _check_held_out(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie between 0 and 1, got {self.ema_decay}; none keeps no average")
        for name in ("evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 or none, got {value}")
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError(f"patience ({self.patience}) counts evaluations on held-out data; set evaluate_every too")


def check_choices(config: Any) -> None:
    """Check the Literal fields of a dataclass. Raises ValueError if a value is not one of the choices."""
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
            known = ", ".join(map(str, get_args(kind)))
            raise ValueError(f"unknown {name} {getattr(config, name)!r}; known: {known}")


def deciding_settings(config: LoopConfig) -> dict[str, Any]:
    """Return the settings that decide the outcome; `num_shards` stands for `gradient_accumulation`."""
    free = (*_FREE_TO_CHANGE, "gradient_accumulation", "find_unused_parameters")
    values = {name: getattr(config, name) for name in LoopConfig.__dataclass_fields__ if name not in free}
    return {f"loop.{name}": list(v) if isinstance(v, tuple) else v for name, v in values.items()}
