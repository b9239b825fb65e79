"""Jobs that write a folder shard by shard and can be resumed after they were killed.

A shard is done once its record exists; the record is written last. Whatever a killed job left of an unfinished shard is
written again. A `Plan` beside the shards holds the settings that the job was begun with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from perception.datasets.lines import read_text
from perception.datasets.listing import LOCK
from vqvae.files import PARTIAL, write_whole

PLAN, SKIPPED = "plan.json", "skipped.jsonl"
_MOST_SHOWN = 80
"""Characters of a changed setting that an error shows"""


@dataclass(frozen=True)
class Plan:
    """The settings of a job, kept in a JSON file beside what it writes.

    A job with the same settings goes on where the one before it stopped. A job with other settings is refused, so that
    no output mixes two.
    """

    file: Path
    settings: Mapping[str, Any]
    """JSON values that decide what is written"""

    def begin(self) -> None:
        """Write the settings, or check them against those in the file.

        Raises:
            ValueError: if the file holds other settings, naming the ones that differ, or is damaged.
        """
        new = json.loads(json.dumps(self.settings))
        if not self.file.exists():
            write_whole(self.file, json.dumps(new, indent=1) + "\n")
            return
        try:
            old = dict(json.loads(self.file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.file} is not a JSON object ({error}); delete it and the files beside it") from None
        check_settings(self.file, old, new)


def check_settings(where: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise ValueError naming the settings that differ between what `where` was begun with and what is asked now."""
    changed = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    if changed:
        listed = ", ".join(f"{name} was {_short(old.get(name))} and is {_short(new.get(name))}" for name in changed)
        raise ValueError(
            f"{where} was begun with other settings: {listed}; use those again, write to another place, or delete what "
            "was begun there"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} .. ({len(text)} characters)"


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Make a folder and hold its lock, so that one process at a time writes in it and in the folders below.

    Args:
        wait: whether to wait for another process that holds the lock.

    Raises:
        ValueError: if another process holds the lock and `wait` is false.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=-1 if wait else 0):
            for left in folder.rglob(f".*{PARTIAL}"):
                if left.is_file():
                    left.unlink()  # of a process that was killed while it wrote
            yield
    except Timeout:
        raise ValueError(f"another process writes {folder}; wait for it, or give another folder") from None


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Check the settings of a job against those that the shards in a folder were made with; without one, any will do.

    Raises:
        ValueError: as `Plan.begin` does.
    """
    if not any(folder.glob("shard-*.record.json")):
        (folder / PLAN).unlink(missing_ok=True)  # of a run that ended before its first shard
    Plan(folder / PLAN, settings).begin()


def record_file(folder: Path, number: int) -> Path:
    """The file whose existence says that shard `number` is done."""
    return folder / f"shard-{number:05d}.record.json"


def records(folder: Path) -> list[dict[str, Any]]:
    """The records of all shards that are done, in order."""
    return [json.loads(read_text(file)) for file in sorted(folder.glob("shard-*.record.json"))]


def write_skipped(folder: Path) -> None:
    """Collect what the shards skipped (the list "skipped" of each record) into one JSON lines file."""
    lines = [line for record in records(folder) for line in record["skipped"]]
    write_whole(folder / SKIPPED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
