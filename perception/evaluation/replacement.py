"""Does a model use the perception it draws? Its spans are replaced, and the answer read again.

Every chain is begun for the model: with the true spans, with another image's, with the true ones shuffled, or with
random ones. A model that reasons over its tokens gains from the first and loses from the others.
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
    """Depth codes in random order; for boxes the locations, sorted back into valid boxes: their number is kept."""
    codes = rng.permutation(np.array(span.codes, dtype=int))
    if span.modality == "boxes" and len(codes):
        corners = codes.reshape(-1, 2, 2)
        codes = np.sort(corners, axis=1).reshape(-1)
    return Span(span.modality, tuple(codes.tolist()))


def forced_chains(model: PerceptionModel, items: Sequence[Item], intervention: str, seed: int = 0) -> list[list[int]]:
    """Ids each item's answer is begun with: the replaced span.

    Raises ValueError for an unknown intervention.
    """
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
