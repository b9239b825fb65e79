"""Readers of evaluation sets: BLINK, HardBLINK, CV-Bench, SEED-Bench, MathVista, GeoQA, MMStar, and tables of your own.

Each reads a folder with the files as their authors publish them, or a table, and gives questions with their answers.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from perception.answers import (
    LETTERS,
    names_points,
    number_alone,
    options_in,
    read_letter,
    read_number,
    read_option,
)
from perception.chains import kind_of_question
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import json_lines, read_text
from perception.datasets.own import read_asked
from perception.model.images import ImageError, decode_image

OPTION, NUMBER, MATHS, TEXT = "option", "number", "maths", "text"
"""How an answer is scored: by its letter, by its number, by math-verify, or by its words"""
OWN = "own"
MATHS_SOURCES = ("FunctionQA", "Geometry3K", "GeoQA+", "GEOS", "UniGeo")
"""Sources of MathVista's maths subset (MINT-CoT, arXiv 2506.05331)"""
_SEED_COUNTING = "Instances Counting"
_HIDDEN = "hidden"
"""BLINK's answer where it publishes none"""
_NO_NUMBER = re.compile(r"\b(?:more|less|fewer|least|most|over|under|about|or)\b|\+", re.IGNORECASE)
"""Words of options that hold a number and are none"""

_SENTENCE = re.compile(r"^there\s+(?:is|are)\s+|\s+in\s+(?:the|this)\s+(?:image|picture|photo)\.?$", re.IGNORECASE)
"""What makes a sentence of an answer: "There are two cats in the image." """

_logger = logging.getLogger(__name__)


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
        except ImageError as error:
            raise ValueError(f"{self.name} holds no image that can be used: it {error}") from error


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
    source: tuple[str, ...] = ()
    """Where the set says that its image is from, from the widest name to the narrowest: ("2D", "COCO")"""


def read_published_set(name: str, folder: str | Path) -> list[PublishedItem]:
    """Read the questions of a set (one of SETS), in the order of its files. `OWN` takes a table, not a folder.

    Raises:
        ValueError: for an unknown set, a folder without its files, a row in another layout (naming file and row), a
            missing image, or two questions with the same key.
    """
    if name not in SETS:
        raise ValueError(f"unknown set {name!r}; known: {', '.join(SETS)}")
    folder = Path(folder)
    if name != OWN and not folder.is_dir():
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
    tables = _files(folder, "*.parquet")
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
    for number, values in json_lines(path, "download it again"):
        if not isinstance(values, dict):
            raise ValueError(f"{path}, line {number} is no JSON object; download it again")
        yield _TableRow(values, f"{path}, line {number}")


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files beneath a folder, sorted, without hidden ones ("._x.jsonl" and such, which archives bring along)."""
    found = (path for path in sorted(folder.rglob(pattern)) if path.is_file())
    return [p for p in found if not any(part[0] == "." or part == "__MACOSX" for part in p.relative_to(folder).parts)]


class _ImageFiles:
    """The files beneath a folder, found by the names that questions give."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.by_name: dict[str, list[Path]] = {}
        for path in _files(folder, "*"):
            for key in {path.name, path.stem}:  # SEED-Bench names images without an ending
                self.by_name.setdefault(key, []).append(path)

    def find(self, name: str, where: str, of_set: str = "") -> ImageFile:
        """Find an image by its path, or by the end of its path anywhere beneath the folder.

        Args:
            of_set: name of the set that the question belongs to. Where several images go by the name, the one in the
                folder of that set is meant, or of its number of points.

        Raises:
            ValueError: if there is no such image, or several that could be meant.
        """
        path = self.folder / name
        found = [] if path.is_file() else self.by_name.get(path.name, [])

        def fit(candidate: Path) -> tuple[bool, bool, int]:
            folders = candidate.relative_to(self.folder).parts[:-1]
            points = _points_in(of_set)
            return (
                any(_plain(part) == _plain(of_set) for part in folders),
                points is not None and points in map(_points_in, folders),
                _shared_end(candidate.parts, Path(name).parts),
            )

        best = max(map(fit, found), default=None)
        fitting = [candidate for candidate in found if fit(candidate) == best]
        if len(fitting) > 1:
            listed = ", ".join(str(candidate.parent.relative_to(self.folder)) for candidate in fitting[:4])
            raise ValueError(
                f"{where}: image {name} lies in {len(fitting)} folders ({listed}); name each set's folder of images as "
                "its file of questions, or give the folder of one set"
            )
        path = fitting[0] if fitting else path
        check_exists(path, where)
        return ImageFile(path)


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """The number of parts that two paths share at their ends."""
    pairs = enumerate(zip(reversed(one), reversed(other), strict=False))
    return next((number for number, (a, b) in pairs if a != b), min(len(one), len(other)))


