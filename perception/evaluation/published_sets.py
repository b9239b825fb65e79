"""Readers of published evaluation sets: BLINK, HardBLINK, CV-Bench, SEED-Bench, MathVista, GeoQA, MMStar.

Each reads a folder with the files as their authors publish them, and gives questions with their answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from perception.answers import LETTERS, read_number
from perception.datasets.images import ImageFile, check_exists
from perception.model.images import decode_image

OPTION, NUMBER, MATHS = "option", "number", "maths"
"""How an answer is scored: by its letter, by its number, or by math-verify"""
MATHS_SOURCES = ("FunctionQA", "Geometry3K", "GeoQA+", "GEOS", "UniGeo")
"""Sources of MathVista's maths subset (MINT-CoT, arXiv 2506.05331)"""
_OPTION_LINE = re.compile(r"\(?([A-H])[).:]\s*(.*?)(?=\s*,?\s*\(?[A-H][).:]\s|\s*$)", re.DOTALL)
_SEED_COUNTING = "Instances Counting"


@dataclass(frozen=True)
class EncodedImage:
    """An image file inside a table."""

    data: bytes
    name: str
    """Table and row, for error messages"""

    def __str__(self) -> str:
        return self.name

    def load(self) -> Image.Image:
        """Decode the image in RGB. Raises ValueError naming table and row where it cannot be decoded."""
        try:
            return decode_image(BytesIO(self.data))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{self.name} holds no image that can be read ({error}); download it again") from error


@dataclass(frozen=True)
class PublishedItem:
    """One question of a published set, with its answer."""

    key: str
    """Unique within its set"""
    group: str
    """Group that its score is averaged in: "depth-3", "count", ..."""
    image: ImageFile | EncodedImage
    question: str
    """As it is put to a model, with the options where the set's own prompt has them"""
    truth: str
    scoring: str
    options: tuple[str, ...] = ()
    """Texts of the options A, B, ...; empty for open questions"""


def read_published_set(name: str, folder: str | Path) -> list[PublishedItem]:
    """Read the questions of a set (one of SETS), in the order of its files.

    Raises:
        ValueError: for an unknown set, a folder without its files, a row in another layout (naming file and row), a
            missing image, or two questions with the same key.
    """
    if name not in SETS:
        raise ValueError(f"unknown set {name!r}; known: {', '.join(SETS)}")
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the one that {name} was downloaded into")
    items = list(SETS[name](folder))
    if not items:
        raise ValueError(f"{folder} holds no question of {name}; give the folder that it was downloaded into")
    seen = set[str]()
    for item in items:
        if item.key in seen:
            raise ValueError(f"{folder}: two questions of {name} are called {item.key}; take one of them out")
        seen.add(item.key)
    return items


# Rows of files


@dataclass(frozen=True)
class _TableRow:
    """A row of a table, with its place for error messages."""

    values: Mapping[str, Any]
    where: str

    def __getitem__(self, name: str) -> Any:
        value = self.values.get(name)
        if value is None:
            raise ValueError(f"{self.where} has no {name!r}, only {', '.join(self.values)}; download the set again")
        return value

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def image(self, name: str) -> EncodedImage:
        value = self[name]
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not isinstance(data, bytes):
            raise ValueError(f"{self.where}: {name!r} holds no image's bytes; download the set again")
        return EncodedImage(data, f"{self.where}, {name}")

    def letter(self, name: str, count: int) -> str:
        """The letter in a column. Raises ValueError where it is none of the first `count` letters."""
        found = re.fullmatch(r"\(?([A-H])\)?\.?", str(self[name]).strip())
        if found is None or found[1] not in LETTERS[:count]:
            raise ValueError(f"{self.where}: {name!r} is {self[name]!r}, no letter of {count} options")
        return found[1]


def _parquet_rows(folder: Path, wanted: str) -> Iterator[_TableRow]:
    """Rows of all tables under a folder whose path contains `wanted`; of all tables where none does."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError("reading parquet needs the package pyarrow: pip install pyarrow") from error
    tables = sorted(folder.rglob("*.parquet"))
    named = [table for table in tables if wanted.lower() in str(table.relative_to(folder)).lower()]
    if not tables:
        raise ValueError(f"{folder} holds no parquet files; give the folder that the set was downloaded into")
    for table in named or tables:
        try:
            file = parquet.ParquetFile(table)
            number = 0
            for batch in file.iter_batches(64):
                for values in batch.to_pylist():
                    yield _TableRow(values, f"{table}, row {number}")
                    number += 1
        except (ArrowException, OSError) as error:
            raise ValueError(f"{table} cannot be read ({error}); download it again") from error


def _json_rows(path: Path) -> Iterator[_TableRow]:
    """Rows of a file of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from error
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is no JSON ({error}); download it again") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}, line {number} is no JSON object; download it again")
        yield _TableRow(values, f"{path}, line {number}")


