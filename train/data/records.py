"""Records as a source of rows: read from one or several data sets, and assigned to the steps of a run.

The records of a step are drawn for all devices together, so two devices with one batch each see the same records as one
device with twice the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from rich.progress import track

from perception.chains import ATOMIC, CHAIN, DIRECT, DIRECT_OTHER
from perception.datasets.aurora import read_aurora
from perception.datasets.coco import CountRules, read_counts
from perception.datasets.depth.questions import DepthRules, read_depth_pairs
from perception.datasets.images import ImageFile
from perception.datasets.labelling.jobs import read_prepared
from perception.datasets.own import read_questions
from perception.datasets.records import Record, RecordSet
from perception.scenes.markers import draw_markers
from perception.vocabulary.names import PerceptionVocabulary, SpanError
from train.data.curriculum import CurriculumConfig, kind_shares
from train.data.rows import Row, RowBatches, RowEncoder
from train.data.scenes import SceneRows, ScenesConfig
from train.loop.config import check_choices
from vqvae import VQVAE

_MOST_NAMED = 5
"""Further bad images that an error names"""
_BLANK = Image.new("RGB", (1, 1))
KINDS: dict[str, tuple[str, ...]] = {"atomic": ATOMIC, "chain": CHAIN, "direct": (*DIRECT, DIRECT_OTHER)}


@dataclass(frozen=True)
class SourcesConfig:
    """Data to train on."""

    own: tuple[str, ...] = ()
    """CSV or JSON lines with your own images and questions; perception/datasets/own.py describes the columns"""
    boxes_format: Literal["xyxy", "xywh", "xyxy-1", "cxcywh-1", "xyxy-1000"] | None = None
    """boxes of own: xyxy or xywh (COCO) in pixels, xyxy-1 or cxcywh-1 (YOLO) in [0, 1], xyxy-1000 in thousandths of the
    image; none: xyxy in pixels, and boxes that look otherwise are refused"""
    records: tuple[str, ...] = ()
    """JSON lines written by RecordSet.write"""
    aurora: tuple[str, ...] = ()
    """AURORA's JSON files; they need --naming aurora --num_locations 336"""
    aurora_images: str = ""
    """folder of the images of AURORA's files"""
    counts: tuple[str, ...] = ()
    """COCO or LVIS annotation files, for counting questions"""
    counts_images: str = ""
    """folder of the images of the annotation files"""
    counts_layout: Literal["coco", "lvis"] = "coco"
    """format of the annotation files"""
    depth: tuple[str, ...] = ()
    """folders (or files) of depth maps, for questions about which point is closest"""
    depth_images: str = ""
    """folder of the images of the depth maps; empty if the depth files contain the images (NYUv2)"""
    prepared: tuple[str, ...] = ()
    """folders of images labelled by python -m train.prepare, for questions about counts and the closest point"""
    questions_per_image: int = 4
    """number of depth questions per image"""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """rendered scenes, made when needed, with the curriculum of AURORA's recipe"""

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
    """Read the records of all sources; scenes are not records.

    Args:
        vocabulary: vocabulary whose sizes the records are made for; it need not be bound.
        vqvae: depth tokenizer that encodes and decodes depth maps.
        codes_folder: folder in which the codes of depth maps are stored.

    Raises:
        ValueError: if a reader fails, a record was made for another vocabulary or depth tokenizer, or an image cannot
            be used.
    """
    if not (config.scenes.count or config.any_records):
        raise ValueError(
            "no data: give data.own, data.records, data.aurora, data.counts, data.depth, data.prepared or "
            "data.scenes.count"
        )
    size = vocabulary.num_locations
    sets = [read_questions(Path(path), size, config.boxes_format) for path in config.own]
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
        with FileLock(codes.with_suffix(".lock")):  # the first process makes the codes, the others wait
            sets.append(read_depth_pairs(Path(path), images, codes, vqvae, size, rules=asked))
    records = tuple(record for one in sets for record in one.records)
    for record in records:
        check_record(record, vocabulary, vqvae)
    check_images(records)
    return RecordSet(records, tuple(line for one in sets for line in one.skipped))


def check_record(record: Record, vocabulary: PerceptionVocabulary, vqvae: VQVAE | None) -> None:
    """Raise ValueError, naming the record, if its spans do not fit the vocabulary or its codes the depth tokenizer."""
    for part in record.example.target:
        if not isinstance(part, str):
            try:
                vocabulary.check_span(part)
            except SpanError as error:
                raise ValueError(f"{record.source}: {error}; make the records for this vocabulary's sizes") from error
    if record.tokenizer and vqvae is not None and record.tokenizer != vqvae.fingerprint():
        raise ValueError(
            f"{record.source}: its depth codes are of tokenizer {record.tokenizer}, this one is {vqvae.fingerprint()}; "
            "make the records again, or train with the depth tokenizer that made them"
        )


def records_digest(records: Sequence[Record]) -> str:
    """Return the number of records and a digest of what they teach: tasks, texts, codes, markers and image files.

    An image counts with its name and size in bytes, so data may move to another folder.
    """
    total = hashlib.sha256()
    sizes: dict[Path, int] = {}
    for record in records:
        path, example = record.image.path, record.example
        if path not in sizes:
            sizes[path] = path.stat().st_size if path.is_file() else -1
        shown = (path.name, sizes[path], record.image.index, record.marks)
        total.update(repr((*shown, example.task, example.question, example.target, example.answer)).encode())
    return f"{len(records)} records, {total.hexdigest()[:16]}"


