"""The stage `photos` of `benchmarks.on_gpu`: photo-tiny trained anew, on photographs that were carried to the machine.

`pack_photos` makes the files to carry. The pieces are those of docs/photos.md: views of the photographs as a frozen
backbone sees them, a neck and a projector (`train.photo_tower`), a base that draws and has seen no answer
(`photo-base`), and chains and answers (`photo-tiny`).
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.gpu_training import Place, figures, speed, speed_of, steps_in, train_home, workers

if TYPE_CHECKING:
    from perception.model.cell_tower import CellTower, CellTowerConfig
    from train.aurora import AuroraConfig
    from train.photo_tower import PhotoTowerConfig

PHOTO_SECONDS = 740.0
"""For the steps of the neck and of both language models together"""
_OF_NECK, _OF_BASE, _OF_TINY = 0.3, 0.33, 0.37
BASE = (
    "--curriculum.schedule constant --curriculum.atomic_end 1 --curriculum.depth_share 0.8 "
    "--curriculum.readings_share 0.15 --curriculum.points_share 0.55 --curriculum.maps_from_image "
    "--curriculum.box_turns 2 --loop.learning_rate 0.001 --loop.schedule wsd --loop.decay_share 0.35"
)
"""docs/photos.md's model that draws and has seen no answer"""
TINY = (
    "--curriculum.schedule constant --curriculum.atomic_end 0.4 --curriculum.chain_share 0.95 "
    "--curriculum.depth_share 0.6 --curriculum.points_share 0.5 --curriculum.readings_share 0.2 "
    "--curriculum.box_turns 2 --curriculum.maps_from_image --loop.learning_rate 0.0008 --loop.schedule wsd "
    "--loop.decay_share 0.4 --loop.seed 10"
)
"""The mixture of `models/photo-tiny`"""
_SIDE, _QUALITY = 320, 80  # of carried photographs: longest side in pixels, and JPEG's quality
_ENTRY, _END = 2048, 20_480  # bytes of a .tar beside its files' own, at most: for each, and at the end


# Carrying


def pack_photos(source: Path, out: Path, most: int, side: int = _SIDE) -> list[Path]:
    """Write a folder of labelled photographs as .tar files, which unpack into one folder of the same layout.

    Args:
        source: folder as docs/data.md shows it.
        most: bytes of a file.
        side: longest side of a photograph or map in pixels; larger ones are shrunk, and their boxes with them.

    Raises:
        ValueError: where the labels are missing, or a file alone has more than `most` bytes.
        OSError: where an image is missing.
    """
    for name in ("boxes.jsonl", "split.csv"):
        if not (source / name).is_file():
            raise ValueError(f"{source} has no {name}; docs/data.md shows the layout of labelled photographs")
    out.mkdir(parents=True, exist_ok=True)
    made = []
    for number, group in enumerate(_grouped(_carried(source, side), most)):
        made.append(out / f"photos-{number:02d}.tar")
        with tarfile.open(made[-1], "w") as tar:
            for name, content in group:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return made


def _grouped(files: Iterator[tuple[str, bytes]], most: int) -> Iterator[list[tuple[str, bytes]]]:
    """Yield files in groups that fit into a .tar of `most` bytes each."""
    group, size = list[tuple[str, bytes]](), _END
    for name, content in files:
        taken = len(content) + _ENTRY
        if taken + _END > most:
            raise ValueError(f"{name} has {len(content)} bytes, more than fit into a file of {most}; raise --part-mb")
        if size + taken > most:
            yield group
            group, size = [], _END
        group.append((name, content))
        size += taken
    yield group


