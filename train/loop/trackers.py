"""Trackers of a run by name: accelerate's trackers, started so that a resumed run goes on in the same place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROJECT = "perception-tokens"


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError if the package of a tracker is not installed."""
    for name in names:
        if find_spec(name) is None:
            raise ValueError(f"the tracker {name} is not installed; pip install {name}, or leave it out of trackers")


def start_trackers(names: Sequence[str], run_dir: Path, start_step: int) -> list[Any]:
    """Start accelerate's trackers; tensorboard drops what it has after `start_step`.

    The project of wandb and trackio is "perception-tokens" unless WANDB_PROJECT or TRACKIO_PROJECT names another; the
    run has the name of `run_dir`.
    """
    if not names:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    name = run_dir.resolve().name
    identity = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    settings: dict[str, tuple[str, dict[str, Any]]] = {
        "tensorboard": ("tensorboard", {"logging_dir": str(run_dir), "purge_step": start_step + 1}),
        "wandb": (
            os.environ.get("WANDB_PROJECT", PROJECT),
            {"name": name, "dir": str(run_dir), "id": identity, "resume": "allow"},
        ),
        "trackio": (os.environ.get("TRACKIO_PROJECT", PROJECT), {"name": f"{name}-{identity}", "resume": "allow"}),
    }
    started = []
    for known in names:
        place, options = settings[known]
        tracker = LOGGER_TYPE_TO_CLASS[known](place, **options)
        tracker.start()
        started.append(tracker)
    return started
