"""Read your own images and questions from a table (CSV) or JSON, with one question per row.

    image,question,answer,boxes,things
    desk.jpg,How many cups are there?,2,"[[10, 20, 60, 90], [80, 15, 130, 88]]",cups
    desk.jpg,What colour is the lamp?,green,,
    yard.jpg,How many dogs are there?,0,[],dogs

    {"image": "desk.jpg", "question": "How many cups are there?", "answer": 2, "boxes": [[10, 20, 60, 90], ...]}

CSV is UTF-8 and separated by commas, semicolons or tabs, as its first line is. JSON is one object per line, or a list.

- image: a file, relative to the table's folder. A question is about one image.
- question, answer: plain text; names of perception tokens in them stay text. An answer may be a number, not a list.
- boxes (optional): the boxes of the counted objects, as x1 y1 x2 y2 in pixels from the upper left corner of the upright
  image (photos are turned by their EXIF data, as viewers show them), or as `boxes_format` says (the formats of
  `perception.datasets.boxes`). With boxes, a "how many" question is also taught as a chain: the boxes first, then their
  number.
- things (optional): the plural of the boxed objects. With it, drawing the boxes is also a task: "Draw the boxes of the
  cups."
- id (optional): unique per row.

Train on them with

    python -m train.finetune --base MODEL --data.own questions.csv --out OUT
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception import answers, chains
from perception.datasets.boxes import DeclaredBoxes, Resize
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import json_objects, read_text
from perception.datasets.records import Record, RecordSet, bad_row
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

_TOO_MANY = "(values without a column)"
_NEEDED = ("image", "question", "answer")
_KNOWN = (*_NEEDED, "boxes", "things", "id")
CONVERSATIONS = ("messages", "conversations")
"""Columns that hold conversations (`perception.datasets.messages`)"""
_REMEDY = "correct or remove the row"
_ONE_IMAGE = "a question is about one image: make a row for each, or join them into one picture"
_LONGEST_NAME = 4096
"""Characters of a file's name, more than systems allow; the bytes of an image, as text, are longer"""
_SEPARATORS = ",;\t|"
_ENDS = ("!", "?", "\u2026", "\u3002", "\uff01", "\uff1f", "\u0964", "\u061f")
"""Ends of sentences beside the full stop: also those of Chinese, Japanese, Hindi and Arabic"""


def read_questions(
    path: Path,
    num_locations: int,
    boxes_format: str | None = None,
    skip_bad: bool = False,
    resize: Resize | None = None,
) -> RecordSet:
    """Records of a table: per row a direct answer, with boxes also a chain, and with things also the boxes alone.

    Boxes and things that no task uses are named in the set's `skipped`.

    Args:
        path: CSV file (.csv or .tsv), JSON lines, or a JSON list (.jsonl or .json).
        num_locations: number of bins for the coordinates of boxes.
        boxes_format: one of `perception.datasets.boxes.FORMATS`. None: pixels as x1 y1 x2 y2, and boxes that look like
            another format are refused.
        skip_bad: name rows that cannot be used in `skipped`, and go on.
        resize: the rule of a processor, for boxes in pixels of its resized images.

    Raises:
        ValueError: naming file and row, if a column is missing or unknown, a question or answer is empty or no text, a
            row has several images, an image is missing, a box is empty, reaches outside the image or looks like one of
            another format, the answer differs from the number of boxes, or an id occurs twice. With `skip_bad`, if the
            file cannot be read, has an unknown column, or no row can be used.
    """
    declared = DeclaredBoxes(boxes_format, resize)
    tokenizer, records, seen = BoxTokenizer(num_locations), list[Record](), set[str]()
    skipped: list[str] = []
    bad = skipped if skip_bad else None
    for where, row in _rows(path, bad):
        with bad_row(bad):
            name = _text(row, "id")
            if name and name in seen:
                raise ValueError(f"{where}: id {name} is there twice; give each row a unique id")
            seen.add(name)
            made, unused = question_records(row, path.parent, tokenizer, declared, where)
            records += made
            skipped += unused
    declared.check_file(path)
    if not records and skipped:
        raise ValueError(f"no row of {path} can be used; the first: {skipped[0]}")
    if not records:
        raise ValueError(f"{path} holds no questions; give a row with {', '.join(_NEEDED)}")
    return RecordSet(tuple(records), tuple(skipped))


