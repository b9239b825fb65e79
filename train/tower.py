"""Train the tiny base's vision tower to see what is where (`python -m train.tower`): stage 0 of the tiny base.

A Swin transformer learns, for each cell of its 10 x 10 output, which kinds of objects cover the cell, the boxes of the
objects centred in it, and the lettered markers. Depth and counts are not taught here: fine-tuning teaches them.

With --base MODEL the tower of a finished model learns further, and learns the depth code of each cell as well. An image
takes no pass through the language model here, which then has to learn to say what the tower sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from perception.answers import POINT_LETTERS
from perception.model.folder import find_folder, read_model, read_processor
from perception.scenes.markers import draw_markers, scatter_markers
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.scenes.styles import COLORS, SHAPES
from perception.vocabulary.names import PerceptionVocabulary
from train.data.augmentation import normalise_pixels, photometric, to_pixels
from train.data.scenes import depth_codes
from train.loop.command_line import command_line, flatten, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.provenance import provenance
from train.models.saving import precision_of, save_perception_model
from vqvae import VQVAE

GRID = 10
NUM_KINDS = len(COLORS) * len(SHAPES)
FREQUENCIES = (1, 2, 3, 5, 8, 12, 18, 26)
"""Frequencies in half turns per image side. The targets of places and the initial embeddings of numbers share this
Fourier code."""
CODE = 2 * len(FREQUENCIES)


@dataclass(frozen=True)
class TowerConfig:
    """Train the vision tower of the tiny base on rendered scenes and write it to RUN_DIR/tower."""

    run_dir: str = "runs/tower"
    """folder for checkpoints, logs and the finished tower"""
    base: str = ""
    """model with perception tokens whose tower learns further; written with its new tower to RUN_DIR/model"""
    store: str = "runs/scenes/standard"
    """folder of rendered scenes; rendered first if it is missing"""
    num_scenes: int = 40_000
    """number of scenes to train on"""
    batch_size: int = 64
    """images per step and device"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=1800, learning_rate=1.5e-3, weight_decay=0.05, warmup_steps=60, min_lr_ratio=0.02, precision="bf16"
        )
    )


def tower_config(embed_dim: int = 80, depths: Sequence[int] = (2, 4), num_heads: Sequence[int] = (2, 5)) -> SwinConfig:
    """Return the config of a tower that turns 80 x 80 images into (B, 100, 2 x embed_dim) tokens on a 10 x 10 grid.

    Patches are 4 x 4 pixels, and there are two levels. The defaults are the sizes of the shipped tower, which
    `models/tiny-base` needs; tests use smaller ones.
    """
    return SwinConfig(
        image_size=80,
        patch_size=4,
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=list(num_heads),
        window_size=10,
        use_absolute_embeddings=True,
        drop_path_rate=0.0,
    )


_RARE = ("covers", "centres", "letters")
_RARE_BIAS = -4.0
"""Logit of what is rare before anything is learned: the focal loss of 0 would be hundreds of times that of the rest"""


def dense_fields(kinds: int, depth_codes: int = 0) -> dict[str, int]:
    """Return the sizes of the dense targets of a cell.

    Args:
        kinds: number of kinds of things.
        depth_codes: size of the depth tokenizer's codebook; 0 learns no depth.
    """
    sizes = {"covers": kinds, "centres": kinds, "letters": len(POINT_LETTERS)}
    sizes |= {"box": 4 * CODE, "point": 2 * CODE, "place": 2 * CODE}
    return sizes | ({"depth": depth_codes} if depth_codes else {})