def _plain(name: str) -> str:
    """The letters and digits of a name, lower-cased."""
    return re.sub(r"[\W_]", "", name.lower())


def _points_in(name: str) -> int | None:
    """The number of points that a file or folder is named for ("blink_3pointscenter", "hard_3"); None if it is not."""
    found = re.search(r"(?<!\d)([2-8])[ _-]*(?:points?|pts)|(?<![^\W_])([2-8])(?![^\W_])", name.lower())
    return int(found[1] or found[2]) if found else None


def _with_options(question: str, options: Sequence[str]) -> str:
    lines = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"{question.strip()}\n{lines}" if lines else question.strip()


# Depth


def _blink_depth(folder: Path) -> Iterator[PublishedItem]:
    for row in _blink_rows(folder, "Relative_Depth"):
        yield _choice(row, str(row["idx"]), "depth-2", row.image("image_1"))


def _blink_rows(folder: Path, task: str) -> Iterator[_TableRow]:
    """Rows of one of BLINK's tasks, without those of its test split, whose answers are not published."""
    found, hidden = False, ""
    for row in _parquet_rows(folder, task):
        if row.get("sub_task") not in (None, task):
            continue
        if str(row["answer"]).strip().lower() == _HIDDEN:
            hidden = row.where
        else:
            found = True
            yield row
    if hidden and not found:
        raise ValueError(f"{hidden}: the answers are {_HIDDEN!r}, as in BLINK's test split; download its val split")


def _choice(row: _TableRow, key: str, group: str, image: EncodedImage) -> PublishedItem:
    """A question with options, worded as the set's own prompt."""
    options = tuple(str(option) for option in row["choices"])
    asked = str(row.get("prompt") or "").strip() or _with_options(str(row["question"]), options)
    return PublishedItem(key, group, image, asked, row.letter("answer", len(options)), OPTION, options)


def _hardblink(folder: Path) -> Iterator[PublishedItem]:
    return (item for item in _question_files(folder) if item.scoring == OPTION)


def _question_files(folder: Path, left_out: str = "(?!)") -> Iterator[PublishedItem]:
    """Read AURORA's pairs of files, questions and answers, one pair per set.

    Its authors' folder holds questions/, answers/ and images/, with one folder of images per set and the same file
    names in each. The options of a depth question are the letters of its points, whose number names the set.

    Args:
        left_out: pattern of names of files that belong to another set, where there are others.
    """
    files = _files(folder, "*.jsonl")
    answers = [path for path in files if "answer" in str(path.relative_to(folder)).lower()]
    questions = [path for path in files if path not in answers]
    if not questions:
        raise ValueError(f"{folder} holds no question files (.jsonl); give the folder with questions and answers")
    images = _ImageFiles(folder)
    for path in [p for p in questions if not re.search(left_out, p.name, re.IGNORECASE)] or questions:
        yield from _pair_of_files(path, _answers_of(path, answers, folder), images)


