"""Published evaluation sets: read with the exact columns of their files, answered, scored, resumed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from tiny_perception import build_perception
from typer.testing import CliRunner

from perception import cli
from perception.answers import options_in
from perception.chains import Answer, ChainRoom, kind_of_question
from perception.datasets.shards import Plan
from perception.evaluation.bootstrap import accuracy_interval, bootstrap_interval
from perception.evaluation.published_scores import (
    PublishedAnswer,
    accuracies,
    answer_published,
    mean_of_sources,
    published_room,
    score,
)
from perception.evaluation.published_sets import PublishedItem, read_published_set
from perception.interleave.reasoner import Reasoner
from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import Span

ROOT = Path(__file__).parents[3]


def picture(shade: int = 0) -> dict[str, Any]:
    """As the hub's tables hold it."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 100, 100)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{shade}.png"}


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def image_file(path: Path, colour: str | tuple[int, int, int] = "teal") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


def blink(idx: str, sub_task: str, question: str, choices: list[str], answer: str, **more: Any) -> dict[str, Any]:
    none: dict[str, Any] = {f"image_{n}": None for n in (2, 3, 4)}
    prompt = question + "\nSelect from the following choices.\n" + "\n".join(f"({c}) {c}" for c in choices)
    row = {"idx": idx, "question": question, "sub_task": sub_task, "prompt": prompt, "answer": answer}
    return row | {"image_1": picture(), **none, "choices": choices} | more


def depth_set(folder: Path) -> Path:
    asked = "Which point is closer to the camera?"
    rows = [
        blink(f"val_Relative_Depth_{n}", "Relative_Depth", asked, ["A is closer", "B is closer"], f"({'AB'[n % 2]})")
        for n in range(5)
    ]
    table(folder / "Relative_Depth" / "val-00000-of-00001.parquet", rows)
    table(folder / "Counting" / "val-00000-of-00001.parquet", [counting_row(0)])
    return folder


def counting_row(n: int) -> dict[str, Any]:
    return blink(f"val_Counting_{n}", "Counting", "How many floats are there?", ["0", "3", "2", "1"], "(B)")


# Readers


def test_blink_is_read_out_of_one_download(tmp_path: Path) -> None:
    depth_set(tmp_path)
    items = read_published_set("blink-depth", tmp_path)
    assert [item.truth for item in items] == ["A", "B", "A", "B", "A"]
    assert items[0].question.startswith("Which point is closer to the camera?\nSelect from")
    assert items[0].options == ("A is closer", "B is closer") and items[0].group == "depth-2"
    assert items[0].image.load().size == (40, 30)
    (count,) = read_published_set("blink-counting", tmp_path)
    assert (count.question, count.truth, count.scoring) == ("How many floats are there?", "3", "number")


def test_hardblink_s_pairs_of_files(tmp_path: Path) -> None:
    for points in (3, 5):
        letters = "ABCDE"[:points]
        named = ", ".join(letters) if points == 3 else " ".join(f"({letter})" for letter in letters)
        text = f"A few points are labeled by {named}. Which point is closest to the camera?"
        lines(
            tmp_path / f"hardblink_{points}_questions.jsonl",
            [{"question_id": n, "image": f"{points}/{n}.png", "text": text, "category": "depth"} for n in range(2)],
        )
        lines(
            tmp_path / f"hardblink_{points}_answers.jsonl",
            [{"question_id": n, "text": f"({letters[-1]})", "category": "depth"} for n in range(2)],
        )
        for n in range(2):
            image_file(tmp_path / "images" / f"{points}" / f"{n}.png")
    items = read_published_set("hardblink", tmp_path)
    assert [(item.group, item.truth) for item in items] == [("depth-3", "C")] * 2 + [("depth-5", "E")] * 2
    (tmp_path / "hardblink_5_answers.jsonl").unlink()
    with pytest.raises(ValueError, match="has no answers beside it"):
        read_published_set("hardblink", tmp_path)


HARDBLINK_TEXT = "Some points are circled and lettered. Which of them is closest to the camera?"


