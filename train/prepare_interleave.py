"""Makes interleaved training data (`python -m train.prepare_interleave --data FILE --out FOLDER`).

Out of images with questions and solutions in words, a JSON object a line: image, question, solution ("Step 1: ..."
lines), answer. Writes shards in MINT-CoT's published layout; a run that was stopped goes on with the same command.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perception.datasets.images import ImageFile
from perception.datasets.interleaved.jobs import KeywordsStopped, MakingReport, make_shards, read_shards
from perception.datasets.interleaved.making import InterleaveMaker, MakingSettings
from perception.datasets.interleaved.mint_cot import InterleavedProblem, for_grid
from train.data.interleaved import ChainProblem, ChainStep
from train.loop.command_line import flatten, parse_config

_ANSWER = re.compile(r"\n\s*Answer:\s*([^\n]*)$")
_FREE = ("timeout", "retries", "backoff", "key_variable", "url", "device")
"""Settings of language models that do not decide what is written"""


@dataclass(frozen=True)
class PrepareConfig:
    """Configuration of the making of interleaved data."""

    data: str
    """JSON lines with image, question, solution and answer"""
    out: str
    """folder of the shards"""
    images: str | None = None
    """folder that image paths are relative to; none: the one that the data lie in"""
    making: MakingSettings = field(default_factory=MakingSettings)
    shard_size: int = 256
    """rows of a shard; what a stopped run had of an unfinished one is made anew"""
    workers: int = 1
    """rows at a time, for endpoints that answer several"""
    copy_images: bool = True
    """put the images beside the shards, so that the folder can be moved"""


def prepare(config: PrepareConfig) -> MakingReport:
    """Makes the folder, or goes on with it. Raises ValueError and KeywordsStopped as `make_shards`."""
    plan = {name: v for name, v in flatten(config.making).items() if name.rsplit(".", 1)[-1] not in _FREE}
    return make_shards(
        config.data,
        config.out,
        InterleaveMaker.of(config.making),
        plan,
        config.images,
        config.shard_size,
        config.workers,
        config.copy_images,
    )


def chain_problem(problem: InterleavedProblem, grid: tuple[int, int] | None = None) -> ChainProblem:
    """A row of interleaved training; on another model's grid (rows, columns) where one is given.

    Raises:
        ValueError: where its image cannot be read, or its solution does not end with "Answer: ...".
    """
    on = for_grid(problem, grid) if grid else problem
    found = _ANSWER.search(on.steps[-1].text) if on.steps else None
    if found is None:
        raise ValueError(f'{problem.name}: the solution does not end with a line "Answer: ..."; add it')
    texts = [step.text for step in on.steps[:-1]] + [on.steps[-1].text[: found.start()]]
    steps = tuple(ChainStep(text, step.cells) for text, step in zip(texts, on.steps, strict=True))
    return ChainProblem(ImageFile(on.image).load(), on.question, found[1].strip(), steps)


def made_problems(folder: str | Path, grid: tuple[int, int] | None = None) -> Sequence[ChainProblem]:
    """The rows of training of a folder that `prepare` made. Raises ValueError as `read_shards` and `chain_problem`."""
    return [chain_problem(problem, grid) for problem in read_shards(folder).problems]


def main(argv: list[str] | None = None) -> int:
    config = parse_config(PrepareConfig, argv)
    try:
        report = prepare(config)
    except (ValueError, KeywordsStopped) as error:
        print(f"prepare_interleave: {error}", file=sys.stderr)
        return 1
    print(f"{report}\nwritten: {config.out}")
    if not report.rows:
        print(f"prepare_interleave: no row could be made; {config.out}/skipped.jsonl says why", file=sys.stderr)
    return 0 if report.rows else 1


if __name__ == "__main__":
    sys.exit(main())
