"""Trains the tiny geometry base, a model that reads figures (`python -m train.geometry_base`).

A stock LLaVA (the Swin tower of `train.figure_tower` and a small Llama with random weights) learns to say what is
written in a figure and where; it sees no solutions. The word in a cell of the visual grid is also supervised at that
cell's visual token: learning it needs no attention, and afterwards an answer only has to attend to the right cell.
Rows of sums teach it to calculate (`train.data.arithmetic`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast, SwinModel

from perception.interleave.chains import InterleavedModel
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import VisualLayout
from train.data.arithmetic import LARGEST, sums_loss
from train.data.geometry import read_problems
from train.data.interleaved import ChainBatches, ChainProblem
from train.figure_tower import SIZE, GeometrySize, cell_of
from train.interleave import LEAST_VOCABULARY, InterleavedFolder, interleaved_groups, read_interleaved
from train.loop.command_line import command_line, fingerprint, flatten, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.models.attention import use_plain_attention
from train.models.parts import vision_tower
from train.models.tiny import TinySize, build_model, build_processor, start_layers, train_text_tokenizer

READ_ALL = "What is written in the figure?"
NEAREST = "What is written nearest to {}?"
_TEXT_VOCABULARY = 1250
_NOTHING = "nothing"
_CELL_WEIGHT = 1.0
"""Weight of the words at visual tokens relative to the answers: both are cross-entropies per token"""


@dataclass(frozen=True)
class GeometryBaseConfig:
    """Trains the tiny geometry base to read figures."""

    tower: str = "runs/geometry/tower/tower"
    """folder of the tower made by train.figure_tower; empty: the tower of start, or a new one that is trained here"""
    start: str = ""
    """folder of a model to continue from; empty: random weights"""
    tower_lr_ratio: float = 0.1
    """learning rate of the vision tower relative to the rest; 0 freezes the tower"""
    out: str = "runs/geometry/base/model"
    """folder of the finished model"""
    run_dir: str = "runs/geometry/base"
    """folder for checkpoints and logs"""
    num_problems: int = 24_000
    """number of problems whose figures are read"""
    store: str = "runs/geometry/problems"
    """folder that keeps the drawn problems"""
    batch_size: int = 16
    """figures per step, over all devices"""
    sums: int = 16
    """rows of sums per step, in addition to the figures"""
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=2500,
            learning_rate=1.5e-3,
            weight_decay=0.02,
            warmup_steps=50,
            min_lr_ratio=0.05,
            precision="bf16",
            find_unused_parameters=True,
        )
    )


# The untrained model


def geometry_tokenizer(problems: Sequence[ChainProblem]) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on solutions; each whole number up to LARGEST is one token."""
    numbers = [" " + " ".join(str(n) for n in range(LARGEST + 1)) + "." for _ in range(400)]
    lines = [" ".join(["Step 1: Step 2: Step 3: Answer: USER: ASSISTANT:", READ_ALL, NEAREST, _NOTHING])] * 200
    for problem in problems:
        lines += [problem.question, *(f"Step {n}: {step.text}" for n, step in enumerate(problem.steps))]
    letters = [" " + " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")] * 200
    return train_text_tokenizer(numbers + letters + lines, _TEXT_VOCABULARY)


def geometry_processor(tokenizer: PreTrainedTokenizerFast, size: GeometrySize) -> LlavaProcessor:
    """A processor that resizes any image to a square and scales pixels to [-1, 1]."""
    processor = build_processor(tokenizer)
    processor.image_processor.size = {"height": size.image_size, "width": size.image_size}
    processor.patch_size = size.image_size // size.grid_size
    return processor


def build_geometry_model(tokenizer: PreTrainedTokenizerFast, size: GeometrySize) -> LlavaForConditionalGeneration:
    """An untrained LLaVA with grid_size x grid_size visual tokens per image."""
    text = TinySize(size.hidden_size, size.num_layers, size.text_heads, size.intermediate_size)
    model = build_model(tokenizer, size.vision, text)
    model.config.image_seq_length = size.grid_size**2
    return model


# What is read


def reading_task(problem: ChainProblem, rng: np.random.Generator, grid: tuple[int, int]) -> ChainProblem:
    """A question about what is written in a figure: everything in reading order, or the mark nearest to another."""
    marks = sorted(problem.marks, key=lambda mark: cell_of(mark, grid))
    names = [mark.text for mark in marks]
    unique = [n for n, name in enumerate(names) if names.count(name) == 1]
    if len(marks) < 2 or not unique or rng.random() < 0.4:
        return replace(problem, question=READ_ALL, answer=" ".join(names) or _NOTHING, steps=())
    chosen = marks[unique[int(rng.integers(len(unique)))]]
    others = [mark for mark in marks if mark is not chosen]
    here = np.array(chosen.place_xy)
    nearest = min(others, key=lambda mark: float(np.hypot(*(np.array(mark.place_xy) - here))))
    return replace(problem, question=NEAREST.format(chosen.text), answer=nearest.text, steps=())


