"""Losses of a tokenizer's training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae.quantizer import mean_over_ranks

L2_WEIGHT = 2.0
GRADIENT_WEIGHT = 0.5


@dataclass(frozen=True)
class Losses:
    """Loss terms of a batch, each a scalar. `total` is their weighted sum, to be minimised."""

    l1: Tensor
    """Mean absolute error of nearness over valid pixels"""
    l2: Tensor
    """Mean squared error of nearness over valid pixels"""
    gradient: Tensor
    """Mean absolute error of the differences of nearness between valid neighbours, which rewards sharp edges"""
    commitment: Tensor
    """Mean squared distance of the encoder's vectors from their codes' (zero with FSQ)"""
    total: Tensor


def reconstruction_losses(
    reconstruction: Tensor, nearness: Tensor, mask: Tensor, over_ranks: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """L1, L2 and gradient terms of nearness (B, S, S) over the pixels in `mask` (B, S, S) bool.

    With `over_ranks` the sums are divided by the mean number of valid pixels over all ranks, not by this rank's own
    number. The mean of the ranks' losses (and gradients) then equals that of one process with all their maps, with
    or without holes.
    """
    weight = mask.float()
    error = (reconstruction.float() - nearness) * weight  # zero in holes
    across, down = weight[:, :, 1:] * weight[:, :, :-1], weight[:, 1:] * weight[:, :-1]
    counts = torch.stack([weight.sum(), across.sum() + down.sum()])
    count, slope_count = (mean_over_ranks(counts) if over_ranks else counts).clamp_min(1)
    l1, l2 = error.abs().sum() / count, error.square().sum() / count
    slope_across = ((error[:, :, 1:] - error[:, :, :-1]) * across).abs().sum()
    slope_down = ((error[:, 1:] - error[:, :-1]) * down).abs().sum()
    return l1, l2, (slope_across + slope_down) / slope_count
