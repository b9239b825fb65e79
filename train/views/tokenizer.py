"""Evaluation of a depth tokenizer on held-out maps: figures, and pictures of reconstructions and of codebook use."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perception.tokenizers.depth import DepthTokenizer
from train.loop.evaluation import Evaluation
from vqvae import VQVAE
from vqvae.quantizer import codebook_usage, perplexity

_BATCH = 64
_SHOWN = 8
_PICTURE = 80
"""pixels per side of a map in the picture"""
_BARS = (64, 512)
"""height and width in pixels of the picture of the codebook"""


def reconstruction_picture(model: VQVAE, depth: Tensor) -> NDArray[np.uint8]:
    """Draw the first maps of depth (N, H, W) above their reconstructions, holes grey, as (2 * S, n * S, 3)."""
    shown = depth[:_SHOWN]
    normalised = model.normalise(shown)
    truth = torch.where(normalised.mask[:, 0], normalised.nearness, torch.nan).cpu()  # (n, S, S)
    decoded = model.decode(model.encode(shown)).cpu()

    def drawn(nearness: Tensor) -> NDArray[np.uint8]:
        picture = DepthTokenizer.draw(nearness).resize((_PICTURE, _PICTURE), Image.Resampling.NEAREST)
        return np.asarray(picture)

    return np.concatenate([np.concatenate([drawn(m) for m in maps], 1) for maps in (truth, decoded)])


def codebook_picture(counts: Tensor) -> NDArray[np.uint8]:
    """Draw the counts (K,) of codes as bars, from the most to the least used, as (H, W, 3).

    The line is the height of all bars if codes were used equally often. White at the right end means unused codes.
    """
    height, width = _BARS
    share = counts.float().sort(descending=True).values / counts.sum().clamp_min(1) * len(counts)  # 1: a fair share
    top = max(1.0, float(share.max()))
    bars = share[torch.arange(width) * len(counts) // width] / top * (height - 1)  # (W,): pixels
    rows = torch.arange(height - 1, -1, -1)[:, None]  # (H, 1): from the top down
    picture = torch.full((height, width, 3), 255, dtype=torch.uint8)
    picture[(rows < bars).expand(height, width)] = torch.tensor([60, 70, 140], dtype=torch.uint8)
    picture[height - 1 - round((height - 1) / top)] = torch.tensor([200, 60, 40], dtype=torch.uint8)
    return picture.numpy()


@torch.no_grad()
def evaluate_tokenizer(model: VQVAE, depth: Tensor) -> Evaluation:
    """Loss terms and codebook use of a model in evaluation mode on depth (N, H, W), NaN in holes."""
    device = model.codebook.device
    counts = torch.zeros(model.config.codebook_size, dtype=torch.long, device=device)
    sums: dict[str, float] = {}
    for chunk in depth.split(_BATCH):
        output = model(chunk.to(device))
        counts += torch.bincount(output.codes.flatten(), minlength=len(counts))
        for name, term in vars(output.losses).items():
            sums[name] = sums.get(name, 0.0) + float(term) * len(chunk)
    figures = {name: value / len(depth) for name, value in sums.items()}
    loss = figures.pop("total")
    figures |= {"codebook_usage": codebook_usage(counts), "perplexity": float(perplexity(counts))}
    pictures = {
        "reconstructions": reconstruction_picture(model, depth[:_SHOWN].to(device)),
        "codebook": codebook_picture(counts.cpu()),
    }
    return Evaluation(loss, figures, pictures)
