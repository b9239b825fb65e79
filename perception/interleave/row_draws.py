"""Random numbers of the rows of a batch, each row's from a seed of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from perception.interleave.selector import VisualTokenSelector


class RowDraws:
    """Draws tokens and selections. A row draws the same alone, in any batch, and on any process or device."""

    def __init__(self, seeds: Sequence[int], selector: VisualTokenSelector):
        """
        Args:
            seeds: of the rows.
            selector: says how likely a visual token is drawn.
        """
        self._selector = selector
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def tokens(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """An id (r,) of each row, drawn with probabilities softmax(scores), scores (r, V).

        Args:
            rows: which they are; None for all of them.
        """
        generators = self._generators if rows is None else [self._generators[row] for row in rows]
        uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators])  # (r,) in [0, 1)
        sums = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        # The first id whose sum is above the draw: never one of probability 0. Scaled, as sums may end short of 1.
        return torch.searchsorted(sums, uniform.to(sums)[:, None] * sums[:, -1:], right=True)[:, 0]

    def select(self, scores: Tensor, row: int, look: int) -> Tensor:
        """Of a row's visual tokens (N,), as `VisualTokenSelector.draw` has it: a `Choose`."""
        return self._selector.draw(scores, self._generators[row])
