"""Your own questions: tables of every kind of spelling, and boxes of every format."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessor, Qwen2VLImageProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from perception import chains
from perception.datasets.boxes import FORMATS, resize_rule
from perception.datasets.images import ImageFile
from perception.datasets.own import read_questions
from perception.datasets.records import RecordSet
from perception.datasets.tables import read_table
from perception.tokenizers.boxes import BoxTokenizer

CUPS = {"image": "a.png", "question": "How many cups are there?", "answer": 1, "boxes": [[20, 10, 60, 40]]}
TABLE = [
    ["image", "question", "answer", "boxes", "things"],
    ["a.png", CUPS["question"], "1", "[[20, 10, 60, 40]]", "cups"],
]


def jsonl(folder: Path, *rows: dict[str, Any], size: tuple[int, int] = (100, 50)) -> Path:
    Image.new("RGB", size).save(folder / "a.png")
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def examples(made: RecordSet) -> list[tuple[str, str]]:
    return [(record.example.task, record.example.answer) for record in made.records]


def boxes_of(made: RecordSet) -> np.ndarray:
    return BoxTokenizer(100).decode(made.records[1].example.target[0].codes)


@pytest.mark.parametrize(
    ("separator", "mark", "first"),
    [(",", "", ""), (";", "\ufeff", ""), ("\t", "", ""), (";", "", "sep=;\r\n"), ("|", "", "")],
)
def test_tables_of_any_separator_are_read(tmp_path: Path, separator: str, mark: str, first: str) -> None:
    jsonl(tmp_path, CUPS)
    quote = '"' if separator == "," else ""
    lines = [separator.join(f"{quote}{cell}{quote}" if "[" in cell else cell for cell in row) for row in TABLE]
    blank = separator * (len(TABLE[0]) - 1)
    file = tmp_path / "questions.csv"
    file.write_bytes((mark + first + "\r\n".join([*lines, blank]) + "\r\n").encode())
    made = read_questions(file, 100)
    assert examples(made) == [(chains.DIRECT_COUNT, "1"), (chains.CHAIN_COUNT, "1"), (chains.ATOMIC_BOXES, "")]
    assert made.records[0].source == f"questions.csv, line {3 if first else 2}" and not made.skipped


def test_json_is_lines_split_at_line_feeds_alone_or_a_list(tmp_path: Path) -> None:
    odd = {**CUPS, "question": "How many cups\u2028are\x85there?"}
    file = jsonl(tmp_path, odd, CUPS)
    lines = read_questions(file, 100)
    assert [r.example.question for r in lines.records[::2]] == [odd["question"], CUPS["question"]]
    marked = tmp_path / "marked.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert examples(read_questions(marked, 100)) == examples(lines)
    (tmp_path / "list.json").write_text(json.dumps([odd, CUPS], indent=1))
    assert examples(read_questions(tmp_path / "list.json", 100)) == examples(lines)
    file.write_bytes(json.dumps(CUPS).encode("utf-16"))
    with pytest.raises(ValueError, match=r"questions\.jsonl is not text in UTF-8 .*save it again as UTF-8"):
        read_questions(file, 100)


def test_what_pandas_writes_for_a_missing_value_is_missing(tmp_path: Path) -> None:
    nan = float("nan")
    plain = {**CUPS, "question": "What is there?", "answer": "a cup", "boxes": nan, "things": nan, "id": nan}
    made = read_questions(jsonl(tmp_path, {**CUPS, "things": nan, "id": nan}, plain), 100)
    assert examples(made) == [(chains.DIRECT_COUNT, "1"), (chains.CHAIN_COUNT, "1"), (chains.DIRECT_OTHER, "a cup")]
    with pytest.raises(ValueError, match=r"line 1 lacks answer; correct or remove the row"):
        read_questions(jsonl(tmp_path, {**CUPS, "answer": nan}), 100)


@pytest.mark.parametrize(
    ("answer", "said"),
    [("red", " red."), ("red.", " red."), ("Stop!", " Stop!"), ("红色。", " 红色。"), ("Who?", " Who?")],
)
def test_an_answer_ends_once(tmp_path: Path, answer: str, said: str) -> None:
    made = read_questions(jsonl(tmp_path, {"image": "a.png", "question": "What is said?", "answer": answer}), 100)
    assert made.records[0].example.target == (said,)


@pytest.mark.parametrize("answer", ["2", 2, 2.0, "2.0", "2."])
def test_a_spreadsheet_s_two_is_a_count(tmp_path: Path, answer: object) -> None:
    row = {**CUPS, "answer": answer, "boxes": [[0, 0, 5, 5], [9, 9, 20, 20]]}
    assert examples(read_questions(jsonl(tmp_path, row), 100)) == [
        (chains.DIRECT_COUNT, "2"),
        (chains.CHAIN_COUNT, "2"),
    ]
    metres = {"image": "a.png", "question": "How long is it in metres?", "answer": "2.0"}
    assert read_questions(jsonl(tmp_path, metres), 100).records[0].example.answer == "2.0"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": ["1"]}, r"answer must be text or a number, got \['1'\]"),
        ({"answer": {"value": 1}}, "answer must be text or a number"),
        ({"answer": True}, "answer must be text or a number, got True"),
        ({"question": ["How many?"]}, "question must be text"),
        ({"image": ["a.png", "b.png"]}, "2 images, .*a question is about one image"),
        ({"image": "a.png;b.png"}, "several images, .*a question is about one image"),
        ({"image": '["a.png", "b.png"]'}, "several images, .*a question is about one image"),
    ],
)
def test_what_is_no_single_text_is_refused(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"questions.jsonl, line 1: {said}"):
        read_questions(jsonl(tmp_path, {**CUPS, **row}), 100)


@pytest.mark.parametrize("name", ["[2024] Käse.png", "b.v2, c.png"])
def test_a_file_of_that_name_is_no_list_of_images(tmp_path: Path, name: str) -> None:
    file = jsonl(tmp_path, {**CUPS, "image": name})
    with pytest.raises(ValueError, match="several images"):
        read_questions(file, 100)
    (tmp_path / "a.png").rename(tmp_path / name)
    assert read_questions(file, 100).records[0].image == ImageFile(tmp_path / name)


def test_images_with_one_name_is_that_image(tmp_path: Path) -> None:
    row = {name: value for name, value in CUPS.items() if name != "image"}
    with pytest.raises(ValueError, match="2 images"):
        read_questions(jsonl(tmp_path, {**row, "images": ["a.png", "a.png"]}), 100)
    assert read_questions(jsonl(tmp_path, {**row, "images": ["a.png"]}), 100).records[0].image.path.name == "a.png"


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("xyxy", [20, 10, 60, 40]),
        ("xywh", [20, 10, 40, 30]),
        ("xyxy-1", [0.2, 0.2, 0.6, 0.8]),
        ("cxcywh-1", [0.4, 0.5, 0.4, 0.6]),
        ("xyxy-1000", [200, 200, 600, 800]),
        ("cxcywh", [40, 25, 40, 30]),
        ("xywh-1", [0.2, 0.2, 0.4, 0.6]),
        ("yxyx-1000", [200, 200, 800, 600]),
        ("yxyx-1024", [204.8, 204.8, 819.2, 614.4]),
    ],
)
def test_boxes_of_every_declared_format_are_the_same_boxes(tmp_path: Path, name: str, box: list[float]) -> None:
    file = jsonl(tmp_path, {**CUPS, "boxes": [box]})
    np.testing.assert_allclose(boxes_of(read_questions(file, 100, name)), [[0.2, 0.2, 0.6, 0.8]], atol=0.0051)
    assert name in FORMATS
    with pytest.raises(ValueError, match="unknown boxes_format 'yxxy'; known: xyxy, .* with a unit -1, -1000, -1024"):
        read_questions(file, 100, "yxxy")


@pytest.mark.parametrize(
    ("name", "box", "corners"),
    [
        ("cxcywh-1", [0.0312, 0.5, 0.0625, 0.1], [0, 0.45, 0.06245, 0.55]),
        ("xyxy", [60, 10, 101, 40], [0.6, 0.2, 1, 0.8]),
        (None, [60, 10, 100.5, 50.2], [0.6, 0.2, 1, 1]),
    ],
)
def test_boxes_that_rounding_puts_outside_are_cut(
    tmp_path: Path, name: str | None, box: list[float], corners: list[float]
) -> None:
    made = read_questions(jsonl(tmp_path, {**CUPS, "boxes": [box]}), 100, name)
    np.testing.assert_allclose(boxes_of(made), [corners], atol=0.0051)


def test_resized_pixels_are_those_of_the_processor_s_own_rule(tmp_path: Path) -> None:
    rule = resize_rule(
        SimpleNamespace(image_processor=Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 9))
    )
    assert rule is not None and rule(50, 100) == smart_resize(50, 100, 28, 56 * 56, 28 * 28 * 9) == (56, 112)
    file = jsonl(tmp_path, {**CUPS, "boxes": [[0.2 * 112, 0.2 * 56, 0.6 * 112, 0.8 * 56]]})
    made = read_questions(file, 100, "xyxy-resized", resize=rule)
    np.testing.assert_allclose(boxes_of(made), [[0.2, 0.2, 0.6, 0.8]], atol=0.0051)
    assert resize_rule(SimpleNamespace(image_processor=CLIPImageProcessor())) is None
    with pytest.raises(ValueError, match="boxes_format xyxy-resized needs the processor of a model that resizes"):
        read_questions(file, 100, "xyxy-resized")


def test_rows_that_cannot_be_used_are_named_and_left_out(tmp_path: Path) -> None:
    file = jsonl(tmp_path, CUPS, {**CUPS, "image": "gone.png"}, {**CUPS, "boxes": [[20, 10, 600, 40]]}, CUPS)
    made = read_questions(file, 100, skip_bad=True)
    assert [record.source[-6:] for record in made.records] == ["line 1"] * 2 + ["line 4"] * 2
    missing, outside = made.skipped
    assert missing.startswith("questions.jsonl, line 2: image ") and "gone.png does not exist" in missing
    assert outside.startswith("questions.jsonl, line 3: box [20.0, 10.0, 600.0, 40.0] is empty or not inside the image")
    with pytest.raises(ValueError, match=r"line 2: image .*gone\.png does not exist"):
        read_questions(file, 100)
    with pytest.raises(
        ValueError, match=r"no row of .*questions\.jsonl can be used; the first: questions\.jsonl, line 1: "
    ):
        read_questions(jsonl(tmp_path, {**CUPS, "answer": 7}), 100, skip_bad=True)
    with pytest.raises(ValueError, match="unknown column messages; .*give a table of messages as data.dataset"):
        read_questions(jsonl(tmp_path, {"messages": [], "images": []}), 100, skip_bad=True)


def test_lines_that_are_no_json_objects_are_named_and_left_out(tmp_path: Path) -> None:
    file = jsonl(tmp_path, CUPS)
    good = file.read_text().rstrip("\n")
    file.write_text(f"{good}\n{good[:-9]}\n[1, 2]\n{good}\n")
    made = read_questions(file, 100, skip_bad=True)
    assert [record.source[-6:] for record in made.records] == ["line 1"] * 2 + ["line 4"] * 2
    cut, no_object = made.skipped
    assert re.search(r"questions\.jsonl, line 2 is not complete JSON \(.*\); write one object per line$", cut)
    assert no_object == "questions.jsonl, line 3 must be a JSON object, got list; write one object per line"
    table = read_table(str(file), 100, tmp_path / "images", skip_bad=True)
    assert (table.records, table.skipped) == (made.records, made.skipped)
    with pytest.raises(ValueError, match="line 2 is not complete JSON"):
        read_questions(file, 100)
    file.write_text(f"[{good}")
    with pytest.raises(ValueError, match=r"questions\.jsonl is not complete JSON"):
        read_questions(file, 100, skip_bad=True)


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([0.2, 0.2, 0.6, 0.8], r"not in pixels but in \[0, 1\] of the image, .*set boxes_format xyxy-1"),
        ([0.4, 0.5, 0.4, 0.6], "set boxes_format xyxy-1, or cxcywh-1"),
        ([0, 0, 1, 1], "set boxes_format xyxy-1"),
        ([0.5, 0.5, 0.9, 1.02], "set boxes_format xyxy-1"),
        ([60, 20, 30, 25], "is empty or not inside .*set boxes_format if it is xywh"),
        ([200, 200, 600, 800], "is empty or not inside .*set boxes_format if it is xyxy-1000"),
    ],
)
def test_boxes_of_another_format_are_never_taken_as_pixels(tmp_path: Path, box: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=f"line 1: box .*{said}"):
        read_questions(jsonl(tmp_path, {**CUPS, "boxes": [box]}), 100)


def test_thousandths_of_large_images_are_noticed(tmp_path: Path) -> None:
    file = jsonl(tmp_path, {**CUPS, "boxes": [[100, 200, 900, 950]]}, size=(2000, 1500))
    with pytest.raises(ValueError, match="all boxes end within 1000, 950 at most, .*xyxy-1000"):
        read_questions(file, 100)
    np.testing.assert_allclose(boxes_of(read_questions(file, 100, "xyxy")), [[0.05, 0.133, 0.45, 0.633]], atol=0.006)


WRITTEN = {
    "xyxy": lambda x, y, w, h: (x * 640, y * 480, (x + w) * 640, (y + h) * 480),
    "xywh": lambda x, y, w, h: (x * 640, y * 480, w * 640, h * 480),
    "cxcywh": lambda x, y, w, h: ((x + w / 2) * 640, (y + h / 2) * 480, w * 640, h * 480),
    "yxyx": lambda x, y, w, h: (y * 480, x * 640, (y + h) * 480, (x + w) * 640),
    "xyxy-1000": lambda x, y, w, h: (x * 1000, y * 1000, (x + w) * 1000, (y + h) * 1000),
}
"""Corner and size in [0, 1] of an image of 640 x 480 -> the box in a format"""


def rows_in(name: str, count: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.1, 0.5, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (1 - sizes)
    found = [WRITTEN[name](*corner, *size) for corner, size in zip(corners, sizes, strict=True)]
    return [{**CUPS, "boxes": [[round(float(side)) for side in box]]} for box in found]


@pytest.mark.parametrize("name", [name for name in WRITTEN if name != "xyxy"])
def test_a_file_in_another_format_is_refused_whole_though_some_of_its_boxes_fit(tmp_path: Path, name: str) -> None:
    file = jsonl(tmp_path, *rows_in(name), size=(640, 480))
    own, table = partial(read_questions, file, 100), partial(read_table, str(file), 100, tmp_path / "images")
    for read in (own, table):
        with pytest.raises(ValueError, match=rf"of 40 boxes are not x1 .* fit as .*{name}\b.*; set boxes_format"):
            read(skip_bad=True)
        assert not read(boxes_format=name, skip_bad=True).skipped
        assert read(boxes_format="xyxy", skip_bad=True).skipped, "what is declared is not doubted"


def test_a_few_wrong_boxes_do_not_put_the_format_in_doubt(tmp_path: Path) -> None:
    rows = rows_in("xyxy")
    for row, box in zip(rows, [[20, 10, 900, 40], [60, 20, 30, 25]], strict=False):
        row["boxes"] = [box]
    made = read_questions(jsonl(tmp_path, *rows, size=(640, 480)), 100, skip_bad=True)
    assert len(made.skipped) == 2 and len(made.records) == 38 * 2


def test_points_in_another_unit_are_refused_whole(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "<bbox>"}]

    def read(points: list[list[float]]) -> RecordSet:
        given = ({"messages": turns, "images": ["a.png"], "objects": {"bbox": [point]}} for point in points)
        return read_table(str(jsonl(tmp_path, *given, size=(640, 480))), 100, tmp_path, skip_bad=True)

    assert len(read([[600, 400], [30, 20], [0, 0]]).records) == 3
    with pytest.raises(ValueError, match="2 of 4 boxes are not .* fit as .*xyxy-1000"):
        read([[600, 400], [30, 20], [990, 20], [20, 700]])
    with pytest.raises(ValueError, match=r"point \[0.5, 0.2\] is not in pixels but in \[0, 1\]"):
        read([[0.5, 0.2]])


def test_boxes_that_no_task_uses_are_reported(tmp_path: Path) -> None:
    made = read_questions(jsonl(tmp_path, {**CUPS, "question": "What is on the desk?", "answer": "a cup"}), 100)
    assert len(made.records) == 1
    assert made.skipped[0].startswith("questions.jsonl, line 1: the boxes are not used, since 'What is on the desk?'")
    alone = {name: value for name, value in CUPS.items() if name != "boxes"}
    made = read_questions(jsonl(tmp_path, {**alone, "things": "cups"}), 100)
    assert "things are named and there are no boxes" in made.skipped[0]


def test_a_row_with_a_comma_too_many_is_left_out(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    file = tmp_path / "questions.csv"
    file.write_text('image,question,answer\na.png,How many red, green cubes?,2\na.png,"How many red, green cubes?",2\n')
    made = read_questions(file, 100, skip_bad=True)
    assert [record.example.question for record in made.records] == ["How many red, green cubes?"]
    said = "questions.csv, line 2 has more values than columns; put text that holds the separator in quotes"
    assert made.skipped == (said,)
    with pytest.raises(ValueError, match=said):
        read_questions(file, 100)


def test_the_columns_are_checked_before_cells_too_long_to_be_read(tmp_path: Path) -> None:
    file = tmp_path / "BLINK.tsv"  # as VLMEvalKit publishes sets, with the images' bytes as text
    file.write_text("index\timage\tquestion\tA\tB\tanswer\n0\t" + "x" * 200_000 + "\tHow many?\t1\t2\tA\n")
    with pytest.raises(ValueError, match=r"BLINK.tsv, line 1: unknown column index, A, B; known: image, question"):
        read_questions(file, 100)


def test_an_image_as_text_is_refused_by_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: image is no file's name but 20000 characters, iVBOiVBO"):
        read_questions(jsonl(tmp_path, {**CUPS, "image": "iVBO" * 5000}), 100)
