"""Calls that may end at any time: results come home as they come, and the next call goes on."""

from __future__ import annotations

import json
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_folder import make_photos
from safetensors.torch import load_file, save_file

from benchmarks import gpu_photos, gpu_stages, gpu_training, on_gpu
from benchmarks.gpu_stages import BATCHES, STAGES, batch_that_pays, planned_steps
from benchmarks.gpu_training import SHIPPED, Place, pack, trained, unpack
from benchmarks.on_gpu import RESERVE, main
from perception.datasets.photographs import Photographs
from perception.model.perception_model import PerceptionModel

HEAD = """
import os, time
from pathlib import Path
from benchmarks.gpu_stages import Stage

def number(place, found):
    return 7

def count_up(place, found):
    seen = place.folder / "count"
    seen.write_text(seen.read_text() + "x" if seen.exists() else "x")
    return len(seen.read_text())

def refuse(place, found):
    raise ValueError("no such thing")

def vanish(place, found):
    os._exit(3)

def once_long(place, found):
    if not (place.folder / "long").exists():
        (place.folder / "long").touch()
        time.sleep(60)
    return found["count"]

def pack(place, found):
    (place.home / "model.tar").write_text("weights")
"""


class JumpingClock:
    """A clock that leaps ahead once a file exists, so that a call ends in the part that writes it, however busy the
    machine is."""

    def __init__(self, file: Path, leap: float) -> None:
        self.file, self.leap = file, leap

    def monotonic(self) -> float:
        return time.monotonic() + (self.leap if self.file.exists() else 0.0)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def place_in(folder: Path, small: bool = True) -> Place:
    """A stage's place, with nothing in it."""
    (folder / "home").mkdir()
    return Place(small, torch.device("cpu"), folder / "stage", folder / "home", folder / "photos")


def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: str, seconds: float = 3600.0) -> Any:
    """One call over stages that are given as code, and what it brought home."""
    (tmp_path / "made_stages.py").write_text(f"{HEAD}\nSTAGES = ({stages},)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_stages", raising=False)
    monkeypatch.setattr(on_gpu, "LEAST", 0.5)
    words = [
        "--rehearse",
        "--out",
        str(tmp_path / "out"),
        "--state",
        str(tmp_path / "state"),
        "--stages",
        "made_stages",
    ]
    code = main([*words, "--minutes", str((seconds + RESERVE) / 60)])
    return code, json.loads((tmp_path / "out" / "results.json").read_text())["stages"]


@pytest.mark.slow
def test_a_failed_part_is_recorded_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = '{"a": number, "bad": refuse, "gone": vanish, "model": pack, "z": number}'
    two = 'Stage("two", 1800, {"b": number, "bad": refuse, "c": number}, chained=True)'
    code, found = run(tmp_path, monkeypatch, f'Stage("one", 1800, {parts}), {two}')
    assert code == 1
    assert found["one"]["results"] == {"a": 7, "model": None, "z": 7} and found["two"]["results"] == {"b": 7}
    assert found["one"]["failed"]["bad"] == "exit code 1: ValueError: no such thing"
    assert found["one"]["failed"]["gone"].startswith("exit code 3: ")
    assert found["two"]["failed"] == dict.fromkeys(("bad", "c"), "exit code 1: ValueError: no such thing")
    assert (tmp_path / "out" / "model.tar").read_text() == "weights"
    assert "one, a: " in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.slow
def test_the_next_call_goes_on_where_this_one_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = 'Stage("one", 9000, {"count": count_up, "long": once_long})'
    clock = JumpingClock(tmp_path / "state" / "rehearsal" / "one" / "long", 4000.0)
    monkeypatch.setattr(on_gpu, "time", clock)
    code, found = run(tmp_path, monkeypatch, stages)
    assert code == 1
    assert found["one"]["results"] == {"count": 1} and found["one"]["failed"] == {}
    (tmp_path / "out" / "results.json").unlink()  # the folder may be emptied between calls
    code, found = run(tmp_path, monkeypatch, stages)
    assert code == 0 and found["one"]["results"] == {"count": 1, "long": 1}, "a finished part does not run again"


@pytest.mark.slow
def test_a_stage_that_takes_too_long_ends_at_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = 'Stage("one", 1200, {"count": count_up, "long": once_long, "late": number})'
    clock = JumpingClock(tmp_path / "state" / "rehearsal" / "one" / "long", 1300.0)
    monkeypatch.setattr(on_gpu, "time", clock)
    code, found = run(tmp_path, monkeypatch, f'{one}, Stage("two", 1200, {{"b": number}})')
    assert code == 1 and found["two"]["results"] == {"b": 7}
    assert found["one"]["failed"] == {
        "long": "stopped at the end of the stage's 1200 seconds",
        "late": "not begun in the stage's 1200 seconds",
    }


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err == "error: there is no CUDA device here; --rehearse runs the same stages in miniature\n"
    )


