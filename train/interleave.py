"""Fine-tunes a vision-language model on chains of visual tokens (`python -m train.interleave`): the supervised stages.

Stage `text` learns the solutions alone; stage `interleaved` goes on with looks at their steps: cross-entropy plus
binary cross-entropy of the selection (MINT-CoT, arXiv 2506.05331, stages 1 and 2). The vision encoder stays frozen
unless asked. `train.reinforce` is the third stage, `train.geometry_base` makes the tiny model that all begin with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perception.interleave.chains import InterleavedModel, interleaved_loss
from perception.interleave.selector import CONFIG_FILE, VisualTokenSelector
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import VisualLayout, unwrapped
from perception.model.folder import find_folder, read_model, read_processor
from perception.vocabulary.names import PerceptionVocabulary
from train.base import save_half
from train.data.arithmetic import sums_loss
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import REGIONS, ChainBatches, ChainEncoder, ChainProblem, with_regions
from train.data.own_looks import OwnLooks
from train.data.published_chains import PublishedData, read_published_problems
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.models.attention import use_plain_attention
from train.models.parts import keep_still

TRAINING_FILE = "training.json"
SETTINGS_FILE = "interleave_settings.json"
STAGES = ("text", "interleaved")
_TOWERS = ("vision_tower", "visual", "vision_model")


@dataclass(frozen=True)
class InterleaveConfig:
    """Configuration of a supervised stage."""

    stage: str = "interleaved"
    """text, or interleaved"""
    start: str = "runs/geometry/base/model"
    """folder of the model to go on from"""
    out: str = "runs/geometry/interleaved/model"
    run_dir: str = "runs/geometry/interleaved"
    data: GeometryData = field(default_factory=GeometryData)
    published: PublishedData = field(default_factory=PublishedData)
    """train on these instead of drawn figures"""
    regions: str = "own"
    """what looks bring in: own, or a control: boxes, whole, random"""
    trigger: str = "headings"
    """headings, or generated"""
    projector: str = "linear"
    """of a new selector: linear, none, mlp"""
    batch_size: int = 16
    """rows of an optimiser step, over all devices"""
    next_token: bool = True
    """supervise the first token behind a look; the paper leaves it out, which a pretrained model can bear: one that
    learned to write from these solutions alone then begins its steps with anything"""
    selection_weight: float = 1.0
    """of the selection's loss beside the cross-entropy"""
    threshold: float | None = None
    """a visual token is selected where sigmoid(score) reaches this; none: what the selector was made with. The loss
    weighs up what is to be selected, so a higher threshold than the paper's 0.7 selects more exactly"""
    sums: int = 0
    """rows of sums a step (`train.data.arithmetic`), beside the problems, so that calculating is not forgotten"""
    own_looks: float = 0.0
    """share of the steps, after the first third, whose looks bring in what the model itself selects; regions own and
    boxes"""
    tower_lr_ratio: float = 0.0
    """learning rate of the vision encoder over that of the rest; 0 freezes it"""
    selector_lr_ratio: float = 1.0
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
        for name, known in (("stage", STAGES), ("regions", tuple(REGIONS))):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.published.files and (self.regions != "own" or self.sums):
            raise ValueError("regions other than own, and sums, are for the drawn figures; leave them with published")
        if not 0 <= self.own_looks <= 1:
            raise ValueError(f"own_looks is a share of the steps, so it lies in [0, 1]; got {self.own_looks}")
        if self.own_looks and (self.stage != "interleaved" or self.regions not in ("own", "boxes")):
            raise ValueError(
                f"own_looks ({self.own_looks}) puts in what the model selects, and stage {self.stage} with regions "
                f"{self.regions} selects nothing; leave it at 0"
            )

    @property
    def settings(self) -> InterleaveSettings:
        return InterleaveSettings(trigger=self.trigger, max_looks=0 if self.stage == "text" else 12)


