"""Make interleaved solutions from images with questions and solutions in words.

It follows the data pipeline of MINT-CoT (arXiv 2506.05331), whose code was never released: read the words in the image,
name the keywords of each step, and find the grid cells where those keywords are written.

A row is a JSON line with `image` (path), `question`, `solution` ("Step 1: ..." lines), `answer`, and optionally
`marks`, the words in the image: [{"text": "A", "box_xyxy": [x1, y1, x2, y2]}, ..] in [0, 1].
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perception.datasets.images import ImageFile
from perception.datasets.interleaved.keywords import KEYWORD_MAKERS, KeywordMaker, KeywordSettings, MakeKeywords
from perception.datasets.interleaved.mint_cot import CLOSE, OPEN, InterleavedProblem, InterleavedStep, qwen_grid
from perception.datasets.interleaved.ocr import OCR_ENGINES, OcrEngine, ReadWords, Word
from perception.datasets.interleaved.regions import RegionRule, step_cells

_STEP = re.compile(r"^[ \t]*(?:#+[ \t]*)?(?:\*\*)?Step[ \t]*\d+(?:\*\*)?[ \t]*[:.](?:\*\*)?", re.I | re.M)
_ANSWER = re.compile(r"\n\s*Answer:[^\n]*\s*$", re.IGNORECASE)
_TAGS = (OPEN, CLOSE, "<image>")


@dataclass(frozen=True)
class MakingSettings:
    """How interleaved solutions are made from solutions in words."""

    grid: tuple[int, int] | None = None
    """rows and columns of the model's visual tokens; none: those of Qwen2-VL, which depend on the image's size"""
    ocr: OcrEngine = "rapidocr"
    """how words in images are read: by rapidocr, or marks for the words that are given in the rows"""
    keywords: KeywordMaker = "rules"
    """what names the keywords of steps. rules: for geometry in English. endpoint: a language model behind an HTTP
    endpoint. model: a language model on this machine"""
    language: KeywordSettings = field(default_factory=KeywordSettings)
    """language model for keywords"""
    region: RegionRule = field(default_factory=RegionRule)
    """how far a region reaches around the words in an image"""

    def __post_init__(self) -> None:
        if self.grid is not None and min(self.grid) < 1:
            raise ValueError(f"grid must be rows and columns of at least 1, got {self.grid}")


@dataclass(frozen=True)
class SolvedRow:
    """A question about an image with a solution in words."""

    name: str
    """file and line, for messages"""
    image: Path
    question: str
    opening: str
    """text of the solution before its first step"""
    steps: tuple[str, ...]
    answer: str
    marks: tuple[Word, ...] = ()
    """words in the image, if they are given"""


def parse_row(line: str, name: str, root: Path) -> SolvedRow:
    """Parse a line of the data; image paths are relative to `root`. Raises ValueError saying what is wrong."""
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the line is not JSON ({error})") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"the line holds what is no text in UTF-8 ({error.reason}); save it again as UTF-8") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row must be an object, got {type(row).__name__}")
    given = {key: row.get(key) for key in ("image", "question", "solution", "answer")}
    missing = [key for key, value in given.items() if value is None or not str(value).strip()]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing")
    for key in ("image", "question", "solution", "answer"):
        if isinstance(row[key], list | dict | bool):
            raise ValueError(f"{key} must be one text, got {row[key]!r:.80}")
    texts = {key: str(row[key]).strip() for key in ("question", "solution", "answer")}
    for key, text in texts.items():
        if tags := [tag for tag in _TAGS if tag in text]:
            raise ValueError(f"{key} holds {' and '.join(tags)}, which the layout reserves; remove it")
    opening, steps = split_steps(texts["solution"])
    image = root / str(row["image"])
    return SolvedRow(name, image, texts["question"], opening, steps, texts["answer"], _marks(row.get("marks")))


def split_steps(solution: str) -> tuple[str, tuple[str, ...]]:
    """Split a solution into the text before its first step and the steps, without headings and a final "Answer: ...".

    Raises:
        ValueError: if the solution has no steps, or a step is empty.
    """
    opening, *steps = (part.strip() for part in _STEP.split(_ANSWER.sub("", "\n" + solution)))
    if not steps:
        raise ValueError('the solution has no lines that begin with "Step 1:", "Step 2:", ..; write its steps that way')
    if empty := [number for number, step in enumerate(steps, start=1) if not step]:
        raise ValueError(f"step {empty[0]} of the solution is empty")
    return opening, tuple(steps)


def _marks(marks: Any) -> tuple[Word, ...]:
    found = []
    for mark in marks or ():
        try:
            x1, y1, x2, y2 = (float(value) for value in mark["box_xyxy"])
            text = str(mark["text"])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f'marks must be {{"text": .., "box_xyxy": [x1, y1, x2, y2]}}, got {mark!r:.80}') from None
        if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
            raise ValueError(f"boxes of marks must lie in [0, 1], got {mark['box_xyxy']}; divide pixels by the size")
        found.append(Word(text, (x1, y1, x2, y2), exact=True))
    return tuple(found)


@dataclass(frozen=True)
class InterleaveMaker:
    """Turns solved rows into interleaved problems."""

    settings: MakingSettings
    read_words: ReadWords
    make_keywords: MakeKeywords

    @classmethod
    def of(cls, settings: MakingSettings) -> InterleaveMaker:
        """Load what the settings name. Raises ValueError if an engine or a language model is missing."""
        keywords = KEYWORD_MAKERS[settings.keywords](settings.language)
        return cls(settings, OCR_ENGINES[settings.ocr](), keywords)

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of the grid over an image of these pixels."""
        return self.settings.grid or qwen_grid(width, height)

    def __call__(self, row: SolvedRow) -> InterleavedProblem:
        """Find the cells that each step of a row looks at.

        Raises:
            KeywordError: if the language model gives no keywords.
            ValueError: if the image cannot be read, or the row lacks the marks that the settings ask for.
        """
        image = ImageFile(row.image).load()
        grid = self.grid(*image.size)
        words = self.read_words(image, row.marks)
        texts = list(dict.fromkeys(word.text for word in words))
        keywords = self.make_keywords(row.question, row.steps, texts)
        cells = [step_cells(named, words, grid, self.settings.region) for named in keywords]
        steps = list(map(InterleavedStep, row.steps, cells))
        steps[-1] = InterleavedStep(f"{row.steps[-1]}\nAnswer: {row.answer}", cells[-1])
        return InterleavedProblem(row.name, row.image, row.question, row.opening, tuple(steps), grid)


Make = Callable[[SolvedRow], InterleavedProblem]
