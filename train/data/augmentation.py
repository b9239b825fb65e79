"""Photometric augmentation of image batches. Hues hardly change, so that colour names stay true."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


def photometric(images: Tensor, generator: torch.Generator) -> Tensor:
    """Apply random gain, tint, contrast, gamma, blur and noise, drawn once per image.

    Args:
        images: (B, 3, H, W) float in [0, 1].
        generator: source of all randomness.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    batch = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    gain, tint = uniform(0.7, 1.25, 1, 1, 1), uniform(0.92, 1.08, 3, 1, 1)
    contrast, gamma = uniform(0.75, 1.25, 1, 1, 1), uniform(0.8, 1.25, 1, 1, 1)
    images = (images * gain * tint).clamp(0, 1) ** gamma
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blur = uniform(0, 1, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.3)
    images = images + blur * (soft - images)
    noise = torch.randn(images.shape, generator=generator) * uniform(0, 0.03, 1, 1, 1)
    return (images + noise).clamp(0, 1)


def chromatic(images: Tensor, generator: torch.Generator) -> Tensor:
    """Scale the saturation of images (B, 3, H, W) in [0, 1] by 0.6 to 1.3, and turn their hues by up to 8 degrees.

    Both are done on the chrominance of YIQ. The nearest two colour names of rendered scenes, orange and yellow, are 25
    degrees apart.
    """
    scale = 0.6 + 0.7 * torch.rand(len(images), generator=generator)
    angle = math.radians(8) * (2 * torch.rand(len(images), generator=generator) - 1)
    cos, sin, zero, one = scale * angle.cos(), scale * angle.sin(), torch.zeros_like(scale), torch.ones_like(scale)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(len(images), 3, 3)
    matrix = torch.linalg.inv(_YIQ) @ turn @ _YIQ  # (B, 3, 3)
    return torch.einsum("bij,bjhw->bihw", matrix, images).clamp(0, 1)


def recolour(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Apply random gain, tint and gamma to an RGB image of any size, in the ranges of `photometric`."""
    tints, gamma = rng.uniform(0.7, 1.25) * rng.uniform(0.92, 1.08, size=3), rng.uniform(0.8, 1.25)
    curves = (np.clip(np.linspace(0, 1, 256) * tint, 0, 1) ** gamma for tint in tints)
    return image.point([int(value) for curve in curves for value in np.rint(255 * curve)])


def to_pixels(images: Tensor) -> Tensor:
    """Convert uint8 (B, H, W, 3) to float (B, 3, H, W) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255


def normalise_pixels(images: Tensor) -> Tensor:
    """Scale [0, 1] to [-1, 1], as the tiny model's image processor does (mean and std 0.5)."""
    return images * 2 - 1
