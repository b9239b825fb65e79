"""Photographs with labels of teacher models as a source of rows, with the tasks of rendered scenes.

Every image is a random part of a photograph or of its mirror image, and its depth codes are made anew. Markers are
drawn in many ways. Photographs that show several things of a kind are few, so for tasks that count they are preferred,
and some images are put together from two or four photographs of things of one kind. A photograph with an answer to
learn from stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image

from perception import chains
from perception.chains import Example
from perception.datasets.photo_questions import draw_things, photo_count_question, photo_depth_question
from perception.datasets.photographs import Photographs, PhotoScene, Window
from perception.scenes.questions import CountQuestion, DepthQuestion, boxes_of
from perception.vocabulary.names import PerceptionVocabulary
from train.data.curriculum import CurriculumConfig
from train.data.scenes import COUNTS, SceneRows, TaskMaker, happens
from vqvae import VQVAE

FARTHEST = 0.4
"""Share of questions about depth that ask for the farthest point"""
_TOGETHER = 0.4
"""Share of the images of counting tasks that are put together from several photographs"""
_GRIDS = ((1, 2), (2, 1), (2, 2), (2, 2))
"""Rows and columns in which they are, each as likely"""
_SINGLE, _EMPTY = 0.35, 0.1
"""Shares of images without two things of a kind, and without any thing, that are kept at once"""
_TRIES = 5  # images that are looked at
_BANK = 512  # photographs whose maps mosaics are made of


@dataclass(frozen=True)
class PhotosConfig:
    """Photographs with labels of teacher models to train on."""

    folder: str = ""
    """folder of photographs, depth maps and boxes (docs/data.md shows the layout); empty: none"""
    image_size: int = 320
    """side that images are resized to before markers are drawn, in pixels"""
    answers: int = 0
    """number of photographs with an answer to learn from, as of rendered scenes; 0: all, asked anew each time"""
    views: str = ""
    """folder of views that train.photo_tower stored (RUN_DIR/views): the language model then learns from these alone,
    without a pass through the tower, which must be frozen. Empty: a new part of a photograph each time"""

    def __post_init__(self) -> None:
        if self.answers < 0:
            raise ValueError(f"photos.answers must not be negative, got {self.answers}; 0 asks all anew each time")
        if self.image_size < 64:
            raise ValueError(f"photos.image_size must be at least 64 for readable markers, got {self.image_size}")
        if self.views and self.answers:
            raise ValueError(
                f"photos.answers ({self.answers}) are about whole photographs, and photos.views are parts of them; "
                "leave one out"
            )

    def build(self) -> Photographs:
        """Open the part of the folder to train on. Raises ValueError if it has fewer photographs than answers."""
        photos = Photographs(self.folder)
        if self.answers > len(photos):
            raise ValueError(f"photos.answers is {self.answers}, and {self.folder} has {len(photos)} to train on")
        return photos


@dataclass(frozen=True)
class PhotoTaskMaker(TaskMaker[PhotoScene]):
    """Maker of task examples from photographs."""

    photos: Photographs

    def boxes(self, scene: PhotoScene, rng: np.random.Generator) -> Example | None:
        drawn = draw_things(self.photos, scene, rng)
        if drawn is None:
            return None
        things, items = drawn
        return chains.atomic_boxes(things, self._span(boxes_of(items)))

    def count_question(self, scene: PhotoScene, rng: np.random.Generator) -> CountQuestion | None:
        return photo_count_question(self.photos, scene, rng)

    def depth_question(self, scene: PhotoScene, rng: np.random.Generator, count: int | None) -> DepthQuestion | None:
        """Ask which point is nearest, or sometimes, where an answer is wanted (`count` None), which is farthest."""
        return photo_depth_question(scene, rng, count, count is None and rng.random() < FARTHEST)


@dataclass(frozen=True)
class PhotoRows(SceneRows):
    """Rows from photographs."""

    image_size: int = 320

    def scene(
        self, task: str, index: int, mirrored: int, whole: bool, rng: np.random.Generator
    ) -> tuple[PhotoScene, np.ndarray]:
        if task in COUNTS and not whole:
            return self._to_count(index, mirrored, rng), self.codes[0, 0]  # codes that no such task reads
        window = Window() if whole else Window.draw(rng)
        scene = self.store.scene(index, self.image_size, window, bool(mirrored))
        return scene, codes_of(self.maker.tokenizer, scene.depth[None])[0]

    def _to_count(self, index: int, mirrored: int, rng: np.random.Generator) -> PhotoScene:
        """Return a part of a photograph, or parts of several, mostly with more than one thing of a kind."""
        for _ in range(_TRIES):
            grid = _GRIDS[int(rng.integers(len(_GRIDS)))] if happens(_TOGETHER, rng) else (1, 1)
            seed = int(rng.integers(2**32))
            scene = self._together(index, mirrored, grid, seed, 0)
            shown = [item.shape for item in scene.objects if item.shape not in scene.unsure]
            if len(set(shown)) < len(shown) or happens(_SINGLE if shown else _EMPTY, rng):
                break
            index, mirrored = int(rng.integers(len(self.store))), int(rng.integers(2))
        return self._together(index, mirrored, grid, seed, self.image_size)

    def _together(self, index: int, mirrored: int, grid: tuple[int, int], seed: int, size: int) -> PhotoScene:
        """Return parts of photographs in rows and columns, all of which show one kind of things that the first does; a
        size of 0 leaves the pixels out."""
        rng = np.random.default_rng(seed)
        alike, parts = self.store.showing(index, rng), []
        for _ in range(grid[0] * grid[1]):
            window = Window.draw(rng) if grid[0] == grid[1] else _half(Window.draw(rng), grid, rng)
            parts.append(self.store.scene(index, size, window, bool(mirrored)))
            index, mirrored = int(alike[int(rng.integers(len(alike)))]), int(rng.integers(2))
        return parts[0] if len(parts) == 1 else in_grid(parts, grid, size)


def _half(window: Window, grid: tuple[int, int], rng: np.random.Generator) -> Window:
    """Return a random half of a window, upright for one row of two columns, else lying."""
    at = float(rng.uniform(0, 0.5))
    width, height = window.x2 - window.x1, window.y2 - window.y1
    if grid == (1, 2):
        return replace(window, x1=window.x1 + at * width, x2=window.x1 + (at + 0.5) * width)
    return replace(window, y1=window.y1 + at * height, y2=window.y1 + (at + 0.5) * height)


def in_grid(parts: Sequence[PhotoScene], grid: tuple[int, int], size: int) -> PhotoScene:
    """Put images together in rows and columns, in one image of `size` pixels, for tasks of counting: the map of depth
    and the numbers of the pixels' things are those of the first.

    A kind that is unsure in one is unsure in all.
    """
    rows, columns = grid
    whole = Image.new("RGB", (max(1, size), max(1, size)))
    objects = []
    for number, part in enumerate(parts):
        row, column = divmod(number, columns)
        left, top = column * size // columns, row * size // rows
        right, bottom = (column + 1) * size // columns, (row + 1) * size // rows
        if size:
            image = Image.fromarray(part.image.numpy())
            whole.paste(image.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
        for item in part.objects:
            x1, y1, x2, y2 = item.box_xyxy
            box = ((column + x1) / columns, (row + y1) / rows, (column + x2) / columns, (row + y2) / rows)
            objects.append(replace(item, box_xyxy=box))
    objects.sort(key=lambda item: (item.box_xyxy[1], item.box_xyxy[0]))
    unsure = frozenset().union(*(part.unsure for part in parts))
    return replace(parts[0], image=torch.from_numpy(np.array(whole)), objects=objects, unsure=unsure)


def codes_of(tokenizer: VQVAE, depth: torch.Tensor) -> np.ndarray:
    """Return the codes (B, h * w) of depth maps (B, H, W)."""
    return tokenizer.to_sequence(tokenizer.encode(depth)).numpy().astype(np.int16)


def photo_rows(
    config: PhotosConfig,
    vocabulary: PerceptionVocabulary,
    tokenizer: VQVAE,
    curriculum: CurriculumConfig,
    arm: str,
    steps: int,
    seed: int,
) -> PhotoRows:
    """Build the rows of a run from photographs."""
    photos = config.build()
    maker = PhotoTaskMaker(vocabulary, tokenizer, photos)
    bank = []
    for index in range(min(_BANK, len(photos))):
        near = torch.from_numpy(photos.nearness(index))[None]
        bank.append(codes_of(tokenizer, 1 / near.clamp_min(0.02)))
    codes = np.concatenate(bank)[None]  # (1, N, h * w)
    return PhotoRows(photos, codes, maker, curriculum, arm, steps, seed, config.answers, config.image_size)