def _image_file(folder: Path, name: str, where: str) -> ImageFile:
    """Find an image by its path, else by its name anywhere under the folder."""
    path = folder / name
    if not path.is_file():
        found = sorted(folder.rglob(Path(name).name))
        path = found[0] if found else path
    check_exists(path, where)
    return ImageFile(path)


def _with_options(question: str, options: Sequence[str]) -> str:
    lines = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question.strip()}\n{lines}" if lines else question.strip()


# Depth


def _blink_depth(folder: Path) -> Iterator[PublishedItem]:
    for row in _parquet_rows(folder, "relative_depth"):
        if row.get("sub_task") in (None, "Relative_Depth"):
            yield _choice(row, str(row["idx"]), "depth-2", row.image("image_1"))


def _choice(row: _TableRow, key: str, group: str, image: EncodedImage) -> PublishedItem:
    """A question with options, worded as the set's own prompt."""
    options = tuple(str(option) for option in row["choices"])
    asked = str(row.get("prompt") or "").strip() or _with_options(str(row["question"]), options)
    return PublishedItem(key, group, image, asked, row.letter("answer", len(options)), OPTION, options)


def _hardblink(folder: Path) -> Iterator[PublishedItem]:
    """Read pairs of files, questions and answers, one pair per number of points."""
    questions = [path for path in sorted(folder.rglob("*.jsonl")) if "answer" not in path.name.lower()]
    if not questions:
        raise ValueError(f"{folder} holds no question files (.jsonl); give the folder that HardBLINK lies in")
    for path in questions:
        answers = {str(row["question_id"]): row for row in _json_rows(_answers_of(path))}
        for row in _json_rows(path):
            key = str(row["question_id"])
            if key not in answers:
                raise ValueError(f"{row.where}: question {key} has no answer in {_answers_of(path)}")
            text, answer = str(row["text"]), answers[key]
            image = _image_file(folder, str(row["image"]), row.where)
            number = re.fullmatch(r"\s*\d+\s*", str(answer["text"]))
            if number:
                yield PublishedItem(f"{path.stem}-{key}", "count", image, text, number[0].strip(), NUMBER)
            else:
                options = _letters_in(text)
                group = f"depth-{len(options)}" if options else path.stem
                options = options or tuple("ABCDE")
                truth = answer.letter("text", len(options))
                yield PublishedItem(f"{path.stem}-{key}", group, image, text, truth, OPTION, options)


def _letters_in(text: str) -> tuple[str, ...]:
    """Letters of the points that a question names, as in "(A)" or "labeled A, B and C"; empty where it names none."""
    for pattern in (r"\(([A-H])\)", r"(?<![\w'])([A-H])(?![\w'])"):
        found = sorted(set(re.findall(pattern, text)))
        if len(found) > 1 and found == list(LETTERS[: len(found)]):
            return tuple(found)
    return ()


def _answers_of(questions: Path) -> Path:
    """Find the file of answers beside a file of questions, by its name."""
    candidates = [
        questions.with_name(re.sub("question", "answer", questions.name, flags=re.IGNORECASE)),
        questions.with_name(f"{questions.stem}_answers.jsonl"),
        questions.with_name(f"{questions.stem}_answer.jsonl"),
        questions.with_name("answers.jsonl"),
    ]
    found = [path for path in candidates if path != questions and path.is_file()]
    if not found:
        raise ValueError(f"{questions} has no answers beside it, looked for {', '.join(c.name for c in candidates)}")
    return found[0]


# Counting


def _blink_counting(folder: Path) -> Iterator[PublishedItem]:
    """Read BLINK's tables on the hub, or AURORA's JSON lines."""
    if not any(folder.rglob("*.parquet")):
        yield from _hardblink(folder)
        return
    for row in _parquet_rows(folder, "counting"):
        if row.get("sub_task") in (None, "Counting"):
            yield _count(row, str(row["idx"]), row.image("image_1"), [str(option) for option in row["choices"]])


def _count(row: _TableRow, key: str, image: EncodedImage | ImageFile, options: Sequence[str]) -> PublishedItem:
    """A counting question without its options, as in AURORA, so that a model counts rather than guesses."""
    option = options[LETTERS.index(row.letter("answer", len(options)))]
    number = read_number(option)
    if number is None:
        raise ValueError(f"{row.where}: the right option {option!r} is no number")
    return PublishedItem(key, "count", image, str(row["question"]).strip(), f"{number:g}", NUMBER)


def _cvbench(folder: Path) -> Iterator[PublishedItem]:
    for row in _parquet_rows(folder, "test"):
        key, task = str(row["idx"]), str(row["task"])
        if task == "Count":
            yield _count(row, key, row.image("image"), [str(option) for option in row["choices"]])
        else:
            yield _choice(row, key, task.lower(), row.image("image"))


