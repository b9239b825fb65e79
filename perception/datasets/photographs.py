"""Photographs with depth maps and boxes of teacher models, as scenes.

A folder holds `images/NAME.jpg`, `depth/NAME.png` (inverse depth, 8-bit grey, 255 nearest, scaled for each image by
itself), `boxes.jsonl` (a line an image: `image`, `width`, `height`, `boxes`, each `[x1, y1, x2, y2, class, score]` in
pixels) and `split.csv` (columns `image`, `split`: train, val or test).
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import json_lines, read_text
from perception.model.images import load_image
from perception.scenes.render import SceneObject
from perception.scenes.scene import Scene

SURE = 0.4
"""Lowest score of a box that counts as a thing. A kind with a weaker box in an image is not asked about there"""
WEAK = 0.3
"""Lowest score of a thing where weak boxes are learned from. Weaker boxes do not count there"""
_MAP = 80  # side of the maps at which places for markers are chosen
_FLOOR = 0.05  # nearness of the farthest, so that its inverse is finite; maps are scaled to [0, 1] again
_PNG, _GREY = b"\x89PNG\r\n\x1a\n", b"\x08\x00"  # the first bytes of a PNG, and those at 24 where it is 8-bit grey
_SEEN = 0.25  # smallest share of a box inside a cut for it to count there


@dataclass(frozen=True)
class PhotoScene(Scene):
    """A photograph, or a part of one, in the form of a scene: depth is the inverse of the teacher's nearness."""

    unsure: frozenset[str] = frozenset()
    """kinds with a box that may or may not be one"""


