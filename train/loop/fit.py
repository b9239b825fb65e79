"""The training loop: tokenizers, the tiny base, AURORA and its baseline all run through `fit`.

Everything that a step does depends on its number alone: the batch, the learning rate and the random numbers (reseeded
before each step). A run that is killed and started again therefore resumes from its newest checkpoint and, on a CPU
with the same number of threads, ends bit-equal to a run that was never killed.

Start it with `python -m train.X` on one device or `accelerate launch -m train.X` on several (`run_dir` must then be on
a disk that all nodes share). Several devices train data-parallel or, in recipes that allow it, with the model sharded
over them by FSDP2.
"""

from __future__ import annotations

import atexit
import inspect
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.deterministic
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, send_to_device
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from train.loop.averages import Averages
from train.loop.checkpoints import Checkpoints, RunState, frozen_digest
from train.loop.config import LoopConfig, deciding_settings
from train.loop.evaluation import EvaluateFn, HeldOut
from train.loop.memory import release_memory
from train.loop.optimizer import build_optimizer, learning_rate_at
from train.loop.precision import computes_bf16
from train.loop.progress import Display, RunLog
from train.loop.scalars import RunningMean, Scalars, to_floats
from train.loop.sharding import launched_sharded, shard, whole
from train.loop.stopping import Stopped, StopSignals
from train.loop.trackers import check_trackers
from vqvae.files import full_disk_named

BatchFn = Callable[[int, int, int], Any]
"""(step, shard, num_shards) -> batch of one shard of a step. It must be a pure function: same arguments, same batch."""
LossFn = Callable[[Any, Any, int], tuple[Tensor, Scalars]]
"""(model, batch, step) -> (loss, named scalars to show and log)."""
WeightFn = Callable[[Any], Tensor]
"""(batch) -> weight of the batch in the mean over its step, a scalar on the CPU."""

_START = RunState(0, math.nan, 0.0, 0.0)
_LONGEST_WAIT = timedelta(hours=6)
"""How long processes wait for the main one, which evaluates and saves alone; NCCL's default is 10 minutes"""
_SECONDS_TO_FREE = 0.5
"""How long the threads of a process group have to free what they hold, at the end of a process"""


@dataclass(frozen=True)
class FitResult:
    """Result of a run."""

    steps: int
    final_loss: float
    """loss of the last step, mean over devices"""
    seconds: float
    """total training time; a killed run counts up to its last checkpoint"""
    data_wait_share: float
    """share of `seconds` spent waiting for batches"""
    resumed_from: int | None
    """step of the checkpoint that this call resumed from; None if it started anew"""
    is_main: bool = True
    """True if this process should write the results of a distributed run"""
    shards: int = 1
    """batches per optimiser step, over devices and gradient accumulation"""
    best_loss: float = math.inf
    """lowest loss on held-out data; infinite if the run has none"""
    best_step: int = 0
    """number of steps done when `best_loss` was measured"""


