"""Quantizers, which turn vectors into codes: an EMA codebook, and finite scalar quantisation.

Vectors are (N, D), codes are (N,) long. Both classes have `codebook` (K, D), `encode`, `forward` and `permute`.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqvae.config import VQVAEConfig


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of code counts (K,): K if all codes are used equally, 1 if only one is used."""
    share = counts.float() / counts.sum().clamp_min(1)
    return (-(share * share.clamp_min(1e-12).log()).sum()).exp()


def codebook_usage(counts: Tensor) -> float:
    """Share of the codes (K,) that are used at all."""
    return float((counts > 0).float().mean())


def _sum_over_ranks(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x


def _same_on_all_ranks(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(x, 0)
    return x


def _place_among_ranks(count: int, device: torch.device) -> tuple[int, int]:
    """(rows on the ranks before this one, rows on all ranks), if this rank has `count` rows."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, count
    counts = torch.zeros(dist.get_world_size(), dtype=torch.long, device=device)
    counts[dist.get_rank()] = count
    counts = _sum_over_ranks(counts)
    return int(counts[: dist.get_rank()].sum()), int(counts.sum())


def mean_over_ranks(x: Tensor) -> Tensor:
    """Mean of a tensor without a gradient over all processes of a distributed run; the tensor itself without one."""
    if dist.is_available() and dist.is_initialized():
        return _sum_over_ranks(x.clone()) / dist.get_world_size()
    return x


def _distances(vectors: Tensor, rows: Tensor) -> Tensor:
    """Distances (N, K) from vectors (N, D) to rows (K, D), by the same method for every N.

    By default `cdist` uses another method for up to 25 vectors and rows, and codes would depend on the batch size.
    """
    if len(rows) > 25:
        return torch.cdist(vectors, rows, compute_mode="use_mm_for_euclid_dist")
    return (vectors[:, None] - rows).norm(dim=-1)  # ONNX knows no cdist without matrix products


class EMAQuantizer(nn.Module):
    """Codebook of moving averages of the vectors that each code stands for (van den Oord et al. 2017, appendix A.1).

    Departures: it starts from the first batch; statistics are summed over ranks before they are used, so that all
    ranks have equal codebooks; codes that fall out of use are revived from the batch. All state is in persistent
    buffers, so that training resumes where it stopped.

    With `deferred`, for gradient accumulation, the codebook stays as it is until `settle` moves it by all batches
    since the last time, as one batch of them all would. Nothing is left pending between optimizer steps, so nothing
    pending is saved.
    """

    codebook: Tensor
    cluster_size: Tensor
    vector_sum: Tensor
    started: Tensor

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        size, dim = config.codebook_size, config.codebook_dim
        self.decay, self.dead_threshold = config.decay, config.dead_threshold
        self.deferred = False
        self._pending: list[tuple[Tensor, Tensor]] = []  # vectors (N, D) and codes (N,) of each batch not yet settled
        codebook = torch.randn(size, dim) / math.sqrt(dim)
        self.register_buffer("codebook", codebook)  # (K, D)
        self.register_buffer("cluster_size", torch.ones(size))  # (K,), moving average of vectors a batch
        self.register_buffer("vector_sum", codebook.clone())  # (K, D), likewise of their sum
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def distances(self, vectors: Tensor) -> Tensor:
        """Distances (N, K) of vectors (N, D) from each code's row."""
        return _distances(vectors.float(), self.codebook.float())

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes (N,) of the nearest codebook rows of vectors (N, D)."""
        return self.distances(vectors).argmin(-1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised (N, D) with a straight-through gradient, codes (N,) and commitment loss () of vectors (N, D)."""
        vectors = vectors.float()
        if self.training and not bool(self.started):
            self._start(vectors.detach())
        codes = self.encode(vectors)  # (N,)
        quantized = self.codebook[codes]  # (N, D)
        commitment = (vectors - quantized.detach()).square().mean()
        if self.training:
            self._pending.append((vectors.detach(), codes))
            if not self.deferred:
                self.settle()
        return vectors + (quantized - vectors).detach(), codes, commitment

    @torch.no_grad()
    def _start(self, vectors: Tensor, num_rounds: int = 5) -> None:
        """Initialise the rows from the batch of all ranks, then run a few rounds of k-means over it."""
        size = self.codebook.shape[0]
        self.codebook.copy_(_draw(vectors, size))
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
    def settle(self) -> None:
        """Move the codebook by the pending batches. On several ranks all of them must call it."""
        if not self._pending:
            return
        vectors, codes = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        counts, sums = self._statistics(vectors, codes)
        self.cluster_size.lerp_(counts, 1 - self.decay)
        self.vector_sum.lerp_(sums, 1 - self.decay)
        fair = counts.sum() / len(counts)  # vectors a code, were all used alike
        dead = self.cluster_size < self.dead_threshold * fair
        if bool(dead.any()):
            revived = _draw(vectors, len(counts))[dead]
            # A fifth of a fair share: enough to live a while, too little to hold the row against its first vectors.
            self.cluster_size[dead] = 0.2 * fair
            self.vector_sum[dead] = revived * 0.2 * fair
        self.codebook.copy_(self.vector_sum / self.cluster_size[:, None])

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Renumber the codes: the row `order[k]` becomes code k."""
        for buffer in (self.codebook, self.cluster_size, self.vector_sum):
            buffer.copy_(buffer[order])


def _draw(vectors: Tensor, count: int) -> Tensor:
    """Draw `count` rows (count, D) from the vectors (N, D) of all ranks, the same on each rank.

    There are no repeats if there are enough vectors; otherwise a little noise tells repeats apart. The choice
    depends only on rank 0's random numbers and on the order of the ranks, so that two ranks draw what one with the
    batches of both would.
    """
    first, total = _place_among_ranks(len(vectors), vectors.device)
    if total >= count:
        chosen = torch.randperm(total, device=vectors.device)[:count]
    else:
        chosen = torch.randint(total, (count,), device=vectors.device)
    local = _same_on_all_ranks(chosen) - first  # (count,)
    here = (local >= 0) & (local < len(vectors))
    rows = _sum_over_ranks(torch.where(here[:, None], vectors[local.clamp(0, len(vectors) - 1)], 0))
    return rows if total >= count else rows + _same_on_all_ranks(1e-3 * torch.randn_like(rows))


class FSQ(nn.Module):
    """Finite scalar quantisation (Mentzer et al. 2023): each dimension is bounded and rounded to a few levels.

    Nothing is learned and no code can die. Codes are the mixed-radix number of the levels, renumbered by `order`.
    """

    order: Tensor
    rank: Tensor
    levels: Tensor
    radix: Tensor

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.deferred = False  # as `EMAQuantizer`'s, to no effect
        levels = torch.tensor(config.fsq_levels)  # (D,)
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer(
            "radix", torch.cumprod(torch.cat([torch.ones(1), levels[:-1]]), 0).long(), persistent=False
        )
        self.register_buffer("order", torch.arange(config.codebook_size))  # (K,): lattice number of each code
        self.register_buffer("rank", torch.arange(config.codebook_size))  # (K,): code of each lattice number

    def _steps(self, vectors: Tensor) -> Tensor:
        """Vectors (N, D) squashed to [0, levels - 1], not yet rounded; works for odd and even numbers of levels."""
        return (torch.tanh(vectors.float()) + 1) / 2 * (self.levels - 1)

    def settle(self) -> None:
        """Do nothing; the lattice is fixed."""

    def distances(self, vectors: Tensor) -> Tensor:
        """Distances (N, K) of vectors (N, D) from each code's lattice point, in steps of the lattice."""
        return _distances(self._steps(vectors), self._lattice())

    def _lattice(self) -> Tensor:
        """Steps of each code's lattice point (K, D), 0 .. levels - 1."""
        return (self.order[:, None] // self.radix % self.levels).float()

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes (N,) of vectors (N, D)."""
        return self.rank[(self._steps(vectors).round().long() * self.radix).sum(-1)]

    @property
    def codebook(self) -> Tensor:
        """Lattice points (K, D) in [-1, 1]."""
        return 2 * self._lattice() / (self.levels - 1) - 1

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantised (N, D) with a straight-through gradient, codes (N,) and a zero commitment loss () of (N, D)."""
        steps = self._steps(vectors)
        rounded = steps + (steps.round() - steps).detach()
        return 2 * rounded / (self.levels - 1) - 1, self.encode(vectors), steps.new_zeros(())

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Renumber the codes: the former code `order[k]` becomes code k."""
        self.order.copy_(self.order[order])
        self.rank[self.order] = torch.arange(len(order), device=order.device)


QUANTIZER_CLASSES: dict[str, type[EMAQuantizer] | type[FSQ]] = {"ema": EMAQuantizer, "fsq": FSQ}