def test_what_would_not_come_back_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "_MOST_BYTES", 4)
    for number in range(9):
        (tmp_path / f"{number}.tar").write_text("x" * (5 if number == 3 else 1))
    call = on_gpu.Call((), (), tmp_path, tmp_path, 1.0)
    assert call.oversized() == ["3.tar has 0 MiB", "there are 9 files"]


def test_trainings_side_by_side_and_then_the_rest_fit_half_an_hour() -> None:
    seconds = {stage.name: stage.seconds for stage in STAGES}
    assert len(seconds) == len(STAGES)
    beside = max(seconds["training"], seconds["photos"])
    assert all(seconds[name] <= beside for name in ("tests", "assembly", "training_memory"))
    timed = ("generation_speed", "tokenizer_speed", "interleaved_speed", "training_overhead")
    assert beside + sum(seconds[name] for name in timed) + 2 * RESERVE <= 30 * 60


def test_stages_can_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rehearse", "--out", str(tmp_path), "--only", "tests", "nothing"])
    assert "no such stage: nothing; there are tests, training, photos" in capsys.readouterr().err


def test_the_batch_grows_while_that_pays() -> None:
    rates = dict(zip(BATCHES, (100.0, 300.0, 310.0), strict=True))
    found = {f"batch of {size}": {"rows_per_second": r, "steps_per_second": r / size} for size, r in rates.items()}
    assert batch_that_pays(found) == 64
    found["speed of the baseline"] = {"steps_per_second": 600 / 64}
    planned = planned_steps(found)
    seconds = planned["direct"] * (64 / 300 + 64 / 600)
    assert seconds == pytest.approx(0.8 * 0.8 * gpu_stages.TRAINING_SECONDS, rel=0.01)
    assert planned["perception"] + planned["answers"] == planned["direct"]
    with pytest.raises(ValueError, match="no batch was timed"):
        batch_that_pays({"batch of 16, failed": {}})


@pytest.mark.slow
def test_a_training_that_is_stopped_brings_home_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import finetune
    from train.loop.stopping import Stopped

    place = place_in(tmp_path)
    monkeypatch.setattr(gpu_stages, "workers", lambda: 0)
    timed = {"batch of 16": {"rows_per_second": 1.0, "steps_per_second": 1.0}}
    done = gpu_stages.train_run("direct", gpu_stages.DIRECT, place, timed)
    assert done["steps"] == 2 and done["batch_size"] == 2
    (place.home / "direct.tar").unlink()

    def stop(config: Any) -> None:
        raise Stopped("stopped after 2 of 2 steps")

    monkeypatch.setattr(finetune, "train", stop)
    with pytest.raises(Stopped):
        gpu_stages.train_run("direct", gpu_stages.DIRECT, place, timed)
    with tarfile.open(place.home / "direct.tar") as tar:
        tar.extractall(tmp_path / "back", filter="data")
    assert PerceptionModel.from_pretrained(tmp_path / "back" / "direct").vocabulary.depth_codes == 128


