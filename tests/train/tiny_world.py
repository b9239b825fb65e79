"""A base model, a depth tokenizer and scenes, each as small as they come, saved to a folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import SwinConfig

from train.models.saving import save_half
from train.models.tiny import TinySize, build_model, build_processor, train_text_tokenizer
from vqvae import VQVAE, VQVAEConfig

CORPUS = [" " + " ".join(str(n) for n in range(100)), "USER: How many red cubes are there? ASSISTANT: A B C D E, so A."]


def make_world(folder: Path) -> dict[str, str]:
    """Paths of an untrained base and an untrained depth tokenizer of 2 x 2 codes."""
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(CORPUS * 30, 400)
    vision = SwinConfig(
        image_size=80, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=10, drop_path_rate=0.0
    )
    size = TinySize(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=32)
    save_half(build_model(tokenizer, vision, size), folder / "base")
    build_processor(tokenizer).save_pretrained(folder / "base")
    depth = VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8))
    depth.save_pretrained(folder / "depth")
    return {"base": str(folder / "base"), "depth_tokenizer": str(folder / "depth"), "store": str(folder / "scenes")}
