"""Makes interleaved training data (`python -m train.prepare_interleave --data FILE --out FOLDER`).

FILE holds one JSON object per line: image, question, solution ("Step 1: ..." lines) and answer. The result is shards in
MINT-CoT's published layout, in which each step names the visual tokens it looks at. A run that was stopped continues
with the same command.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from perception.datasets.interleaved.jobs import KeywordsStopped, MakingReport, make_shards
from perception.datasets.interleaved.making import InterleaveMaker, MakingSettings
from train.loop.command_line import flatten, parse_config
from vqvae.files import DiskFull

_FREE = ("timeout", "key_variable", "url", "device")
"""Settings of language models that do not change what is written"""


@dataclass(frozen=True)
class PrepareInterleaveConfig:
    """Makes interleaved training data from questions about images that are solved in words."""

    data: str
    """file of JSON lines with image, question, solution and answer"""
    out: str
    """folder for the shards"""
    images: str | None = None
    """folder that image paths are relative to; none: the folder of the data file"""
    making: MakingSettings = field(default_factory=MakingSettings)
    shard_size: int = 256
    """rows per shard; a stopped run redoes its unfinished shard"""
    workers: int = 1
    """rows made at the same time, for endpoints that answer several requests at once"""
    copy_images: bool = True
    """copy the images into the output folder, so that it can be moved"""


def prepare(config: PrepareInterleaveConfig) -> MakingReport:
    """Makes the shards, or continues to. Raises ValueError and KeywordsStopped as `make_shards` does."""
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


def main(argv: list[str] | None = None) -> int:
    config = parse_config(PrepareInterleaveConfig, argv)
    try:
        report = prepare(config)
    except (ValueError, DiskFull, KeywordsStopped) as error:
        print(f"prepare_interleave: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        said = "stopped; finished shards are kept, and the same command goes on from there"
        print(f"prepare_interleave: {said}", file=sys.stderr)
        return 130
    print(f"{report}\nwritten: {config.out}")
    if not report.rows:
        print(f"prepare_interleave: no row could be made; reasons are in {config.out}/skipped.jsonl", file=sys.stderr)
    return 0 if report.rows else 1


if __name__ == "__main__":
    sys.exit(main())
