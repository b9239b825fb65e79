"""Records, the common form of all training data: one task on one image. Every reader makes records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.chains import Example
from perception.datasets.images import ImageFile
from perception.datasets.lines import json_lines, read_text, text_lines
from perception.vocabulary.names import Span
from vqvae.files import write_whole


@dataclass(frozen=True)
class Record:
    """An image with a question and its target. The codes in its spans fit the sizes of one vocabulary.

    A conversation has further turns, and may have several images, no image, and a system turn.
    """

    image: ImageFile | None
    """shown before the question; the first one of `images`, or None, where those are given"""
    example: Example
    source: str
    """file and entry that it comes from, for error messages"""
    marks: tuple[tuple[float, float], ...] = ()
    """points (x, y) in [0, 1] at which A, B, ... are drawn on the image"""
    tokenizer: str = ""
    """fingerprint of the depth tokenizer that made the codes; empty if there are none or it is unknown"""
    more: tuple[Example, ...] = ()
    """further turns of a conversation"""
    images: tuple[ImageFile, ...] | None = None
    """all images of a conversation, each shown where `chains.IMAGE` stands in its questions; None: `image` alone"""
    system: str = ""
    """system turn of a conversation that gives `images`"""
    counted: Span | None = None
    """boxes of all the things that the example counts or draws, so that a part of the image has an answer, too"""

    @property
    def turns(self) -> tuple[Example, ...]:
        return (self.example, *self.more)

    @property
    def all_images(self) -> tuple[ImageFile, ...]:
        if self.images is not None:
            return self.images
        return () if self.image is None else (self.image,)


@dataclass(frozen=True)
class RecordSet:
    """The records of a data set, and a message for each entry that was left out."""

    records: tuple[Record, ...]
    skipped: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write JSON lines with one record each, and what was left out to a text file beside them."""
        lines = (json.dumps(_to_json(record), ensure_ascii=False) + "\n" for record in self.records)
        write_whole(skipped_file(path), "".join(line.replace("\n", " ") + "\n" for line in self.skipped))
        write_whole(path, "".join(lines))

    @classmethod
    def read(cls, path: Path) -> RecordSet:
        """Read what `write` wrote. Raises ValueError naming file and line if it is missing or damaged."""
        if not path.is_file():
            raise ValueError(f"{path} does not exist; make it with RecordSet.write")
        records = []
        for number, values in json_lines(path, "it is not a record; write the file again"):
            try:
                records.append(_from_json(values))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{path}, line {number} is not a record ({error!r}); write the file again") from error
        left_out = skipped_file(path)
        skipped = text_lines(read_text(left_out)) if left_out.is_file() else []
        return cls(tuple(records), tuple(skipped))


def skipped_file(path: Path) -> Path:
    """The text file beside `path` that names what was left out."""
    return path.with_suffix(".skipped.txt")


@contextmanager
def bad_row(skipped: list[str] | None) -> Iterator[None]:
    """Append the message of a ValueError to `skipped` and go on behind the block; None: raise it."""
    try:
        yield
    except ValueError as error:
        if skipped is None:
            raise
        skipped.append(str(error))


def check_any(found: Sequence[Any], skipped: Sequence[str], source: object) -> None:
    """Raise ValueError if all images of a source are skipped."""
    if skipped and not found:
        raise ValueError(f"no image of {source} can be used; the first: {skipped[0]}")


def _to_json(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {"image": None if record.image is None else str(record.image.path)}
    values |= _example_to_json(record.example) | {"source": record.source}
    index = None if record.image is None else record.image.index
    optional: dict[str, Any] = {"index": index, "marks": record.marks, "tokenizer": record.tokenizer}
    optional |= {"more": [_example_to_json(example) for example in record.more] or None, "system": record.system}
    optional["counted"] = None if record.counted is None else list(record.counted.codes)
    optional["images"] = None if record.images is None else [str(image.path) for image in record.images]
    return values | {name: value for name, value in optional.items() if value not in (None, (), "")}


def _example_to_json(example: Example) -> dict[str, Any]:
    parts = [p if isinstance(p, str) else {"modality": p.modality, "codes": list(p.codes)} for p in example.target]
    return {"task": example.task, "question": example.question, "target": parts, "answer": example.answer}


def _from_json(values: dict[str, Any]) -> Record:
    return Record(
        image=None if values["image"] is None else ImageFile(Path(values["image"]), values.get("index")),
        example=_example_from_json(values),
        source=values["source"],
        marks=tuple((float(x), float(y)) for x, y in values.get("marks", ())),
        tokenizer=values.get("tokenizer", ""),
        more=tuple(_example_from_json(turn) for turn in values.get("more", ())),
        images=tuple(ImageFile(Path(path)) for path in values["images"]) if "images" in values else None,
        system=values.get("system", ""),
        counted=Span("boxes", tuple(values["counted"])) if "counted" in values else None,
    )


def _example_from_json(values: dict[str, Any]) -> Example:
    parts = tuple(p if isinstance(p, str) else Span(p["modality"], tuple(p["codes"])) for p in values["target"])
    for name in ("question", "answer"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} must be text, got {values[name]!r:.80}")
    return Example(values["task"], values["question"], parts, values["answer"])
