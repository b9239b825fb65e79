"""Write rendered scenes as records for any model (`python -m train.data.scene_records --out runs/scene_records`).

`train.aurora` trains the tiny model on scenes directly; `train.finetune` can train any model on these records. Three
files are written, on the same images: captions.jsonl describes the scenes in words, to align a new projector;
chains.jsonl holds atomic tasks, chains and direct answers; direct.jsonl holds only the direct answers, for a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perception import chains
from perception.answers import POINT_LETTERS
from perception.chains import Example
from perception.datasets.images import ImageFile
from perception.datasets.progress import track
from perception.datasets.records import Record, RecordSet
from perception.model.folder import find_folder
from perception.scenes.captions import conversation
from perception.scenes.questions import depth_question
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from perception.scenes.styles import STYLES
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.data.scenes import TaskMaker
from train.loop.command_line import parse_config
from vqvae import VQVAE

CAPTIONS, CHAINS, DIRECT = "captions.jsonl", "chains.jsonl", "direct.jsonl"
_RENDER = 32


@dataclass(frozen=True)
class SceneRecordsConfig:
    """Configuration of the scenes that are written."""

    out: str = "runs/scene_records"
    """folder of the images and records"""
    count: int = 3000
    """number of scenes"""
    first_seed: int = 0
    """seed of the first scene; the others follow it"""
    style: str = "standard"
    image_size: int = 128
    """pixels per side"""
    depth_tokenizer: str = "tokenizers/depth-scenes-100"
    num_locations: int = 100

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"unknown style {self.style!r}; known: {', '.join(STYLES)}")
        for name in ("count", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def write_scene_records(config: SceneRecordsConfig) -> dict[str, int]:
    """Render the scenes and write their images and records; return the number of records per file."""
    out = Path(config.out)
    (out / "images").mkdir(parents=True, exist_ok=True)
    vqvae = VQVAE.from_pretrained(find_folder(config.depth_tokenizer)).eval()
    side = vqvae.config.grid_size
    maker = TaskMaker[Scene](
        PerceptionVocabulary(vqvae.config.codebook_size, (side, side), config.num_locations), vqvae
    )
    found: dict[str, list[Record]] = {CAPTIONS: [], CHAINS: [], DIRECT: []}
    seeds = range(config.first_seed, config.first_seed + config.count)
    for start in track(range(0, config.count, _RENDER), "rendering"):
        batch = render_scenes(list(seeds[start : start + _RENDER]), config.style, config.image_size)
        with torch.no_grad():
            codes = vqvae.to_sequence(vqvae.encode(batch.depth)).numpy()  # (b, h * w)
        for n, seed in enumerate(batch.seeds):
            scene = Scene.from_batch(batch, n)
            path = out / "images" / f"{seed:08d}.png"
            Image.fromarray(scene.image.numpy()).save(path)
            for example, marks in scene_examples(maker, scene, codes[n], np.random.default_rng((7, seed))):
                record = Record(ImageFile(path), example, f"scene {seed}", marks, vqvae.fingerprint())
                if example.task == chains.DIRECT_OTHER:
                    found[CAPTIONS].append(record)
                else:
                    found[CHAINS].append(record)
                    found[DIRECT] += [record] if example.task in chains.DIRECT else []
    for name, records in found.items():
        RecordSet(tuple(records)).write(out / name)
    return {name: len(records) for name, records in found.items()}


def scene_examples(
    maker: TaskMaker[Scene], scene: Scene, codes: np.ndarray, rng: np.random.Generator
) -> Iterator[tuple[Example, tuple[tuple[float, float], ...]]]:
    """Yield the examples of a scene, each with the points (x, y) that are marked in its image.

    Args:
        codes: codes (h * w,) of the scene's depth map.
    """
    for question, answer in conversation(scene, rng).turns:
        if not any(word in question for word in ("marked", "Where is ", " on?")):  # these images have no marks
            yield chains.direct(chains.DIRECT_OTHER, question, answer.removesuffix(".")), ()
    for task in (chains.ATOMIC_BOXES, chains.CHAIN_COUNT, chains.DIRECT_COUNT):
        made = maker.make(task, scene, codes, rng)
        assert made is not None, "any scene has boxes to draw"
        yield made[1], ()
    depth = Span("depth", tuple(int(code) for code in codes))
    yield chains.atomic_depth(depth), ()
    asked = depth_question(scene, rng)
    if asked is None:
        return
    points = asked.points_xy
    marks = tuple((float(x), float(y)) for x, y in points)
    tokenizer = PointTokenizer(maker.vocabulary.num_locations)
    yield chains.atomic_points(Span("points", tuple(tokenizer.encode(points)))), marks
    yield chains.direct(chains.DIRECT_DEPTH, asked.text, asked.answer), marks
    readings = maker.readings(codes, points)
    if POINT_LETTERS[int(readings.argmax())] == asked.answer:  # else the chain would contradict its own map
        places = [Span("points", tuple(tokenizer.encode(point[None]))) for point in points]
        yield chains.chain_depth(asked.text, places, depth, readings.tolist(), asked.answer), marks


def main(argv: list[str] | None = None) -> None:
    config = parse_config(SceneRecordsConfig, argv)
    counts = write_scene_records(config)
    print("\n".join(f"{Path(config.out) / name}: {count} records" for name, count in counts.items()))


if __name__ == "__main__":
    main()
