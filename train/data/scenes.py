"""Rendered scenes as a source of rows, with tasks drawn by the curriculum. Every arm sees the same images.

The depth tokenizer encodes the scenes once; the codes are stored in the scenes' folder.
"""

from __future__ import annotations

import copy
import zlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor

from perception import chains
from perception.answers import POINT_LETTERS, asks_for_farthest
from perception.chains import Example
from perception.datasets.progress import track
from perception.model.devices import find_device
from perception.scenes.questions import (
    CountQuestion,
    DepthQuestion,
    boxes_of,
    count_question,
    depth_question,
    draw_selection,
    select,
    things_text,
)
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.tokenizers.boxes import BoxTokenizer, reading_order
from perception.tokenizers.depth import readings_at
from perception.tokenizers.masks import MaskTokenizer
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from perception.vocabulary.spans import BOX_OF_MASK
from train.data.augmentation import chromatic, photometric, to_pixels
from train.data.curriculum import CurriculumConfig, direct_only, draw_tasks, task_shares
from train.data.rows import Row
from train.loop.config import check_choices
from vqvae import VQVAE
from vqvae.files import write_whole

MOST_NOISE = 1.0
"""Largest share of random codes in a noisy map. Where little is left of the map, the model has to look at the image."""
SHOWN_GAP = 3
"""Smallest lead of the nearest marker over the next, in readings of 0 to 99, on a foreign or noisy map."""
_READINGS = 10  # fewest random points at which a map is read
_FOREIGN = 0.4  # share of mosaics in the atomic task that reads maps; the others are the image's own
_MARKED = {2: 0.1, 3: 0.2, 4: 0.3, 5: 0.4}  # shares of numbers of points to be named: late letters are rare otherwise
_MOST_MASKS = 3  # largest number of masks in an answer: each takes 22 tokens
_MOST_PIECES = 8  # largest number of pieces of other maps in a mosaic
_QUESTIONS = 31  # seed of the questions that are always the same
_ZOOMED = (chains.ATOMIC_BOXES, chains.CHAIN_COUNT, chains.DIRECT_COUNT)
_LEAST_SCALE, _LEAST_RATIO = 0.6, 0.85  # of an image that is zoomed out; a ratio for each side
_ATTEMPTS = 40  # number of scenes that are tried for a task
_ENCODED_AT_ONCE = 256

AnyScene = TypeVar("AnyScene", bound=Scene)


@dataclass(frozen=True)
class ScenesConfig:
    """Rendered scenes to train on."""

    count: int = 0
    """number of scenes; 0 trains on none"""
    store: str = "runs/scenes/standard"
    """folder of the rendered scenes, all of one style"""
    style: Literal["standard", "shifted"] = "standard"
    """style of the scenes"""
    first_seed: int = 0
    """seed of the first scene; the others follow it"""
    image_size: int = 80
    """pixels per side"""
    share: float = 0.5
    """share of scenes in the rows of a batch, if there are other data too"""
    answers: int = 0
    """number of scenes with an answer to learn from: each has one question of each kind, the same whenever it is asked.
    Perception tasks use all scenes. 0: every scene is asked a new question each time, so there are answers without
    end"""
    varied: float = 0.0
    """share of the images with other saturation and hues; the same share of those of counting tasks, with boxes or
    without, is made smaller and put at random on a blurred copy of itself (docs/results.md says what it changed)"""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.count < 0:
            raise ValueError(f"scenes.count must not be negative, got {self.count}; 0 trains on none")
        if not 0 <= self.answers <= self.count:
            raise ValueError(f"scenes.answers must lie between 0 and the {self.count} scenes, got {self.answers}")
        if not 0 < self.share < 1:
            raise ValueError(f"scenes.share must lie between 0 and 1, got {self.share}; scenes.count 0 trains on none")
        if not 0 <= self.varied <= 1:
            raise ValueError(f"scenes.varied must lie in [0, 1], got {self.varied}; 0 leaves images as they are")

    def build(self) -> SceneStore:
        """Open the store of the scenes; render it first if it does not exist."""
        seeds = range(self.first_seed, self.first_seed + self.count)
        return SceneStore.build(self.store, seeds, self.style, self.image_size)


def depth_codes(store: SceneStore, tokenizer: VQVAE) -> np.ndarray:
    """Return depth codes (2, N, h * w) of every scene and of its mirror image; encode them if there is no file yet.

    The file's name contains fingerprints of the tokenizer's weights and of the scenes, so that codes of another
    tokenizer or of other scenes are never read.
    """
    scenes = zlib.crc32(repr((store.style, store.seeds, store.images.shape)).encode())
    path = Path(store.folder) / f"depth-codes-{tokenizer.fingerprint()}-{scenes:08x}.npy"
    with FileLock(path.with_suffix(".lock")):  # the first process of a training encodes, the others wait
        if not path.exists():
            _encode(store, tokenizer.eval(), path)
    return np.load(path, mmap_mode="r")


