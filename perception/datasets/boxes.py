"""Boxes in the formats that people write them in, declared by name: an order of the four numbers and their unit.

| format | written by |
|---|---|
| xyxy | Pascal VOC, ms-swift: pixels |
| xywh | COCO: pixels, the upper left corner and the size |
| cxcywh | pixels, the centre and the size |
| xyxy-1, xywh-1, cxcywh-1 | the same in [0, 1] of the image; cxcywh-1 is YOLO's |
| xyxy-1000 | thousandths of the image: Qwen2-VL, Qwen3-VL, InternVL |
| yxyx-1000, yxyx-1024 | Gemini's thousandths, and PaliGemma's <loc0000> to <loc1023>: y first |
| xyxy-resized | Qwen2.5-VL: pixels of the image as the model's processor resizes it |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Boxes = NDArray[np.float64]
Resize = Callable[[int, int], tuple[int, int]]
"""(height, width) of an image -> (height, width) to which a processor resizes it"""

_REMEDY = "correct or remove the row"
_WRITTEN = ("xyxy", "xywh", "cxcywh", "yxyx", "xyxy-1", "xywh-1", "cxcywh-1", "xyxy-1000", "yxyx-1000", "yxyx-1024")
"""Formats that an error suggests"""
_FEW = 0.05
"""Share of a file's boxes that may be wrong in the file's own format"""
_OUTSIDE = 0.01
"""How far a box may reach outside of its image, of [0, 1], where it is cut: numbers are rounded"""
_THOUSANDTHS = 1000
ORDERS: dict[str, Callable[[Boxes], Boxes]] = {
    "xyxy": lambda boxes: boxes,
    "xywh": lambda boxes: np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
    "cxcywh": lambda boxes: np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1),
    "yxyx": lambda boxes: boxes[:, [1, 0, 3, 2]],
}
"""Boxes (N, 4) -> boxes as x1 y1 x2 y2 in the same unit"""
UNITS = {"1": 1.0, "1000": 1000.0, "1024": 1024.0}
"""Width and height of an image in a unit; pixels have no name"""
RESIZED = "resized"
FORMATS = tuple(f"{order}{unit}" for unit in ("", *(f"-{name}" for name in (*UNITS, RESIZED))) for order in ORDERS)


def check_format(name: str | None) -> None:
    """Raise ValueError unless `name` is one of `FORMATS`, or None."""
    if name is not None and name not in FORMATS:
        raise ValueError(
            f"unknown boxes_format {name!r}; known: {', '.join(ORDERS)} in pixels, or with a unit -"
            f"{', -'.join((*UNITS, RESIZED))}, such as xyxy-1000"
        )


@dataclass
class DeclaredBoxes:
    """Turns boxes of one declared format into fractions of their images, and refuses those that cannot be meant."""

    format: str | None = None
    """one of `FORMATS`; None: pixels as x1 y1 x2 y2, and boxes that look like another format are refused"""
    resize: Resize | None = None
    """the rule of the processor in whose pixels the boxes are, for the unit "resized" """
    _given: list[tuple[Boxes, tuple[int, int]]] = field(default_factory=list, init=False, repr=False)
    """each box (4,) or point (2,) of the file so far, with (height, width) of its image"""

    def __post_init__(self) -> None:
        check_format(self.format)
        if (self.format or "").endswith(f"-{RESIZED}") and self.resize is None:
            raise ValueError(
                f"boxes_format {self.format} needs the processor of a model that resizes images to any size, as "
                "Qwen2.5-VL's does; declare the boxes in another unit"
            )

    def fractions(self, boxes: Boxes, size_hw: tuple[int, int], where: str) -> Boxes:
        """Boxes (N, 4) as x1 y1 x2 y2 in [0, 1], cut at the image's edge. Raises ValueError for one that is empty,
        outside, or of another format."""
        self._given += [(box, size_hw) for box in boxes]
        for box in boxes:
            if self.format is None and _in_fractions(box):
                raise ValueError(
                    f"{where}: box {box.tolist()} is not in pixels but in [0, 1] of the image, as it seems; set "
                    "boxes_format xyxy-1, or cxcywh-1 for YOLO's (xyxy if it is in pixels)"
                )
            if not is_inside(self._scaled(box[None], size_hw, self.format)[0]):
                raise ValueError(f"{where}: {self._misfit(box, size_hw)}")
        return self._scaled(boxes, size_hw, self.format).clip(0, 1)

    def point(self, point: Boxes, size_hw: tuple[int, int], where: str) -> Boxes:
        """A point (2,) as x y in [0, 1], in the unit and order of the boxes. Raises ValueError for one outside."""
        self._given.append((point, size_hw))
        if self.format is None and _in_fractions(point):
            raise ValueError(
                f"{where}: point {point.tolist()} is not in pixels but in [0, 1] of the image, as it seems; set "
                "boxes_format xyxy-1 (xyxy if it is in pixels)"
            )
        placed = self._scaled_point(point, size_hw, self.format)
        if not _has(placed):
            raise ValueError(
                f"{where}: point {point.tolist()} is not inside the image of {size_hw[1]} x {size_hw[0]} pixels as "
                f"{self.format or 'pixels'}; {_REMEDY}"
            )
        return placed.clip(0, 1)

    def check_file(self, path: object) -> None:
        """Raise ValueError if no format is declared and the boxes of a file, taken together, are not in pixels as
        x1 y1 x2 y2: those of them that fit by accident would be learned, and all of these are wrong."""
        if self.format is not None:
            return
        kept = [(box, size) for box, size in self._given if self._fits(box, size, "xyxy")]
        misfits, few = len(self._given) - len(kept), max(1, _FEW * len(self._given))
        if misfits > few:
            others = [name for name in _WRITTEN if sum(not self._fits(*given, name) for given in self._given) <= few]
            if others:
                raise ValueError(
                    f"{path}: {misfits} of {len(self._given)} boxes are not x1 y1 x2 y2 in pixels of their images, and "
                    f"all or nearly all fit as {' or '.join(others)}; set boxes_format to what they are (xyxy if they "
                    "are in pixels as x1 y1 x2 y2 and the others are wrong)"
                )
        if not kept or min(min(size) for _, size in kept) <= _THOUSANDTHS:
            return
        most = max(float(box[-2:].max()) for box, _ in kept)
        if 0.9 * _THOUSANDTHS <= most <= _THOUSANDTHS:
            raise ValueError(
                f"{path}: all boxes end within 1000, {most:g} at most, and all images are larger; set "
                "boxes_format xyxy-1000 if they are thousandths of the image, or xyxy if they are pixels"
            )

    def _fits(self, box: Boxes, size_hw: tuple[int, int], name: str) -> bool:
        """True if a box (4,) or point (2,) may be meant in a format."""
        if _in_fractions(box) != name.endswith("-1"):
            return False
        return (
            _has(self._scaled_point(box, size_hw, name))
            if len(box) == 2
            else is_inside(self._scaled(box[None], size_hw, name)[0])
        )

    def _size(self, size_hw: tuple[int, int], unit: str) -> tuple[float, float]:
        """Height and width of an image in a unit."""
        if unit == RESIZED:
            assert self.resize is not None, "checked when made"
            return self.resize(*size_hw)
        return (UNITS[unit], UNITS[unit]) if unit else size_hw

    def _scaled(self, boxes: Boxes, size_hw: tuple[int, int], name: str | None) -> Boxes:
        order, _, unit = (name or "xyxy").partition("-")
        height, width = self._size(size_hw, unit)
        return ORDERS[order](boxes) / [width, height, width, height]

    def _scaled_point(self, point: Boxes, size_hw: tuple[int, int], name: str | None) -> Boxes:
        order, _, unit = (name or "xyxy").partition("-")
        height, width = self._size(size_hw, unit)
        return (point[::-1] if order == "yxyx" else point) / [width, height]

    def _misfit(self, box: Boxes, size_hw: tuple[int, int]) -> str:
        """What is wrong with a box, and which formats it fits."""
        fitting = [name for name in _WRITTEN if self._fits(box, size_hw, name)]
        hint = f"set boxes_format if it is {' or '.join(fitting)}" if fitting else _REMEDY
        return (
            f"box {box.tolist()} is empty or not inside the image of {size_hw[1]} x {size_hw[0]} pixels as "
            f"{self.format or 'x1 y1 x2 y2 in pixels'}; {hint}"
        )


def is_inside(box: Boxes) -> bool:
    """True for a box (4,) xyxy in [0, 1] that has an area there, and reaches outside by `_OUTSIDE` at most."""
    x1, y1, x2, y2 = box.clip(0, 1)
    return _has(box) and bool(x1 < x2 and y1 < y2)


def _has(places: Boxes) -> bool:
    """True if coordinates lie in [0, 1], but for `_OUTSIDE`."""
    return bool((-_OUTSIDE <= places).all() and (places <= 1 + _OUTSIDE).all())


def _in_fractions(box: Boxes) -> bool:
    """True if a box (4,) or point (2,) looks as one in [0, 1] of its image, and not as one in a larger unit."""
    whole = not (box % 1).any()
    return bool(box.max() <= 1 and len(box) == 4 if whole else box.max() < 2)


def resize_rule(processor: Any) -> Resize | None:
    """The rule by which a model's processor resizes images, asked of the processor itself; None if it has none."""
    images = getattr(processor, "image_processor", None)
    if images is None or not hasattr(images, "merge_size") or not hasattr(images, "patch_size"):
        return None
    known: dict[tuple[int, int], tuple[int, int]] = {}

    def resize(height: int, width: int) -> tuple[int, int]:
        if (height, width) not in known:
            grid = images(images=Image.new("RGB", (width, height)), return_tensors="np")["image_grid_thw"][0]
            known[height, width] = (int(grid[1]) * images.patch_size, int(grid[2]) * images.patch_size)
        return known[height, width]

    return resize
