"""Counting and drawing tasks from detection labels, in the words of their class names.

Readers of the layouts (`perception.datasets.coco`, `voc`, `yolo`) give `BoxedImage`s. The question of an image is
about its most frequent class among those that are fully annotated and have at most `CountRules.max_count` objects; or
there is a question about each such class, and about each class that is known not to be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perception import chains
from perception.datasets.images import ImageFile
from perception.datasets.plurals import plural, readable, without_qualifier
from perception.datasets.records import Record, RecordSet, bad_row
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

LAYOUTS = ("coco", "lvis")
_ORIENTATION = 0x0112
"""EXIF tag; 5 to 8 swap the sides of the stored picture"""
_MOST_NAMED = 10
"""Classes that a message names"""


@dataclass(frozen=True)
class CountRules:
    """Which counting questions are asked about an image with boxes."""

    layout: str = "coco"
    """coco or lvis: decides which classes count as fully annotated and which as absent"""
    max_count: int = 15
    """largest count that is asked for"""
    zero_share: float = 0.0625
    """share of the images that are also asked about an absent class; the default, 1/16, is one of the counts 0 to 15"""
    every_class: bool = False
    """every class of an image is asked about, absent ones too, and not its most frequent one alone"""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(f"unknown layout {self.layout!r}; known: {', '.join(LAYOUTS)}")
        if self.max_count < 1:
            raise ValueError(f"max_count must be at least 1, got {self.max_count}")
        if not 0 <= self.zero_share <= 1:
            raise ValueError(f"zero_share must lie in [0, 1], got {self.zero_share}")


@dataclass(frozen=True)
class BoxedImage:
    """An image with the boxes of its classes."""

    image: ImageFile
    where: str
    """file and entry, for messages"""
    number: int
    """seeds which absent class is asked for"""
    boxes: Mapping[Any, list[list[float]]]
    """boxes xyxy in [0, 1] per class"""
    unsure: set[Any] = field(default_factory=set)
    """classes whose boxes do not tell their number: crowds, difficult objects, a box that cannot be used"""
    absent: list[Any] = field(default_factory=list)
    """classes that are known not to be there, sorted"""
    bad: list[str] = field(default_factory=list)
    """messages about boxes that cannot be used, or are there twice"""


def ask_counts(
    found: Sequence[BoxedImage], names: Mapping[Any, str], num_locations: int, rules: CountRules, source: str
) -> RecordSet:
    """Counting records of all images of a source: per question, boxes to draw, a chain and a direct answer.

    Classes with one plural are counted together, so that a question about an image has one answer. A box that a class
    has twice in an image is one thing that was labelled twice. A class without a box in any image is not asked about:
    its name alone would say "0".

    Args:
        names: name of each class.
        num_locations: number of bins for the coordinates of boxes.
        source: file or folder, for messages.
    """
    things, skipped = plural_names(names), list[str]()
    alike = dict[str, list[Any]]()
    for category, many in things.items():
        alike.setdefault(many.casefold(), []).append(category)
    for first, *others in alike.values():
        if others:
            found = [_together(labelled, first, others) for labelled in found]
            said = " and ".join(names[category] for category in (first, *others))
            skipped.append(f"{source}: the classes {said} are counted together: their plural is {things[first]}")
    found = [_each_once(labelled, things) for labelled in found]
    drawn = {category for labelled in found for category in labelled.boxes}
    unseen = sorted({category for labelled in found for category in labelled.absent} - drawn)
    if unseen and (rules.every_class or rules.zero_share):
        said = ", ".join(str(names.get(category, category)) for category in unseen[:_MOST_NAMED])
        more = f" and {len(unseen) - _MOST_NAMED} more" if len(unseen) > _MOST_NAMED else ""
        skipped.append(f"{source}: no image has a box of {said}{more}, so nothing is asked about that")
    tokenizer, records = BoxTokenizer(num_locations), list[Record]()
    for labelled in found:
        asked = _classes_asked(replace(labelled, absent=[c for c in labelled.absent if c in drawn]), rules)
        too_many = _too_many(labelled, things, rules.max_count)
        skipped += [*labelled.bad, *too_many]
        if not asked and not too_many:
            skipped.append(f"{labelled.where}: no fully annotated class has 1 to {rules.max_count} objects")
        for category in asked:
            boxes = np.array(labelled.boxes.get(category, [])).reshape(-1, 4)
            span = Span("boxes", tuple(tokenizer.encode(boxes)))
            records += count_records(labelled.image, things[category], span, labelled.where)
    return RecordSet(tuple(records), tuple(skipped))


def _together(labelled: BoxedImage, first: Any, others: Sequence[Any]) -> BoxedImage:
    """An image in which `others` are of the class `first`, which is absent only if all of them are."""
    group = {first, *others}
    boxes = {category: given for category, given in labelled.boxes.items() if category not in group}
    if here := [box for category in (first, *others) for box in labelled.boxes.get(category, ())]:
        boxes[first] = here
    unsure = labelled.unsure - group | ({first} if labelled.unsure & group else set())
    absent = set(labelled.absent) - group | ({first} if group <= set(labelled.absent) else set())
    return replace(labelled, boxes=boxes, unsure=unsure, absent=sorted(absent))


def _each_once(labelled: BoxedImage, names: Mapping[Any, str]) -> BoxedImage:
    """An image without boxes that a class has before, to the last digit; a message names them."""
    once = {c: [*map(list, dict.fromkeys(map(tuple, boxes)))] for c, boxes in labelled.boxes.items()}
    again = {c: len(labelled.boxes[c]) - len(boxes) for c, boxes in once.items()}
    said = [
        f"{labelled.where}: {count} of the boxes of {names[c]} are there before, with the same sides; each box is "
        "counted once"
        for c, count in again.items()
        if count and c not in labelled.unsure
    ]
    return replace(labelled, boxes=once, bad=[*labelled.bad, *said]) if said else labelled


def count_records(image: ImageFile, things: str, boxes: Span, where: str) -> list[Record]:
    """Records that count `things` (a plural): boxes to draw, a chain, and a direct answer."""
    question = f"How many {things} are there?"
    chain = chains.chain_count(question, boxes)
    direct = chains.direct(chains.DIRECT_COUNT, question, chain.answer)
    examples = (chains.atomic_boxes(things, boxes), chain, direct)
    return [Record(image, example, where, counted=boxes) for example in examples]


def _classes_asked(labelled: BoxedImage, rules: CountRules) -> list[Any]:
    """The most frequent class that can be counted and, for a share of the images, an absent class; or all of both."""
    rng = np.random.default_rng((rules.seed, labelled.number))
    counts = {c: len(boxes) for c, boxes in labelled.boxes.items() if c not in labelled.unsure}
    counts = {c: count for c, count in counts.items() if 0 < count <= rules.max_count}
    if rules.every_class:
        return sorted([*counts, *labelled.absent])
    asked = [min(counts, key=lambda c: (-counts[c], c))] if counts else []
    if labelled.absent and rng.random() < rules.zero_share:
        asked.append(labelled.absent[int(rng.integers(len(labelled.absent)))])
    return asked


def _too_many(labelled: BoxedImage, names: Mapping[Any, str], most: int) -> list[str]:
    """Messages about the classes of an image that have more objects than are asked for."""
    return [
        f"{labelled.where}: {len(boxes)} {names[c]}, and at most {most} are asked for; raise counts_most"
        for c, boxes in sorted(labelled.boxes.items())
        if len(boxes) > most and c not in labelled.unsure
    ]


def plural_names(names: Mapping[Any, str]) -> dict[Any, str]:
    """Plurals of class names, by class. A qualifier, as in "bow (weapon)", is kept only if two names differ by it."""
    full = {number: readable(name) for number, name in names.items()}
    bare = Counter(without_qualifier(name) for name in full.values())
    return {
        n: plural(name if bare[without_qualifier(name)] > 1 else without_qualifier(name)) for n, name in full.items()
    }


def labelled_once(found: Sequence[BoxedImage], skipped: list[str] | None) -> list[BoxedImage]:
    """Images without those that have labels in two places, since each may lack what the other has.

    Args:
        skipped: gets a message for each that is left out; None: the first is a ValueError.
    """
    places = dict[ImageFile, list[str]]()
    for labelled in found:
        places.setdefault(labelled.image, []).append(labelled.where)
    for image, where in places.items():
        with bad_row(skipped):
            if len(where) > 1:
                raise ValueError(f"{where[1]}: {image} has labels in {where[0]} too; join them, or correct its name")
    return [labelled for labelled in found if len(places[labelled.image]) == 1]


def labelled_size(path: Path, given_wh: Sequence[Any], where: str) -> tuple[float, float, int]:
    """Width and height of the picture that labels are made for, and its EXIF orientation if it is not upright, else 1.

    Labels of a photograph may be made for its pixels as they are stored, before EXIF turns them upright. That shows if
    their sides are those of the upright picture in turn.

    Args:
        given_wh: width and height that the labels name; where one is missing or 0, the image's own are taken.

    Raises:
        ValueError: if the image cannot be read, or has another size.
    """
    try:
        height, width = ImageFile(path).size()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not all(isinstance(side, int | float) and side > 0 for side in given_wh) or (width, height) == tuple(given_wh):
        return width, height, 1
    if (height, width) == tuple(given_wh):
        with Image.open(path) as opened:
            if opened.size == (height, width):
                return height, width, int(opened.getexif()[_ORIENTATION])
    raise ValueError(
        f"{where}: {path} has {width} x {height} pixels and the annotations are for {given_wh[0]:g} x {given_wh[1]:g}; "
        "give the images that were annotated, or correct width, height and boxes"
    )


def clipped(xyxy: list[float], width: float, height: float, orientation: int = 1) -> list[float] | None:
    """A box in pixels as xyxy in [0, 1] of the upright picture, clipped to it; None if it has no area there."""
    corners = np.array(xyxy) / [width, height, width, height]
    if not np.isfinite(corners).all():
        return None
    x1, y1, x2, y2 = (float(side) for side in corners.clip(0, 1))
    if not (x2 > x1 and y2 > y1):
        return None
    match orientation:
        case 5:
            return [y1, x1, y2, x2]
        case 6:
            return [1 - y2, x1, 1 - y1, x2]
        case 7:
            return [1 - y2, 1 - x2, 1 - y1, 1 - x1]
        case 8:
            return [y1, 1 - x2, y2, 1 - x1]
    return [x1, y1, x2, y2]
