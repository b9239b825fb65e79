"""Looks at native resolution: the selected cells are cut from the original image and encoded as one more image.

A model sees a large image scaled down. A look at "seen" resolution inserts visual tokens that are in view already; a
look at "native" resolution brings in what scaling lost. The bounding box of the selected cells, padded to a size that
the model reads, is cut from the original; where it does not fit at the original's own resolution, each connected part
of the selection is cut by itself. The tokens over selected cells are inserted, so that regions have any shape, with a
margin of half a cell, as print on a cell's border is cut off without it. A look has a budget of tokens, for which the
margin shrinks first, and then the crop is scaled down.

A crop is named by its image and window. It is encoded once, however often a batch looks at it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perception.geometry.problems import covered_cells
from perception.model.images import ImageLike, load_image

Cells = NDArray[np.bool_]
"""(rows, columns) of an image's visual tokens"""
_MARGINS = (0.5, 0.25, 0.0)
"""Around the selected cells, in cells: the first one that fits the budget at native resolution"""
_ZOOM = 1.25
"""By how much a crop is scaled down until its tokens fit the budget"""


@dataclass(frozen=True)
class CropSizes:
    """Sizes of image that a model reads."""

    token: int
    """Pixels per side of a visual token"""
    grid: tuple[int, int] | None = None
    """(rows, columns) of every image, where all are resized to one square"""
    least: int = 1
    """Smallest number of visual tokens of an image"""
    most: int = 1 << 30
    """Largest number of visual tokens of an image"""


