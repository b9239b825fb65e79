"""Records that count or draw boxes are shown in their mirror image half of the time, or cut, turned and recoloured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perception import chains
from perception.chains import ChatPrompt, Example
from perception.datasets.detection import count_records
from perception.datasets.images import ImageFile
from perception.datasets.records import Record, RecordSet
from perception.model.folder import find_folder, read_processor
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.curriculum import CurriculumConfig
from train.data.records import RecordRows, may_mirror
from train.data.rows import RowEncoder, TokenWeights

BOXES = np.random.default_rng(0).uniform([0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], (35, 4))
SPAN = Span("boxes", tuple(BoxTokenizer(100).encode(BOXES)))


@pytest.fixture
def record(tmp_path: Path) -> Record:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cells.png")
    return Record(ImageFile(tmp_path / "cells.png"), chains.chain_count("How many RBCs are there?", SPAN), "cells")


def rows_of(*records: Record) -> RecordRows:
    return RecordRows(records, CurriculumConfig("constant", atomic_end=0.0, chain_share=1.0), 20, 0, 100)


def test_a_mirrored_row_shows_the_mirror_image_and_its_boxes_in_order(record: Record) -> None:
    rows = [row for step in range(20) for row in rows_of(record).rows(step, 0, 1, 4)]
    plain = np.array(record.image.load())
    turned = [row for row in rows if not np.array_equal(np.array(row.image), plain)]
    assert 25 < len(turned) < 55, "about half of 80"
    wanted = BoxTokenizer(100).encode(1 - BOXES[:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 1, 0, 1])
    for row in turned:
        assert np.array_equal(np.array(row.image), plain[:, ::-1])
        span, said = row.example.target
        # a side on the edge of a bin falls into the bin beside it
        assert np.abs(np.sort(np.array(span.codes)) - np.sort(np.array(wanted))).max() <= 1
        boxes = BoxTokenizer(100).decode(span.codes)
        assert tuple(BoxTokenizer(100).encode(boxes)) == span.codes and said == " 35."
        assert BoxTokenizer(100).mirror(BoxTokenizer(100).mirror(span.codes)) == list(span.codes)
    assert all(row.example == record.example for row in rows if row not in turned)


def test_two_devices_mirror_the_same_rows_as_one(record: Record) -> None:
    source = rows_of(record)
    for step in range(4):
        whole = source.rows(step, 0, 1, 4)
        parts = source.rows(step, 0, 2, 2) + source.rows(step, 1, 2, 2)
        assert [row.example for row in whole] == [row.example for row in parts]


def test_what_depends_on_sides_is_not_mirrored(record: Record) -> None:
    assert may_mirror(record)
    assert may_mirror(replace(record, example=chains.atomic_boxes("cups", SPAN)))
    for question in (
        "How many cups are left of the jug?",
        "How many right shoes are there?",
        "How many leftmost cups?",
        "How many arrows point east?",
        "How many people look to the north-west?",
        "How many cars drive counterclockwise?",
        "How many letters b are there?",
        "框出左边的人",
        "Wo sind die linken Becher?",
        "Où sont les tasses à droite ?",
        "¿Dónde está la taza de la izquierda?",
    ):
        assert not may_mirror(replace(record, example=chains.chain_count(question, SPAN)))
    text = Example(chains.DIRECT_OTHER, "What does the sign say?", (" STOP.",), "STOP")
    assert not may_mirror(replace(record, example=text)) and not may_mirror(replace(record, more=(text,)))
    assert not may_mirror(replace(record, example=chains.atomic_depth(Span("depth", (0,) * 4))))
    assert not may_mirror(replace(record, marks=((0.1, 0.2),)))
    assert not may_mirror(replace(record, image=None, images=(record.image,)))


@pytest.mark.parametrize(
    "said",
    [
        'Counting the <points x1="12.3" y1="45.6" alt="dogs">dogs</points> shows a total of 1.',
        '[{"bbox_2d": [10, 10, 60, 60], "label": "dog"}]',
        "There is 1 dog at (0.12,0.3).",
        '{"x": 12}',
        "<loc0123><loc0456> dog",
    ],
)
def test_places_in_plain_text_are_not_mirrored(record: Record, said: str) -> None:
    plain = Example(chains.DIRECT_COUNT, "How many dogs are there?", (f" {said}",), "1")
    assert not may_mirror(replace(record, example=plain))
    assert not may_mirror(replace(record, more=(plain,)))
    for said in ("There are 3 dogs: 2 on the bed and 1 below it.", "3.", "3, all of them brown."):
        assert may_mirror(replace(record, example=replace(plain, target=(f" {said}",))))


def test_boxes_in_another_order_keep_it() -> None:
    assert BoxTokenizer(10).mirror([5, 8, 6, 9, 1, 0, 2, 1]) == [3, 8, 4, 9, 7, 0, 8, 1]
    assert BoxTokenizer(10).mirror([1, 0, 2, 1, 5, 0, 6, 1]) == [3, 0, 4, 1, 7, 0, 8, 1]
    assert BoxTokenizer(10).mirror([]) == []


CELLS = ((0.1, 0.1, 0.3, 0.4), (0.6, 0.2, 0.75, 0.3), (0.55, 0.7, 0.8, 0.9), (0.2, 0.65, 0.3, 0.85))


@pytest.fixture
def counted(tmp_path: Path) -> list[Record]:
    """White cells on black: their boxes can be seen in any part of the image."""
    pixels = np.zeros((200, 300, 3), np.uint8)
    for x1, y1, x2, y2 in CELLS:
        pixels[round(200 * y1) : round(200 * y2), round(300 * x1) : round(300 * x2)] = 255
    Image.fromarray(pixels).save(tmp_path / "white.png")
    span = Span("boxes", tuple(BoxTokenizer(100).encode(CELLS)))
    return count_records(ImageFile(tmp_path / "white.png"), "cells", span, "white")


@pytest.mark.parametrize("augment", ["parts", "turned"])
def test_the_boxes_of_a_part_are_those_that_can_be_seen_in_it(counted: list[Record], augment: Any) -> None:
    curriculum, tokenizer = CurriculumConfig("constant", atomic_end=0.4, chain_share=0.5), BoxTokenizer(100)
    source = RecordRows(tuple(counted), curriculum, 40, 0, 100, augment)
    rows, numbers = [row for step in range(40) for row in source.rows(step, 0, 1, 4)], set()
    for row in rows:
        if row.example.task == chains.DIRECT_COUNT:
            assert row.example.target == (f" {row.example.answer}.",)
            continue
        span = row.example.target[0]
        boxes = tokenizer.decode(span.codes)
        assert tuple(tokenizer.encode(boxes)) == span.codes, "in the order of other rows"
        numbers.add(len(boxes))
        if row.example.task == chains.CHAIN_COUNT:
            assert row.example.answer == str(len(boxes)) and row.example.target[1] == f" {len(boxes)}."
        seen = np.array(row.image).max(2) > 100
        size = np.array([row.image.width, row.image.height] * 2)
        for x1, y1, x2, y2 in (boxes * size).round().astype(int):
            inside = seen[y1:y2, x1:x2]
            assert inside.mean() > 0.6, "a box holds its cell, but for a bin at each side"
            seen[max(0, y1 - 5) : y2 + 5, max(0, x1 - 5) : x2 + 5] = False
        assert seen.mean() < 0.08, "what is left of other cells is small"
    upright = np.mean([row.image.height > row.image.width for row in rows])
    assert len(numbers) > 2 and (0.3 < upright < 0.7 if augment == "turned" else upright < 0.2)
    assert {row.example.question for row in rows} == {record.example.question for record in counted}


@pytest.mark.parametrize("augment", ["parts", "turned"])
def test_cells_smaller_than_a_bin_are_counted(counted: list[Record], augment: Any) -> None:
    """All of them where the whole image is shown, and about as many as the part's share of the image elsewhere."""
    corners = np.random.default_rng(2).uniform(0, 0.995, (40, 2))
    span = Span("boxes", tuple(BoxTokenizer(100).encode(np.concatenate([corners, corners + 0.004], 1))))
    assert counted[0].image is not None
    records = tuple(count_records(counted[0].image, "cells", span, "white"))
    source = RecordRows(records, CurriculumConfig("constant", atomic_end=0.0, chain_share=1.0), 50, 0, 100, augment)
    shown = [row for step in range(50) for row in source.rows(step, 0, 1, 4)]
    found = [(int(r.example.answer), r.image.width * r.image.height / 60_000) for r in shown if r.image is not None]
    assert {count for count, share in found if share == 1} == {40}
    assert 0.9 < np.mean([count / (40 * share) for count, share in found]) < 1.2


