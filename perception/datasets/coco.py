"""Counting questions from COCO and LVIS annotations.

COCO (arXiv 1405.0312) has boxes for all objects of its 80 classes, except crowds (`iscrowd`); an image gets no question
about a class with a crowd, or with a region that sets of this layout mark as `ignore`. In LVIS (arXiv 1908.03195),
`not_exhaustive_category_ids` names the classes of an image that are not fully annotated and `neg_category_ids` those
that are absent; nothing is known about all other classes.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perception.datasets.detection import BoxedImage, CountRules, ask_counts, clipped, labelled_once, labelled_size
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import read_text
from perception.datasets.records import RecordSet, bad_row, check_any

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
    skipped, found = list[str](), list[BoxedImage]()
    bad = skipped if skip_bad else None
    index = _index(annotations, rules.layout, bad)
    names = _class_names(annotations, index.cats)
    plain = Counter(Path(_file_name(entry)).name for entry in index.imgs.values())
    for image_id in sorted(index.imgs):
        with bad_row(bad):
            entry, where = index.imgs[image_id], f"{annotations.name}, image {image_id}"
            path = _image_path(entry, images, where, plain)
            found.append(_labelled(index, entry, path, where, rules))
    found = labelled_once(found, bad)
    check_any(found, skipped, annotations)
    made = ask_counts(found, names, num_locations, rules, annotations.name)
    return RecordSet(made.records, (*skipped, *made.skipped))


def _labelled(index: Any, entry: dict[str, Any], path: Path, where: str, rules: CountRules) -> BoxedImage:
    """An image with the boxes of its classes; LVIS says itself which classes are not fully annotated or absent."""
    entry["width"], entry["height"], orientation = labelled_size(path, (entry.get("width"), entry.get("height")), where)
    boxes, bad, unsure = _boxes_by_class(index, entry, orientation, where)
    annotated = index.imgToAnns[entry["id"]]
    there = {annotation["category_id"] for annotation in annotated}
    unsure |= {annotation["category_id"] for annotation in annotated if _several(annotation)}
    if rules.layout == "lvis":
        unsure |= set(entry["not_exhaustive_category_ids"])
        absent = sorted(set(entry["neg_category_ids"]) - there)
    else:
        absent = sorted(set(index.cats) - there)
    return BoxedImage(ImageFile(path), where, entry["id"], boxes, unsure, absent, bad)


def _boxes_by_class(
    index: Any, entry: Mapping[str, Any], orientation: int, where: str
) -> tuple[dict[int, list[list[float]]], list[str], set[int]]:
    """Boxes xyxy in [0, 1] per class, clipped to the image; messages about boxes without area, and their classes."""
    boxes: dict[int, list[list[float]]] = {}
    bad, classes = [], set[int]()
    for annotation in index.imgToAnns[entry["id"]]:
        x, y, w, h = _box_xywh(index, annotation, where)
        box = clipped([x, y, x + w, y + h], entry["width"], entry["height"], orientation)
        if box is None:
            bad.append(
                f"{where}, annotation {annotation['id']}: box {annotation.get('bbox')} has no area inside the image of "
                f"{entry['width']} x {entry['height']} pixels, so its class is not counted"
            )
            classes.add(annotation["category_id"])
        elif not _several(annotation):
            boxes.setdefault(annotation["category_id"], []).append(box)
    return boxes, bad, classes


def _several(annotation: Mapping[str, Any]) -> bool:
    """True for a box around a crowd, or a region that detectors are not judged by, such as a group seen from afar."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


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


def _file_name(entry: Mapping[str, Any]) -> str:
    """`file_name`, or the end of LVIS's `coco_url`, with the split's folder."""
    return str(entry.get("file_name") or "/".join(str(entry.get("coco_url", "")).rsplit("/", 2)[-2:]))


def _image_path(entry: Mapping[str, Any], images: Path, where: str, plain: Mapping[str, int]) -> Path:
    """The path of an image, also without the folders of its name if no other image of the file has the same name there.

    Args:
        plain: number of images of the file by their name without folders.
    """
    name = _file_name(entry)
    if not name:
        raise ValueError(f"{where} names no image (file_name or coco_url); correct or remove the entry")
    path, alone = images / name, images / Path(name).name
    if not path.is_file() and alone.is_file() and plain[alone.name] == 1:
        return alone
    check_exists(path, where)
    return path


