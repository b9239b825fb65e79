"""Pascal VOC's and YOLO's labels as counting and drawing tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perception.datasets.detection import CountRules
from perception.datasets.records import RecordSet
from perception.datasets.voc import read_voc
from perception.datasets.yolo import read_yolo
from perception.tokenizers.boxes import BoxTokenizer

pytest.importorskip("inflect")
ALWAYS, NEVER = CountRules(zero_share=1.0), CountRules(zero_share=0.0)
BOX = (21, 11, 60, 40)
ROOT = Path(__file__).resolve().parents[3]
CELLS = next((p for p in (ROOT / "shared/bccd", ROOT.parent / "shared/bccd") if p.is_dir()), None)


def item(name: str, box: tuple[float, ...] = BOX, difficult: int = 0) -> str:
    sides = "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    return f"<object><name>{name}</name>{part}<difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


def items(name: str, count: int, box: tuple[float, ...] = BOX) -> str:
    """Objects of almost one place, since a box that is there twice is counted once."""
    x1, y1, x2, y2 = box
    return "".join(item(name, (x1, y1, round(x2 - 0.1 * n, 1), y2)) for n in range(count))


def voc(folder: Path, *images: str, filename: str = "{}.jpg") -> Path:
    (folder / "Annotations").mkdir(exist_ok=True)
    (folder / "JPEGImages").mkdir(exist_ok=True)
    for number, objects in enumerate(images):
        Image.new("RGB", (100, 50)).save(folder / "JPEGImages" / f"{number}.jpg")
        size = "<size><width>100</width><height>50</height></size>"
        text = f"<annotation><filename>{filename.format(number)}</filename>{size}{objects}</annotation>"
        (folder / "Annotations" / f"{number}.xml").write_text(text)
    return folder / "Annotations"


def asked(made: RecordSet) -> list[tuple[str, str]]:
    return [(r.example.question, r.example.answer) for r in made.records if r.example.task == "direct_count"]


def first_boxes(made: RecordSet) -> np.ndarray:
    return BoxTokenizer(100).decode(made.records[0].example.target[0].codes)


@pytest.mark.parametrize("filename", ["{}.jpg", "{}", "elsewhere/{}.jpg", ""])
def test_voc_s_corners_count_from_one_and_its_images_are_found(tmp_path: Path, filename: str) -> None:
    made = read_voc(
        voc(tmp_path, item("knife") + items("cup", 2, (1, 1, 100, 50)), filename=filename),
        tmp_path / "JPEGImages",
        100,
        NEVER,
    )
    assert asked(made) == [("How many cups are there?", "2")]
    np.testing.assert_allclose(first_boxes(made), [[0, 0, 1, 1]] * 2, atol=0.0051)
    made = read_voc(voc(tmp_path, item("knife"), filename=filename), tmp_path / "JPEGImages", 100, NEVER)
    assert made.records[0].example.question == "Draw the boxes of the knives."
    np.testing.assert_allclose(first_boxes(made), [[0.2, 0.2, 0.6, 0.8]], atol=0.0051)


def test_difficult_objects_are_not_counted_and_other_images_classes_are_absent(tmp_path: Path) -> None:
    folder = voc(tmp_path, items("cup", 2) + item("cup", difficult=1) + item("dog"), item("cup", (200, 1, 300, 9)))
    made = read_voc(folder, tmp_path / "JPEGImages", 100, ALWAYS)
    assert asked(made) == [("How many dogs are there?", "1"), ("How many dogs are there?", "0")]
    (outside,) = made.skipped
    assert outside.startswith("1.xml, object 0 (cup): box 200 1 300 9 has no area inside the image of 100 x 50 pixels")
    made = read_voc(folder, tmp_path / "JPEGImages", 100, NEVER)
    assert made.skipped[1] == "1.xml: no fully annotated class has 1 to 15 objects"


@pytest.mark.parametrize(
    ("said", "count"), [("0", 2), ("False", 2), ("Unspecified", 2), ("", 2), ("1", 0), ("True", 0)]
)
def test_objects_are_difficult_where_a_file_says_so(tmp_path: Path, said: str, count: int) -> None:
    marked = items("cup", 2).replace("<difficult>0<", f"<difficult>{said}<", 1)
    made = read_voc(voc(tmp_path, marked), tmp_path / "JPEGImages", 100, NEVER)
    assert asked(made) == ([("How many cups are there?", "2")] if count else [])


def test_every_class_of_an_image_is_asked_about_where_that_is_wanted(tmp_path: Path) -> None:
    dense = "".join(item("RBC", (1 + n, 1, 20 + n, 20)) for n in range(40))
    folder = voc(tmp_path, dense + item("WBC") + item("cell", difficult=1), items("WBC", 2))
    every = CountRules(max_count=40, every_class=True)
    made = read_voc(folder, tmp_path / "JPEGImages", 100, every)
    assert asked(made) == [
        ("How many RBCs are there?", "40"),
        ("How many WBCs are there?", "1"),
        ("How many RBCs are there?", "0"),
        ("How many WBCs are there?", "2"),
        ("How many cells are there?", "0"),
    ]
    chain = next(r.example for r in made.records if r.example.task == "chain_count")
    assert chain.target[1] == " 40." and len(chain.target[0].codes) == 160
    assert chain.target[0].codes == tuple(BoxTokenizer(100).encode(BoxTokenizer(100).decode(chain.target[0].codes)))
    made = read_voc(folder, tmp_path / "JPEGImages", 100, CountRules(max_count=39, every_class=True))
    assert made.skipped == ("0.xml: 40 RBCs, and at most 39 are asked for; raise counts_most",)
    assert asked(made)[0] == ("How many WBCs are there?", "1")


def test_the_list_of_a_split_names_its_files(tmp_path: Path) -> None:
    folder, images = voc(tmp_path, item("cup"), items("cup", 2), item("dog")), tmp_path / "JPEGImages"
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("1  1\n0 -1\n\n")
    made = read_voc(lists / "train.txt", images, 100, NEVER)
    assert asked(made) == [("How many cups are there?", "2"), ("How many cups are there?", "1")]
    (lists / "test.txt").write_text("7\n")
    with pytest.raises(ValueError, match=r"7\.xml cannot be read .*give a file that exists"):
        read_voc(lists / "test.txt", images, 100)
    (lists / "test.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"test\.txt names no images; write one name a line"):
        read_voc(lists / "test.txt", images, 100)
    folder.rename(tmp_path / "labels")
    with pytest.raises(ValueError, match=r"train\.txt: there is no folder Annotations beside ImageSets"):
        read_voc(lists / "train.txt", images, 100)


def test_names_of_a_split_may_have_spaces_and_endings(tmp_path: Path) -> None:
    folder, images = voc(tmp_path, *(items("cup", 1 + n) for n in range(4))), tmp_path / "JPEGImages"
    for number, name in enumerate(("my photo 1", "my photo", "a.b", "c")):
        (folder / f"{number}.xml").rename(folder / f"{name}.xml")
    (tmp_path / "ImageSets").mkdir()
    split = tmp_path / "ImageSets" / "train.txt"
    split.write_text("my photo 1\nmy photo  -1\n a.b.JPG\r\nc.jpg 1\n")
    assert [answer for _, answer in asked(read_voc(split, images, 100, NEVER))] == list("1234")


def test_an_image_of_two_files_is_left_out(tmp_path: Path) -> None:
    folder, images = voc(tmp_path, item("cup"), items("cup", 2)), tmp_path / "JPEGImages"
    (folder / "more").mkdir()
    (folder / "more" / "1.xml").write_bytes((folder / "0.xml").read_bytes())
    made = read_voc(folder, images, 100, NEVER, skip_bad=True)
    assert asked(made) == [("How many cups are there?", "2")]
    (said,) = made.skipped
    assert said.startswith("1.xml: ") and said.endswith("0.jpg has labels in 0.xml too; join them, or correct its name")
    with pytest.raises(ValueError, match="has labels in 0.xml too"):
        read_voc(folder, images, 100, NEVER)


@pytest.mark.skipif(CELLS is None, reason="no shared/bccd")
def test_published_photographs_of_blood_are_read_whole() -> None:
    assert CELLS is not None
    rules = CountRules(max_count=60, every_class=True)
    found = {}
    for part in ("train", "test"):
        made = read_voc(CELLS / "ImageSets" / "Main" / f"{part}.txt", CELLS / "JPEGImages", 100, rules)
        assert made.skipped == ()
        found[part] = asked(made)
    assert len(found["train"]) == 3 * 205 and len(found["test"]) == 3 * 72
    counts = {q: [int(a) for asked, a in found["test"] if asked == q] for q, _ in found["test"]}
    assert {q: (sum(values), max(values)) for q, values in counts.items()} == {
        "How many RBCs are there?": (805, 21),
        "How many WBCs are there?": (71, 2),
        "How many Platelets are there?": (69, 4),
    }


def test_bad_files_of_voc_are_named(tmp_path: Path) -> None:
    good, images = item("cup"), tmp_path / "JPEGImages"

    def refused(objects: str, said: str, **more: str) -> None:
        folder = voc(tmp_path, good, objects, **more)
        with pytest.raises(ValueError, match=said):
            read_voc(folder, images, 100)
        made = read_voc(folder, images, 100, NEVER, skip_bad=True)
        assert asked(made) == [("How many cups are there?", "1")] and len(made.skipped) == 1

    refused("<object><bndbox/></object>", "1.xml, object 0 has no name")
    refused("<object><name>cup</name></object>", r"object 0 \(cup\) lacks xmin, ymin, xmax, ymax in a bndbox")
    refused(good.replace("<xmin>21<", "<xmin><"), r"object 0 \(cup\) lacks xmin, ymin, xmax, ymax in a bndbox")
    refused(good.replace("21", "left"), r"1.xml, object 0 \(cup\): xmin must be a number, got 'left'")
    refused("<object>", r"1\.xml is not complete XML")
    voc(tmp_path, good, good)
    Image.new("RGB", (50, 100)).save(images / "1.jpg")
    with pytest.raises(ValueError, match="1.xml: .* has 50 x 100 pixels and the annotations are for 100 x 50"):
        read_voc(tmp_path / "Annotations", images, 100)
    (images / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"1.xml: image .*1\.jpg does not exist"):
        read_voc(tmp_path / "Annotations", images, 100)
    with pytest.raises(ValueError, match="holds no XML files; give VOC's folder Annotations"):
        read_voc(images, images, 100)


def yolo(
    folder: Path, *labels: str | None, yaml: str = "path: .\ntrain: images/train\nnames: {0: cup, 1: mouse}\n"
) -> Path:
    for name in ("images", "labels"):
        (folder / name / "train").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(labels):
        Image.new("RGB", (100, 50)).save(folder / "images" / "train" / f"{number}.jpg")
        if text is not None:
            (folder / "labels" / "train" / f"{number}.txt").write_text(text)
    (folder / "data.yaml").write_text(yaml)
    return folder / "data.yaml"


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ("1 0.4 0.5 0.4 0.6", ""),
        ("1 0.2 0.2 0.6 0.2 0.6 0.8 0.2 0.8", ""),
        ("1 0.4 0.5 0.4 0.6 0.3 0.3 2 0.4 0.4 1", "kpt_shape: [2, 3]\n"),
    ],
    ids=["box", "polygon", "pose"],
)  # fmt: skip
@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nnames: {0: cup, 1: mouse}\n",
        "path: ../datasets/gone\ntrain: [images/train]\nnames: [cup, mouse]\n",
        "train: ../images/train\nnc: 2\nnames: ['cup', 'mouse']\n",
        "train: list.txt\nnames: [cup, mouse]\n",
    ],
    ids=["ultralytics", "list", "roboflow", "text"],
)
def test_yolo_s_boxes_are_centres_and_its_images_are_found(tmp_path: Path, yaml: str, line: str, more: str) -> None:
    (tmp_path / "list.txt").write_text("./images/train/0.jpg\n./images/train/1.jpg\n")
    file = yolo(tmp_path / "set" if "../images" not in yaml else tmp_path, f"{line}\n", None, yaml=yaml + more)
    if "list.txt" in yaml:
        (tmp_path / "list.txt").rename(file.parent / "list.txt")
    made = read_yolo(file, None, 100, ALWAYS)
    assert asked(made)[0] == ("How many mice are there?", "1") and {answer for _, answer in asked(made)[1:]} == {"0"}
    np.testing.assert_allclose(first_boxes(made), [[0.2, 0.2, 0.6, 0.8]], atol=0.0051)
    assert made.records[-1].image is not None and made.records[-1].image.path.name == "1.jpg"


def test_yolo_s_images_without_labels_show_none_of_the_classes_that_are_somewhere(tmp_path: Path) -> None:
    names = "train: images/train\nnames: [dog, cup, cat]\n"
    made = read_yolo(yolo(tmp_path, "1 0.5 0.5 0.2 0.2\n", None, "", yaml=names), None, 100, ALWAYS)
    assert asked(made) == [("How many cups are there?", answer) for answer in "100"]
    assert made.skipped == ("data.yaml: no image has a box of dog, cat, so nothing is asked about that",)


def test_images_that_a_list_of_yolo_names_twice_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/train/0.jpg\n./images/train/0.jpg\r\nimages/train/1.jpg\n")
    file = yolo(tmp_path, *["0 0.5 0.5 0.2 0.2\n"] * 2, yaml="train: [list.txt, images/train]\nnames: [cup]\n")
    assert asked(read_yolo(file, None, 100, NEVER)) == [("How many cups are there?", "1")] * 2


def test_yolo_s_held_out_images_are_those_of_val(tmp_path: Path) -> None:
    names = "path: .\ntrain: images/train\nval: images/val\nnames: [cup]\n"
    file = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n", yaml=names)
    for part in ("images", "labels"):
        (tmp_path / part / "train").rename(tmp_path / part / "val")
    yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2000\n0 0.5 0.5 0.2 0.3\n", yaml=names)
    assert asked(read_yolo(file, None, 100, NEVER)) == [("How many cups are there?", "2")]
    assert asked(read_yolo(file, None, 100, NEVER, split="val")) == [("How many cups are there?", "1")]
    with pytest.raises(ValueError, match="must name its images as test and its classes as names"):
        read_yolo(file, None, 100, split="test")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("7 0.4 0.5 0.4 0.6", r"class 7 has no name, and data\.yaml names 2 classes, 0 to 1"),
        ("0 40 25 40 30", r"is not in \[0, 1\]; YOLO's boxes are fractions"),
        ("0 0.4 0.5", "expected a class number and x y width height"),
        ("cup 0.4 0.5 0.4 0.6", "expected a class number"),
    ],
)
def test_bad_lines_of_yolo_are_named(tmp_path: Path, line: str, said: str) -> None:
    file = yolo(tmp_path, "0 0.5 0.5 0.2 0.2\n", f"0 0.5 0.5 0.2 0.2\n{line}\n")
    with pytest.raises(ValueError, match=rf"^1\.txt, line 2: .*{said}"):
        read_yolo(file, None, 100)
    made = read_yolo(file, None, 100, NEVER, skip_bad=True)
    assert asked(made) == [("How many cups are there?", "1")] and made.skipped[0].startswith("1.txt, line 2: ")


def test_bad_files_of_yolo_are_named(tmp_path: Path) -> None:
    def refused(said: str, *labels: str | None, yaml: str) -> None:
        with pytest.raises(ValueError, match=said):
            read_yolo(yolo(tmp_path, *labels, yaml=yaml), None, 100)

    refused("must name its images as train and its classes as names", yaml="names: [cup]\n")
    refused("names must be a list, or give a name for each", yaml="train: images/train\nnames: {cup: 0}\n")
    for misread in ("[cup, no]", "{0: on, 1: off}", "[cup, ]".replace(", ", ", ~")):
        refused("put these names in quotes", yaml=f"train: images/train\nnames: {misread}\n")
    refused("train names .*gone, which is no folder of images", yaml="train: images/gone\nnames: [cup]\n")
    refused("there are no images beneath 'images/train'", yaml="train: images/train\nnames: [cup]\n")
    refused("none of the 1 images .* has labels", None, yaml="train: images/train\nnames: [cup]\n")
