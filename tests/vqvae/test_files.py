"""Files and folders are written whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from vqvae.files import DiskFull, write_together, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_bytes_and_functions_are_written_and_written_over(tmp_path: Path) -> None:
    file = tmp_path / "made" / "a.json"
    for content in ("ä\n", b"bytes", lambda path: path.write_text("by a function")):
        write_whole(file, content)
    assert file.read_text() == "by a function" and names(file.parent) == ["a.json"]
    write_whole(str(file), "ä\n")
    assert file.read_bytes() == "ä\n".encode()


def make_folder(path: Path, text: str) -> None:
    (path / "deep").mkdir(parents=True)
    (path / "deep" / f"{text}.txt").write_text(text)


def test_a_folder_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_whole(folder, lambda path: make_folder(path, "old"))
    write_whole(folder, lambda path: make_folder(path, "new"))
    assert names(folder / "deep") == ["new.txt"] and names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    write_whole(tmp_path / "file", "old")
    write_whole(tmp_path / "folder", lambda path: make_folder(path, "old"))

    def half_a_file(path: Path) -> None:
        path.write_text("ha")
        raise error

    def half_a_folder(path: Path) -> None:
        make_folder(path, "ha")
        raise error

    for name, fail in (("file", half_a_file), ("folder", half_a_folder), ("new", half_a_file)):
        with pytest.raises(type(error)):
            write_whole(tmp_path / name, fail)
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path / "folder" / "deep") == ["old.txt"]


def test_a_folder_does_not_replace_a_file(tmp_path: Path) -> None:
    write_whole(tmp_path / "name", "a file")
    with pytest.raises(OSError):
        write_whole(tmp_path / "name", lambda path: make_folder(path, "folder"))
    assert names(tmp_path) == ["name"] and (tmp_path / "name").read_text() == "a file"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("25600 requested and 4096 written"),  # NumPy
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_named_as_such_and_leaves_the_old_files(tmp_path: Path, error: Exception) -> None:
    def full(path: Path) -> None:
        path.write_text("ha")
        raise error

    write_whole(tmp_path / "b", "old")
    with pytest.raises(DiskFull, match=r"/b could not be written: the disk is full .*; free space"):
        write_together({tmp_path / "a": "new", tmp_path / "b": full})
    assert names(tmp_path) == ["b"] and (tmp_path / "b").read_text() == "old"
