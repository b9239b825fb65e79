"""Training looks that bring in the model's own selections instead of the true regions.

A model that only sees true regions in training relies on them, but at inference looks bring in its own selections,
which differ. Some training steps therefore use the model's own selections, made by a forward pass without gradient. The
true regions stay the targets of the selection. This is DAgger (Ross et al., arXiv 1011.0686) in one pass over a chain.
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
    """Replaces the regions in the batches of some training steps by the model's own selections."""

    share: float
    """share of the steps from `begin` on"""
    begin: int
    """first step that may use own selections; before it, the model knows too little"""
    seed: int
    pad_id: int
    regions: str = "own"
    """how a selection is changed, one of `REGIONS`"""
    grid: tuple[int, int] = (0, 0)
    """(rows, columns) of an image's visual tokens; needed for all `regions` but own"""

    def due(self, step: int) -> bool:
        """True if a step uses own selections; the same on every device."""
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
