"""Counting questions from COCO's and LVIS's annotations, and plurals of their classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perception import chains
from perception.datasets.coco import read_counts
from perception.datasets.detection import CountRules
from perception.datasets.images import ImageFile
from perception.datasets.plurals import plural
from perception.datasets.records import RecordSet
from perception.datasets.voc import read_voc
from perception.tokenizers.boxes import BoxTokenizer

pytest.importorskip("pycocotools")
pytest.importorskip("inflect")

CATEGORIES = [{"id": n, "name": name} for n, name in ((1, "person"), (2, "teddy_bear"), (3, "knife"), (4, "bus"))]
CHAIN = " Draw their boxes first."
ALWAYS, NEVER = CountRules(zero_share=1.0), CountRules(zero_share=0.0)


def boxes(category: int, count: int, image: int = 1, first: int = 1, **more: Any) -> list[dict[str, Any]]:
    """`count` annotations, each 10 x 20 pixels, in a row."""
    return [
        {"id": first + i, "image_id": image, "category_id": category, "bbox": [5 * i, 10, 10, 20], "area": 200, **more}
        for i in range(count)
    ]


def write(folder: Path, annotations: list[dict[str, Any]], images: int = 1, **entry: Any) -> Path:
    """An annotation file of images of 100 x 50 pixels, and the images, in `folder`/images."""
    (folder / "images").mkdir(exist_ok=True)
    entries = []
    for number in range(1, images + 1):
        Image.new("RGB", (100, 50)).save(folder / "images" / f"{number:012d}.jpg")
        entries.append({"id": number, "file_name": f"{number:012d}.jpg", "width": 100, "height": 50, **entry})
    file = folder / "instances.json"
    file.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": CATEGORIES}))
    return file


def read(file: Path, rules: CountRules = NEVER) -> RecordSet:
    return read_counts(file, file.parent / "images", 100, rules)


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("teddy bear", "teddy bears"),
        ("person", "people"),
        ("knife", "knives"),
        ("mouse", "mice"),
        ("sheep", "sheep"),
        ("skis", "skis"),
        ("scissors", "scissors"),
        ("wine glass", "wine glasses"),
        ("sandwich", "sandwiches"),
        ("baby buggy", "baby buggies"),
        ("fireman", "firemen"),
        ("goose", "geese"),
        ("octopus", "octopuses"),
        ("sunglasses", "sunglasses"),
        ("ice skates", "ice skates"),
        ("lens", "lenses"),
        ("bow (weapon)", "bows (weapon)"),
        ("RBC", "RBCs"),
        ("SUV", "SUVs"),
        ("LED", "LEDs"),
        ("PERSON", "PEOPLE"),
        ("gas", "gases"),
        ("rhinoceros", "rhinoceroses"),
        ("猫", "猫"),
        ("class 1", "class 1"),
        *((many, many) for many in ("people", "children", "women", "men", "Women", "nuclei", "larvae", "cattle")),
        *((many, many) for many in ("cells", "zebras", "photos", "pajamas", "taxis", "PLATELETS", "traffic lights")),
    ],
)
def test_plurals(name: str, many: str) -> None:
    assert plural(name) == many


def test_classes_of_one_plural_are_counted_together(tmp_path: Path) -> None:
    found = (
        boxes(1, 2) + boxes(5, 1, first=10, bbox=[40, 9, 9, 9]) + boxes(2, 1, first=20) + boxes(6, 2, image=2, first=30)
    )
    file = write(tmp_path, [*found, *boxes(3, 1, image=3, first=40), *boxes(6, 1, image=3, first=50, iscrowd=1)], 3)
    data = json.loads(file.read_text())
    data["categories"] += [{"id": 5, "name": "People"}, {"id": 6, "name": "teddy bears"}]
    file.write_text(json.dumps(data))
    made = read(file, CountRules(every_class=True))
    asked = [(r.source[-1], r.example.question[9:-11], r.example.answer) for r in made.records[2::3]]
    assert asked == [
        ("1", "people", "3"),
        ("1", "teddy bears", "1"),
        ("1", "knives", "0"),
        ("2", "people", "0"),
        ("2", "teddy bears", "2"),
        ("2", "knives", "0"),
        ("3", "people", "0"),
        ("3", "knives", "1"),
    ]
    assert made.skipped[:2] == (
        "instances.json: the classes person and People are counted together: their plural is people",
        "instances.json: the classes teddy_bear and teddy bears are counted together: their plural is teddy bears",
    )


def test_a_class_that_is_nowhere_is_not_asked_about(tmp_path: Path) -> None:
    made = read(write(tmp_path, boxes(1, 2) + boxes(2, 1, image=2, first=9), images=2), CountRules(every_class=True))
    assert {r.example.question for r in made.records if r.example.answer == "0"} == {
        f"How many {things} are there?{more}" for things in ("people", "teddy bears") for more in ("", CHAIN)
    }
    assert made.skipped == ("instances.json: no image has a box of knife, bus, so nothing is asked about that",)


def test_the_most_frequent_class_is_counted_in_every_way(tmp_path: Path) -> None:
    file = write(tmp_path, boxes(1, 2) + boxes(2, 3, first=10) + boxes(3, 1, first=20))
    atomic, chain, direct = (record.example for record in read(file).records)
    assert atomic.question == "Draw the boxes of the teddy bears." and atomic.task == chains.ATOMIC_BOXES
    assert direct.question == "How many teddy bears are there?" and direct.target == (" 3.",)
    drawn, said = chain.target
    assert (chain.task, chain.answer, said) == (chains.CHAIN_COUNT, "3", " 3.")
    decoded = BoxTokenizer(100).decode(drawn.codes)
    np.testing.assert_allclose(decoded, [[0.05 * i + 0.005, 0.205, 0.05 * i + 0.105, 0.605] for i in range(3)])


def test_boxes_are_cut_at_the_edge(tmp_path: Path) -> None:
    found = boxes(1, 2)
    for annotation, box in zip(found, [[-10, -5, 30, 30], [90, 40, 30, 30]], strict=True):
        annotation["bbox"] = box
    made = read(write(tmp_path, found))
    assert made.records[1].example.answer == "2" and not made.skipped
    assert made.records[1].example.target[0].codes == (0, 0, 20, 50, 90, 80, 99, 99)


def test_a_class_with_a_box_of_no_area_is_not_counted(tmp_path: Path) -> None:
    people, bears = boxes(1, 4), boxes(2, 1, first=9)
    people[2]["bbox"], people[3]["bbox"] = [20, 20, 0, 9], [120, 3, 5, 5]
    made = read(write(tmp_path, people + bears))
    assert made.records and all("teddy bears" in record.example.question for record in made.records)
    assert len(made.skipped) == 2
    assert "image 1, annotation 3: box [20, 20, 0, 9] has no area inside the image of 100 x 50" in made.skipped[0]
    assert "so its class is not counted" in made.skipped[0]


def test_lvis_s_files_are_not_read_as_coco_s(tmp_path: Path) -> None:
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    with pytest.raises(ValueError, match=r"instances\.json is in LVIS's layout .* set counts_layout lvis, not coco"):
        read(write(tmp_path, boxes(1, 2), **lists), ALWAYS)


@pytest.mark.parametrize("size", [{"width": 50, "height": 100}, {"width": 200}])
def test_annotations_for_images_of_another_size_are_refused(tmp_path: Path, size: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"image 1: .*0001\.jpg has 100 x 50 pixels and the annotations are for"):
        read(write(tmp_path, boxes(1, 2), **size))


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, boxes(1, 2))
    plain = read(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read(file) == plain


def test_crowds_and_classes_too_many_to_count_are_left_out(tmp_path: Path) -> None:
    found = boxes(1, 5) + boxes(1, 1, first=9, iscrowd=1) + boxes(2, 16, first=20) + boxes(4, 2, first=50)
    records = read(write(tmp_path, found)).records
    assert {record.example.answer for record in records if record.example.answer} == {"2"}
    assert "buses" in records[0].example.question
    alone = read(write(tmp_path, boxes(2, 16)))
    assert not alone.records and "16 teddy bears, and at most 15 are asked for; raise counts_most" in alone.skipped[0]


def test_a_box_that_is_there_twice_is_counted_once(tmp_path: Path) -> None:
    """If it is of one class, and the same to the last digit."""
    again = [{**boxes(1, 3)[1], "id": 9}, {**boxes(1, 1)[0], "id": 10, "category_id": 2}]
    made = read(write(tmp_path, boxes(1, 3) + again), CountRules(every_class=True))
    counts = {r.example.question: r.example.answer for r in made.records if r.example.task == chains.DIRECT_COUNT}
    assert counts == {"How many people are there?": "3", "How many teddy bears are there?": "1"}
    assert made.records[0].example.target[0].codes == read(write(tmp_path, boxes(1, 3))).records[0].counted.codes
    assert made.skipped[1:] == (
        "instances.json, image 1: 1 of the boxes of people are there before, with the same sides; each box is counted "
        "once",
    )


@pytest.mark.parametrize("layout", ["coco", "lvis"])
def test_a_class_with_a_region_to_ignore_is_not_counted(tmp_path: Path, layout: str) -> None:
    found = boxes(1, 5) + boxes(1, 1, first=9, ignore=1) + boxes(2, 2, first=20, ignore=0, iscrowd=0)
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []} if layout == "lvis" else {}
    made = read(write(tmp_path, found, **lists), CountRules(layout, zero_share=0.0, every_class=True))
    assert {r.example.answer for r in made.records if "teddy bears" in r.example.question} == {"", "2"}
    assert not any("people" in record.example.question for record in made.records)


def test_fifteen_is_asked_and_zero_of_what_is_not_there(tmp_path: Path) -> None:
    found = boxes(2, 15) + boxes(1, 1, first=40) + boxes(4, 1, image=2, first=50)
    records = read(write(tmp_path, found, images=2), ALWAYS).records[:6]
    assert [record.example.answer for record in records] == ["", "15", "15", "", "0", "0"]
    none = records[4].example
    assert none.target[0].codes == () and none.target[1] == " 0."
    assert "buses" in none.question


def test_lvis_says_what_is_absent_and_what_is_not_counted(tmp_path: Path) -> None:
    lists = {"neg_category_ids": [4], "not_exhaustive_category_ids": [2]}
    file = write(tmp_path, boxes(1, 2) + boxes(2, 3, first=10) + boxes(4, 1, image=5, first=20), images=5, **lists)
    made = read(file, CountRules("lvis", zero_share=1.0))
    questions = {(record.image.path.name, record.example.question) for record in made.records}
    assert ("000000000001.jpg", "How many people are there?") in questions
    asked = {question for _, question in questions}
    assert not any("teddy" in question or "knives" in question for question in asked)
    zeros = [r.image.path.name for r in made.records if r.example.answer == "0"]
    assert len(set(zeros)) == 4 and all("buses" in r.example.question for r in made.records if r.example.answer == "0")


def test_lvis_names_images_by_their_address(tmp_path: Path) -> None:
    lists = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    file = write(tmp_path, boxes(1, 2), **lists)
    data = json.loads(file.read_text())
    data["images"][0]["coco_url"] = "http://example.org/train2017/" + data["images"][0].pop("file_name")
    file.write_text(json.dumps(data))
    assert read(file, CountRules("lvis")).records[0].image.path.is_file()


def test_the_share_of_zeros_and_their_classes_depend_on_the_seed_alone(tmp_path: Path) -> None:
    file = write(tmp_path, [a for i in range(1, 41) for a in boxes(1 + i % 4, 1, image=i, first=i)], images=40)
    quarter = CountRules(zero_share=0.25)
    made = read(file, quarter)
    assert made == read(file, quarter) != read(file, CountRules(zero_share=0.25, seed=1))
    assert 2 * 3 <= len(made.records) - 120 <= 3 * 20


def test_bad_annotations_are_named(tmp_path: Path) -> None:
    def broken(said: str, rules: CountRules = NEVER, **changes: Any) -> None:
        file = write(tmp_path, boxes(1, 2))
        data = json.loads(file.read_text())
        for place, value in changes.items():
            name, key = place.split("__")
            data[name][0][key] = value
        file.write_text(json.dumps(data))
        with pytest.raises(ValueError, match=said):
            read(file, rules)

    broken(r"annotations\[1\]: id 2 is there twice; give each", annotations__id=2)
    broken(r"annotations\[0\] \(id 1\): image_id 7 is not in the file", annotations__image_id=7)
    broken(r"annotations\[0\] \(id 1\): category_id 9 is not in the file", annotations__category_id=9)
    broken(r"annotation 1: bbox must be four numbers .* got \[1, 2\]", annotations__bbox=[1, 2])
    broken(r"images\[0\]: id must be an integer from 0, got 'a'", images__id="a")
    broken(r"image 1: image .*gone\.jpg does not exist; put it there", images__file_name="gone.jpg")
    broken("lacks neg_category_ids, not_exhaustive.*COCO's layout, not LVIS's", CountRules("lvis"))
    file = write(tmp_path, boxes(1, 2) + boxes(1, 1, image=2, first=9), images=2)
    (tmp_path / "images" / f"{2:012d}.jpg").unlink()
    made = read_counts(file, tmp_path / "images", 100, NEVER, skip_bad=True)
    assert {record.source for record in made.records} == {"instances.json, image 1"}
    assert len(made.skipped) == 1 and made.skipped[0].startswith("instances.json, image 2: image ")
    file = write(tmp_path, [])
    file.write_text(file.read_text()[:40])
    with pytest.raises(ValueError, match=r"instances\.json is not complete JSON"):
        read(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="must hold the lists images, annotations, categories"):
        read(file)
    with pytest.raises(ValueError, match="known: coco, lvis"):
        CountRules("voc")


def test_bad_entries_leave_out_what_they_belong_to_and_no_more(tmp_path: Path) -> None:
    found = [a for image in range(1, 6) for a in boxes(1, 2, image=image, first=10 * image)]
    file = write(tmp_path, found, images=5)
    data = json.loads(file.read_text())
    data["annotations"] += [{"id": 7, "image_id": 99, "category_id": 1}, {"id": 8, "image_id": 99, "category_id": 1}]
    data["annotations"] += [{"id": 9, "image_id": 2, "category_id": 99}, {**found[-1], "image_id": 3}, None]
    data["images"] += [{"id": 4, "file_name": "b.jpg"}, {"file_name": "c.jpg"}]
    del data["images"][0]["width"]
    data["images"][4]["height"] = 0
    file.write_text(json.dumps(data))
    made = read_counts(file, tmp_path / "images", 100, NEVER, skip_bad=True)
    assert {record.source[-1] for record in made.records} == {"1", "5"}
    for said, part in zip(
        made.skipped,
        (
            "images[5]: id 4 is there twice",
            "images[6] lacks id",
            "annotations[10] (id 7): image_id 99 is not in the file; correct or remove the entry",
            "annotations[12] (id 9): category_id 99 is not in the file; correct or remove the entry; image 2 is left",
            "annotations[13]: id 51 is there twice; give each a unique id; image 3 is left out",
            "annotations[14] lacks id, image_id, category_id",
        ),
        strict=True,
    ):
        assert f"instances.json, {part}" in said
    data["images"] = data["images"][-1:]
    file.write_text(json.dumps(data))
    with pytest.raises(
        ValueError, match=r"no image of .*instances\.json can be used; the first: .*images\[0\] lacks id"
    ):
        read_counts(file, tmp_path / "images", 100, NEVER, skip_bad=True)


def test_an_image_without_its_folder_is_found_only_where_its_name_is_alone(tmp_path: Path) -> None:
    file = write(tmp_path, [a for image in (1, 2, 3) for a in boxes(1, image, image=image, first=10 * image)], images=3)
    data = json.loads(file.read_text())
    for entry, name in zip(
        data["images"], ("a/000000000001.jpg", "b/000000000001.jpg", "c/000000000003.jpg"), strict=True
    ):
        entry["file_name"] = name
    file.write_text(json.dumps(data))
    made = read_counts(file, tmp_path / "images", 100, NEVER, skip_bad=True)
    assert {record.source[-1] for record in made.records} == {"3"}
    assert ["000000000001.jpg does not exist" in said for said in made.skipped] == [True, True]
    data["images"][0]["file_name"] = data["images"][1]["file_name"] = "000000000001.jpg"
    file.write_text(json.dumps(data))
    made = read_counts(file, tmp_path / "images", 100, NEVER, skip_bad=True)
    (said,) = made.skipped
    assert (
        said.startswith("instances.json, image 2: ")
        and "000000000001.jpg has labels in instances.json, image 1 too" in said
    )


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_boxes_of_stored_pixels_are_turned_upright(tmp_path: Path, layout: str, orientation: int) -> None:
    stored = np.zeros((60, 100, 3), np.uint8)
    stored[10:30, 20:60] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = np.asarray(ImageFile(tmp_path / "a.png").load())[..., 0]
    if layout == "coco":
        entry = {"id": 1, "file_name": "a.png", "width": 100, "height": 60}
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 10, 40, 20]}
        text = json.dumps({"images": [entry], "annotations": [annotation], "categories": CATEGORIES})
        (tmp_path / "a.json").write_text(text)
        made = read_counts(tmp_path / "a.json", tmp_path, 1000, NEVER)
    else:
        size, box = (
            "<width>100</width><height>60</height>",
            "<xmin>21</xmin><ymin>11</ymin><xmax>60</xmax><ymax>30</ymax>",
        )
        item = f"<object><name>cup</name><bndbox>{box}</bndbox></object>"
        (tmp_path / "a.xml").write_text(f"<annotation><size>{size}</size>{item}</annotation>")
        made = read_voc(tmp_path / "a.xml", tmp_path, 1000, NEVER)
    ys, xs = np.nonzero(upright)
    height, width = upright.shape
    expected = [xs.min() / width, ys.min() / height, (xs.max() + 1) / width, (ys.max() + 1) / height]
    np.testing.assert_allclose(
        BoxTokenizer(1000).decode(made.records[0].example.target[0].codes), [expected], atol=1e-3
    )


def test_records_survive_their_file(tmp_path: Path) -> None:
    made = read(write(tmp_path, boxes(1, 2) + boxes(2, 1, image=2, first=9), images=2), ALWAYS)
    made.write(tmp_path / "made.jsonl")
    assert RecordSet.read(tmp_path / "made.jsonl") == made
    odd = replace(made.records[0], source="one\u2028two\x85three", marks=((0.1, 0.2),))
    RecordSet((odd, *made.records), ("left\u2028out",)).write(tmp_path / "odd.jsonl")
    (tmp_path / "odd.jsonl").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "odd.jsonl").read_bytes())
    assert RecordSet.read(tmp_path / "odd.jsonl") == RecordSet((odd, *made.records), ("left\u2028out",))
    text = (tmp_path / "made.jsonl").read_text()
    listed = text.replace('"answer": "2"', '"answer": ["2"]')
    (tmp_path / "listed.jsonl").write_text(listed)
    with pytest.raises(ValueError, match=r"listed\.jsonl, line 2 .*answer must be text, got \['2'\]"):
        RecordSet.read(tmp_path / "listed.jsonl")
    (tmp_path / "made.jsonl").write_text(text[:-30])
    with pytest.raises(ValueError, match=r"made\.jsonl, line 12 is not complete JSON .* it is not a record"):
        RecordSet.read(tmp_path / "made.jsonl")