def hardblink_folder(folder: Path, sets: dict[int, str]) -> Path:
    """As its authors publish it: the same file names in every set, no options in the text. Images differ in shade.

    Args:
        sets: answers by number of points: one letter per question.
    """
    for points, letters in sets.items():
        asked, name = [], f"blink_{points}pointscenter"
        answers = [{"question_id": n, "text": f"({letter})", "category": "count"} for n, letter in enumerate(letters)]
        for n in range(len(letters)):
            asked.append({"question_id": n, "image": f"{n}.png", "text": HARDBLINK_TEXT, "category": "count"})
            image_file(folder / "images" / f"blink{points}pointscenter" / f"{n}.png", (points, n, 0))
        lines(folder / "questions" / f"{name}_questions.jsonl", asked)
        lines(folder / "answers" / f"{name}_answers.jsonl", answers)
    return folder


def test_hardblink_as_its_authors_publish_it(tmp_path: Path) -> None:
    items = read_published_set("hardblink", hardblink_folder(tmp_path, {3: "AC", 4: "DB", 5: "EA"}))
    assert [(item.group, item.truth) for item in items] == [
        ("depth-3", "A"),
        ("depth-3", "C"),
        ("depth-4", "D"),
        ("depth-4", "B"),
        ("depth-5", "E"),
        ("depth-5", "A"),
    ]
    assert [item.options for item in items[::2]] == [tuple("ABC"), tuple("ABCD"), tuple("ABCDE")]
    shades = [item.image.load().getpixel((0, 0)) for item in items]
    assert shades == [(points, n, 0) for points in (3, 4, 5) for n in (0, 1)], "each set has its own pictures"
    assert kind_of_question(items[0].question) == "depth"
    lines(tmp_path / "answers" / "blink_3pointscenter_answers.jsonl", [{"question_id": 0, "text": "(D)"}])
    with pytest.raises(ValueError, match="blink_3pointscenter_answers.jsonl, line 1.*no letter of 3 options"):
        read_published_set("hardblink", tmp_path)


def test_pictures_of_a_set_are_never_guessed(tmp_path: Path) -> None:
    folder = hardblink_folder(tmp_path, {3: "A", 4: "A"})
    for points in (3, 4):  # other names of the sets, the number of points still says which is which
        (folder / "images" / f"blink{points}pointscenter").rename(folder / "images" / f"hard {points} points")
    items = read_published_set("hardblink", folder)
    assert [item.image.load().getpixel((0, 0)) for item in items] == [(3, 0, 0), (4, 0, 0)]
    for points, name in ((3, "first"), (4, "second")):
        (folder / "images" / f"hard {points} points").rename(folder / "images" / name)
    with pytest.raises(ValueError, match=r"line 1: image 0.png lies in 2 folders \(images/first, images/second\)"):
        read_published_set("hardblink", folder)


def test_files_that_archives_bring_along_are_no_questions(tmp_path: Path) -> None:
    folder = hardblink_folder(tmp_path, {3: "A"})
    (folder / "questions" / "._blink_3pointscenter_questions.jsonl").write_bytes(b"\0\5\x16\7")
    image_file(folder / "__MACOSX" / "blink3pointscenter" / "0.png", (9, 9, 9))
    (item,) = read_published_set("hardblink", folder)
    assert item.image.load().getpixel((0, 0)) == (3, 0, 0)


def test_counting_and_depth_in_one_folder(tmp_path: Path) -> None:
    folder = hardblink_folder(tmp_path, {3: "AB"})
    for name, count in (("blink_count", "4"), ("seed_count", "7")):
        lines(
            folder / "questions" / f"{name}_questions.jsonl",
            [{"question_id": 0, "image": f"{name}.png", "text": "How many cats?"}],
        )
        lines(folder / "answers" / f"{name}_answers.jsonl", [{"question_id": 0, "text": count}])
        image_file(folder / "images" / f"{name}.png")
    assert [item.truth for item in read_published_set("hardblink", folder)] == ["A", "B"]
    assert [item.truth for item in read_published_set("blink-counting", folder)] == ["4"]
    assert [item.truth for item in read_published_set("seedbench", folder)] == ["7"]