def fit(
    model: nn.Module,
    batch_fn: BatchFn,
    loss_fn: LossFn,
    config: LoopConfig,
    run_dir: str | Path,
    *,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    in_parts: bool = False,
    weight: WeightFn | None = None,
    evaluate: EvaluateFn | None = None,
    after_step: Callable[[], None] | None = None,
    title: str = "",
    fingerprint: Mapping[str, Any] | None = None,
    shardable: bool = False,
) -> FitResult:
    """Train `model` in place for `config.steps` steps, starting from the newest checkpoint in `run_dir`, if any.

    The model ends with its last weights, or with their moving average if `config.ema_decay` is set. If
    `config.patience` is set, it ends with the weights (or averages) that had the lowest loss on held-out data.

    Args:
        batch_fn: makes the batch of (step, shard, num_shards) in a worker process. With several devices or gradient
            accumulation a step has several shards, one batch each.
        loss_fn: mean loss of a batch, and scalars to show and log. It may call the model several times.
        param_groups: see `build_optimizer`.
        in_parts: batches are lists of parts. Each part has its own forward and backward pass, one after the other, and
            `loss_fn` and `weight` receive a part.
        weight: weight of a batch. The loss of a step is the weighted mean of its batches' losses, over all devices and
            forward passes, so two devices with one batch each take the same step as one device with twice the batch.
            None: all batches weigh the same.
        on_log: called with each record of log.jsonl except those of held-out data.
        evaluate: evaluates the model, in evaluation mode, on held-out data every `config.evaluate_every` steps and
            after the last. It runs on the main process alone, so it must not wait for other processes.
        after_step: called on every process after each optimiser step, before anything is saved or evaluated.
        fingerprint: the caller's own settings (JSON values, `train.loop.command_line.flatten`); a run with different
            ones cannot be resumed.
        shardable: True if the recipe supports a model that is sharded by FSDP2.

    Raises:
        ResumeError: if a checkpoint is damaged or was made with other settings.
        Stopped: after Ctrl-C, once the step that it met is finished and its checkpoint is saved.
        DiskFull: if there is no room for a checkpoint.
        ValueError: if `config.evaluate_every` is set without `evaluate`, or a tracker is not installed.
        FloatingPointError: if a loss or gradient is NaN or infinite; earlier checkpoints are kept.
    """
    check_trackers(config.trackers)
    sharded = launched_sharded()
    if sharded:
        _check_shardable(config, shardable)
    accelerator = _accelerator(config)
    world = accelerator.num_processes
    num_shards = world * config.gradient_accumulation
    settings = {"num_shards": num_shards, **deciding_settings(config), **(fingerprint or {})}
    if frozen := frozen_digest(model):
        settings["frozen_weights"] = frozen
    if sharded:
        settings["sharded_over"] = world
        param_groups = _shard(model, param_groups, accelerator, config)
        held = accelerator.process_index, world
    else:
        model.to(accelerator.device)
        held = 0, 1
    checkpoints = Checkpoints(Path(run_dir), settings, config.keep_checkpoints, *held)
    model.train()
    optimizer = build_optimizer(model, config, param_groups)
    averages = Averages(model, config.ema_decay) if config.ema_decay is not None else None
    held_out = _held_out(evaluate, model, averages, checkpoints, accelerator, config)
    display_console = Console(stderr=True) if not sys.stdout.isatty() and sys.stderr.isatty() else Console()
    resumed_from = _newest(checkpoints, accelerator, display_console)
    state = _START if resumed_from is None else checkpoints.restore(resumed_from, model, optimizer, averages)
    if state.step < config.steps and not _stopped(state, config):
        trainer = _Trainer(
            accelerator, model, optimizer, loss_fn, config, in_parts, weight, averages, after_step, sharded
        )
        batches = _batches(batch_fn, config, accelerator, state.step)  # first: workers fork from a single thread
        display = Display(title, config.steps, state.step, display_console, accelerator.is_main_process)
        if config.precision == "bf16" and not trainer.autocast and accelerator.is_main_process:
            display_console.print(f"float32 instead of bf16: this {accelerator.device.type} does not compute in bf16")
        with display, _same_bits(accelerator.device):
            state = _run(trainer, batches, state, checkpoints, display, on_log, held_out)
    accelerator.wait_for_everyone()
    _take_final_weights(model, averages, checkpoints, state, config)
    share = state.wait_seconds / state.seconds if state.seconds else 0.0
    return FitResult(
        state.step,
        state.loss,
        state.seconds,
        share,
        resumed_from,
        accelerator.is_main_process,
        num_shards,
        state.best_loss,
        state.best_step,
    )


