"""The comparison on blood cells: what it trains, keeps and writes, and its targets."""

from __future__ import annotations

import json
import runpy
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("inflect")
from one_step import measure, measure_again

from benchmarks import cells
from perception.datasets.detection import CountRules
from perception.datasets.voc import read_voc


def drawn(folder, train=4, test=2):
    """Write a small set of drawn photographs; return its folder."""
    runpy.run_path(str(cells.ROOT / "examples" / "cells" / "draw.py"))["main"](folder)
    for part, count in (("train", train), ("test", test)):
        file = folder / "ImageSets" / "Main" / f"{part}.txt"
        file.write_text("\n".join(file.read_text().split()[:count]) + "\n")
    file.with_name("val.txt").write_text(file.read_text())
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = drawn(tmp_path_factory.mktemp("set"))
    rules = CountRules(max_count=60, every_class=True)
    return read_voc(folder / "ImageSets/Main/train.txt", folder / "JPEGImages", 100, rules).records


@pytest.fixture(scope="module")
def measured(tmp_path_factory, photo_base):
    folder = tmp_path_factory.mktemp("cells")
    words = ["--cells", str(drawn(folder / "set")), "--base", str(photo_base[1]), "--sizes", "2", "--seeds", "0"]
    words += ["--runs", str(folder / "runs")]
    return folder, words, measure(cells, words, folder / "cells.json", STEPS=(1,))


@pytest.mark.slow
def test_the_result_has_every_way_to_count_and_a_figure(measured):
    folder, _, result = measured
    assert result["photographs"] == {"train": 4, "test": 2}
    (run,) = result["runs"]
    assert run["commit"] and run["sizes"] == [2] and "training_minutes" in run
    cell = result["labelled"]["2"]
    assert cell["seeds"] == [0]
    assert {arm: choice["steps"] for arm, choice in cell["chosen"].items()} == {"direct": 1, "drawing": 1}
    for curve in cells.CURVES:
        assert cell["exact"][curve]["white cells and platelets"]["count"] == 4
        row = cell["error"][curve]["red cells"]
        assert row["count"] == 2 and row["low"] <= row["mean"] <= row["high"]
    assert (folder / "cells.png").stat().st_size > 5000
    (file,) = (folder / "runs").glob("*-drawing-2-1-0/records.jsonl")
    texts = file.read_text().splitlines()
    assert len(texts) == 2 * 3 * 3, "two photographs, three kinds of cells, three tasks"


@pytest.mark.slow
def test_a_second_run_trains_nothing_gives_the_same_figures_and_keeps_other_sizes(measured):
    folder, words, first = measured
    cell, (run,) = first["labelled"]["2"], first["runs"]
    other, file = {**cell, "seeds": [3, 4]}, folder / "again.json"
    file.write_text(json.dumps({**first, "labelled": {"1": other}, "runs": [{**run, "sizes": [1]}]}))
    again = measure_again(cells, words, file, STEPS=(1,))
    assert again["labelled"] == {"1": other, "2": cell} and [run["sizes"] for run in again["runs"]] == [[1], [2]]
    file.write_text(json.dumps({**again, "base": "another"}))
    assert cells.main([*words, "--out", str(file)]) == 1, "sizes that were measured from another base do not stay"


def test_a_seed_draws_photographs_whole(records):
    few = cells.labelled(records, 2, seed=1)
    assert len({r.image for r in few}) == 2 and len(few) == 2 * 3 * 3
    assert few == cells.labelled(records, 2, seed=1)
    sets = {frozenset(r.image for r in cells.labelled(records, 2, seed)) for seed in range(8)}
    assert len(sets) > 1, "another seed draws others"
    assert cells.labelled(records, 4, seed=0) == records


def test_the_score_is_the_relative_error(records):
    questions = [r for r in records if r.example.task == "direct_count"]
    right = [int(q.example.answer) for q in questions]
    assert cells.score(right, questions) == 0
    assert cells.score([2 * n + 1 for n in right], questions) == 1
    assert cells.score([None] * len(right), questions) == pytest.approx(np.mean([n / (1 + n) for n in right]))


def test_a_longer_training_is_tried_as_long_as_it_counts_better(records, monkeypatch):
    questions = [r for r in records if r.example.task == "direct_count"]
    right = [int(q.example.answer) for q in questions]
    wrong_by = {150: 3, 300: 1, 600: 2, 900: 0}
    monkeypatch.setattr(cells, "STEPS", tuple(wrong_by))
    monkeypatch.setattr(cells, "training", lambda arm, count, steps, seed, given: steps)
    monkeypatch.setattr(cells, "counted", lambda steps, *_: {cells.DRAWN: [n + wrong_by[steps] for n in right]})
    steps, scores = cells.tune("drawing", 2, records, {"val": questions}, SimpleNamespace(seeds=[0]))
    assert steps == 300 and list(scores) == ["150", "300", "600"]


def test_figures_of_counts_written_by_hand(records):
    questions = [r for r in records if r.example.task == "direct_count"]
    right = [int(q.example.answer) for q in questions]
    red = set(cells.pick(questions, ("red cells",)))
    direct = [n - 4 if i in red else None for i, n in enumerate(right)]
    boxes = [n + 1 if i in red else n for i, n in enumerate(right)]
    counts = {cells.DIRECT: [direct], cells.DRAWN: [boxes], cells.SAID: [right]}
    found = cells.figures(counts, questions)
    assert len(red) == 4 and found["error"][cells.DIRECT]["red cells"]["mean"] == 4
    assert found["exact"][cells.DIRECT]["platelets"]["mean"] == 0, "no number is never right, where 0 would be, too"
    assert found["error saved, red cells"] == pytest.approx(0.75)
    assert found["gain in exact counts, white cells and platelets"]["mean"] == 1
    assert found["the number said is the number of boxes"] == pytest.approx(8 / 12)
    two = {"labelled": {"50": found}}
    assert [(bar.figure, bar.met) for bar in cells.bars(two)] == [(100, True), (pytest.approx(75), True)]


def test_what_one_and_the_same_number_gets(records):
    questions = [r for r in records if r.example.task == "direct_count"]
    found = cells.constants(questions)
    right = [int(questions[n].example.answer) for n in cells.pick(questions, ("red cells",))]
    assert found["red cells"]["error"] == pytest.approx(np.abs(np.array(right) - np.median(right)).mean())
    assert found["platelets"]["exact"] >= 1 / 4


def test_check_says_what_it_lacks(tmp_path, capsys):
    assert cells.main(["--check", "--out", str(tmp_path / "none.json")]) == 1
    assert "measure first" in capsys.readouterr().err
    (tmp_path / "r.json").write_text(json.dumps({"labelled": {"20": {}}}))
    assert cells.main(["--check", "--out", str(tmp_path / "r.json")]) == 1
    assert "measure with --sizes 50" in capsys.readouterr().err
    folder = drawn(tmp_path / "set")
    assert cells.main(["--cells", str(folder), "--sizes", "9"]) == 1
    assert capsys.readouterr().err == "cells: --sizes holds 9, and there are 4 photographs to train on\n"
