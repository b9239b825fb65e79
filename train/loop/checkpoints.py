"""Checkpoints of a training run, written atomically.

`run_dir/checkpoint-<step>/` holds model.safetensors, optimizer.safetensors, averages.safetensors (if weights are
averaged) and, written last, state.json with the sizes and SHA-256 sums of the other files. The folder is written under
a temporary name and then renamed, so a run that is killed at any time keeps its newest complete checkpoint.
`run_dir/best.safetensors` holds the weights with the lowest loss on held-out data, in runs that evaluate. Nothing is
pickled.

A checkpoint holds what training changes: trained parameters and buffers. Frozen parameters are not saved; recipes read
them again from their source. If a model is sharded over processes, each process writes its own shards:
model-1of8.safetensors, and so on.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from train.loop.averages import Averages
from train.loop.sharding import local_part, wait_for_all
from vqvae.files import PARTIAL, remove, write_whole

MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
AVERAGES_FILE, BEST_FILE = "averages.safetensors", "best.safetensors"
BEST = "best"
"""Name under which the weights with the lowest loss on held-out data are exported"""
_NAME = re.compile(r"checkpoint-(\d+)")
_NEWER = ("data_digest",)
"""Settings that older checkpoints lack; where they are missing, nothing is compared"""


class ResumeError(ValueError):
    """Error for a checkpoint that cannot be read or has another configuration; it names the file and a remedy."""


@dataclass(frozen=True)
class RunState:
    """Progress of a run."""

    step: int
    """number of optimiser steps done"""
    loss: float
    """loss of the last step"""
    seconds: float
    """training time; a killed run counts up to its last checkpoint"""
    wait_seconds: float
    """part of `seconds` spent waiting for data"""
    best_loss: float = math.inf
    """lowest loss on held-out data so far"""
    best_step: int = 0
    """number of steps done when `best_loss` was measured; 0: not evaluated yet"""
    stale_evaluations: int = 0
    """number of evaluations since `best_step`"""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of `run_dir`, all of one configuration."""

    run_dir: Path
    settings: Mapping[str, Any]
    """JSON values that decide what is trained; a checkpoint with different settings is refused"""
    keep: int = 2
    """number of newest checkpoints to keep"""
    shard: int = 0
    """index of the part of the model and its optimiser, out of `num_shards`, that this process holds"""
    num_shards: int = 1

    def folder(self, step: int) -> Path:
        return self.run_dir / f"checkpoint-{step}"

    def complete(self) -> list[int]:
        """Return the steps of the complete checkpoints, in ascending order."""
        return sorted(step for step, folder in self._folders() if (folder / STATE_FILE).exists())

    def half_written(self) -> list[Path]:
        """Return the folders that have the name of a checkpoint and are none; they are never read."""
        return sorted(folder for _, folder in self._folders() if not (folder / STATE_FILE).exists())

    def remove_partial(self) -> list[Path]:
        """Remove what a killed run was writing, and return its paths. No other process may be writing in `run_dir`."""
        left = sorted(path for name in ("checkpoint-", BEST_FILE) for path in self.run_dir.glob(f".{name}*{PARTIAL}"))
        for path in left:
            remove(path)
        return left

    def save(
        self, state: RunState, model: nn.Module, optimizer: torch.optim.Optimizer, averages: Averages | None = None
    ) -> Path:
        """Write the checkpoint of `state.step`, remove all but the `keep` newest ones, and return its folder.

        If the model is sharded, all processes must call this at the same step.
        """
        final, is_main = self.folder(state.step), self.shard == 0
        if not (final / STATE_FILE).exists():
            partial = self.run_dir / f".{final.name}{PARTIAL}"
            try:
                self._write(partial, final, state, model, optimizer, averages)
            except BaseException:
                remove(partial)  # where the disk is full, it takes what room there was
                raise
        if is_main:
            for step in self.complete()[: -self.keep]:
                (self.folder(step) / STATE_FILE).unlink()  # first: a half-deleted folder must not look whole
                shutil.rmtree(self.folder(step), ignore_errors=True)
        wait_for_all(self.num_shards)
        return final

    def _write(
        self,
        partial: Path,
        final: Path,
        state: RunState,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        averages: Averages | None,
    ) -> None:
        """Write a checkpoint as `partial`, then name it `final`."""
        is_main = self.shard == 0
        if is_main:
            remove(partial)
            shutil.rmtree(final, ignore_errors=True)  # it has no state.json, so it is half written
            partial.mkdir(parents=True)
        wait_for_all(self.num_shards)
        save_file(_changing_tensors(model), partial / self._name(MODEL_FILE))
        save_file(_optimizer_tensors(model, optimizer), partial / self._name(OPTIMIZER_FILE))
        if averages is not None:
            save_file(averages.tensors(), partial / AVERAGES_FILE)
        wait_for_all(self.num_shards)
        if is_main:
            files = {path.name: _digest(path) for path in sorted(partial.iterdir())}
            text = json.dumps({**asdict(state), "files": files, "settings": dict(self.settings)}, indent=2)
            (partial / STATE_FILE).write_text(text + "\n")
            for path in (*partial.iterdir(), partial):
                _sync(path)
            os.rename(partial, final)
            _sync(self.run_dir)

    def check_export(self, name: str, out: str) -> None:
        """Check that a checkpoint can be exported, before a model is read for it.

        Raises:
            ValueError: if there is no complete checkpoint of that name, or `out` exists.
        """
        if name != BEST:
            self._step_of(name)
        if Path(out).exists():
            raise ValueError(f"{out} exists; give --out another folder for {name}")

    def load_export(self, name: str, model: nn.Module) -> RunState:
        """Load the weights of a checkpoint into a model that is built and frozen as the run's.

        Args:
            name: such as checkpoint-500, or `BEST`.

        Raises:
            ResumeError: if there is no such checkpoint, or as `restore`.
        """
        frozen = frozen_digest(model)
        return (
            self.load_best_weights(model, frozen)
            if name == BEST
            else self.load_weights(self._step_of(name), model, frozen)
        )

    def _step_of(self, name: str) -> int:
        known = {self.folder(step).name: step for step in self.complete()}
        if name not in known:
            raise ResumeError(f"{self.run_dir} has no complete {name}; it has: {', '.join(known) or 'no checkpoint'}")
        return known[name]

    def load_weights(self, step: int, model: nn.Module, frozen: str | None) -> RunState:
        """Load the weights of a checkpoint alone, or their moving averages, on one process, however many wrote it.

        Args:
            frozen: `frozen_digest` of the model.

        Raises:
            ResumeError: as `restore`.
        """
        folder = self.folder(step)
        state = self._read_whole(folder)
        self._check_given_settings(folder, state, frozen)
        count = state["settings"].get("sharded_over", 1)
        names = [replace(self, shard=n, num_shards=count)._name(MODEL_FILE) for n in range(count)]
        parts = [_guarded(partial(load_file, folder / name), folder / name) for name in names]
        known = model.state_dict(keep_vars=True)
        tensors = {
            name: torch.cat([part[name] for part in parts])
            if count > 1 and isinstance(known.get(name), nn.Parameter)
            else value
            for name, value in parts[0].items()
        }  # parameters are sharded along their first axis, and buffers are whole on each process
        _guarded(lambda: _load_changing(model, tensors), folder / names[0])
        if AVERAGES_FILE in state["files"]:
            path = folder / AVERAGES_FILE
            averages = Averages(model, 0.0)
            _guarded(lambda: averages.load(load_file(path), step), path)
            averages.copy_to_model()
        return _run_state(state)

    def load_best_weights(self, model: nn.Module, frozen: str | None) -> RunState:
        """Load the weights with the lowest loss on held-out data; see `load_weights`.

        Raises:
            ResumeError: if the run has not been evaluated, or as `restore`.
        """
        newest, path = max(self.complete(), default=None), self.run_dir / BEST_FILE
        if newest is None or not path.exists():
            raise ResumeError(f"{self.run_dir} has no {BEST_FILE} with a complete checkpoint; evaluate_every keeps it")
        folder = self.folder(newest)
        state = self._read_state(folder)
        self._check_given_settings(folder, state, frozen)
        self.load_best(model)
        with safe_open(path, framework="pt") as file:
            step = int((file.metadata() or {}).get("step", state["best_step"]))
        return replace(_run_state(state), step=step)

    def restore(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, averages: Averages | None = None
    ) -> RunState:
        """Load the checkpoint of `step` into the model, the optimiser and the averages.

        Raises:
            ResumeError: if a file is damaged, tensors do not fit, or the settings differ.
        """
        folder = self.folder(step)
        state = self._read_whole(folder)
        self._check_settings(folder, state["settings"])
        weights, moments = folder / self._name(MODEL_FILE), folder / self._name(OPTIMIZER_FILE)
        _guarded(lambda: _load_changing(model, load_file(weights)), weights)
        _guarded(lambda: _load_optimizer(model, optimizer, load_file(moments)), moments)
        if averages is not None:
            path = folder / AVERAGES_FILE
            _guarded(lambda: averages.load(load_file(path), step), path)
        return _run_state(state)

    def save_best(self, model: nn.Module, step: int) -> None:
        """Save the weights after `step` steps as the best so far; an interrupted write leaves the old file as it is."""
        note = {"step": str(step)}
        write_whole(self.run_dir / BEST_FILE, lambda path: save_file(_changing_tensors(model), path, note))

    def load_best(self, model: nn.Module) -> None:
        """Load the weights that `save_best` wrote. Raises ResumeError if the file is missing or does not fit."""
        path = self.run_dir / BEST_FILE
        _guarded(lambda: _load_changing(model, load_file(path)), path)

    def _name(self, file: str) -> str:
        """Return the name of this process's part of a file."""
        stem, _, end = file.partition(".")
        return file if self.num_shards == 1 else f"{stem}-{self.shard + 1}of{self.num_shards}.{end}"

    def _folders(self) -> list[tuple[int, Path]]:
        found = ((match, path) for path in self.run_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name)))
        return [(int(match[1]), path) for match, path in found]

    def _read_state(self, folder: Path) -> dict[str, Any]:
        path = folder / STATE_FILE
        try:
            state = json.loads(path.read_text())
            needed = {item.name for item in fields(RunState) if item.default is MISSING}
            if not {"files", "settings", *needed} <= set(state):
                raise ValueError("keys are missing")
        except (OSError, ValueError, TypeError) as error:
            raise ResumeError(
                f"{path} cannot be read ({error}); delete {folder} to go on from the checkpoint before it"
            ) from None
        return state

    def _read_whole(self, folder: Path) -> dict[str, Any]:
        """Return what `_read_state` does, once the other files are the ones that it lists."""
        state = self._read_state(folder)
        for name, (size, digest) in state["files"].items():
            if not (folder / name).exists() or _digest(folder / name) != [size, digest]:
                raise ResumeError(
                    f"{folder / name} is damaged or missing (its SHA-256 is not the one in {STATE_FILE}); delete "
                    f"{folder} to go on from the checkpoint before it, or from the start where there is none"
                )
        return state

    def _check_given_settings(self, folder: Path, state: Mapping[str, Any], frozen: str | None) -> None:
        """Raise ResumeError if settings that `self` has differ, or frozen weights; the loop's are not compared."""
        self._check_settings(folder, {n: value for n, value in state["settings"].items() if n in self.settings})
        if state["settings"].get("frozen_weights") != frozen:
            raise ResumeError(f"{folder} was trained on other frozen weights; give the base that the run started from")

    def _check_settings(self, folder: Path, stored: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(dict(self.settings)))
        compared = {*stored, *wanted} - {name for name in _NEWER if name not in stored}
        differing = sorted(k for k in compared if _differs(k, stored, wanted))
        if differing:
            listed = "; ".join(f"{k}: {stored.get(k)!r} there, {wanted.get(k)!r} now" for k in differing)
            raise ResumeError(
                f"{folder} was made with other settings ({listed}); restore them to resume, or give the new run "
                f"another run_dir or delete {self.run_dir}"
            )