def _run(
    trainer: _Trainer,
    batches: Iterator[Any],
    state: RunState,
    checkpoints: Checkpoints,
    display: Display,
    on_log: Callable[[dict[str, Any]], None] | None,
    held_out: HeldOut | None,
) -> RunState:
    """Train from `state` to the end of the run and return the last state."""
    config, is_main = trainer.config, trainer.accelerator.is_main_process
    log = RunLog(checkpoints.run_dir, state.step, config.trackers) if is_main else None
    mean = RunningMean()
    last_saved = time.monotonic()
    alone = trainer.accelerator.num_processes == 1
    stack = ExitStack()
    stopping = stack.enter_context(StopSignals(with_sigterm=alone))
    try:
        for step in range(state.step, config.steps):
            start = time.perf_counter()
            loss, scalars, waited = trainer.step(step, batches, checkpoints)
            seconds = state.seconds + time.perf_counter() - start
            waited += state.wait_seconds
            state = replace(state, step=step + 1, loss=loss, seconds=seconds, wait_seconds=waited)
            mean.add({"loss": loss, **scalars})
            wait_share = state.wait_seconds / max(state.seconds, 1e-9)
            display.update(step + 1, {"loss": loss, **scalars}, learning_rate_at(config, step), wait_share)
            finished = step + 1 == config.steps
            if held_out is not None and (finished or (step + 1) % (config.evaluate_every or 1) == 0):
                state = held_out.update(state, log)
                finished = finished or _stopped(state, config)
            if finished or (step + 1) % config.log_every == 0:
                means, last = mean.over_processes(trainer.accelerator)
                state = replace(state, loss=last)
                record = {"step": step + 1, "loss": means.pop("loss"), "losses": means}
                record |= {"lr": learning_rate_at(config, step), "wait_share": wait_share, "seconds": seconds}
                if log is not None:
                    log.write(record)
                    if on_log is not None:
                        on_log(record)
                mean = RunningMean()
            old = time.monotonic() - last_saved >= config.checkpoint_every_seconds
            due = finished or trainer.agreed(stopping.asked or old)
            if due and (is_main or trainer.sharded):
                with full_disk_named(checkpoints.folder(step + 1)):
                    checkpoints.save(state, trainer.model, trainer.optimizer, trainer.averages)
                last_saved = time.monotonic()
            if due and not finished and trainer.agreed(stopping.asked):
                kept = f"{checkpoints.folder(step + 1)} is kept, and the same command goes on from there"
                raise Stopped(f"stopped after {step + 1} of {config.steps} steps; {kept}" if is_main else "")
            if finished:
                if step + 1 < config.steps:
                    best = f"lowest after {state.best_step} steps ({state.best_loss:.4g})"
                    display.say(f"stopped after {step + 1} steps: held-out loss was {best}, whose weights are kept")
                break
    finally:
        stack.close()
        if log is not None:
            log.close()
    return state


def _take_final_weights(
    model: nn.Module, averages: Averages | None, checkpoints: Checkpoints, state: RunState, config: LoopConfig
) -> None:
    """Give the model the weights that a finished run ends with; see `fit`."""
    if averages is not None:
        averages.copy_to_model()
    if config.patience is not None and state.best_step:
        checkpoints.load_best(model)


def _held_out(
    evaluate: EvaluateFn | None,
    model: nn.Module,
    averages: Averages | None,
    checkpoints: Checkpoints,
    accelerator: Accelerator,
    config: LoopConfig,
) -> HeldOut | None:
    """Return the evaluation on held-out data, or None if not asked for. Raises ValueError if the recipe has no data."""
    if config.evaluate_every is None:
        return None
    if evaluate is None:
        raise ValueError(
            f"evaluate_every ({config.evaluate_every}) needs held-out data, which this recipe does not have; set it "
            "and patience to none"
        )
    return HeldOut(evaluate, model, averages, checkpoints, accelerator)


def _stopped(state: RunState, config: LoopConfig) -> bool:
    """Return True if `config.patience` evaluations in a row found no new lowest held-out loss."""
    return config.patience is not None and state.stale_evaluations >= config.patience


