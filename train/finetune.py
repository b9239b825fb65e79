"""Fine-tune any image-text-to-text model with perception tokens (`python -m train.finetune`).

    python -m train.finetune --base models/tiny-base --data.own questions.csv --out runs/finetune/model

The base is a folder or hub name of LLaVA, Qwen-VL, SmolVLM, InternVL, Gemma3, PaliGemma, ...; its own processor makes
image inputs and prompts. `--data.*` chooses the data (see `train.data.records`): your own CSV or JSON lines (their
columns are described in `perception.datasets.own`), COCO or LVIS annotations, depth maps with their images, AURORA's
JSON files, existing records, rendered scenes, or any combination of these. Training starts with atomic tasks;
`--curriculum.*` sets how chains and direct answers are mixed in. `--arm direct` trains a baseline that learns only
direct answers, on the same data. `train.aurora` is this recipe with the settings of the tiny model.

The output is a standard transformers folder in the base's precision, with LoRA merged, the vocabulary, the depth
tokenizer and a card. `--save adapter` writes LoRA, the new rows and the projector alone, for the same base. A run that
was stopped resumes from its newest complete checkpoint. The same command with `--export checkpoint-500 --out FOLDER`
trains nothing and writes that checkpoint of the run as such a folder.

On several devices: `accelerate launch --config_file train/configs/accelerate/fsdp2_8gpu.yaml -m train.finetune ...`, or
use another file in that folder.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perception.chains import TASKS, ChatPrompt
from perception.model.adapter import check_adapter, is_adapter
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.model.image_inputs import accepted_inputs
from perception.vocabulary.names import PerceptionVocabulary
from train.data.curriculum import CurriculumConfig
from train.data.records import KINDS, RecordRows, SourcesConfig, check_lengths, read_records, records_digest
from train.data.rows import RowBatches, RowEncoder, RowSource, TokenWeights
from train.data.scenes import SceneRows, TaskMaker, depth_codes
from train.loop.checkpoints import Checkpoints, RunState, frozen_digest
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.config import check_choices
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.optimizer import parameter_groups
from train.loop.progress import read_log
from train.loop.sharding import launched_sharded, whole_weights
from train.models.adapters import (
    LoraSettings,
    adapt,
    align_only,
    checkpoint_activations,
    merged,
    train_in_float32,
)
from train.models.attention import use_plain_attention
from train.models.card import describe_data, write_card
from train.models.losses import row_losses, target_logits
from train.models.parts import embedding_names, keep_still, max_positions, tower_parameters, vision_tower
from train.models.saving import TRAINING_FILE, save_adapter, save_perception_model, stored_dtype
from vqvae import VQVAE

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FREE = ("run_dir", "out", "save", "gradient_checkpointing", "export")
"""Settings that do not decide what is trained"""


@dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of a fine-tuning."""

    recipe: ClassVar[str] = "train.finetune"

    arm: Literal["aurora", "direct"] = "aurora"
    """aurora: draw perception tokens, then answer; direct: the baseline, which learns only direct answers"""
    base: str = "models/tiny-base"
    """folder or hub name of any image-text-to-text model of transformers"""
    out: str = "runs/finetune/model"
    save: Literal["model", "adapter"] = "model"
    """what is written to out: the whole model, or an adapter, which holds LoRA, the new rows and the projector for the
    same base"""
    run_dir: str = "runs/finetune"
    depth_tokenizer: str = "tokenizers/depth-scenes-100"
    """folder or hub name; empty: the data hold codes of a tokenizer that is not available, as AURORA's do"""
    depth_codes: int = 128
    """size of the codebook, if depth_tokenizer is empty"""
    depth_side: int = 10
    """number of codes per row and per column of a depth map, if depth_tokenizer is empty"""
    num_locations: int = 100
    """number of location tokens"""
    naming: Literal["default", "aurora"] = "default"
    """names of the location tokens: default (<LOC_n>), or aurora (<PIXEL_n>)"""
    new_rows: Literal["mean", "description", "codebook"] = "description"
    """initial values of new embedding rows"""
    train_rows: Literal["all", "new"] = "all"
    """embedding rows that train: all, or new (only those of the perception tokens)"""
    tower_lr_ratio: float = 0.0
    """ratio of the vision tower's learning rate to that of the rest; 0 freezes the tower"""
    only_projector: bool = False
    """train only the projector, to align a new one"""
    base_precision: Literal["fp32", "bf16"] = "fp32"
    """precision of the frozen weights in memory: fp32, or bf16 for LoRA on a large base. Weights that train are always
    fp32"""
    gradient_checkpointing: bool = False
    """save memory; steps take about a third longer"""
    batch_size: int = 16
    """rows per device and per gradient accumulation step"""
    length_groups: int = 4
    """number of forward passes per batch, each of rows of similar length; more need less padding and memory"""
    export: str = ""
    """name of a checkpoint in run_dir, such as checkpoint-500: write it as a model to out, and train nothing. The other
    settings must be those of the run"""
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
            find_unused_parameters=True,  # LLaVA reads a hidden layer of its tower and does not use the layers after it
        )
    )

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("batch_size", "length_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.save == "adapter" and (not self.lora.rank or self.tower_lr_ratio):
            raise ValueError(
                f"an adapter holds LoRA and no vision tower, and lora.rank is {self.lora.rank}, tower_lr_ratio "
                f"{self.tower_lr_ratio}; set lora.rank, leave tower_lr_ratio at 0, or save the model"
            )
        if self.tower_lr_ratio < 0:
            raise ValueError(f"tower_lr_ratio must not be negative, got {self.tower_lr_ratio}")
        if self.base_precision == "bf16" and not (self.lora.rank or self.only_projector):
            raise ValueError(
                "base_precision bf16 is for frozen weights, and with lora.rank 0 all weights train; set lora.rank, or "
                "base_precision fp32"
            )
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
    """Result of a fine-tuning run."""

    fit: FitResult
    losses: tuple[float, ...]
    """loss per line of the log, in order"""
    padding_share: float
    """share of padding tokens per forward pass, mean over the run; NaN if its log is lost"""
    scenes: int
    """number of scenes trained on"""
    records: int
    """number of records trained on"""
    skipped: int
    """number of records that were left out"""


@dataclass(frozen=True)
class Parts:
    """The model that is trained, its processor and vocabulary, and the parameters that are treated separately."""

    model: Any
    """model with perception tokens and adapters"""
    processor: Any
    vocabulary: PerceptionVocabulary
    accepted: frozenset[str]
    """names of the inputs that the model's forward accepts"""
    tower: tuple[nn.Parameter, ...]
    """parameters of the vision tower"""
    tables: tuple[nn.Parameter, ...]
    """parameters of the embeddings"""


def train(config: FinetuneConfig) -> FinetuneResult:
    """Train or resume a fine-tuning and write the model to `config.out`.

    Raises:
        ValueError: if the data or the base cannot be used (see `read_records` and `build_parts`), a row has more tokens
            than the model has positions, or the run was started with other settings or other data.
    """
    if launched_sharded() and config.train_rows == "new" and not config.lora.rank:
        raise ValueError("train_rows=new without LoRA needs whole tables on a device; set lora.rank, or train all rows")
    base = find_folder(config.base)
    check_files(base, has_vocabulary=False)
    vqvae = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval() if config.depth_tokenizer else None
    found = read_records(config.data, unbound_vocabulary(config, vqvae), vqvae, Path(config.run_dir))
    parts = build_parts(config, vqvae)
    batches = build_batches(config, parts, vqvae, found.records)
    check_lengths(batches, config.loop.steps)
    settings = fingerprint(config, _FREE)
    if config.data.any_records:
        settings["data_digest"] = records_digest(found.records)
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
        fingerprint=settings,
        shardable=True,
    )
    log = read_log(Path(config.run_dir))
    padding = [record["losses"]["padding"] for record in log]
    result = FinetuneResult(
        fitted,
        tuple(record["loss"] for record in log),
        sum(padding) / len(padding) if padding else math.nan,
        config.data.scenes.count,
        len(found.records),
        len(found.skipped),
    )
    model = whole_model(config, parts, vqvae, fitted.is_main)
    if fitted.is_main:
        written = written_before(config, result)
        if written is not None:
            lost = math.isnan(result.padding_share)
            return replace(result, padding_share=written["padding_share"]) if lost else result
        (Path(config.run_dir) / "skipped.txt").write_text("".join(f"{line}\n" for line in found.skipped))
        save(config, replace(parts, model=model), training_record(config, result))
    return result