def test_records_without_boxes_of_all_that_is_counted_stay_whole(counted: list[Record]) -> None:
    plain = [replace(record, counted=None) for record in counted]
    curriculum = CurriculumConfig("constant", atomic_end=0.4, chain_share=0.5)
    made = [RecordRows(tuple(plain), curriculum, 20, 0, 100, augment) for augment in ("mirror", "turned")]
    for step in range(20):
        for one, other in zip(*(source.rows(step, 0, 1, 4) for source in made), strict=True):
            assert one.example == other.example and np.array_equal(np.array(one.image), np.array(other.image))


@pytest.mark.parametrize("augment", ["parts", "turned"])
def test_questions_about_places_are_asked_of_the_whole_image(counted: list[Record], augment: Any) -> None:
    """In a part, or turned, the upper half is another one."""
    image = counted[0].image
    assert image is not None
    half = count_records(
        image, "cells in the upper half", Span("boxes", tuple(BoxTokenizer(100).encode(CELLS[:2]))), ""
    )
    curriculum, plain = CurriculumConfig("constant", atomic_end=0.4, chain_share=0.5), np.array(image.load())
    cut = 0
    for step in range(30):
        for row in RecordRows((*counted, *half), curriculum, 30, 0, 100, augment).rows(step, 0, 1, 4):
            whole = any(np.array_equal(np.array(row.image), one) for one in (plain, plain[:, ::-1]))
            halves = ["upper half" in example.question for example in (row.example, *row.extra)]
            assert whole if halves[0] else not any(halves), "nor is it asked about beside another question"
            cut += not whole
            for example in (row.example, *row.extra):
                if halves[0] and example.answer:
                    assert example.answer == ("2" if "upper half" in example.question else "4")
    assert cut > 30


