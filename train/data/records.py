"""Records as a source of rows: read from one or several data sets, and assigned to the steps of a run.

The records of a step are drawn for all devices together, so two devices with one batch each see the same records as one
device with twice the batch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps

from perception.chains import (
    ATOMIC,
    ATOMIC_BOXES,
    CHAIN,
    CHAIN_COUNT,
    DIRECT,
    DIRECT_COUNT,
    DIRECT_OTHER,
    ChatPrompt,
    Example,
    chain_count,
    direct,
)
from perception.datasets.aurora import read_aurora
from perception.datasets.boxes import Resize, check_format
from perception.datasets.coco import read_counts
from perception.datasets.depth.files import DepthFormat
from perception.datasets.depth.questions import DepthRules, read_depth_pairs
from perception.datasets.detection import CountRules
from perception.datasets.images import ImageFile
from perception.datasets.labelling.jobs import read_prepared
from perception.datasets.own import read_questions
from perception.datasets.photographs import Window
from perception.datasets.progress import track
from perception.datasets.records import Record, RecordSet, bad_row
from perception.datasets.tables import read_table
from perception.datasets.voc import read_voc
from perception.datasets.yolo import read_yolo
from perception.scenes.markers import draw_markers
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span, SpanError
from train.data.augmentation import recolour
from train.data.conversations import ConversationPrompt
from train.data.curriculum import CurriculumConfig, kind_shares
from train.data.photos import PhotosConfig
from train.data.rows import Row, RowBatches, RowEncoder
from train.data.scenes import SceneRows, ScenesConfig
from train.loop.config import check_choices
from vqvae import VQVAE

_MOST_NAMED = 5
"""Further bad images that an error names"""
_BLANK = Image.new("RGB", (1, 1))
_SIDELESS = (ATOMIC_BOXES, CHAIN_COUNT, DIRECT_COUNT)
_CUT = 0.75  # share of the images of which a part is shown
_TOGETHER = 3  # most questions of a row that count in one image
_DEPTH_REMEDY = "data.depth_format declares what depth files hold, and --on_bad_row skip leaves bad ones out"
_INSIDE = 1 / 3  # least share of a box inside a part for it to count there
_SIDES = re.compile(
    r"\b(left|right|(north|south)?-?(east|west)|(counter|anti)?-?clockwise|o'clock|port\b|starboard|letters?\b|digits?\b|"
    r"words?\b|texts?\b|written\b|reads?\b|links\b|linke|rechts|rechte|gauche|droite?s?\b|izquierd|derech|sinistr|"
    r"destr[aoei]\b|esquerd|direit|лев|прав|слева|справа|налево|направо)|左|右|왼|오른|좌측|우측",
    re.IGNORECASE,
)
"""Words of questions whose answers may not hold in a mirror image; left and right also in German, Dutch, French,
Spanish, Italian, Portuguese, Russian, Chinese, Japanese and Korean"""
_PLACES = re.compile(r"\d(\s*[,;]\s*|\s+)[-+]?\.?\d|\b[xy]\d*\W{0,3}[=:]|\bloc_?\d|\bpatch_index_\d", re.IGNORECASE)
"""Places in the image as models write them in plain text: numbers behind one another, x="12", <loc0123>"""
_PARTS = re.compile(
    r"\b(top(most)?\b|bottom(most)?\b|upper|lower|middle|cent(er|re)\b|central|corner|edge|border|half\b|halves\b|"
    r"quarter|quadrant|rows?\b|columns?\b|(fore|back)ground|complete|partial|partly|fully|cut off|"
    r"(larg|bigg|small|tall|near|clos)(er|est)\b|(far|fur)th(er|est)\b|above|below|vertical|horizontal|"
    r"(up|down)wards?\b)",
    re.IGNORECASE,
)
"""Words of questions whose answers may not be the boxes that are left in a part of the image, or in a turned one"""
KINDS: dict[str, tuple[str, ...]] = {"atomic": ATOMIC, "chain": CHAIN, "direct": (*DIRECT, DIRECT_OTHER)}


@dataclass(frozen=True)
class SourcesConfig:
    """Data to train on."""

    own: tuple[str, ...] = ()
    """CSV or JSON lines with your own images and questions; perception/datasets/own.py describes the columns"""
    dataset: tuple[str, ...] = ()
    """conversations (messages and images), questions or labelled images: JSON lines, parquet, a folder of the library
    datasets, or a hub name; docs/data.md shows the columns"""
    dataset_config: str = ""
    """configuration of a data set that has several"""
    dataset_split: str = "train"
    """part of a data set"""
    boxes_format: str | None = None
    """boxes of own and dataset: xyxy, xywh (COCO), cxcywh or yxyx in pixels; with -1 (cxcywh-1: YOLO) in [0, 1], with
    -1000 in thousandths (xyxy-1000: Qwen3-VL), with -1024 in PaliGemma's locations (yxyx-1024), with -resized in pixels
    of the image as the base's processor resizes it (xyxy-resized: Qwen2.5-VL); none: xyxy in pixels, and boxes that
    look otherwise are refused"""
    records: tuple[str, ...] = ()
    """JSON lines written by RecordSet.write"""
    aurora: tuple[str, ...] = ()
    """AURORA's JSON files; they need --naming aurora --num_locations 336"""
    aurora_images: str = ""
    """folder of the images of AURORA's files"""
    counts: tuple[str, ...] = ()
    """detection labels, for counting and drawing: COCO's or LVIS's annotation files, VOC's folders of XML files or
    lists of a split (ImageSets/Main/train.txt), or YOLO's YAML files"""
    counts_images: str = ""
    """folder of the images of the labels; for yolo the root of the data set, if its file names another one"""
    counts_layout: Literal["coco", "lvis", "voc", "yolo"] = "coco"
    """layout of the labels"""
    counts_split: str = "train"
    """part of YOLO's data sets, as their YAML files call it: train, val or test"""
    counts_asked: Literal["one", "all"] = "one"
    """classes of a labelled image that are asked about, in counts, prepared, and objects of dataset: one, its most
    frequent; or all, those that are absent too"""
    counts_most: int = 15
    """largest number of objects of a class that is asked for, in the same"""
    depth: tuple[str, ...] = ()
    """folders (or files) of depth maps, for questions about which point is closest"""
    depth_images: str = ""
    """folder of the images of the depth maps; empty if the depth files contain the images (NYUv2)"""
    depth_format: DepthFormat = field(default_factory=DepthFormat)
    """meaning of the numbers in depth"""
    augment: Literal["mirror", "parts", "turned"] = "mirror"
    """how images that are counted in or have boxes to draw vary, if no text speaks of a side. mirror: half of them are
    mirrored; parts: most are cut to a random part as well, with the boxes in it counted anew, and vary in brightness
    and colour; turned: parts turned by quarters, for images that have no up, such as cells"""
    prepared: tuple[str, ...] = ()
    """folders of images labelled by python -m train.prepare, for questions about counts and the closest point"""
    questions_per_image: int = 4
    """number of depth questions per image"""
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    """rendered scenes, made when needed, with the curriculum of AURORA's recipe"""
    photos: PhotosConfig = field(default_factory=PhotosConfig)
    """photographs with labels of teacher models, with the tasks of rendered scenes"""

    def __post_init__(self) -> None:
        check_choices(self)
        check_format(self.boxes_format)
        for name in ("aurora", "counts"):
            named_by_itself = name == "counts" and self.counts_layout == "yolo"
            if getattr(self, name) and not getattr(self, f"{name}_images") and not named_by_itself:
                raise ValueError(f"data.{name} needs data.{name}_images, the folder of its images")
        if self.counts_split != "train" and self.counts_layout != "yolo":
            raise ValueError(
                f"data.counts_split {self.counts_split!r} is for data.counts_layout yolo; name the file of that part "
                f"as data.counts for {self.counts_layout}"
            )
        if self.counts_most < 1:
            raise ValueError(f"data.counts_most must be at least 1, got {self.counts_most}")
        if self.photos.folder and self.any_records:
            raise ValueError("photographs are mixed with rendered scenes alone; leave data.photos or the records out")

    @property
    def more_than_scenes(self) -> bool:
        return self.any_records or bool(self.photos.folder)

    @property
    def any_records(self) -> bool:
        return bool(
            self.own or self.dataset or self.records or self.aurora or self.counts or self.depth or self.prepared
        )


