"""Make the interleaved solutions of a whole file, shard by shard. A job that was killed can be resumed.

Shards are files of the published layout. Rows that fail are listed in skipped.jsonl. If the language model fails for
several consecutive rows, the run stops without counting them as skipped, and the next run tries them again. Rows that
were corrected, added or removed since an earlier run, and those of a damaged shard, are made anew; the others are not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from perception.datasets.interleaved.endpoint import KeywordError
from perception.datasets.interleaved.making import Make, parse_row
from perception.datasets.interleaved.mint_cot import InterleavedProblem, InterleavedRows, read_mint_cot, write_mint_cot
from perception.datasets.listing import stamp
from perception.datasets.progress import Progress
from perception.datasets.shards import begin, locked, record_file, records, write_skipped
from vqvae.files import write_whole

IMAGES = "images"
FAILURES_IN_A_ROW = 5
"""Consecutive failures of the language model after which a run stops"""


class KeywordsStopped(RuntimeError):
    """The language model failed for several consecutive rows."""


@dataclass(frozen=True)
class MakingReport:
    """What a folder of interleaved solutions holds."""

    rows: int
    skipped: int
    steps: int
    empty_steps: int
    """Steps without a region"""
    cells: int
    """Sum over all steps"""

    @property
    def cells_per_step(self) -> float:
        return self.cells / max(1, self.steps)

    def __str__(self) -> str:
        return (
            f"{self.rows} rows, {self.skipped} skipped; {self.steps} steps, {self.empty_steps} of them without a "
            f"region; {self.cells_per_step:.2f} cells per step"
        )


@dataclass(frozen=True)
class _SourceLine:
    """A line of the data."""

    name: str
    """file and line, for messages"""
    line: str
    key: str
    """digest of the line, and of its image's size and time"""


@dataclass(frozen=True)
class _Skip:
    """A row that failed."""

    name: str
    reason: str
    language: bool
    """True if the language model caused the failure"""


@dataclass(frozen=True)
class _PendingShard:
    number: int
    rows: tuple[_SourceLine, ...]
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
    """Make a folder of interleaved solutions, but for the rows that an earlier run has made and that are the same.

    Args:
        data: file of JSON lines, as `parse_row` reads them.
        make: turns one row into a problem; raises ValueError for a row that it cannot use.
        plan: JSON settings that decide what is written; an `out` that was begun with others is refused.
        images: folder that image paths are relative to; None for the folder of `data`.
        workers: rows that are made at the same time, for language models that answer several requests at once.
        copy_images: whether images are copied beside the shards, so that the folder can be moved.

    Raises:
        ValueError: if `data` is missing or empty, a size is below 1, `out` was begun with other settings, or another
            process writes it.
        KeywordsStopped: when the language model has failed for `FAILURES_IN_A_ROW` consecutive rows.
    """
    data, out = Path(data), Path(out)
    if shard_size < 1 or workers < 1:
        raise ValueError(f"shard_size and workers must be at least 1, got {shard_size} and {workers}")
    root = Path(images) if images is not None else data.parent
    rows = _rows(data, root)
    parts = [tuple(rows[start : start + shard_size]) for start in range(0, len(rows), shard_size)]
    with locked(out):
        begin(out, {**plan, "shard_size": shard_size, "copy_images": copy_images})
        done, kept = _finished(out, parts)
        with Progress("making", len(rows)) as progress, ThreadPoolExecutor(workers) as pool:
            held: list[_PendingShard] = []
            failures: list[_Skip] = []  # of the language model, since its last usable reply
            for number, part in enumerate(parts):
                if number in done:
                    progress.advance(len(part))
                    continue
                problems, skipped = [], []
                made = _in_order(pool, make, [row for row in part if row.key not in kept], root, workers)
                for row in part:
                    before = kept.get(row.key)
                    found = next(made) if before is None else replace(before, name=row.name)
                    progress.advance()
                    if isinstance(found, _Skip):
                        skipped.append(found)
                        failures += [found] if found.language else []
                        _stop_after(failures, out)
                    else:
                        problems.append(found)
                        if before is None:
                            failures.clear()
                held.append(_PendingShard(number, part, tuple(problems), tuple(skipped)))
                if not failures:
                    _write_all(held, out, copy_images)
            _write_all(held, out, copy_images)
        for file in out.glob("shard-*.record.json"):
            if _number(file) >= len(parts):
                file.unlink()
                _shard_file(out, _number(file)).unlink(missing_ok=True)
        write_skipped(out)
        return _report(out)


def _stop_after(failures: Sequence[_Skip], out: Path) -> None:
    if len(failures) >= FAILURES_IN_A_ROW:
        kept = len(list(out.glob("shard-*.record.json")))
        raise KeywordsStopped(
            f"no keywords for {len(failures)} rows in a row, {failures[0].name} to {failures[-1].name}: "
            f"{failures[-1].reason}. {kept} finished shards are kept in {out}; check the language model and run the "
            "same command again, which goes on from there"
        )


def _in_order(
    pool: ThreadPoolExecutor, make: Make, part: Sequence[_SourceLine], root: Path, workers: int
) -> Iterator[InterleavedProblem | _Skip]:
    """Make rows and yield the results in order; at most `workers` rows are begun at a time."""

    def one(row: _SourceLine) -> InterleavedProblem | _Skip:
        try:
            return make(parse_row(row.line, row.name, root))
        except ValueError as error:
            return _Skip(row.name, str(error), isinstance(error, KeywordError))

    for start in range(0, len(part), workers):
        yield from pool.map(one, part[start : start + workers])


