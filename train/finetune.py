"""Fine-tune any image-text-to-text model with perception tokens (`python -m train.finetune`).

    python -m train.finetune --base models/tiny-base --data.own questions.csv --out runs/finetune/model

The base is a folder or hub name of LLaVA, Qwen-VL, SmolVLM, InternVL, Gemma3, PaliGemma, ...; its own processor makes
image inputs and prompts. `--data.*` chooses the data (docs/data.md): your own CSV or JSON lines, conversations of
messages and images (a file, a folder or a hub name), detection labels of COCO, LVIS, VOC or YOLO, depth maps with their
images, AURORA's JSON files, existing records, rendered scenes, or any combination of these. Training starts with atomic
tasks; `--curriculum.*` sets how chains and direct answers are mixed in. `--arm direct` trains a baseline that learns
only direct answers, on the same data. `--evaluation.share 0.05` holds images out and measures the model on them during
training (`train.data.held_out`). `train.aurora` is this recipe with the settings of the tiny model.

The output is a standard transformers folder in the base's precision, with LoRA merged, the vocabulary, the depth
tokenizer and a card. `--save adapter` writes LoRA, the new rows and the projector alone, for the same base. A run that
was stopped resumes from its newest complete checkpoint. The same command with `--export checkpoint-500 --out FOLDER`
trains nothing and writes that checkpoint of the run as such a folder; `--export best` writes the weights with the
lowest loss on held-out data.

On several devices: `accelerate launch --config_file train/configs/accelerate/fsdp2_8gpu.yaml -m train.finetune ...`, or
use another file in that folder.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from perception.chains import TASKS, ChatPrompt
from perception.datasets.boxes import RESIZED, resize_rule
from perception.datasets.depth.files import DepthFormat
from perception.datasets.records import Record, RecordSet
from perception.model.adapter import check_adapter, is_adapter
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.model.image_inputs import accepted_inputs
from perception.model.perception_model import max_positions
from perception.scenes.scene import Scene
from perception.tokenizers.masks import MaskTokenizer
from perception.vocabulary.names import PerceptionVocabulary
from train.data.curriculum import CurriculumConfig
from train.data.held_out import EvaluationConfig, HeldOutRecords, split, unseen
from train.data.photo_views import view_rows
from train.data.photos import photo_rows
from train.data.records import (
    KINDS,
    RecordRows,
    SourcesConfig,
    check_conversations,
    check_lengths,
    check_records,
    least_side,
    read_records,
    records_digest,
    too_long,
)
from train.data.rows import RowBatches, RowEncoder, RowSource, TokenWeights
from train.data.scenes import SceneRows, TaskMaker, depth_codes
from train.loop.checkpoints import Checkpoints, RunState
from train.loop.command_line import command_line, fingerprint, flatten, parse_config
from train.loop.config import check_choices
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.optimizer import parameter_groups
from train.loop.progress import read_held_out, read_log
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
from train.models.parts import embedding_names, keep_still, tower_parameters, vision_tower
from train.models.quantized import check_quantizing, nf4_settings
from train.models.saving import TRAINING_FILE, precision_of, save_adapter, save_perception_model
from vqvae import VQVAE
from vqvae.files import write_whole

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "nf4": torch.bfloat16}
_LORA_RATES = ((15e9, 2e-4), (math.inf, 1e-4))
_FULL_RATES = ((0.1e9, 2e-4), (1e9, 5e-5), (math.inf, 2e-5))
"""Pairs of a number of parameters and the learning rate of models below it; docs/fine_tune.md names the sources"""
_EVALUATION = tuple(flatten(EvaluationConfig(), "evaluation."))
_DEPTH_FORMAT = tuple(flatten(DepthFormat(), "data.depth_format."))
_FREE = (
    "run_dir",
    "out",
    "save",
    "gradient_checkpointing",
    "export",
    "epochs",
    "max_length",
    "on_bad_row",
    "data.counts_split",
    *_EVALUATION,
    *_DEPTH_FORMAT,
)
"""Settings that do not decide what is trained, or only by the records and steps that follow from them"""


@dataclass(frozen=True)
class FinetuneConfig:
    """Configuration of a fine-tuning."""

    recipe: ClassVar[str] = "train.finetune"

    arm: Literal["aurora", "direct"] = "aurora"
    """aurora: draw perception tokens, then answer; direct: the baseline, which learns only direct answers"""
    base: str = "models/tiny-base"
    """folder or hub name of any image-text-to-text model of transformers"""
    out: str = "runs/finetune/model"
    """folder of the finished model, which replaces a model that is there"""
    save: Literal["model", "adapter"] = "model"
    """what is written to out: the whole model, or an adapter, which holds LoRA, the new rows and the projector for the
    same base"""
    run_dir: str = "runs/finetune"
    """folder of checkpoints and logs; the same command goes on with a run that was stopped"""
    depth_tokenizer: str = "tokenizers/depth-scenes-100"
    """folder or hub name; empty: the data hold codes of a tokenizer that is not available, as AURORA's do"""
    depth_codes: int = 128
    """size of the codebook, if depth_tokenizer is empty"""
    depth_side: int = 10
    """number of codes per row and per column of a depth map, if depth_tokenizer is empty"""
    mask_tokenizer: str = ""
    """folder or hub name of a tokenizer of masks, such as tokenizers/masks-scenes-16; empty: a vocabulary without
    masks"""
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
    base_precision: Literal["fp32", "bf16", "nf4"] = "fp32"
    """precision of the frozen weights in memory: fp32, bf16 for LoRA on a large base, or nf4 for QLoRA, which keeps the
    language model in 4 bits and needs an NVIDIA GPU and bitsandbytes. Weights that train are always fp32"""
    gradient_checkpointing: bool = False
    """save memory; steps take about a third longer"""
    epochs: float | None = None
    """passes over the records, instead of loop.steps: a pass has as many rows as there are records"""
    max_length: int | None = None
    """number of tokens of a row at most, with those of the image; none: the model's number of positions. A longer row
    cannot be used (on_bad_row); none is cut, since a span that is cut off is no map or box"""
    batch_size: int = 16
    """rows per device and per gradient accumulation step"""
    length_groups: int = 4
    """number of forward passes per batch, each of rows of similar length; more need less padding and memory"""
    export: str = ""
    """name of a checkpoint in run_dir, such as checkpoint-500, or best: write it as a model to out, and train nothing.
    The other settings must be those of the run"""
    on_bad_row: Literal["skip", "stop"] = "skip"
    """what happens at a row or an image of the data that cannot be used. skip: it is named in skipped.txt in run_dir,
    and the run goes on; stop: the run ends before it starts"""
    data: SourcesConfig = field(default_factory=SourcesConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    lora: LoraSettings = field(default_factory=LoraSettings)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    weights: TokenWeights = field(default_factory=TokenWeights)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            learning_rate=None,
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
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length must be at least 1 or none, got {self.max_length}")
        self._check_epochs()
        if self.evaluation.share and not self.data.any_records:
            raise ValueError("evaluation.share is of the records' images, and there are none; give evaluation.data")
        if self.loop.evaluate_every and not self.evaluation.wanted:
            raise ValueError(
                f"loop.evaluate_every ({self.loop.evaluate_every}) needs held-out data; set evaluation.share, or give "
                "evaluation.data"
            )
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
        if self.base_precision == "nf4" and (not self.lora.rank or self.tower_lr_ratio):
            raise ValueError(
                f"base_precision nf4 is for LoRA, and lora.rank is {self.lora.rank}, tower_lr_ratio "
                f"{self.tower_lr_ratio}; set lora.rank, and lora.tower to adapt the tower"
            )
        if self.only_projector and (self.lora.rank or self.train_rows == "new" or self.tower_lr_ratio):
            raise ValueError(
                f"only_projector trains nothing else, and lora.rank is {self.lora.rank}, train_rows {self.train_rows}, "
                f"tower_lr_ratio {self.tower_lr_ratio}; leave these at 0, all and 0"
            )
        if self.lora.tower and self.tower_lr_ratio:
            raise ValueError(
                f"lora.tower adapts a frozen tower, and tower_lr_ratio ({self.tower_lr_ratio}) trains it whole; set one"
            )
        for needs, wanted in (
            ("new_rows=codebook", self.new_rows == "codebook"),
            ("data.scenes", self.data.scenes.count),
            ("data.photos", self.data.photos.folder),
        ):
            if wanted and not self.depth_tokenizer:
                raise ValueError(f"{needs} needs the depth tokenizer; set depth_tokenizer")
        if self.curriculum.masks_share and not self.mask_tokenizer:
            raise ValueError("curriculum.masks_share needs the mask tokenizer; set mask_tokenizer")

    def _check_epochs(self) -> None:
        if self.epochs is None:
            return
        if not self.epochs > 0:
            raise ValueError(f"epochs must be above 0 or none, got {self.epochs}")
        if self.data.scenes.count or self.data.photos.folder:
            raise ValueError(
                "epochs are passes over records, and scenes and photographs are drawn anew; set loop.steps instead"
            )
        usual = type(self)().loop.steps
        if self.loop.steps != usual:
            raise ValueError(
                f"epochs ({self.epochs}) and loop.steps ({self.loop.steps}) both say how long to train; give one"
            )


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
    held_out: int = 0
    """number of held-out records"""


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
    if launched_sharded() and config.base_precision == "nf4":
        raise ValueError("base_precision nf4 keeps the model whole on a device, and FSDP2 shards it; take bf16")
    if launched_sharded() and config.evaluation.wanted:
        raise ValueError("held-out data need the whole model on a device, and FSDP2 shards it; leave evaluation out")
    if config.base_precision == "nf4":
        check_quantizing()
    base = find_folder(config.base)
    check_files(base, has_vocabulary=False)
    vqvae = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval() if config.depth_tokenizer else None
    found, held = read_data(config, vqvae)
    parts = build_parts(config, vqvae)
    encoder, skip = build_encoder(config, parts), config.on_bad_row == "skip"
    found, held = (check_conversations(part, parts.processor, parts.vocabulary, skip) for part in (found, held))
    if skip:
        found, held = fitting(found, encoder), fitting(held, encoder)
    found, held = replace(found, skipped=found.skipped + held.skipped), replace(held, skipped=())
    if launched_sharded() and any(not record.all_images for record in found.records):
        raise ValueError("a sharded run needs an image in every row, and some rows have text alone; remove those rows")
    config = with_steps(with_learning_rate(config, parts.model), len(of_arm(config, found.records)))
    batches = build_batches(config, parts, vqvae, found.records)
    check_lengths(batches, config.loop.steps)
    say_skipped(Path(config.run_dir) / "skipped.txt", found.skipped)
    settings = deciding(config)
    if config.data.any_records:
        settings["data_digest"] = records_digest(found.records)
    evaluate = None
    if held.records:
        settings["held_out_digest"] = records_digest(held.records)
        run_dir, size = Path(config.run_dir), config.batch_size
        masks = mask_tokenizer(config)
        evaluate = HeldOutRecords(
            held.records,
            config.evaluation,
            encoder,
            vqvae,
            run_dir,
            size,
            config.length_groups,
            masks.vqvae if masks is not None else None,
        )
        check_records(encoder, held.records)
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
        evaluate=evaluate,
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
        len(held.records),
    )
    model = whole_model(config, parts, vqvae, fitted.is_main)
    if fitted.is_main:
        written = written_before(config, result)
        if written is not None:
            lost = math.isnan(result.padding_share)
            return replace(result, padding_share=written["padding_share"]) if lost else result
        save(config, replace(parts, model=model), training_record(config, result))
    return result