def read_records(
    config: SourcesConfig,
    vocabulary: PerceptionVocabulary,
    vqvae: VQVAE | None,
    folder: Path,
    skip_bad: bool = False,
    resize: Resize | None = None,
) -> RecordSet:
    """Read the records of all sources; scenes are not records.

    Args:
        vocabulary: vocabulary whose sizes the records are made for; it need not be bound.
        vqvae: depth tokenizer that encodes and decodes depth maps.
        folder: folder in which the codes of depth maps are stored, and images that tables hold.
        skip_bad: name rows, labels and images that cannot be used in `skipped`, and go on without them.
        resize: how the base's processor resizes images, for boxes in pixels of those.

    Raises:
        ValueError: if a reader fails, a record was made for another vocabulary or depth tokenizer, or an image cannot
            be used. With `skip_bad`, if a file cannot be read at all, or nothing in it can be used.
    """
    if not (config.scenes.count or config.more_than_scenes):
        raise ValueError(
            "no data: give data.own, data.dataset, data.records, data.aurora, data.counts, data.depth, data.prepared, "
            "data.scenes.count or data.photos"
        )
    size, boxes = vocabulary.num_locations, config.boxes_format
    sets = [read_questions(Path(path), size, boxes, skip_bad, resize) for path in config.own]
    kind, part = config.dataset_config, config.dataset_split
    rules = CountRules(max_count=config.counts_most, every_class=config.counts_asked == "all")
    sets += [
        read_table(path, size, folder / "images", boxes, kind, part, skip_bad, resize, rules) for path in config.dataset
    ]
    sets += [RecordSet.read(Path(path)) for path in config.records]
    sets += [read_aurora(Path(path), Path(config.aurora_images), vocabulary, skip_bad) for path in config.aurora]
    sets += [_read_labels(Path(path), config, size, rules, skip_bad) for path in config.counts]
    asked = DepthRules(questions_per_image=config.questions_per_image)
    sets += [read_prepared(Path(path), size, vqvae, asked, rules, skip_bad) for path in config.prepared]
    if config.depth and vqvae is None:
        raise ValueError("data.depth needs a depth tokenizer to make codes; set depth_tokenizer")
    for number, path in enumerate(config.depth):
        assert vqvae is not None
        images = Path(config.depth_images) if config.depth_images else None
        codes = folder / f"depth-codes-{number}.parquet"
        codes.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(codes.with_suffix(".lock")):  # the first process makes the codes, the others wait
            meant = config.depth_format
            made = read_depth_pairs(Path(path), images, codes, vqvae, size, meant, asked, skip_bad, _DEPTH_REMEDY)
            sets.append(made)
    records = tuple(record for one in sets for record in one.records)
    for record in records:
        check_record(record, vocabulary, vqvae)
    skipped = [line for one in sets for line in one.skipped]
    records = check_images(records, skipped if skip_bad else None)
    if config.any_records and not records and skipped:
        raise ValueError(f"no row can be used; the first of {len(skipped)}: {skipped[0]}")
    return RecordSet(records, tuple(skipped))


