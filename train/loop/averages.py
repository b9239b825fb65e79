"""A moving average of a model's weights, by diffusers' EMAModel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


class Averages:
    """Moving averages of the parameters of `model`; its buffers, which a VQ codebook averages itself, are left alone.

    The decay rises with the steps, (1 + n) / (10 + n), up to `decay`, so that the first weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        try:
            from diffusers.training_utils import EMAModel  # here: it takes seconds to import
        except ImportError as error:
            raise ImportError("ema_decay needs diffusers: pip install diffusers, or leave ema_decay at none") from error
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())
        self._ema = EMAModel(self.parameters, decay=decay)

    def update(self) -> None:
        """Takes the parameters as they stand after a step into the averages."""
        self._ema.step(self.parameters)

    def copy_to_model(self) -> None:
        """Overwrites the parameters with their averages."""
        self._ema.copy_to(self.parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averages for its parameters inside, and its own ones again after."""
        self._ema.store(self.parameters)
        self.copy_to_model()
        try:
            yield
        finally:
            self._ema.restore(self.parameters)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by the names of their parameters, for a checkpoint."""
        return {name: x.contiguous() for name, x in zip(self.names, self._ema.shadow_params, strict=True)}

    def load(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Takes up the averages of a checkpoint made after `step` steps.

        Raises:
            KeyError: for a parameter whose average is not among them.
            RuntimeError: for one of another shape.
        """
        for name, average in zip(self.names, self._ema.shadow_params, strict=True):
            average.copy_(tensors[name])  # keeps the memory layout of its parameter
        self._ema.optimization_step = step
