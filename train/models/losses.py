"""Loss on target tokens: cross-entropy with a weight per token."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label of a token that is not learned"""


def target_logits(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (B, t, V), labels and weights (B, t) from the first position with a label on.

    Only these positions go through the output layer.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "weights", "task")}
    first = int((batch["labels"] != IGNORE).any(0).nonzero()[0])
    keep = batch["labels"].shape[1] - first + 1  # positions first - 1 .. end predict first .. end
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, :-1].float()
    return logits, batch["labels"][:, first:], batch["weights"][:, first:]


def row_losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted cross-entropy per row (B,), summed over its tokens and not divided by their weights.

    Args:
        logits: (B, t, V) float32; the logits at a position predict the label at the same position.
        labels: (B, t), IGNORE for tokens that are not learned.
        weights: (B, t), one weight per label.
    """
    losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")  # (B, t)
    return (losses * weights).sum(1)
