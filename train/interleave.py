"""Fine-tunes a vision-language model to reason with visual tokens (`python -m train.interleave`).

Two supervised stages, MINT-CoT's first and second (arXiv 2506.05331). Stage `text` learns solutions as text. Stage
`interleaved` adds looks at their steps: cross-entropy of the text plus binary cross-entropy of the selected visual
tokens. The vision encoder is frozen unless --tower_lr_ratio is above 0. `train.reinforce` is the third stage;
`train.geometry_base` makes the tiny model to start from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from perception.interleave.chains import InterleavedModel, interleaved_loss
from perception.interleave.reasoner import SETTINGS_FILE, read_settings, visual_grid
from perception.interleave.selector import CONFIG_FILE, VisualTokenSelector
from perception.interleave.triggers import SEEN, InterleaveSettings, Resolution, Trigger
from perception.interleave.visual_tokens import VisualLayout, unwrapped
from perception.model.folder import check_files, find_folder, read_json, read_model, read_processor
from perception.model.replies import decode_plainly
from perception.vocabulary.extension import CONFIG_KEY
from perception.vocabulary.names import FILE_NAME, PerceptionVocabulary
from train.data.arithmetic import sums_loss
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import ChainBatches, ChainEncoder, ChainProblem, RegionName, with_regions
from train.data.own_looks import OwnLooks
from train.data.published_chains import PublishedData, PublishedProblems, read_published_problems
from train.loop.checkpoints import Checkpoints, RunState
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.optimizer import parameter_groups
from train.models.attention import use_plain_attention
from train.models.parts import keep_still, tower_parameters, vision_tower
from train.models.saving import HALF, Precision, precision_of, save_perception_model

FREE = ("run_dir", "out", "export", "data.store")
"""Settings that do not decide what is trained"""
LEAST_VOCABULARY = PerceptionVocabulary(depth_codes=1, depth_grid=(1, 1), num_locations=2)
"""That of a model that only looks: the interleave token, and as few others as a vocabulary has"""
Stage = Literal["text", "interleaved"]


@dataclass(frozen=True)
class InterleaveConfig:
    """Fine-tunes a vision-language model on solved problems."""

    stage: Stage = "interleaved"
    """text: solutions as text. interleaved: solutions whose steps look at the image"""
    start: str = "runs/geometry/base/model"
    """folder or hub name of the model to start from; a stock model of transformers gets the interleave token"""
    out: str = "runs/geometry/interleaved/model"
    """folder of the finished model"""
    run_dir: str = "runs/geometry/interleaved"
    """folder for checkpoints and logs"""
    export: str = ""
    """name of a checkpoint in run_dir, such as checkpoint-500: write it as a model to out, and train nothing. The other
    settings must be those of the run"""
    data: GeometryData = field(default_factory=GeometryData)
    """drawn geometry problems to train on"""
    published: PublishedData = field(default_factory=PublishedData)
    """solved problems of your own; if given, the drawn problems are not used"""
    regions: RegionName = "own"
    """visual tokens that a look brings in. own: those of the step. Controls are boxes (their bounding
    box), whole (the whole image) and random (as many random tokens)"""
    trigger: Trigger = "headings"
    """where a chain looks. headings: after the heading of each step. generated: wherever the model writes the
    interleave token"""
    resolution: Resolution = SEEN
    """what a look inserts. seen: the selected visual tokens again. native: the selected cells, cut from the original
    image and encoded anew"""
    look_tokens: int = 64
    """largest number of visual tokens that a look at native resolution inserts"""
    take_along: int | None = None
    """a look that selects nothing, the n-th in a row, brings in what the last look brought in again; none: nothing"""
    batch_size: int = 16
    """rows per optimiser step, over all devices"""
    next_token: bool = True
    """supervise the first token after a look. The paper does not, which works for a pretrained model; one that learned
    to write from these solutions alone then starts its steps with arbitrary tokens"""
    announce: bool = False
    """supervise that token at the interleave token as well, so that the hidden state that selects says what the step is
    about"""
    selection_weight: float = 1.0
    """weight of the selection loss relative to the cross-entropy"""
    threshold: float | None = None
    """a visual token is selected if sigmoid(score) reaches this; none: keep the selector's own. The loss gives
    tokens to select a higher weight, so a threshold above the paper's 0.7 selects more precisely"""
    sums: int = 0
    """rows of sums per step, in addition to the problems, so that the model does not forget how to calculate"""
    own_looks: float = 0.0
    """share of the steps, after the first third of the run, in which looks bring in what the model itself selects; only
    with regions own and boxes"""
    tower_lr_ratio: float = 0.0
    """learning rate of the vision encoder relative to the rest; 0 freezes the encoder"""
    selector_lr_ratio: float = 1.0
    """learning rate of the selector relative to the rest"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=1000,
            learning_rate=5e-4,
            weight_decay=0.01,
            warmup_steps=30,
            min_lr_ratio=0.05,
            precision="bf16",
            find_unused_parameters=True,  # LLaVA reads hidden layers of a tower and leaves out what comes after
        )
    )

    def __post_init__(self) -> None:
        if self.published.files and (self.regions != "own" or self.sums):
            raise ValueError(
                f"regions ({self.regions}) and sums ({self.sums}) apply to drawn figures only; with published.files, "
                "use regions own and sums 0"
            )
        if not 0 <= self.own_looks <= 1:
            raise ValueError(f"own_looks is a share of the steps and must lie in [0, 1], got {self.own_looks}")
        if self.own_looks and (self.stage != "interleaved" or self.regions not in ("own", "boxes")):
            raise ValueError(
                f"own_looks ({self.own_looks}) needs a model that selects tokens, and stage {self.stage} with regions "
                f"{self.regions} selects none; set own_looks to 0"
            )

    @property
    def settings(self) -> InterleaveSettings:
        if self.stage == "text":
            return InterleaveSettings(trigger=self.trigger, max_looks=0)
        return InterleaveSettings(
            trigger=self.trigger,
            max_looks=12,
            resolution=self.resolution,
            look_tokens=self.look_tokens,
            take_along=self.take_along,
        )


@dataclass(frozen=True)
class InterleavedFolder:
    """A model read from its folder: the model with its selector, and what turns problems into batches."""

    model: InterleavedModel
    processor: Any
    vocabulary: PerceptionVocabulary
    settings: InterleaveSettings
    precision: Precision = HALF
    """that the weights are saved in: that of the folder they were read from"""

    @property
    def encoder(self) -> ChainEncoder:
        return ChainEncoder(self.processor, self.vocabulary, self.model.layout, self.settings)

    def save(self, out: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Writes a stock transformers folder, with vocabulary, selector and settings beside it."""

        def write_more(folder: Path) -> None:
            self.model.selector.save(folder)
            (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=1) + "\n")

        model, out = self.model.model, Path(out)
        save_perception_model(
            model, self.processor, self.vocabulary, out, record, self.precision, write_more=write_more
        )


