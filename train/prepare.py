"""Labels images and tokenises the labels (`python -m train.prepare --images FOLDER --out FOLDER`).

Teachers say what is in images that have no labels (`perception.datasets.labelling.teachers`): a depth map, whose codes
are made
here once and for all, and boxes of named classes. Written to parquet in shards; a run that was stopped or killed goes
on with the same command, a bad image is named in skipped.jsonl and left out. `python -m train.finetune --data.prepared
OUT` trains on what it made. With `--engine ray` the shards are spread over a Ray cluster, whose machines all see both
folders.
"""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

from perception.datasets.labelling.jobs import Engine, PreparedReport, in_process, prepare_folder
from perception.datasets.labelling.labeller import LabelledImage, Labeller, read_rows
from perception.datasets.labelling.teachers import NONE, TeachersConfig, box_teacher, depth_teacher
from perception.model.folder import find_folder
from perception.model.shipped import shipped
from train.loop.command_line import flatten, parse_config
from train.views.labels import labelled_sheet
from vqvae import VQVAE

ENGINES = ("local", "ray")
_FREE = ("device",)
"""Settings of teachers that do not decide what is written"""


@dataclass(frozen=True)
class PrepareConfig:
    """Configuration of a labelling."""

    images: str
    """folder of images, and folders in it"""
    out: str
    """folder of the shards"""
    teachers: TeachersConfig = field(default_factory=TeachersConfig)
    depth_tokenizer: str = ""
    """folder of the VQVAE that makes the codes; empty: the one that ships"""
    shard_size: int = 256
    """images of a shard; what a stopped run had of an unfinished one is made anew"""
    batch_size: int = 8
    """images that a teacher sees at once"""
    embed_images: bool = False
    """put the images' bytes into the shards, so that these can be moved without them"""
    engine: str = "local"
    """local: one process. ray: Ray Data, on this machine or the cluster of RAY_ADDRESS"""
    workers: int = 2
    """of ray: processes that hold a teacher each"""
    draw: int = 8
    """labelled images on labels.png, a sheet beside the shards; 0 for none"""

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"unknown engine {self.engine!r}; known: {', '.join(ENGINES)}")
        for name in ("batch_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def tokenizer_folder(self) -> Path:
        return find_folder(self.depth_tokenizer) if self.depth_tokenizer else shipped("depth-scenes-100")


def labeller(config: PrepareConfig) -> Labeller:
    """Its teachers and tokenizer, loaded. Raises ValueError as `depth_teacher` and `box_teacher`."""
    images, teachers = Path(config.images).resolve(), config.teachers
    depth = depth_teacher(teachers, images)
    vqvae = None
    if depth is not None:
        vqvae = VQVAE.from_pretrained(config.tokenizer_folder).eval().to(teachers.device)
    return Labeller(images, depth, vqvae, box_teacher(teachers), config.batch_size, config.embed_images)


def engine_of(config: PrepareConfig) -> Engine:
    """What runs the shards. Raises ValueError where Ray is asked for and missing."""
    if config.engine == "local":
        return in_process
    from train.data.ray_engine import ray_engine

    return functools.partial(ray_engine, workers=config.workers)


def prepare(config: PrepareConfig) -> PreparedReport:
    """Labels the folder, or goes on with it. Raises ValueError as `prepare_folder` and `labeller`."""
    plan = {name: v for name, v in flatten(config.teachers).items() if name not in _FREE}
    plan |= {"batch_size": config.batch_size, "embed_images": config.embed_images}
    if config.teachers.depth != NONE:
        plan["tokenizer"] = VQVAE.from_pretrained(config.tokenizer_folder).fingerprint()
    make = functools.partial(labeller, config)
    return prepare_folder(
        Path(config.images).resolve(), Path(config.out).resolve(), make, plan, config.shard_size, engine_of(config)
    )


def draw_labels(config: PrepareConfig) -> Path | None:
    """Draws the first labelled images to labels.png. None where there are none, or none are wanted."""
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
    except ValueError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 1
    print(f"{report}\nwritten: {config.out}")
    if picture := draw_labels(config):
        print(f"look at {picture}")
    if report.skipped:
        print(f"prepare: {report.skipped} images were skipped; {config.out}/skipped.jsonl says why", file=sys.stderr)
    return 0 if report.images else 1


if __name__ == "__main__":
    sys.exit(main())
