"""Trains a small Swin tower to read figures (`python -m train.figure_tower`), before a language model is attached.

Each cell of the tower's grid predicts, character by character, what is written there, or the word for a small drawing
such as the square of a right angle. Predicted as whole words, numbers would be hundreds of rare classes; as characters
they are ten classes that occur in every figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from perception.geometry.figure import Mark
from train.data.augmentation import normalise_pixels, to_pixels
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import ChainProblem
from train.loop.command_line import fingerprint, flatten, parse_config
from train.loop.fit import FitResult, LoopConfig, fit

CHARACTERS = " 0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.°="
"""Classes of a character; the space stands for no character"""
MOST_CHARACTERS = 4
"""Characters read per mark"""


@dataclass(frozen=True)
class GeometrySize:
    """Sizes of the tiny geometry model. The defaults are the shipped model's; tests make it smaller."""

    image_size: int = 128
    """Side of an image, in pixels"""
    grid_size: int = 8
    """Visual tokens per side of an image"""
    embed_dim: int = 32
    """Width of the tower's first level; each level is twice as wide as the one before"""
    depths: tuple[int, ...] = (2, 2, 2)
    """Layers per level of the tower"""
    num_heads: tuple[int, ...] = (1, 2, 4)
    """Attention heads per level of the tower"""
    window_size: int = 8
    hidden_size: int = 160
    """Width of the language model"""
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

    def data(self, count: int, store: str) -> GeometryData:
        """The training problems, drawn for a model of this size."""
        return GeometryData(count=count, image_size=self.image_size, grid_size=self.grid_size, store=store)

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


SIZE = GeometrySize()


@dataclass(frozen=True)
class FigureTowerConfig:
    """Trains the vision tower of the tiny geometry model; it ends in RUN_DIR/tower."""

    start: str = ""
    """folder of a tower to continue from; empty: random weights"""
    run_dir: str = "runs/geometry/tower"
    """folder for checkpoints, logs and the finished tower"""
    num_problems: int = 24_000
    """number of problems whose figures are read"""
    store: str = "runs/geometry/problems"
    """folder that keeps the drawn problems"""
    batch_size: int = 32
    """figures per step and device"""
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


class FigureReader(nn.Module):
    """The tower with a linear head: MOST_CHARACTERS distributions over CHARACTERS per cell."""

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
    """Indices into CHARACTERS of what is written in each cell, (N, MOST_CHARACTERS); the last mark of a cell wins."""
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
    """The figure (H, W, 3) and its marks, shifted by up to a tenth of its side, so far that all marks stay inside; the
    uncovered border is white."""
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
    """Cross-entropy per character, written and empty cells weighted equally; logs the share of marks read right."""
    logits, written = model(batch["pixel_values"]), batch["written"]  # (B, N, 4, C), (B, N, 4)
    losses = F.cross_entropy(logits.movedim(-1, 1), written, reduction="none").mean(-1)  # (B, N)
    there = written.sum(-1) > 0
    loss = losses[there].mean() + losses[~there].mean()
    right = (logits.argmax(-1) == written).all(-1)[there].float().mean()
    return loss, {"written": losses[there].mean().detach(), "read_right": right}


def train(
    config: FigureTowerConfig, problems: Sequence[ChainProblem] | None = None, size: GeometrySize = SIZE
) -> FitResult:
    """Runs or resumes the training and writes the tower to `run_dir`/tower.

    Args:
        problems: used instead of drawn ones.
    """
    torch.manual_seed(config.loop.seed)
    problems = read_problems(size.data(config.num_problems, config.store)) if problems is None else problems
    model = FigureReader(size.vision)
    if config.start:
        start = SwinModel.from_pretrained(config.start, add_pooling_layer=False)
        model.tower.load_state_dict(start.state_dict())
    batches = FigureBatches(problems, size.grid, config.batch_size, config.loop.seed)
    result = fit(
        model,
        batches,
        reading_loss,
        config.loop,
        config.run_dir,
        title="tower",
        fingerprint=fingerprint(config, free=("run_dir", "store")) | flatten(size, "size."),
    )
    if result.is_main:
        model.cpu().tower.save_pretrained(Path(config.run_dir) / "tower")
    return result


def main(argv: list[str] | None = None) -> None:
    print(f"done: {train(parse_config(FigureTowerConfig, argv))}")


if __name__ == "__main__":
    main()
