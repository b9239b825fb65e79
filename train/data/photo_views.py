"""Views of photographs as a frozen backbone sees them, kept on disk.

A view is a random part of a photograph or of its mirror image, often with lettered markers. The backbone of a tower for
photographs takes three quarters of a step's time and never changes, so each view passes it once. The neck then trains
on stored features (`train.photo_tower`), and the language model behind the finished tower on stored visual tokens
(`ViewRows`).
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing import get_context

from perception.datasets.marking import mark
from perception.datasets.photo_questions import question_about
from perception.datasets.photographs import Photographs, PhotoScene, Window
from perception.datasets.progress import track
from perception.model.cell_tower import STRIDES
from perception.model.devices import find_device
from perception.scenes.markers import MIN_GAP, marker_nearness, scatter_markers
from perception.scenes.questions import DepthQuestion
from perception.vocabulary.names import PerceptionVocabulary
from train.data.augmentation import normalise_pixels, photometric, to_pixels
from train.data.curriculum import CurriculumConfig
from train.data.photos import FARTHEST, PhotosConfig, PhotoTaskMaker, codes_of
from train.data.rows import Row
from train.data.scenes import SceneRows
from train.loop.checkpoints import frozen_digest
from vqvae import VQVAE
from vqvae.files import write_whole

_SEED = 0
_EACH = 4  # views of a photograph
_PART = 64  # views in a file
_MARKED = 0.7  # share of views with markers
_AT_ONCE = 8  # views in a pass through the backbone
_BLANK = Image.new("RGB", (32, 32))

Targets = Callable[[PhotoScene, np.ndarray | None, Sequence[str]], dict[str, np.ndarray]]
"""(part of a photograph, places of its markers or None, names of kinds) -> what a neck learns about its cells"""


@dataclass(frozen=True)
class View:
    """Which part of which photograph, and the places (m, 2) of its markers in [0, 1]; None without markers."""

    photo: int
    window: Window
    mirrored: bool
    points: np.ndarray | None
    rng: np.random.Generator
    """of the markers' style and of the colours"""


@dataclass(frozen=True)
class ViewScene(PhotoScene):
    """The labels of a view, without its pixels."""

    points: np.ndarray | None = None