def read_interleaved(folder: str | Path, settings: InterleaveSettings | None = None) -> InterleavedFolder:
    """Reads a model in float32, from its folder or the hub; adds a new selector, with a linear projector as in the
    paper, if it has none, and `LEAST_VOCABULARY` to a stock model of transformers.

    Args:
        settings: None for those the model was trained with.

    Raises:
        ValueError: naming what is missing or damaged, or for a model that cannot reason interleaved.
    """
    path = find_folder(str(folder))
    is_stock = _is_stock(path)
    check_files(path, has_vocabulary=not is_stock)
    processor, model = read_processor(path), read_model(path, torch.float32)
    decode_plainly(model)
    if is_stock:
        vocabulary = LEAST_VOCABULARY.extend(model, processor.tokenizer)
    else:
        vocabulary = PerceptionVocabulary.load(path).bind(processor.tokenizer)
    layout = VisualLayout.of(model, vocabulary.interleave_id, processor.tokenizer)
    if (path / CONFIG_FILE).exists():
        selector = VisualTokenSelector.load(path, model)
    else:
        selector = VisualTokenSelector.for_model(model, vocabulary.interleave_id)
    settings = read_settings(path) if settings is None else settings
    use_plain_attention(unwrapped(model).get_decoder())
    whole = InterleavedModel(model, selector, layout)
    return InterleavedFolder(whole, processor, vocabulary, settings, precision_of(path))