def save(config: FinetuneConfig, parts: Parts, record: dict[str, Any]) -> None:
    """Write the trained model to `config.out`, with LoRA merged, or its adapter; depth tokenizer and card beside it."""
    out, tokenizer = Path(config.out), find_folder(config.depth_tokenizer) if config.depth_tokenizer else None
    card = partial(write_card, base=config.base, data=describe_data(config.data), record=record)
    if config.save == "adapter":
        save_adapter(parts.model, parts.vocabulary, config.base, out, record, tokenizer, card)
        return
    dtype = stored_dtype(find_folder(config.base))
    save_perception_model(merged(parts.model), parts.processor, parts.vocabulary, out, record, dtype, tokenizer, card)


def written_before(config: FinetuneConfig, result: FinetuneResult) -> dict[str, Any] | None:
    """Return the record of the model in `config.out` if this run, started again after its end, wrote it before."""
    if result.fit.resumed_from != result.fit.steps:
        return None
    out = Path(config.out)
    if config.save != ("adapter" if is_adapter(out) else "model"):
        return None
    try:
        if config.save == "adapter":
            check_adapter(out)
        else:
            check_files(out)
        record = json.loads((out / TRAINING_FILE).read_text())
    except (OSError, ValueError):
        return None
    unknown = {"command", "padding_share"} if math.isnan(result.padding_share) else {"command"}
    now = training_record(config, result)
    same = record.keys() == now.keys() and all(record[name] == now[name] for name in now.keys() - unknown)
    return record if same else None


