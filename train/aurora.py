"""Fine-tunes a vision-language model with perception tokens, AURORA-style (`python -m train.aurora`).

One run, one checkpoint, for depth and counting: atomic tasks first, chains and direct answers mixed in by the
curriculum. `--arm direct` trains the baseline on the same images: it only ever answers directly.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perception.chains import TASKS, ChatPrompt
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.scenes.store import SceneStore
from perception.scenes.styles import STYLES
from perception.vocabulary.names import PerceptionVocabulary
from train.base import save_half
from train.data.curriculum import CurriculumConfig
from train.data.scene_codes import depth_codes
from train.data.scenes import ARMS, TaskBatches, TaskMaker, TokenWeights
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.optimizer import parameter_groups
from train.models.adapters import LoraSettings, adapt, check_rows, merged
from train.models.attention import use_plain_attention
from train.models.losses import LossSettings, SpanLosses, target_logits
from train.models.parts import tower_parameters
from vqvae import VQVAE
from vqvae.checkpoint import CONFIG_NAME, WEIGHTS_NAME

TRAINING_FILE = "training.json"


@dataclass(frozen=True)
class AuroraConfig:
    """Configuration of a fine-tuning run."""

    arm: str = "aurora"
    """aurora, or direct for the baseline"""
    base: str = "models/tiny-base"
    out: str = "runs/aurora/model"
    run_dir: str = "runs/aurora"
    depth_tokenizer: str = "tokenizers/depth-scenes-100"
    store: str = "runs/scenes/standard"
    style: str = "standard"
    """of the scenes: standard, or shifted; a store holds those of one style"""
    num_scenes: int = 40_000
    first_seed: int = 0
    batch_size: int = 16
    num_locations: int = 100
    new_rows: str = "description"
    """how new rows start: mean, description, codebook"""
    train_rows: str = "all"
    """which embedding rows train: all, or new (the perception tokens' alone)"""
    tower_lr_ratio: float = 0.05
    """learning rate of the vision tower over that of the rest; 0 freezes it. At half the rate the tower forgets colours
    while the atomic tasks, which hardly ask for them, are all there is, and no count of red things recovers"""
    lora: LoraSettings = field(default_factory=LoraSettings)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    weights: TokenWeights = field(default_factory=TokenWeights)
    losses: LossSettings = field(default_factory=LossSettings)
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

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"unknown arm {self.arm!r}; known arms: {', '.join(ARMS)}")
        if self.style not in STYLES:
            raise ValueError(f"unknown style {self.style!r}; known: {', '.join(STYLES)}")
        check_rows(self.train_rows)


def task_loss(
    model: nn.Module, batch: list[dict[str, Tensor]], step: int, losses: SpanLosses
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the targets over all halves of a batch, and the mean of each task.

    The mean is over the weights of the whole batch, so a batch in halves gives the loss of the batch in one.
    """
    total = torch.zeros(())
    norm = sum(part["weights"].sum() for part in batch)
    sums: dict[str, list[Tensor]] = {}
    for part in batch:
        logits, labels, weights = target_logits(model, part)
        rows_losses = losses(logits, labels, weights)  # (b,)
        total = total + rows_losses.sum()
        for task in part["task"].unique().tolist():
            rows = part["task"] == task
            sums.setdefault(TASKS[task], []).append(rows_losses[rows].sum().detach() / weights[rows].sum())
    return total / norm, {name: torch.stack(values).mean() for name, values in sums.items()}


def train(config: AuroraConfig) -> FitResult:
    """Runs or resumes a fine-tuning and writes the finished model to `config.out`.

    Raises:
        ValueError: naming the file of base or depth tokenizer that is missing, half written, or does not fit.
    """
    torch.manual_seed(config.loop.seed)
    base = find_folder(config.base)
    check_files(base, has_vocabulary=False)
    processor, model = read_processor(base), read_model(base, torch.float32)
    depth_tokenizer = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval()
    seeds = range(config.first_seed, config.first_seed + config.num_scenes)
    store = SceneStore.build(config.store, seeds, config.style)
    vocabulary = PerceptionVocabulary(
        depth_codes=depth_tokenizer.config.codebook_size,
        depth_grid=(depth_tokenizer.config.grid_size,) * 2,
        num_locations=config.num_locations,
    ).extend(model, processor.tokenizer, init=config.new_rows, **_row_sources(config, depth_tokenizer))
    prompt = ChatPrompt.from_processor(processor)
    head_ids, _ = prompt.head_ids(processor, torch.zeros(3, 8, 8, dtype=torch.uint8))
    batches = TaskBatches(
        store=store,
        codes=depth_codes(store, depth_tokenizer),
        maker=TaskMaker(vocabulary, depth_tokenizer),
        text_tokenizer=processor.tokenizer,
        prompt=prompt,
        head_ids=tuple(head_ids),
        curriculum=config.curriculum,
        weights=config.weights,
        arm=config.arm,
        batch_size=config.batch_size,
        steps=config.loop.steps,
        seed=config.loop.seed,
    )
    use_plain_attention(model.model.language_model)
    tower = tower_parameters(model)
    model = adapt(model, vocabulary, config.lora, config.train_rows)
    groups = parameter_groups(model, tower, config.tower_lr_ratio, decay_rows=config.train_rows == "all")
    result = fit(
        model,
        batches,
        partial(task_loss, losses=SpanLosses.build(config.losses, vocabulary, depth_tokenizer)),
        config.loop,
        config.run_dir,
        param_groups=groups,
        title=config.arm,
        fingerprint=fingerprint(config, free=("run_dir", "out")),
    )
    if result.is_main:
        save(model, processor, vocabulary, find_folder(config.depth_tokenizer), Path(config.out))
        record = json.dumps(training_record(config, result), indent=1)
        (Path(config.out) / TRAINING_FILE).write_text(record + "\n")
    return result


def training_record(config: AuroraConfig, result: FitResult) -> dict[str, Any]:
    """What a model's folder says of its training: command, steps, samples a step, scenes, minutes, last loss."""
    return {
        "command": command_line("train.aurora", config),
        "steps": result.steps,
        "samples_a_step": config.batch_size * result.shards,
        "scenes": config.num_scenes,
        "minutes": round(result.seconds / 60, 1),
        "final_loss": round(result.final_loss, 4),
        "waiting_for_data": round(result.data_wait_share, 4),
    }


def save(model: Any, processor: Any, vocabulary: PerceptionVocabulary, depth_tokenizer: Path, out: Path) -> None:
    """A merged, stock transformers folder; beside it the vocabulary and the depth tokenizer's own files."""
    save_half(merged(model), out)
    processor.save_pretrained(out)
    (out / "depth_tokenizer").mkdir(exist_ok=True)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        shutil.copyfile(depth_tokenizer / name, out / "depth_tokenizer" / name)
    vocabulary.save(out)


def _row_sources(config: AuroraConfig, depth_tokenizer: VQVAE) -> dict[str, Any]:
    """What new rows are made of. Depth codes are sorted by nearness, so code k reads as its hundredth of the way."""
    if config.new_rows == "codebook":
        return {"codebook": depth_tokenizer.codebook}
    if config.new_rows == "mean":
        return {}
    size = depth_tokenizer.config.codebook_size
    return {"descriptions": {f"<DEPTH_{k}>": f" {round(99 * k / (size - 1))}" for k in range(size)}}


def main(argv: list[str] | None = None) -> None:
    result = train(parse_config(AuroraConfig, argv))
    print(f"done: {result}")


if __name__ == "__main__":
    main()
