"""Fine-tunes the tiny model on rendered scenes, AURORA-style (`python -m train.aurora`).

One run, one checkpoint, for depth and counting: atomic tasks first, chains and direct answers mixed in by the
curriculum. `--arm direct` trains the baseline on the same images: it only ever answers directly. The recipe is
`train.finetune`'s, with the settings below.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.finetune import FinetuneConfig, main
from train.loop.config import LoopConfig


@dataclass(frozen=True)
class AuroraConfig(FinetuneConfig):
    """Configuration of a fine-tuning on rendered scenes."""

    recipe: ClassVar[str] = "train.aurora"

    out: str = "runs/aurora/model"
    run_dir: str = "runs/aurora"
    tower_lr_ratio: float = 0.05
    """learning rate of the vision tower over that of the rest; 0 freezes it. At half the rate the tower forgets colours
    while the atomic tasks, which hardly ask for them, are all there is, and no count of red things recovers"""
    length_groups: int = 2
    data: SourcesConfig = field(default_factory=lambda: SourcesConfig(scenes=ScenesConfig(count=40_000)))
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=7000,
            learning_rate=1e-3,
            weight_decay=0.05,
            warmup_steps=60,
            min_lr_ratio=0.03,
            precision="bf16",
            find_unused_parameters=True,  # LLaVA reads hidden layers of a tower and leaves out what comes after
        )
    )


if __name__ == "__main__":
    main(config_class=AuroraConfig)
