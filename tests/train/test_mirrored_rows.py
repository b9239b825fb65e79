"""Records that count or draw boxes are shown in their mirror image half of the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perception import chains
from perception.chains import Example
from perception.datasets.images import ImageFile
from perception.datasets.records import Record
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span
from train.data.curriculum import CurriculumConfig
from train.data.records import RecordRows, may_mirror

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
    ):
        assert not may_mirror(replace(record, example=chains.chain_count(question, SPAN)))
    text = Example(chains.DIRECT_OTHER, "What does the sign say?", (" STOP.",), "STOP")
    assert not may_mirror(replace(record, example=text)) and not may_mirror(replace(record, more=(text,)))
    assert not may_mirror(replace(record, example=chains.atomic_depth(Span("depth", (0,) * 4))))
    assert not may_mirror(replace(record, marks=((0.1, 0.2),)))
    assert not may_mirror(replace(record, image=None, images=(record.image,)))


def test_boxes_in_another_order_keep_it() -> None:
    assert BoxTokenizer(10).mirror([5, 8, 6, 9, 1, 0, 2, 1]) == [3, 8, 4, 9, 7, 0, 8, 1]
    assert BoxTokenizer(10).mirror([1, 0, 2, 1, 5, 0, 6, 1]) == [3, 0, 4, 1, 7, 0, 8, 1]
    assert BoxTokenizer(10).mirror([]) == []
