"""Arrays on disk with JSON rows and settings, built once and read as memory maps.

A store is a folder with one `.npy` file per array, `rows.jsonl` with one JSON value per row, and `store.json`, which is
written last: without it the store is unfinished. It is built in parts, so a build that is killed goes on where it
stopped.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile
from zlib import error as DeflateError

import numpy as np
import torch
from rich.console import Console

from perception.datasets.lines import read_text, text_lines
from perception.datasets.progress import Progress
from perception.datasets.shards import PLAN, Plan, check_settings, locked
from vqvae.files import full_disk_named, write_whole

_STORE, _ROWS, _PARTS = "store.json", "rows.jsonl", "parts"


@dataclass(frozen=True)
class Part:
    """Rows of a store, as one part of its building makes them."""

    arrays: Mapping[str, np.ndarray]
    """(n, ...) each; every part has the same names, dtypes and shapes but for n"""
    rows: Sequence[Any]
    """n JSON values"""
    notes: Sequence[Any] = ()
    """JSON values that belong to no row, such as what was left out"""


@dataclass(frozen=True)
class Store:
    """N rows of named arrays and JSON values. Arrays are memory maps: reading an item copies that item only."""

    folder: Path
    settings: Mapping[str, Any]
    """what the store was built with"""
    arrays: Mapping[str, np.ndarray]
    """(N, ...) each"""
    lines: Sequence[str]
    """N JSON texts, parsed when they are needed"""
    notes: Sequence[Any]
    """what the parts noted"""
    digest: str = ""
    """SHA-256 of the arrays; empty in stores of an older version"""

    def __len__(self) -> int:
        return len(self.lines)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        settings: Mapping[str, Any],
        num_parts: int,
        make: Callable[[int], Part],
        title: str,
        workers: int = 1,
        check: Callable[[int, Sequence[Any]], None] | None = None,
        sources: str = "",
    ) -> Store:
        """Open the store of these settings; build it first if it is not there, or was made of other sources.

        One process builds; others that call this at the same time wait for it.

        Args:
            settings: JSON values that decide what the store holds.
            make: makes part 0 .. num_parts - 1; with several workers it must be picklable.
            title: names the work on the progress bar.
            workers: processes that make parts.
            check: called with the number of rows and the notes of all parts before they are joined; a ValueError
                that it raises ends the build, and the next one begins anew.
            sources: digest of the files that the parts are made of, by which replaced ones are noticed.

        Raises:
            ValueError: if the folder holds a store of other settings, or as `check` and `make` do.
        """
        folder, settings = Path(folder), json.loads(json.dumps(settings))
        with locked(folder, wait=True):
            if _is_of_others(folder, settings, sources):
                said = f"files were replaced since {folder} was made of them; it is made anew"
                Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
                _drop(folder)
            if not (folder / _STORE).exists():
                _build(folder, settings, num_parts, make, title, workers, check, sources)
        store = cls.open(folder)
        check_settings(folder, store.settings, settings)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """Open a finished store.

        Raises:
            ValueError: if the store is missing or unfinished, or one of its files is damaged.
        """
        folder = Path(folder)
        if not (folder / _STORE).exists():
            raise ValueError(f"{folder} is not a finished store ({_STORE} is missing); build it first")
        try:
            kept = json.loads(read_text(folder / _STORE))
            lines = text_lines(read_text(folder / _ROWS))
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in kept["arrays"]}
            store = cls(folder, kept["settings"], arrays, lines, kept["notes"], kept.get("digest", ""))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder} is damaged ({error}); delete the folder and build it again") from error
        for name, array in arrays.items():
            if len(array) != len(lines):
                raise ValueError(
                    f"{folder} holds {len(array)} {name} and {len(lines)} rows; delete the folder and build it again"
                )
        return store


def _is_of_others(folder: Path, settings: Mapping[str, Any], sources: str) -> bool:
    """True if a store, or the parts of an unfinished one, were made with these settings, and of other sources."""
    store, plan = folder / _STORE, folder / _PARTS / PLAN
    try:
        if store.exists():
            kept = json.loads(read_text(store))
            before, same = kept.get("sources"), kept["settings"] == settings
        else:
            kept = json.loads(read_text(plan)) if plan.exists() else {}
            before = kept.pop("sources", None)
            same = kept == settings
    except (ValueError, KeyError, TypeError, AttributeError):
        return False  # damaged, which is said when it is opened
    return same and before not in (None, sources)


def _drop(folder: Path) -> None:
    """Remove a store and its parts. Files are removed, not written over, as other processes may have mapped them."""
    for path in (folder / _STORE, folder / _ROWS, *folder.glob("*.npy")):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / _PARTS, ignore_errors=True)


def _build(
    folder: Path,
    settings: Mapping[str, Any],
    num_parts: int,
    make: Callable[[int], Part],
    title: str,
    workers: int,
    check: Callable[[int, Sequence[Any]], None] | None,
    sources: str,
) -> None:
    """Make the missing parts, then join them."""
    parts = folder / _PARTS
    made_of = {"sources": sources} if sources else {}
    Plan(parts / PLAN, {**settings, **made_of}).begin()
    files = [parts / f"{number:06d}.npz" for number in range(num_parts)]
    missing = [number for number, file in enumerate(files) if not (file.exists() and _is_whole(file))]
    write = partial(_write_part, parts, make)
    workers = min(workers, max(1, len(missing)))
    with Progress(title, num_parts, num_parts - len(missing)) as progress:
        if workers == 1:
            for number in missing:
                write(number)
                progress.advance()
        else:  # "spawn": a forked child of a process that has used torch's threads can hang
            with multiprocessing.get_context("spawn").Pool(workers, _begin_worker) as pool:
                for _ in pool.imap_unordered(write, missing):
                    progress.advance()
    found = [_read_texts(file) for file in files]
    count, notes = sum(len(rows) for rows, _ in found), [note for _, noted in found for note in noted]
    if check is not None:
        try:
            check(count, notes)
        except ValueError:
            shutil.rmtree(parts)
            raise
    names, digest = _join(folder, files, count)
    write_whole(folder / _ROWS, "".join(json.dumps(row) + "\n" for rows, _ in found for row in rows))
    kept = {"settings": settings, "arrays": names, "notes": notes, "digest": digest, **made_of}
    write_whole(folder / _STORE, json.dumps(kept) + "\n")
    shutil.rmtree(parts)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the one that builds ends the others


def _write_part(parts: Path, make: Callable[[int], Part], number: int) -> None:
    part = make(number)
    arrays: dict[str, Any] = dict(part.arrays)
    for name, values in (("_rows", part.rows), ("_notes", part.notes)):
        arrays[name] = np.frombuffer(json.dumps(list(values)).encode(), dtype=np.uint8)

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez(stream, **arrays)

    write_whole(parts / f"{number:06d}.npz", write)


def _is_whole(file: Path) -> bool:
    """False, said in one line, if a finished part is damaged: every array of a zip archive has a checksum."""
    try:
        with np.load(file) as part:
            for name in part.files:
                part[name]
        return True
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, DeflateError) as error:
        Console(stderr=True).print(f"{file} is damaged ({error}); it is made again", markup=False, soft_wrap=True)
        return False


def _read_texts(file: Path) -> tuple[list[Any], list[Any]]:
    """Rows and notes of a part."""
    with np.load(file) as part:
        return json.loads(part["_rows"].tobytes()), json.loads(part["_notes"].tobytes())


def _join(folder: Path, files: Sequence[Path], count: int) -> tuple[list[str], str]:
    """Write one .npy file of `count` rows per array; returns the arrays' names, and a digest of all values.

    The files are written from front to back: a memory map of a file that outgrows its disk kills the process.
    """
    streams, kinds, total = dict[str, BinaryIO](), dict[str, np.dtype](), hashlib.sha256()
    with ExitStack() as opened, full_disk_named(folder):
        for file in files:
            with np.load(file) as part:
                for name in (name for name in part.files if not name.startswith("_")):
                    array = part[name]
                    if name not in streams:
                        streams[name] = opened.enter_context((folder / f"{name}.npy").open("wb"))
                        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
                        np.lib.format.write_array_header_2_0(
                            streams[name], header | {"shape": (count, *array.shape[1:])}
                        )
                        kinds[name] = array.dtype
                    values = array.astype(kinds[name], copy=False).tobytes()
                    total.update(values)
                    streams[name].write(values)
    return list(streams), total.hexdigest()
