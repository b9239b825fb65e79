"""Measure and train all that waits for a GPU, in calls of a few minutes (`python -m benchmarks.on_gpu --out DIR`).

The stages of `benchmarks.gpu_stages` run in their order of worth, each in a process of its own and within a budget over
all calls. A stage has parts. The result of each part is written at once, to the folder given by --state and to --out,
so that a call that is killed keeps them. The same command goes on where the last call stopped: with the part that it
met, or, in a training, from its checkpoint. A part that fails is recorded with its last line, and the next one runs.

With --only, calls run side by side, each with a --state and an --out of its own: trainings leave most of a large GPU
idle. `taskset` shares out the cores; what measures speed should run alone.

--out receives results.json, log.txt and one .tar per trained model, at most 8 files of 16 MB each; `--unpack RESULTS
--out FOLDER` makes folders of the models, and one JSON file per stage. The state stays on the machine. For another
machine, put the results.json of the last call into STATE/gpu, and tower.tar and perception.tar into STATE/gpu/home:
finished parts are not run again.

The stage photos needs labelled photographs (--photos), which `--pack PHOTOS --out FOLDER` makes small enough to carry.
Needed are the packages of the core, accelerate and peft. docs/gpu.md names the further packages of some stages, and
says how to carry them to a machine without network access. What is missing fails the parts that need it alone.

With --rehearse all of it runs in miniature on the device at hand, a CPU too, in a few minutes. Its figures say nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_photos import pack_photos
from benchmarks.gpu_stages import Stage
from benchmarks.gpu_training import Place, unpack_all
from perception.model.devices import find_device
from train.loop.provenance import ROOT, provenance
from vqvae.files import write_whole

RESULTS, LOG, PHOTOS = "results.json", "log.txt", ROOT / "runs" / "photos" / "labelled"
STAGES = "benchmarks.gpu_stages"
RESERVE = 45.0
"""Seconds before the end of a call at which its stage is asked to stop: a training then saves and exports"""
LEAST = 20.0
"""Seconds below which no stage is started"""
_MOST_FILES, _MOST_BYTES = 8, 16 * 2**20
_MOST_LOG = 2**20


class Record:
    """The results so far, in a file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"stages": {}}

    def stage(self, name: str) -> dict[str, Any]:
        """The record of a stage: its seconds, the results and failures of its parts, and the part that runs."""
        found: dict[str, Any] = self.values["stages"].setdefault(
            name, {"seconds": 0.0, "results": {}, "failed": {}, "running": None}
        )
        return found

    def open_parts(self, stage: Stage) -> list[str]:
        held = self.stage(stage.name)
        return [name for name in stage.parts if name not in held["results"] and name not in held["failed"]]

    def write(self) -> None:
        write_whole(self.path, json.dumps(self.values, indent=1) + "\n")


def run_parts(stage: Stage, record: Record, place: Place) -> None:
    """Run the open parts of a stage in this process. The record is written before and after each of them."""
    held = record.stage(stage.name)
    for name in record.open_parts(stage):
        held["running"] = name
        record.write()
        start = time.monotonic()
        result = stage.parts[name](place, held["results"])
        held["results"][name], held["running"] = result, None
        record.write()
        print(f"{stage.name}, {name}: {time.monotonic() - start:.1f} s", flush=True)


