"""Where the records of a fine-tuning come from: any of the readers, and several of them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from perception.datasets.aurora import read_aurora
from perception.datasets.coco import CountRules, read_counts
from perception.datasets.depth.questions import DepthRules, read_depth_pairs
from perception.datasets.labelling.jobs import read_prepared
from perception.datasets.own import read_questions
from perception.datasets.records import Record, RecordSet
from perception.vocabulary.names import PerceptionVocabulary, SpanError
from vqvae import VQVAE


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
    counts_layout: str = "coco"
    """coco or lvis"""
    depth: tuple[str, ...] = ()
    """folders (or files) of depth maps, asked which point is closest"""
    depth_images: str = ""
    """folder of their images; empty where the depth files hold them (NYUv2)"""
    prepared: tuple[str, ...] = ()
    """folders of images that python -m train.prepare labelled: asked to count, and which point is closest"""
    questions_per_image: int = 4
    """of depth"""

    def __post_init__(self) -> None:
        for name in ("aurora", "counts"):
            if getattr(self, name) and not getattr(self, f"{name}_images"):
                raise ValueError(f"data.{name} needs data.{name}_images, the folder of its images")


def read_sources(
    config: SourcesConfig, vocabulary: PerceptionVocabulary, vqvae: VQVAE | None, codes_folder: Path
) -> RecordSet:
    """All records of all sources.

    Args:
        vocabulary: whose sizes the records are made for; need not be bound.
        vqvae: makes and reads the codes of depth maps.
        codes_folder: where these are kept.

    Raises:
        ValueError: as the readers, and for a record that is not of this vocabulary or depth tokenizer.
    """
    if not (config.own or config.records or config.aurora or config.counts or config.depth or config.prepared):
        raise ValueError("no data: give data.own, data.records, data.aurora, data.counts, data.depth or data.prepared")
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
