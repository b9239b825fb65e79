"""Teaches a small Swin tower to read figures (`python -m train.figure_tower`), before any language model looks at it.

Every cell of its grid says, character by character, what is written there, or the word for a small drawing such as the
square of a right angle. Numbers as whole words are hundreds of
classes, each seen seldom; as characters they are ten, each seen in every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from perception.geometry.figure import Mark
from train.data.augmentation import normalise_pixels, to_pixels
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import ChainProblem
from train.loop.command_line import fingerprint, parse_config
from train.loop.fit import FitResult, LoopConfig, fit

CHARACTERS = " 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.°="
"""A space is none"""
MOST_CHARACTERS = 4
"""Of a mark that are read"""


@dataclass(frozen=True)
class GeometrySize:
    """Sizes of the tiny model of figures."""

    image_size: int = 128
    grid_size: int = 8
    """Visual tokens a side"""
    embed_dim: int = 32
    """Of the tower's first level; every level has twice the width of the one before"""
    depths: tuple[int, ...] = (2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 4)
    window_size: int = 8
    hidden_size: int = 160
    num_layers: int = 4
    text_heads: int = 5
    intermediate_size: int = 400

    def __post_init__(self) -> None:
        if self.image_size % (self.grid_size << (len(self.depths) - 1)):
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of grid_size ({self.grid_size}) times 2 to the "
                f"power of the levels less one ({len(self.depths) - 1})"
            )

    @property
    def grid(self) -> tuple[int, int]:
        return self.grid_size, self.grid_size

    @property
    def vision(self) -> SwinConfig:
        patch_size = self.image_size // (self.grid_size << (len(self.depths) - 1))
        return SwinConfig(
            image_size=self.image_size,
            patch_size=patch_size,
            embed_dim=self.embed_dim,
            depths=list(self.depths),
            num_heads=list(self.num_heads),
            window_size=self.window_size,
            use_absolute_embeddings=True,
            drop_path_rate=0.0,
            initializer_range=0.1,  # 0.02 is made for widths near 1,000; at 32 every layer is next to nothing
        )


@dataclass(frozen=True)
class FigureTowerConfig:
    """Configuration of the tower's training."""

    start: str = ""
    """folder of a tower to go on from; empty for one from nothing"""
    run_dir: str = "runs/geometry/tower"
    data: GeometryData = field(default_factory=GeometryData)
    size: GeometrySize = field(default_factory=GeometrySize)
    batch_size: int = 32
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=3000,
            learning_rate=2e-3,
            weight_decay=0.05,
            warmup_steps=60,
            min_lr_ratio=0.03,
            precision="bf16",
            find_unused_parameters=True,  # the final norm is left out, as LLaVA does
        )
    )

    def __post_init__(self) -> None:
        check_sizes(self.data, self.size)


def check_sizes(data: GeometryData, size: GeometrySize) -> None:
    """Raises ValueError where problems are laid out for another model's visual tokens."""
    if data.grid_size != size.grid_size or data.image_size != size.image_size:
        raise ValueError(
            f"data has images of {data.image_size} pixels on a grid of {data.grid_size} and size {size.image_size} on "
            f"{size.grid_size}; set --data.image_size and --data.grid_size to those of --size"
        )


class FigureReader(nn.Module):
    """The tower with a linear head: MOST_CHARACTERS distributions over CHARACTERS a cell."""

    def __init__(self, config: SwinConfig):
        super().__init__()
        self.tower = SwinModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, MOST_CHARACTERS * len(CHARACTERS))

    def forward(self, pixel_values: Tensor) -> Tensor:
        # The language model reads hidden_states[-1] (before the final norm), so the head does too.
        tokens = self.tower(pixel_values, output_hidden_states=True).hidden_states[-1]  # (B, N, D)
        logits: Tensor = self.head(tokens).float()
        return logits.unflatten(-1, (MOST_CHARACTERS, len(CHARACTERS)))  # (B, N, 4, C)


def cell_of(mark: Mark, grid: tuple[int, int]) -> int:
    """The cell of a grid (rows, columns), row-major, that holds a mark's centre."""
    rows, columns = grid
    return min(rows - 1, int(mark.place_xy[1] * rows)) * columns + min(columns - 1, int(mark.place_xy[0] * columns))