@dataclass(frozen=True)
class InterleavedFolder:
    """A model's folder, read: the model with its selector and what turns problems into its batches."""

    model: InterleavedModel
    processor: Any
    vocabulary: PerceptionVocabulary
    settings: InterleaveSettings

    @property
    def encoder(self) -> ChainEncoder:
        return ChainEncoder(self.processor, self.vocabulary, self.model.layout, self.settings)

    def save(self, out: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """A stock transformers folder in half precision; beside it vocabulary, selector and settings."""
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        save_half(self.model.model, folder)
        self.processor.save_pretrained(folder)
        self.vocabulary.save(folder)
        self.model.selector.save(folder)
        (folder / SETTINGS_FILE).write_text(json.dumps(asdict(self.settings), indent=1) + "\n")
        if record is not None:  # last: a folder with it is whole
            (folder / TRAINING_FILE).write_text(json.dumps(dict(record), indent=1) + "\n")


def read_interleaved(folder: str | Path, settings: InterleaveSettings | None = None, **new: Any) -> InterleavedFolder:
    """Reads a model's folder in float32; a selector is begun where it has none.

    Args:
        settings: None for those it was trained with.
        new: of `SelectorConfig`, for a selector that is begun.
    """
    path = find_folder(str(folder))
    processor, model = read_processor(path), read_model(path, torch.float32)
    vocabulary = PerceptionVocabulary.load(path).bind(processor.tokenizer)
    layout = VisualLayout.of(model, vocabulary.interleave_id, processor.tokenizer)
    if (path / CONFIG_FILE).exists():
        selector = VisualTokenSelector.load(path, model)
    else:
        selector = VisualTokenSelector.for_model(model, vocabulary.interleave_id, **new)
    if settings is None:
        kept = path / SETTINGS_FILE
        settings = InterleaveSettings(**json.loads(kept.read_text())) if kept.exists() else InterleaveSettings()
    use_plain_attention(unwrapped(model).get_decoder())
    return InterleavedFolder(InterleavedModel(model, selector, layout), processor, vocabulary, settings)


def tower_of(model: Any) -> nn.Module:
    """The vision encoder of a model of transformers. Raises ValueError where it is under no known name."""
    inner = unwrapped(model).base_model
    for name in _TOWERS:
        if isinstance(found := getattr(inner, name, None), nn.Module):
            return found
    raise ValueError(f"{type(inner).__name__} has no vision encoder under the names {', '.join(_TOWERS)}")


def interleaved_groups(
    model: InterleavedModel, tower_lr_ratio: float, selector_lr_ratio: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for `build_optimizer`: the vision encoder (frozen here where its ratio is 0), the selector, the rest."""
    tower = tower_of(model.model)
    tower.requires_grad_(tower_lr_ratio > 0)
    if not tower_lr_ratio:
        keep_still(tower)
    apart = {id(p) for p in (*tower.parameters(), *model.selector.parameters())}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.requires_grad and id(p) not in apart]},
        {"params": [p for p in model.selector.parameters() if p.requires_grad], "lr_scale": selector_lr_ratio},
        {"params": [p for p in tower.parameters() if p.requires_grad], "lr_scale": tower_lr_ratio},
    ]
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class ChainLoss:
    """Loss of a shard of a step: shards average to the loss of all rows at once, whatever rows each holds."""

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
    """What puts a model's own selections into some steps; None where the config has none."""
    if not config.own_looks:
        return None
    pad_id = folder.processor.tokenizer.pad_token_id
    begin = config.loop.steps // 3
    return OwnLooks(config.own_looks, begin, config.loop.seed, pad_id, config.regions, config.data.grid)


def problems_of(config: InterleaveConfig, folder: InterleavedFolder) -> Sequence[ChainProblem]:
    """What a run trains on: drawn figures, or published files; rows of the latter that are left out are named in the
    run's skipped.txt."""
    if not config.published.files:
        return read_problems(config.data)
    return published_split(config.published, folder, config.run_dir)[0]


def published_split(
    data: PublishedData, folder: InterleavedFolder, run_dir: str
) -> tuple[Sequence[ChainProblem], Sequence[ChainProblem]]:
    """Problems of published files to train on, and those held out."""
    problems, skipped = read_published_problems(data, folder.encoder, folder.model.model)
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    (Path(run_dir) / "skipped.txt").write_text("".join(f"{line}\n" for line in skipped))
    if skipped:
        print(f"{len(skipped)} rows left out, named in {Path(run_dir) / 'skipped.txt'}; the first: {skipped[0]}")
    kept = len(problems) - data.held_out
    return problems[:kept], problems[kept:]


def train(config: InterleaveConfig, problems: Sequence[ChainProblem] | None = None) -> FitResult:
    """Runs or resumes a stage and writes the finished model to `config.out`.

    Args:
        problems: instead of those of `config.data`.
    """
    torch.manual_seed(config.loop.seed)
    folder = read_interleaved(config.start, config.settings, projector=config.projector)
    if config.threshold is not None:
        folder.model.selector.config = replace(folder.model.selector.config, threshold=config.threshold)
    if problems is None:
        problems = problems_of(config, folder)
    if config.regions != "own":
        problems = Substituted(problems, config.regions, config.data.grid, config.loop.seed)
    encoder = replace(folder.encoder, next_token=config.next_token)
    batches = ChainBatches(encoder, problems, config.batch_size, config.loop.seed, sums=config.sums)
    result = fit(
        folder.model,
        batches,
        ChainLoss(config.selection_weight, own_looks(config, folder)),
        config.loop,
        config.run_dir,
        param_groups=interleaved_groups(folder.model, config.tower_lr_ratio, config.selector_lr_ratio),
        title=config.stage,
        fingerprint=fingerprint(config, free=("run_dir", "out", "data.store")),
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
    regions: str
    grid: tuple[int, int]
    seed: int

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: Any) -> Any:
        return with_regions(self.problems[index], self.regions, self.grid, hash((self.seed, int(index))) % 2**31)


def main(argv: list[str] | None = None) -> None:
    print(f"done: {train(parse_config(InterleaveConfig, argv))}")


if __name__ == "__main__":
    main()
