"""AURORA's depth tokenizer, built from its description, to measure ours against.

A 320 x 320 map through five 4 x 4 convolutions of stride 2 (1-16-32-64-128-256 channels), two residual blocks, a 1 x 1
convolution to 512; 100 tokens of 128 codes; a mirrored decoder (Perception Tokens, arXiv 2412.03548). What the
description leaves open, the inside of a residual block (3 x 3, 3 x 3, 1 x 1) and the decoder's first convolution
(3 x 3), is filled in so that the number of parameters is the one that is published, about 7.7 million.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_WIDTHS = (1, 16, 32, 64, 128, 256)


class _Block(nn.Module):
    """Convolutions around a skip, ReLU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class ReferenceVQVAE(nn.Module):
    """Depth maps (B, H, W), larger is farther, to codes (B, 10, 10) and back. Knows no holes."""

    image_size = 320
    codebook: Tensor

    def __init__(self, codebook_size: int = 128, codebook_dim: int = 512):
        super().__init__()
        down = [
            layer
            for narrow, wide in itertools.pairwise(_WIDTHS)
            for layer in (nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU())
        ]
        up = [
            layer
            for wide, narrow in itertools.pairwise(_WIDTHS[::-1])
            for layer in (nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU())
        ][:-1]
        deepest = _WIDTHS[-1]
        self.encoder = nn.Sequential(*down, _Block(deepest), _Block(deepest), nn.Conv2d(deepest, codebook_dim, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(codebook_dim, deepest, 3, padding=1), _Block(deepest), _Block(deepest), *up
        )
        self.register_buffer("codebook", torch.randn(codebook_size, codebook_dim))  # (K, D), of moving averages

    def normalise(self, depth: Tensor) -> Tensor:
        """Inverse depth of maps (B, H, W) without holes, min-max to [-1, 1]: (B, 1, S, S)."""
        size = (self.image_size, self.image_size)
        inverse = F.interpolate(1 / depth[:, None], size, mode="bilinear", antialias=True)  # (B, 1, S, S)
        low, high = inverse.amin((1, 2, 3), keepdim=True), inverse.amax((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
        return 2 * (inverse - low) / (high - low).clamp_min(1e-12) - 1

    @torch.no_grad()
    def encode(self, depth: Tensor) -> Tensor:
        """Codes (B, 10, 10) of maps (B, H, W)."""
        z = self.encoder(self.normalise(depth)).permute(0, 2, 3, 1)  # (B, h, w, D)
        return torch.cdist(z.flatten(0, 2), self.codebook).argmin(-1).view(z.shape[:3])

    @torch.no_grad()
    def decode(self, codes: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearness (B, *size) in [0, 1] of codes (B, h, w)."""
        decoded = self.decoder(self.codebook[codes].permute(0, 3, 1, 2))  # (B, 1, S, S)
        nearness = ((decoded + 1) / 2).clamp(0, 1)
        return F.interpolate(nearness, size, mode="bilinear", antialias=True)[:, 0]
