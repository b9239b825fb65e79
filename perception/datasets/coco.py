"""Counting questions from COCO and LVIS annotations.

COCO (arXiv 1405.0312) has boxes for all objects of its 80 classes, except crowds; an image gets no question about a
class with a crowd. In LVIS (arXiv 1908.03195), `not_exhaustive_category_ids` names the classes of an image that are not
fully annotated and `neg_category_ids` those that are absent; nothing is known about all other classes.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception import chains
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import read_text
from perception.datasets.plurals import plural, readable, without_qualifier
from perception.datasets.records import Record, RecordSet
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

LAYOUTS = ("coco", "lvis")
_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


@dataclass(frozen=True)
class CountRules:
    """Which counting questions are asked about an image with boxes."""

    layout: str = "coco"
    """coco or lvis: decides which classes count as fully annotated and which as absent"""
    max_count: int = 15
    """largest count that is asked for"""
    zero_share: float = 0.0625
    """share of the images that are also asked about an absent class; the default, 1/16, is one of the counts 0 to 15"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.max_count < 1:
            raise ValueError(f"max_count must be at least 1, got {self.max_count}")
        if not 0 <= self.zero_share <= 1:
            raise ValueError(f"zero_share must lie in [0, 1], got {self.zero_share}")


def read_counts(annotations: Path, images: Path, num_locations: int, rules: CountRules = CountRules()) -> RecordSet:
    """Counting records of an annotation file: per question, boxes to draw, a chain and a direct answer.

    The question of an image is about its most frequent class among those that are fully annotated and have at most
    `max_count` objects.

    Args:
        images: folder of the images that the annotations name.
        num_locations: number of bins for the coordinates of boxes.

    Raises:
        ValueError: naming file and entry, if the file has another layout, an id is duplicated, or an image is missing.
    """
    index = _index(annotations, rules.layout)
    names, skipped, records = _class_names(annotations, index.cats), [], []
    tokenizer = BoxTokenizer(num_locations)
    for image_id in sorted(index.imgs):
        entry = index.imgs[image_id]
        where = f"{annotations.name}, image {image_id}"
        path = _image_path(entry, images, where)
        _check_size(entry, path, where)
        boxes, bad, unsure = _boxes_by_class(index, entry, where)
        skipped += bad
        rng = np.random.default_rng((rules.seed, image_id))
        asked = _classes_asked(entry, boxes, index, rules, rng, unsure)
        if not asked:
            skipped.append(f"{where}: no fully annotated class has 1 to {rules.max_count} objects")
        for category in asked:
            span = Span("boxes", tuple(tokenizer.encode(np.array(boxes.get(category, [])).reshape(-1, 4))))
            records += count_records(ImageFile(path), names[category], span, where)
    return RecordSet(tuple(records), tuple(skipped))


def count_records(image: ImageFile, things: str, boxes: Span, where: str) -> list[Record]:
    """Records that count `things` (a plural): boxes to draw, a chain, and a direct answer."""
    question = f"How many {things} are there?"
    chain = chains.chain_count(question, boxes)
    direct = chains.direct(chains.DIRECT_COUNT, question, chain.answer)
    return [Record(image, example, where) for example in (chains.atomic_boxes(things, boxes), chain, direct)]


def _classes_asked(
    entry: Mapping[str, Any],
    boxes: Mapping[int, list],
    index: Any,
    rules: CountRules,
    rng: np.random.Generator,
    uncounted: set[int],
) -> list[int]:
    """The most frequent class that can be counted and, for a share of the images, an absent class.

    Args:
        uncounted: classes whose boxes do not tell their number.
    """
    annotated = index.imgToAnns[entry["id"]]
    if rules.layout == "lvis":
        unsure = set(entry["not_exhaustive_category_ids"])
        absent = sorted(set(entry["neg_category_ids"]) - {a["category_id"] for a in annotated})
    else:
        unsure = {a["category_id"] for a in annotated if a.get("iscrowd")}
        absent = sorted(set(index.cats) - {a["category_id"] for a in annotated})
    unsure |= uncounted
    counts = {c: len(found) for c, found in boxes.items() if c not in unsure and 0 < len(found) <= rules.max_count}
    asked = [min(counts, key=lambda c: (-counts[c], c))] if counts else []
    if absent and rng.random() < rules.zero_share:
        asked.append(absent[int(rng.integers(len(absent)))])
    return asked


def _boxes_by_class(
    index: Any, entry: Mapping[str, Any], where: str
) -> tuple[dict[int, list[list[float]]], list[str], set[int]]:
    """Boxes xyxy in [0, 1] per class, clipped to the image; messages about boxes without area, and their classes."""
    boxes: dict[int, list[list[float]]] = {}
    bad, classes = [], set[int]()
    for annotation in index.imgToAnns[entry["id"]]:
        box = _normalised(_box_xywh(index, annotation, where), entry["width"], entry["height"])
        if box is None:
            bad.append(
                f"{where}, annotation {annotation['id']}: box {annotation.get('bbox')} has no area inside the image of "
                f"{entry['width']} x {entry['height']} pixels, so its class is not counted"
            )
            classes.add(annotation["category_id"])
        elif not annotation.get("iscrowd"):
            boxes.setdefault(annotation["category_id"], []).append(box)
    return boxes, bad, classes