def _read_labels(path: Path, config: SourcesConfig, size: int, rules: CountRules, skip_bad: bool) -> RecordSet:
    images = Path(config.counts_images)
    if config.counts_layout == "voc":
        return read_voc(path, images, size, rules, skip_bad)
    if config.counts_layout == "yolo":
        root = images if config.counts_images else None
        return read_yolo(path, root, size, rules, skip_bad, config.counts_split)
    return read_counts(path, images, size, replace(rules, layout=config.counts_layout), skip_bad)


def check_record(record: Record, vocabulary: PerceptionVocabulary, vqvae: VQVAE | None) -> None:
    """Raise ValueError, naming the record, if its spans do not fit the vocabulary or its codes the depth tokenizer."""
    for part in (part for example in record.turns for part in example.target):
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
        shown: list[Any] = []
        for image in record.all_images:
            if image.path not in sizes:
                sizes[image.path] = image.path.stat().st_size if image.path.is_file() else -1
            shown += [image.path.name, sizes[image.path], image.index]
        texts = [(turn.task, turn.question, turn.target, turn.answer) for turn in record.turns]
        more = filter(None, [record.system, record.counted])
        total.update(repr((*shown, record.marks, *texts[0], *texts[1:], *more)).encode())
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
    images = {image: record.source for record in records for image in record.all_images}
    largest = sorted(images, key=lambda image: image.path.stat().st_size if image.path.is_file() else 0)[-looked_at:]
    longest = max((encoder.head_length(_loaded(image, images[image])) for image in largest), default=0)
    for record in records:
        fault = None
        if longest * len(record.all_images) + _most_tokens(record) > encoder.max_length:
            conversation = record.images is not None or bool(record.more)
            if conversation or not _fits(encoder, record, longest):
                row = row_of(record)
                try:
                    encoder.batches([row], 1)
                except ValueError as error:
                    fault = f"{record.source}: {error}"
        yield fault


