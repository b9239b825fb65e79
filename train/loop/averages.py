"""A moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averages:
    """Exponential moving averages of the parameters of `model`.

    Buffers are left alone: a VQ codebook averages its own. The first update copies the parameters; the decay of update
    n then rises as n / (9 + n) up to `decay`, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    def update(self) -> None:
        """Include the parameters, as they are after a step, in the averages."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (9 + self.num_updates)) if self.num_updates > 1 else 0.0
        average = get_ema_multi_avg_fn(decay)
        average(self.averages, [parameter.detach() for parameter in self.parameters], self.num_updates)

    def copy_to_model(self) -> None:
        """Overwrite the parameters with their averages."""
        _copy(self.averages, self.parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averages inside the block, and its own parameters back after it."""
        own = [parameter.detach().clone() for parameter in self.parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            _copy(own, self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters, for a checkpoint."""
        return {name: x.contiguous() for name, x in zip(self.names, self.averages, strict=True)}

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Load the averages of a checkpoint that was made after `step` steps.

        Raises:
            KeyError: if the average of a parameter is missing.
            RuntimeError: if an average has another shape than its parameter.
        """
        _copy([tensors[name] for name in self.names], self.averages)
        self.num_updates = step


@torch.no_grad()
def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    """Copy values; the targets keep their memory layout, without which resumed steps are not bit-equal."""
    for one, other in zip(source, target, strict=True):
        other.copy_(one)