def read_asked(path: Path) -> Iterator[tuple[str, ImageFile, str, str]]:
    """Yield place, image, question and answer of each row of a table, whatever its boxes are.

    Raises:
        ValueError: as `read_questions`, but for boxes and ids.
    """
    for where, row in _rows(path, None):
        row, image = _checked(row, path.parent, where)
        question = _text(row, "question")
        yield where, image, question, _answer(row, question)


def question_records(
    row: dict[str, Any], folder: Path, tokenizer: BoxTokenizer, declared: DeclaredBoxes, where: str
) -> tuple[list[Record], list[str]]:
    """The records of a row, and what of it no task uses. Raises ValueError as `read_questions`.

    Args:
        row: its image is a path relative to `folder`, or absolute.
    """
    row, image = _checked(row, folder, where)
    boxes = _boxes(row, where)
    if boxes is not None and len(boxes):
        boxes = declared.fractions(boxes, image_size(image, where), where)
    examples, unused = _examples(row, boxes, tokenizer, where)
    drawn = [part for example in examples for part in example.target if isinstance(part, Span)]
    counts = any(example.task == chains.CHAIN_COUNT for example in examples)
    return [Record(image, example, where, counted=drawn[0] if counts else None) for example in examples], unused


def _checked(row: dict[str, Any], folder: Path, where: str) -> tuple[dict[str, Any], ImageFile]:
    """The row, and its image."""
    row = _check_values(row, where)
    missing = [column for column in _NEEDED if not _text(row, column)]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; {_REMEDY}")
    name = _text(row, "image")
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"{where}: image is no file's name but {len(name)} characters, {name:.20}..; save images as files"
        )
    image = ImageFile(folder / name)
    if not image.path.is_file():
        _check_one_image(name, where)
    check_exists(image.path, where)
    return row, image


def _answer(row: dict[str, Any], question: str) -> str:
    answer = _text(row, "answer").removesuffix(".")  # targets end in a full stop already
    if chains.kind_of_question(question) == "count":
        answer = re.sub(r"^(\d+)\.0*$", r"\1", answer)  # spreadsheets and pandas write 2 as 2.0
    return answer


def _examples(
    row: dict[str, Any], boxes: NDArray[np.float64] | None, tokenizer: BoxTokenizer, where: str
) -> tuple[list[chains.Example], list[str]]:
    """The tasks of a row, and what of it no task uses."""
    question, things = _text(row, "question"), _text(row, "things")
    answer, counts = _answer(row, question), chains.kind_of_question(question) == "count"
    examples = [_direct(question, answer)]
    if boxes is None:
        unused = f"{where}: things are named and there are no boxes, so nothing is drawn; give boxes too"
        return examples, [unused] if things else []
    span = Span("boxes", tuple(tokenizer.encode(boxes)))
    if counts:
        if answers.read_count(answer) != len(boxes):
            raise ValueError(f"{where}: the answer is {answer} and there are {len(boxes)} boxes; {_REMEDY}")
        examples.append(chains.chain_count(question, span))
    if things:
        examples.append(chains.atomic_boxes(things, span))
    if not counts and not things:
        return examples, [
            f'{where}: the boxes are not used, since {question!r:.60} is not read as a count ("how many"); name the '
            "boxed things in the column things, or remove the boxes"
        ]
    return examples, []


def _direct(question: str, answer: str) -> chains.Example:
    """The task of a direct answer, with a full stop behind one that does not end as a sentence does."""
    task = chains.direct_task(question)
    if answer.endswith(_ENDS):
        return chains.Example(task, question, (f" {answer}",), answer)
    return chains.direct(task, question, answer)


