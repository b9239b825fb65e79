"""Labels images and tokenises the labels (`python -m train.prepare --images FOLDER --out FOLDER`).

Pretrained models, the teachers, label images that have no labels (`perception.datasets.labelling.teachers`): with a
depth map, which is tokenised here once, and with boxes of named classes. The result is parquet in shards. A stopped run
continues with the same command, also after images were added, replaced or taken away. An image that cannot be labelled
is skipped and listed in skipped.jsonl.
`python -m train.finetune --data.prepared OUT` trains on the result. With `--engine ray` shards are spread over a Ray
cluster; all its machines must see both folders.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from perception.datasets.depth.jobs import check_encodes_depth
from perception.datasets.labelling.jobs import Engine, PreparedReport, in_process, prepare_folder
from perception.datasets.labelling.labeller import LabelledImage, Labeller, read_rows
from perception.datasets.labelling.teachers import NONE, TeachersConfig, box_teacher, depth_teacher
from perception.model.devices import find_device
from perception.model.folder import find_folder
from perception.model.shipped import shipped
from train.loop.command_line import flatten, parse_config
from train.views.labels import labelled_sheet
from vqvae import VQVAE
from vqvae.files import DiskFull

_FREE = ("device",)
"""Settings of teachers that do not change what is written"""


@dataclass(frozen=True)
class PrepareConfig:
    """Labels images with pretrained models, for train.finetune."""

    images: str
    """folder of images; subfolders are included"""
    out: str
    """folder for the shards"""
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    """models that label"""
    depth_tokenizer: str = ""
    """folder of the depth tokenizer; empty: the shipped one"""
    shard_size: int = 256
    """images per shard; a stopped run redoes its unfinished shard"""
    batch_size: int = 8
    """images per forward pass of a teacher"""
    embed_images: bool = False
    """store the images inside the shards, so that the shards can be moved without the image folder"""
    engine: Literal["local", "ray"] = "local"
    """local: one process. ray: Ray Data, on this machine or on the cluster at RAY_ADDRESS"""
    workers: int = 2
    """processes with a teacher each; only with engine ray"""
    draw: int = 8
    """labelled images to draw on labels.png, a contact sheet in the output folder; 0: no sheet"""
    glob: str = ""
    """label only images that match, such as "*_left.png" or "day/**/*.jpg"; empty: all"""

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def tokenizer_folder(self) -> Path:
        return find_folder(self.depth_tokenizer) if self.depth_tokenizer else shipped("depth-scenes-100")


def labeller(config: PrepareConfig) -> Labeller:
    """A labeller with its teachers and tokenizer loaded.

    Raises:
        ValueError: if the device is not there, or as `depth_teacher` and `box_teacher` do.
    """
    images, teachers = Path(config.images).resolve(), config.teachers
    find_device(teachers.device)
    depth = depth_teacher(teachers, images)
    vqvae = None
    if depth is not None:
        vqvae = VQVAE.from_pretrained(config.tokenizer_folder).eval().to(teachers.device)
    return Labeller(images, depth, vqvae, box_teacher(teachers), config.batch_size, config.embed_images)


def engine_of(config: PrepareConfig) -> Engine:
    """The function that runs the shards. Raises ValueError if Ray is asked for and not installed."""
    if config.engine == "local":
        return in_process
    from train.data.ray_engine import ray_engine

    return functools.partial(ray_engine, workers=config.workers)


def prepare(config: PrepareConfig) -> PreparedReport:
    """Labels the folder, or continues to.

    Raises:
        ValueError: for a tokenizer of masks, or as `prepare_folder` and `labeller` do.
    """
    plan = {name: v for name, v in flatten(config.teachers).items() if name not in _FREE}
    plan |= {"batch_size": config.batch_size, "embed_images": config.embed_images}
    if config.teachers.depth != NONE:
        vqvae = VQVAE.from_pretrained(config.tokenizer_folder)
        check_encodes_depth(vqvae)
        plan["tokenizer"] = vqvae.fingerprint()
    make = functools.partial(labeller, config)
    images, out = Path(config.images).resolve(), Path(config.out).resolve()
    return prepare_folder(images, out, make, plan, config.shard_size, engine_of(config), config.glob)


def draw_labels(config: PrepareConfig) -> Path | None:
    """Draws the first labelled images to labels.png. None if there are none, or none are wanted."""
    out = Path(config.out)
    rows: list[LabelledImage] = []
    for record in sorted(out.glob("shard-*.record.json")):
        if len(rows) < config.draw:
            rows += read_rows(out / f"{record.name.removesuffix('.record.json')}.parquet")[0]
    if not rows or not config.draw:
        return None
    vqvae = None if config.teachers.depth == NONE else VQVAE.from_pretrained(config.tokenizer_folder).eval()
    sheet = labelled_sheet(rows[: config.draw], Path(config.images), vqvae)
    sheet.save(out / "labels.png")
    return out / "labels.png"


def main(argv: list[str] | None = None) -> int:
    config = parse_config(PrepareConfig, argv)
    try:
        report = prepare(config)
    except (ValueError, DiskFull) as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare: stopped; finished shards are kept, and the same command goes on from there", file=sys.stderr)
        return 130
    print(f"{report}\nwritten: {config.out}")
    if picture := draw_labels(config):
        print(f"look at {picture}")
    if report.skipped:
        print(
            f"prepare: {report.skipped} images were skipped; reasons are in {config.out}/skipped.jsonl", file=sys.stderr
        )
    return 0 if report.images else 1


if __name__ == "__main__":
    sys.exit(main())
