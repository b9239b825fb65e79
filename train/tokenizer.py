"""Trains a depth tokenizer on rendered scenes, or on depth maps of your own (`python -m train.tokenizer`).

    python -m train.tokenizer --config train/configs/tokenizer.yaml  # the shipped tokenizer, 17 minutes on one core
    python -m train.tokenizer --loop.steps 1000 --run_dir runs/quick --out runs/quick/finished  # all targets, 6 minutes
    python -m train.tokenizer --data MAPS --store runs/maps --loop.ema_decay 0.999 \\
        --loop.evaluate_every 250 --loop.patience 8    # a folder of depth maps or parquet tables, stopped early
    python -m train.tokenizer --config train/configs/tokenizer_photos.yaml --photos FOLDER
                                                       # goes on from the shipped one, with maps of photographs
    python -m train.tokenizer --masked_maps 0.5        # codes that tolerate missing pixels
    accelerate launch -m train.tokenizer               # several GPUs; torchrun --nproc_per_node 2 on a CPU

Half of each batch is unchanged scenes; the other half is warped, cropped, given holes, or synthetic
(`train.data.depth_augmentation`), so that the codes also fit measured depth maps. A killed run continues where it
stopped. Expect an order accuracy of 99 % on held-out scenes after 500 steps; later steps give sharper edges.

Several processes train one codebook: its statistics are summed over them, so n processes with one batch each give the
same result as one process with n batches. With `gradient_accumulation` the codebook moves once per optimiser step, by
all of its batches; only its initialisation uses the first batch alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from perception.datasets.depth.files import DepthFormat
from perception.scenes.render import render_scenes
from perception.scenes.store import SceneStore
from train.data.depth import DepthStore, photo_maps
from train.data.depth_augmentation import photo_batch, training_batch, visible_patches
from train.loop.command_line import fingerprint, parse_config
from train.loop.evaluation import Evaluation
from train.loop.fit import FitResult, LoopConfig, fit
from train.views.tokenizer import evaluate_tokenizer
from vqvae import VQVAE, VQVAEConfig
from vqvae.metrics import depth_errors
from vqvae.normalisation import resize_masked
from vqvae.quantizer import codebook_usage

HELD_OUT_SEED = 40_000_000
"""First seed of the scenes that order the codebook and evaluate the finished tokenizer; no training uses these"""
FIRST_SEED = 1_000_000
"""First seed of the scenes to train on, other ones than the language model's"""