def _class_names(path: Path, categories: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    for number, category in categories.items():
        if not isinstance(category.get("name"), str) or not category["name"].strip():
            raise ValueError(f"{path}, category {number} has no name; give it one")
    return {number: category["name"] for number, category in categories.items()}


def _index(path: Path, layout: str, skipped: list[str] | None) -> Any:
    """Check a file and index it with pycocotools. `skipped` is that of `_sort_out`."""
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise ValueError(
            f"{path} needs pycocotools: pip install pycocotools, or the extra perception-tokens[data]"
        ) from error
    index = COCO()
    index.dataset = _read(path, layout, skipped)
    with contextlib.redirect_stdout(io.StringIO()):  # createIndex prints
        index.createIndex()
    return index


def _read(path: Path, layout: str, skipped: list[str] | None) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give the annotation file (instances_*.json, lvis_v1_*.json)")
    try:
        data = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON ({error}); fetch it again") from error
    lists = ("images", "annotations", "categories")
    if not isinstance(data, dict) or not all(isinstance(data.get(name), list) for name in lists):
        raise ValueError(f"{path} must hold the lists {', '.join(lists)}, as COCO and LVIS publish them")
    lvis = any(isinstance(entry, dict) and key in entry for key in _LVIS_LISTS for entry in data["images"])
    if layout != "lvis" and lvis:
        raise ValueError(
            f"{path} is in LVIS's layout ({_LVIS_LISTS[0]}), in which a class without boxes may still be there; set "
            f"counts_layout lvis, not {layout}"
        )
    categories = set[int]()
    for position, entry in enumerate(data["categories"]):
        if fault := _fault(f"{path}, categories[{position}]", entry, ("id", "name"), categories):
            raise ValueError(fault)
        categories.add(entry["id"])
    _sort_out(path, data, ("id", *(_LVIS_LISTS if layout == "lvis" else ())), categories, skipped)
    return data


def _sort_out(
    path: Path, data: dict[str, Any], needed: tuple[str, ...], categories: set[int], skipped: list[str] | None
) -> None:
    """Leave images and annotations that cannot be used out of a file's data; with an annotation, its image.

    Args:
        needed: keys of an image.
        skipped: gets a message for each; None: the first is a ValueError.
    """
    left_out = set[int]()

    def kept(name: str, owner: str, keys: tuple[str, ...], known: Mapping[str, set[int]]) -> list[Any]:
        usable, seen = list[Any](), set[int]()
        for position, entry in enumerate(data[name]):
            fault = _fault(f"{path}, {name}[{position}]", entry, keys, seen, known)
            image = entry.get(owner) if isinstance(entry, dict) and type(entry.get(owner)) is int else None
            if not fault:
                usable.append(entry)
                seen.add(entry["id"])
            elif skipped is None:
                raise ValueError(fault)
            elif image not in left_out:
                skipped.append(fault + (f"; image {image} is left out" if image in known.get("image_id", ()) else ""))
                left_out.update([] if image is None else [image])
        return usable

    data["images"] = kept("images", "id", needed, {})
    images = {entry["id"] for entry in data["images"]} | left_out
    keys = ("id", "image_id", "category_id")
    data["annotations"] = kept("annotations", "image_id", keys, {"image_id": images, "category_id": categories})
    data["images"] = [entry for entry in data["images"] if entry["id"] not in left_out]
    data["annotations"] = [entry for entry in data["annotations"] if entry["image_id"] not in left_out]


def _fault(
    where: str, entry: Any, keys: tuple[str, ...], seen: set[int], known: Mapping[str, set[int]] | None = None
) -> str:
    """What makes an entry useless; empty if nothing does.

    Args:
        seen: ids of the entries before it.
        known: ids that an entry's value of a key is one of.
    """
    remedy = "correct or remove the entry"
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        hint = " (is this COCO's layout, not LVIS's?)" if set(missing) & set(_LVIS_LISTS) else ""
        return f"{where} lacks {', '.join(missing)}{hint}; {remedy}"
    number = entry["id"]
    if type(number) is not int or number < 0:
        return f"{where}: id must be an integer from 0, got {number!r}; {remedy}"
    if number in seen:
        return f"{where}: id {number} is there twice; give each a unique id"
    for key, ids in (known or {}).items():
        if type(entry[key]) is not int or entry[key] not in ids:
            return f"{where} (id {number}): {key} {entry[key]!r} is not in the file; {remedy}"
    return ""
