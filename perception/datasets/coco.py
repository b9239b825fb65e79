"""Counting questions from COCO and LVIS annotations.

COCO (arXiv 1405.0312) has boxes for all objects of its 80 classes, except crowds; an image gets no question about a
class with a crowd. In LVIS (arXiv 1908.03195), `not_exhaustive_category_ids` names the classes of an image that are not
fully annotated and `neg_category_ids` those that are absent; nothing is known about all other classes.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception.datasets.detection import BoxedImage, CountRules, ask_counts, check_size, clipped
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import read_text
from perception.datasets.records import RecordSet, bad_row

_LVIS_LISTS = ("neg_category_ids", "not_exhaustive_category_ids")


def read_counts(
    annotations: Path,
    images: Path,
    num_locations: int,
    rules: CountRules = CountRules(),  # noqa: B008
    skip_bad: bool = False,
) -> RecordSet:
    """Counting records of an annotation file: per question, boxes to draw, a chain and a direct answer.

    Args:
        images: folder of the images that the annotations name.
        num_locations: number of bins for the coordinates of boxes.
        rules: which class of an image is asked for.
        skip_bad: name images that cannot be used in the set's `skipped`, and go on.

    Raises:
        ValueError: naming file and entry, if the file has another layout, an id is duplicated, or an image is missing.
    """
    index = _index(annotations, rules.layout)
    names, skipped, found = _class_names(annotations, index.cats), list[str](), list[BoxedImage]()
    for image_id in sorted(index.imgs):
        with bad_row(skipped if skip_bad else None):
            found.append(_labelled(index, index.imgs[image_id], images, f"{annotations.name}, image {image_id}", rules))
    made = ask_counts(found, names, num_locations, rules, annotations.name)
    return RecordSet(made.records, (*skipped, *made.skipped))


def _labelled(index: Any, entry: Mapping[str, Any], images: Path, where: str, rules: CountRules) -> BoxedImage:
    """An image with the boxes of its classes; LVIS says itself which classes are not fully annotated or absent."""
    path = _image_path(entry, images, where)
    check_size(path, (entry["width"], entry["height"]), where)
    boxes, bad, unsure = _boxes_by_class(index, entry, where)
    annotated = index.imgToAnns[entry["id"]]
    there = {annotation["category_id"] for annotation in annotated}
    if rules.layout == "lvis":
        unsure |= set(entry["not_exhaustive_category_ids"])
        absent = sorted(set(entry["neg_category_ids"]) - there)
    else:
        unsure |= {annotation["category_id"] for annotation in annotated if annotation.get("iscrowd")}
        absent = sorted(set(index.cats) - there)
    return BoxedImage(ImageFile(path), where, entry["id"], boxes, unsure, absent, bad)


def _boxes_by_class(
    index: Any, entry: Mapping[str, Any], where: str
) -> tuple[dict[int, list[list[float]]], list[str], set[int]]:
    """Boxes xyxy in [0, 1] per class, clipped to the image; messages about boxes without area, and their classes."""
    boxes: dict[int, list[list[float]]] = {}
    bad, classes = [], set[int]()
    for annotation in index.imgToAnns[entry["id"]]:
        x, y, w, h = _box_xywh(index, annotation, where)
        box = clipped([x, y, x + w, y + h], entry["width"], entry["height"])
        if box is None:
            bad.append(
                f"{where}, annotation {annotation['id']}: box {annotation.get('bbox')} has no area inside the image of "
                f"{entry['width']} x {entry['height']} pixels, so its class is not counted"
            )
            classes.add(annotation["category_id"])
        elif not annotation.get("iscrowd"):
            boxes.setdefault(annotation["category_id"], []).append(box)
    return boxes, bad, classes


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
    for number, category in categories.items():
        if not isinstance(category.get("name"), str) or not category["name"].strip():
            raise ValueError(f"{path}, category {number} has no name; give it one")
    return {number: category["name"] for number, category in categories.items()}


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