def _seedbench(folder: Path) -> Iterator[PublishedItem]:
    """Read SEED-Bench's instance counting: its own JSON, its tables on the hub, or AURORA's JSON lines."""
    whole = [path for path in sorted(folder.rglob("*.json")) if "seed" in path.name.lower()]
    if whole:
        yield from _seed_json(whole[0], folder)
    elif any(folder.rglob("*.parquet")):
        for row in _parquet_rows(folder, "test"):
            if str(row.get("question_type_id")) == "5" and row.get("data_type") in (None, "image"):
                yield _seed_count(row, _first_image(row))
    else:
        yield from _hardblink(folder)


def _first_image(row: _TableRow) -> EncodedImage:
    images = row["image"]
    return _TableRow({"image": images[0] if isinstance(images, list) and images else images}, row.where).image("image")


def _seed_count(row: _TableRow, image: EncodedImage | ImageFile) -> PublishedItem:
    options = [str(row[f"choice_{letter}"]) for letter in "abcd"]
    return _count(row, str(row["question_id"]), image, options)


def _seed_json(path: Path, folder: Path) -> Iterator[PublishedItem]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        counting = held.get("question_type", {}).get(_SEED_COUNTING, 5)
        rows = held["questions"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not SEED-Bench's file of questions ({error!r}); download it again") from error
    for number, values in enumerate(rows):
        row = _TableRow(values, f"{path}, question {number}")
        if row["question_type_id"] == counting:
            yield _seed_count(row, _image_file(folder, str(row["data_id"]), row.where))


# Maths


def _mathvista(folder: Path) -> Iterator[PublishedItem]:
    """Read the maths subset of testmini, or of the tables that are there."""
    for row in _parquet_rows(folder, "testmini"):
        source = str(row["metadata"].get("source"))
        if source not in MATHS_SOURCES:
            continue
        key, image = str(row["pid"]), row.image("decoded_image")
        options = tuple(str(option) for option in row.get("choices") or ())
        question, answer = str(row["question"]).strip(), str(row["answer"]).strip()
        if options:
            if answer not in options:
                raise ValueError(f"{row.where}: the answer {answer!r} is none of the choices {list(options)}")
            truth = LETTERS[options.index(answer)]
            yield PublishedItem(key, source, image, _with_options(question, options), truth, OPTION, options)
        else:
            yield PublishedItem(key, source, image, question, answer, MATHS)


def _geoqa(folder: Path) -> Iterator[PublishedItem]:
    """Read Geo170K's test images with R1-V's JSON lines: image_path, question, ground_truth."""
    files = sorted(folder.rglob("*geoqa*.jsonl"))
    if not files:
        raise ValueError(f"{folder} holds no file *geoqa*.jsonl; put geoqa_test_prompts.jsonl there")
    for number, row in enumerate(_json_rows(files[0])):
        truth = re.sub(r"</?answer>", "", str(row["ground_truth"])).strip()
        image = _image_file(folder, str(row["image_path"]), row.where)
        yield PublishedItem(str(number), "geoqa", image, str(row["question"]).strip(), truth, MATHS)


def _mmstar(folder: Path) -> Iterator[PublishedItem]:
    """Read the maths questions, whose options are part of the question's text."""
    for row in _parquet_rows(folder, "val"):
        if str(row["category"]).lower() == "math":
            question = str(row["question"]).strip()
            options = options_in(question)
            if not options:
                raise ValueError(f"{row.where}: no options can be read in {question!r:.120}")
            truth = row.letter("answer", len(options))
            group = str(row.get("l2_category") or "math")
            yield PublishedItem(str(row["index"]), group, row.image("image"), question, truth, OPTION, options)


def options_in(question: str) -> tuple[str, ...]:
    """Texts of the options at the end of a question, as in "Options: A: 3, B: 4"; empty where it has none."""
    part = re.split(r"\b(?:Options|Choices)\s*:", question, flags=re.IGNORECASE)[-1]
    found = [(match[1], match[2].strip().rstrip(",").strip()) for match in _OPTION_LINE.finditer(part)]
    in_order = [text for letter, (own, text) in zip(LETTERS, found, strict=False) if own == letter]
    return tuple(in_order) if len(in_order) == len(found) > 1 else ()


SETS: dict[str, Callable[[Path], Iterator[PublishedItem]]] = {
    "blink-depth": _blink_depth,
    "hardblink": _hardblink,
    "blink-counting": _blink_counting,
    "cvbench": _cvbench,
    "seedbench": _seedbench,
    "mathvista": _mathvista,
    "geoqa": _geoqa,
    "mmstar": _mmstar,
}
"""Reader of each set, by name"""