def _is_stock(folder: Path) -> bool:
    """True for the folder of a model that was never given perception tokens."""
    config = folder / "config.json"
    return not (folder / FILE_NAME).exists() and config.is_file() and CONFIG_KEY not in read_json(config)


def write_checkpoint(config: Any, folder: InterleavedFolder, record: Mapping[str, Any]) -> RunState:
    """Writes the checkpoint `config.export` of a run to `config.out`; problems are not read.

    Args:
        config: an `InterleaveConfig` or a `train.reinforce.ReinforceConfig`.
        folder: the model that the run begins with, frozen where the run freezes it.

    Raises:
        ValueError: if there is no such checkpoint, it is damaged or made with other settings, or `config.out` exists.
    """
    checkpoints = Checkpoints(Path(config.run_dir), fingerprint(config, FREE))
    checkpoints.check_export(config.export, config.out)
    state = checkpoints.load_export(config.export, folder.model)
    folder.save(config.out, {**record, "steps": state.step, "minutes": round(state.seconds / 60, 1)})
    return state


def interleaved_groups(
    model: InterleavedModel, tower_lr_ratio: float, selector_lr_ratio: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for `build_optimizer`: vision encoder (frozen here if its ratio is 0), selector, and the rest."""
    inner = unwrapped(model.model)
    if not tower_lr_ratio:
        keep_still(vision_tower(inner))
    selector = [p for p in model.selector.parameters() if p.requires_grad]
    return parameter_groups(model, (selector, selector_lr_ratio), (tower_parameters(inner), tower_lr_ratio))


@dataclass(frozen=True)
class ChainLoss:
    """Loss of one shard of a step. The mean over shards is the loss of all rows at once, however they are split."""

    selection_weight: float
    own_looks: OwnLooks | None = None

    def __call__(self, model: Any, share: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = share["batch"]
        if self.own_looks is not None and self.own_looks.due(step):
            batch = self.own_looks(model, batch)
        output = model(batch)
        found = interleaved_loss(output, self.selection_weight, share["num_labels"], share["num_looks"])
        scalars = {"text": found.cross_entropy.detach() * share["num_shards"]}
        if share["num_looks"]:
            chosen = model.selector.select(output.scores) & output.candidates
            hits = (chosen & output.targets).sum()
            both = chosen.sum() + (output.targets & output.candidates).sum()
            scalars |= {
                "selection": found.selection.detach() * share["num_shards"],
                "selection_f1": (2 * hits / both.clamp_min(1)).float(),
            }
        loss = found.total * share["num_shards"]
        if "sums" in share:
            sums, of_sums = sums_loss(model.model, *share["sums"])
            loss, scalars = loss + sums, scalars | of_sums
        return loss, scalars


def own_looks(config: InterleaveConfig, folder: InterleavedFolder) -> OwnLooks | None:
    """Puts the model's own selections into some steps; None if the config asks for none."""
    if not config.own_looks:
        return None
    pad_id = folder.processor.tokenizer.pad_token_id
    begin = config.loop.steps // 3
    return OwnLooks(config.own_looks, begin, config.loop.seed, pad_id, config.regions, config.data.grid)


def problems_of(config: InterleaveConfig, folder: InterleavedFolder) -> Sequence[ChainProblem]:
    """The problems to train on: published files if given, else drawn figures. Rows of files that cannot be used are
    listed in the run's skipped.txt."""
    if not config.published.files:
        if config.stage == "interleaved":
            check_grid(config.data, folder)
        return read_problems(config.data)
    return published_split(config.published, folder, config.run_dir)[0]


def check_grid(data: GeometryData, folder: InterleavedFolder) -> None:
    """Raises ValueError where the model reads figures of `data` as another grid than the one that steps look at."""
    blank = ChainProblem(np.zeros((data.image_size, data.image_size, 3), np.uint8), "?", "")
    inputs, image_id = folder.encoder.inputs([blank]), folder.model.layout.image_id
    grid = visual_grid(folder.model.model, inputs, int((inputs["input_ids"] == image_id).sum()))
    if grid != data.grid:
        raise ValueError(
            f"the steps of drawn problems look at cells of data.grid_size ({data.grid_size}) x {data.grid_size}, and "
            f"the model reads a figure of data.image_size ({data.image_size}) pixels as {grid[0]} x {grid[1]} visual "
            f"tokens; set data.grid_size to {grid[0]}"
        )


def published_split(
    data: PublishedData, folder: InterleavedFolder, run_dir: str
) -> tuple[Sequence[ChainProblem], Sequence[ChainProblem]]:
    """Problems of published files to train on, and those held out."""
    problems, skipped = read_published_problems(data, folder.encoder, folder.model.model)
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    (Path(run_dir) / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped))
    if skipped:
        print(f"{len(skipped)} rows skipped, listed in {Path(run_dir) / 'skipped.txt'}; the first: {skipped[0]}")
    return problems.split(data.held_out)