def deciding(config: FinetuneConfig) -> dict[str, Any]:
    """Return the settings that decide what is trained; those of masks and weak boxes only where the run has some."""
    of_masks = () if config.mask_tokenizer else ("mask_tokenizer", "curriculum.masks_share")
    of_boxes = () if config.data.photos.weak_boxes else ("data.photos.weak_boxes",)
    return fingerprint(config, (*_FREE, *of_masks, *of_boxes))


def mask_tokenizer(config: FinetuneConfig) -> MaskTokenizer | None:
    """Load the tokenizer of masks; None if the run has none."""
    if not config.mask_tokenizer:
        return None
    return MaskTokenizer.from_pretrained(find_folder(config.mask_tokenizer), config.num_locations)


def say_skipped(path: Path, skipped: Sequence[str]) -> None:
    """Name in a file what of the data is left out, and say so before training; only the first process does."""
    if os.environ.get("RANK", "0") == "0":
        write_whole(path, "".join(" ".join(line.split()) + "\n" for line in skipped))
        if skipped:
            print(f"left out of the data: {len(skipped)} entries, see {path}; the first: {skipped[0]}", file=sys.stderr)


def save(config: FinetuneConfig, parts: Parts, record: dict[str, Any]) -> None:
    """Write the trained model to `config.out`, with LoRA merged, or its adapter; tokenizers and card beside it."""
    out, tokenizer = Path(config.out), find_folder(config.depth_tokenizer) if config.depth_tokenizer else None
    masks = find_folder(config.mask_tokenizer) if config.mask_tokenizer else None
    card = partial(write_card, base=config.base, data=describe_data(config.data), record=record)
    if config.save == "adapter":
        save_adapter(parts.model, parts.vocabulary, config.base, out, record, tokenizer, card, masks)
        return
    precision = precision_of(find_folder(config.base))
    save_perception_model(
        merged(parts.model), parts.processor, parts.vocabulary, out, record, precision, tokenizer, card, masks
    )


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
    unknown = {"command", "padding_share", "evaluation"} if math.isnan(result.padding_share) else {"command"}
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
    checkpoints = Checkpoints(Path(config.run_dir), deciding(config))
    checkpoints.check_export(config.export, config.out)
    check_files(find_folder(config.base), has_vocabulary=False)
    if config.base_precision == "nf4":
        check_quantizing()
    parts = build_parts(config, vqvae)
    state = checkpoints.load_export(config.export, parts.model)
    record: dict[str, Any] = {
        "command": command_line(config.recipe, config),
        "steps": state.step,
        "minutes": round(state.seconds / 60, 1),
        "final_loss": round(state.loss, 4),
    }
    if figures := held_out_figures(Path(config.run_dir), state.step):
        record["evaluation"] = figures
    save(config, replace(parts, model=whole_model(config, parts, vqvae, True)), record)
    return state


