"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

PARTIAL = ".partial"
"""Ending of temporary names; a killed process may leave such a file or folder behind, and nothing reads it"""


def write_whole(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file or a folder so that readers see the old one or the new one, never a part of it.

    The content is written under a temporary name in the same folder, flushed to disk, and renamed. If writing fails,
    the temporary file or folder is removed and `path` stays as it was. Missing parent folders are made.

    Args:
        content: text (written as UTF-8), bytes, or a function that writes a file or makes a folder at the path that it
            is given. That path ends in ".partial", so writers that choose a format by the ending need to be told it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        if isinstance(content, str | bytes):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        else:
            content(temporary)
        if temporary.is_dir():
            for entry in temporary.rglob("*"):
                _flush(entry)
        _flush(temporary)
        _rename(temporary, path)
    except BaseException:
        _remove(temporary)
        raise
    _flush(path.parent)


def _rename(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of `path`; an existing folder is moved aside first."""
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
        return
    old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old{PARTIAL}")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(old, path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Ask the disk to hold a file or folder, so that a power cut cannot put the rename before the data."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