@dataclass(frozen=True)
class TokenizerConfig:
    """Trains a depth tokenizer."""

    run_dir: str = "runs/tokenizer"
    """folder for checkpoints and logs"""
    out: str = "runs/tokenizer/finished"
    """folder of the finished tokenizer, in half precision"""
    data: str | None = None
    """depth maps to train on: a file, or a folder of depth files or parquet tables, in any unit. Unreadable ones are
    listed and skipped. none: rendered scenes"""
    data_format: DepthFormat = field(default_factory=DepthFormat)
    """meaning of the numbers in data"""
    store: str = "runs/scenes/tokenizer"
    """folder that keeps the scenes, or the maps of data, at image_size; each set of maps needs a folder of its own"""
    photos: str | None = None
    """folder of photographs with depth maps (docs/data.md shows the layout); random parts of the maps of
    its train part are in each batch. none: no photographs"""
    photos_share: float = 0.4
    """share of each batch that comes from photos, if there are any"""
    start: str | None = None
    """folder of a finished tokenizer with the same model settings, to go on from with new codes; none: start anew"""
    augment: bool = True
    """warp, crop, punch holes into, or replace half of each batch, with metric normalisation only punch holes; false:
    maps are only mirrored"""
    masked_maps: float = 0.0
    """share of the maps of which the encoder sees only some patches while the target is the whole map, as in AiT; codes
    then tolerate missing pixels"""
    masked_share: float = 0.5
    """share of the patches of such a map that the encoder does not see"""
    num_scenes: int = 12_000
    """number of rendered scenes to train on, if there is no data"""
    num_held_out: int = 256
    """number of held-out maps that order the codebook and evaluate the finished tokenizer; with loop.evaluate_every as
    many again are evaluated on during training"""
    batch_size: int = 32
    """maps per step and device"""
    model: VQVAEConfig = field(default_factory=VQVAEConfig)
    """sizes and kind of the tokenizer"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=4500,
            learning_rate=1.5e-3,
            warmup_steps=100,
            min_lr_ratio=0.02,
            betas=(0.9, 0.98),
            precision="bf16",
        )
    )

    def __post_init__(self) -> None:
        if min(self.num_scenes, self.num_held_out, self.batch_size) < 1:
            raise ValueError(
                f"num_scenes ({self.num_scenes}), num_held_out ({self.num_held_out}) and batch_size "
                f"({self.batch_size}) must be at least 1"
            )
        if not (0 <= self.masked_maps <= 1 and 0 <= self.masked_share < 1):
            raise ValueError(
                f"masked_maps ({self.masked_maps}) must lie in [0, 1] and masked_share ({self.masked_share}) in [0, 1)"
            )
        if not 0 < self.photos_share < 1:
            raise ValueError(f"photos_share must lie between 0 and 1, got {self.photos_share}; leave out photos for 0")
        if self.photos is not None and self.metric:
            raise ValueError('maps of photographs have no unit, so they do not go with normalisation="metric"')

    @property
    def metric(self) -> bool:
        return self.model.normalisation == "metric"

    @property
    def num_photos(self) -> int:
        """Maps of a batch that come from photographs."""
        return 0 if self.photos is None else round(self.photos_share * self.batch_size)


@dataclass(frozen=True)
class DepthBatches:
    """Batch `step`: a pure function of the step, the rank and the seed."""

    store: SceneStore | DepthStore
    batch_size: int
    seed: int
    rows: np.ndarray | None = None
    """(M,) rows of the store to train on; None for all"""
    augment: bool = True
    metric: bool = False
    """whether depths keep their unit (`training_batch`)"""
    masked_maps: float = 0.0
    masked_share: float = 0.5
    photos: np.ndarray | None = None
    """(P, M, M) uint8, maps of photographs (`photo_maps`)"""
    num_photos: int = 0
    """maps of a batch that are parts of these"""

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, rank))
        count = self.batch_size - self.num_photos
        chosen = rng.integers(len(self.store) if self.rows is None else len(self.rows), size=count)
        rows = np.sort(chosen if self.rows is None else self.rows[chosen])
        depth = torch.from_numpy(self.store.depth[rows].astype(np.float32))  # (N, S, S)
        depth = depth[torch.from_numpy(rng.permutation(count))]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        depth, mask = training_batch(depth, generator, self.augment, self.metric)
        if self.photos is not None and self.num_photos:
            nearness = torch.from_numpy(self.photos[rng.integers(len(self.photos), size=self.num_photos)]).float() / 255
            more = photo_batch(nearness, depth.shape[-1], generator)
            depth, mask = torch.cat([depth, more[0]]), torch.cat([mask, more[1]])
        batch = {"depth": depth, "mask": mask}
        if self.masked_maps:
            shape = (len(depth), depth.shape[-1])
            batch["visible"] = visible_patches(*shape, self.masked_maps, self.masked_share, generator)
        return batch


@dataclass(frozen=True)
class TrainingData:
    """The maps (N, S, S) to train on and those held out, NaN in holes."""

    config: TokenizerConfig
    store: SceneStore | DepthStore
    rows: np.ndarray | None
    """(M,) rows of the store to train on; None for all"""
    held_out_rows: np.ndarray
    """(n,) rows of the store, or seeds of scenes, for the final evaluation"""
    watched_rows: np.ndarray
    """(n,) likewise, for evaluation during training"""

    @classmethod
    def open(cls, config: TokenizerConfig) -> TrainingData:
        """Opens the store, rendering the scenes or reading the maps first if it is missing.

        Raises:
            ValueError: if no map can be read, or too few to hold some out.
        """
        size, held = config.model.image_size, config.num_held_out
        held_back = held if config.loop.evaluate_every is None else 2 * held
        if config.data is None:
            seeds = range(FIRST_SEED, FIRST_SEED + config.num_scenes)
            made = np.arange(HELD_OUT_SEED, HELD_OUT_SEED + held_back)
            return cls(config, SceneStore.build(config.store, seeds, image_size=size), None, made[:held], made[held:])
        inverse = config.model.normalisation == "relative_inverse"
        percentile = 0.0 if config.metric else config.model.range_percentile
        store = DepthStore.build(config.store, config.data, config.data_format, size, inverse, percentile)
        if len(store) <= held_back:
            raise ValueError(
                f"{config.data} has {len(store)} usable depth maps, and {held_back} are to be held out; lower "
                f"num_held_out ({held}) or add maps"
            )
        shuffled = np.random.default_rng(HELD_OUT_SEED).permutation(len(store))
        return cls(config, store, shuffled[held_back:], shuffled[:held], shuffled[held:held_back])

    def _maps(self, rows: np.ndarray, style: str = "standard") -> Tensor:
        if self.config.data is None:
            return render_scenes(rows.tolist(), style, self.config.model.image_size).depth
        return torch.from_numpy(self.store.depth[np.sort(rows)].astype(np.float32))

    @cached_property
    def photos(self) -> dict[str, np.ndarray]:
        """Maps of the photographs' parts train and val (N, M, M) uint8; empty if the config has no photographs."""
        folder = self.config.photos
        return {} if folder is None else {split: photo_maps(folder, split) for split in ("train", "val")}

    @cached_property
    def watched(self) -> Tensor:
        return self._maps(self.watched_rows)

    def reported(self) -> dict[str, Tensor]:
        """Held-out maps by the name they are reported under; the first ones order the codebook."""
        styles = ("standard", "shifted") if self.config.data is None else ("held out",)
        found = {style: self._maps(self.held_out_rows, style) for style in styles}
        if self.photos:
            near = torch.from_numpy(self.photos["val"]).float() / 255  # (n, M, M)
            size = (self.config.model.image_size,) * 2
            found["photographs"] = 1 / (0.05 + resize_masked(near, torch.ones_like(near, dtype=torch.bool), size)[0])
        return found

    def evaluate(self, model: VQVAE) -> Evaluation:
        return evaluate_tokenizer(model, self.watched)


