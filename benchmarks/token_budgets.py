"""What does a depth map lose at each number of tokens and codes? `python -m benchmarks.token_budgets`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from train.loop_config import LoopConfig
from train.tokenizer import TokenizerConfig, train
from vqvae import VQVAEConfig

BUDGETS = (16, 36, 64, 100, 196, 400)
"""Tokens a map"""
CODEBOOKS = (128, 512, 4096)
FSQ_LEVELS = {128: (8, 4, 4), 512: (8, 8, 8), 4096: (8, 8, 8, 8)}
CELL = 8
"""Pixels a side of the cell that a token stands for: every budget has the same network, at another resolution"""


@dataclass(frozen=True)
class Variant:
    """One tokenizer of the grid."""

    tokens: int
    codebook_size: int
    quantizer: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.tokens}-{self.codebook_size}-{self.quantizer}" + (f"-seed{self.seed}" if self.seed else "")

    @property
    def model(self) -> VQVAEConfig:
        levels = FSQ_LEVELS[self.codebook_size] if self.quantizer == "fsq" else ()
        return VQVAEConfig(
            image_size=CELL * round(self.tokens**0.5),
            downsample=CELL,
            codebook_size=self.codebook_size,
            codebook_dim=len(levels) or 16,
            quantizer=self.quantizer,
            fsq_levels=levels,
        )


def variants() -> list[Variant]:
    grid = [Variant(tokens, size, kind) for size in CODEBOOKS for kind in ("ema", "fsq") for tokens in BUDGETS]
    return grid + [Variant(100, 128, "ema", seed) for seed in (1, 2)]


def training(variant: Variant, folder: Path, steps: int) -> TokenizerConfig:
    """The recipe of one tokenizer: the shipped one's data, batch and schedule, with fewer steps."""
    size = variant.model.image_size
    return TokenizerConfig(
        run_dir=str(folder / variant.name / "run"),
        out=str(folder / variant.name / "finished"),
        store=str(folder / f"scenes-{size}"),
        num_held_out=64,
        model=variant.model,
        loop=LoopConfig(
            steps=steps,
            learning_rate=1.5e-3,
            warmup_steps=100,
            min_lr_ratio=0.02,
            betas=(0.9, 0.98),
            precision="bf16",
            seed=variant.seed,
        ),
    )


def train_all(folder: Path, steps: int) -> None:
    for variant in variants():
        config = training(variant, folder, steps)
        if not (Path(config.out) / "model.safetensors").exists():
            train(config)
