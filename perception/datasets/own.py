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
  image (photos are turned by their EXIF data, as viewers show them), or as `boxes_format` says. With boxes, a "how
  many" question is also taught as a chain: the boxes first, then their number.
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perception import answers, chains
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import json_rows, read_text
from perception.datasets.records import Record, RecordSet
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

_NEEDED = ("image", "question", "answer")
_KNOWN = (*_NEEDED, "boxes", "things", "id")
_REMEDY = "correct or remove the row"
_ONE_IMAGE = "a question is about one image: make a row for each, or join them into one picture"
_SEPARATORS = ",;\t|"
_THOUSANDTHS = 1000


def _xywh(boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _cxcywh(boxes: NDArray[np.float64], width: int, height: int) -> NDArray[np.float64]:
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1) * [width, height, width, height]


BOXES_FORMATS: dict[str, Callable[[NDArray[np.float64], int, int], NDArray[np.float64]]] = {
    "xyxy": lambda boxes, width, height: boxes,
    "xywh": _xywh,
    "xyxy-1": lambda boxes, width, height: boxes * [width, height, width, height],
    "cxcywh-1": _cxcywh,
    "xyxy-1000": lambda boxes, width, height: boxes / 1000 * [width, height, width, height],
}
"""(boxes (N, 4), width, height) -> boxes as x1 y1 x2 y2 in pixels, by the name of a format. xyxy and xywh (COCO) are in
pixels; -1 is in [0, 1] of the image, as YOLO's cxcywh-1; -1000 is in thousandths of it."""


def read_questions(path: Path, num_locations: int, boxes_format: str | None = None) -> RecordSet:
    """Records of a table: per row a direct answer, with boxes also a chain, and with things also the boxes alone.

    Boxes and things that no task uses are named in the set's `skipped`.

    Args:
        path: CSV file (.csv or .tsv), JSON lines, or a JSON list (.jsonl or .json).
        num_locations: number of bins for the coordinates of boxes.
        boxes_format: one of `BOXES_FORMATS`. None: pixels as x1 y1 x2 y2, and boxes that look like another format are
            refused.

    Raises:
        ValueError: naming file and row, if a column is missing or unknown, a question or answer is empty or no text, a
            row has several images, an image is missing, a box is empty, reaches outside the image or looks like one of
            another format, the answer differs from the number of boxes, or an id occurs twice.
    """
    if boxes_format is not None and boxes_format not in BOXES_FORMATS:
        raise ValueError(f"unknown boxes_format {boxes_format!r}; known: {', '.join(BOXES_FORMATS)}")
    tokenizer, records, seen = BoxTokenizer(num_locations), list[Record](), set[str]()
    skipped: list[str] = []
    drawn: list[tuple[NDArray[np.float64], tuple[int, int]]] = []
    for where, row in _rows(path):
        name = _text(row, "id")
        if name and name in seen:
            raise ValueError(f"{where}: id {name} is there twice; give each row a unique id")
        seen.add(name)
        missing = [column for column in _NEEDED if not _text(row, column)]
        if missing:
            raise ValueError(f"{where} lacks {', '.join(missing)}; {_REMEDY}")
        image = ImageFile(path.parent / _text(row, "image"))
        _check_one_image(_text(row, "image"), where)
        check_exists(image.path, where)
        boxes = _boxes(row, where)
        if boxes is not None and len(boxes):
            size = _size(image, where)
            drawn.append((boxes, size))
            boxes = _fractions(boxes, size, boxes_format, where)
        examples, unused = _examples(row, boxes, tokenizer, where)
        records += [Record(image, example, where) for example in examples]
        skipped += unused
    if not records:
        raise ValueError(f"{path} holds no questions; give a row with {', '.join(_NEEDED)}")
    if boxes_format is None:
        _check_thousandths(path, drawn)
    return RecordSet(tuple(records), tuple(skipped))


def _examples(
    row: dict[str, Any], boxes: NDArray[np.float64] | None, tokenizer: BoxTokenizer, where: str
) -> tuple[list[chains.Example], list[str]]:
    """The tasks of a row, and what of it no task uses."""
    question, answer, things = (_text(row, column) for column in ("question", "answer", "things"))
    answer = answer.removesuffix(".")  # targets end in a full stop already
    counts = chains.kind_of_question(question) == "count"
    if counts:
        answer = re.sub(r"^(\d+)\.0*$", r"\1", answer)  # spreadsheets and pandas write 2 as 2.0
    examples = [chains.direct(chains.direct_task(question), question, answer)]
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