def _fits(encoder: RowEncoder, record: Record, head: int) -> bool:
    """True if a record of one question fits behind a prompt of `head` tokens."""
    try:
        encoder.encode(Row(_BLANK, record.example), [0] * head)
    except ValueError:
        return False
    return True


def check_conversations(
    found: RecordSet, processor: Any, vocabulary: PerceptionVocabulary, skip_bad: bool
) -> RecordSet:
    """Records whose turns and images the model's chat template can write.

    Args:
        vocabulary: bound to the model's tokenizer.
        skip_bad: name the others in `skipped` and leave them out.

    Raises:
        ValueError: naming the first of the others; with `skip_bad`, if no record is left.
    """
    prompt, between = ConversationPrompt(processor, vocabulary), ChatPrompt.from_processor(processor).between
    kept, skipped = list[Record](), list[str]()
    for record in found.records:
        with bad_row(skipped if skip_bad else None):
            if record.images is not None:
                try:
                    prompt.check(record.system, [turn.question for turn in record.turns])
                except ValueError as error:
                    raise ValueError(f"{record.source}: {error}; take another base, or remove the row") from error
            elif record.more and between is None:
                raise ValueError(
                    f"{record.source}: {len(record.turns)} questions, and the base's chat template takes one; take "
                    "another base, or make a row of each"
                )
            kept.append(record)
    if found.records and not kept:
        raise ValueError(f"no row can be used; the first: {skipped[0]}")
    return RecordSet(tuple(kept), (*found.skipped, *skipped))


def _most_tokens(record: Record) -> int:
    """Return a number of tokens that the text of a record, with its end, does not exceed: one per byte and code."""
    parts = [part for turn in record.turns for part in (turn.question, *turn.target)]
    texts = sum(len(p.encode()) if isinstance(p, str) else len(p.codes) + 2 for p in parts)
    return 64 * (1 + len(record.turns)) + len(record.system.encode()) + texts


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
    mirrored: np.ndarray
    """True where a record that may be mirrored is, (steps, rows per step)"""

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
        return cls(rows, np.random.default_rng((seed, 2)).random(rows.shape) < 0.5)


