"""Trains a tokenizer of object masks on rendered scenes (`python -m train.mask_tokenizer`).

    python -m train.mask_tokenizer    # 16 codes of 128 for a mask of 64x64

It is the VQVAE of depth maps, given the visible pixels of each object, cropped to their box and resized, as a map whose
depth is 1 inside and 2 outside (`perception.tokenizers.masks`). Crops are mirrored, flipped and turned at random. A
killed run continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.tokenizers.locations import to_bins
from perception.tokenizers.masks import INSIDE, OUTSIDE, MaskTokenizer, crop_mask, mask_depth, mask_iou, tight_box
from train.loop.command_line import fingerprint, parse_config
from train.loop.evaluation import Evaluation
from train.loop.fit import FitResult, LoopConfig, fit
from train.tokenizer import FIRST_SEED, HELD_OUT_SEED, tokenizer_loss
from train.views.tokenizer import evaluate_tokenizer
from vqvae import VQVAE, VQVAEConfig

_LOCATIONS = 100
"""Bins of the boxes that masks are cropped by; more than a scene has pixels, so that they are the tight boxes"""


@dataclass(frozen=True)
class MaskTokenizerConfig:
    """Trains a tokenizer of object masks."""

    run_dir: str = "runs/mask_tokenizer"
    """folder for checkpoints and logs"""
    out: str = "runs/mask_tokenizer/finished"
    """folder of the finished tokenizer, in half precision"""
    store: str = "runs/scenes/masks"
    """folder that keeps the scenes"""
    num_scenes: int = 6000
    """number of rendered scenes whose objects it is trained on"""
    num_held_out: int = 64
    """number of held-out scenes that order the codebook and evaluate the finished tokenizer"""
    batch_size: int = 32
    """masks per step and device"""
    model: VQVAEConfig = field(
        default_factory=lambda: VQVAEConfig(
            image_size=64, downsample=16, normalisation="metric", min_depth=INSIDE, max_depth=OUTSIDE
        )
    )
    """sizes of the tokenizer"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2000, learning_rate=1.5e-3, warmup_steps=100, min_lr_ratio=0.02, betas=(0.9, 0.98), num_workers=0
        )
    )

    def __post_init__(self) -> None:
        if min(self.num_scenes, self.num_held_out, self.batch_size) < 1:
            raise ValueError(
                f"num_scenes ({self.num_scenes}), num_held_out ({self.num_held_out}) and batch_size "
                f"({self.batch_size}) must be at least 1"
            )
        MaskTokenizer(VQVAE(self.model))  # raises ValueError for another normalisation


def held_out_scenes(seeds: Sequence[int]) -> list[Scene]:
    """Render scenes of the standard style, one per seed."""
    batch = render_scenes(seeds)
    return [Scene.from_batch(batch, n) for n in range(len(batch.objects))]


def crops_of(scenes: Iterable[Scene], size: int) -> Tensor:
    """Masks (N, size, size) uint8, 0 to 255, of all objects of the scenes, cropped to their boxes and resized.

    Raises:
        ValueError: if the scenes show no object.
    """
    crops = []
    for scene in scenes:
        for number in range(1, len(scene.objects) + 1):
            mask = scene.mask_of(number)
            crop = crop_mask(mask, to_bins(tight_box(mask), _LOCATIONS), _LOCATIONS)  # (h, w)
            resized = F.interpolate(crop[None, None], (size, size), mode="bilinear", antialias=True)[0, 0]
            crops.append((255 * resized).round().to(torch.uint8))
    if not crops:
        raise ValueError("the scenes show no object; raise num_scenes")
    return torch.stack(crops)


@dataclass(frozen=True)
class MaskBatches:
    """Batch `step`: a pure function of the step, the rank and the seed."""

    crops: Tensor
    """(N, S, S) uint8, 0 to 255"""
    batch_size: int
    seed: int

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, rank))
        masks = self.crops[torch.from_numpy(rng.integers(len(self.crops), size=self.batch_size))] / 255  # (B, S, S)
        mirrored, flipped, turned = torch.from_numpy(rng.random((3, self.batch_size, 1, 1)) < 0.5)  # (B, 1, 1) each
        masks = torch.where(mirrored, masks.flip(2), masks)
        masks = torch.where(flipped, masks.flip(1), masks)
        return {"depth": mask_depth(torch.where(turned, masks.transpose(1, 2), masks))}


def round_trip_iou(tokenizer: MaskTokenizer, scenes: Iterable[Scene]) -> list[float]:
    """IoU of every object's mask with its decoded codes, in the pixels of the whole image."""
    found = []
    for scene in scenes:
        for number in range(1, len(scene.objects) + 1):
            mask = scene.mask_of(number)
            found.append(mask_iou(mask, tokenizer.decode(tokenizer.encode(mask), mask.shape)))
    return found


def train(config: MaskTokenizerConfig) -> FitResult:
    """Runs or resumes a training, orders the codebook and writes the finished tokenizer to `config.out`."""
    torch.manual_seed(config.loop.seed)
    size = config.model.image_size
    store = SceneStore.build(config.store, range(FIRST_SEED, FIRST_SEED + config.num_scenes))
    scenes = (Scene.from_store(store, n) for n in store)
    batches = MaskBatches(crops_of(scenes, size), config.batch_size, config.loop.seed)
    held_out = held_out_scenes(range(HELD_OUT_SEED, HELD_OUT_SEED + config.num_held_out))
    model = VQVAE(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.quantizer.deferred = config.loop.gradient_accumulation > 1
    watched = mask_depth(crops_of(held_out, size) / 255)  # (N, S, S)

    def evaluate(model: VQVAE) -> Evaluation:
        return evaluate_tokenizer(model, watched)

    free = ["run_dir", "out", "store"]
    free += ["num_held_out"] if config.loop.evaluate_every is None else []  # else it decides when training ends
    result = fit(
        model,
        batches,
        tokenizer_loss,
        config.loop,
        Path(config.run_dir),
        evaluate=evaluate,
        after_step=model.quantizer.settle,
        title="mask tokenizer",
        fingerprint=fingerprint(config, free),
    )
    if result.is_main:
        model = model.cpu().eval()
        model.sort_codebook(watched)
        model.save_pretrained(config.out, dtype=torch.float16)
        found = round_trip_iou(MaskTokenizer.from_pretrained(config.out), held_out)  # of what was written
        low = np.quantile(found, 0.05)
        print(f"{len(found)} held-out masks: mean IoU {np.mean(found):.3f}, 5th percentile {low:.3f}")
    return result


def main(argv: list[str] | None = None) -> None:
    config = parse_config(MaskTokenizerConfig, argv)
    result = train(config)
    if result.is_main:
        print(f"{result.steps} steps, {result.seconds:.0f} s; tokenizer: {config.out}")


if __name__ == "__main__":
    main()