def tokenizer_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The VQVAE's total loss, and its terms for the log."""
    output = model(**batch)
    terms = {name: term.detach() for name, term in vars(output.losses).items() if name != "total"}
    return output.losses.total, {**terms, "perplexity": output.perplexity}


@torch.no_grad()
def report(model: VQVAE, depth: Tensor, style: str, console: Console) -> None:
    """Prints reconstruction errors on held-out depth (N, S, S); `benchmarks.tokenizer_quality` measures in full."""
    codes = torch.cat([model.encode(chunk) for chunk in depth.split(64)])  # (N, h, w)
    ranges = model.normalise(depth).depth_range
    pairs = zip(codes.split(64), ranges.split(64), strict=True)
    decoded = torch.cat([model.decode(some, near_far) for some, near_far in pairs])  # (N, S, S)
    figures = {name: round(value, 4) for name, value in depth_errors(decoded, depth).means().items()}
    used = codebook_usage(torch.bincount(codes.flatten(), minlength=model.config.codebook_size))
    console.print(f"{style}: {figures}, {100 * used:.0f} % of the codebook used")


def _settings(config: TokenizerConfig) -> dict[str, object]:
    """Settings that decide the outcome of a training. Those that change nothing are left out, so that a run can be
    resumed whatever their values."""
    free = ["run_dir", "out", "store", "num_held_out"]
    if config.loop.evaluate_every is not None or config.data is not None:
        free.remove("num_held_out")  # decides what is trained on, or when it ends
    unused = [] if config.data is not None else [f"data_format.{field.name}" for field in fields(DepthFormat)]
    unused += ["augment"] if config.augment else []
    unused += [] if config.masked_maps else ["masked_maps", "masked_share"]
    unused += ["photos"] if config.photos else ["photos", "photos_share"]  # the maps themselves count, not their folder
    unused += [] if config.start else ["start"]
    return {name: value for name, value in fingerprint(config, free).items() if name not in unused}


def begun(config: TokenizerConfig) -> VQVAE:
    """The tokenizer that training starts from. Raises ValueError if the one in `start` has other settings."""
    if config.start is None:
        return VQVAE(config.model)
    model = VQVAE.from_pretrained(config.start)
    ours, theirs = config.model.settings, model.config.settings
    other = {name: (theirs[name], ours[name]) for name in ours if theirs.get(name) != ours[name]}
    if other:
        listed = ", ".join(f"{name} {old} instead of {new}" for name, (old, new) in other.items())
        raise ValueError(f"the tokenizer in {config.start} has {listed}; set model to the same, or leave out start")
    return model.train()


def train(config: TokenizerConfig) -> FitResult:
    """Runs or resumes a training, orders the codebook and writes the finished tokenizer to `config.out`."""
    torch.manual_seed(config.loop.seed)
    data = TrainingData.open(config)
    photos = data.photos.get("train")
    model = begun(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = DepthBatches(
        data.store,
        config.batch_size,
        config.loop.seed,
        data.rows,
        config.augment,
        config.metric,
        config.masked_maps,
        config.masked_share,
        photos,
        config.num_photos,
    )
    settings = _settings(config)
    if photos is not None:
        settings["photos_digest"] = f"{len(photos)} maps, {hashlib.sha256(photos.tobytes()).hexdigest()[:16]}"
    if isinstance(data.store, DepthStore) and data.store.digest:
        settings["data_digest"] = f"{len(data.store)} maps, {data.store.digest[:16]}"
    model.quantizer.deferred = config.loop.gradient_accumulation > 1
    result = fit(
        model,
        batches,
        tokenizer_loss,
        config.loop,
        Path(config.run_dir),
        evaluate=data.evaluate,
        after_step=model.quantizer.settle,
        title="tokenizer",
        fingerprint=settings,
    )
    if not result.is_main:
        return result
    model = model.cpu().eval()
    reported = data.reported()
    model.sort_codebook(next(iter(reported.values())))
    model.save_pretrained(config.out, dtype=torch.float16)
    finished = VQVAE.from_pretrained(config.out)  # what is reported is what was written
    for style, depth in reported.items():
        report(finished, depth, style, Console())
    return result


def main(argv: list[str] | None = None) -> None:
    config = parse_config(TokenizerConfig, argv)
    result = train(config)
    if result.is_main:
        waited = 100 * result.data_wait_share
        print(
            f"{result.steps} steps, {result.seconds:.0f} s ({waited:.1f} % waiting for data); tokenizer: {config.out}"
        )


if __name__ == "__main__":
    main()
