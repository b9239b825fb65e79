"""The published layout is trained on as it is: rows, cells, answers, and what cannot be used."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_figures import make_toy_folder, toy_problems

from perception.datasets.interleaved.mint_cot import InterleavedProblem, InterleavedStep, on_grid, write_mint_cot
from perception.interleave.chains import Look
from perception.interleave.triggers import HeadingTrigger
from train.data.published_chains import PublishedData, read_published_problems
from train.interleave import InterleaveConfig, InterleavedFolder, read_interleaved
from train.interleave import train as interleave
from train.loop.fit import LoopConfig
from train.reinforce import ReinforceConfig
from train.reinforce import train as reinforce

GRID = (4, 4)  # of the toy model; the files are numbered on another
WRITTEN = (8, 8)
LOOP = LoopConfig(steps=2, warmup_steps=1, num_workers=0)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_toy_folder(folder)
    return folder


@pytest.fixture(scope="module")
def folder(start: Path) -> InterleavedFolder:
    return read_interleaved(start)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Eight toy problems in the published layout."""
    problems = []
    for n, toy in enumerate(toy_problems(8, 0, 32, WRITTEN)):
        image = tmp_path / f"{n}.png"
        Image.fromarray(toy.image.numpy()).save(image)
        steps = [InterleavedStep(step.text, step.tokens) for step in toy.steps]
        steps[-1] = replace(steps[-1], text=f"{steps[-1].text}\nThe answer is {toy.answer}.")
        problems.append(InterleavedProblem(str(n), image, toy.question, "Look closely.", tuple(steps), WRITTEN))
    write_mint_cot(problems, tmp_path / "rows.json")
    return tmp_path / "rows.json"


def test_rows_become_chains_on_the_model_s_grid(file: Path, folder: InterleavedFolder):
    found, skipped = read_published_problems(PublishedData([str(file)], held_out=0), folder.encoder, folder.model.model)
    assert len(found) == 8 and not skipped
    for row, toy in zip(found, toy_problems(8, 0, 32, WRITTEN), strict=True):
        assert np.array_equal(row.image, toy.image) and (row.question, row.answer) == (toy.question, toy.answer)
        assert [step.text for step in row.steps] == [step.text for step in toy.steps], "the answer is told once"
        assert [step.tokens for step in row.steps] == [on_grid(step.tokens, WRITTEN, GRID) for step in toy.steps]
    parts = folder.encoder.answer(found[0])
    text = folder.processor.tokenizer.decode([p for p in parts if not isinstance(p, Look)], skip_special_tokens=True)
    assert text.split() == f"Look closely. Step 1: {found[0].steps[0].text} Step 2: {found[0].steps[1].text} " \
        f"Step 3: {found[0].steps[2].text} Answer: {found[0].answer}".split()  # fmt: skip


def test_rows_that_cannot_be_used_are_named(file: Path, folder: InterleavedFolder, tmp_path: Path):
    rows = json.loads(file.read_text())
    rows[1]["messages_interleave_ra"][1]["content"] = "Step 1: <interleave>1</interleave> it says nothing."
    rows[2]["messages_interleave_ra"][1]["content"] = "The answer is 10."
    rows[3]["messages_interleave_ra"][1]["content"] = "Step 1: <interleave>64</interleave> so 4. Answer: 4"
    file.write_text(json.dumps(rows))
    (tmp_path / "4.png").write_bytes((tmp_path / "5.png").read_bytes()[:120])
    found, skipped = read_published_problems(PublishedData([str(file)], held_out=0), folder.encoder, folder.model.model)
    assert len(found) == 4
    said = {line.split(":")[1]: line for line in skipped}
    assert "no answer" in said["2"] and "no step" in said["3"] and "outside the grid" in said["4"]
    assert "4.png" in said["5"]
    with pytest.raises(ValueError, match="held_out"):
        read_published_problems(PublishedData([str(file)], held_out=4), folder.encoder, folder.model.model)