def _run_state(state: Mapping[str, Any]) -> RunState:
    return RunState(**{item.name: state[item.name] for item in fields(RunState) if item.name in state})


def _differs(name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """True if a setting has two values. One that only one side knows, as it is newer or was taken out, must be off."""
    if name in stored and name in wanted:
        return bool(stored[name] != wanted[name])
    return bool(stored.get(name) or wanted.get(name))


def frozen_digest(model: nn.Module) -> str | None:
    """Return a digest of the frozen parameters, which checkpoints leave out; None if all parameters train."""
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    lines = [f"{name} {tuple(p.shape)} {p.dtype} {torch.hash_tensor(p.detach())}" for name, p in frozen]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Return trained parameters and buffers; tied ones appear under each of their names.

    Layers of 4 bits add the scales of their frozen weights to the state, made anew at each call; these are left out.
    """
    state, buffers = model.state_dict(keep_vars=True), {id(buffer) for buffer in model.buffers()}
    return {n: v for n, v in state.items() if v.requires_grad or id(v) in buffers}


def _changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return this process's part of `_changing`; tied tensors appear once."""
    once = {id(value): name for name, value in reversed(_changing(model).items())}
    return {name: local_part(value).contiguous() for name, value in _changing(model).items() if once[id(value)] == name}


@torch.no_grad()
def _load_changing(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `_changing_tensors` returned. Raises ValueError if a tensor is missing, unknown or of another shape."""
    known, loaded = model.state_dict(keep_vars=True), set()
    for name, value in tensors.items():
        if name not in known:
            raise ValueError(f"it has {name}, which the model does not have")
        mine = local_part(known[name])
        if mine.shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)} there, {tuple(mine.shape)} in the model")
        mine.copy_(value)
        loaded.add(id(known[name]))
    missing = [name for name, value in _changing(model).items() if id(value) not in loaded]
    if missing:
        raise ValueError(f"it has no {missing[0]}")


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}/{key}": local_part(value).contiguous()
        for p, slots in optimizer.state.items()
        for key, value in slots.items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        if name not in parameters or id(parameters[name]) not in trained:
            raise ValueError(f"it has state of {name}, which is not trained now")
        parameter = parameters[name]
        if value.shape == local_part(parameter).shape:
            # Moments keep the memory layout of their parameter (channels_last); steps are bit-equal only with it.
            moments = torch.empty_like(parameter)
            local_part(moments).copy_(value)
            optimizer.state[parameter][slot] = moments
        else:
            optimizer.state[parameter][slot] = value.to(parameter.device, copy=True)  # fused AdamW counts steps there


def _guarded(load: Callable[[], Any], path: Path) -> Any:
    try:
        return load()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ResumeError(
            f"{path} does not fit this model ({error}); use another run_dir, or the model that wrote it"
        ) from None


def _digest(path: Path) -> list[Any]:
    with path.open("rb") as file:
        return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]


def _sync(path: Path) -> None:
    """Flush a file or folder to disk, so that after a power cut the rename is not there without the data."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
