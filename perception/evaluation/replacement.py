"""The Token Replacement Test: does a model use the perception that it draws?

The span that begins an answer is replaced by the true one, by another image's, by the true one shuffled, or by a random
one, and the model writes the rest. A model that reasons over its tokens gains from the first and loses from the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from perception.evaluation.scenes import Item, depth_tokenizer_of
from perception.model.perception_model import PerceptionModel
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span

INTERVENTIONS = ("oracle", "other image", "shuffled", "random")


def true_span(model: PerceptionModel, item: Item) -> Span:
    """The span a perfect model would draw: the depth map of the scene, or the boxes of what is counted."""
    if item.kind == "count":
        return Span("boxes", tuple(BoxTokenizer(model.vocabulary.num_locations).encode(item.boxes_xyxy)))
    with torch.no_grad():
        tokenizer = depth_tokenizer_of(model)
        codes = tokenizer.to_sequence(tokenizer.encode(item.scene.depth[None]))  # (1, h*w)
    return Span("depth", tuple(codes[0].tolist()))


def _random_span(model: PerceptionModel, kind: str, rng: np.random.Generator) -> Span:
    if kind == "count":
        count, bins = int(rng.integers(0, 13)), model.vocabulary.num_locations
        corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)  # x1 y1 x2 y2
        return Span("boxes", tuple(BoxTokenizer(bins).encode(corners)))
    h, w = model.vocabulary.depth_grid
    return Span("depth", tuple(rng.integers(model.vocabulary.depth_codes, size=h * w).tolist()))


def _shuffled(span: Span, rng: np.random.Generator) -> Span:
    """Depth codes in random order; for boxes their locations in random order, sorted into as many valid boxes."""
    codes = rng.permutation(np.array(span.codes, dtype=int))
    if span.modality == "boxes" and len(codes):
        corners = codes.reshape(-1, 2, 2)
        codes = np.sort(corners, axis=1).reshape(-1)
    return Span(span.modality, tuple(codes.tolist()))


def forced_chains(model: PerceptionModel, items: Sequence[Item], intervention: str, seed: int = 0) -> list[list[int]]:
    """Ids of the replaced span that each item's answer begins with. Raises ValueError for an unknown intervention."""
    if intervention not in INTERVENTIONS:
        raise ValueError(f"unknown intervention {intervention!r}; known ones: {', '.join(INTERVENTIONS)}")
    rng = np.random.default_rng(seed)
    spans = [true_span(model, item) for item in items]
    if intervention == "other image":
        for kind in {item.kind for item in items}:
            rows = [i for i, item in enumerate(items) if item.kind == kind]
            moved = [spans[i] for i in rows[1:] + rows[:1]]
            for i, span in zip(rows, moved, strict=True):
                spans[i] = span
    elif intervention == "shuffled":
        spans = [_shuffled(span, rng) for span in spans]
    elif intervention == "random":
        spans = [_random_span(model, item.kind, rng) for item in items]
    return [model.vocabulary.span_ids(span) for span in spans]