@dataclass(frozen=True)
class Window:
    """A part of an image, in [0, 1]."""

    x1: float = 0.0
    y1: float = 0.0
    x2: float = 1.0
    y2: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator, least: float = 0.55) -> Window:
        """Draw a window of at least `least` of each side."""
        width, height = rng.uniform(least, 1, size=2)
        x, y = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        return cls(x, y, x + width, y + height)

    def place(self, box: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the share of a box (4,) inside the window, and the box cut to it, in [0, 1] of the window."""
        low, high = np.array([self.x1, self.y1]), np.array([self.x2, self.y2])
        cut = np.concatenate([np.clip(box[:2], low, high), np.clip(box[2:], low, high)])
        area = float(np.prod(cut[2:] - cut[:2]) / max(1e-9, np.prod(box[2:] - box[:2])))
        return area, ((cut.reshape(2, 2) - low) / (high - low)).reshape(4)

    def cut(self, image: Image.Image) -> Image.Image:
        """Return this part of an image, at least a pixel of it."""
        width, height = image.size
        box = (self.x1 * width, self.y1 * height, self.x2 * width, self.y2 * height)
        left, top, right, bottom = (round(value) for value in box)
        return image.crop((left, top, max(left + 1, right), max(top + 1, bottom)))


class Photographs:
    """The photographs of one part of a folder.

    Args:
        folder: see the module's documentation.
        split: train, val or test.
        weak_boxes: boxes from `WEAK` count as things, and weaker ones do not count at all.

    Raises:
        ValueError: where a file is missing or of another form, or the part has no image. Pixels are not looked at.
    """

    def __init__(self, folder: str | Path, split: str = "train", weak_boxes: bool = False):
        self.folder, self.weak_boxes = Path(folder), weak_boxes
        for name in ("images", "depth", "boxes.jsonl", "split.csv"):
            if not (self.folder / name).exists():
                raise ValueError(f"{self.folder} has no {name}; docs/data.md shows the layout of labelled photographs")
        table = csv.DictReader(io.StringIO(read_text(self.folder / "split.csv"), newline=""))
        if not {"image", "split"} <= set(table.fieldnames or ()):
            found = ", ".join(table.fieldnames or ()) or "none"
            raise ValueError(f"{self.folder / 'split.csv'} must have the columns image and split, got {found}")
        wanted = {row["image"].strip() for row in table if row["image"] and (row["split"] or "").strip() == split}
        lines, self.labels = dict[str, dict[str, Any]](), list[dict[str, Any]]()
        for number, line in json_lines(self.folder / "boxes.jsonl"):
            where = f"{self.folder / 'boxes.jsonl'}, line {number}"
            _check_label(line, where)
            if line["image"] in lines:
                raise ValueError(f"{where} is about {line['image']!r}, as a line before it is; remove one of the two")
            lines[line["image"]] = line
            if line["image"] in wanted:
                self.labels.append(line)
                check_exists(self.folder / "images" / line["image"], where)
                _check_map(self._map(line), where)
        if not self.labels:
            raise ValueError(f"{self.folder / 'split.csv'} names no image of the part {split!r} that boxes.jsonl holds")
        missing = sorted(wanted - lines.keys())
        if missing:
            raise ValueError(
                f"{self.folder / 'boxes.jsonl'} has no line for {len(missing)} of the images of the part {split!r} in "
                f"split.csv, among them {missing[0]!r}; add one, with empty boxes where there is nothing, or take the "
                "image out of split.csv"
            )
        seen: dict[str, int] = {}
        for line in lines.values():
            for *_, name, score in line["boxes"]:
                seen[name] = seen.get(name, 0) + (score >= SURE)
        self.kinds: tuple[str, ...] = tuple(sorted(seen))
        """Names of all kinds of things"""
        self.weights = np.sqrt(np.array([seen[name] + 1.0 for name in self.kinds]))
        self.weights /= self.weights.sum()
        """How often a kind is to be asked about where it is absent, (kinds,), in total 1"""

    def __len__(self) -> int:
        return len(self.labels)

    def file_sizes(self) -> list[int]:
        """Return the sizes of the images and depth maps in bytes, which tell whether any was replaced."""
        files = [*(image.path for image in self.images), *map(self._map, self.labels)]
        return [path.stat().st_size for path in files]

    @property
    def images(self) -> list[ImageFile]:
        return [ImageFile(self.folder / "images" / label["image"]) for label in self.labels]

    def nearness(self, index: int) -> np.ndarray:
        """Return the teacher's map (H, W) float32 in [0, 1], 1 nearest. Raises ValueError for a damaged file."""
        path = self._map(self.labels[index])
        try:
            with Image.open(path) as image:
                return np.asarray(image, np.float32) / 255
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is a corrupt image ({error}); write it again") from error

    def _map(self, label: dict[str, Any]) -> Path:
        return self.folder / "depth" / Path(label["image"]).with_suffix(".png").name

    def scene(self, index: int, size: int, window: Window | None = None, mirrored: bool = False) -> PhotoScene:
        """Return a photograph, or a part of it, resized to a square of `size` pixels without regard to its aspect.

        A size of 0 leaves the pixels out, which takes most of the time.
        """
        label, window = self.labels[index], window or Window()
        image = Image.new("RGB", (1, 1))
        if size:
            image = window.cut(load_image(self.folder / "images" / label["image"]))
            image = image.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=2)
        near = window.cut(Image.fromarray(self.nearness(index))).resize((_MAP, _MAP), Image.Resampling.BILINEAR)
        if mirrored:
            image, near = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, near))
        objects, unsure = self._objects(label, window, mirrored)
        values = np.asarray(near, np.float32)  # (80, 80)
        values = (values - values.min()) / max(1e-6, float(np.ptp(values)))
        ids = np.zeros((_MAP, _MAP), np.int64)
        for number, item in enumerate(objects, start=1):
            x1, y1, x2, y2 = (round(_MAP * value) for value in item.box_xyxy)
            ids[y1:y2, x1:x2] = number
        pixels = torch.from_numpy(np.array(image))
        depth = torch.from_numpy(1 / (_FLOOR + (1 - _FLOOR) * values))
        return PhotoScene(pixels, depth, torch.from_numpy(ids), objects, frozenset(unsure))

    def _objects(self, label: dict[str, Any], window: Window, mirrored: bool) -> tuple[list[SceneObject], set[str]]:
        """Return the things in a window, in row-major order of their boxes, and the kinds that are unsure."""
        objects, unsure = list[SceneObject](), set[str]()
        scale = np.array([label["width"], label["height"]] * 2, float)
        for *corners, name, score in label["boxes"]:
            share, box = window.place(np.clip(np.array(corners) / scale, 0, 1))
            if share == 0 or (self.weak_boxes and score < WEAK):
                continue
            if share < _SEEN or (score < SURE and not self.weak_boxes):
                unsure.add(name)
                continue
            x1, y1, x2, y2 = box.tolist()
            x1, x2 = (1 - x2, 1 - x1) if mirrored else (x1, x2)
            objects.append(SceneObject("", name, (x1, y1, x2, y2), 0.0, share))
        objects.sort(key=lambda item: (item.box_xyxy[1], item.box_xyxy[0]))
        return objects, unsure


def _check_label(label: Any, where: str) -> None:
    """Raise ValueError for a line of boxes.jsonl of another form."""

    def numbers(*values: Any) -> bool:
        return all(isinstance(value, int | float) and math.isfinite(value) for value in values)

    try:
        size, boxes = (label["width"], label["height"]), label["boxes"]
        right = isinstance(label["image"], str) and numbers(*size) and min(size) > 0
        for x1, y1, x2, y2, name, score in boxes:
            right = right and numbers(x1, y1, x2, y2, score) and isinstance(name, str) and x1 < x2 and y1 < y2
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise ValueError(
            f"{where} must hold image, width, height and boxes, each [x1, y1, x2, y2, class, score] with x1 < x2 and "
            f"y1 < y2, got {label!r:.200}; correct the line, or remove it"
        )


def _check_map(path: Path, where: str) -> None:
    """Raise ValueError for a map that is missing or no 8-bit grey, by the first bytes of its file."""
    if not path.is_file():
        raise ValueError(f"{where}: its depth map {path} does not exist; put it there, or remove the line")
    with path.open("rb") as file:
        head = file.read(26)
    if head[:8] != _PNG or head[24:] != _GREY:
        raise ValueError(
            f"{where}: its depth map {path} must be an 8-bit grey PNG of inverse depth; scale other maps to 0 "
            "(farthest) to 255 (nearest), and save them in Pillow's mode L"
        )
