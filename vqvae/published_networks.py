"""Networks of tokenizers that others have published, for weights that were trained elsewhere (`vqvae.published`).

All but 4M's take nearness scaled to the config's value_range, as the originals take their input, and 0 in holes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
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


HEAD_WIDTH = 64
"""Channels of an attention head in all of 4M's encoders"""
_TRIMMED = 0.1
"""Share of the pixels that 4M leaves out at either end of a map, for the mean and deviation that it standardises by"""


def _standardised(nearness: Tensor) -> Tensor:
    """Depth (B, 1, S, S) of trimmed mean 0 and deviation 1, as 4M's encoder takes it, from nearness (B, 1, S, S)."""
    depth = 1 - nearness
    pixels = depth.flatten(1).sort().values  # (B, S*S)
    count = pixels.shape[1]
    kept = pixels[:, int(_TRIMMED * count) : int((1 - _TRIMMED) * count)]
    mean, variance = kept.mean(1)[:, None, None, None], kept.var(1)[:, None, None, None]  # (B, 1, 1, 1)
    return (depth - mean) / (variance + 1e-6).sqrt()


class TransformerEncoder(nn.Module):
    """Encoder of 4M's depth tokenizers: (B, 2, S, S), values and validity, to unit vectors (B, codebook_dim, h, w).

    A vision transformer without a norm at its end, with an MLP of tanh behind it. The codebook is one of unit vectors
    too, so the nearest one is the one with the largest cosine.
    """

    def __init__(self, config: VQVAEConfig):
        super().__init__()
        width, grid = config.channels, config.grid_size
        layer: dict[str, Any] = {"activation": "gelu", "dropout": 0.0, "layer_norm_eps": 1e-6}
        layer |= {"batch_first": True, "norm_first": True}
        self.patches = nn.Conv2d(1, width, config.downsample, config.downsample)
        self.position = nn.Parameter(torch.zeros(1, width, grid, grid))
        self.layers = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, width // HEAD_WIDTH, 4 * width, **layer)
                for _ in range(config.num_res_blocks)
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.Tanh(), nn.Linear(4 * width, width))
        self.last = nn.Conv2d(width, config.codebook_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(_standardised((x[:, :1] + 1) / 2)) + self.position  # (B, C, h, w)
        y = self.layers(patches.flatten(2).mT)  # (B, h*w, C)
        y = y + self.mlp(self.norm(y))
        return F.normalize(self.last(y.mT.reshape(patches.shape)), dim=1)  # (B, D, h, w)


class NoDecoder(nn.Module):
    """Stands for a decoder that is not there: 4M's is a diffusion model."""

    def __init__(self, config: VQVAEConfig):
        super().__init__()

    def forward(self, quantized: Tensor) -> Tensor:
        raise ValueError(
            "this tokenizer has no decoder: 4M's is a diffusion model, which is not imported; decode the codes with "
            "4M's own code, or use a tokenizer that decodes, such as depth-scenes-100"
        )
