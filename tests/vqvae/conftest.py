"""A tokenizer small enough for any machine, and depth maps for it."""

from __future__ import annotations

import pytest
import torch
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE


@pytest.fixture
def tiny() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(TINY).eval()


@pytest.fixture
def depth() -> Tensor:
    """(4, 20, 24) metres: a slope with a nearer box on it"""
    maps = torch.linspace(2, 9, 20)[None, :, None].expand(4, 20, 24).clone()
    for index in range(4):
        maps[index, 5 + index : 12, 3 : 9 + index] = 1.5 + 0.3 * index
    return maps
