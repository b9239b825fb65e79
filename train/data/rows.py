"""Rows of a batch: one task on one image each, from examples to ids, labels and weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception import chains
from perception.chains import ChatPrompt, Example, encode_target
from perception.vocabulary.names import PerceptionVocabulary
from train.base import IGNORE, collate

MOST_NOISE = 0.5
"""At most this share of the codes of a noisy map is random."""
SHOWN_GAP = 3
"""Of 99, what the nearest marker of a foreign or noisy map must lead by"""
Encoded = tuple[list[int], list[int], list[float]]
"""Ids and labels of a row, and the weight of each token of its target"""


@dataclass(frozen=True)
class TokenWeights:
    """Weights of target tokens in the loss. A depth map has a hundred codes and an answer one letter."""

    depth: float = 0.4
    location: float = 1.0
    text: float = 1.0


@dataclass(frozen=True)
class TaskRow:
    """A sample before it is encoded."""

    image: Tensor | None
    """(H, W, 3) uint8; None where the image inputs are made apart"""
    example: Example
    shown: np.ndarray | None
    """depth codes that the model reads where `example` has those it shall draw"""
    foreign: bool
    """whether the map is another image's, and so not to be learned"""


def happens(share: float, rng: np.random.Generator) -> bool:
    return share > 0 and bool(rng.random() < share)


def noisy_codes(codes: np.ndarray, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    """Codes (h * w,), up to `MOST_NOISE` of them random."""
    hit = rng.random(codes.shape) < rng.random() * MOST_NOISE
    return np.where(hit, rng.integers(codebook_size, size=codes.shape), codes)


@dataclass(frozen=True)
class RowEncoder:
    """What it takes to encode a row."""

    vocabulary: PerceptionVocabulary
    text_tokenizer: Any
    prompt: ChatPrompt
    weights: TokenWeights

    def encode(self, row: TaskRow, head_ids: Sequence[int]) -> Encoded:
        """`head_ids`: of the prompt up to the question, image tokens expanded."""
        vocabulary, example = self.vocabulary, row.example
        head = list(head_ids) + self.prompt.tail_ids(self.text_tokenizer, vocabulary, example.question)
        tail = [*encode_target(self.text_tokenizer, vocabulary, example.target), self.text_tokenizer.eos_token_id]
        depth_ids = vocabulary.code_ids("depth")
        depth, locations = set(depth_ids), set(vocabulary.code_ids("boxes"))
        of_map = 0.0 if row.foreign else self.weights.depth
        of_place = 0.0 if example.task == chains.ATOMIC_READINGS else self.weights.location  # random, not to be learned
        weight = [of_map if i in depth else of_place if i in locations else self.weights.text for i in tail]
        read = tail
        if row.shown is not None:
            shown = iter(row.shown.tolist())
            read = [depth_ids[next(shown)] if i in depth else i for i in tail]
        return head + read, [IGNORE] * len(head) + tail, weight

    def batch(
        self, rows: Sequence[Encoded], tasks: Sequence[str], images: dict[str, Tensor]
    ) -> list[dict[str, Tensor]]:
        """Two halves of like length, so that short rows are not padded to the length of depth maps.

        `images`: the model's image inputs, (B, ...) each.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        halves = [order[: len(order) // 2], order[len(order) // 2 :]] if len(order) > 1 else [order]
        return [self._collate(half, rows, tasks, images) for half in halves]

    def _collate(
        self, half: list[int], rows: Sequence[Encoded], tasks: Sequence[str], images: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        batch = collate([rows[i][:2] for i in half], self.text_tokenizer.pad_token_id)
        weights = torch.zeros(batch["labels"].shape)
        for row, i in enumerate(half):
            ids, _, weight = rows[i]
            weights[row, len(ids) - len(weight) : len(ids)] = torch.tensor(weight)
        task_ids = torch.tensor([chains.TASKS.index(tasks[i]) for i in half])
        return batch | {name: values[half] for name, values in images.items()} | {"weights": weights, "task": task_ids}
