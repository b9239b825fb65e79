"""Folders of labelled images: written shard by shard by `python -m train.prepare`, read as training records."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from perception.datasets.depth.code_files import DepthCodes
from perception.datasets.depth.pairs import DepthPair
from perception.datasets.depth.questions import DepthRules, ask_depth
from perception.datasets.detection import BoxedImage, CountRules, ask_counts
from perception.datasets.images import ENDINGS, ImageFile
from perception.datasets.labelling.labeller import LabelledImage, Labeller, Unlabelled, read_rows, write_rows
from perception.datasets.lines import read_text
from perception.datasets.listing import files_beneath, stamp
from perception.datasets.progress import Progress
from perception.datasets.records import RecordSet, bad_row
from perception.datasets.shards import PLAN, begin, locked, record_file, records, write_skipped
from vqvae import VQVAE
from vqvae.files import write_whole

IMAGES = "images"
"""Folder beside the shards, to which embedded images are written when they are first read"""


@dataclass(frozen=True)
class Shard:
    """The names of the images of one shard."""

    number: int
    names: tuple[str, ...]


Engine = Callable[[Sequence[Shard], Callable[[Shard], dict[str, Any]]], Iterator[dict[str, Any]]]
"""(shards, function that writes a shard and returns its record) -> the records, in the order in which they are done."""


@dataclass(frozen=True)
class PreparedReport:
    """What a folder of labelled images holds."""

    images: int
    skipped: int
    maps: int
    boxes: int
    classes: Mapping[str, int]
    """boxes per class"""
    seconds: float
    """duration of this run"""
    images_of_run: int
    """images that this run labelled"""

    def __str__(self) -> str:
        lines = [f"{self.images} images labelled, {self.skipped} skipped; {self.maps} depth maps, {self.boxes} boxes"]
        if self.classes:
            top = sorted(self.classes.items(), key=lambda item: (-item[1], item[0]))
            lines.append("boxes per class: " + ", ".join(f"{name} {count}" for name, count in top[:12]))
        speed = self.images_of_run / max(self.seconds, 1e-9)
        lines.append(f"this run: {self.images_of_run} images in {self.seconds:.1f} s, {speed:.2f} per second")
        return "\n".join(lines)


def in_process(shards: Sequence[Shard], make: Callable[[Shard], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Engine that writes the shards one after another in this process."""
    yield from map(make, shards)


def find_images(folder: Path, glob: str = "", but: Sequence[Path] = ()) -> list[str]:
    """Names of all images beneath a folder (see `files_beneath`), sorted.

    Raises:
        ValueError: if there are none, or a name is not UTF-8.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder that holds the images")
    found = sorted(path.relative_to(folder).as_posix() for path in files_beneath(folder, ENDINGS, glob, but))
    if not found:
        raise ValueError(f"{folder} holds no image; known endings: {', '.join(ENDINGS)}")
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name!r} beneath {folder} is a name that is not UTF-8; rename the file") from None
    return found


def prepare_folder(
    images: Path,
    out: Path,
    labeller: Callable[[], Labeller],
    plan: Mapping[str, Any],
    shard_size: int = 256,
    engine: Engine = in_process,
    glob: str = "",
) -> PreparedReport:
    """Label all images beneath a folder that an earlier run has not labelled already.

    Rows of earlier runs are used again while their images are there unchanged. Images that were skipped are tried again
    by a run that finds nothing else to do.

    Args:
        labeller: makes the labeller; called once per process, and only if something is left to do.
        plan: JSON settings that decide what is written; an `out` that was begun with others is refused.
        engine: runs the shards.
        glob: pattern of the images to label, as in `files_beneath`.

    Raises:
        ValueError: if `images` holds no image or is `out`, a name is not UTF-8, `out` was begun with another folder of
            images or other settings, another process writes it, or the disk is full.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    if images.resolve() == out.resolve():
        raise ValueError(
            f"{out} is the folder of the images; give another folder for the labels, so that they stay apart"
        )
    names = find_images(images, glob, (out,))
    begun = time.monotonic()
    plan = {**plan, "images": str(images.resolve()), "shard_size": shard_size}
    with locked(out):
        begin(out, plan)
        stamps = {name: stamp(images / name) for name in names}
        numbers = _keep(out, stamps, retry=False)
        if not (left := [name for name in names if name not in numbers]):
            numbers = _keep(out, stamps, retry=True)
            left = [name for name in names if name not in numbers]
        taken = set(numbers.values())
        free = (n for n in count() if n not in taken)
        chunks = [tuple(left[start : start + shard_size]) for start in range(0, len(left), shard_size)]
        shards = [Shard(n, chunk) for n, chunk in zip(free, chunks, strict=False)]
        make = ShardMaker(labeller, out, plan)
        with Progress("labelling", len(names), len(names) - len(left)) as progress:
            for record in engine(shards, make):
                progress.advance(record["images"] + len(record["skipped"]))
        write_skipped(out)
    return _report(out, time.monotonic() - begun, len(left))


