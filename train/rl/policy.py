"""Policy gradient of interleaved chains: log-probabilities of written tokens and of the looks' selections.

A chain is a sequence of actions of two kinds: tokens, drawn from a categorical distribution, and looks, each a set of
visual tokens drawn one by one as Bernoulli variables (`VisualTokenSelector.draw`). The log-probability of a look is the
sum over its row's visual tokens, so the gradient of a chain's log-probability times its advantage is the true policy
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.interleave.chains import IGNORED, InterleavedBatch, InterleavedOutput

Selection = Literal["sampled", "deterministic"]
SAMPLED: Selection = "sampled"
DETERMINISTIC: Selection = "deterministic"
"""How a look selects visual tokens. sampled: drawn with the selector's probabilities. deterministic: those above the
threshold, whose log-probabilities are weighted by the advantage; the paper's form, not the gradient of an
expectation."""


@dataclass(frozen=True)
class ChainLogProbs:
    """Log-probabilities of a batch of chains, per token and per look."""

    tokens: Tensor
    """(B, L - 1) log-probabilities of written tokens, 0 elsewhere"""
    written: Tensor
    """(B, L - 1) bool, True for written tokens"""
    entropy: Tensor
    """(B, L - 1) entropy of the distributions that tokens were drawn from, 0 elsewhere"""
    scores: Tensor
    """(B, S, M) scores of the looks, minus the offset that they were drawn with"""
    chosen: Tensor
    """(B, S, M) bool, True for the visual tokens that a look selected"""
    candidates: Tensor
    """(B, S, M) bool, True for the visual tokens that a look could select"""


def chain_log_probs(
    output: InterleavedOutput,
    batch: InterleavedBatch,
    banned: Sequence[int],
    temperature: float = 1.0,
    offset: float = 0.0,
    interleave_id: int | None = None,
    max_looks: int | None = None,
) -> ChainLogProbs:
    """Compute log-probabilities from a teacher-forced forward pass over generated chains.

    Args:
        output: output of the forward pass over `batch`.
        batch: the chains, with every written token as a label.
        banned: ids that generation never writes; they are left out of the distribution.
        temperature: sampling temperature of the tokens.
        offset: added to the scores when the looks were drawn (`VisualTokenSelector.draw`).
        interleave_id: the interleave token, where the model writes it; banned once a row has `max_looks` looks.
        max_looks: largest number of looks of a row, as in `InterleaveSettings`.
    """
    written = batch.labels[:, 1:] != IGNORED  # (B, L - 1)
    logits = output.logits.float() / temperature  # (T, V)
    ban = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
    ban[:, [i for i in banned if i < ban.shape[1]]] = True
    if interleave_id is not None and max_looks is not None and interleave_id < ban.shape[1]:
        ban[:, interleave_id] |= (looks_before(batch) >= max_looks)[written]
    log_probs = logits.masked_fill(ban, -torch.inf).log_softmax(-1)
    of_labels = log_probs.gather(1, output.labels[:, None])[:, 0]  # (T,)
    entropy = -(log_probs.exp() * log_probs.masked_fill(ban, 0)).sum(-1)  # (T,)
    empty = torch.zeros(written.shape, device=logits.device)
    tokens = empty.masked_scatter(written, of_labels)
    spread = empty.masked_scatter(written, entropy)
    return ChainLogProbs(tokens, written, spread, output.scores.float() - offset, output.targets, output.candidates)


def looks_before(batch: InterleavedBatch) -> Tensor:
    """Count a row's looks before each of the columns 1 to L - 1, (B, L - 1)."""
    columns = torch.arange(1, batch.ids.shape[1], device=batch.ids.device)[:, None]  # (L - 1, 1)
    looks = batch.look_columns[:, None]  # (B, 1, S), -1 for none
    return ((looks >= 0) & (looks < columns)).sum(-1)


def look_log_probs(chain: ChainLogProbs) -> Tensor:
    """Return log-probabilities (B, S) of the looks' selections; each visual token has probability sigmoid(score)."""
    signed = torch.where(chain.chosen, chain.scores, -chain.scores)
    return (F.logsigmoid(signed) * chain.candidates).sum(-1)


def group_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Compute the advantages (B,) of rewards (B,) within groups of `group_size` (GRPO).

    The group's mean is subtracted, and the result is divided by the group's standard deviation. A group whose rewards
    are all equal (`equal_groups`) gets advantages of 0.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    equal = equal_groups(rewards, group_size)[:, None]  # their mean may be off by rounding
    centred = centred.masked_fill(equal, 0)
    return (centred / (groups.std(1, unbiased=False, keepdim=True) + 1e-4)).flatten()


def equal_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Return which groups of rewards (B,) are all equal, so with nothing to compare: (B / group_size,) bool."""
    groups = rewards.view(-1, group_size)
    return groups.amax(1) == groups.amin(1)


def policy_loss(
    chain: ChainLogProbs, advantages: Tensor, norm: float, selection: Selection = SAMPLED, selection_weight: float = 1.0
) -> Tensor:
    """Return the mean over chains of the negative advantage-weighted log-probability, divided by `norm`.

    `norm` is a constant, the maximum length of an answer. Division by each chain's own length would bias the gradient
    towards long wrong and short right answers (Dr. GRPO, arXiv 2503.20783).
    """
    tokens = chain.tokens.sum(1)  # (B,)
    if selection == SAMPLED:
        looks = look_log_probs(chain).sum(1)  # (B,)
    else:
        looks = (F.logsigmoid(chain.scores) * (chain.chosen & chain.candidates)).sum((1, 2))
    return -(advantages * (tokens + selection_weight * looks)).mean() / norm


def reference_kl(chain: ChainLogProbs, reference: ChainLogProbs, norm: float) -> Tensor:
    """Return the KL divergence (B,) of the policy from a reference, summed per chain and divided by `norm`.

    It is Schulman's k3 estimate (never negative) for written tokens, and exact for the Bernoulli variables of looks.
    """
    gap = (reference.tokens - chain.tokens) * chain.written
    tokens = (gap.exp() - gap - 1).sum(1)  # (B,)
    p, q = chain.scores, reference.scores
    looks = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q)) + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
    return (tokens + (looks * chain.candidates).sum((1, 2))) / norm