def _pair_of_files(questions: Path, answers: Path, images: _ImageFiles) -> Iterator[PublishedItem]:
    answered = {str(row["question_id"]): row for row in _json_rows(answers)}
    of_set = re.sub("questions?", "", questions.stem, flags=re.IGNORECASE)
    for row in _json_rows(questions):
        key, text = str(row["question_id"]), str(row["text"])
        if key not in answered:
            raise ValueError(f"{row.where}: question {key} has no answer in {answers}")
        answer = answered[key]
        image = images.find(str(row["image"]), row.where, of_set)
        number = re.fullmatch(r"\s*\d+\s*", str(answer["text"]))
        if number:
            yield PublishedItem(f"{questions.stem}-{key}", "count", image, text, number[0].strip(), NUMBER)
        else:
            count = _points_in(of_set) or len(_letters_in(text))
            options = tuple(LETTERS[: count or 5])
            truth = answer.letter("text", len(options))
            group = f"depth-{count}" if count else questions.stem
            yield PublishedItem(f"{questions.stem}-{key}", group, image, text, truth, OPTION, options)


def _letters_in(text: str) -> tuple[str, ...]:
    """Letters of the points that a question names, as in "(A)" or "labeled A, B and C"; empty where it names none."""
    for pattern in (r"\(([A-H])\)", r"(?<![\w'])([A-H])(?![\w'])"):
        found = sorted(set(re.findall(pattern, text)))
        if len(found) > 1 and found == list(LETTERS[: len(found)]):
            return tuple(found)
    return ()


def _answers_of(questions: Path, answers: Sequence[Path], folder: Path) -> Path:
    """Find the file of answers to a file of questions: of the same name but for the words, beside it or elsewhere."""
    named = [path for path in answers if _pair_name(path) == _pair_name(questions)]
    found = [path for path in named if path.parent == questions.parent] or named
    if not found:  # one file of answers for all questions of a folder
        found = [path for path in answers if path == questions.with_name("answers.jsonl")]
    if len(found) != 1:
        which = "several files of answers" if found else "no answers beside it or elsewhere"
        listed = ", ".join(str(path.relative_to(folder)) for path in (found or answers)[:6]) or "none"
        raise ValueError(
            f"{questions} has {which} beneath {folder} (files of answers: {listed}); name one as the questions, with "
            "'answers' for 'questions'"
        )
    return found[0]


def _pair_name(path: Path) -> str:
    return _plain(re.sub("questions?|answers?", "", path.stem, flags=re.IGNORECASE))


# Counting


def _blink_counting(folder: Path) -> Iterator[PublishedItem]:
    """Read BLINK's tables on the hub, or AURORA's JSON lines."""
    if _files(folder, "*.parquet"):
        rows = _blink_rows(folder, "Counting")
        return _counts((row, str(row["idx"]), row.image("image_1"), row["choices"]) for row in rows)
    return (item for item in _question_files(folder, "seed") if item.scoring == NUMBER)


def _counts(
    rows: Iterable[tuple[_TableRow, str, EncodedImage | ImageFile, Sequence[Any]]],
) -> Iterator[PublishedItem]:
    """Counting questions without their options, as in AURORA, so that a model counts rather than guesses.

    Questions whose right option is no number ("more than five") are left out, and their number is said.

    Args:
        rows: (row, key, image, options) of each question.
    """
    left_out = []
    for row, key, image, options in rows:
        option = str(options[LETTERS.index(row.letter("answer", len(options)))])
        number = None if _NO_NUMBER.search(option) else read_number(option)
        if number is None:
            left_out.append(f"{row.where}: {option!r}")
        else:
            yield PublishedItem(key, "count", image, str(row["question"]).strip(), f"{number:g}", NUMBER)
    if left_out:
        _logger.warning("%d questions are left out, as their right option is no number: %s", len(left_out), left_out[0])


def _cvbench(folder: Path) -> Iterator[PublishedItem]:
    for row in _parquet_rows(folder, "test"):
        key, task = str(row["idx"]), str(row["task"])
        if task == "Count":
            found = _counts([(row, key, row.image("image"), row["choices"])])
        else:
            found = iter([_choice(row, key, task.lower(), row.image("image"))])
        yield from (replace(item, source=(str(row["type"]), str(row["source"]))) for item in found)


