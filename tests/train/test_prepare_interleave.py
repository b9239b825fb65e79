"""Interleaved training data made out of images and solutions in words."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from perception.datasets.interleaved import endpoint as endpoint_module
from perception.datasets.interleaved.endpoint import EndpointSettings, KeywordError
from perception.datasets.interleaved.jobs import KeywordsStopped, read_shards
from perception.datasets.interleaved.keywords import KeywordSettings, asked_keywords, parse_reply, rule_keywords
from perception.datasets.interleaved.making import (
    InterleaveMaker,
    MakingSettings,
    SolvedRow,
    parse_row,
    split_steps,
)
from perception.datasets.interleaved.mint_cot import InterleavedProblem
from perception.datasets.interleaved.ocr import Word, split_line
from perception.datasets.interleaved.regions import RegionRule, step_cells
from train.prepare_interleave import PrepareInterleaveConfig, main, prepare

SIZE = 64
MARKS = [
    {"text": "A", "box_xyxy": [0.05, 0.05, 0.12, 0.12]},
    {"text": "B", "box_xyxy": [0.9, 0.05, 0.97, 0.12]},
    {"text": "40", "box_xyxy": [0.15, 0.15, 0.24, 0.24]},
    {"text": "x", "box_xyxy": [0.8, 0.8, 0.86, 0.86]},
]
SOLUTION = "Step 1: Angle A is 40.\nStep 2: x = 180 - 40 = 140."
RULES = MakingSettings(grid=(4, 4), ocr="marks")


def row(number: int, **more: object) -> dict[str, Any]:
    return {
        "image": f"{number}.png",
        "question": "Find x.",
        "solution": SOLUTION,
        "answer": "140",
        "marks": MARKS,
    } | more


def write_data(folder: Path, rows: list[Any]) -> Path:
    """A file of rows, texts as they are, and a picture for each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        Image.new("RGB", (SIZE, SIZE), (number, 200, 200)).save(folder / f"{number}.png")
    data = folder / "rows.jsonl"
    data.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in rows))
    return data


# Keywords and regions


def test_rules_name_what_is_written_and_leave_out_what_is_calculated() -> None:
    steps = ["Angle A is 40.", "A line meets BC; the base is 12.", "40 + 12 = 52.", "The rest is 52.", "x = 180 - 52."]
    assert rule_keywords("Find x.", steps, ()) == (
        ("A", "40"),
        ("BC", "base", "12"),
        ("40", "12"),
        (),
        ("x",),
    )


def words(*marks: tuple[str, float, float], exact: bool = True) -> list[Word]:
    return [Word(text, (x, y, x + 0.1, y + 0.1), exact) for text, x, y in marks]


def test_cells_cover_words_lines_and_corners() -> None:
    written = words(("A", 0.05, 0.05), ("B", 0.85, 0.05), ("7", 0.4, 0.8), ("7", 0.85, 0.3))
    rule = RegionRule(margin=0.0)
    assert step_cells(["A"], written, (4, 4), rule) == (0,)
    assert step_cells(["AB"], written, (4, 4), rule) == (0, 1, 2, 3), "letters and the line between"
    assert step_cells(["B", "7"], written, (4, 4), rule) == (3, 7), "the nearest of two sevens, and the corner"
    assert step_cells(["C", "99"], written, (4, 4), rule) == ()
    assert step_cells(["angle A"], written, (4, 4), rule) == (0,), "its parts, where the whole is not written"


def test_a_reader_s_confusions_are_forgiven_where_the_text_was_read() -> None:
    assert step_cells(["x"], words(("X", 0.05, 0.05), exact=False), (2, 2)) == (0,)
    assert step_cells(["x"], words(("X", 0.05, 0.05)), (2, 2)) == ()
    assert step_cells(["height"], words(("hieght", 0.05, 0.05), exact=False), (2, 2)) == (0,)


def test_lines_are_split_into_words_with_their_share_of_the_box() -> None:
    assert [(word.text, word.box) for word in split_line("AB = 5", (0.0, 0.0, 0.6, 0.1))] == [
        ("AB", pytest.approx((0.0, 0.0, 0.2, 0.1))),
        ("5", pytest.approx((0.5, 0.0, 0.6, 0.1))),
    ]


