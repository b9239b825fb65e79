"""Held-out questions about rendered scenes, and scoring a model's answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.chains import Answer, prompt_for
from perception.datasets.progress import Progress
from perception.model.perception_model import PerceptionModel, Prompt, Read
from perception.scenes.questions import count_question, depth_question
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from vqvae import VQVAE
from vqvae.metrics import values_at

HELD_OUT_SEED = 50_000_000
"""First seed of held-out scenes; training uses seeds from 0"""
DEPTH_COUNTS = (2, 3, 4, 5)
_RENDER = 32


@dataclass(frozen=True)
class Item:
    """One question about a scene, with its answer."""

    group: str
    """"count", or "depth-2" to "depth-5" by the number of points"""
    kind: str
    scene: Scene
    image: Tensor
    question: str
    answer: int | str
    boxes_xyxy: np.ndarray
    points_xy: np.ndarray
    nearness: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """(count,) relative inverse depth at the points"""


def _count_item(scene: Scene, rng: np.random.Generator) -> Item:
    q = count_question(scene, rng)
    return Item("count", "count", scene, scene.image, q.text, q.answer, q.boxes_xyxy, np.zeros((0, 2), np.float32))


def _depth_item(scene: Scene, rng: np.random.Generator, count: int) -> Item | None:
    q = depth_question(scene, rng, count)
    if q is None:
        return None
    boxes = np.zeros((0, 4), np.float32)
    return Item(f"depth-{count}", "depth", scene, q.image, q.text, q.answer, boxes, q.points_xy, q.nearness)


def scene_items(style: str, num_count: int, num_depth: int, first_seed: int = HELD_OUT_SEED) -> list[Item]:
    """Make `num_count` counting questions and `num_depth` depth questions for each of 2 to 5 points, one per scene."""
    rng = np.random.default_rng((first_seed, len(style)))
    makers: list[Callable[[Scene], Item | None]] = [lambda scene: _count_item(scene, rng)] * num_count
    for count in DEPTH_COUNTS:
        makers += [lambda scene, count=count: _depth_item(scene, rng, count)] * num_depth  # type: ignore[misc]
    items: list[Item] = []
    seed = first_seed
    while len(items) < len(makers):
        batch = render_scenes(range(seed, seed + _RENDER), style)
        for index in range(_RENDER):
            made = makers[len(items)](Scene.from_batch(batch, index)) if len(items) < len(makers) else None
            if made is not None:
                items.append(made)
        seed += _RENDER
    return items


@dataclass(frozen=True)
class ScoredAnswer:
    """A model's answer to one item."""

    group: str
    correct: bool
    answer: Answer


def evaluate_items(
    model: PerceptionModel,
    items: Sequence[Item],
    mode: str,
    forced: Sequence[Sequence[int]] | None = None,
    batch_size: int = 50,
    title: str = "",
    read: Read | None = None,
    points_given: bool = False,
    **settings: Any,
) -> list[ScoredAnswer]:
    """Ask every item in a mode and score the final answers; returns them in the items' order.

    Args:
        mode: "chain" or "direct".
        forced: ids that each answer must begin with, or None.
        read: who reads the drawn maps, as in `PerceptionModel.ask`.
        points_given: tell where the points are, as `PerceptionModel.ask` does with its `points`.
        settings: of `PerceptionModel.answer`, such as max_new_tokens.
    """
    prompts = [
        Prompt(
            item.image,
            prompt_for(item.question, mode)[0],
            item.kind,
            tuple(forced[i]) if forced else (),
            tuple((float(x), float(y)) for x, y in item.points_xy) if points_given else (),
        )
        for i, item in enumerate(items)
    ]
    order = sorted(range(len(items)), key=lambda i: (items[i].kind, items[i].group, len(prompts[i].forced)))
    outcomes: dict[int, ScoredAnswer] = {}
    with Progress(title or f"answering ({mode})", len(items)) as progress:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            answers = model.answer([prompts[i] for i in rows], read=read, **settings)
            for i, answer in zip(rows, answers, strict=True):
                outcomes[i] = ScoredAnswer(items[i].group, answer.value == items[i].answer, answer)
            progress.advance(len(rows))
    return [outcomes[i] for i in range(len(items))]


def depth_tokenizer_of(model: PerceptionModel) -> VQVAE:
    """Return a model's depth tokenizer. Raises ValueError where it has none."""
    tokenizer: VQVAE | None = model.depth_tokenizer
    if tokenizer is None:
        raise ValueError("the model has no depth tokenizer, so its maps cannot be read; add its depth_tokenizer folder")
    return tokenizer


def map_order_accuracy(
    model: PerceptionModel, items: Sequence[Item], outcomes: Sequence[ScoredAnswer]
) -> dict[str, float]:
    """Share of depth items whose drawn map, decoded, is nearest at the right point, by group (AURORA's measure)."""
    hits: dict[str, list[bool]] = {}
    for item, outcome in zip(items, outcomes, strict=True):
        drawn = [s for s in outcome.answer.spans if s.modality == "depth"]
        if item.kind != "depth" or not drawn:
            continue
        with torch.no_grad():
            near = depth_tokenizer_of(model).decode(torch.tensor(drawn[-1].codes)[None])  # (1, S, S)
        at_points = values_at(near, torch.from_numpy(item.points_xy)[None])[0]  # (count,)
        hits.setdefault(item.group, []).append(POINT_LETTERS[int(at_points.argmax())] == item.answer)
    return {group: float(np.mean(values)) for group, values in hits.items()}
