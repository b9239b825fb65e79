"""Tables of conversations, questions or labelled images: JSON lines, parquet, a `datasets` folder, or a hub name.

A row is read by its columns: `messages`, `conversations`, `prompt` and `completion`, or `objects` as
`perception.datasets.messages` describes them, or else image, question, answer, boxes and things, as in
`perception.datasets.own`. A row with a question and `objects` gives both. Columns of other names are left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perception.datasets.boxes import DeclaredBoxes, Resize
from perception.datasets.detection import BoxedImage, CountRules, ask_counts
from perception.datasets.lines import json_objects
from perception.datasets.messages import conversation_records, with_messages
from perception.datasets.own import CONVERSATIONS, question_records
from perception.datasets.records import Record, RecordSet, bad_row
from perception.tokenizers.boxes import BoxTokenizer
from vqvae.files import write_whole

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_EXTRA = "pip install 'perception-tokens[data]'"
_Rows = Iterator[tuple[str, dict[str, Any]]]
_MEANT = "messages (or conversations), prompt and completion, objects, or image, question and answer"


def read_table(
    source: str,
    num_locations: int,
    images: Path,
    boxes_format: str | None = None,
    subset: str = "",
    split: str = "train",
    skip_bad: bool = False,
    resize: Resize | None = None,
    rules: CountRules = CountRules(),  # noqa: B008
) -> RecordSet:
    """Records of a table.

    Args:
        source: file of JSON lines (.jsonl, .json) or parquet; folder that `datasets` saved or can load; or hub name.
        num_locations: number of bins for the coordinates of boxes.
        images: folder that images inside of the table are written to, by their content.
        boxes_format: one of `perception.datasets.boxes.FORMATS`. None: pixels as x1 y1 x2 y2, and boxes that look like
            another format are refused.
        subset: configuration of a data set that has several.
        split: its part.
        skip_bad: name rows that cannot be used in the set's `skipped`, and go on.
        resize: the rule of a processor, for boxes in pixels of its resized images.
        rules: which classes of an image are asked about, of objects that no text places.

    Raises:
        ValueError: naming row or source, if a row cannot be used, no row can, or the source cannot be read.
    """
    declared, tokenizer = DeclaredBoxes(boxes_format, resize), BoxTokenizer(num_locations)
    records, labelled, skipped = list[Record](), list[BoxedImage](), list[str]()
    bad = skipped if skip_bad else None
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    for where, row in _rows(source, subset, split, bad):
        with bad_row(bad):
            row = with_messages(row, where)
            paths = [_image_path(image, folder, images, where) for image in _images(row)]
            asked = row.keys() >= {"question", "answer"} and len(paths) == 1
            talks, made, unused = any(row.get(name) for name in CONVERSATIONS), list[Record](), list[str]()
            if not (talks or asked or "objects" in row):
                raise ValueError(
                    f"{where} has the columns {', '.join(map(str, row))}; expected {_MEANT}, and one image"
                )
            if asked and not talks:
                table_row = {**row, "image": str(paths[0].absolute())}
                made, unused = question_records(table_row, folder, tokenizer, declared, where)
            if talks or row.get("objects") or not asked:
                told, unplaced, labels = conversation_records(row, paths, num_locations, declared, where)
                made, unused = made + told, unused + unplaced
                labelled += [labels] if labels else []
            records += made
            skipped += unused
    declared.check_file(source)
    counted = ask_counts(
        labelled, {name: name for one in labelled for name in one.boxes}, num_locations, rules, Path(source).name
    )
    records += counted.records
    skipped += counted.skipped
    if not records:
        said = f"no row of {source} can be used; the first: {skipped[0]}" if skipped else f"{source} holds no rows"
        raise ValueError(f"{said}; give rows with {_MEANT}")
    return RecordSet(tuple(records), tuple(skipped))


def _images(row: dict[str, Any]) -> list[Any]:
    """The images of a row: of its columns, or else those inside of its messages."""
    given = row.get("images") if row.get("images") is not None else row.get("image")
    if given is not None and given != []:
        return given if isinstance(given, list) else [given]
    turns = [turn for name in CONVERSATIONS for turn in row.get(name) or [] if isinstance(turn, dict)]
    parts = [part for turn in turns if isinstance(turn.get("content"), list) for part in turn["content"]]
    inside = [part for part in parts if isinstance(part, dict) and part.get("type") in ("image", "image_url")]
    found = [next((part[n] for n in ("image", "image_url", "url", "path") if part.get(n)), None) for part in inside]
    return [image for image in found if image is not None]


def _image_path(image: Any, folder: Path, images: Path, where: str) -> Path:
    """The file of an image that is given as a path, or as bytes, which are written to a file first."""
    if isinstance(image, dict) and image.get("bytes"):
        content = bytes(image["bytes"])
        ending = Path(str(image.get("path") or "")).suffix or ".image"
        path = images / f"{hashlib.sha256(content).hexdigest()[:24]}{ending}"
        if not path.is_file():
            write_whole(path, content)
        return path
    name = next((image[n] for n in ("path", "url") if image.get(n)), None) if isinstance(image, dict) else image
    if not isinstance(name, str) or not name or re.match(r"(https?|data):", name):
        raise ValueError(
            f"{where}: an image must be a file or inside of the table, got {name!r:.60}; fetch it, and give its path"
        )
    return folder / name.removeprefix("file://")


def _rows(source: str, subset: str, split: str, skipped: list[str] | None) -> _Rows:
    """Yield (file and row, row). `skipped` is that of `json_objects`."""
    path = Path(source)
    if path.is_file() and path.suffix.lower() in (".jsonl", ".json"):
        yield from json_objects(path, skipped)
    elif path.is_file() and path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
    elif path.is_dir() or (not path.exists() and not path.suffix and _HUB_NAME.fullmatch(source)):
        yield from _dataset_rows(source, subset, split)
    else:
        missing = "cannot be read" if path.exists() else "does not exist"
        raise ValueError(f"{source} {missing}; give .jsonl, .json or .parquet, a folder of `datasets`, or a hub name")


def _parquet_rows(path: Path) -> _Rows:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(f"{path} needs pyarrow: {_EXTRA}") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(path).iter_batches(64):
            for row in batch.to_pylist():
                yield f"{path.name}, row {number}", row
                number += 1
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); fetch it again") from error


def _dataset_rows(source: str, subset: str, split: str) -> _Rows:
    """Rows as they are stored, so images stay as they were encoded; classes of objects by their names."""
    table = _load(source, subset, split)
    name, classes, number = Path(source).name, _class_names(table.features), 0
    for batch in table.with_format("arrow").iter(64):
        for row in batch.to_pylist():
            objects = row.get("objects") or []
            for entry in objects if isinstance(objects, list) else [objects]:
                for column in classes.keys() & entry.keys():
                    given = entry[column]
                    entry[column] = (
                        list(map(classes[column], given)) if isinstance(given, list) else classes[column](given)
                    )
            yield f"{name}, row {number}", row
            number += 1


def _load(source: str, subset: str, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{source} needs the package datasets: {_EXTRA}") from error
    folder = Path(source)
    saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        table = datasets.load_from_disk(source) if saved else datasets.load_dataset(source, subset or None, split=split)
        return table[split] if isinstance(table, dict) else table
    except KeyError:
        raise ValueError(f"{source} has no part {split!r}; its parts are {', '.join(table)}") from None
    except Exception as error:  # what its many readers and the network raise
        said = " ".join(str(error).split()) or type(error).__name__
        remedy = "correct it" if folder.exists() else "give another name, a folder, or a connection"
        raise ValueError(f"{source} cannot be loaded by datasets ({said:.200}); {remedy}") from error


def _class_names(features: Any) -> dict[str, Any]:
    """By column of `objects`: what turns a number into a class's name."""
    inside: Any = features.get("objects") if features else None
    inside = getattr(inside, "feature", inside)
    if isinstance(inside, list):
        inside = inside[0]
    found = {name: getattr(kind, "feature", kind) for name, kind in inside.items()} if isinstance(inside, dict) else {}
    return {name: kind.int2str for name, kind in found.items() if kind is not None and hasattr(kind, "int2str")}
