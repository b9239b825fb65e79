"""transformers' Trainer for records: our batches and loss, its devices, precision, sharding and resuming.

`train.loop.fit` trains data-parallel. Models that are sharded over devices (FSDP2, DeepSpeed ZeRO-3) need what the
Trainer has; the batches are pure functions of the step here, too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from train.models.losses import SpanLosses, target_logits

WHOLE_FILE = "whole"
"""written into a checkpoint's folder last of all"""
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class RecordTrainer(Trainer):
    """Steps over `RecordBatches`, normalised over all devices and forwards of a step.

    The loss of a step is the mean over the weights of all its targets, however they were dealt: two devices with a
    batch each give the loss and the gradient of one with twice the batch.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        *args: Any,
        span_losses: SpanLosses,
        tower_names: Sequence[str],
        tower_lr_ratio: float,
        fixed_rows: Sequence[str],
        **kwargs: Any,
    ):
        """
        Args:
            span_losses: of a forward's rows.
            tower_names: parameters that learn at `tower_lr_ratio` of the rate.
            fixed_rows: embedding tables some of whose rows must stay, so that they do not decay.
        """
        self.optimizer: Any
        super().__init__(*args, **kwargs)
        self.span_losses = span_losses
        self.tower_names, self.tower_lr_ratio, self.fixed_rows = set(tower_names), tower_lr_ratio, set(fixed_rows)
        self.tokens = self.slots = 0
        """real tokens of all forwards on this device, and places for them, padding included"""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # which rows come when is the batches' business

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Weights of all targets of a step, over its forwards and devices."""
        total = torch.stack([batch["weights"].sum() for batch in batch_samples]).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.world_size > 1 else total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This forward's share of the step's loss, times the devices, as gradients are averaged over them."""
        self.tokens += int(inputs["attention_mask"].sum())
        self.slots += inputs["attention_mask"].numel()
        losses = self.span_losses(*target_logits(model, inputs))
        return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    @property
    def padding_share(self) -> float:
        """Of all places for tokens so far, those that were padded."""
        return 1 - self.tokens / max(1, self.slots)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Checkpoints hold weights by the model's own names, by which they are read again.

        By default they are written by the names of the family's first release, and reading them finds none of them.
        """
        if not isinstance(self.model, PreTrainedModel):
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            self.model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)
            torch.save(self.args, Path(folder) / "training_args.bin")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raises ValueError where a checkpoint lacks a weight, or holds one that the model has not."""
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or ())
        lost = sorted(set(load_result.missing_keys) - tied) + sorted(load_result.unexpected_keys)
        if lost:
            raise ValueError(
                f"the newest checkpoint of {self.args.output_dir} is of another model: {lost[0]} is on one side alone; "
                "give another run_dir"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log({**logs, "padding": round(self.padding_share, 4)}, start_time)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with the tower at its own rate. By name: sharding puts other parameters in the place of these."""
        known: torch.optim.Optimizer | None = self.optimizer
        if known is not None:
            return known
        trained = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(trained))
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                plain = _WRAPPERS.sub("", name)
                key = (plain in self.tower_names, name in decayed and plain not in self.fixed_rows)
                groups.setdefault(key, []).append(parameter)
        rate, decay = self.args.learning_rate, self.args.weight_decay
        settings = [
            {"params": params, "lr": rate * (self.tower_lr_ratio if tower else 1), "weight_decay": decay * decays}
            for (tower, decays), params in sorted(groups.items(), key=lambda item: item[0])
        ]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
        made: torch.optim.Optimizer = kind(settings, **options)
        self.optimizer = made
        return made


class MarkWhole(TrainerCallback):
    """Marks each checkpoint once all of it is written: a run that dies while saving goes on from the one before."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / WHOLE_FILE).touch()


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Whole ones by step."""
    found = {int(p.name.partition("-")[2]): p for p in run_dir.glob("checkpoint-*") if p.name[11:].isdigit()}
    return {step: path for step, path in sorted(found.items()) if (path / WHOLE_FILE).exists()}


def drop_half_written(run_dir: Path) -> list[Path]:
    """Removes checkpoints that were not finished, lest they count as the newest; returns what they were."""
    whole = set(checkpoints(run_dir).values())
    half = [path for path in run_dir.glob("checkpoint-*") if path.is_dir() and path not in whole]
    for path in half:
        shutil.rmtree(path)
    return half
