"""The data files beneath a folder: the one listing that all jobs and readers use."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path

LOCK = ".lock"
"""File that marks a folder in which a job of this package writes, while it runs and afterwards"""
_NO_DATA = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN")
"""Folders that archives, disks and file servers add"""
_WILD = re.compile(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])")
_PATTERNS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def files_beneath(folder: Path, endings: Collection[str], glob: str = "", but: Collection[Path] = ()) -> list[Path]:
    """All files beneath a folder with one of the endings, sorted. Links to folders are followed, but not in circles.

    Left out are names that begin with a dot (such as ._a.png and .ipynb_checkpoints), folders that archives and file
    servers add (__MACOSX, @eaDir), and folders in which jobs of this package write, so that no job reads what a job
    wrote.

    Args:
        endings: in lower case, with the dot.
        glob: pattern that a file must match, such as "*_depth.png"; one with a "/" is matched against the path below
            `folder`, where ** stands for any folders. Empty: all files.
        but: files and folders to leave out.

    Raises:
        ValueError: if `folder` is not a folder, or holds files with the endings and none that matches `glob`.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds the files")
    left_out = {path.absolute() for path in but}
    found: list[Path] = []

    def walk(place: Path, above: frozenset[str]) -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                path = place / entry.name
                if entry.name.startswith(".") or entry.name in _NO_DATA or path.absolute() in left_out:
                    continue
                if entry.is_dir():
                    real = os.path.realpath(path)
                    if real not in above and not (path / LOCK).exists():
                        walk(path, above | {real})
                elif path.suffix.lower() in endings:
                    found.append(path)

    walk(folder, frozenset({os.path.realpath(folder)}))
    chosen = sorted(path for path in found if not glob or _matches(path.relative_to(folder).as_posix(), glob))
    if found and not chosen:
        raise ValueError(
            f"none of the {len(found)} files beneath {folder} matches glob {glob!r}; the first is "
            f"{min(found).relative_to(folder)}"
        )
    return chosen


def _matches(path: str, glob: str) -> bool:
    """True if a path, or its last name where the pattern has no "/", matches the pattern."""
    pieces = (_PATTERNS.get(piece) or _one_of(piece) for piece in _WILD.split(glob))
    return re.fullmatch("".join(pieces), path if "/" in glob else path.rsplit("/", 1)[-1]) is not None


def _one_of(piece: str) -> str:
    """The regular expression of a pattern's plain text, or of its [abc]."""
    if _WILD.fullmatch(piece):
        return "[" + piece[1:-1].replace("\\", "\\\\").replace("!", "^", piece[1] == "!") + "]"
    return re.escape(piece)


def stamps_digest(folder: Path, files: Iterable[Path]) -> str:
    """A digest of the names below a folder and the stamps of files, which is another one once a file is replaced."""
    stamps = [(file.relative_to(folder).as_posix(), stamp(file)) for file in files]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]


def stamp(path: Path) -> list[int]:
    """Size and time of the last change, in nanoseconds, by which a replaced file is noticed; empty if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]