@torch.no_grad()
def _encode(store: SceneStore, tokenizer: VQVAE, path: Path) -> None:
    both: list[list[np.ndarray]] = [[], []]
    device = find_device()
    tokenizer = copy.deepcopy(tokenizer).to(device)
    for start in track(range(0, len(store), _ENCODED_AT_ONCE), "depth codes"):
        depth = torch.from_numpy(store.depth[start : start + _ENCODED_AT_ONCE].astype(np.float32)).to(device)
        for mirrored in (0, 1):
            encoded = tokenizer.encode(depth.flip(2) if mirrored else depth)  # (b, h, w)
            both[mirrored].append(tokenizer.to_sequence(encoded).to(torch.int16).cpu().numpy())
    codes = np.stack([np.concatenate(part) for part in both])
    write_whole(path, lambda partial: _save_array(partial, codes))


def _save_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:  # given a path, numpy would add .npy to its name
        np.save(file, array)


def happens(share: float, rng: np.random.Generator) -> bool:
    return share > 0 and bool(rng.random() < share)


def _draw_zoom(rng: np.random.Generator) -> tuple[tuple[float, float], tuple[float, float]]:
    """Draw the scale and the place of an image that is zoomed out; see `Scene.zoomed_out`."""
    scale = rng.uniform(_LEAST_SCALE, 1) * rng.uniform(_LEAST_RATIO, 1, size=2)
    return (float(scale[0]), float(scale[1])), (float(rng.random()), float(rng.random()))


def noisy_codes(codes: np.ndarray, codebook_size: int, rng: np.random.Generator) -> np.ndarray:
    """Replace a random share of the codes (h * w,), at most `MOST_NOISE`, by random codes."""
    hit = rng.random(codes.shape) < rng.random() * MOST_NOISE
    return np.where(hit, rng.integers(codebook_size, size=codes.shape), codes)


