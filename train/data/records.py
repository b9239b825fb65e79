"""Records as a source of rows: read by any of the readers, and several of them at once; dealt to the steps of a run.

The records of a step are drawn for all devices together, so two devices with a batch each see what one with twice the
batch sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from PIL import Image

from perception.chains import ATOMIC, CHAIN, DIRECT, DIRECT_OTHER
from perception.datasets.aurora import read_aurora
from perception.datasets.coco import CountRules, read_counts
from perception.datasets.depth.questions import DepthRules, read_depth_pairs
from perception.datasets.labelling.jobs import read_prepared
from perception.datasets.own import read_questions
from perception.datasets.records import Record, RecordSet
from perception.scenes.markers import draw_markers
from perception.vocabulary.names import PerceptionVocabulary, SpanError
from train.data.curriculum import CurriculumConfig, kind_shares
from train.data.rows import Row
from train.data.scenes import ScenesConfig
from train.loop.config import check_choices
from vqvae import VQVAE

KINDS: dict[str, tuple[str, ...]] = {"atomic": ATOMIC, "chain": CHAIN, "direct": (*DIRECT, DIRECT_OTHER)}


@dataclass(frozen=True)
class SourcesConfig:
    """Data to train on."""

    own: tuple[str, ...] = ()
    """CSV or JSON lines of images and questions of one's own; their columns: perception/datasets/own.py"""
    records: tuple[str, ...] = ()
    """JSON lines written by RecordSet.write"""
    aurora: tuple[str, ...] = ()
    """AURORA's JSON files; they need --naming aurora --num_locations 336"""
    aurora_images: str = ""
    """folder of their images"""
    counts: tuple[str, ...] = ()
    """COCO's or LVIS's annotation files, asked to count"""
    counts_images: str = ""
    """folder of their images"""
    counts_layout: Literal["coco", "lvis"] = "coco"
    depth: tuple[str, ...] = ()
    """folders (or files) of depth maps, asked which point is closest"""
    depth_images: str = ""
    """folder of their images; empty where the depth files hold them (NYUv2)"""
    prepared: tuple[str, ...] = ()
    """folders of images that python -m train.prepare labelled: asked to count, and which point is closest"""
    questions_per_image: int = 4
    """of depth"""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """rendered as they are needed, with the curriculum of AURORA's recipe"""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("aurora", "counts"):
            if getattr(self, name) and not getattr(self, f"{name}_images"):
                raise ValueError(f"data.{name} needs data.{name}_images, the folder of its images")

    @property
    def any_records(self) -> bool:
        return bool(self.own or self.records or self.aurora or self.counts or self.depth or self.prepared)


def read_records(
    config: SourcesConfig, vocabulary: PerceptionVocabulary, vqvae: VQVAE | None, codes_folder: Path
) -> RecordSet:
    """All records of all sources; the scenes are none.

    Args:
        vocabulary: whose sizes the records are made for; need not be bound.
        vqvae: makes and reads the codes of depth maps.
        codes_folder: where these are kept.

    Raises:
        ValueError: as the readers, and for a record that is not of this vocabulary or depth tokenizer.
    """
    if not (config.scenes.count or config.any_records):
        raise ValueError(
            "no data: give data.own, data.records, data.aurora, data.counts, data.depth, data.prepared or "
            "data.scenes.count"
        )
    size = vocabulary.num_locations
    sets = [read_questions(Path(path), size) for path in config.own]
    sets += [RecordSet.read(Path(path)) for path in config.records]
    sets += [read_aurora(Path(path), Path(config.aurora_images), vocabulary) for path in config.aurora]
    rules = CountRules(layout=config.counts_layout)
    sets += [read_counts(Path(path), Path(config.counts_images), size, rules) for path in config.counts]
    asked = DepthRules(questions_per_image=config.questions_per_image)
    sets += [read_prepared(Path(path), size, vqvae, asked) for path in config.prepared]
    if config.depth and vqvae is None:
        raise ValueError("data.depth needs a depth tokenizer to make codes; set depth_tokenizer")
    for number, path in enumerate(config.depth):
        assert vqvae is not None
        images = Path(config.depth_images) if config.depth_images else None
        codes = codes_folder / f"depth-codes-{number}.parquet"
        codes.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(codes.with_suffix(".lock")):  # of several processes the first makes the codes, the others wait
            sets.append(read_depth_pairs(Path(path), images, codes, vqvae, size, rules=asked))
    records = tuple(record for one in sets for record in one.records)
    for record in records:
        check_record(record, vocabulary, vqvae)
    return RecordSet(records, tuple(line for one in sets for line in one.skipped))