def test_replies_are_read_out_of_chatter() -> None:
    assert parse_reply('Sure! ```json\n{"steps": [["A", 40], []]}\n``` Done.', 2) == (("A", "40"), ())
    assert parse_reply('[["A"]] no wait: {"1": ["B"], "2": []}', 2) == (("B",), ())
    for reply in ("", "no idea", '{"steps": [["A"]]}', '{"steps": [["A"], [{"b": 1}]]}', "[" * 3000):
        with pytest.raises(KeywordError, match="2 lists of texts"):
            parse_reply(reply, 2)


def test_a_language_model_is_asked_once_more() -> None:
    asked: list[bool] = []

    def ask(prompt: str, again: bool) -> str:
        asked.append(again)
        return '{"steps": [["A"]]}' if again else "hm"

    assert asked_keywords(ask)("Find x.", ["Angle A."], ["A"]) == (("A",),)
    assert asked == [False, True]


# Rows


def test_steps_are_told_from_opening_and_answer() -> None:
    assert split_steps("First look.\n**Step 1:** one\nStep 2. two\nmore\nAnswer: 3") == (
        "First look.",
        ("one", "two\nmore"),
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        (json.dumps(row(0, answer="")), "answer missing"),
        (json.dumps(row(0, question=" ")), "question missing"),
        (json.dumps(row(0, solution="It is 140.")), "Step 1"),
        (json.dumps(row(0, solution="Step 1: a\nStep 2:")), "step 2 of the solution is empty"),
        (json.dumps(row(0, question="<interleave>1</interleave>?")), "which the layout reserves"),
        (json.dumps(row(0, marks=[{"text": "A"}])), "marks must be"),
        (json.dumps(row(0, marks=[{"text": "A", "box_xyxy": [0, 0, 5, 5]}])), r"in \[0, 1\]"),
    ],
)
def test_rows_that_cannot_be_read_say_why(line: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        parse_row(line, "rows.jsonl:1", tmp_path)


def test_a_folder_is_made_and_read_back_and_bad_rows_are_named(tmp_path: Path, capsys: Any) -> None:
    bad = row(1) | {"image": "missing.png"}
    data = write_data(tmp_path / "data", [row(0), bad, "{", row(3, marks=[]), row(4)])
    (tmp_path / "data" / "4.png").write_bytes((tmp_path / "data" / "4.png").read_bytes()[:60])
    out = tmp_path / "made"
    arguments = ["--data", str(data), "--out", str(out), "--making.ocr", "marks", "--making.grid", "4", "4"]
    assert main(arguments) == 0
    assert "1 rows, 4 skipped; 2 steps, 0 of them without a region" in capsys.readouterr().out
    skipped = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert [one["row"] for one in skipped] == [f"rows.jsonl:{n}" for n in (2, 3, 4, 5)]
    assert "missing.png" in skipped[0]["reason"] and "4.png" in skipped[3]["reason"]
    (problem,) = read_shards(out).problems
    assert problem.question == "Find x."
    assert [step.text for step in problem.steps] == ["Angle A is 40.", "x = 180 - 40 = 140.\nAnswer: 140"]
    assert [step.cells for step in problem.steps] == [(0,), (15,)]
    assert main(["--data", str(tmp_path / "none.jsonl"), "--out", str(out)]) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_text_that_is_not_utf_8_skips_its_row_alone(tmp_path: Path) -> None:
    cut = json.dumps(row(1, question="Find x, \ud83d."))  # half of an emoji
    data = write_data(tmp_path, [row(0), cut, json.dumps(row(2)).replace("Find", "F\xfcnd")])
    data.write_bytes(data.read_text().encode("latin-1"))
    report = prepare(PrepareInterleaveConfig(str(data), str(tmp_path / "made"), making=RULES))
    assert (report.rows, report.skipped) == (1, 2)
    assert (tmp_path / "made" / "skipped.jsonl").read_text().count("the line holds what is no text in UTF-8") == 2


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = PrepareInterleaveConfig(str(write_data(tmp_path, [row(0)])), str(tmp_path / "made"), making=RULES)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "plan.json").write_text('{"shard_size": 7}')  # of a run that ended before its first shard
    prepare(config)
    with pytest.raises(ValueError, match=r"region.margin was 0.02 and is 0.1"):
        prepare(replace(config, making=replace(RULES, region=RegionRule(0.1))))
    with pytest.raises(ValueError, match="shard_size"):
        prepare(replace(config, shard_size=0))