def test_blink_s_test_split_has_no_answers(tmp_path: Path) -> None:
    depth_set(tmp_path)
    hidden = [blink(f"test_{task}", task, "Q?", ["0", "1"], "hidden") for task in ("Relative_Depth", "Counting")]
    for row in hidden:
        table(tmp_path / row["sub_task"] / "test-00000-of-00001.parquet", [row])
    assert len(read_published_set("blink-depth", tmp_path)) == 5
    assert len(read_published_set("blink-counting", tmp_path)) == 1
    (tmp_path / "Counting" / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match="test-00000-of-00001.parquet, row 0: the answers are 'hidden'.*val split"):
        read_published_set("blink-counting", tmp_path)


def test_seedbench_s_images_have_no_ending_and_some_options_are_no_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {
        "choice_a": "One",
        "choice_b": "More than five",
        "choice_c": "3",
        "choice_d": "Four",
        "question": "How many?",
    }
    rows = [
        row | {"question_id": str(n), "data_id": f"1_{n}", "answer": answer, "question_type_id": 5}
        for n, answer in enumerate("ABC")
    ]
    (tmp_path / "SEED-Bench.json").write_text(json.dumps({"questions": rows}))
    (tmp_path / "SEED-Bench-2.json").write_text("{}")
    for n in range(3):
        image_file(tmp_path / "SEED-Bench-image" / f"1_{n}.png", (n, n, n))
        if n:
            (tmp_path / "SEED-Bench-image" / f"1_{n}.png").rename(tmp_path / "SEED-Bench-image" / f"1_{n}")
    items = read_published_set("seedbench", tmp_path)
    assert [(item.key, item.truth, item.image.load().getpixel((0, 0))[0]) for item in items] == [
        ("0", "1", 0),
        ("2", "3", 2),
    ]
    (said,) = caplog.messages
    assert "1 questions are left out" in said and "question 1: 'More than five'" in said


def test_geoqa_s_test_images_are_not_those_of_training(tmp_path: Path) -> None:
    rows = [{"image_path": "./Geo170K/images/test/0.png", "question": "Find AB.", "ground_truth": "145"}]
    lines(tmp_path / "geoqa_test_prompts.jsonl", rows)
    image_file(tmp_path / "images" / "geo3k" / "0.png", (1, 1, 1))
    image_file(tmp_path / "images" / "test" / "0.png", (2, 2, 2))
    (item,) = read_published_set("geoqa", tmp_path)
    assert item.image.load().getpixel((0, 0)) == (2, 2, 2)


def test_pictures_in_tables_are_read_as_files_are(tmp_path: Path) -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(buffer, "JPEG", exif=exif)
    table(
        tmp_path / "Counting" / "val.parquet", [counting_row(0) | {"image_1": {"bytes": buffer.getvalue(), "path": ""}}]
    )
    (item,) = read_published_set("blink-counting", tmp_path)
    assert item.image.load().size == (40, 30)


def test_aurora_s_counting_files(tmp_path: Path) -> None:
    row = {"question_id": "101_3", "image": "a.png", "text": "How many cats are there?", "category": "count"}
    lines(tmp_path / "seed_question.jsonl", [row])
    lines(tmp_path / "seed_answer.jsonl", [{"question_id": "101_3", "text": "4", "category": "count"}])
    image_file(tmp_path / "a.png")
    for name in ("seedbench", "blink-counting"):
        (item,) = read_published_set(name, tmp_path)
        assert (item.group, item.truth, item.scoring) == ("count", "4", "number")


def test_cvbench(tmp_path: Path) -> None:
    shared = {"type": "2D", "image": picture(), "prompt": "p (A) 1 (B) 2", "source": "COCO"}
    rows = [
        {"idx": 0, "task": "Count", "question": "How many dogs?", "choices": ["1", "2"], "answer": "(B)"} | shared,
        {"idx": 1, "task": "Depth", "question": "Which is closer?", "choices": ["car", "bus"], "answer": "(A)"}
        | shared,
    ]
    table(tmp_path / "test-00000-of-00001.parquet", rows)
    count, depth = read_published_set("cvbench", tmp_path)
    assert count.source == ("2D", "COCO")
    assert (count.truth, count.question, count.group) == ("2", "How many dogs?", "count")
    assert (depth.truth, depth.question, depth.group) == ("A", "p (A) 1 (B) 2", "depth")


