"""Reinforces chains of perception with what they perceive (`python -m train.reinforce_scenes`).

An AURORA model counts, drawing boxes first, or says which point is closest, drawing the depth map first. GRPO rewards
the answer, and the boxes by their overlap with the true ones or the readings of the points by their order (Visual-RFT,
arXiv 2503.01785): truths that rendered scenes have, and a few labelled images of one's own would. The trainer is
`train.reinforce`'s; a chain of perception is one that never looks.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.progress import track

from perception.answers import POINT_LETTERS
from perception.chains import prompt_for
from perception.evaluation.scenes import Item, scene_items
from perception.interleave.triggers import InterleaveSettings
from perception.model.folder import find_folder
from perception.scenes.styles import STYLES
from train.data.interleaved import ChainProblem
from train.loop.command_line import parse_config
from train.loop.fit import FitResult, LoopConfig
from train.reinforce import ReinforceConfig, RewardWeights
from train.reinforce import train as reinforce

COUNTING, DEPTH = "counting", "depth"
REWARDS = {
    COUNTING: RewardWeights(answer=0.0, format=0.0, count=1.0, box_iou=0.5),
    DEPTH: RewardWeights(answer=1.0, format=0.0, depth_order=0.5),
}
NEVER = InterleaveSettings(max_looks=0)


@dataclass(frozen=True)
class SceneReinforceConfig:
    """Configuration of a run."""

    model: str = "models/aurora-tiny"
    out: str = "runs/reinforced_scenes/model"
    run_dir: str = "runs/reinforced_scenes"
    task: str = COUNTING
    """counting, or depth"""
    style: str = "shifted"
    """of the scenes: standard, or shifted"""
    questions: int = 800
    held_out: int = 200
    """questions that decide when to stop"""
    first_seed: int = 70_000_000
    """of the scenes"""
    batch_size: int = 8
    """questions of an optimiser step, over all devices"""
    num_generations: int = 4
    """chains a question"""
    temperature: float = 0.7
    """of the chains that are drawn: at 1 few boxes of the tiny model are where they should be"""
    beta: float = 0.02
    """of the KL divergence from the model it begins with"""
    rewards: RewardWeights | None = None
    """none: the count and the boxes' overlap; or the answer and the order of readings"""
    loop: LoopConfig = field(
        default_factory=lambda: replace(ReinforceConfig().loop, steps=200, learning_rate=1e-4, evaluate_every=50)
    )

    def __post_init__(self) -> None:
        if self.task not in REWARDS:
            raise ValueError(f"unknown task {self.task!r}; known: {', '.join(REWARDS)}")
        if self.style not in STYLES:
            raise ValueError(f"unknown style {self.style!r}; known: {', '.join(STYLES)}")


def problem_of(item: Item) -> ChainProblem:
    """A question about a scene, with the truths that rewards ask for."""
    truths: dict[str, object] = {"boxes_xyxy": item.boxes_xyxy}
    if item.kind == "count":
        truths["count"] = int(item.answer)
    else:
        truths["depth_order"] = "".join(POINT_LETTERS[i] for i in np.argsort(-item.nearness, kind="stable"))
    question = prompt_for(item.question, "chain")[0]
    return ChainProblem(item.image.numpy(), question, str(item.answer), kind=item.kind, truths=truths)


def scene_problems(config: SceneReinforceConfig) -> tuple[Sequence[ChainProblem], Sequence[ChainProblem]]:
    """Those to train on, and those held out."""
    found = []
    for count, seed in ((config.questions, config.first_seed), (config.held_out, config.first_seed + 5_000_000)):
        numbers = (count, 0) if config.task == COUNTING else (0, -(-count // 4))
        items = scene_items(config.style, *numbers, seed)
        found.append([problem_of(item) for item in track(items[:count], description="rendering", transient=True)])
    return found[0], found[1]


def train(config: SceneReinforceConfig) -> FitResult:
    """Runs or resumes; the best model on held-out questions goes to `config.out`, readable by `PerceptionModel`."""
    problems, held_out = scene_problems(config)
    settings = ReinforceConfig(
        start=config.model,
        out=config.out,
        run_dir=config.run_dir,
        batch_size=config.batch_size,
        num_generations=config.num_generations,
        max_completion_length=100 if config.task == COUNTING else 160,
        temperature=config.temperature,
        beta=config.beta,
        rewards=config.rewards or REWARDS[config.task],
        loop=config.loop,
    )
    result = reinforce(settings, problems, held_out, NEVER)
    tokenizer = find_folder(config.model) / "depth_tokenizer"
    if result.is_main and tokenizer.exists():
        shutil.copytree(tokenizer, Path(config.out) / tokenizer.name, dirs_exist_ok=True)
    return result


def main(argv: list[str] | None = None) -> None:
    print(f"done: {train(parse_config(SceneReinforceConfig, argv))}")


if __name__ == "__main__":
    main()
