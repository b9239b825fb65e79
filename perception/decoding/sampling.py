"""Choice of ids from masked scores: greedy, sampled, or sampled after guesses (speculative sampling)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice; greedy by default. Applied as in transformers: temperature, then top_k, then top_p."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    """0 for all ids"""
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}; do_sample=False decodes greedily")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"top_k must be 0 or more and top_p in (0, 1], got {self.top_k} and {self.top_p}")

    def probabilities(self, scores: Tensor) -> Tensor:
        """Probabilities (..., V) for masked scores (..., V)."""
        scores = scores / self.temperature
        if self.top_k and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k).values[..., -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p < 1:
            ordered, order = scores.sort(descending=True)
            before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
            kept = (before < self.top_p).scatter(-1, order, before < self.top_p)
            scores = scores.masked_fill(~kept, -torch.inf)
        return scores.softmax(-1)


def choose_ids(scores: Tensor, guesses: Tensor | None, sampling: Sampling) -> Tensor:
    """Choose ids (b, width) by masked scores (b, width, V); accepted guesses (b, width - 1) are kept."""
    if not sampling.do_sample:
        return scores.argmax(-1)
    odds = sampling.probabilities(scores)  # (b, width, V)
    flat = odds.flatten(0, 1)  # (b * width, V)
    if guesses is None or not guesses.shape[1]:
        return torch.multinomial(flat, 1).view(odds.shape[:2])
    chance = odds[:, :-1].gather(-1, guesses[..., None])[..., 0]  # (b, width - 1)
    taken = torch.rand_like(chance) < chance
    others = odds.clone()
    others[:, :-1].scatter_(-1, guesses[..., None], 0.0)
    certain = others.sum(-1, keepdim=True) <= 0  # the guess was the only choice, and so was taken
    drawn = torch.multinomial(torch.where(certain, odds, others).flatten(0, 1), 1).view(odds.shape[:2])
    drawn[:, :-1] = torch.where(taken, guesses, drawn[:, :-1])
    return drawn
