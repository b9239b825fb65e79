"""Networks around the codebook: an encoder with a narrow field of view, and a decoder with a wide one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqvae.config import VQVAEConfig


class WideBlock(nn.Module):
    """Residual block of a depthwise convolution and a two-layer MLP (ConvNeXt, Liu et al. 2022, without layer scale).

    At a 10x10 grid a 7x7 kernel sees half of the map at a fraction of the cost of a dense convolution.
    """

    def __init__(self, channels: int, kernel_size: int):
        super().__init__()
        self.context = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.context(x).permute(0, 2, 3, 1)  # (B, h, w, C)
        y = self.narrow(F.gelu(self.widen(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)  # (B, C, h, w)


class ResidualBlock(nn.Module):
    """Residual block of two dense 3x3 convolutions; the second starts small, so that stacks start near the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(x))))


def stage_channels(config: VQVAEConfig) -> list[int]:
    """Channels at 1/2, 1/4, .. 1/downsample of the image's side."""
    num_stages = config.downsample.bit_length() - 1
    return [max(32, config.channels >> (num_stages - 1 - stage)) for stage in range(num_stages - 1)] + [config.channels]


class Encoder(nn.Module):
    """Encoder: (B, 2, S, S), values in [-1, 1] and validity, to (B, codebook_dim, h, w).

    With nested codes it has a wider view and knows each cell's place, because the first codes stand for more than
    their own cell.
    """

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        widths = stage_channels(config)
        # Space-to-depth rather than a convolution at full size: nothing is thrown away and it costs nothing.
        self.stem = nn.Conv2d(2 * 4, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Conv2d(narrow, wide, 4, stride=2, padding=1))
            for narrow, wide in zip(widths[:-1], widths[1:], strict=True)
        )
        self.block = WideBlock(config.channels, kernel_size=7 if config.nested else 3)
        grid = config.grid_size
        self.place = nn.Parameter(torch.zeros(config.channels, grid, grid)) if config.nested else None  # (C, h, w)
        self.head = nn.Conv2d(config.channels, config.codebook_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(F.pixel_unshuffle(x, 2))  # (B, C0, S/2, S/2)
        for stage in self.stages:
            x = stage(x)  # (B, C, S/4, S/4), ... (B, C, h, w)
        if self.place is not None:
            x = x + self.place
        return self.head(self.block(x))  # (B, D, h, w)


class Decoder(nn.Module):
    """Decoder: (B, codebook_dim, h, w) to nearness (B, S, S), unclamped."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        widths = stage_channels(config)[::-1]
        self.stem = nn.Conv2d(config.codebook_dim, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(WideBlock(widths[0], kernel_size=7) for _ in range(config.num_res_blocks))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, 4 * narrow, 1), nn.PixelShuffle(2), ResidualBlock(narrow))
            for wide, narrow in zip(widths[:-1], widths[1:], strict=True)
        )
        self.head = nn.Conv2d(widths[-1], 4, 3, padding=1)

    def forward(self, quantized: Tensor) -> Tensor:
        x = self.stem(quantized)  # (B, C, h, w)
        for block in self.blocks:
            x = block(x)
        for stage in self.stages:
            x = stage(x)  # (B, C/2, 2h, 2w), ... (B, C0, S/2, S/2)
        x = F.pixel_shuffle(self.head(F.silu(x)), 2)  # (B, 1, S, S)
        return 0.5 + x[:, 0]  # (B, S, S); starts in the middle of the range
