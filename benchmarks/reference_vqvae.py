"""AURORA's depth tokenizer, built from its description, to compare ours with.

A 320 x 320 map goes through five 4 x 4 convolutions of stride 2 (1-16-32-64-128-256 channels), two residual blocks and
a 1 x 1 convolution to 512; 100 tokens of 128 codes; a mirrored decoder (Perception Tokens, arXiv 2412.03548). Residual
blocks are those of its published weights. The description leaves open the decoder's first convolution (here 3 x 3), so
that the number of parameters is the published one, about 7.7 million.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.published_networks import PublishedBlock

COMMITMENT_WEIGHT = 0.25
DECAY = 0.99
_COUNT_FLOOR = 1e-5


def min_max(depth: Tensor, image_size: int) -> Tensor:
    """Inverse depth of maps (B, H, W) without holes, min-max to [-1, 1]: (B, 1, S, S)."""
    inverse = F.interpolate(1 / depth[:, None], (image_size, image_size), mode="bilinear", antialias=True)
    low, high = inverse.amin((1, 2, 3), keepdim=True), inverse.amax((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return 2 * (inverse - low) / (high - low).clamp_min(1e-12) - 1


def nearness(decoded: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearness (B, *size) in [0, 1] of a decoder's output, (B, 1, S, S) in [-1, 1]."""
    return F.interpolate(((decoded + 1) / 2).clamp(0, 1), size, mode="bilinear", antialias=True)[:, 0]


class MovingCodebook(nn.Module):
    """A codebook of moving averages as in textbooks (van den Oord et al. 2017, appendix A.1).

    It starts at random, and a code that no vector is near to stays where it is.
    """

    codebook: Tensor
    cluster_size: Tensor
    vector_sum: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.register_buffer("codebook", torch.randn(codebook_size, codebook_dim))  # (K, D)
        self.register_buffer("cluster_size", torch.zeros(codebook_size))  # (K,)
        self.register_buffer("vector_sum", self.codebook.clone())  # (K, D)

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes (N,) of vectors (N, D)."""
        return torch.cdist(vectors, self.codebook).argmin(-1)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised (N, D) with a straight-through gradient, and the commitment loss (), of vectors (N, D)."""
        codes = self.encode(vectors.detach())
        quantized = self.codebook[codes]  # (N, D)
        commitment = (vectors - quantized).square().mean()
        if self.training:
            self._move(vectors.detach(), codes)
        return vectors + (quantized - vectors).detach(), commitment

    @torch.no_grad()
    def _move(self, vectors: Tensor, codes: Tensor) -> None:
        size = len(self.codebook)
        counts = torch.bincount(codes, minlength=size).float()  # (K,)
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)  # (K, D)
        self.cluster_size.lerp_(counts, 1 - DECAY)
        self.vector_sum.lerp_(sums, 1 - DECAY)
        total = self.cluster_size.sum()
        smoothed = (self.cluster_size + _COUNT_FLOOR) / (total + size * _COUNT_FLOOR) * total  # (K,), Laplace's
        self.codebook.copy_(self.vector_sum / smoothed[:, None])


class ReferenceVQVAE(nn.Module):
    """Depth maps (B, H, W), larger is farther, to codes (B, 10, 10) and back. Holes are not supported."""

    image_size = 320
    widths: tuple[int, ...] = (1, 16, 32, 64, 128, 256)
    """Channels at full, half .. and the codes' resolution"""

    def __init__(self, codebook_size: int = 128, codebook_dim: int = 512):
        super().__init__()
        down = [
            layer
            for narrow, wide in itertools.pairwise(self.widths)
            for layer in (nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU())
        ]
        up = [
            layer
            for wide, narrow in itertools.pairwise(self.widths[::-1])
            for layer in (nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU())
        ][:-1]
        deepest = self.widths[-1]
        self.encoder = nn.Sequential(*down, *self._blocks(), nn.Conv2d(deepest, codebook_dim, 1))
        self.decoder = nn.Sequential(nn.Conv2d(codebook_dim, deepest, 3, padding=1), *self._blocks(), *up)
        self.quantizer = MovingCodebook(codebook_size, codebook_dim)

    def _blocks(self) -> list[nn.Module]:
        return [PublishedBlock(self.widths[-1]) for _ in range(2)]

    @property
    def codebook(self) -> Tensor:
        """(K, D)"""
        return self.quantizer.codebook

    def _vectors(self, x: Tensor) -> Tensor:
        """(B, 1, S, S) to (B, h, w, D)."""
        out: Tensor = self.encoder(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        return out

    def forward(self, depth: Tensor) -> dict[str, Tensor]:
        """Loss terms of maps (B, H, W): "reconstruction", the mean squared error in [-1, 1], and "commitment"."""
        x = min_max(depth, self.image_size)  # (B, 1, S, S)
        z = self._vectors(x)  # (B, h, w, D)
        quantized, commitment = self.quantizer(z.flatten(0, 2).float())
        decoded = self.decoder(quantized.view(z.shape).permute(0, 3, 1, 2))  # (B, 1, S, S)
        return {"reconstruction": (decoded - x).square().mean(), "commitment": COMMITMENT_WEIGHT * commitment}

    @torch.no_grad()
    def encode(self, depth: Tensor) -> Tensor:
        """Codes (B, 10, 10) of maps (B, H, W)."""
        z = self._vectors(min_max(depth, self.image_size))  # (B, h, w, D)
        return self.quantizer.encode(z.flatten(0, 2)).view(z.shape[:3])

    @torch.no_grad()
    def decode(self, codes: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearness (B, *size) in [0, 1] of codes (B, h, w)."""
        return nearness(self.decoder(self.codebook[codes].permute(0, 3, 1, 2)), size)
