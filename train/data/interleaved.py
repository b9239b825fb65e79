"""Problems with step-by-step solutions as rows of interleaved training: prompts, answers with looks, and batches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from perception.chains import ChatPrompt
from perception.geometry.figure import Mark
from perception.interleave.chains import InterleavedBatch, LabelRule, Look, build_batch
from perception.interleave.native import NativeImages
from perception.interleave.triggers import GENERATED, NATIVE, InterleaveSettings
from perception.interleave.visual_tokens import VisualLayout
from perception.model.image_inputs import batch_images, pad_rows
from perception.vocabulary.names import PerceptionVocabulary
from train.data.arithmetic import sum_rows

HEADING = "Step {}:"
"""Heading of a step, as `InterleaveSettings.heading` finds it by default"""


@dataclass(frozen=True)
class ChainStep:
    """A step of a solution, and the visual tokens that it looks at."""

    text: str
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class ChainProblem:
    """A problem with its solution. Without steps, the solution is the answer alone."""

    image: Any
    """(H, W, 3) uint8, or any image that the processor takes; a tuple for several images"""
    question: str
    answer: str
    steps: tuple[ChainStep, ...] = ()
    kind: str = ""
    """family of the problem"""
    marks: tuple[Mark, ...] = ()
    """texts in the image, if they are known"""
    signs: tuple[Mark, ...] = ()
    """small drawings with a meaning, by the word for it"""
    truths: Mapping[str, Any] = field(default_factory=dict)
    """truths that rewards compare a chain with besides `answer`: boxes_xyxy, depth_order, count"""
    opening: str = ""
    """text of the solution before its first step"""

    @property
    def images(self) -> tuple[Any, ...]:
        return self.image if isinstance(self.image, tuple) else (self.image,)


# Regions that looks bring in


def _hull(tokens: Sequence[int], grid: tuple[int, int]) -> tuple[int, ...]:
    if not tokens:
        return ()
    rows, columns = np.divmod(np.asarray(tokens), grid[1])
    inside = np.zeros(grid, dtype=bool)
    inside[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return tuple(np.flatnonzero(inside).tolist())


Regions = Callable[[Sequence[int], tuple[int, int], np.random.Generator], tuple[int, ...]]
"""(tokens of a step, grid (rows, columns), random generator) -> tokens that are brought in instead."""
RegionName = Literal["own", "boxes", "whole", "random"]
REGIONS: dict[str, Regions] = {
    "own": lambda tokens, grid, rng: tuple(tokens),
    "boxes": lambda tokens, grid, rng: _hull(tokens, grid),
    "whole": lambda tokens, grid, rng: tuple(range(grid[0] * grid[1])),
    "random": lambda tokens, grid, rng: tuple(
        sorted(rng.choice(grid[0] * grid[1], size=len(tokens), replace=False).tolist())
    ),
}
"""The tokens of the step, and three controls: their bounding box, the whole image, as many random tokens."""


def with_regions(problem: ChainProblem, regions: str, grid: tuple[int, int], seed: int) -> ChainProblem:
    """Replace the tokens of each step by one of `REGIONS`. Raises ValueError if the name is unknown."""
    if regions not in REGIONS:
        raise ValueError(f"unknown regions {regions!r}; known: {', '.join(REGIONS)}")
    rng = np.random.default_rng(seed)
    steps = tuple(replace(step, tokens=REGIONS[regions](step.tokens, grid, rng)) for step in problem.steps)
    return replace(problem, steps=steps)


# Rows


@dataclass(frozen=True)
class ChainEncoder:
    """Turns problems into prompts and teacher-forced batches of a model."""

    processor: Any
    vocabulary: PerceptionVocabulary
    layout: VisualLayout
    settings: InterleaveSettings
    next_token: bool = True
    """whether the first token after a look is supervised"""
    announce: bool = False
    """as in `LabelRule`"""

    @property
    def prompt(self) -> ChatPrompt:
        return ChatPrompt.from_processor(self.processor)

    @property
    def rule(self) -> LabelRule:
        """The rule of supervision: looks are supervised if the model writes them itself."""
        generated = self.settings.trigger == GENERATED
        return LabelRule(interleave=generated, next_token=generated or self.next_token, announce=self.announce)

    def inputs(self, problems: Sequence[ChainProblem]) -> dict[str, Tensor]:
        """Prompts as the processor makes them, padded on the left. Questions are plain text, whatever they contain."""
        tokenizer, counts = self.processor.tokenizer, {len(problem.images) for problem in problems}
        heads = {count: ChatPrompt.from_processor(self.processor, count) for count in counts}
        rows, images = list[list[int]](), list[dict[str, Tensor]]()
        for problem in problems:
            head = heads[len(problem.images)]
            ids, given = head.head_ids(self.processor, list(problem.images))
            rows.append(ids + head.tail_ids(tokenizer, self.vocabulary, problem.question))
            images.append(given)
        return {
            "input_ids": pad_rows(rows, tokenizer.pad_token_id, left=True),
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, left=True),
            **batch_images(images),
        }

    def native(self, problems: Sequence[ChainProblem], inputs: Mapping[str, Any]) -> NativeImages | None:
        """The original images behind `inputs`, where looks have native resolution."""
        if self.settings.resolution != NATIVE:
            return None
        originals, image_id = [problem.images for problem in problems], self.layout.image_id
        return NativeImages(self.processor.image_processor, originals, inputs, image_id, self.settings.look_tokens)

    def answer(self, problem: ChainProblem) -> list[int | Look]:
        """Ids and looks of a solution ("Step 1:", look, text, .., "Answer: 42"), and the end of sequence."""
        tokenizer = self.processor.tokenizer

        def encode(text: str) -> list[int]:
            return self.vocabulary.encode_plain(tokenizer, text)

        parts: list[int | Look] = []

        def look(tokens: tuple[int, ...] = ()) -> None:
            most = self.settings.max_looks
            if most is None or sum(isinstance(part, Look) for part in parts) < most:
                parts.append(Look(tokens))

        def say(text: str) -> None:
            """Generation looks at any heading, also at one that the text quotes ("by Step 1: .."): at nothing here."""
            start = 0
            for end in self._headings(text):
                parts.extend(encode(text[start:end]))
                look()
                start = end
            parts.extend(encode(text[start:]))

        if problem.opening and problem.steps:
            say(f" {problem.opening}\n")
        for number, step in enumerate(problem.steps, start=1):
            parts += encode(("\n" if number > 1 else "" if problem.opening else " ") + HEADING.format(number))
            look(step.tokens)
            say(f" {step.text}")
        parts += encode(f"\nAnswer: {problem.answer}" if problem.steps else f" {problem.answer}")
        return [*parts, tokenizer.eos_token_id]

    def _headings(self, text: str) -> list[int]:
        """Ends of the headings in a text, where looks follow headings."""
        if self.settings.trigger == GENERATED:
            return []
        return [found.end() for found in re.finditer(self.settings.heading, text) if found[0]]

    def counts(self, problem: ChainProblem) -> tuple[int, int]:
        """Number of supervised tokens and of looks of a row."""
        parts = self.answer(problem)
        looks = [part for part in parts if isinstance(part, Look)]
        per_look = int(self.rule.interleave) - int(not self.rule.next_token)  # a token follows every look
        announced = sum(bool(look.tokens) for look in looks) if self.announce else 0
        return len(parts) - len(looks) + len(looks) * per_look + announced, len(looks)

    def batch(self, problems: Sequence[ChainProblem]) -> InterleavedBatch:
        """A teacher-forced batch of problems with their solutions."""
        pad_id = self.processor.tokenizer.pad_token_id
        answers, inputs = [self.answer(problem) for problem in problems], self.inputs(problems)
        given = (self.rule, self.native(problems, inputs), self.settings.take_along)
        return build_batch(self.layout, inputs, answers, pad_id, *given)


@dataclass(frozen=True)
class ChainBatches:
    """Batches as a pure function of step, shard and seed. The rows of a step do not depend on the number of shards."""

    encoder: ChainEncoder
    problems: Sequence[ChainProblem]
    batch_size: int
    """rows per step, over all shards"""
    seed: int
    augment: Callable[[ChainProblem, np.random.Generator], ChainProblem] | None = None
    sums: int = 0
    """rows of sums per step, beside the problems"""
    _newest: dict[int, list[ChainProblem]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """problems of the step that was asked for last"""

    def rows(self, step: int) -> list[int]:
        """Indices of the problems of a step. Each epoch has every problem once, in its own order."""
        first, count = step * self.batch_size, len(self.problems)
        return [
            int(np.random.default_rng((self.seed, place // count)).permutation(count)[place % count])
            for place in range(first, first + self.batch_size)
        ]

    def chosen(self, step: int) -> list[ChainProblem]:
        """The problems of a step, augmented. They are read once, however many shards of it this process asks for."""
        if step not in self._newest:
            problems = [self.problems[row] for row in self.rows(step)]
            if self.augment is not None:
                rngs = [np.random.default_rng((self.seed, step, n)) for n in range(len(problems))]
                problems = [self.augment(p, rng) for p, rng in zip(problems, rngs, strict=True)]
            self._newest.clear()
            self._newest[step] = problems
        return self._newest[step]

    def shares(self, step: int, shard: int, num_shards: int) -> list[ChainProblem]:
        """The problems of one shard. Raises ValueError if the rows of a step cannot be divided equally."""
        if self.batch_size % num_shards:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of the shards of a step ({num_shards}: devices "
                "times gradient accumulation); change one of them"
            )
        return self.chosen(step)[shard::num_shards]

    def __call__(self, step: int, shard: int, num_shards: int) -> Mapping[str, Any]:
        counts = [self.encoder.counts(problem) for problem in self.chosen(step)]
        problems = self.shares(step, shard, num_shards)
        share: dict[str, Any] = {
            "batch": self.encoder.batch(problems),
            "num_labels": sum(labels for labels, _ in counts),
            "num_looks": sum(looks for _, looks in counts),
            "num_shards": num_shards,
        }
        if self.sums:
            rng = np.random.default_rng((self.seed, step, shard, len(problems)))
            share["sums"] = sum_rows(rng, self.encoder.processor.tokenizer, max(1, self.sums // num_shards))
        return share
