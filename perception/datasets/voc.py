"""Counting questions from Pascal VOC's annotations, one XML file per image, all of a folder or those of a split.

Corners are pixels counted from 1, the last one included, so a box of the whole image is 1 1 width height. An image gets
no question about a class with a `difficult` object, which its annotators were not asked to find in every image.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from perception.datasets.detection import BoxedImage, CountRules, ask_counts, clipped, labelled_once, labelled_size
from perception.datasets.images import ENDINGS, ImageFile, check_exists
from perception.datasets.lines import read_text, text_lines
from perception.datasets.listing import files_beneath
from perception.datasets.records import RecordSet, bad_row, check_any

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_IMAGE_ENDINGS = (*ENDINGS, *(ending.upper() for ending in ENDINGS))
_EASY = ("", "0", "false", "no", "unspecified")
"""What tools write where an object is not difficult, in lower case"""
_REMEDY = "correct or remove the file"


def read_voc(
    annotations: Path,
    images: Path,
    num_locations: int,
    rules: CountRules = CountRules(),  # noqa: B008
    skip_bad: bool = False,
) -> RecordSet:
    """Counting records of the XML files beneath a folder, as `perception.datasets.coco.read_counts` makes them.

    Args:
        annotations: folder of the XML files, one XML file, or the list of a split, such as ImageSets/Main/train.txt,
            whose XML files lie in the folder Annotations beside ImageSets.
        images: folder of the images, which may be the same one.

    Raises:
        ValueError: naming the file, if it is no annotation, a box lacks a side, or its image is missing or of another
            size.
    """
    if annotations.suffix.lower() == ".txt":
        files = _of_split(annotations)
    else:
        files = files_beneath(annotations, {".xml"}) if annotations.is_dir() else [annotations]
    if not files:
        raise ValueError(f"{annotations} holds no XML files; give VOC's folder Annotations")
    found, skipped = list[BoxedImage](), list[str]()
    bad = skipped if skip_bad else None
    for number, path in enumerate(files):
        with bad_row(bad):
            found.append(_labelled(path, number, images))
    found = labelled_once(found, bad)
    check_any(found, skipped, annotations)
    classes = set[str]().union(*(labelled.boxes.keys() | labelled.unsure for labelled in found))
    for labelled in found:
        labelled.absent.extend(sorted(classes - labelled.boxes.keys() - labelled.unsure))
    made = ask_counts(found, {c: c for c in sorted(classes)}, num_locations, rules, annotations.name)
    return RecordSet(made.records, (*skipped, *made.skipped))


def _of_split(path: Path) -> list[Path]:
    """The XML files of a split: a line is the name of an image, also with its ending, or with whether its class is
    there."""
    names = [line.strip() for line in text_lines(read_text(path)) if line.strip()]
    if not names:
        raise ValueError(f"{path} names no images; write one name a line, without its ending")
    beside = [parent / "Annotations" for parent in path.absolute().parents[:3]]
    folder = next((one for one in beside if one.is_dir()), None)
    if folder is None:
        raise ValueError(f"{path}: there is no folder Annotations beside ImageSets; put the XML files there")
    return [_named(folder, name) for name in names]


def _named(folder: Path, line: str) -> Path:
    """The XML file of a line of a split, such as "a", "a.jpg" or "a -1"; names may have spaces."""
    short = re.sub(r"\s+(-1|0|1)$", "", line)
    names = [given.removesuffix(ending) for given in (line, short) for ending in ("", *_IMAGE_ENDINGS)]
    choices = [folder / f"{name}.xml" for name in dict.fromkeys(names)]
    return next((choice for choice in choices if choice.is_file()), folder / f"{short}.xml")


def _labelled(path: Path, number: int, images: Path) -> BoxedImage:
    """An image with its boxes; what is absent is not known yet."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); give a file that exists") from None
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not complete XML ({error}); {_REMEDY}") from None
    if root.tag != "annotation":
        raise ValueError(f"{path} holds a {root.tag}, not an annotation of Pascal VOC; {_REMEDY}")
    image, where = _image(path, (root.findtext("filename") or "").strip(), images), path.name
    given = [_number(root.find("size"), side, f"{where}: size") for side in ("width", "height")]
    width, height, orientation = labelled_size(image.path, given, where)
    boxes, unsure, bad = dict[str, list[list[float]]](), set[str](), list[str]()
    for place, item in enumerate(root.findall("object")):
        name = (item.findtext("name") or "").strip()
        if not name:
            raise ValueError(f"{where}, object {place} has no name; {_REMEDY}")
        corners = item.find("bndbox")
        if corners is None or not all((corners.findtext(side) or "").strip() for side in _SIDES):
            raise ValueError(f"{where}, object {place} ({name}) lacks {', '.join(_SIDES)} in a bndbox; {_REMEDY}")
        x1, y1, x2, y2 = (_number(corners, side, f"{where}, object {place} ({name})") for side in _SIDES)
        box = clipped([x1 - 1, y1 - 1, x2, y2], width, height, orientation)
        if box is None:
            bad.append(
                f"{where}, object {place} ({name}): box {x1:g} {y1:g} {x2:g} {y2:g} has no area inside the image of "
                f"{width:g} x {height:g} pixels, so its class is not counted"
            )
        else:
            boxes.setdefault(name, []).append(box)
        if box is None or (item.findtext("difficult") or "").strip().lower() not in _EASY:
            unsure.add(name)
    return BoxedImage(image, where, number, boxes, unsure, bad=bad)


def _number(parent: Any, side: str, where: str) -> float:
    """The number in a child element; 0 if it is missing."""
    text = "" if parent is None else (parent.findtext(side) or "").strip()
    try:
        return float(text or 0)
    except ValueError:
        raise ValueError(f"{where}: {side} must be a number, got {text!r:.40}; {_REMEDY}") from None


def _image(path: Path, name: str, images: Path) -> ImageFile:
    """The image of an XML file: the one that it names, or the one that has the file's own name."""
    named = Path(name).name
    choices = [images / named] if named else []
    choices += [images / f"{stem}{ending}" for stem in {path.stem, named} if stem for ending in ENDINGS]
    choices += [choice.with_suffix(choice.suffix.upper()) for choice in choices if choice.suffix]
    for choice in choices:
        if choice.is_file():
            return ImageFile(choice)
    check_exists(choices[0], path.name)
    return ImageFile(choices[0])