def _keep(out: Path, stamps: Mapping[str, list[int]], retry: bool) -> dict[str, int]:
    """Bring the finished shards in line with the images; says what is labelled again or taken out, and why.

    Args:
        stamps: `stamp` of every image by its name. Rows of images that are gone or were replaced are taken out.
        retry: take out images that were skipped, too.

    Returns:
        the shard of each image that is done.
    """
    numbers: dict[str, int] = {}
    replaced, gone = list[str](), list[str]()
    say = Console(stderr=True)
    for file in sorted(out.glob("shard-*.record.json")):
        number = int(file.name.split("-")[1].split(".")[0])
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            stamped, skipped = dict(record["stamps"]), list(record["skipped"])
            if _digest(_shard_file(out, number)) != record["sha256"]:
                raise ValueError(f"{_shard_file(out, number).name} is not as it was written")
            same = {name for name, then in stamped.items() if stamps.get(name) == then and name not in numbers}
            same -= {line["image"] for line in skipped} if retry else set()
            rows, header = read_rows(_shard_file(out, number)) if same != stamped.keys() else ([], {})
            left_out = [line for line in skipped if line["image"] in same]
        except (OSError, ValueError, KeyError, TypeError) as error:
            say.print(f"{file.name}: {error}; its images are labelled again", markup=False, soft_wrap=True)
            file.unlink()
            continue
        if not same:
            file.unlink()
            _shard_file(out, number).unlink()
        elif same != stamped.keys():  # in one step, so that a full disk leaves what was there
            kept = [row for row in rows if row.name in same]
            _write_shard(out, number, kept, left_out, header, {name: stamped[name] for name in same})
        replaced += [name for name, then in stamped.items() if name in stamps and stamps[name] != then]
        gone += [name for name in stamped if name not in stamps]
        numbers |= dict.fromkeys(same, number)
    if replaced:
        said = f"{len(replaced)} images were replaced and are labelled again; the first is {replaced[0]}"
        say.print(said, markup=False, soft_wrap=True)
    if gone:
        said = f"{len(gone)} labelled images are gone or do not match glob, and their labels are taken out; the first"
        say.print(f"{said} is {gone[0]}", markup=False, soft_wrap=True)
    return numbers


