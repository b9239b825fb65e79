"""Fine-tunes any image-text-to-text model with perception tokens, on records (`python -m train.finetune`).

    python -m train.finetune --base models/tiny-base --data.own questions.csv --out runs/finetune/model

The base is a folder or hub name of LLaVA, Qwen-VL, SmolVLM, InternVL, Gemma3, PaliGemma, ...; its own processor makes
image inputs and prompts. The data are a CSV or JSON lines of your own, COCO's or LVIS's annotations, depth maps with
their images, AURORA's JSON files, or records that were written before; any of them together (`--data.*`, see
`train.data.records`; the columns of your own are described in `perception.datasets.own`). Atomic tasks come
first, chains and direct answers are mixed in by `--schedule.*`.

The model that is written is a stock folder of transformers, LoRA merged, in the base's precision, with the vocabulary
and the depth tokenizer beside it. A run that was stopped goes on from its newest whole checkpoint.

On several devices: `accelerate launch --config_file train/configs/accelerate/fsdp2_8gpu.yaml -m train.finetune ...`, or
one of the other files there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from perception.chains import ChatPrompt
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.model.image_inputs import accepted_inputs
from perception.vocabulary.names import NAMINGS, PerceptionVocabulary
from train.base import save_as
from train.data.curriculum import KindSchedule
from train.data.record_batches import RecordBatches, RecordPlan
from train.data.record_rows import RecordRows
from train.data.records import SourcesConfig, read_sources
from train.data.rows import RowEncoder, TokenWeights
from train.loop.command_line import command_line, fingerprint, parse_config
from train.models.adapters import LoraSettings, adapt, align_only, check_rows, merged
from train.models.losses import LossSettings, SpanLosses
from train.models.parts import embedding_names, keep_still, tower_parameters, vision_tower
from vqvae import VQVAE
from vqvae.checkpoint import CONFIG_NAME, WEIGHTS_NAME

TRAINING_FILE, SETTINGS_FILE = "training.json", "settings.json"
_FREE = ("run_dir", "out", "num_workers", "log_every", "save_every", "gradient_checkpointing")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of a fine-tuning on records."""

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
    naming: str = "default"
    """default (<LOC_n>), or aurora (<PIXEL_n>)"""
    new_rows: str = "description"
    """how new rows start: mean, description, codebook"""
    train_rows: str = "all"
    """which embedding rows train: all, or new (the perception tokens' alone)"""
    tower_lr_ratio: float = 0.0
    """learning rate of the vision tower over that of the rest; 0 freezes it"""
    only_projector: bool = False
    """align a new projector: nothing else trains"""
    base_precision: str = "fp32"
    """of the weights in memory: fp32, or bf16 for LoRA on a large base"""
    gradient_checkpointing: bool = False
    """less memory, a third more time"""
    batch_size: int = 16
    """rows of a device"""
    gradient_accumulation: int = 1
    """batches of a device to a step"""
    length_groups: int = 4
    """forwards a batch is cut into, of rows of like length: less padding"""
    steps: int = 1000
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.0
    """last learning rate over the highest; between them it falls as a cosine"""
    grad_clip: float = 1.0
    precision: str = "bf16"
    """of the forward: bf16 (autocast) or fp32"""
    save_every: int = 200
    """steps between checkpoints"""
    log_every: int = 10
    num_workers: int = 2
    """processes that make batches; 0 makes them in between steps"""
    seed: int = 0
    data: SourcesConfig = field(default_factory=SourcesConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    schedule: KindSchedule = field(default_factory=KindSchedule)
    weights: TokenWeights = field(default_factory=TokenWeights)
    losses: LossSettings = field(default_factory=LossSettings)

    def __post_init__(self) -> None:
        check_rows(self.train_rows)
        if self.naming not in NAMINGS:
            raise ValueError(f"naming must be one of {', '.join(NAMINGS)}, got {self.naming!r}")
        for name in ("precision", "base_precision"):
            if getattr(self, name) not in ("bf16", "fp32"):
                raise ValueError(f"{name} must be bf16 or fp32, got {getattr(self, name)!r}")
        for name in ("batch_size", "gradient_accumulation", "length_groups", "steps", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("tower_lr_ratio", "weight_decay", "warmup_ratio", "min_lr_ratio", "grad_clip", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.only_projector and (self.lora.rank or self.train_rows == "new" or self.tower_lr_ratio):
            raise ValueError(
                f"only_projector trains nothing else, and lora.rank is {self.lora.rank}, train_rows {self.train_rows}, "
                f"tower_lr_ratio {self.tower_lr_ratio}; leave these at 0, all and 0"
            )
        if self.new_rows == "codebook" and not self.depth_tokenizer:
            raise ValueError("new_rows=codebook needs the depth tokenizer's codebook; set depth_tokenizer")

    @property
    def groups(self) -> int:
        """Forwards of a batch: no more than it has rows."""
        return min(self.length_groups, self.batch_size)


@dataclass(frozen=True)
class FinetuneResult:
    """How a run ended."""

    steps: int
    losses: tuple[float, ...]
    """of each line of the log, the last one last; of this call where the run was resumed"""
    padding_share: float
    """of all places for tokens in the batches of the main device, those that were padded"""
    records: int
    skipped: int
    resumed_from: int | None
    is_main: bool


@dataclass(frozen=True)
class Parts:
    """What is trained, and what belongs to it."""

    model: Any
    """extended, adapted"""
    processor: Any
    vocabulary: PerceptionVocabulary
    accepted: frozenset[str]
    tower: tuple[str, ...]
    """names of the vision tower's parameters"""
    tables: tuple[str, ...]
    """names of the embeddings' parameters"""


def unbound_vocabulary(config: FinetuneConfig, vqvae: VQVAE | None) -> PerceptionVocabulary:
    """The sizes that a run's records are made for."""
    codes = config.depth_codes if vqvae is None else vqvae.config.codebook_size
    side = config.depth_side if vqvae is None else vqvae.config.grid_size
    return PerceptionVocabulary(codes, (side, side), config.num_locations, config.naming)


def build_parts(config: FinetuneConfig, vqvae: VQVAE | None) -> Parts:
    """Reads the base, extends it and says what trains. The same every time.

    Raises:
        ValueError: naming the file that is missing or half written, or what does not fit.
    """
    torch.manual_seed(config.seed)
    base = find_folder(config.base)
    check_files(base, has_vocabulary=False)
    processor, model = read_processor(base), read_model(base, _DTYPES[config.base_precision])
    sources: dict[str, Any] = {}
    if config.new_rows == "codebook":
        sources = {"codebook": vqvae.codebook if vqvae is not None else None}
    elif config.new_rows == "description" and vqvae is not None:
        # Codes are sorted by nearness, so code k reads as its hundredth of the way.
        size = vqvae.config.codebook_size
        sources = {"descriptions": {f"<DEPTH_{k}>": f" {round(99 * k / max(1, size - 1))}" for k in range(size)}}
    wanted = unbound_vocabulary(config, vqvae)
    vocabulary = wanted.extend(model, processor.tokenizer, init=config.new_rows, **sources)
    accepted = accepted_inputs(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tower = tower_parameters(model)
    if not config.tower_lr_ratio:
        keep_still(vision_tower(model))
    tables = [model.get_submodule(name).weight for name in embedding_names(model)]
    model = adapt(model, vocabulary, config.lora, config.train_rows)
    for parameter in tower:
        parameter.requires_grad_(config.tower_lr_ratio > 0)
    if config.only_projector:
        align_only(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    table_names = tuple(names[id(p)] for p in tables if id(p) in names)
    return Parts(model, processor, vocabulary, accepted, tuple(names[id(p)] for p in tower), table_names)


def train(config: FinetuneConfig) -> FinetuneResult:
    """Runs or resumes a fine-tuning and writes the finished model to `config.out`.

    Raises:
        ValueError: as the readers and `build_parts`; for a run that was begun with other settings.
    """
    from train.loop.record_trainer import RecordTrainer, checkpoints, drop_half_written

    arguments = _arguments(config)  # first: joins the processes of a launch
    vqvae = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval() if config.depth_tokenizer else None
    run_dir = Path(config.run_dir)
    wanted = unbound_vocabulary(config, vqvae)
    found = read_sources(config.data, wanted, vqvae, run_dir)
    parts = build_parts(config, vqvae)
    batches = _batches(config, parts, found.records, arguments.world_size)
    with arguments.main_process_first(local=False):
        if arguments.process_index == 0:
            _check_settings(config, run_dir, arguments.world_size)
            (run_dir / "skipped.txt").write_text("".join(f"{line}\n" for line in found.skipped))
            drop_half_written(run_dir)
    newest = max(checkpoints(run_dir), default=None)
    span_losses = SpanLosses.build(config.losses, parts.vocabulary, vqvae)
    trainer = _trainer(config, RecordTrainer, parts, arguments, batches, span_losses)
    trainer.train(resume_from_checkpoint=None if newest is None else str(checkpoints(run_dir)[newest]))
    losses = tuple(line["loss"] for line in trainer.state.log_history if "loss" in line)
    is_main = trainer.is_world_process_zero()
    result = FinetuneResult(
        trainer.state.global_step,
        losses,
        trainer.padding_share,
        len(found.records),
        len(found.skipped),
        newest,
        is_main,
    )
    model = _whole_model(trainer, config, vqvae)
    if is_main:
        write_folder(Path(config.out), lambda out: _save(model, parts, vqvae, config, result, out))
    trainer.accelerator.wait_for_everyone()
    return result


def _arguments(config: FinetuneConfig) -> Any:
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=config.run_dir,
        max_steps=config.steps,
        per_device_train_batch_size=1,  # an item of the batches is a forward already
        gradient_accumulation_steps=config.gradient_accumulation * config.groups,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        adam_beta2=0.95,
        warmup_steps=round(config.warmup_ratio * config.steps),
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": config.min_lr_ratio},
        max_grad_norm=config.grad_clip,
        bf16=config.precision == "bf16",
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,
        logging_steps=config.log_every,
        seed=config.seed,
        dataloader_num_workers=config.num_workers,
        remove_unused_columns=False,
        ddp_find_unused_parameters=True,  # LLaVA reads hidden layers of a tower and leaves out what comes after
        use_cpu=not torch.accelerator.is_available(),
        report_to=[],
    )


def _batches(config: FinetuneConfig, parts: Parts, records: tuple[Any, ...], world: int) -> RecordBatches:
    tokenizer = parts.processor.tokenizer
    encoder = RowEncoder(parts.vocabulary, tokenizer, ChatPrompt.from_processor(parts.processor), config.weights)
    rows_a_step = config.batch_size * config.gradient_accumulation * world
    tasks = [record.example.task for record in records]
    plan = RecordPlan.draw(tasks, config.schedule, config.steps, rows_a_step, config.seed)
    rows = RecordRows(encoder, parts.processor, parts.accepted)
    return RecordBatches(rows, records, plan, config.batch_size, config.gradient_accumulation, config.groups, world)


def _trainer(
    config: FinetuneConfig, kind: Any, parts: Parts, arguments: Any, batches: RecordBatches, span_losses: SpanLosses
) -> Any:
    from train.loop.record_trainer import MarkWhole

    trainer = kind(
        model=parts.model,
        args=arguments,
        train_dataset=batches,
        data_collator=lambda items: items[0],
        callbacks=[MarkWhole()],
        span_losses=span_losses,
        tower_names=parts.tower,
        tower_lr_ratio=config.tower_lr_ratio,
        fixed_rows=parts.tables if config.train_rows == "new" else (),
    )
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded and config.train_rows == "new" and config.lora.rank == 0:
        raise ValueError("train_rows=new without LoRA needs whole tables on a device; set lora.rank, or train all rows")
    return trainer


def _whole_model(trainer: Any, config: FinetuneConfig, vqvae: VQVAE | None) -> Any:
    """The trained model in one piece, on the main process."""
    if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        return trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # gathered on the main process alone
    if not trainer.is_world_process_zero():
        return None
    model = build_parts(config, vqvae).model
    model.load_state_dict(state)
    return model


def _check_settings(config: FinetuneConfig, run_dir: Path, world: int) -> None:
    """Writes what decides a run's outcome, or holds it against what was written when it was begun."""
    mine = fingerprint(config, free=_FREE) | {"rows_a_step": config.batch_size * config.gradient_accumulation * world}
    path = run_dir / SETTINGS_FILE
    if path.exists():
        theirs = json.loads(path.read_text())
        changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        if changed:
            name = changed[0]
            raise ValueError(
                f"{run_dir} was begun with {name} {theirs.get(name)!r}, got {mine.get(name)!r}; give another "
                "run_dir, or the settings it was begun with"
            )
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(mine, indent=1) + "\n")


def write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder whole or not at all: a full disk leaves what was there before."""
    partial, old = out.with_name(f".{out.name}.partial"), out.with_name(f".{out.name}.old")
    for stale in (partial, old):
        shutil.rmtree(stale, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _save(
    model: Any, parts: Parts, vqvae: VQVAE | None, config: FinetuneConfig, result: FinetuneResult, out: Path
) -> None:
    """A merged, stock transformers folder; beside it the vocabulary, the depth tokenizer and how it was trained."""
    described = json.loads((find_folder(config.base) / "config.json").read_text())
    dtype = getattr(torch, str(described.get("dtype") or described.get("torch_dtype") or "float32"))
    plain = merged(model)
    plain.config.dtype = dtype
    save_as(plain, out, dtype)
    parts.processor.save_pretrained(out)
    if vqvae is not None:
        source = find_folder(config.depth_tokenizer)
        (out / "depth_tokenizer").mkdir()
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            shutil.copyfile(source / name, out / "depth_tokenizer" / name)
    parts.vocabulary.save(out)
    record = {"command": command_line("train.finetune", config), "steps": result.steps, "records": result.records}
    record |= {"skipped": result.skipped, "final_loss": round(result.losses[-1], 4) if result.losses else None}
    record |= {"padding_share": round(result.padding_share, 4)}
    (out / TRAINING_FILE).write_text(json.dumps(record, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    result = train(parse_config(FinetuneConfig, argv))
    if result.is_main:
        print(
            f"done: {result.steps} steps on {result.records} records ({result.skipped} left out), "
            f"{100 * result.padding_share:.1f} % of the tokens were padding"
        )


if __name__ == "__main__":
    main()
