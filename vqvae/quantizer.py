"""The two ways from vectors to codes: an EMA codebook, and finite scalar quantisation.

Vectors are (N, D), codes (N,) long. Both classes have `codebook` (K, D), `encode`, `forward` and `permute`.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqvae.config import VQVAEConfig


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of code counts (K,): K when all are used alike, 1 when one does all."""
    share = counts.float() / counts.sum().clamp_min(1)
    return (-(share * share.clamp_min(1e-12).log()).sum()).exp()


def codebook_usage(counts: Tensor) -> float:
    """Share of the codes (K,) that occur at all."""
    return float((counts > 0).float().mean())


def _sum_over_ranks(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def _same_on_all_ranks(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(x, 0)
    return x


class EMAQuantizer(nn.Module):
    """A codebook of moving averages of the vectors it stands for (van den Oord et al. 2017, appendix A.1).

    Departures: it starts from the first batch; the statistics are summed over ranks before they are used, so that the
    codebooks of all ranks stay equal; codes that fall out of use are revived from the batch. All its state is in
    persistent buffers, so that training resumes where it stopped.
    """

    codebook: Tensor
    cluster_size: Tensor
    vector_sum: Tensor
    started: Tensor

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        size, dim = config.codebook_size, config.codebook_dim
        self.decay, self.dead_threshold = config.decay, config.dead_threshold
        codebook = torch.randn(size, dim) / math.sqrt(dim)
        self.register_buffer("codebook", codebook)  # (K, D)
        self.register_buffer("cluster_size", torch.ones(size))  # (K,), moving average of vectors a batch
        self.register_buffer("vector_sum", codebook.clone())  # (K, D), likewise of their sum
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes (N,) of the nearest codebook rows of (N, D)."""
        return torch.cdist(vectors.float(), self.codebook).argmin(-1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) to quantised (N, D) with a straight-through gradient, codes (N,), and the commitment loss ()."""
        vectors = vectors.float()
        if self.training and not bool(self.started):
            self._start(vectors.detach())
        codes = self.encode(vectors)  # (N,)
        quantized = self.codebook[codes]  # (N, D)
        commitment = (vectors - quantized.detach()).square().mean()
        if self.training:
            self._update(vectors.detach(), codes)
        return vectors + (quantized - vectors).detach(), codes, commitment

    @torch.no_grad()
    def _start(self, vectors: Tensor, num_rounds: int = 5) -> None:
        """Rows drawn from rank 0's batch, then a few rounds of k-means over every rank's."""
        size = self.codebook.shape[0]
        self.codebook.copy_(_same_on_all_ranks(_draw(vectors, size)))
        for _ in range(num_rounds):
            counts, sums = self._statistics(vectors, self.encode(vectors))
            used = counts > 0
            self.codebook[used] = sums[used] / counts[used, None]
        counts, _ = self._statistics(vectors, self.encode(vectors))
        self.cluster_size.copy_(counts.clamp_min(1))
        self.vector_sum.copy_(self.codebook * self.cluster_size[:, None])
        self.started.fill_(True)

    def _statistics(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Counts (K,) and sums (K, D) of the vectors of each code, over all ranks."""
        size, dim = self.codebook.shape
        both = vectors.new_zeros(size, dim + 1)
        both.index_add_(0, codes, torch.cat([vectors, vectors.new_ones(len(vectors), 1)], 1))
        both = _sum_over_ranks(both)
        return both[:, -1], both[:, :-1]

    @torch.no_grad()
    def _update(self, vectors: Tensor, codes: Tensor) -> None:
        counts, sums = self._statistics(vectors, codes)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.vector_sum.lerp_(sums, 1 - self.decay)
        fair = counts.sum() / len(counts)  # vectors a code, were all used alike
        dead = self.cluster_size < self.dead_threshold * fair
        if bool(dead.any()):
            revived = _same_on_all_ranks(_draw(vectors, len(counts)))[dead]
            # A fifth of a fair share: enough to live a while, too little to hold the row against its first vectors.
            self.cluster_size[dead] = 0.2 * fair
            self.vector_sum[dead] = revived * 0.2 * fair
        self.codebook.copy_(self.vector_sum / self.cluster_size[:, None])

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Renames codes: the row `order[k]` becomes code k."""
        for buffer in (self.codebook, self.cluster_size, self.vector_sum):
            buffer.copy_(buffer[order])


def _draw(vectors: Tensor, count: int) -> Tensor:
    """`count` rows (count, D) of (N, D), without repeats where N allows; repeats are told apart by a little noise."""
    if len(vectors) >= count:
        return vectors[torch.randperm(len(vectors), device=vectors.device)[:count]]
    rows = vectors[torch.randint(len(vectors), (count,), device=vectors.device)]
    return rows + 1e-3 * torch.randn_like(rows)


class FSQ(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023): each dimension is bounded and rounded to a few levels.

    Nothing is learnt and nothing can die; codes are the mixed-radix number of the levels, renamed by `order`.
    """

    order: Tensor
    rank: Tensor
    levels: Tensor
    radix: Tensor

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        levels = torch.tensor(config.fsq_levels)  # (D,)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer(
            "radix", torch.cumprod(torch.cat([torch.ones(1), levels[:-1]]), 0).long(), persistent=False
        )
        self.register_buffer("order", torch.arange(config.codebook_size))  # (K,): lattice number of each code
        self.register_buffer("rank", torch.arange(config.codebook_size))  # (K,): code of each lattice number

    def _steps(self, vectors: Tensor) -> Tensor:
        """(N, D) squashed to [0, levels - 1], not yet rounded: right for odd and even numbers of levels alike."""
        return (torch.tanh(vectors.float()) + 1) / 2 * (self.levels - 1)

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes (N,) of (N, D)."""
        return self.rank[(self._steps(vectors).round().long() * self.radix).sum(-1)]

    @property
    def codebook(self) -> Tensor:
        """(K, D) in [-1, 1]"""
        steps = self.order[:, None] // self.radix % self.levels  # (K, D)
        return 2 * steps / (self.levels - 1) - 1

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D) to quantised (N, D) with a straight-through gradient, codes (N,), and a commitment loss of zero ()."""
        steps = self._steps(vectors)
        rounded = steps + (steps.round() - steps).detach()
        return 2 * rounded / (self.levels - 1) - 1, self.encode(vectors), steps.new_zeros(())

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Renames codes: what was code `order[k]` becomes code k."""
        self.order.copy_(self.order[order])
        self.rank[self.order] = torch.arange(len(order), device=order.device)


QUANTIZER_CLASSES: dict[str, type[EMAQuantizer] | type[FSQ]] = {"ema": EMAQuantizer, "fsq": FSQ}
