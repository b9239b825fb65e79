"""Evaluation on held-out data during training, and the counts for early stopping."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import nn

from train.loop.averages import Averages
from train.loop.checkpoints import Checkpoints, RunState
from train.loop.progress import RunLog, read_held_out


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation on held-out data."""

    loss: float
    """lower is better; early stopping uses it"""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """other figures, by name"""
    images: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """pictures (H, W, 3) for the trackers, by name"""
    write_page: Callable[[Sequence[tuple[int, Mapping[str, float]]]], None] | None = None
    """called with the steps and figures of all evaluations so far, this one last, to write a page"""


EvaluateFn = Callable[[Any], Evaluation]
"""(model in evaluation mode) -> its result on held-out data"""


class HeldOut:
    """Evaluation of a model during training (of its averages, if any), with the counts for early stopping."""

    def __init__(
        self,
        evaluate: EvaluateFn,
        model: nn.Module,
        averages: Averages | None,
        checkpoints: Checkpoints,
        accelerator: Accelerator,
    ) -> None:
        self.evaluate, self.model, self.averages = evaluate, model, averages
        self.checkpoints, self.accelerator = checkpoints, accelerator

    def update(self, state: RunState, log: RunLog | None) -> RunState:
        """Evaluate and log on the main process, and keep the best weights; return the new state on all processes."""
        found: list[float | None] = [None]
        if self.accelerator.is_main_process:
            self.model.eval()
            with torch.no_grad(), self.averages.in_place() if self.averages is not None else nullcontext():
                evaluation = self.evaluate(self.model)
                if evaluation.loss < state.best_loss:
                    self.checkpoints.save_best(self.model, state.step)
            self.model.train()
            if log is not None:
                log.write_held_out(state.step, {"loss": evaluation.loss, **evaluation.scalars}, evaluation.images)
                if evaluation.write_page is not None:
                    evaluation.write_page(read_held_out(self.checkpoints.run_dir))
            found = [float(evaluation.loss)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        loss = found[0]
        assert loss is not None
        if loss < state.best_loss:
            return replace(state, best_loss=loss, best_step=state.step, stale_evaluations=0)
        return replace(state, stale_evaluations=state.stale_evaluations + 1)