def test_seedbench_s_own_file(tmp_path: Path) -> None:
    question = {"question": "How many boats?", "choice_a": "One", "choice_b": "2", "choice_c": "3", "choice_d": "Four"}
    rows = [
        question | {"question_id": "1", "data_id": "x.png", "answer": "D", "question_type_id": 5, "data_type": "image"},
        question | {"question_id": "2", "data_id": "y.png", "answer": "A", "question_type_id": 1, "data_type": "image"},
    ]
    (tmp_path / "SEED-Bench.json").write_text(
        json.dumps({"questions": rows, "question_type": {"Instances Counting": 5, "Scene Understanding": 1}})
    )
    image_file(tmp_path / "SEED-Bench-image" / "x.png")
    (item,) = read_published_set("seedbench", tmp_path)
    assert item.truth == "4"


def mathvista_row(pid: str, source: str, choices: list[str] | None, answer: str) -> dict[str, Any]:
    kind = "multi_choice" if choices else "free_form"
    row = {"pid": pid, "question": "Find x.", "image": f"images/{pid}.jpg", "decoded_image": picture()}
    return row | {
        "choices": choices,
        "unit": None,
        "precision": None,
        "answer": answer,
        "question_type": kind,
        "answer_type": "text" if choices else "integer",
        "metadata": {"category": "math", "source": source, "skills": ["geometry"], "split": "testmini"},
        "query": "Hint: .. Question: Find x.",
    }


def test_mathvista_s_maths_subset(tmp_path: Path) -> None:
    rows = [
        mathvista_row("1", "Geometry3K", ["3.5", "7"], "7"),
        mathvista_row("2", "UniGeo", None, "1/2"),
        mathvista_row("3", "IQTest", None, "5"),
    ]
    table(tmp_path / "data" / "testmini-00000-of-00001.parquet", rows)
    choice, free = read_published_set("mathvista", tmp_path)
    assert (choice.truth, choice.question, choice.group) == ("B", "Find x.\n(A) 3.5\n(B) 7", "Geometry3K")
    assert (free.truth, free.scoring) == ("1/2", "maths")


def test_geoqa_and_mmstar(tmp_path: Path) -> None:
    rows = [
        {"image_path": "./Geo170K/images/test/0.png", "question": "Find AB.", "ground_truth": "<answer>145</answer>"}
    ]
    lines(tmp_path / "geoqa_test_prompts.jsonl", rows)
    image_file(tmp_path / "images" / "test" / "0.png")
    (item,) = read_published_set("geoqa", tmp_path)
    assert (item.truth, item.scoring) == ("145", "maths")
    star = {"image": picture(), "meta_info": {"source": "MathVista"}, "l2_category": "geometry"}
    question = "What is x?\nOptions: A: 3, B: 4 cm, C: 5, D: none of them"
    table(
        tmp_path / "star" / "mmstar-val.parquet",
        [
            {"index": 7, "question": question, "answer": "B", "category": "math"} | star,
            {"index": 8, "question": question, "answer": "B", "category": "coarse perception"} | star,
        ],
    )
    (item,) = read_published_set("mmstar", tmp_path / "star")
    assert (item.options, item.truth) == (("3", "4 cm", "5", "none of them"), "B")


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Q?\nOptions: A: yes, B: no", ("yes", "no")),
        ("Q?\nOptions: A: and, B: or, C: , D: x", ("and", "or", "", "x")),
        ("Q? Choices:\n(A) 3 m\n(B) 4 m\n(C) 5 m", ("3 m", "4 m", "5 m")),
        ("Find A.", ()),
        ("Q?\nA. 1\nB. 2\nAnswer with the option's letter from the given choices directly.", ("1", "2")),
        ("Q? (A) One cat (B) Two cats Please answer with a letter.", ("One cat", "Two cats")),
        ("Q? a) 3 b) 4", ("3", "4")),
        ("Q?\n(a) a cat\n(b) vitamin C. or so", ("a cat", "vitamin C. or so")),
        ("Q? (A)3 (B)4 (C)5", ("3", "4", "5")),
        ("Is it (A) the dog, or (B) the cat?", ("the dog", "the cat?")),
        ("Which point is closest, (A), (B) or (C)?", ()),
        ("Points (A) and (B) are circled. Which is closer?", ()),
        ("Q? In the U.S.A. (A) 3\nmetres (B) 4\nmetres", ("3\nmetres", "4\nmetres")),
    ],
)
def test_options_inside_questions(question: str, options: tuple[str, ...]) -> None:
    assert options_in(question) == options