@dataclass
class ShardMaker:
    """Writes shards. It is pickled without its labeller; each process makes its own labeller with the first shard."""

    labeller: Callable[[], Labeller]
    out: Path
    plan: Mapping[str, Any]
    _made: Labeller | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Write the rows of a shard, then the record that marks it as done. Returns the record."""
        if self._made is None:
            self._made = self.labeller()
        stamps = {name: stamp(Path(self.plan["images"]) / name) for name in shard.names}  # before they are read
        found = self._made(shard.names)
        rows = [row for row in found if isinstance(row, LabelledImage)]
        skipped = [{"image": r.name, "reason": r.reason} for r in found if isinstance(r, Unlabelled)]
        vqvae = self._made.vqvae
        header: dict[str, Any] = {"root": self.plan["images"], "classes": self.plan.get("classes", [])}
        if vqvae is not None:
            config = vqvae.config
            grid = [config.grid_size, config.grid_size]
            header |= {"tokenizer": vqvae.fingerprint(), "codebook_size": config.codebook_size, "grid": grid}
        return _write_shard(self.out, shard.number, rows, skipped, header, stamps)


def _write_shard(
    out: Path,
    number: int,
    rows: Sequence[LabelledImage],
    skipped: Sequence[Mapping[str, str]],
    header: Mapping[str, Any],
    stamps: Mapping[str, list[int]],
) -> dict[str, Any]:
    """Write the rows of a shard, then its record, which this returns: with the file's digest and its images' stamps."""
    write_rows(rows, _shard_file(out, number), header)
    labels = Counter(label for row in rows if row.detections is not None for label in row.detections.labels)
    maps = sum(row.codes is not None for row in rows)
    record = {"images": len(rows), "maps": maps, "labels": dict(labels), "skipped": list(skipped)}
    record |= {"stamps": dict(stamps), "sha256": _digest(_shard_file(out, number))}
    write_whole(record_file(out, number), json.dumps(record, ensure_ascii=False) + "\n")
    return record


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shard_file(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}.parquet"


def _report(out: Path, seconds: float, images_of_run: int) -> PreparedReport:
    found = records(out)
    classes: Counter[str] = Counter()
    for record in found:
        classes.update(record["labels"])
    return PreparedReport(
        images=sum(record["images"] for record in found),
        skipped=sum(len(record["skipped"]) for record in found),
        maps=sum(record["maps"] for record in found),
        boxes=classes.total(),
        classes=dict(classes),
        seconds=seconds,
        images_of_run=images_of_run,
    )


# Records


def read_prepared(
    folder: Path,
    num_locations: int,
    vqvae: VQVAE | None = None,
    depth_rules: DepthRules = DepthRules(),  # noqa: B008
    count_rules: CountRules = CountRules(),  # noqa: B008
    skip_bad: bool = False,
) -> RecordSet:
    """Records of a folder that `prepare_folder` wrote: depth questions (`ask_depth`) and counting questions
    (`ask_counts`).

    If the detector was given classes to look for, those that it did not find in an image are absent.

    Args:
        num_locations: number of bins for the coordinates of boxes and points.
        vqvae: the tokenizer that made the codes; needed if there are any.
        skip_bad: name images that are missing or were replaced in `skipped`, and go on.

    Raises:
        ValueError: naming the file, if no shard is finished, a file is missing or damaged, an image is missing, was
            replaced or occurs twice, or the codes are of another tokenizer. With `skip_bad`, if no image can be used.
    """
    if not (folder / PLAN).exists():
        raise ValueError(f"{folder} holds no labelled images; make it with python -m train.prepare --out {folder}")
    shards = sorted(folder.glob("shard-*.record.json"))
    if not shards:
        raise ValueError(f"{folder} holds no finished shard; run its python -m train.prepare again")
    seen: set[str] = set()
    sets: list[RecordSet] = []
    labelled: list[BoxedImage] = []
    bad: list[str] = []
    for record in shards:
        file = folder / f"{record.name.removesuffix('.record.json')}.parquet"
        rows, header = read_rows(file)
        times = Counter(row.name for row in rows)
        if twice := sorted(seen & times.keys()) or [name for name, count in times.items() if count > 1]:
            raise ValueError(f"{file}: {twice[0]} is there twice; delete the folder and label again")
        seen |= times.keys()
        stamps, images = json.loads(read_text(record)).get("stamps", {}), dict[str, ImageFile]()
        for row in rows:
            with bad_row(bad if skip_bad else None):
                images[row.name] = _image(row, header, folder, stamps.get(row.name, []))
        rows = [row for row in rows if row.name in images]
        labelled += filter(None, (_detected(row, images[row.name], file.name, header) for row in rows))
        if any(row.codes is not None for row in rows):
            sets.append(_asked(rows, images, file, header, num_locations, vqvae, depth_rules))
    if len(bad) == len(seen) and bad:
        raise ValueError(f"no image of {folder} can be used; the first: {bad[0]}")
    names = {name: name for one in labelled for name in (*one.boxes, *one.absent)}
    sets.append(ask_counts(labelled, names, num_locations, count_rules, folder.name))
    return RecordSet(
        tuple(one for part in sets for one in part.records),
        (*bad, *(line for part in sets for line in part.skipped)),
    )


def _image(row: LabelledImage, header: Mapping[str, Any], folder: Path, then: Sequence[int]) -> ImageFile:
    """The image of a row: the labelled file if it is still there, else a copy written from the bytes in the row.

    Args:
        then: its `stamp` when it was labelled. Only the size counts, since a copy of the images may have other times.
    """
    path = Path(header["root"]) / row.name
    now = stamp(path)
    if now and (not then or now[0] == then[0]):
        return ImageFile(path)
    if row.image is None:
        wrong = f"is another file than was labelled ({now[0]} bytes, then {then[0]})" if now else "does not exist"
        raise ValueError(
            f"{path} {wrong}, and {folder} holds no images itself; put it there, run its train.prepare again, or label "
            "with --embed_images"
        )
    path = folder / IMAGES / row.name
    if not path.is_file() or path.read_bytes() != row.image:
        write_whole(path, row.image)
    return ImageFile(path)


def _asked(
    rows: Sequence[LabelledImage],
    images: Mapping[str, ImageFile],
    file: Path,
    header: Mapping[str, Any],
    num_locations: int,
    vqvae: VQVAE | None,
    rules: DepthRules,
) -> RecordSet:
    """Depth questions about the rows that have a depth map."""
    if vqvae is None:
        raise ValueError(f"{file} holds depth codes; give the depth tokenizer that made them")
    if header["tokenizer"] != vqvae.fingerprint():
        raise ValueError(
            f"{file} was made by tokenizer {header['tokenizer']}, this one is {vqvae.fingerprint()}; label "
            "again with this one, or train with the other"
        )
    rows = [row for row in rows if row.codes is not None]
    codes = DepthCodes(
        tuple(row.name for row in rows),
        np.array([row.codes for row in rows], np.int64),
        np.array([row.depth_range for row in rows], np.float64),
        np.array([row.size for row in rows], np.int64),
        header["tokenizer"],
        header["codebook_size"],
        (header["grid"][0], header["grid"][1]),
    )
    pairs = {DepthPair(images[row.name], Path(row.name)): row for row in rows}
    names = {pair: row.name for pair, row in pairs.items()}
    # The seed depends on the shard's name, so that shards draw different points.
    seed = int(hashlib.sha256(f"{rules.seed} {file.name}".encode()).hexdigest()[:8], 16)
    maps = ((pair, row.depth()) for pair, row in pairs.items())
    return ask_depth(maps, codes, names, vqvae, num_locations, DepthRules(rules.questions_per_image, seed))


def _detected(row: LabelledImage, image: ImageFile, shard: str, header: Mapping[str, Any]) -> BoxedImage | None:
    """The detections of a row; None if no detector saw it."""
    if row.detections is None:
        return None
    boxes = dict[str, list[list[float]]]()
    for label, box in zip(row.detections.labels, row.detections.boxes_xyxy.tolist(), strict=True):
        boxes.setdefault(label, []).append(box)
    number = int.from_bytes(hashlib.sha256(row.name.encode()).digest()[:4])
    absent = sorted(set(header["classes"]) - boxes.keys())
    return BoxedImage(image, f"{shard}, {row.name}", number, boxes, absent=absent)
