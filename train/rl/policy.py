"""The policy gradient of interleaved chains: probabilities of what a chain wrote and of what its looks selected.

A chain is a sequence of actions of two kinds: tokens, drawn from a categorical distribution, and looks, each a set of
visual tokens drawn one by one as Bernoulli variables (`VisualTokenSelector.draw`). The log-probability of a look is the
sum over its row's visual tokens, so the gradient of a chain's log-probability times its advantage is the true policy
gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.interleave.chains import IGNORED, InterleavedBatch, InterleavedOutput

SAMPLED, DETERMINISTIC = "sampled", "deterministic"
SELECTIONS = (SAMPLED, DETERMINISTIC)
"""Drawn; or by the threshold, where the selected tokens' log-probabilities are only weighted by the advantage: the
paper's form, no gradient of an expectation."""


@dataclass(frozen=True)
class ChainLogProbs:
    """What every chain of a batch is made of, (B, ...)."""

    tokens: Tensor
    """(B, L - 1) log-probabilities of written tokens, 0 elsewhere"""
    written: Tensor
    """(B, L - 1) bool"""
    entropy: Tensor
    """(B, L - 1) of the distributions that they were drawn from, 0 elsewhere"""
    scores: Tensor
    """(B, S, M) of the looks, less the offset that they were drawn with"""
    chosen: Tensor
    """(B, S, M) bool"""
    candidates: Tensor
    """(B, S, M) bool"""


def chain_log_probs(
    output: InterleavedOutput,
    batch: InterleavedBatch,
    banned: Sequence[int],
    temperature: float = 1.0,
    offset: float = 0.0,
) -> ChainLogProbs:
    """Of a teacher-forced forward over chains that were generated.

    Args:
        output: over a batch whose labels are all written tokens.
        banned: ids that generation never writes; they take no part in the distribution.
        temperature: that the tokens were drawn with.
        offset: of the selector that drew the looks (`VisualTokenSelector.draw`).
    """
    written = batch.labels[:, 1:] != IGNORED  # (B, L - 1)
    logits = output.logits.float() / temperature  # (T, V)
    ban = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    ban[[i for i in banned if i < len(ban)]] = True
    log_probs = logits.masked_fill(ban, -torch.inf).log_softmax(-1)
    of_labels = log_probs.gather(1, output.labels[:, None])[:, 0]  # (T,)
    entropy = -(log_probs.exp() * log_probs.masked_fill(ban, 0)).sum(-1)  # (T,)
    empty = torch.zeros(written.shape, device=logits.device)
    tokens = empty.masked_scatter(written, of_labels)
    spread = empty.masked_scatter(written, entropy)
    return ChainLogProbs(tokens, written, spread, output.scores.float() - offset, output.targets, output.candidates)


def look_log_probs(chain: ChainLogProbs) -> Tensor:
    """Log-probabilities (B, S) of the looks' selections, drawn with probability sigmoid(score) each."""
    signed = torch.where(chain.chosen, chain.scores, -chain.scores)
    return (F.logsigmoid(signed) * chain.candidates).sum(-1)


def group_advantages(rewards: Tensor, group_size: int, scale: bool = True) -> Tensor:
    """Rewards (B,) less the mean of their group of `group_size`, over its deviation where `scale` (GRPO).

    A group whose rewards are all equal has nothing to teach: its advantages are 0.
    """
    groups = rewards.view(-1, group_size)
    centred = groups - groups.mean(1, keepdim=True)
    if scale:
        centred = centred / (groups.std(1, unbiased=False, keepdim=True) + 1e-4)
    return centred.flatten()


def policy_loss(
    chain: ChainLogProbs, advantages: Tensor, norm: float, selection: str = SAMPLED, selection_weight: float = 1.0
) -> Tensor:
    """Minus the advantage-weighted log-probability of the chains, a mean over them, divided by `norm`.

    `norm` is a constant (the longest answer that is allowed): divided by its own length, a chain's gradient would be
    biased towards long wrong and short right answers (Dr. GRPO, arXiv 2503.20783).
    """
    tokens = chain.tokens.sum(1)  # (B,)
    if selection == SAMPLED:
        looks = look_log_probs(chain).sum(1)  # (B,)
    else:
        looks = (F.logsigmoid(chain.scores) * (chain.chosen & chain.candidates)).sum((1, 2))
    return -(advantages * (tokens + selection_weight * looks)).mean() / norm


def reference_kl(chain: ChainLogProbs, reference: ChainLogProbs, norm: float) -> Tensor:
    """KL divergence of the policy from a reference: estimated at the written tokens (Schulman's k3, never negative),
    exact at the looks' Bernoulli variables. (B,), a sum over each chain, divided by `norm`."""
    gap = (reference.tokens - chain.tokens) * chain.written
    tokens = (gap.exp() - gap - 1).sum(1)  # (B,)
    p, q = chain.scores, reference.scores
    looks = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q)) + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
    return (tokens + (looks * chain.candidates).sum((1, 2))) / norm