class DenseTower(nn.Module):
    """A tower with one linear head for all dense targets.

    Args:
        tower: gives (B, 100, D) tokens as its last hidden state.
        fields: sizes of the targets, as of `dense_fields`.
    """

    def __init__(self, tower: Any, fields: dict[str, int]):
        super().__init__()
        self.tower = tower
        if isinstance(tower, SwinModel):
            tower.layernorm.requires_grad_(False)  # the language model reads what comes before it
        self.fields = fields
        self.head = nn.Linear(tower.config.hidden_size, sum(self.fields.values()))
        for name, bias in zip(fields, self.head.bias.data.split(list(fields.values())), strict=True):
            if name in _RARE:
                bias.fill_(_RARE_BIAS)

    def forward(self, seen: Tensor) -> dict[str, Tensor]:
        # The language model reads hidden_states[-1] (before the final norm), so the head does too.
        return self.read(self.tower(seen, output_hidden_states=True).hidden_states[-1])

    def read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the targets that the head finds in tokens (B, 100, D)."""
        out = self.head(tokens).float()
        return dict(zip(self.fields, out.split(list(self.fields.values()), dim=-1), strict=True))


def cell_of(x: float, y: float) -> int:
    """Return the row-major index of the grid cell that contains a point (x, y) in [0, 1]."""
    return min(GRID - 1, int(y * GRID)) * GRID + min(GRID - 1, int(x * GRID))


def fourier_code(values: np.ndarray) -> np.ndarray:
    """Encode values (..., n) in [0, 1] as (..., n * 16): per value, cosines, then sines, at each of FREQUENCIES."""
    angles = np.pi * np.asarray(values, dtype=np.float64)[..., None] * np.array(FREQUENCIES)  # (..., n, 8)
    code = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)  # (..., n, 16)
    return code.reshape(*code.shape[:-2], -1).astype(np.float32)


def cell_targets(
    boxes: np.ndarray, kinds: Sequence[int], covered: Sequence[np.ndarray], points: np.ndarray | None, num_kinds: int
) -> dict[str, np.ndarray]:
    """Return the targets of one image, each (100, n) float32: multi-hot kinds and letters, Fourier codes of places.

    Args:
        boxes: of the things, (n, 4) in [0, 1].
        kinds: numbers of their kinds.
        covered: per thing, True in the cells (100,) that it covers.
        points: lettered markers, (m, 2) in [0, 1].

    Boxes and points are absolute, and every cell has its own place as a target. A tower trained on offsets alone loses
    the column of a cell by its last layer (R2 = 0.17 in a linear probe), and the language model then cannot tell left
    from right. A linear map turns Fourier codes of places into the numbers that the language model writes.
    """
    fields = dense_fields(num_kinds)
    targets = {name: np.zeros((GRID * GRID, size), dtype=np.float32) for name, size in fields.items()}
    for box, kind, cells in zip(boxes, kinds, covered, strict=True):
        targets["covers"][cells, kind] = 1
        cell = cell_of((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        targets["centres"][cell, kind] = 1
        targets["box"][cell] = fourier_code(box)
    for number, (x, y) in enumerate(points if points is not None else ()):
        cell = cell_of(x, y)
        targets["letters"][cell, number] = 1
        targets["point"][cell] = fourier_code(np.array([x, y]))
    targets["place"][:] = fourier_code((np.stack(np.divmod(np.arange(GRID * GRID), GRID)[::-1], axis=1) + 0.5) / GRID)
    return targets


def dense_targets(scene: Scene, points: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return the targets of a rendered scene, as `cell_targets`."""
    ids = rearrange(scene.object_ids.numpy(), "(r a) (c b) -> (r c) (a b)", r=GRID, c=GRID)  # (100, 64)
    kinds = [COLORS.index(o.color) * len(SHAPES) + SHAPES.index(o.shape) for o in scene.objects]
    covered = [(ids == number).mean(1) >= 0.12 for number in range(1, len(kinds) + 1)]
    boxes = np.array([o.box_xyxy for o in scene.objects]).reshape(-1, 4)
    return cell_targets(boxes, kinds, covered, points, NUM_KINDS)


