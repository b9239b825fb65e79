"""Interleaved solutions of a whole file, in shards of the published layout: what is killed goes on where it was.

A shard is finished once its record is there, written last and by rename; anything else is made anew under the same
name, so nothing is lost and nothing comes twice. A row that fails is named in skipped.jsonl. A language model that
fails for several rows in a row stops the run, and none of these rows counts as skipped: the next run takes them up.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from perception.datasets.interleaved.endpoint import KeywordError
from perception.datasets.interleaved.making import Make, parse_row
from perception.datasets.interleaved.mint_cot import InterleavedProblem, InterleavedRows, read_mint_cot, write_mint_cot
from perception.datasets.shards import keep_plan, locked, record_file, write_skipped, write_whole

IMAGES = "images"
FAILURES_IN_A_ROW = 5
"""of the language model, after which a run stops"""


class KeywordsStopped(RuntimeError):
    """The language model failed for several rows in a row."""


@dataclass(frozen=True)
class MakingReport:
    """What a folder holds."""

    rows: int
    skipped: int
    steps: int
    empty_steps: int
    """Those without a region"""
    cells: int
    """Of all steps together"""

    @property
    def cells_a_step(self) -> float:
        return self.cells / max(1, self.steps)

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.skipped} skipped; {self.steps} steps, {self.empty_steps} of them without a "
            f"region; {self.cells_a_step:.2f} cells a step"
        )


@dataclass(frozen=True)
class _Skip:
    """A row that came to nothing."""

    name: str
    reason: str
    language: bool
    """Whether the language model was to blame"""


@dataclass(frozen=True)
class _Shard:
    number: int
    problems: tuple[InterleavedProblem, ...]
    skipped: tuple[_Skip, ...]


def make_shards(
    data: str | Path,
    out: str | Path,
    make: Make,
    plan: Mapping[str, Any],
    images: str | Path | None = None,
    shard_size: int = 256,
    workers: int = 1,
    copy_images: bool = True,
) -> MakingReport:
    """Makes, or goes on with, a folder of interleaved solutions.

    Args:
        data: JSON lines, as `parse_row` reads them.
        make: what turns one row into its problem; raises ValueError for a row that it cannot.
        plan: the settings that decide what is written, as JSON; a folder made with others is refused.
        images: folder that image paths are relative to; None for the file's own.
        workers: rows at a time, for language models that answer several.
        copy_images: whether images are put beside the shards, so that the folder can be moved.

    Raises:
        ValueError: for data that are missing or empty, sizes below 1, a folder of other data or settings, or one that
            another run writes.
        KeywordsStopped: when the language model has failed for `FAILURES_IN_A_ROW` rows in a row.
    """
    data, out = Path(data), Path(out)
    if shard_size < 1 or workers < 1:
        raise ValueError(f"shard_size and workers must be at least 1, got {shard_size} and {workers}")
    root = Path(images) if images is not None else data.parent
    lines = _numbered_lines(data)
    with locked(out):
        keep_plan(out, {**plan, "shard_size": shard_size, "copy_images": copy_images, "data": _digest(data)})
        parts = [lines[start : start + shard_size] for start in range(0, len(lines), shard_size)]
        with Progress(transient=True) as progress, ThreadPoolExecutor(workers) as pool:
            task = progress.add_task("making", total=len(lines))
            held: list[_Shard] = []
            failures: list[_Skip] = []  # of the language model, since it last answered
            for number, part in enumerate(parts):
                if record_file(out, number).exists():
                    progress.advance(task, len(part))
                    continue
                problems, skipped = [], []
                for found in _in_order(pool, make, part, data.name, root, workers):
                    progress.advance(task)
                    if isinstance(found, _Skip):
                        skipped.append(found)
                        failures += [found] if found.language else []
                        _stop_after(failures, out)
                    else:
                        problems.append(found)
                        failures.clear()
                held.append(_Shard(number, tuple(problems), tuple(skipped)))
                if not failures:
                    _write_all(held, out, copy_images)
            _write_all(held, out, copy_images)
        return _report(out, len(parts))


def _stop_after(failures: Sequence[_Skip], out: Path) -> None:
    if len(failures) >= FAILURES_IN_A_ROW:
        kept = len(list(out.glob("shard-*.record.json")))
        raise KeywordsStopped(
            f"no keywords for {len(failures)} rows in a row, {failures[0].name} to {failures[-1].name}: "
            f"{failures[-1].reason}. {kept} finished shards are kept in {out}; see to the language model and give the "
            "same command again, it goes on from there"
        )


def _in_order(
    pool: ThreadPoolExecutor, make: Make, part: Sequence[tuple[int, str]], file: str, root: Path, workers: int
) -> Iterator[InterleavedProblem | _Skip]:
    """What becomes of each row; only so many are begun as can run at a time."""

    def one(numbered: tuple[int, str]) -> InterleavedProblem | _Skip:
        name = f"{file}:{numbered[0]}"
        try:
            return make(parse_row(numbered[1], name, root))
        except ValueError as error:
            return _Skip(name, str(error), isinstance(error, KeywordError))

    for start in range(0, len(part), workers):
        yield from pool.map(one, part[start : start + workers])


def read_shards(folder: str | Path) -> InterleavedRows:
    """The problems of a folder that `make_shards` wrote, of its finished shards.

    Raises:
        ValueError: where it holds none.
    """
    folder = Path(folder)
    problems, skipped = list[InterleavedProblem](), list[str]()
    for record in sorted(folder.glob("shard-*.record.json")):
        shard = folder / f"{record.name.removesuffix('.record.json')}.json"
        if shard.exists():
            found = read_mint_cot(shard)
            problems += found.problems
            skipped += found.skipped
    if not problems:
        raise ValueError(f"{folder} holds no finished shard with rows; make it with python -m train.prepare_interleave")
    return InterleavedRows(tuple(problems), tuple(skipped))


# Data and plan


def _numbered_lines(data: Path) -> list[tuple[int, str]]:
    try:
        text = data.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{data} cannot be read ({error.strerror or error}); give a file of JSON lines") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"{data} is empty; it shall hold a JSON object a line: image, question, solution, answer")
    return lines


def _digest(data: Path) -> str:
    return hashlib.sha256(data.read_bytes()).hexdigest()[:16]


# Shards


def _write_all(held: list[_Shard], out: Path, copy_images: bool) -> None:
    for shard in held:
        _write_shard(shard, out, copy_images)
    held.clear()
    write_skipped(out)


def _write_shard(shard: _Shard, out: Path, copy_images: bool) -> None:
    """Images first, then rows, then the record, which says that both are whole; each by rename."""
    place = _beside if copy_images else _absolute
    problems = [replace(problem, image=place(problem.image, out)) for problem in shard.problems]
    if problems:
        write_mint_cot(problems, out / f"shard-{shard.number:05d}.json")
    steps = [step for problem in problems for step in problem.steps]
    report = MakingReport(
        rows=len(problems),
        skipped=len(shard.skipped),
        steps=len(steps),
        empty_steps=sum(not step.cells for step in steps),
        cells=sum(len(step.cells) for step in steps),
    )
    lines = [{"row": skip.name, "reason": skip.reason} for skip in shard.skipped]
    write_whole(record_file(out, shard.number), json.dumps({"report": asdict(report), "skipped": lines}) + "\n")


def _absolute(image: Path, out: Path) -> Path:
    return image.resolve()


def _beside(image: Path, out: Path) -> Path:
    """A copy under `out`, named by its content, so that equal names do not meet and a second run changes nothing."""
    target = out / IMAGES / f"{hashlib.sha256(image.read_bytes()).hexdigest()[:20]}{image.suffix.lower()}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(image, partial)
        partial.replace(target)
    return target


def _report(out: Path, num_shards: int) -> MakingReport:
    """The sum over all shards."""
    records = [json.loads(record_file(out, number).read_text(encoding="utf-8")) for number in range(num_shards)]
    names = ("rows", "skipped", "steps", "empty_steps", "cells")
    return MakingReport(**{name: sum(record["report"][name] for record in records) for name in names})
