"""Trains an AURORA model with GRPO on rendered scenes (`python -m train.reinforce_scenes`).

The model counts, drawing boxes first, or says which point is closest, drawing the depth map first. GRPO rewards the
answer and what was drawn on the way: boxes by their overlap with the true ones, depth readings by their order
(Visual-RFT, arXiv 2503.01785). Rendered scenes come with these truths. The trainer is that of `train.reinforce`, with
chains that never look.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from perception.answers import POINT_LETTERS
from perception.chains import prompt_for
from perception.datasets.progress import track
from perception.evaluation.scenes import Item, scene_items
from perception.interleave.triggers import InterleaveSettings
from perception.model.folder import find_folder
from perception.scenes.styles import StyleName
from train.data.interleaved import ChainProblem
from train.loop.checkpoints import RunState
from train.loop.command_line import parse_config
from train.loop.fit import FitResult, LoopConfig
from train.reinforce import ReinforceConfig, RewardWeights
from train.reinforce import export as export_checkpoint
from train.reinforce import train as reinforce

Task = Literal["counting", "depth"]
REWARDS: dict[Task, RewardWeights] = {
    "counting": RewardWeights(answer=0.0, format=0.0, count=1.0, box_iou=0.5),
    "depth": RewardWeights(answer=1.0, format=0.0, depth_order=0.5),
}
NEVER = InterleaveSettings(max_looks=0)
FIRST_SEED = 70_000_000
"""First seed of the scenes; those held out start 5,000,000 further. No other recipe or benchmark renders these"""


@dataclass(frozen=True)
class SceneReinforceConfig:
    """Trains an AURORA model with GRPO on rendered scenes."""

    model: str = "models/aurora-tiny"
    """folder of the model to start from"""
    out: str = "runs/reinforced_scenes/model"
    """folder of the model that did best on held-out questions"""
    run_dir: str = "runs/reinforced_scenes"
    """folder for checkpoints and logs"""
    export: str = ""
    """name of a checkpoint in run_dir, such as checkpoint-50, or best: write it as a model to out, and train nothing.
    The other settings must be those of the run"""
    task: Task = "counting"
    """counting: how many objects. depth: which point is closest"""
    style: StyleName = "shifted"
    """style of the scenes"""
    questions: int = 800
    """number of questions to train on"""
    held_out: int = 200
    """number of further questions that decide when to stop"""
    batch_size: int = 8
    """questions per optimiser step, over all devices"""
    num_generations: int = 4
    """chains sampled per question"""
    temperature: float = 0.7
    """sampling temperature of the chains; at 1 the tiny model misplaces most boxes"""
    beta: float = 0.02
    """weight of the KL divergence from the start model"""
    reward_perception: bool = True
    """also reward what is drawn: boxes by their overlap, depth readings by their order; false: the answer alone"""
    loop: LoopConfig = field(
        default_factory=lambda: replace(ReinforceConfig().loop, steps=200, learning_rate=1e-4, evaluate_every=50)
    )

    @property
    def rewards(self) -> RewardWeights:
        weights = REWARDS[self.task]
        return weights if self.reward_perception else replace(weights, box_iou=0.0, depth_order=0.0)


def problem_of(item: Item) -> ChainProblem:
    """A question about a scene, with the truths that rewards need."""
    truths: dict[str, object] = {"boxes_xyxy": item.boxes_xyxy}
    if item.kind == "count":
        truths["count"] = int(item.answer)
    else:
        truths["depth_order"] = "".join(POINT_LETTERS[i] for i in np.argsort(-item.nearness, kind="stable"))
    question = prompt_for(item.question, "chain")[0]
    return ChainProblem(item.image.numpy(), question, str(item.answer), kind=item.kind, truths=truths)


def scene_problems(config: SceneReinforceConfig) -> tuple[Sequence[ChainProblem], Sequence[ChainProblem]]:
    """Problems to train on, and problems held out."""
    found = []
    for count, seed in ((config.questions, FIRST_SEED), (config.held_out, FIRST_SEED + 5_000_000)):
        numbers = (count, 0) if config.task == "counting" else (0, -(-count // 4))
        items = scene_items(config.style, *numbers, seed)
        found.append([problem_of(item) for item in track(items[:count], "rendering")])
    return found[0], found[1]


def settings_of(config: SceneReinforceConfig) -> ReinforceConfig:
    """The settings of the trainer."""
    return ReinforceConfig(
        start=config.model,
        out=config.out,
        run_dir=config.run_dir,
        export=config.export,
        batch_size=config.batch_size,
        num_generations=config.num_generations,
        max_completion_length=100 if config.task == "counting" else 160,
        temperature=config.temperature,
        beta=config.beta,
        rewards=config.rewards,
        loop=config.loop,
    )


def train(config: SceneReinforceConfig) -> FitResult:
    """Runs or resumes. Writes the model that did best on held-out questions to `config.out`, for `PerceptionModel`."""
    result = reinforce(settings_of(config), *scene_problems(config), NEVER)
    if result.is_main:
        copy_tokenizer(config)
    return result


def export(config: SceneReinforceConfig) -> RunState:
    """Writes a checkpoint of a run as a model; see `train.interleave.write_checkpoint`."""
    state = export_checkpoint(settings_of(config), NEVER)
    copy_tokenizer(config)
    return state


def copy_tokenizer(config: SceneReinforceConfig) -> None:
    """Copies the start model's depth tokenizer, if it has one, beside the finished model."""
    tokenizer = find_folder(config.model) / "depth_tokenizer"
    if tokenizer.exists():
        shutil.copytree(tokenizer, Path(config.out) / tokenizer.name, dirs_exist_ok=True)


def main(argv: list[str] | None = None) -> None:
    config = parse_config(SceneReinforceConfig, argv)
    if config.export:
        print(f"{export(config).step} steps of training; model: {config.out}")
    else:
        print(f"done: {train(config)}")


if __name__ == "__main__":
    main()
