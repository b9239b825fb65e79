"""Questions about photographs with depth maps and boxes of teacher models."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.datasets.marking import mark
from perception.datasets.photographs import Photographs, PhotoScene
from perception.datasets.plurals import plural
from perception.scenes.markers import choose_markers, marker_nearness
from perception.scenes.questions import CountQuestion, DepthQuestion, boxes_of, depth_text
from perception.scenes.render import SceneObject
from perception.scenes.scene import Scene

_ABSENT = 0.15  # share of counting questions about a kind that is absent, where an image shows one
_ABSENT_WEAK = 0.4  # .. where weak boxes are learned from, so that not all that is faintly like a thing is drawn


def draw_things(
    photos: Photographs, scene: PhotoScene, rng: np.random.Generator
) -> tuple[str, list[SceneObject]] | None:
    """Draw a kind to ask about, mostly one in the image, sometimes an absent one; None if all are unsure.

    Returns:
        The plural of the kind, and the things of it.
    """
    kind = _draw_kind(photos, scene, rng)
    return None if kind is None else (plural(kind), [item for item in scene.objects if item.shape == kind])


def _draw_kind(photos: Photographs, scene: PhotoScene, rng: np.random.Generator) -> str | None:
    present = sorted({item.shape for item in scene.objects} - scene.unsure)
    if not present or rng.random() < (_ABSENT_WEAK if photos.weak_boxes else _ABSENT):
        kind = _draw_absent(photos, scene, rng)
        if kind is not None or not present:
            return kind
    return present[int(rng.integers(len(present)))]


def _draw_absent(photos: Photographs, scene: PhotoScene, rng: np.random.Generator) -> str | None:
    here = scene.unsure | {item.shape for item in scene.objects}
    weights = np.where([name in here for name in photos.kinds], 0, photos.weights)
    return photos.kinds[int(rng.choice(len(photos.kinds), p=weights / weights.sum()))] if weights.any() else None


def photo_count_question(photos: Photographs, scene: PhotoScene, rng: np.random.Generator) -> CountQuestion | None:
    """Ask how many things of a kind there are, zero included; None if it is unsure of every kind."""
    kind = _draw_kind(photos, scene, rng)
    return None if kind is None else count_of(scene, kind)


def photo_absent_question(photos: Photographs, scene: PhotoScene, rng: np.random.Generator) -> CountQuestion | None:
    """Ask how many things there are of a kind that is absent; None if there may be some of every kind."""
    kind = _draw_absent(photos, scene, rng)
    return None if kind is None else count_of(scene, kind)


def count_of(scene: PhotoScene, kind: str) -> CountQuestion:
    """Ask how many things of a kind there are."""
    items = [item for item in scene.objects if item.shape == kind]
    return CountQuestion(f"How many {plural(kind)} are there?", plural(kind), boxes_of(items), len(items))


def photo_depth_question(
    scene: Scene,
    rng: np.random.Generator,
    count: int | None = None,
    farthest: bool = False,
    *,
    published: bool = False,
) -> DepthQuestion | None:
    """Ask which of `count` marked points (None: 2 to 5 at random) is closest, or farthest; None if the image has no
    room. Markers are drawn in a style taken at random, or in that of published sets."""
    count = int(rng.integers(2, len(POINT_LETTERS) + 1)) if count is None else count
    points = choose_markers(scene, count, rng)
    if points is None:
        return None
    return question_about(
        mark(scene.image, points, rng, published=published), points, marker_nearness(scene.depth, points), farthest
    )


def question_about(image: Tensor, points: np.ndarray, near: np.ndarray, farthest: bool) -> DepthQuestion:
    """Ask about points (count, 2) that are marked in an image (H, W, 3), with their nearness (count,)."""
    text = depth_text(len(near), farthest)
    return DepthQuestion(text, image, points, near, POINT_LETTERS[int((-near if farthest else near).argmax())])
