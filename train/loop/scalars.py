"""Named scalars of a training step: transfer from the device, and means over batches, steps and processes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

Scalars = Mapping[str, Tensor | float]


def to_floats(scalars: Scalars) -> dict[str, float]:
    """Convert named scalars to floats, with one transfer from each device for all that are there."""
    values: dict[str, float] = {}
    tensors = {name: value.detach().float().reshape(()) for name, value in scalars.items() if torch.is_tensor(value)}
    for device in {tensor.device for tensor in tensors.values()}:
        there = {name: tensor for name, tensor in tensors.items() if tensor.device == device}
        values |= dict(zip(there, torch.stack(list(there.values())).tolist(), strict=True))
    return {name: values[name] if name in values else float(value) for name, value in scalars.items()}


class RunningMean:
    """Means of named scalars, each over the values that were added under its name."""

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self.last_loss = math.nan

    def add(self, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            if math.isfinite(value) or name == "loss":
                total, count = self.sums.get(name, (0.0, 0))
                self.sums[name] = (total + value, count + 1)
        self.last_loss = scalars.get("loss", self.last_loss)

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}

    def over_processes(self, accelerator: Accelerator) -> tuple[dict[str, float], float]:
        """Return the means over all processes, and the mean of their last losses."""
        gathered = [self]
        if accelerator.num_processes > 1:
            gathered = gather_object([self])
        merged: dict[str, tuple[float, int]] = {}
        for other in gathered:
            for name, (total, count) in other.sums.items():
                before, seen = merged.get(name, (0.0, 0))
                merged[name] = (before + total, seen + count)
        means = {name: total / count for name, (total, count) in merged.items()}
        return means, sum(other.last_loss for other in gathered) / len(gathered)
