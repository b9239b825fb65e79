"""Rendered scenes as a source of rows: the same images for every arm, tasks by the curriculum.

Depth codes of the scenes are made once by the depth tokenizer and kept beside them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from rich.progress import track
from torch import Tensor

from perception import chains
from perception.answers import POINT_LETTERS
from perception.chains import Example
from perception.scenes.markers import choose_markers, draw_markers
from perception.scenes.questions import boxes_of, count_question, depth_question, draw_selection, select, things_text
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.depth import readings_at
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.augmentation import photometric, to_pixels
from train.data.curriculum import CurriculumConfig, direct_only, draw_tasks, task_shares
from train.data.rows import Row
from train.loop.config import check_choices
from vqvae import VQVAE
from vqvae.files import write_whole

MOST_NOISE = 0.5
"""At most this share of the codes of a noisy map is random."""
SHOWN_GAP = 3
"""Of 99, what the nearest marker of a foreign or noisy map must lead by"""
_READINGS = 20  # points at which a map is read
_MOST_PIECES = 8  # of other maps in a mosaic
_ATTEMPTS = 12  # scenes tried for a task before it is replaced by an atomic one
_ENCODED_AT_ONCE = 256


@dataclass(frozen=True)
class ScenesConfig:
    """Rendered scenes to train on."""

    count: int = 0
    """scenes; 0 trains on none"""
    store: str = "runs/scenes/standard"
    """folder of the rendered scenes; a store holds those of one style"""
    style: Literal["standard", "shifted"] = "standard"
    first_seed: int = 0
    image_size: int = 80
    """pixels a side"""
    share: float = 0.5
    """share of the rows of a batch that are of scenes, where there are other data too"""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.count < 0:
            raise ValueError(f"scenes.count must not be negative, got {self.count}; 0 trains on none")
        if not 0 < self.share < 1:
            raise ValueError(f"scenes.share must lie between 0 and 1, got {self.share}; scenes.count 0 trains on none")

    def build(self) -> SceneStore:
        """The store, rendered now where it is not there."""
        seeds = range(self.first_seed, self.first_seed + self.count)
        return SceneStore.build(self.store, seeds, self.style, self.image_size)


def depth_codes(store: SceneStore, tokenizer: VQVAE) -> np.ndarray:
    """Codes (2, N, h * w) of every scene and of its mirror image, from the store's folder or made now.

    The file's name holds a fingerprint of the tokenizer's weights and one of the scenes, so that codes of another
    tokenizer or of other scenes are never read.
    """
    scenes = zlib.crc32(repr((store.style, store.seeds, store.images.shape)).encode())
    path = Path(store.folder) / f"depth-codes-{tokenizer.fingerprint()}-{scenes:08x}.npy"
    with FileLock(path.with_suffix(".lock")):  # of several processes of one training the first encodes, the others wait
        if not path.exists():
            _encode(store, tokenizer.eval(), path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _encode(store: SceneStore, tokenizer: VQVAE, path: Path) -> None:
    both: list[list[np.ndarray]] = [[], []]
    for start in track(range(0, len(store), _ENCODED_AT_ONCE), description="depth codes", transient=True):
        depth = torch.from_numpy(store.depth[start : start + _ENCODED_AT_ONCE].astype(np.float32))
        for mirrored in (0, 1):
            encoded = tokenizer.encode(depth.flip(2) if mirrored else depth)  # (b, h, w)
            both[mirrored].append(tokenizer.to_sequence(encoded).to(torch.int16).numpy())
    codes = np.stack([np.concatenate(part) for part in both])
    write_whole(path, lambda partial: _save_array(partial, codes))


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # of a path, numpy would add .npy to its name
        np.save(file, array)


def happens(share: float, rng: np.random.Generator) -> bool:
    return share > 0 and bool(rng.random() < share)


def noisy_codes(codes: np.ndarray, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    """Codes (h * w,), up to `MOST_NOISE` of them random."""
    hit = rng.random(codes.shape) < rng.random() * MOST_NOISE
    return np.where(hit, rng.integers(codebook_size, size=codes.shape), codes)


@dataclass(frozen=True)
class TaskMaker:
    """Turns a scene into an `Example` of a task."""

    vocabulary: PerceptionVocabulary
    tokenizer: VQVAE

    def _span(self, boxes: np.ndarray) -> Span:
        return Span("boxes", tuple(BoxTokenizer(self.vocabulary.num_locations).encode(boxes)))

    def _points(self, points: np.ndarray) -> Span:
        return Span("points", tuple(PointTokenizer(self.vocabulary.num_locations).encode(points)))

    def readings(self, codes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """What the decoded map says at the points: 0 farthest .. 99 nearest, (count,)."""
        with torch.no_grad():
            near = self.tokenizer.decode(torch.from_numpy(codes.astype(np.int64))[None])  # (1, S, S) in [0, 1]
        return readings_at(near, points)

    def read_at_random(self, codes: np.ndarray, rng: np.random.Generator) -> Example:
        """A map of codes (h * w,) and what it says at random points."""
        places = [self._points(point[None]) for point in rng.random((_READINGS, 2), dtype=np.float32)]
        centres = np.concatenate([PointTokenizer(self.vocabulary.num_locations).decode(p.codes) for p in places])
        readings = self.readings(codes, np.asarray(centres, np.float32))
        return chains.atomic_readings(Span("depth", tuple(int(c) for c in codes)), places, readings.tolist())

    def make(
        self, task: str, scene: Scene, codes: np.ndarray, rng: np.random.Generator, shown: np.ndarray | None = None
    ) -> tuple[Tensor, Example] | None:
        """(image, example), or None where the scene does not lend itself to the task.

        Args:
            codes: depth codes (h * w,) to be drawn: of the scene as it stands, mirrored or not.
            shown: codes (h * w,) that stand in their place where they are read, noisy or another image's; what a depth
                chain answers is then what these say. None: `codes` themselves.
        """
        depth = Span("depth", tuple(int(c) for c in codes))
        if task == chains.ATOMIC_DEPTH:
            points = (
                choose_markers(scene, int(rng.integers(2, len(POINT_LETTERS) + 1)), rng) if rng.random() < 0.5 else None
            )
            image = scene.image if points is None else draw_markers(scene.image, points)
            return image, chains.atomic_depth(depth)
        if task == chains.ATOMIC_BOXES:
            color, shape = draw_selection(scene, rng)
            boxes = self._span(boxes_of(select(scene, color, shape)))
            return scene.image, chains.atomic_boxes(things_text(color, shape), boxes)
        if task in (chains.CHAIN_COUNT, chains.DIRECT_COUNT):
            count = count_question(scene, rng)
            if task == chains.DIRECT_COUNT:
                return scene.image, chains.direct(task, count.text, str(count.answer))
            return scene.image, chains.chain_count(count.text, self._span(count.boxes_xyxy))
        if task == chains.ATOMIC_READINGS:
            return scene.image, self.read_at_random(codes if shown is None else shown, rng)
        question = depth_question(scene, rng)
        if question is None:
            return None
        if task == chains.DIRECT_DEPTH:
            return question.image, chains.direct(task, question.text, question.answer)
        if task == chains.ATOMIC_POINTS:
            return question.image, chains.atomic_points(self._points(question.points_xy))
        readings = self.readings(codes if shown is None else shown, question.points_xy)
        nearest = POINT_LETTERS[int(readings.argmax())]
        if shown is not None and np.diff(np.sort(readings))[-1] < SHOWN_GAP:
            return None
        if shown is None and nearest != question.answer:
            return None  # the tokenizer lost the order: a chain that contradicts its own map teaches nothing
        places = [self._points(point[None]) for point in question.points_xy]
        return question.image, chains.chain_depth(question.text, places, depth, readings.tolist(), nearest)


@dataclass(frozen=True)
class SceneRows:
    """Rows on rendered scenes, photometrically augmented."""

    store: SceneStore
    codes: np.ndarray
    """(2, N, h * w): depth codes of the scenes and of their mirror images"""
    maker: TaskMaker
    curriculum: CurriculumConfig
    arm: str
    """aurora, or direct: direct answers alone"""
    steps: int
    """of the run"""
    seed: int

    def shares(self, step: int) -> dict[str, float]:
        if self.arm == "direct":
            return direct_only(self.curriculum)
        return task_shares(self.curriculum, step / max(1, self.steps))

    def _mosaic(self, rng: np.random.Generator) -> np.ndarray:
        """Codes (h * w,) of another image's map, with up to eight pieces of others set into it.

        Whole maps are so alike (near below, far above) that what they say at a place can be guessed; where pieces
        stand cannot, so a model that reads mosaics looks the place up.
        """
        h, w = self.maker.vocabulary.depth_grid

        def other() -> np.ndarray:
            return self.codes[int(rng.integers(2)), int(rng.integers(len(self.store)))].reshape(h, w)

        codes = other().copy()
        for _ in range(int(rng.integers(_MOST_PIECES + 1))):
            height, width = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
            (y, x), (v, u) = rng.integers((h - height + 1, w - width + 1), size=(2, 2))
            codes[y : y + height, x : x + width] = other()[v : v + height, u : u + width]
        return codes.reshape(-1)

    def _row(self, task: str, rng: np.random.Generator) -> Row:
        curriculum = self.curriculum
        with_map = task in (chains.ATOMIC_DEPTH, chains.CHAIN_DEPTH)
        foreign = task == chains.ATOMIC_READINGS
        foreign = foreign or (task == chains.CHAIN_DEPTH and happens(curriculum.foreign_maps, rng))
        noisy = with_map and not foreign and happens(curriculum.noisy_maps, rng)
        for _ in range(_ATTEMPTS):
            index, mirrored = int(rng.integers(len(self.store))), int(rng.integers(2))
            scene = Scene.from_store(self.store, index)
            scene = scene.flipped() if mirrored else scene
            codes = self._mosaic(rng) if foreign else self.codes[mirrored, index]
            shown = codes if foreign else None
            if noisy:
                shown = noisy_codes(codes, self.maker.tokenizer.config.codebook_size, rng)
            made = self.maker.make(task, scene, codes, rng, shown)
            if made is not None:
                return Row(Image.fromarray(made[0].numpy()), made[1], shown, foreign)
        raise ValueError(f"no scene out of {_ATTEMPTS} of {self.store.folder} suits the task {task!r}")

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        rng = np.random.default_rng((self.seed, step, shard))
        tasks = draw_tasks(self.shares(step), count, rng)
        rows = [self._row(task, rng) for task in tasks]
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images = torch.stack([torch.from_numpy(np.array(row.image)) for row in rows])  # (B, H, W, 3)
        augmented = photometric(to_pixels(images), generator)  # (B, 3, H, W) in [0, 1]
        pixels = (255 * augmented).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [replace(row, image=Image.fromarray(image)) for row, image in zip(rows, pixels, strict=True)]