def test_what_is_not_as_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a folder"):
        read_published_set("cvbench", tmp_path / "nothing")
    with pytest.raises(ValueError, match="unknown set"):
        read_published_set("cvbunch", tmp_path)
    with pytest.raises(ValueError, match="no parquet files"):
        read_published_set("cvbench", tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match="download it again"):
        read_published_set("cvbench", tmp_path)
    table(tmp_path / "test.parquet", [{"idx": 0, "task": "Count"}])
    with pytest.raises(ValueError, match=r"test.parquet, row 0 has no 'choices'|has no 'image'"):
        read_published_set("cvbench", tmp_path)
    folder = tmp_path / "twice"
    table(folder / "Counting" / "val.parquet", [counting_row(1), counting_row(1)])
    with pytest.raises(ValueError, match="two questions of blink-counting are called val_Counting_1"):
        read_published_set("blink-counting", folder)
    table(folder / "Counting" / "val.parquet", [counting_row(1) | {"answer": "(F)"}])
    with pytest.raises(ValueError, match="no letter of 4 options"):
        read_published_set("blink-counting", folder)
    damaged = counting_row(1) | {"image_1": {"bytes": picture()["bytes"][:40], "path": ""}}
    table(folder / "Counting" / "val.parquet", [damaged])
    (item,) = read_published_set("blink-counting", folder)
    with pytest.raises(ValueError, match=r"val.parquet, row 0, image_1 holds no image"):
        item.image.load()


# Answers


def test_scores_read_letters_numbers_and_expressions(tmp_path: Path) -> None:
    depth = read_published_set("blink-depth", depth_set(tmp_path))[1]
    assert score(depth, "The answer is (B).") == ("B", True)
    assert score(depth, "A 40, B 70, so B.") == ("B", True)
    assert score(depth, "A is closer") == ("A", False)
    assert score(depth, "I cannot tell") == (None, False)
    count = read_published_set("blink-counting", tmp_path)[0]
    assert score(count, "There are three floats.") == ("3", True)
    assert score(count, "none that I see") == ("0", False)
    free = PublishedItem("1", "g", count.image, "Find x.", "1/2", "maths")
    assert score(free, "Step 1: so.\nAnswer: 0.5") == ("0.5", True)


def test_the_mean_of_sources_is_cv_bench_s() -> None:
    right = {("2D", "ADE20K"): [1, 1, 1], ("2D", "COCO"): [0, 0], ("3D", "Omni3D"): [0, 0, 0, 0]}
    flat = [(source, one) for source, values in right.items() for one in values]
    items = [PublishedItem(str(n), "count", None, "?", "1", "number", (), s) for n, (s, _) in enumerate(flat)]  # type: ignore[arg-type]
    given = [PublishedAnswer(str(n), "count", "?", "1", "1", "1", bool(one)) for n, (_, one) in enumerate(flat)]
    assert mean_of_sources(items, given) == 0.25  # (mean of 1 and 0, and 0) / 2
    assert mean_of_sources([replace(item, source=()) for item in items], given) is None