@dataclass(frozen=True)
class Crop:
    """A part of an original image."""

    window: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the original"""
    grid: tuple[int, int]
    """(rows, columns) of its visual tokens"""


@dataclass(frozen=True)
class SeenImage:
    """An original image, and what of it the model sees before any look."""

    image: Image.Image
    grid: tuple[int, int]
    """(rows, columns) of its visual tokens"""
    window: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels, the part that the visual tokens cover"""

    def place(self, cells: Sequence[tuple[int, int]], margin: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
        """Low and high corner (x, y), in pixels, of the bounding box of cells (row, column).

        Args:
            margin: around it, in cells, as far as the image goes.
        """
        found, (x1, y1, x2, y2) = np.array(cells), self.window
        pitch = np.array([(x2 - x1) / self.grid[1], (y2 - y1) / self.grid[0]])
        low, high = found.min(0)[::-1] - margin, found.max(0)[::-1] + 1 + margin
        return (x1, y1) + low.clip(0) * pitch, (x1, y1) + np.minimum(high, self.grid[::-1]) * pitch

    def over(self, crop: Crop, cells: Cells, margin: float = 0.0) -> list[int]:
        """Visual tokens of a crop whose centres lie in selected cells, or that hold a selected cell's centre.

        Args:
            margin: around the selected cells, in cells, counted as one with them.
        """
        (rows, columns), (x1, y1, x2, y2) = crop.grid, crop.window
        (left, top, right, bottom), (height, width) = self.window, self.grid
        x = (x1 + (np.arange(columns) + 0.5) * (x2 - x1) / columns - left) / (right - left) * width
        y = (y1 + (np.arange(rows) + 0.5) * (y2 - y1) / rows - top) / (bottom - top) * height
        padded, steps = np.pad(cells, 1), {-margin, 0.0, margin}  # every cell that the margin reaches
        column, row = (
            [np.floor(places + step + 1e-9).astype(int).clip(-1, most) + 1 for step in steps]
            for places, most in ((x, width), (y, height))
        )
        hit = np.logical_or.reduce([padded[np.ix_(i, j)] for i in row for j in column])  # (rows, columns)
        own_row, own_column = np.nonzero(cells)
        y = (top + (own_row + 0.5) * (bottom - top) / height - y1) / (y2 - y1) * rows
        x = (left + (own_column + 0.5) * (right - left) / width - x1) / (x2 - x1) * columns
        hit[y.astype(int).clip(0, rows - 1), x.astype(int).clip(0, columns - 1)] = True  # cells smaller than a token
        found: list[int] = np.flatnonzero(hit).tolist()
        return found

    def crop(self, part: Sequence[tuple[int, int]], sizes: CropSizes, budget: int) -> _Cut:
        """Cut out the bounding box of cells (row, column), at the highest resolution whose tokens fit the budget."""
        cells = np.zeros(self.grid, dtype=bool)
        cells[tuple(np.array(part).T)] = True
        margins, zoom = list(_MARGINS), 1.0  # pixels of the original per pixel that the model reads
        while True:
            margin = margins[0]
            # A model that reads squares of one size reads what is around the selection anyway.
            low, high = self.place(part, margin if sizes.grid is None else 0.0)
            crop = _window(low, high, self.image.size, sizes, zoom)
            tokens = self.over(crop, cells, margin)
            fits = len(tokens) <= budget and crop.grid[0] * crop.grid[1] <= sizes.most
            if fits or zoom * sizes.token > max(self.image.size):
                break
            if len(margins) > 1:
                del margins[0]
            else:
                zoom *= _ZOOM
        if len(tokens) > budget:  # even the whole image has more
            tokens = [tokens[n] for n in np.linspace(0, len(tokens) - 1, budget).round().astype(int)]
        native = crop.window[2] - crop.window[0] <= crop.grid[1] * sizes.token + 0.5
        return _Cut(crop, tokens, native and zoom == 1)

    def cuts(self, cells: Cells, sizes: CropSizes, budget: int) -> list[_Cut]:
        """The crops of a look: one, or one per connected part of the selection if one alone is scaled down."""
        together = self.crop(list(zip(*np.nonzero(cells), strict=True)), sizes, budget)
        parts = [] if together.native else list(_connected(cells))
        if not 1 < len(parts) <= budget:
            return [together]
        return [self.crop(part, sizes, budget // len(parts)) for part in parts]


@dataclass(frozen=True)
class _Cut:
    crop: Crop
    tokens: list[int]
    """Numbers of the crop's visual tokens that are inserted"""
    native: bool
    """False where the crop is scaled down"""


def _window(low: NDArray[Any], high: NDArray[Any], image_size: tuple[int, int], sizes: CropSizes, zoom: float) -> Crop:
    """The crop around a box from low to high (x, y), padded to a size that the model reads, inside the image."""
    span, limits = high - low, np.array(image_size, dtype=float)
    if sizes.grid is not None:
        rows, columns = sizes.grid
        side = max(float(span.max()), sizes.token * columns * zoom)
        extent = np.array([side, side])
    else:
        columns, rows = (max(1, int(np.ceil(side / (sizes.token * zoom) - 1e-6))) for side in span)
        while rows * columns < sizes.least:
            rows, columns = (rows + 1, columns) if rows < columns else (rows, columns + 1)
        extent = np.array([columns, rows]) * sizes.token * zoom
    extent = np.minimum(extent, limits)
    start = ((low + high - extent) / 2).clip(0, limits - extent)
    x1, y1, x2, y2 = (round(float(place), 3) for place in (*start, *(start + extent)))
    return Crop((x1, y1, x2, y2), (rows, columns))


def _connected(cells: Cells) -> Iterator[list[tuple[int, int]]]:
    """Groups of selected cells (row, column) that touch, at corners too."""
    left = {(int(row), int(column)) for row, column in zip(*np.nonzero(cells), strict=True)}
    while left:
        todo, group = [min(left)], list[tuple[int, int]]()
        left -= set(todo)
        while todo:
            row, column = todo.pop()
            group.append((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        yield sorted(group)


class NativeImages:
    """The original images of a batch of prompts, which its looks are cut from."""

    def __init__(
        self,
        image_processor: Any,
        images: Sequence[Sequence[ImageLike]],
        inputs: Mapping[str, Any],
        image_id: int,
        budget: int = 64,
    ):
        """
        Args:
            image_processor: the model's own, `processor.image_processor`.
            images: the original images of each row, in the prompt's order. One object in several rows is one image.
            inputs: the processor's outputs for the prompts, with the pixels of these images.
            image_id: placeholder of a visual token, `layout.image_id`.
            budget: largest number of visual tokens that a look inserts.

        Raises:
            ValueError: for a bad image, images that are not those of the inputs, a model that does not read an image
                as one grid of visual tokens, or a budget below 1.
        """
        if budget < 1:
            raise ValueError(f"a look must be able to insert at least 1 visual token, got a budget of {budget}")
        ids, name = inputs["input_ids"], type(image_processor).__name__
        if len(images) != len(ids):
            raise ValueError(f"there are {len(ids)} prompts and original images of {len(images)}; give a list per row")
        self.image_processor, self.budget = image_processor, budget
        places: dict[int, int] = {}
        self.rows = [[places.setdefault(id(image), len(places)) for image in row] for row in images]
        """Numbers of each row's images, among the different ones"""
        loaded = {places[id(image)]: load_image(image).copy() for row in images for image in row}
        self._views = 0 if inputs.get("pixel_values") is None else inputs["pixel_values"].ndim
        """5 where a row's images have an axis of their own (Idefics3, SmolVLM)"""
        flat = [loaded[number] for row in self.rows for number in row]
        self._check(inputs, flat)
        grids = self._grids(inputs, (ids == image_id).sum(1).tolist())
        self.sizes = _sizes_of(image_processor, inputs, grids)
        seen = [_seen_window(image_processor, image.size) for image in flat]
        numbers = [number for row in self.rows for number in row]
        self.images = {
            number: SeenImage(image, grid, window)
            for number, image, grid, window in zip(numbers, flat, grids, seen, strict=True)
        }
        for one in self.images.values():
            (rows, columns), (width, height) = one.grid, one.image.size
            if width <= columns * self.sizes.token and height <= rows * self.sizes.token:
                warnings.warn(
                    f"an image of {width} x {height} pixels is seen whole ({name} makes it {columns * self.sizes.token}"
                    f" x {rows * self.sizes.token}), so looks at native resolution bring in nothing new",
                    stacklevel=2,
                )

    def _check(self, inputs: Mapping[str, Any], flat: Sequence[Image.Image]) -> None:
        """Raise ValueError where the inputs were not made of these images, as the processor makes them."""
        pixels, name = inputs.get("pixel_values"), type(self.image_processor).__name__
        if pixels is None:
            if flat:
                raise ValueError("looks at native resolution need the processor's whole outputs, got no pixel_values")
            return
        if "image_sizes" in inputs or (self._views == 5 and pixels.shape[1] > max(len(row) for row in self.rows)):
            raise ValueError(
                f"{name} reads an image in tiles, whose visual tokens form no grid over it; looks at native resolution "
                "need one view per image: do_image_splitting=False (SmolVLM, Idefics3), or LLaVA-1.5 or Qwen-VL"
            )
        made = self._read(flat)["pixel_values"] if flat else pixels[:0]
        given = pixels
        if self._views == 5:
            made = made[0] if flat else made.flatten(0, 1)
            given = torch.cat([pixels[n, : len(row)] for n, row in enumerate(self.rows)])
        if made.shape != given.shape or not torch.allclose(made.float(), given.float().to(made.device), atol=0.05):
            raise ValueError(
                f"the original images give {name} other pixels than the prompts hold: an image was changed after the "
                "question, or is not the one that was asked about; make the inputs and pass the images again"
            )

    def _read(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        given = [list(images)] if self._views == 5 else list(images)
        return dict(self.image_processor(images=given, return_tensors="pt"))

    def _grids(self, inputs: Mapping[str, Any], counts: Sequence[int]) -> list[tuple[int, int]]:
        """(rows, columns) of every row's images, one row after another."""
        thw = inputs.get("image_grid_thw")
        if thw is not None:
            merge = self.image_processor.merge_size
            return [(int(height) // merge, int(width) // merge) for _, height, width in thw.tolist()]
        grids = []
        for row, count in zip(self.rows, counts, strict=True):
            side = int(np.sqrt(count / max(1, len(row))) + 0.5)
            if side * side * len(row) != count:
                raise ValueError(
                    f"{type(self.image_processor).__name__} reads {len(row)} images as {count} visual tokens, which "
                    "form no square grids; looks at native resolution need one grid per image"
                )
            grids += [(side, side)] * len(row)
        return grids

    def tokens_of(self, row: int, boxes_xyxy: NDArray[Any]) -> tuple[int, ...]:
        """Visual tokens of a row over boxes (n, 4) in [0, 1] of its image, for a `Look`.

        Raises:
            ValueError: where the row has not one image, so that boxes would be of an unknown one.
        """
        if len(self.rows[row]) != 1:
            raise ValueError(
                f"row {row} has {len(self.rows[row])} images, and boxes do not say which one they are in; zoom to "
                "boxes with one image per row"
            )
        seen = self.images[self.rows[row][0]]
        low, high = np.array(seen.window[:2] * 2), np.array(seen.window[2:] * 2)
        inside = ((boxes_xyxy * (seen.image.size * 2) - low) / (high - low)).clip(0, 1)
        return covered_cells([tuple(box) for box in inside.tolist()], seen.grid)

    def cuts(self, row: int, tokens: Sequence[int]) -> Iterator[tuple[int, _Cut]]:
        """What a look cuts out: numbers of images, and crops of them with the tokens that are inserted.

        Args:
            tokens: the look's visual tokens, numbered over the images of the row.
        """
        touched, first = list[tuple[int, Cells]](), 0
        for image in self.rows[row]:
            rows, columns = self.images[image].grid
            own = [token - first for token in tokens if first <= token < first + rows * columns]
            first += rows * columns
            if own:
                cells = np.zeros(rows * columns, dtype=bool)
                cells[own] = True
                touched.append((image, cells.reshape(rows, columns)))
        for image, cells in touched:
            for cut in self.images[image].cuts(cells, self.sizes, max(1, self.budget // len(touched))):
                yield image, cut

    def picture(self, image: int, crop: Crop) -> Image.Image:
        """A crop of an image in the size that the model reads."""
        size = crop.grid[1] * self.sizes.token, crop.grid[0] * self.sizes.token
        return self.images[image].image.resize(size, Image.Resampling.BICUBIC, crop.window)

    def pictures(self, row: int, tokens: Sequence[int]) -> tuple[Image.Image, ...]:
        """The crops of a look, as `cuts`, in the size that the model reads."""
        return tuple(self.picture(image, cut.crop) for image, cut in self.cuts(row, tokens))

    def seen(self, row: int) -> Image.Image:
        """A row's first image as the model sees it before any look: that part of it, in that size."""
        number = self.rows[row][0]
        one = self.images[number]
        return self.picture(number, Crop(one.window, one.grid))

    def new_crops(self) -> NativeCrops:
        """Start a batch of chains over these images."""
        return NativeCrops(self)

    def repeated(self, times: int) -> NativeImages:
        """The images of a batch in which every row is repeated `times` times; none is read again."""
        more = copy.copy(self)
        more.rows = [row for row in self.rows for _ in range(times)]
        return more

    def __len__(self) -> int:
        return len(self.rows)


def _sizes_of(image_processor: Any, inputs: Mapping[str, Any], grids: Sequence[tuple[int, int]]) -> CropSizes:
    if inputs.get("image_grid_thw") is not None:
        token = int(image_processor.patch_size) * int(image_processor.merge_size)
        least, most = (int(image_processor.size[name]) for name in ("shortest_edge", "longest_edge"))
        return CropSizes(token, None, -(-least // token**2), max(1, most // token**2))
    if not grids:
        return CropSizes(1, (1, 1))
    return CropSizes(int(inputs["pixel_values"].shape[-1]) // grids[0][0], grids[0])


def _seen_window(image_processor: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Part of an image that its visual tokens cover: all of it, or its middle where the processor crops."""
    width, height = size
    if not getattr(image_processor, "do_center_crop", False):
        return 0.0, 0.0, float(width), float(height)
    cropped, scaled = image_processor.crop_size, image_processor.size
    side = min(size) * cropped["height"] / scaled["shortest_edge"]
    return (width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2


class NativeCrops:
    """The crops that the looks of a batch of chains have taken so far."""

    def __init__(self, images: NativeImages):
        self.images = images
        self._starts: dict[tuple[int, Crop], int] = {}
        self._new: list[tuple[int, Crop]] = []
        self.count = 0
        """Number of visual tokens of all crops"""

    def numbers(self, row: int, tokens: Sequence[int]) -> list[int]:
        """Numbers, among the visual tokens of all crops, of those that a look inserts.

        Args:
            tokens: the look's visual tokens, numbered over the images of the row.
        """
        found = list[int]()
        for image, cut in self.images.cuts(row, tokens):
            key = (image, cut.crop)
            if key not in self._starts:
                self._starts[key] = self.count
                self._new.append(key)
                self.count += cut.crop.grid[0] * cut.crop.grid[1]
            found += [self._starts[key] + token for token in cut.tokens]
        return found[: self.images.budget]

    def take(self) -> dict[str, Tensor]:
        """The image processor's outputs for all crops that were added since the last call; empty if there are none.

        Raises:
            ValueError: where the processor reads a crop as another number of visual tokens than planned.
        """
        new, self._new = self._new, []
        if not new:
            return {}
        made = self.images._read([self.images.picture(image, crop) for image, crop in new])
        thw, merge = made.get("image_grid_thw"), getattr(self.images.image_processor, "merge_size", 1)
        planned = [(1, crop.grid[0] * merge, crop.grid[1] * merge) for _, crop in new]
        if thw is not None and [tuple(one) for one in thw.tolist()] != planned:
            raise ValueError(
                f"{type(self.images.image_processor).__name__} reads crops as grids {thw.tolist()} of patches, "
                f"expected {planned}; do_resize must be on, and its pixel limits those of the model"
            )
        return made
