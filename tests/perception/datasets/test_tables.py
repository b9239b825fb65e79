"""Conversations and other rows of tables: every spelling that people use, and every row that cannot be meant."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perception import chains
from perception.chains import IMAGE
from perception.datasets.detection import CountRules
from perception.datasets.records import RecordSet
from perception.datasets.tables import read_table
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.records import SourcesConfig, read_records

ASKED = {"role": "user", "content": "Where is the cup?"}
SAID = {"role": "assistant", "content": "On the desk."}
GPT = {"from": "gpt", "value": "On the desk."}
TEXT = {"type": "text", "text": "Where is the cup?"}


def table(folder: Path, *rows: dict[str, Any], size: tuple[int, int] = (100, 50)) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", size).save(folder / name)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(folder: Path, *rows: dict[str, Any], **settings: Any) -> RecordSet:
    return read_table(str(table(folder, *rows)), 100, folder / "images", **settings)


def dialogue(*texts: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return {"messages": turns, "images": ["a.png"], **more}


@pytest.mark.parametrize(
    "row",
    [
        dialogue("Where is the cup?", "On the desk."),
        dialogue("<image>\nWhere is the cup?", "On the desk."),
        dialogue([{"type": "image", "text": None}, TEXT], "On the desk."),
        dialogue([{"type": "text", "text": "Where is the cup?"}], [{"type": "text", "text": "On the desk."}]),
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, TEXT]}, SAID]},
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhere is the cup?"}, GPT]},
        {"image": "a.png", "question": "Where is the cup?", "answer": "On the desk", "source": "mine"},
        {"image": "a.png", "prompt": "Where is the cup?", "completion": "On the desk."},
        {"images": ["a.png"], "prompt": [ASKED], "completion": [SAID]},
        {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, TEXT]}], "completion": [SAID]},
    ],
    ids=["text", "tag", "parts", "texts", "inside", "llava", "columns", "prompt", "prompt turns", "prompt inside"],
)  # fmt: skip
def test_one_question_about_one_image_is_a_record_as_any_other(tmp_path: Path, row: dict[str, Any]) -> None:
    (record,) = read(tmp_path, row).records
    assert record.image is not None and record.image.path.name == "a.png" and record.images is None
    assert record.example.question == "Where is the cup?" and record.example.target == (" On the desk.",)
    assert record.example.task == chains.DIRECT_OTHER and record.source == "rows.jsonl, line 1"


def test_turns_images_and_a_system_turn_keep_their_places(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One <image> two <image> which?"}]
    turns += [{"role": "assistant", "content": "Two."}, {"role": "user", "content": "How many cups are there?"}]
    turns += [{"role": "assistant", "content": "There are 3."}]
    alone = {"messages": [ASKED, SAID]}
    made = read(tmp_path, {"messages": turns, "images": ["a.png", "b.png"]}, alone, dialogue("What?", "A", "Why?", "B"))
    many, text, several = made.records
    assert [image.path.name for image in many.all_images] == ["a.png", "b.png"] and many.system == "Be brief."
    assert many.example.question == f"One {IMAGE} two {IMAGE} which?"
    assert many.more[0].task == chains.DIRECT_COUNT and many.more[0].answer == "3"
    assert text.image is None and text.images == () and text.example.question == "Where is the cup?"
    assert several.images is None and [turn.question for turn in several.turns] == ["What?", "Why?"]
    made.write(tmp_path / "records.jsonl")
    assert RecordSet.read(tmp_path / "records.jsonl") == made


def test_a_prompt_and_its_completion_are_the_same_conversation_as_messages(tmp_path: Path) -> None:
    system, more = {"role": "system", "content": "Be brief."}, [{"role": "user", "content": "Why?"}, SAID]
    shown, images = {"role": "user", "content": "One <image> two <image> which?"}, ["a.png", "b.png"]
    split = {"prompt": [system, shown], "completion": [SAID, *more], "images": images}
    whole = {"messages": [system, shown, SAID, *more], "images": images}
    text = {"prompt": "Where is the cup?", "completion": "On the desk."}
    for row, same in ((split, whole), (text, {"messages": [ASKED, SAID]})):
        assert read(tmp_path, row).records == read(tmp_path, same).records
    both = {**whole, "prompt": "Other?", "completion": "Other."}
    assert read(tmp_path, both).records == read(tmp_path, whole).records, "messages come first"


def test_objects_are_drawn_where_the_texts_place_them(tmp_path: Path) -> None:
    objects = {"ref": ["dog", "cat"], "bbox": [[50, 10, 100, 40], [0, 0, 20, 25]]}
    named = dialogue("<image>What is there?", "A <ref-object><bbox> and a <ref-object><bbox>.", objects=objects)
    counted = dialogue("How many <ref-object>?", "<bbox>, <bbox> 2.", objects={**objects, "ref": ["animals"]})
    point = dialogue("Where?", "<bbox>", objects={"ref": [], "bbox": [[500, 200]], "image_id": [0]})
    (first, second) = read(tmp_path, named, counted).records
    dog, cat = (span for span in first.example.target if isinstance(span, Span))
    np.testing.assert_allclose(BoxTokenizer(100).decode(dog.codes), [[0.5, 0.2, 1, 0.8]], atol=0.0051)
    np.testing.assert_allclose(BoxTokenizer(100).decode(cat.codes), [[0, 0, 0.2, 0.5]], atol=0.0051)
    assert first.example.target[::2] == (" A dog", " and a cat", ".")
    assert second.example.question == "How many animals?" and second.example.task == chains.CHAIN_COUNT
    assert len(second.example.target[0].codes) == 8 and second.example.answer == "2"
    (there,) = read(tmp_path, point, boxes_format="xyxy-1000").records
    np.testing.assert_allclose(PointTokenizer(100).decode(there.example.target[0].codes), [[0.5, 0.2]], atol=0.0051)
    unit = dialogue("Where?", "<bbox>", objects={"bbox": [[0.5, 0.2, 1, 0.8]], "bbox_type": "norm1"})
    assert read(tmp_path, unit).records[0].example.target == (dog,)


def test_boxes_of_different_names_keep_the_order_of_the_text(tmp_path: Path) -> None:
    """One list would be sorted: the cup's box would come before the lamp's."""
    objects = {"ref": ["lamp", "cup"], "bbox": [[50, 10, 100, 40], [0, 0, 20, 25]]}
    said = "The <ref-object> and the <ref-object> are at <bbox> and <bbox>."
    alike = {**objects, "ref": ["cup", "cup"]}
    made = read(tmp_path, dialogue("Where?", said, objects=objects), dialogue("Where?", said, objects=alike))
    (_, lamp, between, cup, _), (_, both, _) = (record.example.target for record in made.records)
    assert between == " and " and both.codes == (*cup.codes, *lamp.codes)
    np.testing.assert_allclose(BoxTokenizer(100).decode(lamp.codes), [[0.5, 0.2, 1, 0.8]], atol=0.0051)
    asked = dialogue("Where are the <ref-object> and the <ref-object>?", "<bbox><bbox>", objects=objects)
    (record,) = read(tmp_path, asked).records
    assert record.example.target == (lamp, cup)


def test_objects_that_no_text_places_are_detection_labels(tmp_path: Path) -> None:
    pytest.importorskip("inflect")
    labels = {"ref": ["mouse", "cup", "mouse"], "bbox": [[0, 0, 20, 25], [5, 5, 9, 9], [50, 10, 100, 40]]}
    made = read(tmp_path, {"images": ["a.png"], "objects": labels}, dialogue("What?", "Mice.", objects=labels))
    asked = [
        "Draw the boxes of the mice.",
        "How many mice are there? Draw their boxes first.",
        "How many mice are there?",
    ]
    assert [record.example.question for record in made.records] == ["What?", *asked, *asked]
    assert made.records[3].example.answer == "2" and not made.skipped
    hub = {"image": "a.png", "objects": {"bbox": labels["bbox"], "category": labels["ref"]}}
    assert [r.example for r in read(tmp_path, hub).records] == [r.example for r in made.records[1:4]]
    asked_too = {**hub, "question": "What?", "answer": "Mice"}
    both = [(r.example.question, r.example.target) for r in read(tmp_path, asked_too).records]
    assert both == [(r.example.question, r.example.target) for r in made.records[:4]]
    nameless = dialogue("What?", "Mice.", objects={**labels, "ref": ["mouse"]})
    assert "the objects are not used" in read(tmp_path, nameless).skipped[0]


@pytest.mark.parametrize("mark", ["iscrowd", "is_crowd", "ignore", "difficult"])
def test_classes_with_a_marked_object_are_not_counted(tmp_path: Path, mark: str) -> None:
    pytest.importorskip("inflect")
    places = [[0, 0, 20, 25], [50, 10, 100, 40], [5, 5, 9, 9]]
    columns = {"bbox": places, "category": ["mouse", "mouse", "cup"], mark: [0, 1, 0]}
    listed = [{"bbox": box, "category": name} for box, name in zip(places, columns["category"], strict=True)]
    listed[1][mark] = True
    for objects in (columns, listed):
        made = read(tmp_path, {"image": "a.png", "objects": objects})
        assert [r.example.question for r in made.records if r.example.answer] == [
            "How many cups are there? Draw their boxes first.",
            "How many cups are there?",
        ]


def test_detection_labels_of_all_rows_are_asked_about_by_the_same_rules(tmp_path: Path) -> None:
    pytest.importorskip("inflect")

    def labels(*names: str) -> dict[str, Any]:
        places = [[5 * n, 10, 5 * n + 4, 20] for n in range(len(names))]
        return {"images": ["a.png"], "objects": {"bbox": places, "category": list(names)}}

    def asked(made: RecordSet) -> list[tuple[str, str, str]]:
        direct = [record for record in made.records if record.example.task == chains.DIRECT_COUNT]
        return [(r.source[-1], r.example.question[9:-11], r.example.answer) for r in direct]

    rows = [labels(*["cup"] * 17, "lamp"), labels("bow (weapon)"), labels("bow (weapon)", "bow (knot)", "bow (knot)")]
    made = read(tmp_path, *rows, labels())
    assert asked(made) == [("1", "lamps", "1"), ("2", "bows (weapon)", "1"), ("3", "bows (knot)", "2")]
    assert made.skipped == (
        "rows.jsonl, line 1: 17 cups, and at most 15 are asked for; raise counts_most",
        "rows.jsonl, line 4: no fully annotated class has 1 to 15 objects",
    )
    made = read(tmp_path, *rows, rules=CountRules(max_count=17, every_class=True))
    assert asked(made) == [
        ("1", "cups", "17"),
        ("1", "lamps", "1"),
        ("2", "bows (weapon)", "1"),
        ("3", "bows (knot)", "2"),
        ("3", "bows (weapon)", "1"),
    ]
    assert not made.skipped
    config = SourcesConfig(dataset=(str(table(tmp_path, *rows)),), counts_asked="all", counts_most=17)
    assert read_records(config, PerceptionVocabulary(num_locations=100), None, tmp_path) == made


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (dialogue("<image><image>Where?", "There."), "2 image placeholders and 1 images"),
        ({"messages": [{"role": "user", "content": "<image>Where?"}, SAID]}, "1 image placeholders and 0 images"),
        (dialogue("Where?"), "turns must alternate between user and assistant, .* got user"),
        ({"messages": [SAID, ASKED], "images": ["a.png"]}, "must alternate .* got assistant, user"),
        (dialogue("<image>", "There."), "turn 0 of user is empty"),
        (dialogue("Where?", "<image>"), "an image stands in a system turn or an answer"),
        (dialogue("Where?", [{"type": "video"}]), "content must be a text, or a list of parts"),
        ({"messages": [{"role": "tool", "content": "x"}], "images": []}, "a turn is of 'tool', and known"),
        (dialogue("Where?", "There.", videos=["a.mp4"]), "has videos, which are not read"),
        (dialogue("Where?", "There.", images=["gone.png"]), r"image .*gone\.png does not exist"),
        (dialogue("Where?", "There.", images=["https://x.org/a.png"]), "must be a file or inside of the table"),
        (dialogue("Where?", "<bbox>"), "<bbox> or <ref-object> stands in a text, and the row has no objects"),
        (dialogue("Where?", "<bbox>", objects={"bbox": [[0, 0, 5, 5]] * 2}), "<bbox> stands 1 times .* objects give 2"),
        (dialogue("In <bbox>?", "It.", objects={"bbox": [[0, 0, 5, 5]]}), "a question has a <bbox>"),
        (dialogue("?", "<bbox>", objects={"bbox": [[0, 0, 500, 5]]}), r"box \[0.0, 0.0, 500.0, 5.0\] is empty or"),
        (dialogue("?", "<bbox>", objects={"bbox": [[0, 200]]}), "point .* is not inside the image of 100 x 50 pixels"),
        (dialogue("?", "<bbox>", objects={"bbox": [[5]]}), "a bbox must be four numbers, or two for a point"),
        (dialogue("?", "<bbox>", objects={"bbox": [[0, 0, 5, 5]], "image_id": [1]}), "objects are of images"),
        ({"prompt": "Where?"}, "has the columns prompt; expected messages .*prompt and completion"),
        ({"prompt": "Where?", "completion": None}, "completion must be a text or a list of turns .* got None"),
        ({"prompt": "Where?", "completion": " "}, "turn 1 of assistant is empty"),
        ({"prompt": [], "completion": [ASKED, SAID]}, r"prompt must be a text or a list of turns .* got \[\]"),
        ({"prompt": [ASKED, SAID, ASKED], "completion": "It."}, "one turn of user, .* got user, assistant, user"),
        ({"prompt": [ASKED], "completion": [SAID, ASKED]}, "turns must alternate .* got user, assistant, user"),
        ({"text": "x"}, "has the columns text; expected messages"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_meant_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    good = dialogue("Where is the cup?", "On the desk.")
    with pytest.raises(ValueError, match=rf"^rows\.jsonl, line 2:? .*{said}") as error:
        read(tmp_path, good, row)
    made = read(tmp_path, good, row, good, skip_bad=True)
    assert len(made.records) == 2 and made.skipped == (str(error.value),)
    assert "\n" not in str(error.value)


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (100, 50), "red").save(file, "PNG")
    return file.getvalue()


def test_tables_with_images_inside_are_the_same_from_parquet_and_from_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": [turn], "images": datasets.List(datasets.Image())})
    rows = [{"messages": [ASKED, SAID], "images": [{"bytes": png(), "path": "x.png"}]}] * 2
    saved = datasets.Dataset.from_list(rows, features=features)
    saved.to_parquet(tmp_path / "rows.parquet")
    saved.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "two")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    saved.to_parquet(tmp_path / "hub" / "train-00000-of-00001.parquet")
    for name in ("rows.parquet", "one", "two", "hub"):
        made = read_table(str(tmp_path / name), 100, tmp_path / "images")
        assert [record.source for record in made.records] == [f"{name}, row 0", f"{name}, row 1"]
        assert made.records[0].image is not None and made.records[0].image.path.read_bytes() == png()
    assert len(list((tmp_path / "images").iterdir())) == 1
    with pytest.raises(ValueError, match="two has no part 'dev'; its parts are train, test"):
        read_table(str(tmp_path / "two"), 100, tmp_path / "images", split="dev")


def test_classes_of_a_data_set_are_read_by_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("inflect")
    kinds = datasets.List(datasets.ClassLabel(names=["cup", "mouse"]))
    objects = {"bbox": datasets.List(datasets.List(datasets.Value("float32"))), "category": kinds}
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    row = {"image": {"bytes": png(), "path": None}, "objects": {"bbox": [[10, 10, 20, 20]], "category": [1]}}
    datasets.Dataset.from_list([row], features=features).save_to_disk(tmp_path / "set")
    each = {"bbox": datasets.List(datasets.Value("float32")), "category": kinds.feature}
    features = datasets.Features({"image": datasets.Image(), "objects": datasets.List(each)})
    listed = {**row, "objects": [{"bbox": [10, 10, 20, 20], "category": 1}]}
    datasets.Dataset.from_list([listed], features=features).save_to_disk(tmp_path / "listed")
    made, other = (read_table(str(tmp_path / n), 100, tmp_path, boxes_format="xywh") for n in ("set", "listed"))
    assert [record.example for record in made.records] == [record.example for record in other.records]
    assert made.records[2].example.question == "How many mice are there?"
    (box,) = BoxTokenizer(100).decode(made.records[0].example.target[0].codes)
    np.testing.assert_allclose(box, [0.1, 0.2, 0.3, 0.6], atol=0.0051)


def test_sources_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, said: str) -> None:
        with pytest.raises(ValueError, match=said) as error:
            read_table(source, 100, tmp_path / "images")
        assert "\n" not in str(error.value)

    refused(str(tmp_path / "gone.jsonl"), r"gone\.jsonl does not exist; give \.jsonl")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    refused(str(tmp_path / "bad.parquet"), r"bad\.parquet cannot be read as parquet")
    (tmp_path / "empty.jsonl").write_text("")
    refused(str(tmp_path / "empty.jsonl"), r"empty\.jsonl holds no rows; give rows with messages")
    refused(str(table(tmp_path, {"text": "x"})), r"line 1 has the columns text; expected messages")
    datasets = pytest.importorskip("datasets")

    def unreachable(*args: Any, **settings: Any) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub\n(offline)")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refused(
        "nobody/nothing", r"^nobody/nothing cannot be loaded by datasets \(Couldn't .*give another name, a folder, or"
    )
