"""Networks of tokenizers that others have published, for weights that were trained elsewhere (`vqvae.published`).

All take nearness scaled to the config's value_range, as the originals take their input, and 0 in holes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vqvae.config import VQVAEConfig


class PublishedBlock(nn.Module):
    """Residual block of two 3x3 convolutions and one of 1x1, with a ReLU between them."""

    def __init__(self, channels: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


def _scaled(x: Tensor, config: VQVAEConfig) -> Tensor:
    """What a published encoder takes, (B, 1, S, S), from values in [-1, 1] and validity (B, 2, S, S)."""
    far, near = config.value_range
    values, valid = x.split(1, 1)
    return torch.where(valid > 0, far + (near - far) * (values + 1) / 2, 0)


def _nearness(x: Tensor, config: VQVAEConfig) -> Tensor:
    far, near = config.value_range
    return (x - far) / (near - far)


class ConvolutionalEncoder(nn.Module):
    """Encoder of AiT's, AURORA's and MolmoAct's: (B, 2, S, S), values and validity, to (B, codebook_dim, h, w)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        stages = config.downsample.bit_length() - 1
        widths = [1, *(config.channels >> (stages - 1 - stage) for stage in range(stages))]
        layers: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.ReLU()]
        layers += [PublishedBlock(config.channels) for _ in range(config.num_res_blocks)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(config.channels, config.codebook_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.layers(_scaled(x, self.config))  # (B, D, h, w)
        return z


class ConvolutionalDecoder(nn.Module):
    """Decoder of AiT's, AURORA's and MolmoAct's: (B, codebook_dim, h, w) to nearness (B, S, S), unclamped."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        stages = config.downsample.bit_length() - 1
        widths = [config.channels, *(config.channels >> stage for stage in range(stages))]
        layers: list[nn.Module] = [nn.Conv2d(config.codebook_dim, config.channels, 1), nn.ReLU()]
        layers += [PublishedBlock(config.channels) for _ in range(config.num_res_blocks)]
        for wide, narrow in zip(widths, widths[1:], strict=False):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 1))

    def forward(self, quantized: Tensor) -> Tensor:
        return _nearness(self.layers(quantized)[:, 0], self.config)  # (B, S, S)


def _build_vqmodel(config: VQVAEConfig) -> Any:
    try:
        from diffusers import VQModel
    except ImportError as error:
        raise ImportError("a tokenizer with diffusers' networks needs diffusers: pip install diffusers") from error
    return VQModel.from_config(config.vqmodel)


class VQModelEncoder(nn.Module):
    """Encoder of diffusers' VQModel: (B, 2, S, S), values and validity, to (B, codebook_dim, h, w)."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        built = _build_vqmodel(config)
        self.network, self.last = built.encoder, built.quant_conv
        self.in_channels = int(built.config.in_channels)

    def forward(self, x: Tensor) -> Tensor:
        values = _scaled(x, self.config).expand(-1, self.in_channels, -1, -1)  # (B, C, S, S), equal channels
        z: Tensor = self.last(self.network(values))  # (B, D, h, w)
        return z


class VQModelDecoder(nn.Module):
    """Decoder of diffusers' VQModel: (B, codebook_dim, h, w) to nearness (B, S, S), the mean of its channels."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.config = config
        built = _build_vqmodel(config)
        self.first, self.network = built.post_quant_conv, built.decoder
        self.spatial = built.config.norm_type == "spatial"

    def forward(self, quantized: Tensor) -> Tensor:
        maps = self.network(self.first(quantized), quantized if self.spatial else None)  # (B, C, S, S)
        return _nearness(maps.mean(1), self.config)  # (B, S, S)