def test_chains_look_where_generation_would(file: Path, folder: InterleavedFolder):
    """Also at steps without a tag, and where a text names a step as headings do."""
    rows, tag = json.loads(file.read_text())[:3], "<interleave>1</interleave>"
    for row, said in zip(
        rows,
        (
            f"Look.\n### Step 1: It is 4.\n### Step 2: {tag} so 4. Answer: 4",
            f"Step 1: {tag} it is 4.\nStep 2: so 4. Answer: 4",
            f"As in Step 1: look.\nStep 1: {tag} it is 4.\nStep 2: {tag} by Step 1: 4. Answer: 4",
        ),
        strict=True,
    ):
        row["messages_interleave_ra"][1]["content"] = said
    file.write_text(json.dumps(rows))
    found, _ = read_published_problems(PublishedData([str(file)], held_out=0), folder.encoder, folder.model.model)
    tokenizer = folder.processor.tokenizer
    trigger = HeadingTrigger(tokenizer, folder.settings)
    for problem, numbers in zip(found, ([1, 2], [1, 2], [1, 1, 2, 1]), strict=True):
        for encoder in (folder.encoder, replace(folder.encoder, next_token=False)):
            parts = encoder.answer(problem)
            ids = [part for part in parts if not isinstance(part, Look)]
            looks = [n - k for k, n in enumerate(n for n, part in enumerate(parts) if isinstance(part, Look))]
            assert looks == [n for n in range(len(ids) + 1) if trigger.fires(ids[:n])]
            assert re.findall(r"Step (\d+):", tokenizer.decode(ids)) == [str(n) for n in numbers]
            batch = encoder.batch([problem])
            assert encoder.counts(problem) == (batch.num_labels, batch.num_looks)
    few = replace(folder.encoder, settings=replace(folder.settings, max_looks=2))
    assert sum(isinstance(part, Look) for part in few.answer(found[2])) == 2


def test_rows_about_a_held_out_image_are_held_out(file: Path, folder: InterleavedFolder, tmp_path: Path):
    (tmp_path / "0.png").write_bytes((tmp_path / "7.png").read_bytes())  # a copy under another name
    data = PublishedData([str(file)], held_out=2)
    found, _ = read_published_problems(data, folder.encoder, folder.model.model)
    kept, held = found.split(2)
    assert [row.question for row in held] == [found[n].question for n in (0, 6, 7)] and len(kept) == 5
    assert len(found.split(0)[0]) == 8
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes((tmp_path / "7.png").read_bytes())
    with pytest.raises(ValueError, match=r"the images of held_out \(2\) rows are those of all rows"):
        found.split(2)


def test_a_stage_and_its_reinforcement_run_on_them(file: Path, start: Path, tmp_path: Path):
    published = PublishedData([str(file)], held_out=2)
    rows = json.loads(file.read_text())
    rows[0]["images"] = ["none.png"]
    file.write_text(json.dumps(rows))
    config = InterleaveConfig(
        start=str(start), out=str(tmp_path / "model"), run_dir=str(tmp_path / "run"), published=published, batch_size=2
    )
    assert interleave(replace(config, loop=LOOP)).steps == 2
    assert "none.png" in (tmp_path / "run" / "skipped.txt").read_text()
    assert "rows.json" in json.loads((tmp_path / "model" / "training.json").read_text())["command"]
    reinforced = ReinforceConfig(
        start=str(tmp_path / "model"),
        out=str(tmp_path / "reinforced"),
        run_dir=str(tmp_path / "run-reinforced"),
        published=published,
        batch_size=2,
        num_generations=2,
        max_completion_length=6,
        loop=replace(LOOP, evaluate_every=2),
    )
    assert reinforce(reinforced).steps == 2
    rows[1]["messages_interleave_ra"][1]["content"] += "\nThe answer is 999."
    file.write_text(json.dumps(rows))
    for train, settings in ((interleave, replace(config, loop=LOOP)), (reinforce, reinforced)):
        with pytest.raises(ValueError, match=r"data_digest: '5 problems, \w+' there, '5 problems, \w+' now"):
            train(settings)
    with pytest.raises(ValueError, match="drawn figures"):
        replace(config, regions="whole")
