"""Solutions in MINT-CoT's published layout as rows of interleaved training, on the reading model's grid."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from perception.answers import final_announcement, final_answer
from perception.datasets.images import ImageFile, pictures_of
from perception.datasets.interleaved.mint_cot import InterleavedProblem, on_grid, read_mint_cot
from perception.datasets.progress import track
from perception.interleave.reasoner import visual_grid
from perception.model.images import load_image
from train.data.interleaved import ChainEncoder, ChainProblem, ChainStep


@dataclass(frozen=True)
class PublishedData:
    """Files of solved problems in MINT-CoT's layout."""

    files: tuple[str, ...] = ()
    """JSON files: the authors', or made by train.prepare_interleave"""
    images: str = ""
    """folder that image paths in the files are relative to; empty: the folder of each file"""
    held_out: int = 100
    """number of rows at the end that are not trained on, nor are others about their images; train.reinforce stops early
    by them"""


class PublishedProblems(Sequence[ChainProblem]):
    """Problems whose images are loaded on access. Cells become the visual tokens that they overlap."""

    def __init__(self, problems: Sequence[tuple[InterleavedProblem, ChainProblem]], encoder: ChainEncoder, model: Any):
        """Take pairs of a problem as it was read and its row without image and tokens, and a model of transformers."""
        self._problems = problems
        self._encoder = encoder
        self._model = model
        self._grid_of = functools.lru_cache(maxsize=None)(self._find_grid)

    @property
    def digest(self) -> str:
        """Number of problems, and a digest of their texts, cells and image files, each by its name and size."""
        total = hashlib.sha256()
        for read, row in self._problems:
            shown = (read.image.name, read.image.stat().st_size, read.grid, [step.cells for step in read.steps])
            said = (row.opening, row.question, [step.text for step in row.steps], row.answer)
            total.update(repr((shown, said)).encode())
        return f"{len(self)} problems, {total.hexdigest()[:16]}"

    def __len__(self) -> int:
        return len(self._problems)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return PublishedProblems(self._problems[index], self._encoder, self._model)
        read, row = self._problems[index]
        image = np.array(load_image(read.image))
        try:
            grid = self._grid_of(image.shape[:2])
        except ValueError as error:
            raise ValueError(f"{read.name}: {read.image}: {error}") from error
        tokens = [on_grid(step.cells, read.grid, grid) for step in read.steps]
        steps = tuple(ChainStep(step.text, own) for step, own in zip(row.steps, tokens, strict=True))
        return ChainProblem(image, row.question, row.answer, steps, row.kind, opening=row.opening)

    def split(self, held_out: int) -> tuple[PublishedProblems, PublishedProblems]:
        """Problems to train on, and the last `held_out` with all others about their images.

        Raises:
            ValueError: if that leaves none to train on.
        """
        files = [ImageFile(read.image) for read, _ in self._problems]
        pictures = pictures_of(files)
        apart = {pictures[file] for file in files[len(files) - held_out :]}
        parts: tuple[list[Any], list[Any]] = ([], [])
        for pair, file in zip(self._problems, files, strict=True):
            parts[pictures[file] in apart].append(pair)
        if not parts[0]:
            raise ValueError(f"the images of held_out ({held_out}) rows are those of all rows; give a lower held_out")
        first, second = (PublishedProblems(part, self._encoder, self._model) for part in parts)
        return first, second

    def _find_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the visual tokens of an image of (height, width) pixels."""
        probe = ChainProblem(np.zeros((*size, 3), np.uint8), "?", "")
        inputs: dict[str, Tensor] = self._encoder.inputs([probe])
        return visual_grid(self._model, inputs, int((inputs["input_ids"] == self._encoder.layout.image_id).sum()))


def read_published_problems(
    data: PublishedData, encoder: ChainEncoder, model: Any
) -> tuple[PublishedProblems, list[str]]:
    """Read the problems of all files, and a message for each row that cannot be used.

    Every image is decoded once, so that training cannot stop at a damaged one.

    Raises:
        ValueError: naming a file that is missing or has no usable row, or if `held_out` leaves no row to train on.
    """
    found: list[tuple[InterleavedProblem, ChainProblem]] = []
    skipped: list[str] = []
    for file in data.files:
        rows = read_mint_cot(file, data.images or None)
        skipped += rows.skipped
        for problem in track(rows.problems, Path(file).name):
            try:
                load_image(problem.image)
                found.append((problem, _row(problem)))
            except ValueError as error:
                skipped.append(f"{problem.name}: {error}")
    if len(found) <= data.held_out:
        first = f"; the first left out: {skipped[0]}" if skipped else ""
        raise ValueError(
            f"{', '.join(data.files)}: {len(found)} rows can be used, and held_out ({data.held_out}) takes them all"
            f"{first}; give more rows, or a lower held_out"
        )
    return PublishedProblems(found, encoder, model), skipped


def _row(problem: InterleavedProblem) -> ChainProblem:
    """The row without image and tokens. The announcement of the answer is cut off; the encoder writes its own."""
    if not problem.steps:
        raise ValueError("its solution has no step that looks")
    texts = [step.text for step in problem.steps]
    answer = final_answer(texts[-1])
    if not answer:
        raise ValueError(f"its last step gives no answer: {texts[-1][-80:]!r}; end it with 'Answer: ..'")
    announced = final_announcement(texts[-1])
    if announced and announced.mark != "box":
        texts[-1] = texts[-1][: announced.start].rstrip(" #*\n").removesuffix("The").rstrip()
    steps = tuple(ChainStep(text) for text in texts)
    return ChainProblem(None, problem.question, answer, steps, "published", opening=problem.opening)
