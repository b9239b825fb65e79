"""Progress of a training run: a live bar or plain lines, log.jsonl, trackers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from perception.datasets.progress import hours
from train.loop.trackers import start_trackers
from vqvae.files import write_whole

LOG_FILE = "log.jsonl"
SMOOTHING = 0.95
PLAIN_SECONDS = 60.0
FIRST_PLAIN_SECONDS = 10.0


class RunLog:
    """log.jsonl and trackers of a run. Lines after the resumed step are dropped, since they are written again."""

    def __init__(self, run_dir: Path, start_step: int, trackers: Sequence[str] = ()) -> None:
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / LOG_FILE
        lines = _lines(path)
        kept = [line for line in lines if _step_of(line) <= start_step]
        if kept != lines:
            write_whole(path, "".join(kept))  # a full disk must not cost the log
        self._file = path.open("a", buffering=1)
        self._trackers = start_trackers(trackers, run_dir, start_step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write a record with the keys step, loss, losses (by name), lr, wait_share and seconds."""
        self._file.write(json.dumps(record) + "\n")
        scalars = {"loss": record["loss"], "lr": record["lr"], "wait_share": record["wait_share"]}
        for tracker in self._trackers:
            tracker.log({**scalars, **record["losses"]}, step=record["step"])

    def write_held_out(self, step: int, figures: Mapping[str, float], images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Write the results on held-out data after `step` steps: figures, and pictures (H, W, 3) to the trackers."""
        self._file.write(json.dumps({"step": step, "held_out": dict(figures)}) + "\n")
        for tracker in self._trackers:
            tracker.log({f"held_out/{name}": value for name, value in figures.items()}, step=step)
            if hasattr(tracker, "log_images"):  # trackio has none
                layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({f"held_out/{n}": image[None] for n, image in images.items()}, step=step, **layout)

    def close(self) -> None:
        self._file.close()
        for tracker in self._trackers:
            tracker.finish()


class Display:
    """Display of smoothed losses: a live bar on a terminal, elsewhere a plain line a minute."""

    def __init__(self, title: str, steps: int, start_step: int, console: Console, enabled: bool = True) -> None:
        self._title, self._steps, self._start = title or "training", steps, start_step
        self._console, self._enabled = console, enabled
        self._smooth: dict[str, float] = {}
        self._began = time.monotonic()
        self._due = self._began + FIRST_PLAIN_SECONDS
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        self._task = self._progress.add_task(self._title, total=steps, completed=start_step, pace="")
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if self._enabled and self._console.is_terminal:
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, step: int, scalars: Mapping[str, float], lr: float, wait_share: float) -> None:
        """Show that `step` steps are done, with the `scalars` of the last step."""
        for name, value in scalars.items():
            if math.isfinite(value):
                self._smooth[name] = SMOOTHING * self._smooth.get(name, value) + (1 - SMOOTHING) * value
        now = time.monotonic()
        if not self._enabled or not (self._live or step == self._steps or now >= self._due):
            return
        rate = (step - self._start) / max(now - self._began, 1e-9)
        pace = f"{rate:.2f} steps/s, {hours((self._steps - step) / max(rate, 1e-9))} left"
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self._smooth.items())
        figures += f", lr {lr:.2e}, waiting for data {wait_share:.1%}"
        if self._live is not None:
            self._progress.update(self._task, completed=step, pace=pace)
            self._live.update(Group(self._progress, Text(figures, style="dim")))
        else:
            self._due = now + PLAIN_SECONDS
            self.say(f"{self._title} {step}/{self._steps}: {figures}, {pace}")


def read_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the training records of a run, without those of held-out data and without incomplete lines."""
    return [record for record in _records(run_dir) if "loss" in record]


def read_held_out(run_dir: Path) -> list[tuple[int, dict[str, float]]]:
    """Return the evaluations on held-out data of a run: numbers of steps, and figures by name."""
    return [(record["step"], record["held_out"]) for record in _records(run_dir) if "held_out" in record]


def _records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _lines(run_dir / LOG_FILE) if math.isfinite(_step_of(line))]


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the run was killed while writing the line
        return math.inf