def _carried(source: Path, side: int) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files to carry."""
    lines = []
    for text in (source / "boxes.jsonl").read_text(encoding="utf-8").split("\n"):
        if not text.strip():
            continue
        label = json.loads(text)
        content, (width, height) = _shrunk(source / "images" / label["image"], side, "JPEG")
        across, down = width / label["width"], height / label["height"]
        scales = (across, down, across, down)
        boxes = [
            [*(round(value * scale, 2) for value, scale in zip(corners, scales, strict=True)), name, score]
            for *corners, name, score in label["boxes"]
        ]
        lines.append(json.dumps(label | {"width": width, "height": height, "boxes": boxes}))
        depth = Path(label["image"]).with_suffix(".png").name
        yield f"images/{label['image']}", content
        yield f"depth/{depth}", _shrunk(source / "depth" / depth, side, "PNG")[0]
    yield "boxes.jsonl", "".join(line + "\n" for line in lines).encode()
    with (source / "split.csv").open(newline="", encoding="utf-8") as file:
        rows = [(row["image"], row["split"]) for row in csv.DictReader(file)]
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([("image", "split"), *rows])
    yield "split.csv", written.getvalue().encode()


def _shrunk(path: Path, side: int, kind: str) -> tuple[bytes, tuple[int, int]]:
    """Return an image's file with no side longer than `side` pixels, and its size; a small one as it is."""
    with Image.open(path) as image:
        if max(image.size) <= side:
            return path.read_bytes(), image.size
        share = side / max(image.size)
        width, height = (max(1, round(share * value)) for value in image.size)
        smaller = image.convert("RGB" if kind == "JPEG" else "L").resize((width, height), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    smaller.save(made, kind, quality=_QUALITY)
    return made.getvalue(), (width, height)


def draw_photos(folder: Path, count: int) -> Path:
    """Write rendered scenes in the layout of labelled photographs, for a rehearsal; every third is for tests."""
    from perception.scenes.render import render_scenes

    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    scenes, lines, splits = render_scenes(range(count), "standard", 96), [], ["image,split\n"]
    for number in range(count):
        near = 1 / scenes.depth[number].numpy()  # (96, 96)
        grey = 255 * (near - near.min()) / np.ptp(near)
        name = f"{number:05d}.jpg"
        Image.fromarray(scenes.images[number].numpy()).save(folder / "images" / name, quality=95)
        Image.fromarray(grey.round().astype(np.uint8)).save(folder / "depth" / f"{number:05d}.png")
        boxes = [[*(96 * value for value in item.box_xyxy), item.shape, 0.9] for item in scenes.objects[number]]
        lines.append(json.dumps({"image": name, "width": 96, "height": 96, "boxes": boxes}) + "\n")
        splits.append(f"{name},{'test' if number % 3 == 2 else 'train'}\n")
    (folder / "boxes.jsonl").write_text("".join(lines))
    (folder / "split.csv").write_text("".join(splits))
    return folder


# Parts of the stage


def photographs(place: Place) -> Path:
    """The folder of the photographs. Raises ValueError where none were carried."""
    if place.small:
        made = place.folder / "drawn"
        return made if (made / "split.csv").exists() else draw_photos(made, 6)
    if not place.photos.exists():
        raise ValueError(f"no photographs in {place.photos}; docs/gpu.md says how to carry them")
    return place.photos


def tower_config(place: Place, steps: int = 1) -> PhotoTowerConfig:
    """Settings of the neck and the projector: those of models/photo-tiny's card."""
    from train.photo_tower import PhotoTowerConfig

    usual = PhotoTowerConfig(run_dir=str(place.folder / "tower"), photos=str(photographs(place)), batch_size=32)
    loop = replace(usual.loop, steps=steps, warmup_steps=0.03, schedule="wsd", decay_share=0.25, num_workers=workers())
    config = replace(usual, loop=loop)
    if not place.small:
        return config
    return replace(config, batch_size=2, scenes=64, projector_steps=5, loop=replace(loop, num_workers=1))


def _small_tower(config: CellTowerConfig) -> CellTower:
    """A tower with a narrow neck and a small, untrained backbone, for a rehearsal."""
    from perception.model.cell_tower import CellTower, CellTowerConfig

    return CellTower(CellTowerConfig("test_efficientnet", config.image_size, (16, 16, 32)))


def make_views(place: Place, found: Mapping[str, Any]) -> dict[str, int]:
    """Pass the views through the backbone, drawn by all cores."""
    from train.photo_tower import prepare

    _, views = prepare(tower_config(place), _small_tower if place.small else None)
    return {"photographs": len(views.photos), "views": len(views)}


def time_neck(place: Place, found: Mapping[str, Any]) -> dict[str, float]:
    from train.photo_tower import prepare, train_neck

    config = tower_config(place)
    neck, views = prepare(config, _small_tower if place.small else None)

    def run(folder: Path, steps: int) -> None:
        loop = replace(config.loop, steps=steps, log_every=1, checkpoint_every_seconds=1e9)
        train_neck(replace(config, run_dir=str(folder), loop=loop), neck, views)

    return speed(run, config.batch_size, place.small)


def train_tower(place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Train or resume the neck, then fit the projector; the model stays, as the next ones hold its tower."""
    from train.photo_tower import train

    steps = 2 if place.small else steps_in(_OF_NECK * PHOTO_SECONDS, found["speed of the neck"]["steps_per_second"])
    config = tower_config(place, steps)
    fitted = train(config, _small_tower if place.small else None)
    return {"batch_size": config.batch_size, **figures(fitted)}


def words_config(place: Place, name: str, words: str, base: Path, steps: int) -> AuroraConfig:
    """Settings of a training of the language model, from stored views."""
    from train.aurora import AuroraConfig
    from train.loop.command_line import parse_config

    folder, views, few = place.folder / name, place.folder / "tower" / "views", place.small
    given = {
        "base": base,
        "out": folder / "model",
        "run_dir": folder,
        "tower_lr_ratio": 0,
        "batch_size": 2 if few else 64,
        "data.scenes.count": 0,
        "data.photos.folder": photographs(place),
        "data.photos.views": views,
        "loop.steps": steps,
        "loop.warmup_steps": 0.03,
        "loop.num_workers": 1 if few else workers(),
        "loop.log_every": 1 if few else 10,
    }
    argv = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    return parse_config(AuroraConfig, [*argv, *words.split()])


def time_words(place: Place, found: Mapping[str, Any]) -> dict[str, float]:
    base = place.folder / "tower" / "model"
    return speed_of(words_config(place, "none", BASE, base, 1), place.small)


def train_words(name: str, place: Place, found: Mapping[str, Any]) -> dict[str, Any]:
    """Train or resume a language model and bring it home without its backbone."""
    words, share, base = {"photo-base": (BASE, _OF_BASE, "tower"), "photo-tiny": (TINY, _OF_TINY, "photo-base")}[name]
    steps = 2 if place.small else steps_in(share * PHOTO_SECONDS, found["speed"]["steps_per_second"])
    config = words_config(place, name, words, place.folder / base / "model", steps)
    return train_home(config, place.home / f"{name}.tar", backbone=place.small)
