"""Trainings of `benchmarks.on_gpu`: timed first, then as many steps as their time buys, resumed by the next call.

A model comes home as one file. Where its tower has a frozen backbone that ships with this repository, it comes without
it: `unpack` puts it back.
"""

from __future__ import annotations

import json
import math
import os
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from train.loop.provenance import ROOT

if TYPE_CHECKING:
    from train.finetune import FinetuneConfig
    from train.loop.fit import FitResult

SHIPPED = ROOT / "models" / "photo-tiny" / "model.safetensors"
"""Weights with the frozen backbone"""
SPARE = 0.8
"""Share of the time that is planned for: the rest is for checkpoints, and for steps that are slower than measured"""
_WEIGHTS, _BACKBONE = "model.safetensors", ".backbone."
_TOLERANCE = 1e-3
"""Of a tensor's mean absolute value: folding batch norms rounds differently on another processor"""


@dataclass(frozen=True)
class Place:
    """Where a stage runs."""

    small: bool
    """True in a rehearsal"""
    device: torch.device
    folder: Path
    """The stage's own folder, which stays for the next call"""
    home: Path
    """Folder whose .tar files come back from the machine"""
    photos: Path
    """Folder of photographs with labels; a rehearsal draws its own"""


Part = Callable[[Place, Mapping[str, Any]], Any]
"""(place, results of the stage's earlier parts) -> result, as JSON values"""


def workers() -> int:
    """Processes that make batches: all cores that this process may use but one, which trains."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on a Mac
    return max(1, min(14, cores - 1))


def speed(train: Callable[[Path, int], object], batch_size: int, small: bool) -> dict[str, float]:
    """Steps and rows per second of a training, with its batches made as in a run.

    Args:
        train: trains for a number of steps in a folder, with a line of log.jsonl for each.
    """
    from train.loop.progress import read_log

    warm, steps = (1, 2) if small else (10, 40)  # workers fill a queue first
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), steps)
        log = read_log(Path(folder))
    found = (steps - warm) / (log[-1]["seconds"] - log[warm - 1]["seconds"])
    return {
        "steps_per_second": round(found, 3),
        "rows_per_second": round(found * batch_size, 1),
        "waiting_for_data": round(log[-1]["wait_share"], 3),
    }


def speed_of(config: FinetuneConfig, small: bool) -> dict[str, float]:
    """See `speed`."""
    from train.finetune import train

    def run(folder: Path, steps: int) -> None:
        loop = replace(config.loop, steps=steps, log_every=1, checkpoint_every_seconds=1e9)
        train(replace(config, loop=loop, run_dir=str(folder), out=str(folder / "model")))

    return speed(run, config.batch_size, small)


def steps_in(seconds: float, steps_per_second: float) -> int:
    """Steps that a time buys."""
    return max(1, math.floor(SPARE * seconds * steps_per_second))


def train_home(config: FinetuneConfig, home: Path | None, backbone: bool = True) -> dict[str, Any]:
    """Train or resume a run and bring its model home; a run that is stopped brings home its checkpoint.

    Args:
        home: the file that the model is packed into; None for a model that is too large to come home.
        backbone: see `pack`.
    """
    from train.finetune import export, train
    from train.loop.stopping import Stopped

    try:
        result = train(config)
    except Stopped:
        if home is not None:
            found = Path(config.run_dir).glob("checkpoint-*")
            newest = max(found, key=lambda path: int(path.name.partition("-")[2]))
            with tempfile.TemporaryDirectory() as folder:
                unfinished = Path(folder) / "model"
                export(replace(config, export=newest.name, out=str(unfinished)))
                pack(unfinished, home, backbone)
        raise
    if home is not None:
        pack(Path(config.out), home, backbone)
    return {"batch_size": config.batch_size, **figures(result.fit)}


def figures(fitted: FitResult) -> dict[str, Any]:
    """What is kept of a finished run."""
    return {
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "waiting_for_data": round(fitted.data_wait_share, 3),
        "final_loss": round(fitted.final_loss, 4),
    }


def trained(place: Place, name: str) -> Path:
    """A model that the stage trained before, unpacked from what came home if it was trained on another machine."""
    made, home = place.folder / name / "model", place.home / f"{name}.tar"
    if made.exists() or not home.exists():
        return made
    return unpack(home, place.folder / "unpacked")


def pack(model: Path, target: Path, backbone: bool = True) -> None:
    """Write a model's folder as one file.

    Args:
        backbone: False leaves out the backbone of a tower for photographs, and notes what `unpack` knows it by.
    """
    partial_file = target.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(partial_file, "w") as tar:
        for file in sorted(path for path in model.rglob("*") if path.is_file()):
            inside = file.relative_to(model)
            if inside.name == _WEIGHTS and inside.parent == Path() and not backbone:
                weights = load_file(file)
                left = {name: weights.pop(name) for name in list(weights) if _BACKBONE in name}
                file = Path(folder) / _WEIGHTS
                save_file(weights, file, {"format": "pt", "backbone": json.dumps(_features(left))})
            tar.add(file, Path(target.stem) / inside)
    partial_file.replace(target)


def unpack(file: Path, folder: Path) -> Path:
    """Unpack a model that came home into FOLDER/NAME, and return that folder.

    Raises:
        ValueError: if it left a backbone behind that is not the one of models/photo-tiny, up to rounding.
    """
    with tarfile.open(file) as tar:
        tar.extractall(folder, filter="data")
    made = folder / file.stem
    with safe_open(made / _WEIGHTS, framework="pt") as held:
        wanted = (held.metadata() or {}).get("backbone")
    if wanted is None:
        return made
    backbone = {name: value for name, value in load_file(SHIPPED).items() if _BACKBONE in name}
    if not _alike(_features(backbone), json.loads(wanted)):
        raise ValueError(f"{file} came without its backbone, and that of {SHIPPED} is another one")
    save_file(load_file(made / _WEIGHTS) | backbone, made / _WEIGHTS, {"format": "pt"})
    return made


def unpack_all(results: Path, out: Path) -> list[Path]:
    """Unpack all models among the results. Raises ValueError as `unpack`, and if there are none."""
    files: Sequence[Path] = sorted(results.glob("*.tar"))
    if not files:
        raise ValueError(f"{results} holds no models (.tar); give the folder that came back")
    return [unpack(file, out) for file in files]


def _features(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Of each tensor its shape, its mean absolute value, its mean, and its mean weighted by position."""
    found = {}
    for name, tensor in tensors.items():
        flat = tensor.double().flatten()
        means = (flat.abs(), flat, flat * torch.linspace(-1, 1, flat.numel(), dtype=flat.dtype))
        found[name] = {"shape": list(tensor.shape), "means": [values.mean().item() for values in means]}
    return found


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True if all tensors have the same shapes, and means that differ by no more than rounding."""
    return one.keys() == other.keys() and all(
        one[name]["shape"] == other[name]["shape"]
        and all(
            abs(a - b) <= _TOLERANCE * one[name]["means"][0]
            for a, b in zip(one[name]["means"], other[name]["means"], strict=True)
        )
        for name in one
    )
