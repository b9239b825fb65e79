"""Fine-tune the tiny model on rendered scenes, AURORA-style (`python -m train.aurora`).

One run trains one model for both depth and counting: it starts with atomic tasks, and the curriculum mixes in chains
and direct answers. `--arm direct` trains the baseline, which learns only direct answers, on the same images. The recipe
is `train.finetune`'s, with the settings below.
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
    """ratio of the vision tower's learning rate to that of the rest; 0 freezes the tower. At a ratio of 0.5 the tower
    forgets colours during the atomic tasks, which hardly need them, and counting by colour never recovers"""
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
            find_unused_parameters=True,  # LLaVA reads a hidden layer of its tower and does not use the layers after it
        )
    )


if __name__ == "__main__":
    main(config_class=AuroraConfig)