def check_lengths(batches: RowBatches, steps: int) -> None:
    """Refuse data with rows that are longer than `batches.encoder.max_length`, before training.

    Looked at are scenes of the first, middle and last step, and all records as by `too_long`. Other rows are checked as
    their batch is made.

    Raises:
        ValueError: naming the record, its number of tokens and the limit.
    """
    encoder = batches.encoder
    for source, count in batches.sources:
        if isinstance(source, SceneRows) and encoder.max_length is not None:
            for step in {0, steps // 2, steps - 1}:
                encoder.batches(source.rows(step, 0, 1, count), 1)
        elif isinstance(source, RecordRows):
            check_records(encoder, source.records)


def check_records(encoder: RowEncoder, records: Sequence[Record]) -> None:
    """Raise ValueError for the first record that is longer than `encoder.max_length`, naming it."""
    for fault in too_long(encoder, records):
        if fault:
            raise ValueError(fault)


def too_long(encoder: RowEncoder, records: Sequence[Record], looked_at: int = 8) -> Iterator[str | None]:
    """Yield, per record, what is wrong if it has more tokens than `encoder.max_length`, else None.

    Encoded are all records whose text, after the longest prompt of the `looked_at` largest image files, may be too
    long.
    """
    if encoder.max_length is None:
        yield from (None for _ in records)
        return
    images = {record.image: record for record in records}
    largest = sorted(images, key=lambda image: image.path.stat().st_size if image.path.is_file() else 0)[-looked_at:]
    longest = max((encoder.head_length(row_of(images[image]).image) for image in largest), default=0)
    for record in records:
        fault = None
        if longest + _most_tokens(record) > encoder.max_length:
            try:
                encoder.encode(Row(_BLANK, record.example), [0] * longest)
            except ValueError:
                row = row_of(record)
                try:
                    encoder.batches([row], 1)
                except ValueError as error:
                    fault = f"{record.source}: {error}"
        yield fault


def _most_tokens(record: Record) -> int:
    """Return a number of tokens that the text of a record, with its end, does not exceed: one per byte and code."""
    parts = (record.example.question, *record.example.target)
    return 64 + sum(len(p.encode()) if isinstance(p, str) else len(p.codes) + 2 for p in parts)


def available_shares(curriculum: CurriculumConfig, progress: float, available: Sequence[bool]) -> np.ndarray:
    """Return the shares (3,) of KINDS at `progress` of a run; missing kinds pass their shares on in proportion."""
    shares = np.array(kind_shares(curriculum, progress)) * np.array(available)
    if not shares.sum():  # the schedule has no available kind: equal shares
        shares = np.array(available, dtype=float)
    return shares / shares.sum()


@dataclass(frozen=True)
class RecordPlan:
    """Indices of the records of every step. Within each kind, no record repeats before all were used."""

    rows: np.ndarray
    """indices, (steps, rows per step)"""

    @classmethod
    def draw(
        cls, tasks: Sequence[str], curriculum: CurriculumConfig, steps: int, rows_a_step: int, seed: int
    ) -> RecordPlan:
        """Draw the plan for records with the given tasks. Raises ValueError if there are none."""
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
    """Return `count` of the members, reshuffled each time all of them were used."""
    rounds = -(-count // max(1, len(members)))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members[:0]])[:count]


@dataclass(frozen=True)
class RecordRows:
    """Rows from records, with the curriculum's shares of atomic tasks, chains and direct answers."""

    records: tuple[Record, ...]
    curriculum: CurriculumConfig
    steps: int
    """number of steps of the run"""
    seed: int
    _plans: dict[int, RecordPlan] = field(default_factory=dict, repr=False)

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        numbers = self.plan(num_shards * count).rows[step].reshape(num_shards, count)[shard]
        return [row_of(self.records[n]) for n in numbers]

    def plan(self, rows_a_step: int) -> RecordPlan:
        """Return the plan of which records each step uses. Raises ValueError if there are none."""
        if rows_a_step not in self._plans:
            tasks = [record.example.task for record in self.records]
            self._plans[rows_a_step] = RecordPlan.draw(tasks, self.curriculum, self.steps, rows_a_step, self.seed)
        return self._plans[rows_a_step]


def check_images(records: Sequence[Record]) -> None:
    """Decode every image once, on all cores, so that training cannot stop at one.

    Raises:
        ValueError: naming entry and file of the first image that cannot be used, and the entries of others.
    """
    first: dict[ImageFile, Record] = {}
    for record in records:
        first.setdefault(record.image, record)

    def fault(record: Record) -> str | None:
        try:
            record.image.load()
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        faults = track(pool.map(fault, first.values()), description="checking images", total=len(first), transient=True)
        bad = [(record.source, said) for record, said in zip(first.values(), faults, strict=True) if said is not None]
    if bad:
        others = ", ".join(source for source, _ in bad[1 : 1 + _MOST_NAMED])
        more = f" ({len(bad)} images cannot be used; others: {others}{', ..' * (len(bad) > 1 + _MOST_NAMED)})"
        raise ValueError(f"{bad[0][0]}: {bad[0][1]}; or take the entry out{more * (len(bad) > 1)}")


def row_of(record: Record) -> Row:
    """Load a record's image in RGB and draw its markers. Raises ValueError, naming record and file, if it cannot."""
    try:
        image = record.image.load()
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error
    if record.marks:
        marked = draw_markers(torch.from_numpy(np.array(image)), np.array(record.marks))
        image = Image.fromarray(marked.numpy())
    return Row(image, record.example)
