"""Which files of a folder are data."""

from __future__ import annotations

from pathlib import Path

import pytest

from perception.datasets.listing import files_beneath
from perception.datasets.shards import locked


def names(folder: Path, glob: str = "") -> list[str]:
    return [path.relative_to(folder).as_posix() for path in files_beneath(folder, (".png",), glob)]


def fill(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_what_computers_leave_in_folders_is_no_data(tmp_path: Path) -> None:
    left = [
        "._a.png",
        ".ipynb_checkpoints/a-checkpoint.png",
        "__MACOSX/a.png",
        "@eaDir/a.png",
        "d.png/e.txt",
        "b/.c.png",
    ]
    assert names(fill(tmp_path, "a.PNG", "b/a.png", *left)) == ["a.PNG", "b/a.png"]
    hidden = fill(tmp_path / ".cache", "a.png")
    assert names(hidden) == ["a.png"], "the folder itself may have any name"


def test_links_to_folders_are_followed_and_circles_end(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", "a.png")
    other = fill(tmp_path / "other", "deep/b.png")
    (data / "linked").symlink_to(other)
    (other / "back").symlink_to(data)
    (data / "itself").symlink_to(data)
    (data / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names(data) == ["a.png", "gone.png", "linked/deep/b.png"]


def test_a_pattern_chooses_files(tmp_path: Path) -> None:
    fill(tmp_path, "a_depth.png", "a_rgb.png", "left/a_depth.png", "left/deep/b_depth.png")
    assert names(tmp_path, "*_depth.png") == ["a_depth.png", "left/a_depth.png", "left/deep/b_depth.png"]
    assert names(tmp_path, "left/*") == ["left/a_depth.png"]
    assert (
        names(tmp_path, "left/**/*.png") == names(tmp_path, "left/**") == ["left/a_depth.png", "left/deep/b_depth.png"]
    )
    assert names(tmp_path, "**/[!a]_*.png") == ["left/deep/b_depth.png"]
    with pytest.raises(
        ValueError, match=r"none of the 4 files beneath .* matches glob '\*\.jpg'; the first is a_depth"
    ):
        names(tmp_path, "*.jpg")


def test_what_jobs_write_is_not_read(tmp_path: Path) -> None:
    with locked(tmp_path / "labelled"):
        assert names(fill(tmp_path, "a.png", "labelled/labels.png")) == ["a.png"]
    assert names(tmp_path) == ["a.png"]
