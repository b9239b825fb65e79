"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Ending of temporary names; a killed process may leave such a file or folder behind, and nothing reads it"""
_FULL = re.compile(r"No space left on device|os error 28\b|\d+ requested and \d+ written|[Dd]isk quota exceeded")
"""How pyarrow, safetensors and NumPy name a full disk, none of them by its error number"""

Content = str | bytes | Callable[[Path], object]
"""Text (written as UTF-8), bytes, or a function that writes a file or makes a folder at the path that it is given"""


class DiskFull(OSError):
    """The disk has no room for a file."""

    def __init__(self, path: Path):
        super().__init__(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def __str__(self) -> str:
        return (
            f"{self.filename} could not be written: the disk is full ({self.strerror}); free space, then run this again"
        )


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Raise `DiskFull` for `path` in place of any library's error about a full disk or a used-up quota."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or (number is None and _FULL.search(str(error))):
            raise DiskFull(path) from error
        raise


def write_whole(path: str | Path, content: Content) -> None:
    """Write a file or a folder so that readers see the old one or the new one, never a part of it.

    The content is written under a temporary name in the same folder, flushed to disk, and renamed. If writing fails,
    the temporary file or folder is removed and `path` stays as it was. Missing parent folders are made.

    Args:
        content: text (written as UTF-8), bytes, or a function that writes a file or makes a folder at the path that it
            is given. That path ends in ".partial", so writers that choose a format by the ending need to be told it.

    Raises:
        DiskFull: naming `path`, if there is no room for it.
    """
    write_together({Path(path): content})


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write files that belong together as `write_whole` does: all are on disk before the first gets its name.

    So a full disk leaves all the old ones. A process that is killed between two names leaves old beside new; files for
    which that matters hold a digest of one another.
    """
    temporary = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}") for path in contents}
    try:
        for path, content in contents.items():
            with full_disk_named(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                _write(temporary[path], content)
        for path, made in temporary.items():
            _rename(made, path)
    except BaseException:
        for made in temporary.values():
            remove(made)
        raise
    for folder in {path.parent for path in contents}:
        _flush(folder)


def _write(path: Path, content: Content) -> None:
    """Write and flush what lies at `path`, a temporary name."""
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        content(path)
    if path.is_dir():
        for entry in path.rglob("*"):
            _flush(entry)
    _flush(path)


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
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder with all that it holds, if it is there."""
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
