"""The loss of targets, on logits made by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.data.rows import TokenWeights
from train.models.losses import IGNORE, row_losses

SIZE = 30


def targets() -> tuple[Tensor, Tensor]:
    """Labels and weights (2, 8): two positions of a prompt, then what is to be written."""
    labels = torch.tensor([[IGNORE, IGNORE, 3, 20, 21, 22, 4, 2], [IGNORE, IGNORE, 3, 25, 4, 2, IGNORE, IGNORE]])
    return labels, torch.where(labels == IGNORE, 0.0, 1.0 + 0.1 * torch.arange(8))


def test_it_is_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    labels, weights = targets()
    logits = torch.randn(*labels.shape, SIZE)
    chosen = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
    assert torch.allclose(row_losses(logits, labels, weights), -(chosen * weights).sum(1), rtol=1e-5)


def test_rows_are_worth_the_same_alone() -> None:
    torch.manual_seed(0)
    labels, weights = targets()
    logits = torch.randn(*labels.shape, SIZE)
    alone = [row_losses(logits[n : n + 1], labels[n : n + 1], weights[n : n + 1]) for n in range(2)]
    assert torch.allclose(row_losses(logits, labels, weights), torch.cat(alone), rtol=1e-5)


def test_what_is_read_but_not_learned_has_no_part() -> None:
    """A map of another image has weight 0."""
    labels, weights = targets()
    weights[labels >= 20] = 0.0
    logits = torch.nn.functional.one_hot(labels.clamp(min=0), SIZE).float() * 30
    logits[labels >= 20] = torch.randn(4, SIZE)
    assert row_losses(logits, labels, weights).max() < 1e-5


def test_every_row_has_a_target_of_some_weight() -> None:
    """A row of text alone would have the loss 0 / 0."""
    for wrong in ({"text": 0.0}, {"depth": -1.0}, {"location": -0.1}):
        with pytest.raises(ValueError, match="weights must not be negative, and weights.text must be above 0"):
            TokenWeights(**wrong)
    TokenWeights(depth=0.0, location=0.0, text=0.1)
