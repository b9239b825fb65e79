"""Records, the common form of all training data: one task on one image. Every reader makes records."""

from __future__ import annotations

import json
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
    """An image with a question and its target. The codes in its spans fit the sizes of one vocabulary."""

    image: ImageFile
    example: Example
    source: str
    """file and entry that it comes from, for error messages"""
    marks: tuple[tuple[float, float], ...] = ()
    """points (x, y) in [0, 1] at which A, B, ... are drawn on the image"""
    tokenizer: str = ""
    """fingerprint of the depth tokenizer that made the codes; empty if there are none or it is unknown"""


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


def _to_json(record: Record) -> dict[str, Any]:
    example = record.example
    parts = [p if isinstance(p, str) else {"modality": p.modality, "codes": list(p.codes)} for p in example.target]
    values: dict[str, Any] = {"image": str(record.image.path), "task": example.task, "question": example.question}
    values |= {"target": parts, "answer": example.answer, "source": record.source}
    optional = {"index": record.image.index, "marks": record.marks, "tokenizer": record.tokenizer}
    return values | {name: value for name, value in optional.items() if value not in (None, (), "")}


def _from_json(values: dict[str, Any]) -> Record:
    parts = tuple(p if isinstance(p, str) else Span(p["modality"], tuple(p["codes"])) for p in values["target"])
    for name in ("question", "answer"):
        if not isinstance(values[name], str):
            raise TypeError(f"{name} must be text, got {values[name]!r:.80}")
    return Record(
        image=ImageFile(Path(values["image"]), values.get("index")),
        example=Example(values["task"], values["question"], parts, values["answer"]),
        source=values["source"],
        marks=tuple((float(x), float(y)) for x, y in values.get("marks", ())),
        tokenizer=values.get("tokenizer", ""),
    )