def _check_one_image(name: str, where: str) -> None:
    """Raise ValueError for what looks like a list of images in one cell."""
    if name.startswith("[") or re.search(r"\.\w+\s*[;|,]\s*\S+\.\w+$", name):
        raise ValueError(f"{where}: several images, {name!r:.80}; {_ONE_IMAGE}")


def _boxes(row: dict[str, Any], where: str) -> NDArray[np.float64] | None:
    """Boxes (N, 4) as they are given, or None if the row has no boxes."""
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
    return boxes


def _size(image: ImageFile, where: str) -> tuple[int, int]:
    """(height, width) of a row's image."""
    try:
        return image.size()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fractions(
    boxes: NDArray[np.float64], size_hw: tuple[int, int], boxes_format: str | None, where: str
) -> NDArray[np.float64]:
    """Boxes (N, 4) of a format as xyxy in [0, 1]. Raises ValueError for one that is empty, outside, or of another."""
    height, width = size_hw
    size = np.array([width, height, width, height])
    for box in boxes:
        if boxes_format is None and (box.max() <= 1 or (box.max() < 2 and (box % 1).any())):
            raise ValueError(
                f"{where}: box {box.tolist()} is not in pixels but in [0, 1] of the image, as it seems; set "
                "boxes_format xyxy-1, or cxcywh-1 for YOLO's (xyxy if it is in pixels)"
            )
        if not _is_inside(BOXES_FORMATS[boxes_format or "xyxy"](box[None], width, height)[0] / size):
            fitting = [
                name for name in BOXES_FORMATS if _is_inside(BOXES_FORMATS[name](box[None], width, height)[0] / size)
            ]
            fitting = [name for name in fitting if not name.endswith("-1")] if box.max() > 1 else fitting
            hint = f"set boxes_format if it is {' or '.join(fitting)}" if fitting else _REMEDY
            raise ValueError(
                f"{where}: box {box.tolist()} is empty or not inside the image of {width} x {height} pixels as "
                f"{boxes_format or 'x1 y1 x2 y2 in pixels'}; {hint}"
            )
    return (BOXES_FORMATS[boxes_format or "xyxy"](boxes, width, height) / size).clip(0, 1)


def _is_inside(box: NDArray[np.float64]) -> bool:
    """True for a box (4,) xyxy in [0, 1] that has an area; a millionth is left for rounding."""
    x1, y1, x2, y2 = box
    return bool(-1e-6 <= x1 < x2 <= 1 + 1e-6 and -1e-6 <= y1 < y2 <= 1 + 1e-6)


def _check_thousandths(path: Path, drawn: Sequence[tuple[NDArray[np.float64], tuple[int, int]]]) -> None:
    """Raise ValueError if boxes of large images all end within 1000 pixels, one near them: thousandths, as it seems."""
    if not drawn or min(min(size) for _, size in drawn) <= _THOUSANDTHS:
        return
    ends = np.concatenate([boxes[:, 2:] for boxes, _ in drawn])  # (N, 2)
    if 0.9 * _THOUSANDTHS <= ends.max() <= _THOUSANDTHS:
        raise ValueError(
            f"{path}: all boxes end within 1000, {ends.max():g} at most, and all images are larger; set boxes_format "
            "xyxy-1000 if they are thousandths of the image, or xyxy if they are pixels"
        )


def _text(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _check_values(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row, with one image. Raises ValueError for a list or an object where a text is meant."""
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


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file and line, row)."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a CSV or JSON lines file with {', '.join(_NEEDED)}")
    if path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".json"):
        raise ValueError(f"{path} must end in .csv, .tsv, .jsonl or .json; got {path.suffix!r}")
    read = _csv_rows if path.suffix.lower() in (".csv", ".tsv") else _json_rows
    for where, row in read(path):
        row = _check_values(row, where)
        unknown = [str(column) for column in row if column not in _KNOWN]
        if unknown:
            raise ValueError(f"{where}: unknown column {', '.join(unknown)}; known: {', '.join(_KNOWN)}")
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = io.StringIO(read_text(path), newline="")
    first = lines.readline()
    if first.lower().startswith("sep="):  # Excel's own way to name the separator
        separator, begun = first.strip()[4:5], 1
    else:
        separator, begun = max(_SEPARATORS, key=first.count), 0
        lines.seek(0)
    reader = csv.DictReader(
        lines, delimiter=separator or ",", restkey="(a value without a column)", skipinitialspace=True
    )
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            if any(value and str(value).strip() for value in row.values()):
                yield f"{path.name}, line {reader.line_num + begun}", row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + begun} is not CSV ({error}); save it again") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for place, row in json_rows(path, "write one object per line"):
        where = f"{path.name}, {place}"
        if not isinstance(row, dict):
            raise ValueError(f"{where} must be a JSON object, got {type(row).__name__}; write one object per line")
        yield where, row
