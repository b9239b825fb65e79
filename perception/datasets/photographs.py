"""Photographs with depth maps and boxes of teacher models, as scenes.

A folder holds `images/NAME.jpg`, `depth/NAME.png` (inverse depth, 8-bit grey, 255 nearest, scaled for each image by
itself), `boxes.jsonl` (a line an image: `image`, `width`, `height`, `boxes`, each `[x1, y1, x2, y2, class, score]` in
pixels) and `split.csv` (columns `image`, `split`: train, val or test).
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from perception.datasets.images import ImageFile
from perception.model.images import load_image
from perception.scenes.render import SceneObject
from perception.scenes.scene import Scene

SURE = 0.4
"""Lowest score of a box that counts as a thing. A kind with a weaker box in an image is not asked about there"""
_MAP = 80  # side of the maps at which places for markers are chosen
_FLOOR = 0.05  # nearness of the farthest, so that its inverse is finite; maps are scaled to [0, 1] again
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

    Raises:
        ValueError: where a file is missing, or the part has no image.
    """

    def __init__(self, folder: str | Path, split: str = "train"):
        self.folder = Path(folder)
        for name in ("images", "depth", "boxes.jsonl", "split.csv"):
            if not (self.folder / name).exists():
                raise ValueError(f"{self.folder} has no {name}; docs/data.md shows the layout of labelled photographs")
        with (self.folder / "split.csv").open(newline="", encoding="utf-8") as file:
            wanted = {row["image"] for row in csv.DictReader(file) if row["split"] == split}
        text = (self.folder / "boxes.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        self.labels: list[dict[str, Any]] = [line for line in lines if line["image"] in wanted]
        if not self.labels:
            raise ValueError(f"{self.folder / 'split.csv'} names no image of the part {split!r} that boxes.jsonl holds")
        seen: dict[str, int] = {}
        for line in lines:
            for *_, name, score in line["boxes"]:
                seen[name] = seen.get(name, 0) + (score >= SURE)
        self.kinds: tuple[str, ...] = tuple(sorted(seen))
        """Names of all kinds of things"""
        self.weights = np.sqrt(np.array([seen[name] + 1.0 for name in self.kinds]))
        self.weights /= self.weights.sum()
        """How often a kind is to be asked about where it is absent, (kinds,), in total 1"""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> list[ImageFile]:
        return [ImageFile(self.folder / "images" / label["image"]) for label in self.labels]

    def nearness(self, index: int) -> np.ndarray:
        """Return the teacher's map (H, W) float32 in [0, 1], 1 nearest."""
        path = self.folder / "depth" / Path(self.labels[index]["image"]).with_suffix(".png").name
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), np.float32) / 255

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
            if share == 0:
                continue
            if score < SURE or share < _SEEN:
                unsure.add(name)
                continue
            x1, y1, x2, y2 = box.tolist()
            x1, x2 = (1 - x2, 1 - x1) if mirrored else (x1, x2)
            objects.append(SceneObject("", name, (x1, y1, x2, y2), 0.0, share))
        objects.sort(key=lambda item: (item.box_xyxy[1], item.box_xyxy[0]))
        return objects, unsure
