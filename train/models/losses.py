"""Losses on the targets of perception: plain cross-entropy, and terms to put on top of it.

Every term is a row's, in the same unit as its weighted cross-entropy, so that however rows are dealt to forwards and
devices, a step's loss is one sum over one norm.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.vocabulary.names import PerceptionVocabulary
from perception.vocabulary.spans import MODALITIES
from train.base import IGNORE
from vqvae import VQVAE


@dataclass(frozen=True)
class LossSettings:
    """What is added to cross-entropy, and how much of it; 0 leaves a term out."""

    reconstruction: float = 0.0
    """of the squared error of the map that predicted codes decode to, softly, against that of the true ones, in [0, 1]
    (AURORA's paper; its code lacks it). Errors are small numbers: about 10 counts as much as the cross-entropy"""
    location_spread: float = 0.0
    """bins over which a location's target spreads to its neighbours, as exp(-distance / spread): one bin off is nearly
    right"""
    marker: float = 0.0
    """extra weight of the tokens that begin and end spans (Perceptio's marker loss)"""
    count: float = 0.0
    """of the squared relative error of how many codes a row is expected to hold (Perceptio's count loss)"""

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 0:
                raise ValueError(f"losses.{item.name} must not be negative, got {getattr(self, item.name)}; 0 is off")


@dataclass(frozen=True)
class SpanLosses:
    """The loss of a forward's rows. Made by `build`."""

    settings: LossSettings
    depth_ids: tuple[int, ...]
    location_ids: tuple[int, ...]
    marker_ids: tuple[int, ...]
    depth_length: int
    vqvae: VQVAE | None

    @classmethod
    def build(cls, settings: LossSettings, vocabulary: PerceptionVocabulary, vqvae: VQVAE | None) -> SpanLosses:
        """Raises ValueError where maps are to be decoded and there is no depth tokenizer."""
        if settings.reconstruction and vqvae is None:
            raise ValueError("losses.reconstruction decodes depth maps; set depth_tokenizer, or leave it at 0")
        if vqvae is not None:
            vqvae.requires_grad_(False)
        markers = [i for m in MODALITIES for i in (vocabulary.start_id(m), vocabulary.end_id(m))]
        depth, locations = tuple(vocabulary.code_ids("depth")), tuple(vocabulary.code_ids("boxes"))
        return cls(settings, depth, locations, tuple(markers), vocabulary.depth_length, vqvae)

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """Losses of rows (B,), not divided by their weights.

        Args:
            logits: (B, t, V) float32, each position's for the label at it.
            labels: (B, t), IGNORE where nothing is to be learned.
            weights: (B, t) of the targets.
        """
        settings = self.settings
        losses = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="none")  # (B, t)
        if settings.location_spread:
            losses = self._spread(losses, logits, labels)
        if settings.marker:
            is_marker = torch.isin(labels, torch.tensor(self.marker_ids, device=labels.device))
            losses = losses * (1 + settings.marker * is_marker)
        rows = (losses * weights).sum(1)  # (B,)
        if settings.count:
            rows = rows + settings.count * self._count_errors(logits, labels, weights)
        if settings.reconstruction:
            rows = rows + settings.reconstruction * self._map_errors(logits, labels, weights)
        return rows

    def _spread(self, losses: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """(B, t): at locations the divergence from a target over the bins, which is 0 where it is met."""
        codes = _codes(labels, self.location_ids, logits.shape[-1])  # (B, t), -1 elsewhere
        at = codes >= 0
        ids = torch.tensor(self.location_ids, device=labels.device)
        said = logits[at].log_softmax(-1)[:, ids]  # (n, bins)
        distance = (torch.arange(len(ids), device=labels.device)[None] - codes[at][:, None]).abs()  # (n, bins)
        target = (-distance / self.settings.location_spread).softmax(-1)
        return losses.masked_scatter(at, F.kl_div(said, target, reduction="none").sum(-1))

    def _count_errors(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B,): over depth codes and locations, of how many are expected at the row's targets."""
        learned, everything = weights > 0, logits.logsumexp(-1)  # (B, t)
        total = torch.zeros(len(labels), device=logits.device)
        for ids in (self.depth_ids, self.location_ids):
            family = torch.tensor(ids, device=labels.device)
            share = (logits[..., family].logsumexp(-1) - everything).exp()  # (B, t)
            expected = (share * learned).sum(1)
            wanted = (torch.isin(labels, family) & learned).sum(1)
            total = total + ((expected - wanted) / (wanted + 1)) ** 2
        return total * weights.sum(1)

    def _map_errors(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """(B,): of all maps of a row, each counting as much as its codes' weights."""
        assert self.vqvae is not None
        codes = _codes(labels, self.depth_ids, logits.shape[-1])
        at = (codes >= 0) & (weights > 0)
        errors = torch.zeros(len(labels), device=logits.device)
        if not at.any():
            return errors
        vqvae: Any = self.vqvae.to(logits.device)
        ids = torch.tensor(self.depth_ids, device=labels.device)
        length = self.depth_length
        said = logits[at][:, ids].softmax(-1).unflatten(0, (-1, length))  # (maps, h * w, K): rows hold whole maps
        with torch.no_grad():
            truth = vqvae.decode(codes[at].unflatten(0, (-1, length)))  # (maps, S, S)
        squared = (vqvae.decode_soft(said) - truth).square().mean((1, 2))  # (maps,)
        row = at.nonzero()[:, 0].unflatten(0, (-1, length))[:, 0]  # (maps,)
        return errors.index_add(0, row, squared.float() * weights[at].unflatten(0, (-1, length)).sum(1))


def _codes(labels: Tensor, ids: tuple[int, ...], vocab_size: int) -> Tensor:
    """Codes of labels that are of a family, -1 elsewhere."""
    table = torch.full((vocab_size,), -1, device=labels.device)
    table[torch.tensor(ids, device=labels.device)] = torch.arange(len(ids), device=labels.device)
    return torch.where(labels == IGNORE, -1, table[labels.clamp(min=0)])


def target_logits(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, t, V), labels and weights (B, t) of the positions from the first label on.

    Only those go through the output layer.
    """
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "weights", "task")}
    first = int((batch["labels"] != IGNORE).any(0).nonzero()[0])
    keep = batch["labels"].shape[1] - first + 1  # positions first - 1 .. end predict first .. end
    logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, :-1].float()
    return logits, batch["labels"][:, first:], batch["weights"][:, first:]
