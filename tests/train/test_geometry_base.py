"""Reading figures: what cells should say, what is asked, and that tower and base train and go on from one another."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_figures import TINY, make_toy_folder, toy_problem, toy_problems

from perception.geometry.figure import Mark
from train import figure_tower, geometry_base
from train.data.arithmetic import LARGEST, sum_of, sum_rows
from train.data.geometry import GeometryData
from train.figure_tower import CHARACTERS, FigureTowerConfig, GeometrySize, cell_of, characters_at, shifted
from train.geometry_base import NEAREST, READ_ALL, GeometryBaseConfig, ReadingBatches, reading_task
from train.interleave import read_interleaved
from train.loop.fit import LoopConfig

DATA = GeometryData(image_size=32, grid_size=4)
LOOP = LoopConfig(steps=2, learning_rate=1e-3, num_workers=0)


def test_cells_say_what_is_written_in_them() -> None:
    written = characters_at([Mark("47", (0.3, 0.9)), Mark("A", (0.99, 0.0))], (4, 4))
    words = ["".join(CHARACTERS[code] for code in cell).strip() for cell in written]
    assert words == ["" if n not in (3, 13) else {3: "A", 13: "47"}[n] for n in range(16)]


def test_a_shifted_figure_takes_its_marks_along() -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        problem = toy_problem(np.random.default_rng(number))
        image, marks = shifted(problem.image, problem.marks, rng)
        for before, after in zip(problem.marks, marks, strict=True):
            patches = []
            for picture, mark in ((problem.image, before), (image, after)):
                x, y = (round(place * 128) for place in mark.place_xy)
                patches.append(picture[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4])
            assert 0 <= min(after.place_xy) and max(after.place_xy) < 1
            if patches[0].shape == patches[1].shape == (7, 7, 3):
                assert torch.equal(*patches), (number, before, after)


def test_questions_are_answered_by_the_marks() -> None:
    asked = set()
    for number in range(30):
        problem = toy_problem(np.random.default_rng(number))
        task = reading_task(problem, np.random.default_rng(number), (8, 8))
        names = [mark.text for mark in problem.marks]
        assert not task.steps and set(task.answer.split()) <= set(names)
        asked.add(task.question == READ_ALL)
        if task.question == READ_ALL:
            assert sorted(task.answer.split()) == sorted(names)
        else:
            assert task.question in {NEAREST.format(name) for name in names}
    assert asked == {True, False}


def test_words_stand_at_the_visual_tokens_of_their_cells(tmp_path: Path) -> None:
    folder = make_toy_folder(tmp_path)
    problems = toy_problems(4, 0, 32, (4, 4))
    share = ReadingBatches(folder.encoder, problems, 4, 0, grid=(4, 4))(0, 0, 1)
    decode = folder.processor.tokenizer.decode
    for problem, words in zip([problems[n] for n in ReadingBatches(None, problems, 4, 0).rows(0)], share["words"]):  # type: ignore[arg-type] # noqa: B905
        mark = problem.marks[-1]
        assert decode([int(words[cell_of(mark, (4, 4))])]).strip() == mark.text


def test_sums_are_right_and_only_results_are_asked_for() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        asked, result = sum_of(rng)
        assert 0 < int(result) <= LARGEST
        if ". x =" in asked:
            assert int(result) ** 2 == int(asked.split()[3].rstrip(".")), asked
        else:
            sum_asked = asked.split("=")[-2].replace("/", "//")
            assert eval(sum_asked) == int(result), asked


def test_rows_of_sums_supervise_results_alone(tmp_path: Path) -> None:
    tokenizer = make_toy_folder(tmp_path).processor.tokenizer
    ids, labels = sum_rows(np.random.default_rng(1), tokenizer, 3, 40)
    assert ids.shape == labels.shape == (3, 40)
    for row, wanted in zip(ids, labels, strict=True):
        text, results = tokenizer.decode(row[1:]), tokenizer.decode(row[wanted != -100]).split()
        assert torch.equal(row[wanted != -100], wanted[wanted != -100])
        found = re.findall(r"(?:=|x =) (\d+)(?=\.)", text.replace("= x x", ""))
        assert len(results) >= 4 and set(results) <= {*found, *re.findall(r"\d+$", text)}


def test_tower_and_base_train_one_after_the_other(tmp_path: Path) -> None:
    problems = toy_problems(6, 0, 32, (4, 4))
    tower = FigureTowerConfig(run_dir=str(tmp_path / "tower"), data=DATA, size=TINY, batch_size=2, loop=LOOP)
    figure_tower.train(tower, problems)
    config = GeometryBaseConfig(
        tower=str(tmp_path / "tower" / "tower"),
        tower_lr_ratio=0.0,
        out=str(tmp_path / "base"),
        run_dir=str(tmp_path / "run"),
        data=DATA,
        size=TINY,
        batch_size=2,
        loop=replace(LOOP, find_unused_parameters=True),
    )
    geometry_base.train(config, problems)
    model = read_interleaved(tmp_path / "base").model.model
    tower = figure_tower.SwinModel.from_pretrained(tmp_path / "tower" / "tower", add_pooling_layer=False)
    for name, value in tower.state_dict().items():
        kept = model.model.vision_tower.state_dict()[name]
        assert torch.equal(kept, value.half().to(kept.dtype) if value.is_floating_point() else value), name


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"image_size \(100\) must be a multiple of grid_size \(8\) times 2"):
        GeometrySize(image_size=100)
    with pytest.raises(ValueError, match="data has images of 32 pixels on a grid of 4 and size 128 on 8"):
        FigureTowerConfig(data=DATA)
