"""Depth tokenizers of the size of AURORA's, built from libraries.

They are diffusers' `VQModel`, and a convolutional autoencoder around the quantizer of `vector-quantize-pytorch`, set as
that library advises.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from benchmarks.reference_vqvae import DECAY, ReferenceVQVAE, min_max, nearness


class _LibraryCodebook(nn.Module):
    """`VectorQuantize` with the interface of the reference's codebook: k-means initialisation, dead codes replaced."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.quantize = VectorQuantize(
            codebook_dim,
            codebook_size,
            decay=DECAY,
            kmeans_init=True,
            threshold_ema_dead_code=2,
            commitment_weight=1.0,  # weighed by the caller
        )

    @property
    def codebook(self) -> Tensor:
        rows: Tensor = self.quantize.codebook
        return rows

    def encode(self, vectors: Tensor) -> Tensor:
        codes: Tensor = self.quantize(vectors[None], freeze_codebook=True)[1][0]
        return codes

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        quantized, _, commitment = self.quantize(vectors[None])
        return quantized[0], commitment.sum()


class LibraryQuantizerVQVAE(ReferenceVQVAE):
    """Autoencoder around the quantizer of `vector-quantize-pytorch`, on 80 x 80 maps.

    It uses the reference's inner stages, which hold nearly all of its parameters.
    """

    image_size = 80
    widths: tuple[int, ...] = (1, 64, 128, 256)

    def __init__(self, codebook_size: int = 128, codebook_dim: int = 512):
        super().__init__(codebook_size, codebook_dim)
        self.quantizer = _LibraryCodebook(codebook_size, codebook_dim)  # type: ignore[assignment]


class DiffusersVQVAE(nn.Module):
    """diffusers' `VQModel` on 80 x 80 maps with 2 x 2 pixels folded into channels.

    It has about the reference's parameters and cost per map; at 320 x 320 its blocks would cost many times as much.
    Its codebook learns by gradient.
    """

    image_size = 80

    def __init__(self, codebook_size: int = 128):
        super().__init__()
        widths = (32, 64, 224)
        self.model: Any = VQModel(
            in_channels=4,
            out_channels=4,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=widths,
            norm_num_groups=16,
            latent_channels=16,
            num_vq_embeddings=codebook_size,
            vq_embed_dim=16,
        )

    @property
    def codebook(self) -> Tensor:
        """(K, D)"""
        rows: Tensor = self.model.quantize.embedding.weight
        return rows

    def _folded(self, depth: Tensor) -> Tensor:
        """Maps (B, H, W) as (B, 4, S/2, S/2) in [-1, 1]."""
        return F.pixel_unshuffle(min_max(depth, self.image_size), 2).contiguous(memory_format=torch.channels_last)

    def forward(self, depth: Tensor) -> dict[str, Tensor]:
        """Loss terms of maps (B, H, W): "reconstruction", the mean squared error in [-1, 1], and "commitment"."""
        x = self._folded(depth)
        out = self.model(x)
        return {"reconstruction": (out.sample - x).square().mean(), "commitment": out.commit_loss}

    @torch.no_grad()
    def encode(self, depth: Tensor) -> Tensor:
        """Codes (B, 10, 10) of maps (B, H, W)."""
        latents = self.model.encode(self._folded(depth)).latents  # (B, D, h, w)
        codes: Tensor = self.model.quantize(latents)[2][2]
        return codes.view(len(latents), *latents.shape[2:])

    @torch.no_grad()
    def decode(self, codes: Tensor, size: tuple[int, int]) -> Tensor:
        """Nearness (B, *size) in [0, 1] of codes (B, h, w)."""
        quantized = self.codebook[codes].permute(0, 3, 1, 2)  # (B, D, h, w)
        decoded = self.model.decode(quantized, force_not_quantize=True).sample  # (B, 4, S/2, S/2)
        return nearness(F.pixel_shuffle(decoded, 2), size)
