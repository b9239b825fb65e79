"""A small base of transformers with records to fine-tune it on, and settings to do so in a second."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_families import save_family

from perception import chains
from perception.datasets.images import ImageFile
from perception.datasets.records import Record, RecordSet
from perception.vocabulary.names import Span
from train.data.curriculum import CurriculumConfig
from train.data.records import SourcesConfig
from train.finetune import FinetuneConfig
from train.loop.config import LoopConfig
from vqvae import VQVAE, VQVAEConfig

ALL_KINDS = CurriculumConfig(schedule="constant", atomic_end=0.4, chain_share=0.5)
STEPS = 4


def picture(path: Path, number: int) -> None:
    size = ((40, 72), (64, 33), (32, 32))[number % 3]
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def write_questions(folder: Path, first: int = 0) -> Path:
    """A CSV of one's own, with and without boxes; its pictures differ by `first`."""
    rows = []
    for number in range(8):
        picture(folder / f"{number}.png", first + number)
        boxes = [[n, 2 * n, n + 9, 2 * n + 11] for n in range(number % 3)]
        rows.append([f"{number}.png", "How many cups are there?", str(len(boxes)), json.dumps(boxes), "cups"])
        rows.append([f"{number}.png", "What colour is the lamp?", "green", "", ""])
    with (folder / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "question", "answer", "boxes", "things"], *rows])
    return folder / "questions.csv"


def write_records(folder: Path) -> Path:
    """Records with depth maps, as readers write them."""
    depth = Span("depth", (0, 7, 3, 1))
    points = [Span("points", (1, 2)), Span("points", (5, 6))]
    chain = chains.chain_depth("Which point is closest to the camera, A or B?", points, depth, [80, 3], "A")
    records = []
    for number in range(4):
        file = ImageFile(folder / f"{number}.png")
        records.append(Record(file, chains.atomic_depth(depth), f"map {number}"))
        records.append(Record(file, chain, f"map {number}", ((0.1, 0.2), (0.5, 0.6))))
    RecordSet(tuple(records)).write(folder / "records.jsonl")
    return folder / "records.jsonl"


def make_records_world(folder: Path) -> Path:
    """A LLaVA, a depth tokenizer of 2 x 2 codes, questions and records with their pictures, saved to a folder."""
    save_family("llava", folder / "llava")
    torch.manual_seed(0)
    depth = VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)
    VQVAE(depth).save_pretrained(folder / "depth")
    write_questions(folder)
    write_records(folder)
    return folder


def config_for(world: Path, out: Path, **changes: object) -> FinetuneConfig:
    data = SourcesConfig(own=(str(world / "questions.csv"),), records=(str(world / "records.jsonl"),))
    settings = {
        "base": str(world / "llava"), "depth_tokenizer": str(world / "depth"), "num_locations": 10, "data": data,
        "out": str(out / "model"), "run_dir": str(out / "run"), "curriculum": ALL_KINDS, "batch_size": 8,
    }  # fmt: skip
    loop = {
        "steps": STEPS, "learning_rate": 3e-3, "weight_decay": 0.0, "min_lr_ratio": 0.0, "precision": "fp32",
        "checkpoint_every_seconds": 0.0, "log_every": 1, "num_workers": 0, "find_unused_parameters": True,
    }  # fmt: skip
    known = {name: changes.pop(name) for name in list(changes) if name in LoopConfig.__dataclass_fields__}
    return FinetuneConfig(**(settings | {"loop": LoopConfig(**(loop | known))} | changes))  # type: ignore[arg-type]


def same_weights(a: Path, b: Path) -> bool:
    mine, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
