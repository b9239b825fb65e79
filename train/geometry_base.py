"""Stage 0 of geometry: a tiny model that reads figures (`python -m train.geometry_base`).

A stock LLaVA, a Swin tower and a small Llama from nothing, learns to say what is written in a figure and where; it has
never seen a solution. What is written in a cell of the visual grid is also supervised at that cell's visual token
itself: words that need no attention to be learned, and once they are, looking at the right cell is all an answer takes.
Rows of sums beside them teach it to calculate (`train.data.arithmetic`).
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
from perception.vocabulary.names import PerceptionVocabulary
from train.data.arithmetic import LARGEST, sums_loss
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import ChainBatches, ChainProblem
from train.figure_tower import GeometrySize, cell_of, check_sizes
from train.interleave import InterleavedFolder, interleaved_groups, read_interleaved
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.fit import FitResult, LoopConfig, fit
from train.models.attention import use_plain_attention
from train.models.parts import vision_tower
from train.models.tiny import TinySize, build_model, build_processor, start_layers, train_text_tokenizer

READ_ALL = "What is written in the figure?"
NEAREST = "What is written nearest to {}?"
_TEXT_VOCABULARY = 1250
_NOTHING = "nothing"


@dataclass(frozen=True)
class GeometryBaseConfig:
    """Configuration of the reading stage."""

    tower: str = "runs/geometry/tower/tower"
    """of `train.figure_tower`; empty for one from nothing, trained here, or for that of `start`"""
    start: str = ""
    """folder of a model to go on from; empty for one from nothing"""
    tower_lr_ratio: float = 0.1
    """learning rate of the tower over that of the rest; 0 freezes it"""
    out: str = "runs/geometry/base/model"
    run_dir: str = "runs/geometry/base"
    data: GeometryData = field(default_factory=GeometryData)
    size: GeometrySize = field(default_factory=GeometrySize)
    batch_size: int = 16
    cell_weight: float = 1.0
    """of the words at visual tokens, beside the answers"""
    sums: int = 16
    """rows of sums a step, beside the figures; 0 for none"""
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

    def __post_init__(self) -> None:
        check_sizes(self.data, self.size)


# The untrained model


def geometry_tokenizer(problems: Sequence[ChainProblem]) -> PreTrainedTokenizerFast:
    """A byte-level BPE over solutions; every whole number to LARGEST is one token."""
    numbers = [" " + " ".join(str(n) for n in range(LARGEST + 1)) + "." for _ in range(400)]
    lines = [" ".join(["Step 1: Step 2: Step 3: Answer: USER: ASSISTANT:", READ_ALL, NEAREST, _NOTHING])] * 200
    for problem in problems:
        lines += [problem.question, *(f"Step {n}: {step.text}" for n, step in enumerate(problem.steps))]
    letters = [" " + " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")] * 200
    return train_text_tokenizer(numbers + letters + lines, _TEXT_VOCABULARY)


def geometry_processor(tokenizer: PreTrainedTokenizerFast, size: GeometrySize) -> LlavaProcessor:
    """Any image is squashed to a square and scaled to [-1, 1]."""
    processor = build_processor(tokenizer)
    processor.image_processor.size = {"height": size.image_size, "width": size.image_size}
    processor.patch_size = size.image_size // size.grid_size
    return processor


def build_geometry_model(tokenizer: PreTrainedTokenizerFast, size: GeometrySize) -> LlavaForConditionalGeneration:
    """An untrained LLaVA that sees an image as grid_size x grid_size tokens."""
    text = TinySize(size.hidden_size, size.num_layers, size.text_heads, size.intermediate_size)
    model = build_model(tokenizer, size.vision, text)
    model.config.image_seq_length = size.grid_size**2
    return model


# What is read


def reading_task(problem: ChainProblem, rng: np.random.Generator, grid: tuple[int, int]) -> ChainProblem:
    """A question about what is written in a problem's figure: all of it in rows, or the nearest to one mark."""
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
    """Reading tasks, with what is written in a cell as the label at its visual token."""

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


@dataclass(frozen=True)
class ReadingLoss:
    """Cross-entropy of the answers, of the words at visual tokens, and of the results of sums."""

    cell_weight: float

    def __call__(
        self, model: InterleavedModel, share: Mapping[str, Any], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
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
        loss = text + self.cell_weight * cells
        if "sums" in share:
            sums, of_sums = sums_loss(model.model, *share["sums"])
            loss, scalars = loss + sums, scalars | of_sums
        return loss, scalars


def begin(config: GeometryBaseConfig, problems: Sequence[ChainProblem]) -> InterleavedFolder:
    """The model of `config.start`, or an untrained one; with the tower of `config.tower`."""
    settings, size = InterleaveSettings(max_looks=0), config.size
    if config.start:
        folder = read_interleaved(config.start, settings)
    else:
        tokenizer = geometry_tokenizer([problems[n] for n in range(min(len(problems), 2000))])
        model = build_geometry_model(tokenizer, size)
        vocabulary = PerceptionVocabulary(depth_codes=1, depth_grid=(1, 1), num_locations=2).extend(model, tokenizer)
        layout = VisualLayout.of(model, vocabulary.interleave_id, tokenizer)
        interleaved = InterleavedModel(model, VisualTokenSelector.for_model(model, vocabulary.interleave_id), layout)
        folder = InterleavedFolder(interleaved, geometry_processor(tokenizer, size), vocabulary, settings)
    if config.tower:
        tower = SwinModel.from_pretrained(config.tower, add_pooling_layer=False)
        vision_tower(folder.model.model).load_state_dict(tower.state_dict())
    folder.model.selector.requires_grad_(False)
    return folder


def train(config: GeometryBaseConfig, problems: Sequence[ChainProblem] | None = None) -> FitResult:
    """Runs or resumes the stage and writes the finished model to `config.out`."""
    torch.manual_seed(config.loop.seed)
    problems = read_problems(config.data) if problems is None else problems
    size, folder = config.size, begin(config, problems)
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
        ReadingLoss(config.cell_weight),
        config.loop,
        config.run_dir,
        param_groups=interleaved_groups(interleaved, config.tower_lr_ratio if config.tower or config.start else 1.0),
        title="base",
        fingerprint=fingerprint(config, free=("run_dir", "out", "data.store")),
    )
    if result.is_main:
        record = {"command": command_line("train.geometry_base", config), "steps": result.steps}
        replace(folder, model=interleaved.cpu()).save(config.out, record)
    return result


def main(argv: list[str] | None = None) -> None:
    print(f"done: {train(parse_config(GeometryBaseConfig, argv))}")


if __name__ == "__main__":
    main()