@dataclass(frozen=True)
class ReadingBatches(ChainBatches):
    """Reading tasks; what is written in a cell is the label at the cell's visual token."""

    grid: tuple[int, int] = (8, 8)

    def __call__(self, step: int, shard: int, num_shards: int) -> Mapping[str, Any]:
        share = dict(super().__call__(step, shard, num_shards))
        problems = self.shares(step, shard, num_shards)
        words = torch.full(share["batch"].visual_columns.shape, -100)
        tokenizer = self.encoder.processor.tokenizer
        nothing = tokenizer.encode(f" {_NOTHING}", add_special_tokens=False)[0]
        for row, problem in enumerate(problems):
            rng = np.random.default_rng((self.seed, step, shard, row))
            words[row, torch.from_numpy(rng.permutation(words.shape[1])[: words.shape[1] // 6])] = nothing
            for mark in (*problem.signs, *problem.marks):
                words[row, cell_of(mark, self.grid)] = tokenizer.encode(f" {mark.text}", add_special_tokens=False)[0]
        return share | {"words": words, "nothing": nothing}


def reading_loss(model: InterleavedModel, share: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of the answers, of the words at visual tokens, and of the results of sums."""
    batch, words = share["batch"], share["words"]
    hidden = model.hidden(batch)  # (B, L, H)
    labelled = words != -100
    rows = torch.arange(len(words), device=words.device)[:, None].expand_as(words)
    head = model.model.get_output_embeddings()
    at_cells = head(hidden[rows[labelled], batch.visual_columns[labelled]]).float()  # (n, V)
    cells = torch.nn.functional.cross_entropy(at_cells, words[labelled])
    supervised = batch.labels[:, 1:] != -100
    logits = head(hidden[:, :-1][supervised]).float()
    answers = torch.nn.functional.cross_entropy(logits, batch.labels[:, 1:][supervised], reduction="sum")
    text = answers / share["num_labels"] * share["num_shards"]
    something = words[labelled] != share["nothing"]
    right = ((at_cells.argmax(-1) == words[labelled]) & something).sum() / something.sum().clamp_min(1)
    scalars = {"text": text.detach(), "cells": cells.detach(), "cells_right": right}
    loss = text + _CELL_WEIGHT * cells
    if "sums" in share:
        sums, of_sums = sums_loss(model.model, *share["sums"])
        loss, scalars = loss + sums, scalars | of_sums
    return loss, scalars


def begin(config: GeometryBaseConfig, problems: Sequence[ChainProblem], size: GeometrySize) -> InterleavedFolder:
    """The model of `config.start`, or an untrained one, with the tower of `config.tower`."""
    settings = InterleaveSettings(max_looks=0)
    if config.start:
        folder = read_interleaved(config.start, settings)
    else:
        tokenizer = geometry_tokenizer([problems[n] for n in range(min(len(problems), 2000))])
        model = build_geometry_model(tokenizer, size)
        vocabulary = LEAST_VOCABULARY.extend(model, tokenizer)
        layout = VisualLayout.of(model, vocabulary.interleave_id, tokenizer)
        interleaved = InterleavedModel(model, VisualTokenSelector.for_model(model, vocabulary.interleave_id), layout)
        folder = InterleavedFolder(interleaved, geometry_processor(tokenizer, size), vocabulary, settings)
    if config.tower:
        tower = SwinModel.from_pretrained(config.tower, add_pooling_layer=False)
        vision_tower(folder.model.model).load_state_dict(tower.state_dict())
    folder.model.selector.requires_grad_(False)
    return folder


def train(
    config: GeometryBaseConfig, problems: Sequence[ChainProblem] | None = None, size: GeometrySize = SIZE
) -> FitResult:
    """Runs or resumes the training and writes the finished model to `config.out`.

    Args:
        problems: used instead of drawn ones.
    """
    torch.manual_seed(config.loop.seed)
    problems = read_problems(size.data(config.num_problems, config.store)) if problems is None else problems
    folder = begin(config, problems, size)
    interleaved = folder.model
    batches = ReadingBatches(
        folder.encoder,
        problems,
        config.batch_size,
        config.loop.seed,
        lambda problem, rng: reading_task(problem, rng, size.grid),
        config.sums,
        size.grid,
    )
    if not config.start:
        start_layers(interleaved.model, batches(0, 0, 1)["batch"].images["pixel_values"])
        use_plain_attention(interleaved.model.model.language_model)
    result = fit(
        interleaved,
        batches,
        reading_loss,
        config.loop,
        config.run_dir,
        param_groups=interleaved_groups(interleaved, config.tower_lr_ratio if config.tower or config.start else 1.0),
        title="base",
        fingerprint=fingerprint(config, free=("run_dir", "out", "store")) | flatten(size, "size."),
    )
    if result.is_main:
        record = {"command": command_line("train.geometry_base", config), "steps": result.steps}
        replace(folder, model=interleaved.cpu()).save(config.out, record)
    return result


def main(argv: list[str] | None = None) -> None:
    print(f"done: {train(parse_config(GeometryBaseConfig, argv))}")


if __name__ == "__main__":
    main()
