"""Folders that are written shard by shard: a run that is killed goes on where it was, with nothing lost or doubled.

A shard is finished once its record is there, which is written last; everything is written by rename, so that what a
full disk or a kill leaves behind is made anew. A plan beside the shards says what they are made of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

PLAN, SKIPPED = "plan.json", "skipped.jsonl"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a folder, made where it is missing. Raises ValueError where another run has it."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / ".lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"another run writes {out}; wait for it, or give another folder") from None


def keep_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """Notes what the folder is made of. Raises ValueError where it is made of something else."""
    file, new = out / PLAN, json.loads(json.dumps(plan))
    if file.exists():
        old = json.loads(file.read_text(encoding="utf-8"))
        if changed := sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
            was = ", ".join(f"{name} was {old.get(name)!r} and is {new.get(name)!r}" for name in changed)
            raise ValueError(f"{out} was begun otherwise: {was}; give another folder, or delete this one")
    else:
        write_whole(file, json.dumps(new, indent=1) + "\n")


def record_file(out: Path, number: int) -> Path:
    """What says that shard `number` is finished."""
    return out / f"shard-{number:05d}.record.json"


def records(out: Path) -> list[dict[str, Any]]:
    """Of all finished shards, in their order."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.glob("shard-*.record.json"))]


def write_skipped(out: Path) -> None:
    """What the finished shards had to skip ("skipped" in their records), in the order of the data."""
    lines = [line for record in records(out) for line in record["skipped"]]
    write_whole(out / SKIPPED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_whole(file: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