class Call:
    """One call: starts the stages' processes, stops them in time and brings the results home."""

    def __init__(self, stages: Sequence[Stage], words: Sequence[str], state: Path, out: Path, seconds: float) -> None:
        """
        Args:
            words: the command of a stage's process, without the stage's name.
            state: folder of the record, which stays for the next call.
            out: folder that comes back from the machine.
            seconds: from now to the end of the call.
        """
        self.stages, self.words, self.state, self.out = stages, words, state, out
        self.end = time.monotonic() + seconds

    def run(self) -> bool:
        """Run what the time allows; returns True if no part is left open."""
        self.out.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(parents=True, exist_ok=True)
        for stage in self.stages:
            while Record(self.state / RESULTS).open_parts(stage):
                if self._left() < LEAST:
                    self._bring_home()
                    return False
                self._run(stage)
        self._bring_home()
        return True

    def _left(self) -> float:
        return self.end - RESERVE - time.monotonic()

    def _run(self, stage: Stage) -> None:
        """Run one process of a stage until it ends or must stop, and note what it left."""
        record = Record(self.state / RESULTS)
        of_budget = stage.seconds - record.stage(stage.name)["seconds"]
        if of_budget <= 0:
            self._fail(stage, record.open_parts(stage), f"not begun in the stage's {stage.seconds:.0f} seconds")
            return
        seconds, start = min(of_budget, self._left()), time.monotonic()
        with (self.state / LOG).open("ab") as log:
            process = subprocess.Popen(
                [*self.words, stage.name], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, process_group=0
            )  # a group, to be killed as a whole; not a session, which would outlive this call if it is killed
            stopped = not self._wait(process, seconds)
        record = Record(self.state / RESULTS)
        held = record.stage(stage.name)
        held["seconds"] = round(held["seconds"] + time.monotonic() - start, 1)
        running, held["running"] = held["running"], None
        record.write()
        if stopped and held["seconds"] >= stage.seconds and running:
            self._fail(stage, [running], f"stopped at the end of the stage's {stage.seconds:.0f} seconds")
        elif not stopped and process.returncode:
            parts = [running] if running and not stage.chained else record.open_parts(stage)
            self._fail(stage, parts, f"exit code {process.returncode}: {self._last_line()}")

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> bool:
        """Wait for a process and bring results home as they come; True if it ended by itself, False if stopped."""
        stop, seen, known = time.monotonic() + seconds, 0.0, self.state / RESULTS
        while process.poll() is None and time.monotonic() < stop:
            time.sleep(0.25)
            changed = known.stat().st_mtime if known.exists() else 0.0
            if changed != seen:
                seen = changed
                self._bring_home()
        ended = process.poll() is not None
        if not ended:
            process.terminate()  # the stage's process alone: its workers still have to finish a step
            try:
                process.wait(RESERVE - 15)
            except subprocess.TimeoutExpired:
                print(f"killed after {RESERVE - 15:.0f} seconds of grace", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what is left of it and its workers
        process.wait()
        self._bring_home()
        return ended

    def _fail(self, stage: Stage, parts: Sequence[str], reason: str) -> None:
        record = Record(self.state / RESULTS)
        record.stage(stage.name)["failed"] |= dict.fromkeys(parts, reason)
        record.write()
        for part in parts:
            print(f"{stage.name}, {part}: FAILED, {reason}", flush=True)

    def _last_line(self) -> str:
        lines = (self.state / LOG).read_text(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "no output")

    def _bring_home(self) -> None:
        """Copy the results, the end of the log and the models to the folder that comes back."""
        for source in (self.state / RESULTS, self.state / LOG, *sorted((self.state / "home").glob("*.tar"))):
            target = self.out / source.name
            if source.exists() and _stamp(source) != _stamp(target):
                stamp = _stamp(source)
                write_whole(target, source.read_bytes()[-_MOST_LOG if source.name == LOG else 0 :])
                os.utime(target, ns=(stamp, stamp))

    def oversized(self) -> list[str]:
        """Describe what in the out folder would not come back."""
        files = sorted(path for path in self.out.iterdir() if path.is_file())
        found = [f"{p.name} has {p.stat().st_size / 2**20:.0f} MiB" for p in files if p.stat().st_size > _MOST_BYTES]
        return found + ([f"there are {len(files)} files"] if len(files) > _MOST_FILES else [])


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def write_stages(record: Record, stages: Sequence[Stage], out: Path) -> list[Path]:
    """Write a file per stage that has begun: the machine, and the stage's seconds, results and failures."""
    machine = {key: value for key, value in record.values.items() if key != "stages"}
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for stage in stages:
        if stage.name in record.values["stages"]:
            held = record.stage(stage.name)
            failed = held["failed"] | dict.fromkeys(record.open_parts(stage), "not run")
            kept = {"seconds": held["seconds"], "results": held["results"], "failed": failed}
            made.append(out / f"{stage.name}.json")
            write_whole(made[-1], json.dumps({**machine, **kept}, indent=1) + "\n")
    return made


def report(record: Record, stages: Sequence[Stage]) -> str:
    """Per stage, how many of its parts have a result, failed or are open."""
    lines = []
    for stage in stages:
        held, left = record.stage(stage.name), len(record.open_parts(stage))
        counts = f"{len(held['results'])} of {len(stage.parts)} parts done"
        lines.append(f"{stage.name}: {counts}, {len(held['failed'])} failed, {left} open ({held['seconds']:.0f} s)")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results; may be emptied between calls")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this call; default 9")
    parser.add_argument("--state", type=Path, default=ROOT / "runs" / "on_gpu", help="folder that stays between calls")
    parser.add_argument(
        "--photos", type=Path, default=PHOTOS, help="labelled photographs; default runs/photos/labelled"
    )
    parser.add_argument("--rehearse", action="store_true", help="run everything in miniature, on a CPU too")
    parser.add_argument("--pack", type=Path, metavar="PHOTOS", help="write PHOTOS as .tar files to --out, and stop")
    parser.add_argument("--part-mb", type=int, default=40, help="most megabytes of a file of --pack; default 40")
    parser.add_argument(
        "--unpack", type=Path, metavar="RESULTS", help="unpack models and stages in RESULTS to --out, and stop"
    )
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="run these stages alone; default all")
    parser.add_argument("--stages", default=STAGES, help=argparse.SUPPRESS)  # a module with STAGES, for tests
    parser.add_argument("--stage", help=argparse.SUPPRESS)  # run this stage in this process
    given = parser.parse_args(argv)
    state: Path = given.state / ("rehearsal" if given.rehearse else "gpu")
    stages: Sequence[Stage] = importlib.import_module(given.stages).STAGES
    if given.stage is not None:
        stage = next(stage for stage in stages if stage.name == given.stage)
        place = Place(given.rehearse, find_device(), state / stage.name, state / "home", given.photos)
        for folder in (place.folder, place.home):
            folder.mkdir(parents=True, exist_ok=True)
        run_parts(stage, Record(state / RESULTS), place)
        return 0
    if given.out is None:
        parser.error("--out is missing: the folder that the results are written to")
    if unknown := set(given.only or ()) - {stage.name for stage in stages}:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}; there are {', '.join(s.name for s in stages)}")
    stages = [stage for stage in stages if given.only is None or stage.name in given.only]
    if given.pack or given.unpack:
        return _carry(given, stages)
    if not given.rehearse and not torch.cuda.is_available():
        print("error: there is no CUDA device here; --rehearse runs the same stages in miniature", file=sys.stderr)
        return 2
    words = [sys.executable, "-u", "-m", "benchmarks.on_gpu", "--state", str(given.state), "--stages", given.stages]
    words += ["--photos", str(given.photos.resolve()), *(["--rehearse"] if given.rehearse else [])]
    record = Record(state / RESULTS)
    record.values |= {"rehearsal": given.rehearse, **provenance()}
    record.write()
    call = Call(stages, [*words, "--stage"], state.resolve(), given.out.resolve(), 60 * given.minutes)
    finished = call.run()
    print(report(Record(state / RESULTS), stages))
    for problem in call.oversized():
        print(f"warning: {problem}; at most {_MOST_FILES} files of {_MOST_BYTES // 2**20} MiB come back")
    if not finished:
        print("not finished: the same command goes on from here")
    failed = any(Record(state / RESULTS).stage(stage.name)["failed"] for stage in stages)
    return int(failed or not finished)


def _carry(given: argparse.Namespace, stages: Sequence[Stage]) -> int:
    """Pack photographs to carry, or unpack what came home; returns the exit code."""
    try:
        if given.pack:
            made = pack_photos(given.pack, given.out, given.part_mb * 10**6)
        else:
            record = given.unpack / RESULTS
            made = write_stages(Record(record), stages, given.out) if record.exists() else []
            if not made or any(given.unpack.glob("*.tar")):
                made += unpack_all(given.unpack, given.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in made:
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
