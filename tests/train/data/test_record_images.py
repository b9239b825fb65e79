"""Images are checked when records are read: a run does not begin with one that would end it later."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perception.datasets.records import RecordSet
from perception.vocabulary.names import PerceptionVocabulary
from train.data.records import SourcesConfig, read_records

VOCABULARY = PerceptionVocabulary(8, (2, 2), 100)


def photo(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)


def bad_photo(path: Path, kind: str) -> None:
    if kind == "cut":
        photo(path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "page":
        path.write_text("<html>not found</html>")
    elif kind == "thin":
        Image.new("RGB", (3000, 4)).save(path)


def table(folder: Path, images: Mapping[str, str], boxes: str = "") -> Path:
    """A table with one row per image: its name and what is wrong with it, or nothing."""
    with (folder / "q.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "question", "answer", "boxes"])
        for name, kind in images.items():
            bad_photo(folder / name, kind) if kind else photo(folder / name)
            rows.writerow([name, "How many cups are there?", "1", boxes])
    return folder / "q.csv"


def read(folder: Path, **sources: tuple[str, ...]) -> RecordSet:
    return read_records(SourcesConfig(**sources), VOCABULARY, None, folder)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut", "corrupt image"),
        ("page", "not an image in a known format"),
        ("thin", "3000 x 4 pixels.*at most 200 times"),
    ],
)
def test_a_bad_image_is_named_with_its_row_before_training(tmp_path: Path, kind: str, said: str) -> None:
    path = table(tmp_path, {"a.jpg": "", "b.jpg": kind, "c.jpg": ""})
    with pytest.raises(ValueError, match=rf"^q.csv, line 3: .*b.jpg .*{said}.*take the entry out$"):
        read(tmp_path, own=(str(path),))


@pytest.mark.parametrize("kind", ["page", "thin"])
def test_a_row_with_boxes_is_named_too(tmp_path: Path, kind: str) -> None:
    path = table(tmp_path, {"a.jpg": "", "b.jpg": kind}, "[[1, 1, 9, 9]]")
    with pytest.raises(ValueError, match=r"^q.csv, line 3: .*b.jpg"):
        read(tmp_path, own=(str(path),))


def test_all_bad_images_are_named_at_once(tmp_path: Path) -> None:
    path = table(tmp_path, {"a.jpg": "page", "b.jpg": "", "c.jpg": "cut", "d.png": "thin"})
    with pytest.raises(ValueError, match=r"^q.csv, line 2: .*\(3 images .* others: q.csv, line 4, q.csv, line 5\)$"):
        read(tmp_path, own=(str(path),))


def test_bad_images_are_left_out_and_named_where_that_is_asked_for(tmp_path: Path) -> None:
    path = table(tmp_path, {"a.jpg": "page", "b.jpg": "", "c.jpg": "cut"})
    made = read_records(SourcesConfig(own=(str(path),)), VOCABULARY, None, tmp_path, skip_bad=True)
    assert [record.source for record in made.records] == ["q.csv, line 3"]
    page, cut = made.skipped
    assert page.startswith("q.csv, line 2: ") and "is not an image" in page and "a.jpg" in page
    assert cut.startswith("q.csv, line 4: ") and "is a corrupt image" in cut


def test_records_that_were_written_keep_the_name_of_their_row(tmp_path: Path) -> None:
    path = table(tmp_path, {"a.jpg": "", "b.jpg": ""})
    read(tmp_path, own=(str(path),)).write(tmp_path / "records.jsonl")
    assert len(read(tmp_path, records=(str(tmp_path / "records.jsonl"),)).records) == 2
    bad_photo(tmp_path / "b.jpg", "cut")
    with pytest.raises(ValueError, match=r"^q.csv, line 3: .*b.jpg is a corrupt image"):
        read(tmp_path, records=(str(tmp_path / "records.jsonl"),))