def read_data(config: FinetuneConfig, vqvae: VQVAE | None) -> tuple[RecordSet, RecordSet]:
    """Read the records to train on and those held out.

    Raises:
        ValueError: see `read_records`, `split` and `unseen`.
    """
    vocabulary, run_dir, skip = unbound_vocabulary(config, vqvae), Path(config.run_dir), config.on_bad_row == "skip"

    def read(data: SourcesConfig, folder: Path) -> RecordSet:
        resized = (data.boxes_format or "").endswith(RESIZED)
        resize = resize_rule(read_processor(find_folder(config.base))) if resized else None
        return read_records(data, vocabulary, vqvae, folder, skip_bad=skip, resize=resize)

    found = read(config.data, run_dir)
    kept, held = split(found.records, config.evaluation.share)
    if config.evaluation.data.any_records:
        trained = [image for record in kept for image in record.all_images]
        trained += config.data.photos.build().images if config.data.photos.folder else []
        more = unseen(read(config.evaluation.data, run_dir / "held_out"), trained, skip)
        held, found = held + more.records, replace(found, skipped=found.skipped + more.skipped)
    held = of_arm(config, held)
    if config.evaluation.wanted and not held:
        raise ValueError("the held-out data have no records to evaluate on; raise evaluation.share, or leave it out")
    return replace(found, records=kept), RecordSet(held)