def test_a_model_from_another_machine_is_unpacked(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    assert trained(place, "perception") == tmp_path / "stage" / "perception" / "model"
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.json").write_text("{}")
    save_file({"weight": torch.ones(2)}, tmp_path / "trained" / "model.safetensors")
    pack(tmp_path / "trained", place.home / "perception.tar")
    found = trained(place, "perception")
    assert found == tmp_path / "stage" / "unpacked" / "perception" and (found / "config.json").read_text() == "{}"
    assert load_file(found / "model.safetensors")["weight"].tolist() == [1.0, 1.0]


def test_a_model_comes_home_without_its_frozen_backbone_and_gets_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    pack(SHIPPED.parent, results / "photo-tiny.tar", backbone=False)
    assert (results / "photo-tiny.tar").stat().st_size < 13 * 2**20
    assert main(["--unpack", str(results), "--out", str(tmp_path / "models")]) == 0
    back = tmp_path / "models" / "photo-tiny"
    assert capsys.readouterr().out == f"written: {back}\n"
    ours, theirs = load_file(back / "model.safetensors"), load_file(SHIPPED)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (back / "depth_tokenizer" / "config.json").exists()

    def with_backbone(change: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        """Unpack beside a backbone that was changed."""
        changed = {name: change(value) if ".backbone." in name else value for name, value in theirs.items()}
        save_file(changed, tmp_path / "other.safetensors")
        monkeypatch.setattr(gpu_training, "SHIPPED", tmp_path / "other.safetensors")
        return unpack(results / "photo-tiny.tar", tmp_path / "again")

    rounded = with_backbone(lambda value: value.bfloat16().to(value.dtype))
    assert load_file(rounded / "model.safetensors").keys() == theirs.keys()
    for change in (lambda value: value * 1.01, lambda value: value.flip(0), lambda value: value[None]):
        with pytest.raises(ValueError, match="came without its backbone, and that of .* is another one"):
            with_backbone(change)
    assert main(["--unpack", str(tmp_path), "--out", str(tmp_path / "models")]) == 2
    assert "holds no models" in capsys.readouterr().err


def test_each_stage_that_came_home_is_written_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "came").mkdir()
    held = {"seconds": 9.5, "results": {"a": 7}, "failed": {"b": "no such thing"}, "running": "c"}
    values = {"stages": {"one": held}, "rehearsal": False, "accelerator": "a GPU", "commit": "abc"}
    (tmp_path / "came" / "results.json").write_text(json.dumps(values))
    stages = [on_gpu.Stage("one", 60, dict.fromkeys("abc", lambda place, found: 7)), on_gpu.Stage("two", 60, {})]
    made = on_gpu.write_stages(on_gpu.Record(tmp_path / "came" / "results.json"), stages, tmp_path / "out")
    assert made == [tmp_path / "out" / "one.json"]
    machine = {"rehearsal": False, "accelerator": "a GPU", "commit": "abc"}
    found = {"seconds": 9.5, "results": {"a": 7}, "failed": {"b": "no such thing", "c": "not run"}}
    assert json.loads(made[0].read_text()) == machine | found


def test_results_without_models_are_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(
        json.dumps({"stages": {"tokenizer_speed": {"seconds": 1.0, "results": {}, "failed": {}}}})
    )
    assert main(["--unpack", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"written: {tmp_path / 'out' / 'tokenizer_speed.json'}\n"


def test_photographs_are_packed_small_and_unpack_to_the_same_labels(tmp_path: Path) -> None:
    source, out = make_photos(tmp_path / "photos"), tmp_path / "packed"
    most = 60_000
    parts = gpu_photos.pack_photos(source, out, most, side=48)  # half as wide as they are
    assert len(parts) > 1 and all(path.stat().st_size <= most for path in parts)
    for path in parts:
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path / "back", filter="data")
    for split in ("train", "test"):
        before, after = Photographs(source, split), Photographs(tmp_path / "back", split)
        assert len(before) == len(after) and before.kinds == after.kinds
        for index in range(len(before)):
            assert (after.labels[index]["width"], after.labels[index]["height"]) == (48, 32)
            old, new = before.scene(index, 64), after.scene(index, 64)
            first, second = ([item.box_xyxy for item in scene.objects] for scene in (old, new))
            assert np.allclose(first, second, atol=1e-3)
            assert (old.image.float() - new.image.float()).abs().mean() < 12
    with pytest.raises(ValueError, match="more than fit into a file of 20000; raise --part-mb"):
        gpu_photos.pack_photos(source, out, 20_000)
    small = gpu_photos.pack_photos(source, tmp_path / "whole", 10**7)
    with tarfile.open(small[0]) as tar:
        kept = tar.extractfile("images/00000.jpg")
        assert kept is not None and kept.read() == (source / "images" / "00000.jpg").read_bytes()
    assert main(["--pack", str(out), "--out", str(tmp_path / "none")]) == 2


def test_drawn_photographs_have_the_depth_and_the_boxes_of_their_scenes(tmp_path: Path) -> None:
    photos = Photographs(gpu_photos.draw_photos(tmp_path / "drawn", 6))
    assert len(photos) == 4 and len(Photographs(tmp_path / "drawn", "test")) == 2
    scene = photos.scene(0, 96)
    assert scene.objects and scene.image.shape == (96, 96, 3)
    for item in scene.objects:
        x1, y1, x2, y2 = (round(80 * value) for value in item.box_xyxy)
        assert scene.depth[y1:y2, x1:x2].min() < scene.depth.max(), "a thing is nearer than the farthest ground"


def test_what_was_not_carried_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no photographs in .*photos; docs/gpu.md says how to carry them"):
        gpu_photos.make_views(place_in(tmp_path, small=False), {})


@pytest.mark.slow
def test_the_rehearsal_runs_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("trl", "timm", "inflect"):
        pytest.importorskip(package)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    unhurried = [replace(stage, seconds=3600.0) for stage in STAGES]  # this machine may be busy with other things
    monkeypatch.setattr(gpu_stages, "STAGES", unhurried)
    out = tmp_path / "out"
    code = main(["--rehearse", "--out", str(out), "--state", str(tmp_path / "state"), "--minutes", "60"])
    found = json.loads((out / "results.json").read_text())
    assert code == 0, {name: stage["failed"] for name, stage in found["stages"].items()}
    assert found["rehearsal"] and found["processor"]
    for stage in STAGES:
        held = found["stages"][stage.name]
        assert held["results"].keys() == stage.parts.keys() and held["failed"] == {}, stage.name
    assert not any(outcome["failed"] for outcome in found["stages"]["tests"]["results"].values())
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    models = {"tower.tar", "perception.tar", "answers.tar", "direct.tar", "photo-base.tar", "photo-tiny.tar"}
    assert files.keys() == {"results.json", "log.txt"} | models and len(files) <= 8
    assert max(files.values()) <= 16 * 2**20