def export(config: FinetuneConfig) -> RunState:
    """Write the checkpoint `config.export` of a run as a model to `config.out`; the data are not read.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged, it was made with other settings, or `config.out`
            exists.
    """
    vqvae = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval() if config.depth_tokenizer else None
    checkpoints = Checkpoints(Path(config.run_dir), fingerprint(config, _FREE))
    step = checkpoints.step_of(config.export)
    if Path(config.out).exists():
        raise ValueError(f"{config.out} exists; give --out another folder for {config.export}")
    check_files(find_folder(config.base), has_vocabulary=False)
    parts = build_parts(config, vqvae)
    state = checkpoints.load_weights(step, parts.model, frozen_digest(parts.model))
    record = {
        "command": command_line(config.recipe, config),
        "steps": state.step,
        "minutes": round(state.seconds / 60, 1),
        "final_loss": round(state.loss, 4),
    }
    save(config, parts, record)
    return state


def unbound_vocabulary(config: FinetuneConfig, vqvae: VQVAE | None) -> PerceptionVocabulary:
    """Build the vocabulary, not bound to a tokenizer, with the sizes that the data of a run are made for."""
    codes = config.depth_codes if vqvae is None else vqvae.config.codebook_size
    side = config.depth_side if vqvae is None else vqvae.config.grid_size
    return PerceptionVocabulary(codes, (side, side), config.num_locations, config.naming)


def build_parts(config: FinetuneConfig, vqvae: VQVAE | None) -> Parts:
    """Read the base, add the perception tokens and set what trains. The result is deterministic.

    Raises:
        ValueError: if a file of the base is missing or half written, or a setting does not fit the base.
    """
    torch.manual_seed(config.loop.seed)
    base = find_folder(config.base)
    processor, model = read_processor(base), read_model(base, _DTYPES[config.base_precision])
    sources: dict[str, Any] = {}
    if vqvae is not None and config.new_rows == "codebook":
        sources = {"codebook": vqvae.codebook}
    elif vqvae is not None and config.new_rows == "description":
        # Codes are sorted by nearness, so code k is described by its position on a scale of 0 to 99.
        size = vqvae.config.codebook_size
        sources = {"descriptions": {f"<DEPTH_{k}>": f" {round(99 * k / max(1, size - 1))}" for k in range(size)}}
    wanted = unbound_vocabulary(config, vqvae)
    vocabulary = wanted.extend(model, processor.tokenizer, init=config.new_rows, **sources)
    if config.data.any_records:  # a start model that knew counting and depth alone may now learn more
        model.config.taught_questions = None
    accepted = accepted_inputs(model)
    use_plain_attention(model.get_decoder())
    tower = tuple(tower_parameters(model))
    if not config.tower_lr_ratio:
        keep_still(vision_tower(model))
    tables = tuple(model.get_submodule(name).weight for name in embedding_names(model))
    model = adapt(model, vocabulary, config.lora, config.train_rows)
    if config.only_projector:
        align_only(model)
    for parameter in tower:
        parameter.requires_grad_(config.tower_lr_ratio > 0)
    if config.base_precision != "fp32":
        train_in_float32(model)
    if config.gradient_checkpointing:
        checkpoint_activations(model)
    return Parts(model, processor, vocabulary, accepted, tower, tables)