def _dealt(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of the members, reshuffled each time all of them were used."""
    rounds = -(-count // max(1, len(members)))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members[:0]])[:count]


@dataclass(frozen=True)
class RecordRows:
    """Rows from records, with the curriculum's shares of atomic tasks, chains and direct answers.

    Records that count in an image are asked together, `_TOGETHER` at most, so that the image is read once for all.
    Of the records that `may_mirror` half are shown in their mirror image, with their boxes; `part_of` varies those that
    `may_cut` more.
    """

    records: tuple[Record, ...]
    curriculum: CurriculumConfig
    steps: int
    """number of steps of the run"""
    seed: int
    num_locations: int
    """number of bins of the boxes' coordinates"""
    augment: Literal["mirror", "parts", "turned"] = "mirror"
    """see `SourcesConfig`"""
    least_side: int | None = None
    """see `least_side`"""
    _plans: dict[int, RecordPlan] = field(default_factory=dict, repr=False)

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        plan, mine = self.plan(num_shards * count), slice(shard * count, (shard + 1) * count)
        rows = []
        for at in range(mine.start, mine.stop):
            number = int(plan.rows[step, at])
            row, sideless = row_of(self.records[number], self.least_side), may_mirror(self.records[number])
            if sideless and self.records[number].counted is not None:
                row = self._varied(row, number, np.random.default_rng((self.seed, 3, step, at)))
            rows.append(mirror(row, self.num_locations) if sideless and plan.mirrored[step, at] else row)
        return rows

    def _varied(self, row: Row, number: int, rng: np.random.Generator) -> Row:
        """Return a row that counts with further questions about its image, and its image varied."""
        whole = self.augment == "mirror" or not may_cut(self.records[number])
        others = [n for n in self._asked_with[_subject(self.records[number])] if n != number]
        others = others if whole else [n for n in others if may_cut(self.records[n])]
        found = {self.records[number].example.question: self.records[number]}
        for n in rng.permutation(np.array(others, dtype=int)):
            found.setdefault(self.records[n].example.question, self.records[n])
        extra = [*found.values()][1:_TOGETHER]
        row = replace(row, extra=tuple(record.example for record in extra))
        if whole:
            return row
        counted = [record.counted for record in (self.records[number], *extra) if record.counted is not None]
        return part_of(row, counted, self.num_locations, rng, self.augment == "turned")

    @cached_property
    def _asked_with(self) -> dict[tuple[ImageFile | None, str], list[int]]:
        """Numbers of the records that count and hold in a mirror image, by image and task."""
        found: dict[tuple[ImageFile | None, str], list[int]] = {}
        for number, record in enumerate(self.records):
            if record.counted is not None and not record.more and may_mirror(record):
                found.setdefault(_subject(record), []).append(number)
        return found

    def plan(self, rows_a_step: int) -> RecordPlan:
        """Return the plan of which records each step uses. Raises ValueError if there are none."""
        if rows_a_step not in self._plans:
            tasks = [record.example.task for record in self.records]
            self._plans[rows_a_step] = RecordPlan.draw(tasks, self.curriculum, self.steps, rows_a_step, self.seed)
        return self._plans[rows_a_step]


def _subject(record: Record) -> tuple[ImageFile | None, str]:
    """Return the image and the task, which records that are asked together have in common."""
    return record.image, record.example.task


def check_images(records: Sequence[Record], skipped: list[str] | None = None) -> tuple[Record, ...]:
    """Decode every image once, on all cores, so that training cannot stop at one.

    Args:
        skipped: gets a message for each record whose image cannot be used, and the other records are returned; None:
            such an image is an error.

    Raises:
        ValueError: naming entry and file of the first image that cannot be used, and the entries of others.
    """
    first: dict[ImageFile, Record] = {}
    for record in records:
        for image in record.all_images:
            first.setdefault(image, record)

    def fault(image: ImageFile) -> str | None:
        try:
            image.load()
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as pool:
        faults = track(pool.map(fault, first), "checking images", len(first))
        bad = {image: said for image, said in zip(first, faults, strict=True) if said is not None}
    if skipped is not None:
        faulty = [(record, image) for record in records for image in record.all_images if image in bad]
        skipped += dict.fromkeys(f"{record.source}: {bad[image]}" for record, image in faulty)
        return tuple(record for record in records if not bad.keys() & set(record.all_images))
    if bad:
        sources = [first[image].source for image in bad]
        others = ", ".join(sources[1 : 1 + _MOST_NAMED])
        more = f" ({len(bad)} images cannot be used; others: {others}{', ..' * (len(bad) > 1 + _MOST_NAMED)})"
        said = next(iter(bad.values()))
        raise ValueError(f"{sources[0]}: {said}; or take the entry out{more * (len(bad) > 1)}")
    return tuple(records)


def least_side(processor: Any) -> int | None:
    """Return how many pixels the shorter side of an image must keep, where a processor makes all images equally large.

    None for others, which cut large images into views or keep their resolution. It is twice the processor's size, so
    that the smallest part of `part_of` is not enlarged.
    """
    resize = getattr(processor, "image_processor", None)
    if resize is None or not getattr(resize, "do_resize", False):
        return None
    shapes = set[tuple[int, ...]]()
    for size in ((90, 120), (1600, 1200)):
        made = resize(images=Image.new("RGB", size), return_tensors="pt")
        shapes.add(tuple(made["pixel_values"].shape) if set(made) == {"pixel_values"} else ())
    shape = shapes.pop()
    return 2 * max(shape[2:]) if not shapes and len(shape) == 4 and shape[0] == 1 else None


def row_of(record: Record, least_side: int | None = None) -> Row:
    """Load a record's images in RGB and draw its markers. Raises ValueError, naming record and file, if it cannot."""
    images = [_loaded(image, record.source, least_side) for image in record.all_images]
    if record.images is not None:
        return Row(None, record.example, more=record.more, images=tuple(images), system=record.system)
    (image,) = images
    if record.marks:
        marked = draw_markers(torch.from_numpy(np.array(image)), np.array(record.marks))
        image = Image.fromarray(marked.numpy())
    return Row(image, record.example, more=record.more)


def may_mirror(record: Record) -> bool:
    """True if a record holds as well in its mirror image: it counts or draws boxes, and no text speaks of a side or
    gives places in numbers."""
    if record.image is None or record.images is not None or record.marks:
        return False
    drawn = [part.modality for turn in record.turns for part in turn.target if isinstance(part, Span)]
    fixed = any(_SIDES.search(text) or _PLACES.search(text) for text in _texts(record))
    return all(turn.task in _SIDELESS for turn in record.turns) and set(drawn) <= {"boxes"} and not fixed


def may_cut(record: Record) -> bool:
    """True if a record that counts all of its boxes does so in a part of its image, too: no text speaks of a place."""
    return not any(_PARTS.search(text) for text in _texts(record))


def _texts(record: Record) -> Iterator[str]:
    """Yield the questions of a record, and the text of its targets."""
    for turn in record.turns:
        yield from (part for part in (turn.question, *turn.target) if isinstance(part, str))


def mirror(row: Row, num_locations: int) -> Row:
    """Return a row of one image and boxes with left and right exchanged."""
    assert row.image is not None, "see may_mirror"
    tokenizer = BoxTokenizer(num_locations)

    def turned(example: Example) -> Example:
        parts = (
            p if isinstance(p, str) else replace(p, codes=tuple(tokenizer.mirror(p.codes))) for p in example.target
        )
        return replace(example, target=tuple(parts))

    return replace(
        row,
        image=ImageOps.mirror(row.image),
        example=turned(row.example),
        more=tuple(map(turned, row.more)),
        extra=tuple(map(turned, row.extra)),
    )


def part_of(row: Row, counted: Sequence[Span], num_locations: int, rng: np.random.Generator, turned: bool) -> Row:
    """Return a row with a random part of its image in other colours, and what is to be counted or drawn there.

    A box covers the bins of all its sides, and counts in the part if a third of it lies there.

    Args:
        row: its examples are those of `perception.datasets.detection.count_records`, or of the same form.
        counted: boxes of all that `example` counts or draws, and each of `extra`.
        turned: also turn the part by a random number of quarter turns.
    """
    assert row.image is not None, "see may_mirror"
    tokenizer, image = BoxTokenizer(num_locations), row.image
    window = Window.draw(rng) if rng.random() < _CUT else Window()
    turns = int(rng.integers(4)) if turned else 0
    bins = np.array([-0.5, -0.5, 0.5, 0.5]) / num_locations  # from the centres of a box's bins to their outer edges
    examples = []
    for example, span in zip((row.example, *row.extra), counted, strict=True):
        inside = [window.place(b)[1] for b in tokenizer.decode(span.codes) if window.place(b + bins)[0] >= _INSIDE]
        boxes = np.array(inside).reshape(-1, 4)
        for _ in range(turns):  # counter-clockwise: (x, y) -> (y, 1 - x)
            boxes = np.stack([boxes[:, 1], 1 - boxes[:, 2], boxes[:, 3], 1 - boxes[:, 0]], axis=1)
        examples.append(_recounted(example, Span("boxes", tuple(tokenizer.encode(boxes)))))
    image = window.cut(image)
    for _ in range(turns):
        image = image.transpose(Image.Transpose.ROTATE_90)
    return replace(row, image=recolour(image, rng), example=examples[0], extra=tuple(examples[1:]))


def _recounted(example: Example, boxes: Span) -> Example:
    """Return a task that counts or draws boxes with other ones."""
    if example.task == ATOMIC_BOXES:
        return replace(example, target=(boxes,))
    chain = chain_count(example.question, boxes)
    if example.task == CHAIN_COUNT:
        return replace(chain, question=example.question)  # it asks for boxes already
    return direct(DIRECT_COUNT, example.question, chain.answer)


def _loaded(image: ImageFile, source: str, least_side: int | None = None) -> Image.Image:
    try:
        return image.load(least_side)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