def test_written_records_keep_what_they_count(counted: list[Record], tmp_path: Path) -> None:
    RecordSet(tuple(counted)).write(tmp_path / "records.jsonl")
    assert RecordSet.read(tmp_path / "records.jsonl").records == tuple(counted)
    assert all(record.counted for record in counted)


@pytest.fixture
def kinds(counted: list[Record]) -> list[Record]:
    """Four kinds of things in one image, and one in another."""
    image = counted[0].image
    assert image is not None
    spans = [Span("boxes", tuple(BoxTokenizer(100).encode(CELLS[:n]))) for n in range(5)]
    records = [r for n, span in enumerate(spans[1:]) for r in count_records(image, f"things {n}", span, "white")]
    Image.new("RGB", (30, 20)).save(image.path.with_name("black.png"))
    return records + count_records(ImageFile(image.path.with_name("black.png")), "cells", spans[0], "black")


@pytest.mark.parametrize("augment", ["mirror", "turned"])
def test_an_image_is_read_once_for_three_questions(kinds: list[Record], augment: Any) -> None:
    source = RecordRows(
        tuple(kinds), CurriculumConfig("constant", atomic_end=0.3, chain_share=0.5), 30, 0, 100, augment
    )
    asked = set()
    for row in (row for step in range(30) for row in source.rows(step, 0, 1, 4)):
        examples = (row.example, *row.extra)
        assert len(examples) == (1 if "cells" in row.example.question else 3)
        assert len({example.question for example in examples}) == len(examples)
        assert len({example.task for example in examples}) == 1
        asked |= {example.question for example in row.extra}
        for example in examples:
            if example.task == chains.CHAIN_COUNT:
                assert example.target[1] == f" {len(example.target[0].codes) // 4}."
    assert len(asked) == 3 * 4, "four kinds of things, in three tasks"


def test_no_question_is_asked_twice_in_a_row(counted: list[Record]) -> None:
    """Also where two tables, or two lines of one, ask it of one image."""
    source = RecordRows((*counted, *counted), CurriculumConfig("constant", atomic_end=0.4, chain_share=0.5), 9, 0, 100)
    assert not any(row.extra for step in range(9) for row in source.rows(step, 0, 1, 4))


def test_questions_that_do_not_fit_are_left_out(kinds: list[Record]) -> None:
    """They are extra, and turns of a conversation are not."""
    folder = find_folder("models/perception-tiny")
    processor = read_processor(folder)
    tiny_encoder = RowEncoder(
        PerceptionVocabulary.load(folder),
        processor,
        ChatPrompt.from_processor(processor),
        TokenWeights(),
        frozenset(["pixel_values"]),
    )
    curriculum = CurriculumConfig("constant", atomic_end=0.0, chain_share=1.0)
    row = next(row for row in RecordRows(tuple(kinds), curriculum, 9, 0, 100).rows(0, 0, 1, 4) if row.extra)
    (whole,) = tiny_encoder.batches([row], 1)
    (alone,) = tiny_encoder.batches([replace(row, extra=())], 1)
    (two,) = tiny_encoder.batches([replace(row, extra=row.extra[:1])], 1)
    lengths = [batch["input_ids"].shape[1] for batch in (alone, two, whole)]
    assert lengths[0] < lengths[1] < lengths[2]
    assert (whole["labels"] >= 0).sum() > (two["labels"] >= 0).sum() > (alone["labels"] >= 0).sum()
    for most, wanted in ((lengths[2], whole), (lengths[1], two), (lengths[0], alone)):
        (made,) = replace(tiny_encoder, max_length=most).batches([row], 1)
        assert torch.equal(made["input_ids"], wanted["input_ids"])
    with pytest.raises(ValueError, match="max_length"):
        replace(tiny_encoder, max_length=lengths[0]).batches([replace(row, extra=(), more=row.extra)], 1)
