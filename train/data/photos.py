"""Photographs with labels of teacher models as a source of rows, with the tasks of rendered scenes.

Every image is a random part of a photograph or of its mirror image, and its depth codes are made anew. Markers are
drawn in many ways. A photograph with an answer to learn from stays whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from perception import chains
from perception.chains import Example
from perception.datasets.photo_questions import draw_things, photo_count_question, photo_depth_question
from perception.datasets.photographs import Photographs, PhotoScene, Window
from perception.scenes.questions import CountQuestion, DepthQuestion, boxes_of
from perception.vocabulary.names import PerceptionVocabulary
from train.data.curriculum import CurriculumConfig
from train.data.scenes import SceneRows, TaskMaker
from vqvae import VQVAE

FARTHEST = 0.4
"""Share of questions about depth that ask for the farthest point"""
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
    weak_boxes: bool = False
    """learn from boxes of the teacher with a score of 0.3 too, and ask about kinds with weaker ones: more than twice as
    many lists of several things, some of them wrong, and more questions about absent kinds. Held-out questions stay
    with the sure ones (0.4)"""
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
        photos = Photographs(self.folder, weak_boxes=self.weak_boxes)
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

    def scene(self, index: int, mirrored: int, whole: bool, rng: np.random.Generator) -> tuple[PhotoScene, np.ndarray]:
        window = Window() if whole else Window.draw(rng)
        scene = self.store.scene(index, self.image_size, window, bool(mirrored))
        return scene, codes_of(self.maker.tokenizer, scene.depth[None])[0]


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