@dataclass(frozen=True)
class TowerBatches:
    """Batches of a run; each is a pure function of the step, the rank and the seed."""

    store: SceneStore
    batch_size: int
    seed: int
    codes: np.ndarray | None = None
    """depth codes of the scenes and of their mirror images, (2, N, 100)"""

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, rank))
        images, rows, codes = [], [], []
        for index in rng.integers(len(self.store), size=self.batch_size):
            scene, mirrored = Scene.from_store(self.store, int(index)), bool(rng.random() < 0.5)
            scene = scene.flipped() if mirrored else scene
            if self.codes is not None:
                codes.append(self.codes[int(mirrored), index].astype(np.int64))
            points = scatter_markers(int(rng.integers(2, 6)), len(scene.image), rng) if rng.random() < 0.5 else None
            images.append(scene.image if points is None else draw_markers(scene.image, points))
            rows.append(dense_targets(scene, points))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        pixels = normalise_pixels(photometric(to_pixels(torch.stack(images)), generator))
        depth = {} if self.codes is None else {"depth": torch.from_numpy(np.stack(codes))}
        return {"seen": pixels} | {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0]} | depth


def _focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the focal loss (Lin et al. 2017, gamma 2) per positive target, since almost all targets are negative."""
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    wrong = (logits.sigmoid() - target).abs()
    return (plain * wrong**2).sum() / target.sum().clamp_min(1)


def dense_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of focal losses of kinds and letters, of squared errors of Fourier codes, and of the cross-entropy
    of depth codes where they are learned.

    The error of a cell's own place counts in every cell, those of boxes and points in the cells that contain one.
    """
    out = model(batch["seen"])
    parts = {name: _focal(out[name], batch[name]) for name in _RARE}
    for name, where in (("box", "centres"), ("point", "letters")):
        mask = (batch[where].sum(-1, keepdim=True) > 0).float()  # (B, 100, 1)
        error = (out[name] - batch[name]).square() * mask
        parts[name] = error.sum() / mask.sum().clamp_min(1) / out[name].shape[-1]
    parts["place"] = (out["place"] - batch["place"]).square().mean()
    loss = parts["covers"] + parts["centres"] + 0.5 * parts["letters"]
    loss = loss + 4 * (parts["box"] + parts["point"] + parts["place"])
    if "depth" in out:
        parts["depth"] = F.cross_entropy(out["depth"].flatten(0, 1), batch["depth"].flatten())
        loss = loss + parts["depth"]
    return loss, {k: v.detach() for k, v in parts.items()}


def train(config: TowerConfig) -> FitResult:
    """Train or resume a tower and write it to the run's folder: alone, or in its model where there is a base.

    Raises:
        ValueError: if the base draws maps of another grid than the tower's.
    """
    store = SceneStore.build(config.store, range(config.num_scenes))
    run_dir = Path(config.run_dir)
    if not config.base:
        model = DenseTower(SwinModel(tower_config(), add_pooling_layer=False), dense_fields(NUM_KINDS))
        batches = TowerBatches(store, config.batch_size, config.loop.seed)
        fitted = fit(model, batches, dense_loss, config.loop, run_dir, title="tower")
        if fitted.is_main:
            model.tower.save_pretrained(run_dir / "tower")
        return fitted
    base = find_folder(config.base)
    tokenizer = VQVAE.from_pretrained(base / "depth_tokenizer")
    whole, vocabulary = read_model(base, torch.float32), PerceptionVocabulary.load(base)
    if vocabulary.depth_grid != (GRID, GRID):
        raise ValueError(f"{base} draws maps of {vocabulary.depth_grid} codes; the tower has {GRID} x {GRID} cells")
    model = DenseTower(whole.model.vision_tower, dense_fields(NUM_KINDS, tokenizer.config.codebook_size))
    batches = TowerBatches(store, config.batch_size, config.loop.seed, depth_codes(store, tokenizer))
    fitted = fit(model, batches, dense_loss, config.loop, run_dir, title="tower")
    if not fitted.is_main:
        return fitted
    record = {"command": command_line("train.tower", config), **provenance(), "config": flatten(config)}
    out, depth = run_dir / "model", base / "depth_tokenizer"
    save_perception_model(whole, read_processor(base), vocabulary, out, record, precision_of(base), depth)
    return fitted


def main(argv: list[str] | None = None) -> None:
    train(parse_config(TowerConfig, argv))


if __name__ == "__main__":
    main()
