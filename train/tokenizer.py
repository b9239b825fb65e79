"""Trains a depth tokenizer on rendered scenes: `python -m train.tokenizer`.

    python -m train.tokenizer --config train/configs/tokenizer.yaml  # the shipped default, 17 minutes on one core
    python -m train.tokenizer --loop.steps 1000 --run_dir runs/quick --out runs/quick/finished  # all bars, 6 minutes

Half of each batch is scenes as they are, the rest is bent, cropped, holed and made up (`train.depth_augment`), so that
measured maps pass through the same codes. A killed run goes on where it stopped when started again. Order accuracy on
held-out scenes to expect: 99 % after 500 steps; what the later steps buy is sharper edges.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from perception.scenes.render import render_scenes
from perception.scenes.store import SceneStore
from train.config import fingerprint, parse_config
from train.depth_augment import training_batch
from train.loop import FitResult, LoopConfig, fit
from vqvae import VQVAE, VQVAEConfig
from vqvae.metrics import depth_errors
from vqvae.quantizer import codebook_usage

HELD_OUT_SEED = 40_000_000
"""First seed of the scenes that sort the codebook and report the finished tokenizer; no training takes these."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Configuration of a tokenizer's training."""

    run_dir: str = "runs/tokenizer"
    out: str = "runs/tokenizer/finished"
    """folder of the finished tokenizer, half precision"""
    store: str = "runs/scenes/tokenizer"
    first_seed: int = 1_000_000
    num_scenes: int = 12_000
    num_held_out: int = 256
    batch_size: int = 32
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4500,
            learning_rate=1.5e-3,
            warmup_steps=100,
            min_lr_ratio=0.02,
            betas=(0.9, 0.98),
            precision="bf16",
        )
    )

    def __post_init__(self) -> None:
        if min(self.num_scenes, self.num_held_out, self.batch_size) < 1:
            raise ValueError(
                f"num_scenes ({self.num_scenes}), num_held_out ({self.num_held_out}) and batch_size "
                f"({self.batch_size}) must be at least 1"
            )


@dataclass(frozen=True)
class DepthBatches:
    """Batch `step`: a pure function of the step, the rank and the seed."""

    store: SceneStore
    batch_size: int
    seed: int

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, rank))
        rows = np.sort(rng.integers(len(self.store), size=self.batch_size))
        scenes = torch.from_numpy(self.store.depth[rows].astype(np.float32))  # (N, S, S)
        scenes = scenes[torch.from_numpy(rng.permutation(self.batch_size))]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        depth, mask = training_batch(scenes, generator)
        return {"depth": depth, "mask": mask}


def tokenizer_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The VQVAE's total loss, and its terms for the log."""
    output = model(**batch)
    terms = {name: term.detach() for name, term in vars(output.losses).items() if name != "total"}
    return output.losses.total, {**terms, "perplexity": output.perplexity}


@torch.no_grad()
def report(model: VQVAE, depth: Tensor, look: str, console: Console) -> None:
    """Prints what the tokenizer keeps of held-out depth (N, S, S); `benchmarks.tokenizer_quality` measures in full."""
    codes = torch.cat([model.encode(chunk) for chunk in depth.split(64)])  # (N, h, w)
    ranges = model.normalise(depth).depth_range
    pairs = zip(codes.split(64), ranges.split(64), strict=True)
    decoded = torch.cat([model.decode(some, near_far) for some, near_far in pairs])  # (N, S, S)
    figures = {name: round(value, 4) for name, value in depth_errors(decoded, depth).means().items()}
    used = codebook_usage(torch.bincount(codes.flatten(), minlength=model.config.codebook_size))
    console.print(f"{look}: {figures}, {100 * used:.0f} % of the codebook used")


def train(config: TokenizerConfig) -> FitResult:
    """Runs or resumes a training, sorts the codebook and writes the finished tokenizer to `config.out`."""
    torch.manual_seed(config.loop.seed)
    size = config.model.image_size
    seeds = range(config.first_seed, config.first_seed + config.num_scenes)
    store = SceneStore.build(config.store, seeds, image_size=size)
    model = VQVAE(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = DepthBatches(store, config.batch_size, config.loop.seed)
    free = ("run_dir", "out", "store", "num_held_out")  # what may change when a run is resumed
    settings = fingerprint(config, free)
    result = fit(
        model, batches, tokenizer_loss, config.loop, Path(config.run_dir), title="tokenizer", fingerprint=settings
    )
    if not result.is_main:
        return result
    model = model.cpu().eval()
    held_out = range(HELD_OUT_SEED, HELD_OUT_SEED + config.num_held_out)
    standard = render_scenes(held_out, "standard", size).depth
    model.sort_codebook(standard)
    model.save_pretrained(config.out, dtype=torch.float16)
    finished = VQVAE.from_pretrained(config.out)  # what is reported is what was written
    console = Console()
    report(finished, standard, "standard", console)
    report(finished, render_scenes(held_out, "shifted", size).depth, "shifted", console)
    return result


def main(argv: list[str] | None = None) -> None:
    config = parse_config(TokenizerConfig, argv)
    result = train(config)
    if result.is_main:
        waited = 100 * result.data_wait_share
        print(
            f"{result.steps} steps, {result.seconds:.0f} s ({waited:.1f} % waiting for data); tokenizer: {config.out}"
        )


if __name__ == "__main__":
    main()
