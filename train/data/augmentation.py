"""Photometric augmentation of image batches. Hues hardly change, so that colour names stay true."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


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