class _Objective(nn.Module):
    """Model and loss as one module.

    Data-parallel training then sees one forward pass, however often the loss calls the model, and the loss receives the
    model itself instead of its wrapper.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any, step: int) -> tuple[Tensor, Scalars]:
        return self.loss_fn(self.model, batch, step)


class _Trainer:
    """Model, optimiser and settings for optimiser steps."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFn,
        config: LoopConfig,
        in_parts: bool,
        weight: WeightFn | None,
        averages: Averages | None,
        after_step: Callable[[], None] | None,
        sharded: bool,
    ) -> None:
        self.accelerator, self.model, self.optimizer, self.config = accelerator, model, optimizer, config
        self.in_parts, self.weight, self.sharded = in_parts, weight, sharded
        self.autocast = config.precision == "bf16" and computes_bf16(accelerator.device)
        self.averages, self.after_step = averages, after_step
        if config.compile:
            model.compile()
        objective = _Objective(model, loss_fn)
        self.objective = objective if sharded else accelerator.prepare_model(objective)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(
        self, step: int, batches: Iterator[Any], checkpoints: Checkpoints
    ) -> tuple[float, dict[str, float], float]:
        """Take one optimiser step; return (this process's mean loss, its mean scalars, seconds spent on waiting)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.config, step) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        mean = RunningMean()
        start = time.perf_counter()
        batches_here = [next(batches) for _ in range(self.config.gradient_accumulation)]
        waited = time.perf_counter() - start
        forwards = [(n, part) for n, batch in enumerate(batches_here) for part in (batch if self.in_parts else [batch])]
        scales = self._scales([part for _, part in forwards])
        seeded = None
        for number, (index, part) in enumerate(forwards):
            part = send_to_device(part, self.accelerator.device, non_blocking=True)
            if index != seeded:
                torch.manual_seed(
                    _seed(self.config.seed, step, self.accelerator.process_index * len(batches_here) + index)
                )
                seeded = index
            last = number == len(forwards) - 1
            with nullcontext() if last or self.sharded else self.accelerator.no_sync(self.objective):
                with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.autocast):
                    loss, scalars = self.objective(part, step)
                loss = loss * scales[number]
                (loss / len(forwards)).backward()
            mean.add(to_floats({"loss": loss} | {k: v for k, v in scalars.items() if k != "loss"}))
        norm = whole(nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf))
        means = mean.means()
        loss_value = means.pop("loss", math.nan)
        # All processes have the same gradient norm, so all of them stop together.
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            raise FloatingPointError(_diverged(step, loss_value, float(norm), checkpoints))
        self.optimizer.step()
        if self.averages is not None:
            self.averages.update()
        if self.after_step is not None:
            self.after_step()
        return loss_value, means, waited

    def _scales(self, batches: Sequence[Any]) -> list[float]:
        """Return a factor per batch for its loss, so that plain means over batches and devices are weighted means."""
        if self.weight is None:
            return [1.0] * len(batches)
        weights = torch.stack([self.weight(batch) for batch in batches])
        total = self.accelerator.reduce(weights.sum().to(self.accelerator.device), "sum").cpu()
        return (weights * (len(batches) * self.accelerator.num_processes) / total).tolist()

    def agreed(self, here: bool) -> bool:
        """Return the main process's `here` on all processes, since a step needs all of them."""
        if self.accelerator.num_processes == 1:
            return here
        found = torch.tensor([int(here and self.accelerator.is_main_process)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(found, "sum").item())


def _check_shardable(config: LoopConfig, shardable: bool) -> None:
    if not shardable:
        raise ValueError("this recipe trains data-parallel and was launched with FSDP; launch it with multi-GPU")
    for name in ("ema_decay", "evaluate_every"):
        if getattr(config, name) is not None:
            raise ValueError(f"{name} ({getattr(config, name)}) needs the whole model on a device; set it to none")


def _shard(
    model: nn.Module,
    param_groups: Sequence[Mapping[str, Any]] | None,
    accelerator: Accelerator,
    config: LoopConfig,
) -> Sequence[Mapping[str, Any]] | None:
    """Shard the model and return `param_groups` with the sharded parameters in place of the old ones."""
    names = {id(p): name for name, p in model.named_parameters()}
    shard(model, accelerator.device, config.precision == "bf16" and computes_bf16(accelerator.device))
    if param_groups is None:
        return None
    sharded = dict(model.named_parameters())
    return [{**group, "params": [sharded[names[id(p)]] for p in group["params"]]} for group in param_groups]


class _Steps(Dataset[Any]):
    """Micro-batch `index` of this process: part `index % parts` of step `index // parts`."""

    def __init__(self, batch_fn: BatchFn, parts: int, rank: int, world: int) -> None:
        self.batch_fn, self.parts, self.rank, self.world = batch_fn, parts, rank, world

    def __getitem__(self, index: int) -> Any:
        step, part = divmod(index, self.parts)
        return self.batch_fn(step, self.rank * self.parts + part, self.world * self.parts)


def _batches(batch_fn: BatchFn, config: LoopConfig, accelerator: Accelerator, start_step: int) -> Iterator[Any]:
    parts = config.gradient_accumulation
    workers: dict[str, Any] = {}
    if config.num_workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else Hugging Face's tokenizers warn about the fork
        workers = {"prefetch_factor": config.prefetch, "worker_init_fn": _one_thread}
        if sys.platform.startswith("linux"):
            workers["multiprocessing_context"] = "fork"  # batch functions may be closures over large stores
            release_memory()
    loader: DataLoader[Any] = DataLoader(
        _Steps(batch_fn, parts, accelerator.process_index, accelerator.num_processes),
        batch_size=None,
        sampler=range(start_step * parts, config.steps * parts),
        num_workers=config.num_workers,
        pin_memory=accelerator.device.type == "cuda",
        **workers,
    )
    return iter(loader)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one finishes its step first


@contextmanager
def _same_bits(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels on a CPU, where they cost almost nothing.

    By default the threads of an indexed sum (such as the gradient of a table of position biases) add in no fixed order.
    """
    settings: Any = torch.utils.deterministic  # a property of the module, which type checkers do not see
    before, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = settings.fill_uninitialized_memory
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # filling every new tensor gains nothing here
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
        settings.fill_uninitialized_memory = fills


@dataclass
class _DataParallel(DistributedDataParallelKwargs):
    """accelerate's settings of data-parallel training; buffers are not copied before each forward pass."""

    def to_kwargs(self) -> dict[str, Any]:
        # torch 2.14 renames broadcast_buffers, and accelerate does not know the new name.
        known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return {**super().to_kwargs(), name: False}


def _accelerator(config: LoopConfig) -> Accelerator:
    """Build the accelerator. `LoopConfig` sets the precision; EMA codebooks sync their own buffers."""
    # With cpu=True accelerate connects the processes of a launch without GPUs; else each would train on its own.
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available() or None,
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_LONGEST_WAIT)],
    )
    accelerator.ddp_handler = _DataParallel(find_unused_parameters=config.find_unused_parameters)
    known = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU, DistributedType.FSDP)
    if accelerator.distributed_type not in known:
        raise ValueError(
            f"training runs data-parallel or with FSDP2, got accelerate's {accelerator.distributed_type}; choose "
            "multi-GPU, multi-CPU or FSDP in `accelerate config`"
        )
    if accelerator.num_processes > 1:
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return accelerator