def test_intervals_of_all_right_and_all_wrong_are_exact() -> None:
    assert (accuracy_interval([1.0] * 3).low, accuracy_interval([1.0] * 3).high) == (pytest.approx(0.292, abs=1e-3), 1)
    assert (accuracy_interval([0.0]).low, accuracy_interval([0.0]).high) == (0, pytest.approx(0.975))
    assert accuracy_interval([0.0, 1.0, 1.0]) == bootstrap_interval([0.0, 1.0, 1.0])


class Teller:
    """Says B to everything, with a span; stops answering behind so many batches."""

    def __init__(self, batches: int = 99) -> None:
        self.batches, self.asked = batches, list[str]()

    def __call__(self, items: Sequence[PublishedItem]) -> list[Answer]:
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        self.asked += [item.key for item in items]
        return [Answer("so B.", (Span("boxes", (1, 2, 3, 4)),), "B") for _ in items]


def test_a_run_that_was_stopped_asks_only_what_is_left(tmp_path: Path) -> None:
    items = read_published_set("blink-depth", depth_set(tmp_path))
    path = tmp_path / "out" / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_published(items, Teller(2), path, batch_size=2)
    with path.open("a") as file:
        file.write('{"key": "val_Rel')  # killed in the middle of a line
    rest = Teller()
    given = answer_published(items, rest, path, batch_size=2)
    assert rest.asked == [items[4].key]
    assert [one.key for one in given] == [item.key for item in items]
    assert [one.right for one in given] == [False, True, False, True, False]
    kept = [PublishedAnswer.from_json(line) for line in path.read_text().splitlines()]
    assert sorted(kept, key=lambda one: one.key) == sorted(given, key=lambda one: one.key)
    assert str(accuracies(items, given)["depth-2"]).startswith("40.0")
    path.write_text(path.read_text().replace('"right": false', '"right": true'))  # of another reader of texts
    assert answer_published(items, rest, path) == given and not rest.asked[1:]
    path.write_text(path.read_text().replace("closer", "farther"))
    with pytest.raises(ValueError, match="other questions"):
        answer_published(items, rest, path)


def test_answers_of_another_model_are_not_gone_on_with(tmp_path: Path) -> None:
    Plan(tmp_path / "a.plan.json", {"model": "one", "mode": "chain"}).begin()
    Plan(tmp_path / "a.plan.json", {"model": "one", "mode": "chain"}).begin()
    with pytest.raises(ValueError, match="model was 'one' and is 'two'"):
        Plan(tmp_path / "a.plan.json", {"model": "two", "mode": "chain"}).begin()


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_perception().save_pretrained(path)
    return path


@pytest.mark.parametrize("mode", ["chain", "direct"])
def test_the_command_writes_answers_and_a_page(folder: Path, tmp_path: Path, mode: str) -> None:
    data = depth_set(tmp_path / "data")
    command = ["evaluate", "blink-depth", "--data", str(data), "--model", str(folder), "--mode", mode]
    command += ["--out", str(tmp_path / "out"), "--max-new-tokens", "40", "--limit", "4"]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "depth-2" in result.stdout
    answers = (tmp_path / "out" / f"blink-depth-{mode}.jsonl").read_text().splitlines()
    assert len(answers) == 4
    page = (tmp_path / "out" / f"blink-depth-{mode}.html").read_text()
    assert page.count("<figure>") == 4 and "data:image/png" in page
    shutil.rmtree(folder.with_name("other"), ignore_errors=True)
    build_perception(1).save_pretrained(folder.with_name("other"))
    own = folder.rename(folder.with_name("own"))
    folder.with_name("other").rename(folder)  # another model under the same name
    with pytest.raises(ValueError, match="weights was"):
        CliRunner().invoke(cli.app, command, catch_exceptions=False)
    shutil.rmtree(folder)
    own.rename(folder)
    with pytest.raises(ValueError, match="--data goes with a set"):
        CliRunner().invoke(cli.app, ["evaluate", "--data", str(data)], catch_exceptions=False)
    with pytest.raises(ValueError, match="needs --data"):
        CliRunner().invoke(cli.app, ["evaluate", "cvbench"], catch_exceptions=False)
    with pytest.raises(ValueError, match="unknown set 'scene'"):
        CliRunner().invoke(cli.app, ["evaluate", "scene"], catch_exceptions=False)


