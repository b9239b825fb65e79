"""Looks that bring in what the model itself selects while it trains, as they will when it answers.

A model that only ever saw the true regions takes whatever a look brings in for one of them. What it selects itself is
not quite that, and its answers suffer. So some steps show it its own selections, made by a forward without gradient;
what they should have selected stays the target of the selection (DAgger, Ross et al., arXiv 1011.0686, in one pass over
a chain).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from perception.interleave.chains import InterleavedBatch, InterleavedModel, with_selections
from train.data.interleaved import REGIONS


@dataclass(frozen=True)
class OwnLooks:
    """Replaces the regions of some steps' batches by the model's own selections."""

    share: float
    """Of the steps from `begin` on"""
    begin: int
    """The first step that may be: before it, the model knows too little"""
    seed: int
    pad_id: int
    regions: str = "own"
    """What is made of a selection, one of REGIONS"""
    grid: tuple[int, int] = (0, 0)
    """Visual tokens of an image, (rows, columns); for boxes"""

    def due(self, step: int) -> bool:
        """The same on every device."""
        return step >= self.begin and np.random.default_rng((self.seed, step, 1)).random() < self.share

    @torch.no_grad()
    def __call__(self, model: InterleavedModel, batch: InterleavedBatch) -> InterleavedBatch:
        output = model(batch)
        chosen = model.selector.select(output.scores) & output.candidates  # (B, S, M)
        if self.regions != "own":
            chosen = torch.stack([torch.stack([self._region(look) for look in row]) for row in chosen])
        return with_selections(batch, model.layout, chosen, self.pad_id)

    def _region(self, selected: torch.Tensor) -> torch.Tensor:
        tokens: Sequence[int] = selected.nonzero()[:, 0].tolist()
        region = torch.zeros_like(selected)
        region[list(REGIONS[self.regions](tokens, self.grid, np.random.default_rng(0)))] = True
        return region
