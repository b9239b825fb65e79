"""AURORA's JSON files become records, and what is wrong with one is said by entry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perception import chains
from perception.datasets.aurora import AURORA_VOCABULARY, read_aurora
from perception.datasets.records import Record
from perception.vocabulary.names import Span

CODES = tuple(n % 128 for n in range(100))
DEPTH = "<DEPTH_START>" + "".join(f"<DEPTH_{n}>" for n in CODES) + "<DEPTH_END>"


def box(*sides: int) -> str:
    return "(" + ",".join(f"<PIXEL_{n}>" for n in sides) + ")"


def write(folder: Path, *turns: str, **changes: Any) -> Path:
    Image.new("RGB", (8, 8)).save(folder / "a.jpg")
    said = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    file = folder / "train.json"
    file.write_text(json.dumps([{"id": "7", "image": "a.jpg", "conversations": said} | changes]))
    return file


def read(folder: Path, *turns: str, **changes: Any) -> list[Record]:
    return list(read_aurora(write(folder, *turns, **changes), folder).records)


@pytest.mark.parametrize(
    ("question", "answer", "task", "target", "value"),
    [
        ("What is the depth map for the image?", DEPTH, chains.ATOMIC_DEPTH, (Span("depth", CODES),), ""),
        (
            "Return the bounding boxes of cats.",
            f"{box(1, 2, 30, 40)}, {box(5, 6, 335, 80)}",
            chains.ATOMIC_BOXES,
            (Span("boxes", (1, 2, 30, 40, 5, 6, 335, 80)),),
            "",
        ),
        (
            "How many cats are there?",
            f"The boxes are {box(1, 2, 30, 40)}; {box(5, 6, 7, 80)}. There are 2 cats.",
            chains.CHAIN_COUNT,
            (" The boxes are ", Span("boxes", (1, 2, 30, 40, 5, 6, 7, 80)), ". There are 2 cats."),
            "2",
        ),
        (
            "Which point is closer to the camera? Use the depth map.",
            f"A is at (10, 20), B at (30, 40). {DEPTH} The answer is B.",
            chains.CHAIN_DEPTH,
            (" A is at (10, 20), B at (30, 40). ", Span("depth", CODES), " The answer is B."),
            "B",
        ),
        ("How many cats?", "3", chains.DIRECT_COUNT, (" 3",), "3"),
        ("What is it?", "A cat.", chains.DIRECT_OTHER, (" A cat.",), "A cat."),
    ],
)
def test_conversations_become_examples(
    tmp_path: Path, question: str, answer: str, task: str, target: tuple[str | Span, ...], value: str
) -> None:
    (record,) = read(tmp_path, f"<image>\n{question}", answer)
    example = record.example
    assert (example.task, example.question, example.target, example.answer) == (task, question, target, value)
    assert record.image.path == tmp_path / "a.jpg" and record.tokenizer == ""
    for part in target:
        if isinstance(part, Span):
            AURORA_VOCABULARY.check_span(part)


def test_every_turn_is_a_record(tmp_path: Path) -> None:
    first, second = read(tmp_path, "<image>\nHow many cats?", "2", "And how many dogs?", "1")
    assert (first.example.answer, second.example.answer) == ("2", "1")
    assert second.source == "train.json, entry 0 (id 7)"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (DEPTH.replace("<DEPTH_5>", "<DEPTH_128>"), r"unknown token <DEPTH_128>; known: <DEPTH_0> \.\. <DEPTH_127>"),
        (box(1, 2, 3, 336), r"unknown token <PIXEL_336>; known: .*<PIXEL_335>"),
        ("<SEG_1> there", "unknown token <SEG_1>"),
        (DEPTH.removesuffix("<DEPTH_END>"), "the depth span is cut short after 100 codes; a depth map is START, 100"),
        (DEPTH.replace("<DEPTH_5>", ""), "a depth span must hold exactly 100 codes, got 99"),
        (DEPTH.removeprefix("<DEPTH_START>"), "stray code of depth"),
        ("(<PIXEL_1>,<PIXEL_2>,<PIXEL_3>", "stray code of location .* correct or remove the entry"),
        (box(30, 2, 1, 40), "a box is inverted"),
    ],
)
def test_bad_spans_are_named_with_file_and_entry(tmp_path: Path, answer: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"train\.json, entry 0 \(id 7\): .*{said}"):
        read(tmp_path, "How many?", answer)


def test_bad_entries_are_named(tmp_path: Path) -> None:
    pair = ("How many?", "2")
    with pytest.raises(ValueError, match=r"entry 0 \(id 7\): image .*gone\.jpg does not exist; put it there"):
        read(tmp_path, *pair, image="gone.jpg")
    with pytest.raises(ValueError, match=r"entry 0 \(id 7\) names no image"):
        read(tmp_path, *pair, image=None)
    with pytest.raises(ValueError, match="must alternate between human and gpt"):
        read(tmp_path, "How many?")
    with pytest.raises(ValueError, match="expected a turn of gpt with its text as value, got {'from': 'human'"):
        read(tmp_path, *pair, conversations=[{"from": "human", "value": "x"}] * 2)
    with pytest.raises(ValueError, match="a turn of human is empty"):
        read(tmp_path, "<image>", "2")
    with pytest.raises(ValueError, match="has 2 images; a question is about one image"):
        read(tmp_path, *pair, image=["a.jpg", "b.jpg"])
    with pytest.raises(ValueError, match="a turn asks about several images"):
        read(tmp_path, "<image> <image> How many cats are in both?", "2.")
    file = write(tmp_path, *pair)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_aurora(file, tmp_path).records) == 1
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train\.json is not complete JSON"):
        read_aurora(file, tmp_path)
    file.write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of conversations, got dict"):
        read_aurora(file, tmp_path)
