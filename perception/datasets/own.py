"""Read your own images and questions from a table (CSV) or JSON lines, with one question per row.

    image,question,answer,boxes,things
    desk.jpg,How many cups are there?,2,"[[10, 20, 60, 90], [80, 15, 130, 88]]",cups
    desk.jpg,What colour is the lamp?,green,,
    yard.jpg,How many dogs are there?,0,[],dogs

    {"image": "desk.jpg", "question": "How many cups are there?", "answer": 2, "boxes": [[10, 20, 60, 90], ...]}

- image: a file, relative to the table's folder.
- question, answer: plain text; names of perception tokens in them stay text.
- boxes (optional): the boxes of the counted objects, as x1 y1 x2 y2 in pixels from the upper left corner of the upright
  image (photos are turned by their EXIF data, as viewers show them). With boxes, a "how many" question is also taught
  as a chain: the boxes first, then their number.
- things (optional): the plural of the boxed objects. With it, drawing the boxes is also a task: "Draw the boxes of the
  cups."
- id (optional): unique per row.

Train on them with

    python -m train.finetune --base MODEL --data.own questions.csv --out OUT
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from perception import answers, chains
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.records import Record, RecordSet
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

_NEEDED = ("image", "question", "answer")
_KNOWN = (*_NEEDED, "boxes", "things", "id")
_REMEDY = "correct or remove the row"


def read_questions(path: Path, num_locations: int) -> RecordSet:
    """Records of a table: per row a direct answer, with boxes also a chain, and with things also the boxes alone.

    Args:
        path: CSV file (.csv), or JSON lines (.jsonl or .json).
        num_locations: number of bins for the coordinates of boxes.

    Raises:
        ValueError: naming file and row, if a column is missing or unknown, a question or answer is empty, an image is
            missing, a box is empty or reaches outside the image, the answer differs from the number of boxes, or an id
            occurs twice.
    """
    tokenizer, records, seen = BoxTokenizer(num_locations), [], set[str]()
    for where, row in _rows(path):
        name = _text(row, "id")
        if name and name in seen:
            raise ValueError(f"{where}: id {name} is there twice; give each row a unique id")
        seen.add(name)
        missing = [column for column in _NEEDED if not _text(row, column)]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}; {_REMEDY}")
        image = ImageFile(path.parent / _text(row, "image"))
        check_exists(image.path, where)
        records += [Record(image, example, where) for example in _examples(row, image, tokenizer, where)]
    if not records:
        raise ValueError(f"{path} holds no questions; give a row with {', '.join(_NEEDED)}")
    return RecordSet(tuple(records))


def _examples(row: dict[str, Any], image: ImageFile, tokenizer: BoxTokenizer, where: str) -> list[chains.Example]:
    question, answer, things = (_text(row, column) for column in ("question", "answer", "things"))
    answer = answer.removesuffix(".")  # targets end in a full stop already
    examples = [chains.direct(chains.direct_task(question), question, answer)]
    boxes = _boxes(row, image, where)
    if boxes is None:
        return examples
    span = Span("boxes", tuple(tokenizer.encode(boxes)))
    if chains.kind_of_question(question) == "count":
        if answers.read_count(answer) != len(boxes):
            raise ValueError(f"{where}: the answer is {answer} and there are {len(boxes)} boxes; {_REMEDY}")
        examples.append(chains.chain_count(question, span))
    if things:
        examples.append(chains.atomic_boxes(things, span))
    return examples


def _boxes(row: dict[str, Any], image: ImageFile, where: str) -> np.ndarray | None:
    """Boxes (N, 4) xyxy in [0, 1], or None if the row has no boxes."""
    given = row.get("boxes")
    if given is None or (isinstance(given, str) and not given.strip()):
        return None
    try:
        boxes = np.array(json.loads(given) if isinstance(given, str) else given, dtype=np.float64)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    except (ValueError, TypeError):
        boxes = np.zeros(0)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be a list of [x1, y1, x2, y2] in pixels, got {given!r:.80}; {_REMEDY}")
    try:
        height, width = image.size()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for box in boxes:
        x1, y1, x2, y2 = box
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise ValueError(
                f"{where}: box {box.tolist()} is empty or not inside the image of {width} x {height} pixels; give "
                f"x1 < x2 and y1 < y2 in pixels, or {_REMEDY}"
            )
    return boxes / np.array([width, height, width, height])


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line, row)."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a CSV or JSON lines file with {', '.join(_NEEDED)}")
    if path.suffix.lower() not in (".csv", ".jsonl", ".json"):
        raise ValueError(f"{path} must end in .csv, .jsonl or .json; got {path.suffix!r}")
    read = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    for where, row in read(path):
        unknown = [str(column) for column in row if column not in _KNOWN]
        if unknown:
            raise ValueError(f"{where}: unknown column {', '.join(unknown)}; known: {', '.join(_KNOWN)}")
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
        reader = csv.DictReader(file, restkey="(a value without a column)")
        try:
            for row in reader:
                yield f"{path.name}, line {reader.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num} is not CSV in UTF-8 ({error}); save it again") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not complete JSON ({error}); write one object per line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be a JSON object, got {type(row).__name__}; write one object per line")
        yield where, row