def own_table(folder: Path) -> Path:
    folder.mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    rows = [
        ("How many cups are there?", "2.0", "[[900, 10, 990, 20]]"),
        ("Which point is closest to the camera, A, B or C?", "(B)", ""),
        ("Which point is closest to the camera, A or B?", "B", ""),
        ("What is it? (A) a cup (B) a mug", "A", ""),
        ("What colour is the lamp?", "Dark red.", ""),
    ]
    table = folder / "questions.csv"
    lines = [f'a.png,"{question}",{answer},"{boxes}"' for question, answer, boxes in rows]
    table.write_text("\n".join(["image,question,answer,boxes", *lines]))
    return table


def test_a_table_of_one_s_own_is_a_set(folder: Path, tmp_path: Path) -> None:
    table = own_table(tmp_path / "own")
    items = read_published_set("own", table)
    assert [item.group for item in items] == ["count", "depth", "depth", "other", "other"]
    assert [item.options for item in items] == [(), ("A", "B", "C"), ("A", "B"), ("a cup", "a mug"), ()]
    said = ["There are 2 cups.", "B", "A is closer than B.", "It is a cup.", "dark red"]
    assert [score(item, text)[1] for item, text in zip(items, said, strict=True)] == [True, True, False, True, True]
    assert [score(item, "red")[1] for item in items] == [False] * 5
    assert score(items[4], "It may be red. The answer is dark red.") == ("dark red.", True)
    command = ["evaluate", "own", "--data", str(table), "--model", str(folder), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, [*command, "--max-new-tokens", "60"], catch_exceptions=False)
    assert result.exit_code == 0 and all(group in result.stdout for group in ("count", "depth", "other", "all"))
    assert len((tmp_path / "out" / "own-chain.jsonl").read_text().splitlines()) == 5
    table.write_text(table.read_text().replace(",A,", ",C,"))
    with pytest.raises(ValueError, match=r"questions.csv, line 5: the answer C is none of the options"):
        read_published_set("own", table)


@pytest.mark.parametrize(
    ("question", "answer", "right", "wrong"),
    [
        ("How many cats are there?", "two", "2.", "3."),
        ("How many cats are there?", "2 cats", "There are 2 cats.", "There are no cats."),
        ("How many cats are there?", "no cats", "0.", "1."),
        ("How many cats are there?", "There are two cats in the image.", "2.", "3."),
        ("How many cats are there?", "There are no cats.", "0.", "1."),
        ("How many cats are there? (A) 3 (B) 2", "2", "(B)", "(A)"),
        ("How many cats are there? (A) 3 (B) 2", "(B) 2", "2.", "3."),
        ("How many cats are there?\nA. 3\nB. 2\nAnswer with the option's letter.", "B", "2.", "3."),
        ("How many cats are there? (A) 3 cats (B) 2 cats", "B", "2.", "3."),
        ("How many cats are there? (A) Three (B) Two (C) More than three", "B", "2.", "4."),
        ("How many cats are there? (A) Three (B) Two (C) More than three", "C", "4.", "3."),
        ("How many cats are there? (A) less than 3 (B) 3 or 4 (C) 5+", "C", "5.", "4."),
        ("How many cats are there? (A) 0 (B) 1 (C) two or more", "C", "2 cats.", "1."),
        ("How many cats are there? a) 3 b) 2", "b", "2.", "3."),
        ("How many cats are there? (a) 3 (b) 2", "(B)", "(b)", "3."),
        ("Which point is closest, (A), (B) or (C)?", "C", "A 1, B 5, C 9 so C.", "A 1, B 9, C 5 so B."),
        ("Which point is closest, (A), (B) or (C)?", "B", "A 1, B 9, C 5 so B.", "A 1, B 5, C 9 so C."),
        ("Which is closer: (A) the cup, or (B) the spoon?", "A", "The cup.", "The spoon."),
        ("Which point is closer, A or B?", "Point B", "A 40, B 60 so B.", "A 60, B 40 so A."),
        ("Which point is closer, A or B?", "b", "A 40, B 60 so B.", "A 60, B 40 so A."),
        ("Which point is closer? (A) Point A (B) Point B", "Point B", "A 40, B 60 so B.", "A 60, B 40 so A."),
        ("Which is closer, the cup or the spoon?", "the cup", "The cup.", "A cup."),
        ("How many cats are there?", "more than 5", "More than 5.", "5."),
    ],
)
def test_answers_of_a_table_are_read_as_a_model_s_are(
    tmp_path: Path, question: str, answer: str, right: str, wrong: str
) -> None:
    image_file(tmp_path / "a.png")
    lines(tmp_path / "q.jsonl", [{"image": "a.png", "question": question, "answer": answer}])
    (item,) = read_published_set("own", tmp_path / "q.jsonl")
    assert [score(item, text)[1] for text in (right, wrong)] == [True, False]


