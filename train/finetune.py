"""Fine-tunes any image-text-to-text model with perception tokens (`python -m train.finetune`).

    python -m train.finetune --base models/tiny-base --data.own questions.csv --out runs/finetune/model

The base is a folder or hub name of LLaVA, Qwen-VL, SmolVLM, InternVL, Gemma3, PaliGemma, ...; its own processor makes
image inputs and prompts. The data are a CSV or JSON lines of your own, COCO's or LVIS's annotations, depth maps with
their images, AURORA's JSON files, records that were written before, or rendered scenes; any of them together
(`--data.*`, see `train.data.records`; the columns of your own are described in `perception.datasets.own`). Atomic tasks
come first, chains and direct answers are mixed in by `--curriculum.*`. `--arm direct` trains a baseline on the same
data that only ever answers directly. `train.aurora` is this recipe with the settings of the tiny model.

The model that is written is a stock folder of transformers, LoRA merged, in the base's precision, with the vocabulary
and the depth tokenizer beside it. A run that was stopped goes on from its newest whole checkpoint.

On several devices: `accelerate launch --config_file train/configs/accelerate/fsdp2_8gpu.yaml -m train.finetune ...`, or
one of the other files there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perception.chains import TASKS, ChatPrompt
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.model.image_inputs import accepted_inputs
from perception.vocabulary.names import PerceptionVocabulary
from train.data.curriculum import CurriculumConfig
from train.data.records import KINDS, RecordRows, SourcesConfig, read_records
from train.data.rows import RowBatches, RowEncoder, RowSource, TokenWeights
from train.data.scenes import SceneRows, TaskMaker, depth_codes
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.config import check_choices
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.optimizer import parameter_groups
from train.loop.progress import read_log
from train.loop.sharding import launched_sharded, whole_weights
from train.models.adapters import LoraSettings, adapt, align_only, merged
from train.models.attention import use_plain_attention
from train.models.losses import row_losses, target_logits
from train.models.parts import embedding_names, keep_still, tower_parameters, vision_tower
from train.models.saving import save_perception_model, stored_dtype
from vqvae import VQVAE

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of a fine-tuning."""

    recipe: ClassVar[str] = "train.finetune"

    arm: Literal["aurora", "direct"] = "aurora"
    """aurora: draws, then answers; direct: the baseline, which learns direct answers alone"""
    base: str = "models/tiny-base"
    """folder or hub name of any image-text-to-text model of transformers"""
    out: str = "runs/finetune/model"
    run_dir: str = "runs/finetune"
    depth_tokenizer: str = "tokenizers/depth-scenes-100"
    """folder or hub name; empty: the data hold codes of a tokenizer that is not at hand, as AURORA's do"""
    depth_codes: int = 128
    """size of the codebook, where there is no depth_tokenizer"""
    depth_side: int = 10
    """codes in a row and in a column of a map, where there is no depth_tokenizer"""
    num_locations: int = 100
    naming: Literal["default", "aurora"] = "default"
    """names of the location tokens: default (<LOC_n>), or aurora (<PIXEL_n>)"""
    new_rows: Literal["mean", "description", "codebook"] = "description"
    """how new embedding rows start"""
    train_rows: Literal["all", "new"] = "all"
    """which embedding rows train: all, or new (the perception tokens' alone)"""
    tower_lr_ratio: float = 0.0
    """learning rate of the vision tower over that of the rest; 0 freezes it"""
    only_projector: bool = False
    """align a new projector: nothing else trains"""
    base_precision: Literal["fp32", "bf16"] = "fp32"
    """of the weights in memory: fp32, or bf16 for LoRA on a large base"""
    gradient_checkpointing: bool = False
    """less memory, a third more time"""
    batch_size: int = 16
    """rows per device, and per gradient accumulation"""
    length_groups: int = 4
    """forwards that a batch is cut into, of rows of like length: less padding, less memory"""
    data: SourcesConfig = field(default_factory=SourcesConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    weights: TokenWeights = field(default_factory=TokenWeights)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            learning_rate=2e-4,
            weight_decay=0.0,
            warmup_steps=0.03,
            min_lr_ratio=0.0,
            precision="bf16",
            num_workers=2,
            find_unused_parameters=True,  # LLaVA reads hidden layers of a tower and leaves out what comes after
        )
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("batch_size", "length_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tower_lr_ratio < 0:
            raise ValueError(f"tower_lr_ratio must not be negative, got {self.tower_lr_ratio}")
        if self.only_projector and (self.lora.rank or self.train_rows == "new" or self.tower_lr_ratio):
            raise ValueError(
                f"only_projector trains nothing else, and lora.rank is {self.lora.rank}, train_rows {self.train_rows}, "
                f"tower_lr_ratio {self.tower_lr_ratio}; leave these at 0, all and 0"
            )
        for needs, wanted in (
            ("new_rows=codebook", self.new_rows == "codebook"),
            ("data.scenes", self.data.scenes.count),
        ):
            if wanted and not self.depth_tokenizer:
                raise ValueError(f"{needs} needs the depth tokenizer; set depth_tokenizer")


@dataclass(frozen=True)
class FinetuneResult:
    """How a run ended."""

    fit: FitResult
    losses: tuple[float, ...]
    """of each line of the log, the last one last"""
    padding_share: float
    """share of padding in a forward, mean over the run"""
    scenes: int
    records: int
    skipped: int
    """records that were left out"""


@dataclass(frozen=True)
class Parts:
    """What is trained, and what belongs to it."""

    model: Any
    """extended, adapted"""
    processor: Any
    vocabulary: PerceptionVocabulary
    accepted: frozenset[str]
    """names of what the model's forward takes"""
    tower: tuple[nn.Parameter, ...]
    """the vision tower's parameters"""
    tables: tuple[nn.Parameter, ...]
    """of the embeddings"""


def train(config: FinetuneConfig) -> FinetuneResult:
    """Runs or resumes a fine-tuning and writes the finished model to `config.out`.

    Raises:
        ValueError: as the readers and `build_parts`; for a run that was begun with other settings.
    """
    if launched_sharded() and config.train_rows == "new" and not config.lora.rank:
        raise ValueError("train_rows=new without LoRA needs whole tables on a device; set lora.rank, or train all rows")
    base = find_folder(config.base)
    check_files(base, has_vocabulary=False)
    vqvae = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval() if config.depth_tokenizer else None
    found = read_records(config.data, unbound_vocabulary(config, vqvae), vqvae, Path(config.run_dir))
    parts = build_parts(config, vqvae)
    batches = build_batches(config, parts, vqvae, found.records)
    fixed = parts.tables if config.train_rows == "new" else ()
    fitted = fit(
        parts.model,
        batches,
        target_loss,
        config.loop,
        config.run_dir,
        param_groups=parameter_groups(parts.model, (parts.tower, config.tower_lr_ratio), undecayed=fixed),
        in_parts=True,
        weight=target_weight,
        title=config.arm,
        fingerprint=fingerprint(config, free=("run_dir", "out", "gradient_checkpointing")),
        shardable=True,
    )
    log = read_log(Path(config.run_dir))
    padding = [record["losses"]["padding"] for record in log]
    result = FinetuneResult(
        fitted,
        tuple(record["loss"] for record in log),
        sum(padding) / max(1, len(padding)),
        config.data.scenes.count,
        len(found.records),
        len(found.skipped),
    )
    model = whole_model(config, parts, vqvae, fitted.is_main)
    if fitted.is_main:
        (Path(config.run_dir) / "skipped.txt").write_text("".join(f"{line}\n" for line in found.skipped))
        save_perception_model(
            merged(model),
            parts.processor,
            parts.vocabulary,
            Path(config.out),
            training_record(config, result),
            stored_dtype(base),
            find_folder(config.depth_tokenizer) if config.depth_tokenizer else None,
        )
    return result


def unbound_vocabulary(config: FinetuneConfig, vqvae: VQVAE | None) -> PerceptionVocabulary:
    """The sizes that a run's data are made for."""
    codes = config.depth_codes if vqvae is None else vqvae.config.codebook_size
    side = config.depth_side if vqvae is None else vqvae.config.grid_size
    return PerceptionVocabulary(codes, (side, side), config.num_locations, config.naming)


def build_parts(config: FinetuneConfig, vqvae: VQVAE | None) -> Parts:
    """Reads the base, extends it and says what trains. The same every time.

    Raises:
        ValueError: naming the file that is missing or half written, or what does not fit.
    """
    torch.manual_seed(config.loop.seed)
    base = find_folder(config.base)
    processor, model = read_processor(base), read_model(base, _DTYPES[config.base_precision])
    sources: dict[str, Any] = {}
    if vqvae is not None and config.new_rows == "codebook":
        sources = {"codebook": vqvae.codebook}
    elif vqvae is not None and config.new_rows == "description":
        # Codes are sorted by nearness, so code k reads as its hundredth of the way.
        size = vqvae.config.codebook_size
        sources = {"descriptions": {f"<DEPTH_{k}>": f" {round(99 * k / max(1, size - 1))}" for k in range(size)}}
    wanted = unbound_vocabulary(config, vqvae)
    vocabulary = wanted.extend(model, processor.tokenizer, init=config.new_rows, **sources)
    accepted = accepted_inputs(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    use_plain_attention(model.get_decoder())
    tower = tuple(tower_parameters(model))
    if not config.tower_lr_ratio:
        keep_still(vision_tower(model))
    tables = tuple(model.get_submodule(name).weight for name in embedding_names(model))
    model = adapt(model, vocabulary, config.lora, config.train_rows)
    if config.only_projector:
        align_only(model)
    return Parts(model, processor, vocabulary, accepted, tower, tables)


def build_batches(config: FinetuneConfig, parts: Parts, vqvae: VQVAE | None, records: tuple[Any, ...]) -> RowBatches:
    """The batches of a run, of scenes and records.

    Raises:
        ValueError: where there are neither, or too few rows in a batch for both.
    """
    scenes, loop, sources = config.data.scenes, config.loop, list[tuple[RowSource, int]]()
    of_scenes = 0
    if scenes.count:
        assert vqvae is not None, "the configuration's own check"
        of_scenes = round(config.batch_size * scenes.share) if config.data.any_records else config.batch_size
        store = scenes.build()
        codes, maker = depth_codes(store, vqvae), TaskMaker(parts.vocabulary, vqvae)
        rows = SceneRows(store, codes, maker, config.curriculum, config.arm, loop.steps, loop.seed)
        sources.append((rows, of_scenes))
    if config.data.any_records:
        if config.arm == "direct":
            records = tuple(record for record in records if record.example.task in KINDS["direct"])
        sources.append((RecordRows(records, config.curriculum, loop.steps, loop.seed), config.batch_size - of_scenes))
    if any(count < 1 for _, count in sources):
        raise ValueError(f"a batch of {config.batch_size} rows has no room for scenes and records; raise batch_size")
    prompt = ChatPrompt.from_processor(parts.processor)
    encoder = RowEncoder(parts.vocabulary, parts.processor, prompt, config.weights, parts.accepted)
    return RowBatches(encoder, tuple(sources), config.length_groups)


def target_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean loss over the weights of the targets; the mean of each task, and the share of padding."""
    logits, labels, weights = target_logits(model, batch)
    losses = row_losses(logits, labels, weights)  # (B,)
    scalars = {"padding": 1 - batch["attention_mask"].float().mean()}
    for task in batch["task"].unique().tolist():
        rows = batch["task"] == task
        scalars[TASKS[task]] = losses[rows].sum().detach() / weights[rows].sum()
    return losses.sum() / weights.sum(), scalars


def target_weight(batch: dict[str, Tensor]) -> Tensor:
    """What `target_loss` of a batch counts in its step: the weights of its targets."""
    return batch["weights"].sum()


def whole_model(config: FinetuneConfig, parts: Parts, vqvae: VQVAE | None, is_main: bool) -> Any:
    """The trained model in one piece, on the main process."""
    if not launched_sharded():
        return parts.model.cpu()
    weights = whole_weights(parts.model, is_main)
    if not is_main:
        return None
    model = build_parts(config, vqvae).model
    model.load_state_dict(weights)
    return model


def training_record(config: FinetuneConfig, result: FinetuneResult) -> dict[str, Any]:
    """What a model's folder says of its training. The same when a finished run is started again."""
    fitted = result.fit
    return {
        "command": command_line(config.recipe, config),
        "steps": fitted.steps,
        "samples_a_step": config.batch_size * fitted.shards,
        "scenes": result.scenes,
        "records": result.records,
        "skipped": result.skipped,
        "minutes": round(fitted.seconds / 60, 1),
        "final_loss": round(fitted.final_loss, 4),
        "waiting_for_data": round(fitted.data_wait_share, 4),
        "padding_share": round(result.padding_share, 4),
    }


def report(result: FinetuneResult) -> str:
    """One line on how a run ended."""
    data = f"{result.scenes} scenes and {result.records} records ({result.skipped} left out)"
    return (
        f"done: {result.fit.steps} steps on {data}, final loss {result.fit.final_loss:.4f}, "
        f"{100 * result.padding_share:.1f} % of the tokens were padding"
    )


def main(argv: list[str] | None = None, config_class: type[FinetuneConfig] = FinetuneConfig) -> None:
    result = train(parse_config(config_class, argv))
    if result.fit.is_main:
        print(report(result))


if __name__ == "__main__":
    main()