def test_rows_that_changed_are_made_anew_and_no_others(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    made: list[str] = []
    make = InterleaveMaker.__call__

    def counted(maker: InterleaveMaker, solved: SolvedRow) -> InterleavedProblem:
        made.append(solved.question)
        return make(maker, solved)

    monkeypatch.setattr(InterleaveMaker, "__call__", counted)
    rows: list[Any] = [row(n, question=f"Find x, {n}.") for n in range(5)]
    rows[1] |= {"answer": ""}
    data, out = write_data(tmp_path, rows), tmp_path / "made"
    config = PrepareInterleaveConfig(str(data), str(out), making=RULES, shard_size=2)

    def run(rows: list[Any], pictures: tuple[int, ...] = ()) -> tuple[list[str], list[str], list[str]]:
        """What was made; questions that the folder holds; rows that were skipped."""
        made.clear()
        data.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
        for number in pictures:
            Image.new("RGB", (SIZE, SIZE), (number, 9, 9)).save(tmp_path / f"{number}.png")
        report = prepare(config)
        questions = [problem.question for problem in read_shards(out).problems]
        assert report.rows == len(questions) == len(rows) - report.skipped
        skipped = [json.loads(line)["row"] for line in (out / "skipped.jsonl").read_text().splitlines()]
        return list(made), questions, skipped

    assert run(rows) == ([f"Find x, {n}." for n in (0, 2, 3, 4)],) * 2 + (["rows.jsonl:2"],)
    assert run(rows)[0] == [], "nothing is left to do"
    rows[1]["answer"] = "140"
    assert run(rows) == (["Find x, 1."], [f"Find x, {n}." for n in range(5)], [])
    assert "1 finished rows were corrected or removed since, or have other images; the first: rows.jsonl:2" in (
        " ".join(capsys.readouterr().err.split())
    )
    new = row(0, question="Find x, new.")
    assert run([new, *rows], (3,))[:2] == (
        ["Find x, new.", "Find x, 3."],
        ["Find x, new."] + [f"Find x, {n}." for n in range(5)],
    )
    (out / "shard-00001.json").write_text("[]")
    assert run(rows[:3])[:2] == (["Find x, 1.", "Find x, 2."], [f"Find x, {n}." for n in range(3)])
    said = capsys.readouterr().err
    assert "shard-00001.record.json cannot be used (shard-00001.json is not as it was written)" in said
    assert sorted(file.name for file in out.glob("shard*")) == [
        f"shard-0000{n}{end}" for n in range(2) for end in (".json", ".record.json")
    ]


def test_what_was_killed_goes_on_without_loss_or_repeats(tmp_path: Path) -> None:
    rows = [row(n, question=f"Find x, {n}.") for n in range(240)]
    data = write_data(tmp_path / "data", rows)
    more = ["--making.ocr", "marks", "--making.grid", "4", "4", "--shard_size", "8"]
    command = [sys.executable, "-m", "train.prepare_interleave", "--data", str(data), "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, str(killed), *more], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(killed.glob("shard-*.record.json"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None or list(killed.glob("shard-*.record.json"))
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # As it would lie after a kill between a shard's rows and its record, whenever this one came.
    last = sorted(killed.glob("shard-*.record.json"))[-1]
    last.unlink()
    for out in (killed, whole):
        assert main(["--data", str(data), "--out", str(out), *more]) == 0
    found, expected = (
        [(p.question, [(s.text, s.cells) for s in p.steps]) for p in read_shards(out).problems]
        for out in (killed, whole)
    )
    assert found == expected and [question for question, _ in found] == [f"Find x, {n}." for n in range(240)]
    assert not list(killed.rglob("*.partial"))


# Endpoints


class Endpoint(http.server.ThreadingHTTPServer):
    """Says what it is told to; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies: list[tuple[int, str]] = []
        self.asked: list[dict[str, Any]] = []
        self.default = (200, json.dumps({"choices": [{"message": {"content": '{"steps": [["A", "40"], ["x"]]}'}}]}))

    @property
    def settings(self) -> MakingSettings:
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        endpoint = EndpointSettings(url, "tiny", timeout=5)
        return replace(RULES, keywords="endpoint", language=KeywordSettings(endpoint))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **json.loads(body)})
        status, text = self.server.replies.pop(0) if self.server.replies else self.server.default
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(endpoint_module, "_RETRIES", 1)
    monkeypatch.setattr(endpoint_module, "_BACKOFF", 0.01)
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_an_endpoint_names_keywords(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    endpoint.replies = [(503, "busy")]
    config = PrepareInterleaveConfig(
        str(write_data(tmp_path, [row(0)])), str(tmp_path / "made"), making=endpoint.settings
    )
    assert prepare(config).rows == 1
    (problem,) = read_shards(tmp_path / "made").problems
    assert [step.cells for step in problem.steps] == [(0,), (15,)]
    assert len(endpoint.asked) == 2, "once more behind a passing failure"
    asked = endpoint.asked[-1]
    assert asked["path"] == "/v1/chat/completions" and asked["key"] == "Bearer secret" and asked["model"] == "tiny"
    assert "Step 2: x = 180 - 40 = 140." in asked["messages"][0]["content"]
    assert "secret" not in "".join(file.read_text(errors="ignore") for file in (tmp_path / "made").glob("*.json*"))


def test_nonsense_skips_its_row_alone(endpoint: Endpoint, tmp_path: Path) -> None:
    nonsense = (200, json.dumps({"choices": [{"message": {"content": "I would rather not."}}]}))
    endpoint.replies = [nonsense, nonsense]
    data = write_data(tmp_path, [row(0), row(1)])
    report = prepare(PrepareInterleaveConfig(str(data), str(tmp_path / "made"), making=endpoint.settings))
    assert (report.rows, report.skipped) == (1, 1)
    assert "rather not" in (tmp_path / "made" / "skipped.jsonl").read_text()


@pytest.mark.parametrize("reply", [(200, "<html>"), (200, '{"choices": []}'), (404, ""), (500, "")])
def test_an_endpoint_that_fails_stops_the_run_and_no_row_is_lost(
    endpoint: Endpoint, tmp_path: Path, reply: tuple[int, str]
) -> None:
    good, endpoint.default = endpoint.default, reply
    endpoint.replies = [good, good]
    data = write_data(tmp_path, [row(n) for n in range(9)])
    config = PrepareInterleaveConfig(str(data), str(tmp_path / "made"), making=endpoint.settings, shard_size=2)
    with pytest.raises(KeywordsStopped, match=r"5 rows in a row, rows.jsonl:3 to rows.jsonl:7.*same command again"):
        prepare(config)
    assert len(read_shards(tmp_path / "made").problems) == 2
    endpoint.default = good
    report = prepare(config)
    assert (report.rows, report.skipped) == (9, 0)


def test_an_endpoint_needs_an_address_and_a_model(tmp_path: Path) -> None:
    config = PrepareInterleaveConfig(str(write_data(tmp_path, [row(0)])), str(tmp_path / "made"))
    with pytest.raises(ValueError, match="--making.language.endpoint.url"):
        prepare(replace(config, making=replace(RULES, keywords="endpoint")))
    with pytest.raises(ValueError, match="need the folder of a text model"):
        prepare(replace(config, making=replace(RULES, keywords="model")))


# OCR


def test_words_of_a_figure_are_read(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    pytest.importorskip("onnxruntime")
    from perception.datasets.interleaved.ocr import RapidOcr

    image = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(image)
    for text, place in (("HEIGHT", (40, 40)), ("125", (280, 220))):
        draw.text(place, text, fill="black", font_size=36)
    found = {word.text: word for word in RapidOcr()(image)}
    assert {"HEIGHT", "125"} <= set(found)
    x1, y1, x2, y2 = found["125"].box
    assert 0.65 < x1 < x2 < 0.9 and 0.7 < y1 < y2 < 0.92 and not found["125"].exact
    assert RapidOcr()(Image.new("RGB", (64, 64), "white")) == []