def test_the_room_follows_from_the_model_s_grid(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_perception()
    assert published_room(model) == 512
    model.room = replace(model.room, depth_length=24 * 24)
    model.room.check("Which point is closest, A or B? Draw the depth map first.", published_room(model))
    assert published_room(model) == 24 * 24 + 156
    monkeypatch.setattr(ChainRoom, "default", 700)
    monkeypatch.setattr(PerceptionModel, "answer", lambda self, asked, room: [Answer(str(room), (), "A")] * len(asked))
    command = ["evaluate", "blink-depth", "--data", str(depth_set(tmp_path / "data")), "--model", str(folder)]
    CliRunner().invoke(cli.app, [*command, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert json.loads((tmp_path / "out" / "blink-depth-chain.plan.json").read_text())["max_new_tokens"] == 700
    assert '"text": "700"' in (tmp_path / "out" / "blink-depth-chain.jsonl").read_text()


def test_maths_by_the_shipped_reasoner(tmp_path: Path) -> None:
    rows = [{"image_path": "0.png", "question": "Find x.", "ground_truth": "70"}]
    lines(tmp_path / "geoqa.jsonl", rows)
    figure = ROOT / "demos" / "examples" / "figure-fourth_angle-14.png"
    (tmp_path / "0.png").write_bytes(figure.read_bytes())
    command = ["evaluate", "geoqa", "--data", str(tmp_path), "--mode", "interleaved", "--out", str(tmp_path / "out")]
    command += ["--model", "geometry-tiny"]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0 and "geoqa" in result.stdout
    (answer,) = [json.loads(line) for line in (tmp_path / "out" / "geoqa-interleaved.jsonl").read_text().splitlines()]
    assert "Step 1:" in answer["text"] and answer["said"]


def test_the_page_is_made_with_the_settings_of_the_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines(tmp_path / "geoqa.jsonl", [{"image_path": "0.png", "question": "Find x.", "ground_truth": "70"}])
    image_file(tmp_path / "0.png")
    rooms = []
    solve = Reasoner.solve

    def noted(self: Reasoner, image: Any, question: str, max_new_tokens: int = 200) -> Any:
        rooms.append(max_new_tokens)
        return solve(self, image, question, max_new_tokens)

    monkeypatch.setattr(Reasoner, "solve", noted)
    command = ["evaluate", "geoqa", "--data", str(tmp_path), "--mode", "interleaved", "--out", str(tmp_path / "out")]
    command += ["--max-new-tokens", "7", "--device", "cpu", "--dtype", "bfloat16"]
    result = CliRunner().invoke(cli.app, command, catch_exceptions=False)
    assert result.exit_code == 0 and rooms == [7, 7]
    plan = json.loads((tmp_path / "out" / "geoqa-interleaved.plan.json").read_text())
    assert (plan["dtype"], plan["max_new_tokens"]) == ("bfloat16", 7)
    with pytest.raises(ValueError, match="dtype was 'bfloat16' and is 'float32'"):
        CliRunner().invoke(cli.app, command[:-2], catch_exceptions=False)
