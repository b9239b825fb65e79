"""Triangles with two angles written at their corners: the smallest problems whose solutions look at regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from perception.geometry.figure import Mark
from perception.geometry.problems import covered_cells
from perception.vocabulary.names import PerceptionVocabulary
from train.data.interleaved import ChainProblem, ChainStep
from train.figure_tower import GeometrySize
from train.geometry_base import build_geometry_model, geometry_processor, geometry_tokenizer
from train.interleave import InterleavedFolder, InterleaveSettings, read_interleaved

SIZE, GRID = 128, (8, 8)


def toy_problem(rng: np.random.Generator, size: int = SIZE, grid: tuple[int, int] = GRID) -> ChainProblem:
    """What is the third angle of a triangle? Two corners show theirs, the answer is what is left of 180."""
    letters = rng.choice(list("ABCDEFGHKLMNPQRS"), 3, replace=False).tolist()
    angles = [int(rng.integers(20, 80)), int(rng.integers(20, 80))]
    image = Image.new("RGB", (size, size), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=size * 0.085)
    turn = rng.random() * 2 * np.pi
    corners = []
    for k in range(3):
        angle = turn + 2 * np.pi * (k + rng.uniform(-0.2, 0.2)) / 3
        corners.append(size * (0.5 + rng.uniform(0.34, 0.42) * np.array([np.cos(angle), np.sin(angle)])))
    draw.polygon([tuple(c) for c in corners], outline="black", width=max(1, size // 100))
    marks, boxes = [], []
    for k, corner in enumerate(corners):
        inward = (np.mean(corners, axis=0) - corner) / size
        inward = inward / np.linalg.norm(inward)
        places = [(letters[k], corner - inward * 0.065 * size)]
        if k < 2:
            places.append((str(angles[k]), corner + inward * 0.15 * size))
        for text, place in places:
            draw.text(tuple(place), text, fill="black", font=font, anchor="mm")
            marks.append(Mark(text, tuple(np.clip(place / size, 0, 0.999).tolist())))
        ends = np.array([place for _, place in places]) / size
        boxes.append([*np.clip(ends.min(0) - 0.05, 0, 1), *np.clip(ends.max(0) + 0.05, 0, 1)])
    a, b, c = letters
    total = sum(angles)
    tokens = [covered_cells([box], grid) for box in boxes]
    steps = (
        ChainStep(f"angle {a} is {angles[0]}.", tokens[0]),
        ChainStep(f"angle {b} is {angles[1]}.", tokens[1]),
        ChainStep(f"{angles[0]} + {angles[1]} = {total}, 180 - {total} = {180 - total}.", tokens[2]),
    )
    question = f"The angles {a} and {b} of a triangle are given. What is angle {c}?"
    return ChainProblem(torch.from_numpy(np.array(image)), question, str(180 - total), steps, "triangle", tuple(marks))


def toy_problems(count: int, seed: int = 0, size: int = SIZE, grid: tuple[int, int] = GRID) -> list[ChainProblem]:
    return [toy_problem(np.random.default_rng((seed, n)), size, grid) for n in range(count)]


TINY = GeometrySize(
    image_size=32,
    grid_size=4,
    embed_dim=8,
    depths=(1, 1),
    num_heads=(1, 1),
    window_size=4,
    hidden_size=32,
    num_layers=2,
    text_heads=2,
    intermediate_size=48,
)


def make_toy_folder(folder: Path, size: GeometrySize = TINY, count: int = 32) -> InterleavedFolder:
    """An untrained model of toy figures, saved."""
    torch.manual_seed(0)
    problems = toy_problems(count, 0, size.image_size, size.grid)
    tokenizer = geometry_tokenizer(problems)
    model = build_geometry_model(tokenizer, size)
    processor = geometry_processor(tokenizer, size)
    vocabulary = PerceptionVocabulary(depth_codes=1, depth_grid=(1, 1), num_locations=2).extend(
        model, processor.tokenizer
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    vocabulary.save(folder)
    found = read_interleaved(folder, InterleaveSettings())
    found.model.selector.save(folder)
    return found