def build_batches(config: FinetuneConfig, parts: Parts, vqvae: VQVAE | None, records: tuple[Any, ...]) -> RowBatches:
    """Build the batches of a run from scenes and records.

    Raises:
        ValueError: if a batch has too few rows for both.
    """
    scenes, loop, sources = config.data.scenes, config.loop, list[tuple[RowSource, int]]()
    of_scenes = 0
    if scenes.count:
        assert vqvae is not None, "the configuration's own check"
        of_scenes = round(config.batch_size * scenes.share) if config.data.any_records else config.batch_size
        store = scenes.build()
        codes, maker = depth_codes(store, vqvae), TaskMaker(parts.vocabulary, vqvae)
        rows = SceneRows(store, codes, maker, config.curriculum, config.arm, loop.steps, loop.seed, scenes.answers)
        sources.append((rows, of_scenes))
    if config.data.any_records:
        if config.arm == "direct":
            records = tuple(record for record in records if record.example.task in KINDS["direct"])
        sources.append((RecordRows(records, config.curriculum, loop.steps, loop.seed), config.batch_size - of_scenes))
    if any(count < 1 for _, count in sources):
        raise ValueError(f"a batch of {config.batch_size} rows has no room for scenes and records; raise batch_size")
    prompt = ChatPrompt.from_processor(parts.processor)
    longest = max_positions(parts.model)
    encoder = RowEncoder(parts.vocabulary, parts.processor, prompt, config.weights, parts.accepted, longest)
    return RowBatches(encoder, tuple(sources), config.length_groups)


def target_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the weighted mean loss over target tokens; the scalars are the mean per task and the share of padding."""
    logits, labels, weights = target_logits(model, batch)
    losses = row_losses(logits, labels, weights)  # (B,)
    scalars = {"padding": 1 - batch["attention_mask"].float().mean()}
    for task in batch["task"].unique().tolist():
        rows = batch["task"] == task
        scalars[TASKS[task]] = losses[rows].sum().detach() / weights[rows].sum()
    return losses.sum() / weights.sum(), scalars


def target_weight(batch: dict[str, Tensor]) -> Tensor:
    """Return the weight of a batch's `target_loss` in its step: the sum of its target tokens' weights."""
    return batch["weights"].sum()


def whole_model(config: FinetuneConfig, parts: Parts, vqvae: VQVAE | None, is_main: bool) -> Any:
    """Return the trained, unsharded model; None on processes of a sharded run other than the main one."""
    if not launched_sharded():
        return parts.model.cpu()
    weights = whole_weights(parts.model, is_main)
    if not is_main:
        return None
    model = build_parts(config, vqvae).model
    model.load_state_dict(weights)
    return model


def training_record(config: FinetuneConfig, result: FinetuneResult) -> dict[str, Any]:
    """Return the training record for the model's folder. Starting a finished run again does not change it."""
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
        "padding_share": None if math.isnan(result.padding_share) else round(result.padding_share, 4),
    }


def report(result: FinetuneResult) -> str:
    """Summarize a run in one line."""
    data = f"{result.scenes} scenes and {result.records} records ({result.skipped} left out)"
    said = f"done: {result.fit.steps} steps on {data}, final loss {result.fit.final_loss:.4f}"
    if math.isnan(result.padding_share):
        return said
    return f"{said}, {100 * result.padding_share:.1f} % of the tokens were padding"


def main(argv: list[str] | None = None, config_class: type[FinetuneConfig] = FinetuneConfig) -> None:
    config = parse_config(config_class, argv)
    try:
        if config.export:
            print(f"{export(config).step} steps of training; model: {config.out}")
            return
        result = train(config)
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"{config.recipe.rpartition('.')[2]}: {error}")
    if result.fit.is_main:
        print(report(result))


if __name__ == "__main__":
    main()