def characters_at(marks: Sequence[Mark], grid: tuple[int, int]) -> np.ndarray:
    """What is written in each cell, (N, MOST_CHARACTERS) numbers of CHARACTERS; of several marks the last."""
    written = np.zeros((grid[0] * grid[1], MOST_CHARACTERS), dtype=np.int64)
    for mark in marks:
        codes = [max(0, CHARACTERS.find(c)) for c in mark.text[:MOST_CHARACTERS].ljust(MOST_CHARACTERS)]
        written[cell_of(mark, grid)] = codes
    return written


@dataclass(frozen=True)
class FigureBatches:
    """Batch `step`: a pure function of step, shard and seed. Figures are shifted and some are dimmed."""

    problems: Sequence[ChainProblem]
    grid: tuple[int, int]
    batch_size: int
    seed: int

    def __call__(self, step: int, shard: int, num_shards: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, shard))
        images, written = [], []
        for index in rng.integers(len(self.problems), size=self.batch_size):
            problem = self.problems[int(index)]
            # Signs first: where one shares a cell with a number, the number is read.
            image, marks = shifted(problem.image, (*problem.signs, *problem.marks), rng)
            images.append(image)
            written.append(characters_at(marks, self.grid))
        pixels = normalise_pixels(to_pixels(torch.stack(images)))
        return {"pixel_values": pixels, "written": torch.from_numpy(np.stack(written))}


def shifted(image: Tensor, marks: Sequence[Mark], rng: np.random.Generator) -> tuple[Tensor, list[Mark]]:
    """A figure (H, W, 3) moved by up to a tenth of its side, as far as its marks allow; what comes in is white."""
    height, width = image.shape[:2]
    places = np.array([mark.place_xy for mark in marks] or [(0.5, 0.5)])
    room = np.minimum(0.1, np.maximum(0, np.minimum(places.min(0), 1 - places.max(0)) - 0.04))
    dx, dy = (int(rng.uniform(-r, r) * side) for r, side in zip(room, (width, height), strict=True))
    moved = torch.full_like(image, 255)
    moved[max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = image[
        max(0, -dy) : height + min(0, -dy), max(0, -dx) : width + min(0, -dx)
    ]
    moves = [Mark(m.text, (m.place_xy[0] + dx / width, m.place_xy[1] + dy / height)) for m in marks]
    return moved, moves


def reading_loss(model: nn.Module, batch: Mapping[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy a character, of written cells and of empty ones in equal parts; share of marks read right."""
    logits, written = model(batch["pixel_values"]), batch["written"]  # (B, N, 4, C), (B, N, 4)
    losses = F.cross_entropy(logits.movedim(-1, 1), written, reduction="none").mean(-1)  # (B, N)
    there = written.sum(-1) > 0
    loss = losses[there].mean() + losses[~there].mean()
    right = (logits.argmax(-1) == written).all(-1)[there].float().mean()
    return loss, {"written": losses[there].mean().detach(), "read_right": right}


def train(config: FigureTowerConfig, problems: Sequence[ChainProblem] | None = None) -> FitResult:
    """Runs or resumes the training; the tower lies in `run_dir`/tower."""
    torch.manual_seed(config.loop.seed)
    problems = read_problems(config.data) if problems is None else problems
    model = FigureReader(config.size.vision)
    if config.start:
        start = SwinModel.from_pretrained(config.start, add_pooling_layer=False)
        model.tower.load_state_dict(start.state_dict())
    batches = FigureBatches(problems, config.size.grid, config.batch_size, config.loop.seed)
    result = fit(
        model,
        batches,
        reading_loss,
        config.loop,
        config.run_dir,
        title="tower",
        fingerprint=fingerprint(config, free=("run_dir", "data.store")),
    )
    if result.is_main:
        model.cpu().tower.save_pretrained(Path(config.run_dir) / "tower")
    return result


def main(argv: list[str] | None = None) -> None:
    config: Any = parse_config(FigureTowerConfig, argv)
    print(f"done: {train(config)}")


if __name__ == "__main__":
    main()