def _check_one_image(name: str, where: str) -> None:
    """Raise ValueError for what looks like a list of images in one cell."""
    if name.startswith("[") or re.search(r"\.\w+\s*[;|,]\s*\S+\.\w+$", name):
        raise ValueError(f"{where}: several images, {name!r:.80}; {_ONE_IMAGE}")


def _boxes(row: dict[str, Any], where: str) -> NDArray[np.float64] | None:
    """Boxes (N, 4) as they are given, or None if the row has no boxes."""
    given = row.get("boxes")
    if _is_missing(given) or (isinstance(given, str) and not given.strip()):
        return None
    try:
        boxes = np.array(json.loads(given) if isinstance(given, str) else given, dtype=np.float64)
        boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
    except (ValueError, TypeError):
        boxes = np.zeros(0)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{where}: boxes must be a list of [x1, y1, x2, y2] in pixels, got {given!r:.80}; {_REMEDY}")
    return boxes


def image_size(image: ImageFile, where: str) -> tuple[int, int]:
    """(height, width) of a row's image."""
    try:
        return image.size()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if _is_missing(value) else str(value).strip()


def _is_missing(value: Any) -> bool:
    """True for no value: NaN is how pandas writes a missing one to JSON."""
    return value is None or (isinstance(value, float) and value != value)


def _check_values(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row, with one image. Raises ValueError for a list or an object where a text is meant."""
    if _TOO_MANY in row:
        raise ValueError(f"{where} has more values than columns; put text that holds the separator in quotes")
    images = row.get("images") if "image" not in row else row["image"]
    if isinstance(images, list):
        if len(images) != 1:
            raise ValueError(f"{where}: {len(images)} images, {images!r:.80}; {_ONE_IMAGE}")
        row = {name: value for name, value in row.items() if name != "images"} | {"image": images[0]}
    for column in ("image", "question", "answer", "things", "id"):
        if isinstance(row.get(column), list | dict | bool):
            raise ValueError(
                f"{where}: {column} must be text or a number, got {row[column]!r:.80}; write text, one answer per row"
            )
    return row


def _rows(path: Path, skipped: list[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line, row). `skipped` is that of `json_objects`."""
    if not path.is_file():
        missing = "is a folder" if path.is_dir() else "does not exist"
        raise ValueError(f"{path} {missing}; give a CSV or JSON lines file with {', '.join(_NEEDED)}")
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ValueError(f"{path} must end in .csv, .tsv, .jsonl or .json; got {path.suffix!r}")
    is_csv = path.suffix.lower() in (".csv", ".tsv")
    for where, row in _csv_rows(path) if is_csv else json_objects(path, skipped):
        _check_columns(row, where)
        yield where, row


def _check_columns(columns: Iterable[str], where: str) -> None:
    unknown = [str(column) for column in columns if column not in (*_KNOWN, "images", _TOO_MANY)]
    if unknown:
        hint = "; give a table of messages as data.dataset" if set(unknown) & set(CONVERSATIONS) else ""
        raise ValueError(f"{where}: unknown column {', '.join(unknown)}; known: {', '.join(_KNOWN)}{hint}")


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = io.StringIO(read_text(path), newline="")
    first = lines.readline()
    if first.lower().startswith("sep="):  # Excel's own way to name the separator
        separator, begun = first.strip()[4:5], 1
    else:
        separator, begun = max(_SEPARATORS, key=first.count), 0
        lines.seek(0)
    reader = csv.DictReader(lines, delimiter=separator or ",", restkey=_TOO_MANY, skipinitialspace=True)
    try:
        columns = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = columns
        _check_columns(columns, f"{path.name}, line {1 + begun}")  # before cells too long to be read
        for row in reader:
            if any(value and str(value).strip() for value in row.values()):
                yield f"{path.name}, line {reader.line_num + begun}", row
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num + begun} is not CSV ({error}); save it again, with images as files"
        ) from error