def _check_size(entry: Mapping[str, Any], path: Path, where: str) -> None:
    """Raise ValueError unless an image has the size that its boxes are made for."""
    try:
        height, width = ImageFile(path).size()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if (width, height) != (entry["width"], entry["height"]):
        raise ValueError(
            f"{where}: {path} has {width} x {height} pixels and the annotations are for {entry['width']} x "
            f"{entry['height']}; give the images that were annotated, or correct width, height and boxes"
        )


def _normalised(xywh: list[float], width: int, height: int) -> list[float] | None:
    """The box as xyxy in [0, 1], clipped to the image, or None if it has no area there."""
    x, y, w, h = xywh
    corners = np.array([x / width, y / height, (x + w) / width, (y + h) / height])
    if not np.isfinite(corners).all():
        return None
    x1, y1, x2, y2 = (float(side) for side in corners.clip(0, 1))
    return [x1, y1, x2, y2] if x2 > x1 and y2 > y1 else None


def _box_xywh(index: Any, annotation: Mapping[str, Any], where: str) -> list[float]:
    box = annotation.get("bbox")
    if box is None and annotation.get("segmentation"):
        from pycocotools import mask

        box = mask.toBbox(index.annToRLE(annotation)).tolist()
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        raise ValueError(
            f"{where}, annotation {annotation['id']}: bbox must be four numbers x, y, width, height, got {box!r}; "
            "correct or remove the entry"
        )
    return [float(side) for side in box]


def _image_path(entry: Mapping[str, Any], images: Path, where: str) -> Path:
    """The path of an image: `file_name`, or the end of LVIS's `coco_url`, with or without the split's folder."""
    name = entry.get("file_name") or "/".join(str(entry.get("coco_url", "")).rsplit("/", 2)[-2:])
    if not name:
        raise ValueError(f"{where} names no image (file_name or coco_url); correct or remove the entry")
    plain = images / Path(name).name
    if not (images / name).is_file() and plain.is_file():
        return plain
    check_exists(images / name, where)
    return images / name


def _class_names(path: Path, categories: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Plural class names by category id. A qualifier, as in "bow (weapon)", is kept only if two names differ by it."""
    full = {}
    for number, category in categories.items():
        if not isinstance(category.get("name"), str) or not category["name"].strip():
            raise ValueError(f"{path}, category {number} has no name; give it one")
        full[number] = readable(category["name"])
    bare = Counter(without_qualifier(name) for name in full.values())
    return {
        n: plural(name if bare[without_qualifier(name)] > 1 else without_qualifier(name)) for n, name in full.items()
    }


def _index(path: Path, layout: str) -> Any:
    """Check a file and index it with pycocotools."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise ValueError(
            f"{path} needs pycocotools: pip install pycocotools, or the extra perception-tokens[data]"
        ) from error
    index = COCO()
    index.dataset = _read(path, layout)
    with contextlib.redirect_stdout(io.StringIO()):  # createIndex prints
        index.createIndex()
    return index


def _read(path: Path, layout: str) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the annotation file (instances_*.json, lvis_v1_*.json)")
    try:
        data = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON ({error}); fetch it again") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), list) for name in lists):
        raise ValueError(f"{path} must hold the lists {', '.join(lists)}, as COCO and LVIS publish them")
    needed: dict[str, tuple[str, ...]] = {
        "images": ("id", "width", "height"),
        "annotations": ("id", "image_id", "category_id"),
    }
    needed["categories"] = ("id", "name")
    lvis = any(isinstance(entry, dict) and key in entry for key in _LVIS_LISTS for entry in data["images"])
    if layout == "lvis":
        needed["images"] += _LVIS_LISTS
    elif lvis:
        raise ValueError(
            f"{path} is in LVIS's layout ({_LVIS_LISTS[0]}), in which a class without boxes may still be there; set "
            f"counts_layout lvis, not {layout}"
        )
    for name, keys in needed.items():
        _check_entries(path, name, data[name], keys)
    known = {name: {entry["id"] for entry in data[name]} for name in ("images", "categories")}
    for entry in data["annotations"]:
        for key, name in (("image_id", "images"), ("category_id", "categories")):
            if entry[key] not in known[name]:
                raise ValueError(
                    f"{path}, annotation {entry['id']}: {key} {entry[key]} is not among {name}; correct or "
                    "remove the entry"
                )
    return data


def _check_entries(path: Path, name: str, entries: list[Any], keys: tuple[str, ...]) -> None:
    """Raise ValueError unless every entry has its keys and a unique id, and every image a size."""
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        where = f"{path}, {name}[{position}]"
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            hint = " (is this COCO's layout, not LVIS's?)" if set(missing) & set(_LVIS_LISTS) else ""
            raise ValueError(f"{where} lacks {', '.join(missing)}{hint}; correct or remove the entry")
        if type(entry["id"]) is not int or entry["id"] < 0:
            raise ValueError(f"{where}: id must be an integer from 0, got {entry['id']!r}")
        if entry["id"] in seen:
            raise ValueError(f"{where}: id {entry['id']} is there twice; give each of the {name} a unique id")
        seen.add(entry["id"])
        for side in ("width", "height"):
            if name == "images" and not (isinstance(entry[side], int | float) and entry[side] > 0):
                raise ValueError(f"{where}: {side} must be above 0, got {entry[side]!r}")