def _leave_group() -> None:
    """End the communication between processes before the interpreter ends.

    A thread of gloo that still frees tensors known to Python while the interpreter ends aborts the process ("terminate
    called without an active exception"). Sharded parameters keep these threads alive after the group is destroyed, so
    they are left the time to finish, with Python's lock free.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(_SECONDS_TO_FREE)


def _newest(checkpoints: Checkpoints, accelerator: Accelerator, console: Console) -> int | None:
    """Return the step of the newest complete checkpoint, the same on all processes."""
    newest: list[int | None] = [None]
    if accelerator.is_main_process:
        for left in checkpoints.remove_partial():
            console.print(f"{left} is half written (a run was killed while saving); removed", markup=False)
        for folder in checkpoints.half_written():
            console.print(f"{folder} is half written (a run was killed while saving); skipped", markup=False)
        newest = [max(checkpoints.complete(), default=None)]
        if newest[0] is not None:
            console.print(f"resuming from {checkpoints.folder(newest[0])}", markup=False)
    if accelerator.num_processes > 1:
        broadcast_object_list(newest)
    return newest[0]


def _seed(seed: int, step: int, shard: int) -> int:
    return int(np.random.SeedSequence((seed, step, shard)).generate_state(1)[0])


def _diverged(step: int, loss: float, norm: float, checkpoints: Checkpoints) -> str:
    saved = max(checkpoints.complete(), default=None)
    kept = f"{checkpoints.folder(saved)} is kept" if saved is not None else "there is no checkpoint yet"
    return (
        f"step {step}: loss {loss}, gradient norm {norm}; training stopped before the weights were touched, {kept}. "
        "Lower learning_rate, raise warmup_steps, or look at that step's batch"
    )