@dataclass(frozen=True)
class PhotoViews:
    """Stored views of the photographs of a folder; view i is a pure function of i.

    Args:
        folder: where the views are kept, some 0.7 MB each.
        image_size: side of a view in pixels.
    """

    folder: Path
    photos: Photographs
    tokenizer: VQVAE
    image_size: int

    def __len__(self) -> int:
        return _EACH * len(self.photos)

    def plan(self, number: int) -> View:
        rng = np.random.default_rng((_SEED, number))
        window, mirrored = Window.draw(rng), bool(rng.random() < 0.5)
        points = scatter_markers(int(rng.integers(2, 6)), self.image_size, rng) if rng.random() < _MARKED else None
        return View(number % len(self.photos), window, mirrored, points, rng)

    def draw(self, number: int) -> tuple[Tensor, PhotoScene, np.ndarray | None]:
        """Return the pixels (3, S, S) of a view, its labels, and the places of its markers."""
        view = self.plan(number)
        scene = self.photos.scene(view.photo, self.image_size, view.window, view.mirrored)
        image = scene.image if view.points is None else mark(scene.image, view.points, view.rng)
        generator = torch.Generator().manual_seed(int(view.rng.integers(2**31)))
        return normalise_pixels(photometric(to_pixels(image[None]), generator))[0], scene, view.points

    def labels(self, number: int) -> ViewScene:
        """Return the labels of a view."""
        view = self.plan(number)
        scene = self.photos.scene(view.photo, 0, view.window, view.mirrored)
        return ViewScene(**vars(scene), points=view.points)

    def make(self, backbone: nn.Module, targets: Targets, processes: int = 1) -> None:
        """Pass all views that are not stored yet through `backbone`, on an accelerator where there is one.

        Args:
            backbone: (B, 3, S, S) -> feature maps of strides 4, 8, 16 and 32.
            targets: what is stored beside the features.
            processes: number of processes that draw views. Others that were started apart share the work as well.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [part for part in range(self._parts) if not self._path(part).exists()]
        if not missing:
            return
        context = get_context("spawn")  # a process that has used a GPU cannot be forked
        arguments = (self, missing, backbone, targets, processes)
        helpers = [
            context.Process(target=_help, args=arguments, daemon=True) for _ in range(min(processes, len(missing)) - 1)
        ]
        for helper in helpers:
            helper.start()
        self._make(missing, backbone, targets)  # what a helper that failed left undone, too
        for helper in helpers:
            helper.join()

    def _make(self, parts: Sequence[int], backbone: nn.Module, targets: Targets) -> None:
        home = next(backbone.parameters()).device
        backbone.to(find_device())
        for wait in (False, True):  # first what no other process is making, then wait for those
            for part in track(parts, "views of photographs"):
                try:
                    with FileLock(self._path(part).with_suffix(".lock"), timeout=-1 if wait else 0):
                        if not self._path(part).exists():
                            write_whole(self._path(part), self._writer(part, backbone, targets))
                except Timeout:
                    continue
        backbone.to(home)

    def load(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return stored views as a batch: `seen`, feature maps (B, C, S / stride, S / stride), and the targets."""
        rows = []
        for number in numbers:
            with safe_open(self._path(number // _PART), framework="pt") as file:
                at = number % _PART
                rows.append({name: file.get_slice(name)[at : at + 1] for name in file.keys()})  # noqa: SIM118
        batch: dict[str, Any] = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        seen = [batch.pop(f"stride{stride}").float() for stride in STRIDES]
        depth = batch.pop("depth").long()
        return {"seen": seen, "depth": depth} | {name: value.float() for name, value in batch.items()}

    def targets(self) -> Iterator[dict[str, Tensor]]:
        """Yield the targets of all views, a file at a time."""
        for part in range(self._parts):
            with safe_open(self._path(part), framework="pt") as file:
                names = [name for name in file.keys() if not name.startswith("stride")]  # noqa: SIM118
                yield {name: file.get_tensor(name).float() for name in names}

    def codes(self) -> np.ndarray:
        """Return the depth codes of all views, (V, h * w). Raises ValueError where views are missing."""
        if not all(self._path(part).exists() for part in range(self._parts)):
            raise ValueError(
                f"{self.folder} lacks views of {self.photos.folder} made with this depth tokenizer and "
                "image_size; make them with python -m train.photo_tower"
            )
        parts = []
        for part in range(self._parts):
            with safe_open(self._path(part), framework="np") as file:
                parts.append(file.get_tensor("depth"))
        return np.concatenate(parts)

    def tokens(self, tower: Any) -> np.ndarray:
        """Return the visual tokens of all views, (V, N, D) float16 on disk; made once for a tower.

        Raises ValueError if the tower is not frozen.
        """
        if any(parameter.requires_grad for parameter in tower.parameters()):
            raise ValueError("stored views are for a frozen tower; set tower_lr_ratio to 0, or leave data.photos.views")
        path = self.folder / f"{self._name}-tokens-{str(frozen_digest(tower))[:8]}.npy"
        with FileLock(path.with_suffix(".lock")):  # the first process of a training makes them, the others wait
            if not path.exists():
                write_whole(path, lambda partial: self._write_tokens(partial, tower))
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]

    @torch.no_grad()
    def _write_tokens(self, path: Path, tower: Any) -> None:
        made, home, device = [], next(tower.parameters()).device, find_device()
        tower.to(device)
        for part in track(range(self._parts), "visual tokens"):
            with safe_open(self._path(part), framework="pt") as file:
                seen = [file.get_tensor(f"stride{stride}").to(device).float() for stride in STRIDES]
            made.append(tower.gather(seen).half().cpu().numpy())
        tower.to(home)
        with path.open("wb") as file:  # given a path, numpy would add .npy to its name
            np.save(file, np.concatenate(made))

    @cached_property
    def _parts(self) -> int:
        return -(-len(self) // _PART)

    @cached_property
    def _name(self) -> str:
        made_from = repr((_SEED, self.image_size, _EACH, self.photos.labels, self.photos.file_sizes()))
        return f"{self.tokenizer.fingerprint()}-{zlib.crc32(made_from.encode()):08x}"

    def _path(self, part: int) -> Path:
        return self.folder / f"{self._name}-{part:05d}.safetensors"

    def _writer(self, part: int, backbone: nn.Module, targets: Targets) -> Callable[[Path], None]:
        def write(path: Path) -> None:
            drawn = [self.draw(number) for number in range(part * _PART, min(len(self), (part + 1) * _PART))]
            maps: list[list[Tensor]] = [[] for _ in STRIDES]
            device = next(backbone.parameters()).device
            with torch.no_grad():
                for start in range(0, len(drawn), _AT_ONCE):
                    pixels = torch.stack([pixels for pixels, *_ in drawn[start : start + _AT_ONCE]]).to(device)
                    for found, made in zip(maps, backbone(pixels), strict=True):
                        found.append(made.half().cpu())
            tensors = {f"stride{s}": torch.cat(made).contiguous() for s, made in zip(STRIDES, maps, strict=True)}
            rows = [targets(scene, points, self.photos.kinds) for _, scene, points in drawn]
            for name in rows[0]:
                tensors[name] = torch.from_numpy(np.stack([row[name] for row in rows])).half()
            codes = codes_of(self.tokenizer, torch.stack([scene.depth for _, scene, _ in drawn]))
            save_file(tensors | {"depth": torch.from_numpy(codes)}, path)

        return write


def _help(views: PhotoViews, parts: Sequence[int], backbone: nn.Module, targets: Targets, processes: int) -> None:
    """Make views in a process of its own, with its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    views._make(parts, backbone, targets)


@dataclass(frozen=True)
class ViewTaskMaker(PhotoTaskMaker):
    """Maker of task examples from views: questions about depth are about the markers that a view has."""

    def depth_question(self, scene: Any, rng: np.random.Generator, count: int | None) -> DepthQuestion | None:
        """Ask about a view's markers; None if it has none, or if an answer is wanted (`count` None) and two of them are
        hard to tell apart."""
        if scene.points is None:
            return None
        near = marker_nearness(scene.depth, scene.points)
        farthest = count is None and rng.random() < FARTHEST
        if count is None and np.diff(np.sort(-near if farthest else near))[-1] < MIN_GAP:
            return None
        return question_about(scene.image, scene.points, near, farthest)


@dataclass(frozen=True)
class ViewRows(SceneRows):
    """Rows from stored views; the scenes are a `PhotoViews`, `codes` those of its views, (1, V, h * w)."""

    tokens: np.ndarray = field(kw_only=True)
    """visual tokens of all views, (V, N, D)"""

    def scene(self, index: int, mirrored: int, whole: bool, rng: np.random.Generator) -> tuple[ViewScene, np.ndarray]:
        return self.store.labels(index), self.codes[0, index]

    def row(self, index: int, image: Tensor, row: Row) -> Row:
        return replace(row, image=_BLANK, tokens=torch.from_numpy(self.tokens[index].astype(np.float32)))

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        return self.unaltered(step, count, np.random.default_rng((self.seed, step, shard)))


def view_rows(
    config: PhotosConfig,
    vocabulary: PerceptionVocabulary,
    tokenizer: VQVAE,
    curriculum: CurriculumConfig,
    arm: str,
    steps: int,
    seed: int,
    tower: Any,
) -> ViewRows:
    """Build the rows of a run from stored views.

    Raises:
        ValueError: if views are missing, or the tower trains or is none for photographs.
    """
    if not hasattr(tower, "gather"):
        raise ValueError(f"data.photos.views is for models with a CellTower, and this one has a {type(tower).__name__}")
    photos = config.build()
    views = PhotoViews(Path(config.views), photos, tokenizer, config.image_size)
    maker = ViewTaskMaker(vocabulary, tokenizer, photos)
    codes = views.codes()
    return ViewRows(views, codes[None], maker, curriculum, arm, steps, seed, tokens=views.tokens(tower))