@dataclass(frozen=True)
class TaskMaker(Generic[AnyScene]):
    """Maker of task examples from scenes of one class."""

    vocabulary: PerceptionVocabulary
    tokenizer: VQVAE
    masks: MaskTokenizer | None = field(default=None, kw_only=True)
    """None: no masks are drawn"""

    def _span(self, boxes: np.ndarray) -> Span:
        return Span("boxes", tuple(BoxTokenizer(self.vocabulary.num_locations).encode(boxes)))

    def _points(self, points: np.ndarray) -> Span:
        return Span("points", tuple(PointTokenizer(self.vocabulary.num_locations).encode(points)))

    def readings(self, codes: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Return the readings (count,) of the decoded map at the points, from 0 (farthest) to 99 (nearest)."""
        with torch.no_grad():
            near = self.tokenizer.decode(torch.from_numpy(codes.astype(np.int64))[None])  # (1, S, S) in [0, 1]
        return readings_at(near, points)

    def read_at_random(self, codes: np.ndarray, rng: np.random.Generator) -> Example:
        """Make a turn that reads a map of codes (h * w,) at sets of two to five random points."""
        tokenizer, read, sets = PointTokenizer(self.vocabulary.num_locations), 0, []
        while read < _READINGS:
            spans = [self._points(xy[None]) for xy in rng.random((int(rng.integers(2, 6)), 2), dtype=np.float32)]
            centres = np.concatenate([tokenizer.decode(span.codes) for span in spans])
            sets.append((spans, self.readings(codes, np.asarray(centres, np.float32)).tolist()))
            read += len(spans)
        return chains.more_readings(sets)

    def boxes(self, scene: AnyScene, rng: np.random.Generator) -> Example | None:
        """Make an example that draws the boxes of some things of the scene; None if nothing can be asked for."""
        color, shape = draw_selection(scene, rng)
        return chains.atomic_boxes(things_text(color, shape), self._span(boxes_of(select(scene, color, shape))))

    def count_question(self, scene: AnyScene, rng: np.random.Generator) -> CountQuestion | None:
        return count_question(scene, rng)

    def depth_question(self, scene: AnyScene, rng: np.random.Generator, count: int | None) -> DepthQuestion | None:
        return depth_question(scene, rng, count)

    def mask_example(self, scene: AnyScene, rng: np.random.Generator) -> Example | None:
        """Make an example that draws the masks of some things of the scene; None if there are none, or too many."""
        assert self.masks is not None, "the curriculum asks for masks and the recipe has no mask_tokenizer"
        color, shape = draw_selection(scene, rng)
        chosen = select(scene, color, shape)
        if not 1 <= len(chosen) <= _MOST_MASKS:
            return None
        numbers = [n for n, item in enumerate(scene.objects, start=1) if item in chosen]
        codes = np.array([self.masks.encode(scene.mask_of(n)) for n in numbers])  # (n, 20)
        order = reading_order(codes[:, :BOX_OF_MASK], self.vocabulary.num_locations)
        things = things_text(color, shape)
        spans = [Span("masks", tuple(row)) for row in codes[order].tolist()]
        return chains.atomic_masks(things if len(spans) > 1 else things.removesuffix("s"), spans)

    def more_boxes(self, scene: AnyScene, asked: Example, count: int, rng: np.random.Generator) -> tuple[Example, ...]:
        """Make up to `count` examples of boxes, each of other things than those before it and than `asked`."""
        found = {asked.question: asked}
        for _ in range(2 * count):
            example = self.boxes(scene, rng)
            if example is not None and len(found) <= count:
                found.setdefault(example.question, example)
        return tuple(found.values())[1:]

    def make(
        self,
        task: str,
        scene: AnyScene,
        codes: np.ndarray,
        rng: np.random.Generator,
        shown: np.ndarray | None = None,
        foreign: bool = False,
    ) -> tuple[Tensor, Example] | None:
        """Make an image and an example of the task; return None if the scene does not suit the task.

        Args:
            codes: depth codes (h * w,) to be drawn, of `scene` (which may be mirrored).
            shown: codes (h * w,) that the model reads instead of `codes`, either noisy or other images'; a depth chain
                then takes its answer from them. None: the model reads `codes`.
            foreign: True if `shown` is of other images.
        """
        depth = Span("depth", tuple(int(c) for c in codes))
        if task == chains.ATOMIC_DEPTH:
            marked = self.depth_question(scene, rng, None) if rng.random() < 0.5 else None
            return scene.image if marked is None else marked.image, chains.atomic_depth(depth)
        if task == chains.ATOMIC_BOXES:
            boxes = self.boxes(scene, rng)
            return None if boxes is None else (scene.image, boxes)
        if task == chains.ATOMIC_MASKS:
            masks = self.mask_example(scene, rng)
            return None if masks is None else (scene.image, masks)
        if task in (chains.CHAIN_COUNT, chains.DIRECT_COUNT):
            count = self.count_question(scene, rng)
            if count is None:
                return None
            if task == chains.DIRECT_COUNT:
                return scene.image, chains.direct(task, count.text, str(count.answer))
            return scene.image, chains.chain_count(count.text, self._span(count.boxes_xyxy))
        number = int(rng.choice([*_MARKED], p=[*_MARKED.values()])) if task in chains.ATOMIC else None
        question = self.depth_question(scene, rng, number)
        if question is None:
            return None
        if task == chains.DIRECT_DEPTH:
            return question.image, chains.direct(task, question.text, question.answer)
        if task == chains.ATOMIC_POINTS:
            return question.image, chains.atomic_points(self._points(question.points_xy))
        readings = self.readings(codes if shown is None else shown, question.points_xy)
        places = [self._points(point[None]) for point in question.points_xy]
        if task == chains.ATOMIC_READINGS:
            return question.image, chains.atomic_readings(depth, places, readings.tolist(), foreign)
        signed = -readings if asks_for_farthest(question.text) else readings
        said = POINT_LETTERS[int(signed.argmax())]
        if shown is not None and np.diff(np.sort(signed))[-1] < SHOWN_GAP:
            return None
        if shown is None and said != question.answer:
            return None  # the tokenizer lost the order, and the chain would contradict its own map
        return question.image, chains.chain_depth(question.text, places, depth, readings.tolist(), said)


@dataclass(frozen=True)
class SceneRows:
    """Rows from rendered scenes, with photometric augmentation."""

    store: Any
    """the scenes, as many as its length"""
    codes: np.ndarray
    """depth codes of the scenes and of their mirror images, (2, N, h * w); mosaics are made of them"""
    maker: TaskMaker[Any]
    curriculum: CurriculumConfig
    arm: str
    """aurora: tasks of the curriculum; direct: only direct answers"""
    steps: int
    """number of steps of the run"""
    seed: int
    answers: int = 0
    """as in `ScenesConfig`"""
    varied: float = field(default=0.0, kw_only=True)
    """as in `ScenesConfig`"""

    def shares(self, step: int) -> dict[str, float]:
        if self.arm == "direct":
            return direct_only(self.curriculum)
        return task_shares(self.curriculum, step / max(1, self.steps))

    def _mosaic(self, rng: np.random.Generator) -> np.ndarray:
        """Return the codes (h * w,) of another image's map with up to eight pieces of other maps pasted in.

        Whole maps are so similar (near at the bottom, far at the top) that a model can guess their readings. It cannot
        guess where the pieces of a mosaic are, so it has to look up the place.
        """
        h, w = self.maker.vocabulary.depth_grid

        def other() -> np.ndarray:
            return self.codes[int(rng.integers(len(self.codes))), int(rng.integers(self.codes.shape[1]))].reshape(h, w)

        codes = other().copy()
        for _ in range(int(rng.integers(_MOST_PIECES + 1))):
            height, width = int(rng.integers(1, h + 1)), int(rng.integers(1, w + 1))
            (y, x), (v, u) = rng.integers((h - height + 1, w - width + 1), size=(2, 2))
            codes[y : y + height, x : x + width] = other()[v : v + height, u : u + width]
        return codes.reshape(-1)

    def scene(self, index: int, mirrored: int, whole: bool, rng: np.random.Generator) -> tuple[Scene, np.ndarray]:
        """Return a scene, or its mirror image, and its depth codes (h * w,).

        Args:
            whole: leave the scene as it is: a question about it would otherwise be another one.
        """
        scene = Scene.from_store(self.store, index)
        return scene.flipped() if mirrored else scene, self.codes[mirrored, index]

    def row(self, index: int, image: Tensor, row: Row) -> Row:
        """Return a row about scene `index` with its image (H, W, 3)."""
        return replace(row, image=Image.fromarray(image.numpy()))

    def _row(self, task: str, rng: np.random.Generator) -> Row:
        curriculum = self.curriculum
        reads = task in (chains.ATOMIC_READINGS, chains.CHAIN_DEPTH)
        with_map = reads or task == chains.ATOMIC_DEPTH
        share = _FOREIGN if task == chains.ATOMIC_READINGS else curriculum.foreign_maps
        from_image = with_map and curriculum.maps_from_image
        foreign = from_image or (reads and happens(share, rng))
        noisy = with_map and not foreign and happens(curriculum.noisy_maps, rng)
        labelled = self.answers if task not in chains.ATOMIC else 0
        for _ in range(_ATTEMPTS):
            index, mirrored = int(rng.integers(labelled or len(self.store))), int(rng.integers(2))
            mirrored = 0 if labelled else mirrored  # the question would be another one
            scene, codes = self.scene(index, mirrored, bool(labelled), rng)
            if task in _ZOOMED and happens(self.varied, rng):
                scene = scene.zoomed_out(*_draw_zoom(rng))
            shown = self._mosaic(rng) if foreign else None
            if noisy:
                shown = noisy_codes(codes, self.maker.tokenizer.config.codebook_size, rng)
            asking = np.random.default_rng((_QUESTIONS, index)) if labelled else rng
            made = self.maker.make(task, scene, codes, asking, shown, foreign)
            if made is not None:
                turns = curriculum.box_turns if task in chains.ATOMIC else 0
                more = self.maker.more_boxes(scene, made[1], turns, rng)
                if task == chains.ATOMIC_READINGS:
                    more = (self.maker.read_at_random(codes if shown is None else shown, rng), *more)
                return self.row(index, made[0], Row(None, made[1], shown, foreign and not from_image, more))
        raise ValueError(f"no scene out of {_ATTEMPTS} of {self.store.folder} suits the task {task!r}")

    def unaltered(self, step: int, count: int, rng: np.random.Generator) -> list[Row]:
        """Return rows before augmentation."""
        return [self._row(task, rng) for task in draw_tasks(self.shares(step), count, rng)]

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        rng = np.random.default_rng((self.seed, step, shard))
        rows = self.unaltered(step, count, rng)
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images = torch.stack([torch.from_numpy(np.array(row.image)) for row in rows])  # (B, H, W, 3)
        augmented = to_pixels(images)  # (B, 3, H, W) in [0, 1]
        if self.varied:
            chosen = torch.rand(len(rows), generator=generator) < self.varied
            augmented[chosen] = chromatic(augmented[chosen], generator)
        augmented = photometric(augmented, generator)
        pixels = (255 * augmented).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [replace(row, image=Image.fromarray(image)) for row, image in zip(rows, pixels, strict=True)]
