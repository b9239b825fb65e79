"""Counting questions from YOLO's labels: a data set's YAML file, images, and a text file of boxes beside each image.

    path: ../datasets/desk        # the root, relative to the YAML file; its own folder where this is missing
    train: images/train           # a folder, a text file that lists images, or a list of these
    names: {0: cup, 1: lamp}      # or a list

The labels of images/train/a.jpg are labels/train/a.txt: one object per line, as class number and the box's centre x and
y, width and height in [0, 1]. A polygon (class number, then x y of its corners) stands for the box around it. An image
without a file of labels, or with an empty one, shows no object, as for Ultralytics.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from perception.datasets.detection import BoxedImage, CountRules, ask_counts, clipped
from perception.datasets.images import ENDINGS, ImageFile, check_exists
from perception.datasets.lines import read_text, text_lines
from perception.datasets.listing import files_beneath
from perception.datasets.records import RecordSet, bad_row, check_any

_MOST_OUTSIDE = 0.01
"""How far a number may lie outside of [0, 1]: labels are rounded, and objects are cut at the edge"""


def read_yolo(
    path: Path,
    root: Path | None,
    num_locations: int,
    rules: CountRules = CountRules(),  # noqa: B008
    skip_bad: bool = False,
    split: str = "train",
) -> RecordSet:
    """Counting records of a part of a data set, as `perception.datasets.coco.read_counts` makes them.

    Args:
        path: the YAML file.
        root: folder that replaces the YAML file's `path`.
        split: the part, as the YAML file calls it: train, val or test.

    Raises:
        ValueError: naming file and line, if the YAML file lacks the part or names, there are no images or no labels, a
            class has no name, or a box is not five numbers in [0, 1].
    """
    settings = _settings(path, split)
    names = _names(settings.get("names"), path)
    images = _images(settings, split, root or _root(settings, path), path)
    if not any(_label_file(image).is_file() for image in images):
        raise ValueError(
            f"none of the {len(images)} images of {path} has labels; the first would be {_label_file(images[0])}"
        )
    found, skipped = list[BoxedImage](), list[str]()
    for number, image in enumerate(images):
        with bad_row(skipped if skip_bad else None):
            found.append(_labelled(image, number, names, path, "kpt_shape" in settings))
    check_any(found, skipped, path)
    made = ask_counts(found, names, num_locations, rules, path.name)
    return RecordSet(made.records, (*skipped, *made.skipped))


def _labelled(image: Path, number: int, names: dict[int, str], path: Path, poses: bool) -> BoxedImage:
    boxes, unsure, bad = dict[int, list[list[float]]](), set[int](), list[str]()
    file = _label_file(image)
    lines = text_lines(read_text(file)) if file.is_file() else []
    for line_number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file.name}, line {line_number}"
        category, box = _object(line, where, poses)
        if category not in names:
            raise ValueError(
                f"{where}: class {category} has no name, and {path.name} names {len(names)} classes, {min(names)} to "
                f"{max(names)}; add its name there, or correct the line"
            )
        inside = clipped(box, 1, 1)
        if inside is None:
            bad.append(f"{where}: the box {line.strip()!r:.80} has no area, so its class is not counted")
            unsure.add(category)
        else:
            boxes.setdefault(category, []).append(inside)
    check_exists(image, path.name)
    absent = sorted(set(names) - set(boxes) - unsure)
    return BoxedImage(ImageFile(image), file.name, number, boxes, unsure, absent, bad)


def _object(line: str, where: str, poses: bool) -> tuple[int, list[float]]:
    """Class and box xyxy of a line."""
    try:
        first, *numbers = [float(word) for word in line.split()]
    except ValueError:
        first, numbers = -1.0, []
    polygon = not poses and len(numbers) >= 6 and len(numbers) % 2 == 0
    if first < 0 or first % 1 or not (len(numbers) == 4 or polygon or (poses and len(numbers) > 4)):
        raise ValueError(
            f"{where}: expected a class number and x y width height (or a polygon), got {line.strip()!r:.80}; correct "
            "or remove the line"
        )
    places = np.array(numbers if polygon else numbers[:4])
    if not (np.isfinite(places).all() and -_MOST_OUTSIDE <= places.min() and places.max() <= 1 + _MOST_OUTSIDE):
        raise ValueError(
            f"{where}: {line.strip()!r:.80} is not in [0, 1]; YOLO's boxes are fractions of the image: divide pixels "
            "by its width and height"
        )
    if polygon:
        corners = places.reshape(-1, 2)
        return int(first), [*corners.min(0).tolist(), *corners.max(0).tolist()]
    x, y, width, height = places.tolist()
    return int(first), [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _settings(path: Path, split: str) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}); correct it") from None
    if not isinstance(settings, dict) or not settings.get(split) or not settings.get("names"):
        raise ValueError(f"{path} must name its images as {split} and its classes as names, as Ultralytics writes it")
    return settings


def _names(given: Any, path: Path) -> dict[int, str]:
    named = dict(enumerate(given)) if isinstance(given, list) else given
    if not isinstance(named, dict) or not all(isinstance(n, int) and str(name).strip() for n, name in named.items()):
        raise ValueError(f"{path}: names must be a list, or give a name for each class number; got {given!r:.80}")
    if misread := [name for name in named.values() if isinstance(name, bool) or name is None]:
        raise ValueError(
            f"{path}: names hold {misread[0]}, which is what YAML makes of on, off, yes, no and null; put these "
            "names in quotes"
        )
    return {number: str(name) for number, name in named.items()}


def _root(settings: dict[str, Any], path: Path) -> Path:
    """The folder that the images' paths are relative to."""
    named = path.parent / str(settings.get("path") or "")
    return named if named.is_dir() else path.parent


def _images(settings: dict[str, Any], split: str, root: Path, path: Path) -> list[Path]:
    images: list[Path] = []
    given = settings[split]
    for name in given if isinstance(given, list) else [given]:
        place = root / str(name)
        if not place.exists() and str(name).startswith("../"):  # Roboflow's files are written for a folder beside
            place = root / str(name)[len("../") :]
        if place.is_dir():
            images += files_beneath(place, ENDINGS)
        elif place.suffix == ".txt" and place.is_file():
            images += [place.parent / line.strip() for line in text_lines(read_text(place)) if line.strip()]
        else:
            raise ValueError(f"{path}: {split} names {place}, which is no folder of images; correct it, or its path")
    if not images:
        raise ValueError(f"{path}: there are no images beneath {given!r:.80}; correct {split} or path")
    return [*dict.fromkeys(images)]


def _label_file(image: Path) -> Path:
    """labels/.../a.txt for images/.../a.jpg; beside the image where no folder is called images."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