def read_shards(folder: str | Path) -> InterleavedRows:
    """The problems in the finished shards of a folder that `make_shards` wrote. Raises ValueError if there are none."""
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


# Data, and what of it is finished


def _rows(data: Path, root: Path) -> list[_SourceLine]:
    try:
        text = data.read_bytes().decode("utf-8-sig", errors="surrogateescape")  # such rows are skipped
    except OSError as error:
        raise ValueError(f"{data} cannot be read ({error.strerror or error}); give a file of JSON lines") from None
    rows = [
        _SourceLine(f"{data.name}:{number}", line, _key(line, root))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not rows:
        raise ValueError(f"{data} is empty; it must hold one JSON object per line: image, question, solution, answer")
    return rows


def _key(line: str, root: Path) -> str:
    try:
        image = stamp(root / str(json.loads(line)["image"]))
    except (ValueError, TypeError, KeyError, RecursionError):  # a row that will be skipped
        image = []
    return hashlib.sha256(f"{image} {line}".encode(errors="replace")).hexdigest()[:24]


def _finished(
    out: Path, parts: Sequence[Sequence[_SourceLine]]
) -> tuple[set[int], dict[str, InterleavedProblem | _Skip]]:
    """Numbers of the shards that hold the rows of their part, and by key what the other shards made of their rows.

    Says which rows are no longer those of the data, and which shards are damaged.
    """
    done, kept = set[int](), dict[str, InterleavedProblem | _Skip]()
    gone, say = list[str](), Console(stderr=True)
    keys = {row.key for part in parts for row in part}
    for file in sorted(out.glob("shard-*.record.json")):
        number = _number(file)
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if _digest(_shard_file(out, number)) != record["sha256"]:
                raise ValueError(f"{_shard_file(out, number).name} is not as it was written")
            rows = {str(name): str(key) for name, key in record["rows"].items()}
            if number < len(parts) and list(rows.items()) == [(row.name, row.key) for row in parts[number]]:
                done.add(number)
                continue
            skips = {line["row"]: _Skip(line["row"], line["reason"], language=False) for line in record["skipped"]}
            kept |= {rows[name]: skip for name, skip in skips.items()}
            problems = read_mint_cot(_shard_file(out, number)).problems if len(rows) > len(skips) else ()
            kept |= zip((key for name, key in rows.items() if name not in skips), problems, strict=True)
            gone += [name for name, key in rows.items() if key not in keys]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            said = f"{file.name} cannot be used ({error}); its rows are made again"
            say.print(said, markup=False, highlight=False, soft_wrap=True)
            file.unlink()
    if gone:
        said = f"{len(gone)} finished rows were corrected or removed since, or have other images; the first: {gone[0]}"
        say.print(said, markup=False, highlight=False, soft_wrap=True)
    return done, kept


def _number(record: Path) -> int:
    return int(record.name.split("-")[1].split(".")[0])


def _shard_file(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}.json"


def _digest(file: Path) -> str:
    """SHA-256 of a shard's file; empty if there is none, as in a shard without a usable row."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""


# Shards


def _write_all(held: list[_PendingShard], out: Path, copy_images: bool) -> None:
    for shard in held:
        _write_shard(shard, out, copy_images)
    held.clear()
    write_skipped(out)


def _write_shard(shard: _PendingShard, out: Path, copy_images: bool) -> None:
    """Write the images, then the rows, then the record that marks the shard as done."""
    place = _beside if copy_images else _absolute
    problems = [replace(problem, image=place(problem.image, out)) for problem in shard.problems]
    file = _shard_file(out, shard.number)
    if problems:
        write_mint_cot(problems, file)
    else:
        file.unlink(missing_ok=True)  # that of an earlier run
    steps = [step for problem in problems for step in problem.steps]
    report = MakingReport(
        rows=len(problems),
        skipped=len(shard.skipped),
        steps=len(steps),
        empty_steps=sum(not step.cells for step in steps),
        cells=sum(len(step.cells) for step in steps),
    )
    lines = [{"row": skip.name, "reason": skip.reason} for skip in shard.skipped]
    record = {"report": asdict(report), "skipped": lines, "rows": {row.name: row.key for row in shard.rows}}
    record["sha256"] = _digest(file)
    write_whole(record_file(out, shard.number), json.dumps(record) + "\n")


def _absolute(image: Path, out: Path) -> Path:
    return image.resolve()


def _beside(image: Path, out: Path) -> Path:
    """Copy an image below `out`, named by its content: equal names do not clash, and a second run changes nothing."""
    content = image.read_bytes()
    target = out / IMAGES / f"{hashlib.sha256(content).hexdigest()[:20]}{image.suffix.lower()}"
    if not target.exists():
        write_whole(target, content)
    return target


def _report(out: Path) -> MakingReport:
    """The sum over all shards."""
    reports = [record["report"] for record in records(out)]
    names = ("rows", "skipped", "steps", "empty_steps", "cells")
    return MakingReport(**{name: sum(report[name] for report in reports) for name in names})