def of_arm(config: FinetuneConfig, records: tuple[Record, ...]) -> tuple[Record, ...]:
    """Return the records that the run's arm uses: all, or for the baseline direct answers alone."""
    direct = KINDS["direct"]
    if config.arm != "direct":
        return records
    return tuple(record for record in records if all(turn.task in direct for turn in record.turns))


def fitting(found: RecordSet, encoder: RowEncoder) -> RecordSet:
    """Return the records that are not longer than the encoder's limit, with a message for each that is."""
    kept, long = [], []
    for record, fault in zip(found.records, too_long(encoder, found.records), strict=True):
        kept += [] if fault else [record]
        long += [fault] if fault else []
    return RecordSet(tuple(kept), (*found.skipped, *long))


def with_learning_rate(config: FinetuneConfig, model: Any) -> FinetuneConfig:
    """Return the configuration with the usual learning rate for what trains and the model's size, if it has none."""
    if config.loop.learning_rate is not None:
        return config
    rates = _LORA_RATES if config.lora.rank or config.only_projector else _FULL_RATES
    size = model.num_parameters()
    return replace(config, loop=replace(config.loop, learning_rate=next(rate for most, rate in rates if size < most)))


def with_steps(config: FinetuneConfig, records: int) -> FinetuneConfig:
    """Return the configuration with the steps of its epochs, and with evaluations at every tenth of the run."""
    loop = config.loop
    if config.epochs is not None:
        rows = config.batch_size * loop.gradient_accumulation * int(os.environ.get("WORLD_SIZE", "1"))
        loop = replace(loop, steps=max(1, math.ceil(config.epochs * records / rows)))
    if config.evaluation.wanted and loop.evaluate_every is None:
        loop = replace(loop, evaluate_every=max(1, loop.steps // 10))
    return replace(config, epochs=None, loop=loop)


def unbound_vocabulary(config: FinetuneConfig, vqvae: VQVAE | None) -> PerceptionVocabulary:
    """Build the vocabulary, not bound to a tokenizer, with the sizes that the data of a run are made for."""
    codes = config.depth_codes if vqvae is None else vqvae.config.codebook_size
    side = config.depth_side if vqvae is None else vqvae.config.grid_size
    masks = mask_tokenizer(config)
    of_masks = {} if masks is None else {n: getattr(masks.vocabulary, n) for n in ("mask_codes", "mask_length")}
    return PerceptionVocabulary(codes, (side, side), config.num_locations, config.naming, **of_masks)


def positions(vocabulary: PerceptionVocabulary, modality: str) -> dict[str, str]:
    """Describe each code by its position on a scale of 0 to 99: codes of depth are sorted by nearness, those of masks
    from outside to inside."""
    names = vocabulary.code_names(modality)
    return {name: f" {round(99 * k / max(1, len(names) - 1))}" for k, name in enumerate(names)}


def _note_what_is_taught(model_config: Any, data: SourcesConfig) -> None:
    """Change what the config of a small model says that it knows alone: kinds of questions, and things to count.

    A model whose config says nothing was pretrained, and may know more than it is taught here. Models of photographs
    weigh the ends of their lists (`SpanGrammar.weighs_ends`).
    """
    if data.photos.folder:
        model_config.weighs_ends = True
    if data.any_records:
        model_config.taught_questions = model_config.taught_things = None
    elif getattr(model_config, "taught_questions", None):
        model_config.taught_questions = ["count", "depth", *(["farthest"] if data.photos.folder else [])]
        alone = data.photos.folder and not data.scenes.count
        model_config.taught_things = list(data.photos.build().kinds) if alone else None


def build_parts(config: FinetuneConfig, vqvae: VQVAE | None, dtype: torch.dtype | None = None) -> Parts:
    """Read the base, add the perception tokens and set what trains. The result is deterministic.

    Args:
        dtype: of the frozen weights, in place of `config.base_precision`; none is quantised then.

    Raises:
        ValueError: if a file of the base is missing or half written, or a setting does not fit the base.
    """
    torch.manual_seed(config.loop.seed)
    base = find_folder(config.base)
    quantization = nf4_settings(base) if config.base_precision == "nf4" and dtype is None else None
    processor, model = read_processor(base), read_model(base, dtype or _DTYPES[config.base_precision], quantization)
    wanted, sources = unbound_vocabulary(config, vqvae), dict[str, Any]()
    if vqvae is not None and config.new_rows == "codebook":
        sources = {"codebook": vqvae.codebook}
    elif vqvae is not None and config.new_rows == "description":
        sources = {"descriptions": positions(wanted, "depth") | positions(wanted, "masks")}
    vocabulary = wanted.extend(model, processor.tokenizer, init=config.new_rows, **sources)
    _note_what_is_taught(model.config, config.data)
    model.config.trained_on = "; ".join(describe_data(config.data)).replace("`", "")
    accepted = accepted_inputs(model)
    use_plain_attention(model.get_decoder())
    tower = tuple(tower_parameters(model))
    if not (config.tower_lr_ratio or config.lora.tower):
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


def build_encoder(config: FinetuneConfig, parts: Parts) -> RowEncoder:
    """Build the encoder of rows, with the limit of their length."""
    limits = [limit for limit in (max_positions(parts.model), config.max_length) if limit is not None]
    prompt = ChatPrompt.from_processor(parts.processor)
    return RowEncoder(
        parts.vocabulary, parts.processor, prompt, config.weights, parts.accepted, min(limits, default=None)
    )


def build_batches(config: FinetuneConfig, parts: Parts, vqvae: VQVAE | None, records: tuple[Record, ...]) -> RowBatches:
    """Build the batches of a run from scenes and records.

    Raises:
        ValueError: if a batch has too few rows for both.
    """
    scenes, loop, sources = config.data.scenes, config.loop, list[tuple[RowSource, int]]()
    of_photos, of_scenes = 0, 0
    if config.data.photos.folder:
        assert vqvae is not None, "the configuration's own check"
        of_photos = round(config.batch_size * (1 - scenes.share)) if scenes.count else config.batch_size
        curriculum = replace(config.curriculum, masks_share=0.0)  # photographs have boxes alone
        arguments = (parts.vocabulary, vqvae, curriculum, config.arm, loop.steps, loop.seed)
        photos, tower = config.data.photos, vision_tower(parts.model)
        made = view_rows(photos, *arguments, tower) if photos.views else photo_rows(photos, *arguments)
        sources.append((made, of_photos))
    if scenes.count:
        assert vqvae is not None, "the configuration's own check"
        of_scenes = round(config.batch_size * scenes.share) if config.data.more_than_scenes else config.batch_size
        store = scenes.build()
        codes, maker = (
            depth_codes(store, vqvae),
            TaskMaker[Scene](parts.vocabulary, vqvae, masks=mask_tokenizer(config)),
        )
        rows = SceneRows(
            store,
            codes,
            maker,
            config.curriculum,
            config.arm,
            loop.steps,
            loop.seed,
            scenes.answers,
            varied=scenes.varied,
        )
        sources.append((rows, of_scenes))
    if config.data.any_records:
        records = of_arm(config, records)
        of_records = RecordRows(
            records,
            config.curriculum,
            loop.steps,
            loop.seed,
            config.num_locations,
            config.data.augment,
            least_side(parts.processor),
        )
        sources.append((of_records, config.batch_size - of_scenes))
    if any(count < 1 for _, count in sources):
        raise ValueError(f"a batch of {config.batch_size} rows has no room for scenes and records; raise batch_size")
    return RowBatches(build_encoder(config, parts), tuple(sources), config.length_groups)


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
    """Return the trained model, not sharded; None on a sharded run's other processes.

    Its frozen weights are as precise as the base's files, where training had them in fewer bits.
    """
    stored, sharded = precision_of(find_folder(config.base)).stored, launched_sharded()
    rounded = config.base_precision != "fp32" and stored != _DTYPES[config.base_precision]
    if not (sharded or rounded or config.base_precision == "nf4"):
        return parts.model.cpu()
    weights = whole_weights(parts.model, is_main) if sharded else parts.model.state_dict()
    if not is_main:
        return None
    if config.base_precision == "fp32":
        model = build_parts(config, vqvae).model
        model.load_state_dict(weights)
        return model
    model = build_parts(config, vqvae, stored).model
    with torch.no_grad():
        for name, mine in model.state_dict(keep_vars=True).items():
            if mine.requires_grad or not isinstance(mine, nn.Parameter):
                mine.copy_(weights[name])
    return model


def training_record(config: FinetuneConfig, result: FinetuneResult) -> dict[str, Any]:
    """Return the training record for the model's folder. Starting a finished run again does not change it."""
    fitted = result.fit
    measured = {}
    if result.held_out:
        step = fitted.steps if config.loop.patience is None else fitted.best_step
        measured = {"evaluation": held_out_figures(Path(config.run_dir), step) | {"records": result.held_out}}
    return {
        "command": command_line(config.recipe, config),
        "steps": fitted.steps,
        "samples_a_step": config.batch_size * fitted.shards,
        "scenes": result.scenes,
        "records": result.records,
        "skipped": result.skipped,
        "minutes": round(fitted.seconds / 60, 1),
        "final_loss": round(fitted.final_loss, 4),
        **measured,
        "waiting_for_data": round(fitted.data_wait_share, 4),
        "padding_share": None if math.isnan(result.padding_share) else round(result.padding_share, 4),
    }


def held_out_figures(run_dir: Path, step: int) -> dict[str, float]:
    """Return the figures on held-out data after `step` steps, from the run's log; empty if there are none."""
    return {name: round(value, 4) for name, value in dict(read_held_out(run_dir)).get(step, {}).items()}


def report(result: FinetuneResult) -> str:
    """Summarize a run in one line."""
    data = f"{result.scenes} scenes and {result.records} records ({result.skipped} left out)"
    said = f"done: {result.fit.steps} steps on {data}, final loss {result.fit.final_loss:.4f}"
    if result.held_out:
        best = f"{result.fit.best_loss:.4f} after {result.fit.best_step} steps"
        said += f", lowest loss on {result.held_out} held-out records {best}"
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
