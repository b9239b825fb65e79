"""Trackers of a run by name: what each is told, and how a run goes on in the same place."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from train.loop.config import LoopConfig
from train.loop.progress import RunLog
from train.loop.trackers import check_trackers

pytest.importorskip("accelerate")
RECORD = {"step": 3, "loss": 2.0, "losses": {"chain_count": 1.5}, "lr": 1e-3, "wait_share": 0.1, "seconds": 4.0}
PICTURE = {"picture-1": np.full((4, 6, 3), 255, np.uint8)}


class Run:
    """Stands for a run of wandb or trackio, and remembers what it was told."""

    def __init__(self, **options: Any) -> None:
        self.options, self.logged, self.finished = options, list[tuple[int, dict[str, Any]]](), False

    def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


def package(name: str, patch: pytest.MonkeyPatch) -> list[Run]:
    """An installed package whose `init` starts a `Run`."""
    runs: list[Run] = []
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)

    def init(**options: Any) -> Run:
        runs.append(Run(**options))
        module.log = runs[-1].log  # type: ignore[attr-defined]
        return runs[-1]

    module.init, module.Image = init, lambda image, **_: image.shape  # type: ignore[attr-defined]
    patch.setitem(sys.modules, name, module)
    return runs


def write(run_dir: Path, *trackers: str) -> None:
    from accelerate import PartialState

    PartialState()  # as in a run; accelerate's trackers ask for it
    log = RunLog(run_dir, 0, trackers)
    log.write_held_out(3, {"loss": 1.0, "boxes_f1": 0.5}, PICTURE)
    log.write(RECORD)
    log.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_figures_and_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runs = package(name, monkeypatch)
    check_trackers([name])
    write(tmp_path / "cups", name)
    write(tmp_path / "cups", name)
    (first, second) = runs
    assert first.options == second.options and first.options["project"] == "perception-tokens"
    assert first.options["name"].startswith("cups") and first.options["resume"] == "allow"
    scalars = {key: value for _, values in first.logged for key, value in values.items() if "picture" not in key}
    assert scalars == {
        "held_out/loss": 1.0, "held_out/boxes_f1": 0.5, "loss": 2.0, "lr": 1e-3, "wait_share": 0.1, "chain_count": 1.5,
    }  # fmt: skip
    assert {step for step, _ in first.logged} == {3} and first.finished
    pictures = [values for _, values in first.logged if "held_out/picture-1" in values]
    assert pictures == ([{"held_out/picture-1": [(4, 6, 3)]}] if name == "wandb" else []), "trackio takes no pictures"


def test_tensorboard_is_the_default_and_has_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, *LoopConfig().trackers)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"loss", "chain_count", "held_out/boxes_f1"}
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(3, 2.0)]
    (image,) = events.Images(events.Tags()["images"][0])
    assert (image.width, image.height, image.step) == (6, 4, 3)


def test_a_tracker_that_is_missing_or_unknown_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tracker no_such_package is not installed; pip install no_such_package"):
        check_trackers(["no_such_package"])
    with pytest.raises(ValueError, match="unknown tracker 'mlflow'; known: tensorboard, wandb, trackio"):
        LoopConfig(trackers=("mlflow",))
    write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"], "without trackers there is the log alone"
