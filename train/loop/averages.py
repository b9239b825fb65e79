"""A moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averages:
    """Exponential moving averages of the parameters of `model` that train.

    Frozen parameters are their own averages, and buffers are not averaged: a VQ codebook keeps its own. The first
    update copies the parameters; the decay of update n then rises as n / (9 + n) up to `decay`, so that the first
    weights soon lose their influence.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names, self.parameters = list(trained), list(trained.values())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Update the averages with the parameters as they are after a step."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (9 + self.num_updates)) if self.num_updates > 1 else 0.0
        average = get_ema_multi_avg_fn(decay)
        average(self.averages, [parameter.detach() for parameter in self.parameters], self.num_updates)

    def copy_to_model(self) -> None:
        """Overwrite the parameters with their averages."""
        _copy(self.averages, self.parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Replace the parameters by their averages inside the block, and restore them after it."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            _copy(own, self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by parameter name, for a checkpoint."""
        return {name: x.contiguous() for name, x in zip(self.names, self.averages, strict=True)}

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Load the averages from a checkpoint that was made after `step` steps.

        Raises:
            KeyError: if the average of a parameter is missing.
            RuntimeError: if the shape of an average differs from its parameter's.
        """
        _copy([tensors[name] for name in self.names], self.averages)
        self.num_updates = step


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Copy values and keep the memory layout of the targets; resumed steps are bit-equal only with the same layout."""
    for one, other in zip(source, target, strict=True):
        other.copy_(one)
