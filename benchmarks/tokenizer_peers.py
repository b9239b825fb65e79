"""Ours against AURORA's tokenizer and the libraries' own, trained alike: `python -m benchmarks.tokenizer_peers`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.library_vqvaes import DiffusersVQVAE, LibraryQuantizerVQVAE
from benchmarks.reference_vqvae import ReferenceVQVAE
from perception.scenes.store import SceneStore
from train.loop import fit
from train.loop_config import LoopConfig
from train.tokenizer import DepthBatches, tokenizer_loss
from vqvae import VQVAE

OURS, REFERENCE = "ours", "AURORA's design"
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    OURS: VQVAE,
    REFERENCE: ReferenceVQVAE,
    "AURORA's design, vector-quantize-pytorch": LibraryQuantizerVQVAE,
    "diffusers VQModel": DiffusersVQVAE,
}
IMAGES = 48_000
"""Maps seen, by each"""
STORE_SIZE = 160
"""Pixels a side of the maps that all are trained on"""
FIRST_SEED, NUM_SCENES = 1_000_000, 12_000


def _settings(name: str, images: int, seed: int) -> tuple[int, LoopConfig]:
    """Batch size and schedule: ours are its recipe's, the others' are AURORA's (Adam, 3e-4, times 0.98 every 500
    batches of 8)."""
    if name == OURS:
        steps = images // 32
        return 32, LoopConfig(
            steps=steps,
            learning_rate=1.5e-3,
            warmup_steps=min(100, steps // 4),
            min_lr_ratio=0.02,
            betas=(0.9, 0.98),
            precision="bf16",
            seed=seed,
        )
    steps = images // 8
    return 8, LoopConfig(
        steps=steps,
        learning_rate=3e-4,
        schedule="exponential",
        min_lr_ratio=0.98 ** (steps / 500),
        weight_decay=0.0,
        betas=(0.9, 0.999),
        grad_clip=0.0,
        seed=seed,
    )


def _peer_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    terms: dict[str, Tensor] = model(batch["depth"])
    return torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()}


def trained(name: str, folder: Path, images: int, seed: int) -> nn.Module:
    """A tokenizer after `images` maps, from its newest checkpoint where there is one."""
    torch.manual_seed(seed)
    model = BUILDERS[name]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch_size, loop = _settings(name, images, seed)
    seeds = range(FIRST_SEED, FIRST_SEED + NUM_SCENES)
    store = SceneStore.build(folder / f"scenes-{STORE_SIZE}", seeds, image_size=STORE_SIZE)
    batches = DepthBatches(store, batch_size, seed, augment=False)  # as they are, mirrored: the others know no holes
    run = folder / f"{name.replace(' ', '-').replace(',', '')}-{images}-seed{seed}"
    fit(model, batches, tokenizer_loss if name == OURS else _peer_loss, loop, run, title=name)
    return model.cpu().eval()
