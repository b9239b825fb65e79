"""Held-out questions about photographs, answered as the teacher models have it."""

from __future__ import annotations

import numpy as np

from perception.datasets.photo_questions import (
    count_of,
    photo_absent_question,
    photo_count_question,
    photo_depth_question,
)
from perception.datasets.photographs import Photographs, PhotoScene
from perception.evaluation.scenes import DEPTH_COUNTS, Item
from perception.scenes.questions import CountQuestion

_NO_BOXES, _NO_POINTS = np.zeros((0, 4), np.float32), np.zeros((0, 2), np.float32)


def photo_items(
    photos: Photographs,
    size: int,
    seed: int = 0,
    each: int | None = None,
    farthest: bool = False,
    published: bool = False,
) -> list[Item]:
    """Make a counting question, and a depth question for each of 2 to 5 points, about every photograph.

    Markers are drawn in styles taken at random. A photograph without room for a number of points has no such question,
    nor has one whose kinds of things are all unsure a counting question.

    Args:
        size: side that photographs are resized to, in pixels.
        each: most questions of each kind; None: as many as photographs.
        farthest: ask which of three points is farthest as well (group "farthest").
        published: draw all markers as BLINK and HardBLINK do.
    """
    items: list[Item] = []
    for index in range(len(photos) if each is None else min(each, len(photos))):
        rng = np.random.default_rng((seed, index))
        scene = photos.scene(index, size)
        asked = photo_count_question(photos, scene, rng)
        if asked is not None:
            items.append(_count_item(scene, asked))
        wanted = [(f"depth-{count}", count, False) for count in DEPTH_COUNTS]
        for group, count, far in [*wanted, *([("farthest", 3, True)] if farthest else [])]:
            q = photo_depth_question(scene, rng, count, far, published=published)
            if q is not None:
                items.append(Item(group, "depth", scene, q.image, q.text, q.answer, _NO_BOXES, q.points_xy, q.nearness))
    return items


def kind_items(photos: Photographs, size: int) -> list[Item]:
    """Ask of every photograph how many things there are of each kind that it surely shows, and of one that is absent.

    Args:
        size: as in `photo_items`.
    """
    items: list[Item] = []
    for index in range(len(photos)):
        scene = photos.scene(index, size)
        for kind in sorted({item.shape for item in scene.objects} - scene.unsure):
            items.append(_count_item(scene, count_of(scene, kind)))
        absent = photo_absent_question(photos, scene, np.random.default_rng((0, index)))
        if absent is not None:
            items.append(_count_item(scene, absent))
    return items


def _count_item(scene: PhotoScene, asked: CountQuestion) -> Item:
    return Item("count", "count", scene, scene.image, asked.text, asked.answer, asked.boxes_xyxy, _NO_POINTS)