def _seedbench(folder: Path) -> Iterator[PublishedItem]:
    """Read SEED-Bench's instance counting: its own JSON, its tables on the hub, or AURORA's JSON lines."""
    whole = [path for path in _files(folder, "*.json") if "seed" in path.name.lower()]
    rows: Iterable[tuple[_TableRow, EncodedImage | ImageFile]]
    if whole:
        rows = _seed_json(min(whole, key=lambda path: len(path.name)), _ImageFiles(folder))
    elif _files(folder, "*.parquet"):
        rows = (
            (row, _first_image(row))
            for row in _parquet_rows(folder, "test")
            if str(row.get("question_type_id")) == "5" and row.get("data_type") in (None, "image")
        )
    else:
        return (item for item in _question_files(folder, "blink") if item.scoring == NUMBER)
    return _counts((row, str(row["question_id"]), i, [row[f"choice_{c}"] for c in "abcd"]) for row, i in rows)


def _first_image(row: _TableRow) -> EncodedImage:
    images = row["image"]
    return _TableRow({"image": images[0] if isinstance(images, list) and images else images}, row.where).image("image")


def _seed_json(path: Path, images: _ImageFiles) -> Iterator[tuple[_TableRow, ImageFile]]:
    try:
        held = json.loads(read_text(path))
        counting = held.get("question_type", {}).get(_SEED_COUNTING, 5)
        rows = held["questions"]
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not SEED-Bench's file of questions ({error!r}); download it again") from error
    for number, values in enumerate(rows):
        row = _TableRow(values, f"{path}, question {number}")
        if row["question_type_id"] == counting:
            yield row, images.find(str(row["data_id"]), row.where)


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
    files = _files(folder, "*geoqa*.jsonl")
    if not files:
        raise ValueError(f"{folder} holds no file *geoqa*.jsonl; put geoqa_test_prompts.jsonl there")
    images = _ImageFiles(folder)
    for number, row in enumerate(_json_rows(files[0])):
        truth = re.sub(r"</?answer>", "", str(row["ground_truth"])).strip()
        image = images.find(str(row["image_path"]), row.where)
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


def _own(path: Path) -> Iterator[PublishedItem]:
    """Read a table as `train.finetune --data.own` does: answers are numbers, letters of options or points, or texts."""
    for where, image, question, truth in read_asked(path):
        kind, listed = kind_of_question(question), options_in(question)
        letter = _own_letter(truth, question, listed)
        number = number_alone(_SENTENCE.sub("", truth)) if kind == "count" and letter is None else None
        if letter is not None:
            options = listed or _letters_in(question) or tuple(LETTERS[:5])
            if letter not in LETTERS[: len(options)]:
                raise ValueError(f"{where}: the answer {truth} is none of the options of {question!r:.120}; correct it")
            yield PublishedItem(where, kind or "other", image, question, letter, OPTION, options)
        elif number is not None or re.fullmatch(r"-?\d+(\.\d+)?", truth):
            said = truth if number is None else f"{number:g}"
            yield PublishedItem(where, kind or "other", image, question, said, NUMBER)
        else:
            yield PublishedItem(where, kind or "other", image, question, truth, TEXT)


def _own_letter(truth: str, question: str, listed: Sequence[str]) -> str | None:
    """The letter of the option or lettered point that an answer of a table names, by letter or words; None for another
    answer."""
    if letter := re.fullmatch(r"\(?([A-H])\)?", truth):
        return letter[1]
    if listed:
        return read_option(truth, listed, question)
    is_of_points = kind_of_question(question) == "depth" and names_points(question)
    return read_letter(truth, question) if is_of_points else None


SETS: dict[str, Callable[[Path], Iterator[PublishedItem]]] = {
    "blink-depth": _blink_depth,
    "hardblink": _hardblink,
    "blink-counting": _blink_counting,
    "cvbench": _cvbench,
    "seedbench": _seedbench,
    "mathvista": _mathvista,
    "geoqa": _geoqa,
    "mmstar": _mmstar,
    OWN: _own,
}
"""Reader of each set, by name"""
