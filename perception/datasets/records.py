"""Records: one task on one image, from whatever data. What every reader makes, and what training and files hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perception.chains import Example
from perception.datasets.images import ImageFile
from perception.vocabulary.names import Span


@dataclass(frozen=True)
class Record:
    """An image, and what is asked and answered about it. Its spans hold bins and codes of one vocabulary's sizes."""

    image: ImageFile
    example: Example
    source: str
    """where it comes from, "file.json, entry 3", for errors"""
    marks: tuple[tuple[float, float], ...] = ()
    """points (x, y) in [0, 1] at which A, B, ... are drawn on the image"""
    tokenizer: str = ""
    """fingerprint of the depth tokenizer whose codes the example holds; "" for none, or one that is not known"""


@dataclass(frozen=True)
class RecordSet:
    """The records of a data set, and by name what was left out, each with its reason."""

    records: tuple[Record, ...]
    skipped: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """JSON lines, one a record, whole or not at all; what was left out goes into a text file beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            for record in self.records:
                file.write(json.dumps(_to_json(record), ensure_ascii=False) + "\n")
        skipped_file(path).write_text("".join(line + "\n" for line in self.skipped), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> RecordSet:
        """Raises ValueError naming file and line where it is missing, cut short or holds something else."""
        if not path.is_file():
            raise ValueError(f"{path} does not exist; make it with RecordSet.write")
        records = []
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, 1):
            try:
                records.append(_from_json(json.loads(line)))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{path}, line {number} is no record ({error!r}); make the file anew") from error
        left_out = skipped_file(path)
        skipped = left_out.read_text(encoding="utf-8").splitlines() if left_out.is_file() else []
        return cls(tuple(records), tuple(skipped))


def skipped_file(path: Path) -> Path:
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
    return Record(
        image=ImageFile(Path(values["image"]), values.get("index")),
        example=Example(values["task"], values["question"], parts, values["answer"]),
        source=values["source"],
        marks=tuple((float(x), float(y)) for x, y in values.get("marks", ())),
        tokenizer=values.get("tokenizer", ""),
    )
