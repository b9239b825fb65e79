"""Images are checked when records are read: a run does not begin with one that would end it later."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_families import FAMILIES, save_family

from perception.datasets.detection import count_records
from perception.datasets.images import ImageFile
from perception.datasets.records import RecordSet
from perception.model.folder import read_processor
from perception.model.images import load_image
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.curriculum import CurriculumConfig
from train.data.records import RecordRows, SourcesConfig, least_side, read_records

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


def gradients(folder: Path, name: str, orientation: int = 1, **more: object) -> Path:
    """A picture of 1200 x 900 pixels without detail that a smaller one would lose."""
    y, x = np.mgrid[:900, :1200]
    pixels = np.stack([x / 5, y / 4, 60 * (np.sin(x / 60) + np.cos(y / 60)) + 120], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(folder / name, exif=exif, **more)  # type: ignore[arg-type]
    return folder / name


@pytest.mark.parametrize(("name", "more"), [("a.jpg", {}), ("a.mpo", {"save_all": True}), ("a.png", {})])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_decoded_no_larger_than_needed(tmp_path: Path, name: str, more: dict, orientation: int) -> None:
    file = gradients(tmp_path, name, orientation, **more)
    whole, upright = load_image(file), (1200, 900) if orientation == 1 else (900, 1200)
    assert whole.size == upright
    for least, share in ((901, 1), (900, 1), (450, 2), (449, 2), (226, 2), (225, 4), (32, 8)):
        smaller = load_image(file, least)
        assert smaller.size == tuple(-(-side // (1 if name == "a.png" else share)) for side in upright)
        one, other = (np.asarray(image.resize((32, 32), reducing_gap=3), float) for image in (whole, smaller))
        assert np.abs(one - other).mean() < 1


def test_the_least_side_is_asked_of_the_processor(tmp_path: Path) -> None:
    """Models that cut images into views, or see them at their own resolution, get them whole."""
    found = {}
    for family in FAMILIES:
        save_family(family, tmp_path / family)
        found[family] = least_side(read_processor(tmp_path / family))
    assert found["llava"] and found["paligemma"]
    assert not any(found[family] for family in found if family not in ("llava", "paligemma")), found
    processor = read_processor(tmp_path / "llava")
    processor.image_processor.do_resize = False
    assert least_side(processor) is None


@pytest.mark.parametrize("augment", ["mirror", "parts"])
def test_rows_of_smaller_images_have_the_same_boxes(tmp_path: Path, augment: str) -> None:
    image = ImageFile(gradients(tmp_path, "a.jpg"))
    records = count_records(image, "cups", Span("boxes", (10, 10, 30, 40, 55, 60, 90, 95)), "a")
    curriculum = CurriculumConfig("constant", atomic_end=0.3, chain_share=0.5)
    whole = RecordRows(tuple(records), curriculum, 10, 0, 100, augment)  # type: ignore[arg-type]
    for step in range(10):
        for one, other in zip(
            whole.rows(step, 0, 1, 2), replace(whole, least_side=64).rows(step, 0, 1, 2), strict=True
        ):
            assert one.example == other.example and one.extra == other.extra
            assert one.image is not None and other.image is not None
            assert 64 * 0.55 <= min(other.image.size) <= min(one.image.size) / 7
            shown = [np.asarray(row.resize((24, 24), reducing_gap=3), float) for row in (one.image, other.image)]
            assert np.abs(shown[0] - shown[1]).mean() < 3