def check_record(record: Record, vocabulary: PerceptionVocabulary, vqvae: VQVAE | None) -> None:
    """Raises ValueError naming a record whose spans are not this vocabulary's, or whose codes another tokenizer's."""
    for part in record.example.target:
        if not isinstance(part, str):
            try:
                vocabulary.check_span(part)
            except SpanError as error:
                raise ValueError(f"{record.source}: {error}; make the records for this vocabulary's sizes") from error
    if record.tokenizer and vqvae is not None and record.tokenizer != vqvae.fingerprint():
        raise ValueError(
            f"{record.source}: its depth codes are of tokenizer {record.tokenizer}, this one is {vqvae.fingerprint()}; "
            "make the records anew, or train with the depth tokenizer that they were made by"
        )


def available_shares(curriculum: CurriculumConfig, progress: float, available: Sequence[bool]) -> np.ndarray:
    """Shares (3,) of KINDS at `progress` of a run; what data lack goes to what they have, in proportion."""
    shares = np.array(kind_shares(curriculum, progress)) * np.array(available)
    if not shares.sum():  # the schedule asks for nothing that is there: all of it alike
        shares = np.array(available, dtype=float)
    return shares / shares.sum()


@dataclass(frozen=True)
class RecordPlan:
    """Indices of the records of every step. Each kind goes through its records once before any of them comes again."""

    rows: np.ndarray
    """(steps, rows of a step)"""

    @classmethod
    def draw(
        cls, tasks: Sequence[str], curriculum: CurriculumConfig, steps: int, rows_a_step: int, seed: int
    ) -> RecordPlan:
        """The plan of records with these tasks. Raises ValueError where there are none."""
        if not tasks:
            raise ValueError("there are no records to train on; see what the readers left out, and why")
        members = [np.array([n for n, task in enumerate(tasks) if task in known]) for known in KINDS.values()]
        available = [len(m) > 0 for m in members]
        rng = np.random.default_rng((seed, 0))
        shares = [available_shares(curriculum, step / max(1, steps), available) for step in range(steps)]
        kinds = np.stack([rng.choice(len(KINDS), size=rows_a_step, p=share) for share in shares])  # (steps, rows)
        rows = np.zeros_like(kinds)
        for number, member in enumerate(members):
            places = kinds == number
            rows[places] = _dealt(member, int(places.sum()), np.random.default_rng((seed, 1, number)))
        return cls(rows)


def _dealt(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the members, shuffled anew each time all of them were dealt."""
    rounds = -(-count // max(1, len(members)))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members[:0]])[:count]


@dataclass(frozen=True)
class RecordRows:
    """Rows of records, by the curriculum's shares of atomic tasks, chains and direct answers."""

    records: tuple[Record, ...]
    curriculum: CurriculumConfig
    steps: int
    """of the run"""
    seed: int
    _plans: dict[int, RecordPlan] = field(default_factory=dict, repr=False)

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        numbers = self.plan(num_shards * count).rows[step].reshape(num_shards, count)[shard]
        return [row_of(self.records[n]) for n in numbers]

    def plan(self, rows_a_step: int) -> RecordPlan:
        """Which records make up each step. Raises ValueError where there are none."""
        if rows_a_step not in self._plans:
            tasks = [record.example.task for record in self.records]
            self._plans[rows_a_step] = RecordPlan.draw(tasks, self.curriculum, self.steps, rows_a_step, self.seed)
        return self._plans[rows_a_step]


def row_of(record: Record) -> Row:
    """The record with its image in RGB, its markers drawn. Raises ValueError naming record and file."""
    try:
        image = record.image.load()
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error
    if record.marks:
        marked = draw_markers(torch.from_numpy(np.array(image)), np.array(record.marks))
        image = Image.fromarray(marked.numpy())
    return Row(image, record.example)