def digest_of(problems: Sequence[ChainProblem]) -> dict[str, Any]:
    """The setting by which published problems that changed under a run are noticed; drawn ones follow from others."""
    return {"data_digest": problems.digest} if isinstance(problems, PublishedProblems) else {}


def start_of(config: InterleaveConfig) -> InterleavedFolder:
    """The model that a run begins with. New parts of it are random, by the seed."""
    torch.manual_seed(config.loop.seed)
    folder = read_interleaved(config.start, config.settings)
    if config.threshold is not None:
        folder.model.selector.config = replace(folder.model.selector.config, threshold=config.threshold)
    return folder


def export(config: InterleaveConfig) -> RunState:
    """Writes a checkpoint of a run as a model; see `write_checkpoint`."""
    folder = start_of(config)
    interleaved_groups(folder.model, config.tower_lr_ratio)
    return write_checkpoint(config, folder, {"command": command_line("train.interleave", config)})


def train(config: InterleaveConfig, problems: Sequence[ChainProblem] | None = None) -> FitResult:
    """Runs or resumes a stage and writes the finished model to `config.out`.

    Args:
        problems: used instead of those of `config.data`.
    """
    folder = start_of(config)
    if problems is None:
        problems = problems_of(config, folder)
    settings = fingerprint(config, FREE) | digest_of(problems)
    if config.regions != "own":
        problems = Substituted(problems, config.regions, config.data.grid, config.loop.seed)
    encoder = replace(folder.encoder, next_token=config.next_token, announce=config.announce)
    batches = ChainBatches(encoder, problems, config.batch_size, config.loop.seed, sums=config.sums)
    result = fit(
        folder.model,
        batches,
        ChainLoss(config.selection_weight, own_looks(config, folder)),
        config.loop,
        config.run_dir,
        param_groups=interleaved_groups(folder.model, config.tower_lr_ratio, config.selector_lr_ratio),
        title=config.stage,
        fingerprint=settings,
    )
    if result.is_main:
        record = {
            "command": command_line("train.interleave", config),
            "steps": result.steps,
            "minutes": round(result.seconds / 60, 1),
            "final_loss": round(result.final_loss, 4),
        }
        replace(folder, model=folder.model.cpu()).save(config.out, record)
    return result


@dataclass(frozen=True)
class Substituted(Sequence[ChainProblem]):
    """Problems whose steps look at other regions."""

    problems: Sequence[ChainProblem]
    regions: RegionName
    grid: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: Any) -> Any:
        return with_regions(self.problems[index], self.regions, self.grid, hash((self.seed, int(index))) % 2**31)


def main(argv: list[str] | None = None) -> None:
    config = parse_config(InterleaveConfig, argv)
    if config.export:
        print(f"{export(config).step} steps of training; model: {config.out}")
    else:
        print(f"done: {train(config)}")


if __name__ == "__main__":
    main()
