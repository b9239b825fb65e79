"""Small bound vocabularies, and sequences that a grammar draws from random logits."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import SpanLogitsProcessor
from perception.vocabulary.names import PerceptionVocabulary

EOS = 2
NUM_TEXT = 32
SETTINGS: list[dict[str, Any]] = [
    {},
    {"allow": ("depth",)},
    {"allow": ("boxes",), "max_boxes": 2},
    {"allow": ("boxes", "points"), "max_points": 1, "interleave": True},
    {"ordered_boxes": False},
    {"allow": (), "interleave": True},
    {"max_boxes": 0},
    {"allow": ("points", "masks")},
]


def bound(**settings: Any) -> PerceptionVocabulary:
    """A vocabulary whose ids stand in no order after 32 ids of text."""
    vocabulary = PerceptionVocabulary(**settings)
    ids = list(range(NUM_TEXT, NUM_TEXT + len(vocabulary.tokens)))
    random.Random(0).shuffle(ids)
    return PerceptionVocabulary(**settings, ids=dict(zip(vocabulary.tokens, ids, strict=True)))


SMALL = bound(depth_codes=8, depth_grid=(2, 3), num_locations=12)
MASKED = bound(depth_codes=8, depth_grid=(2, 3), num_locations=12, mask_codes=5, mask_length=3)
"""SMALL with masks of a box and three codes"""


def random_decodes(
    grammar: SpanGrammar, batch: int, max_length: int, seed: int = 0, prompt: Tensor | None = None, spare: int = 7
) -> list[list[int]]:
    """Sequences sampled from random logits that favour STARTs and codes, as long as max_length or up to EOS."""
    vocabulary = grammar.vocabulary
    size = NUM_TEXT + len(vocabulary.tokens) + spare
    generator = torch.Generator().manual_seed(seed)
    processor = SpanLogitsProcessor(grammar, max_length=max_length)
    bias = torch.zeros(size)
    bias[[vocabulary.start_id(m) for m in vocabulary.modalities]] = 2.0
    bias[EOS] = -1.0
    ids = torch.zeros(batch, 0, dtype=torch.long) if prompt is None else prompt
    done = torch.zeros(batch, dtype=torch.bool)
    while ids.shape[1] < max_length and not done.all():
        noise = -torch.empty(batch, size).exponential_(generator=generator).log_()  # Gumbel: argmax samples
        chosen = (processor(ids, torch.zeros(batch, size)) + bias + noise).argmax(-1)
        ids = torch.cat([ids, torch.where(done, 0, chosen)[:, None]], 1)
        done |= chosen == EOS
    return ids.tolist()


# The processor
