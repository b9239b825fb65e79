"""The comparison on photographs: what it trains, keeps and writes, and its targets."""

from __future__ import annotations

import argparse
import json

import pytest
from one_step import measure, measure_again

from benchmarks import photo_tiny, photos
from benchmarks.label_efficiency import ARMS, CURVES
from train.loop.provenance import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory, photo_base):
    folder, (data, base) = tmp_path_factory.mktemp("photos"), photo_base
    words = ["--photos", str(data), "--base", str(base), "--sizes", "4", "9", "--seeds", "0", "--each", "2"]
    words += ["--runs", str(folder / "runs")]
    return folder, words, measure(photos, words, folder / "photos.json", MOST_STEPS=1)


def test_the_result_has_every_curve_with_its_interval_and_what_a_constant_gets(measured):
    *_, result = measured
    assert result["questions"]["counting"] == 2 and result["photographs"]["train"] == 9
    for cell in result["answers"].values():
        for curve in CURVES:
            row = cell["accuracy"][curve]["counting"]
            assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
        assert set(cell[photos.LONGER_TITLE]) == set(photos.ROWS) and cell["seeds"] == [0]
    assert 0 < result["the most common answer"]["counting"] <= 1
    (run,) = result["runs"]
    assert run["sizes"] == [4, 9] and run["command"].startswith("python -m benchmarks.photos --photos FOLDER --base ")
    assert set(result["start"]) >= {"point named where it is", "map nearest at the right one of the true points"}


def test_a_second_run_trains_nothing_and_gives_the_same_figures(measured):
    folder, words, first = measured
    assert measure_again(photos, words, folder / "again.json", MOST_STEPS=1)["answers"] == first["answers"]


def test_the_direct_arm_trains_four_times_as_long_once_and_all_maps_are_learned_from_the_image(measured):
    folder, *_ = measured
    steps = [json.loads(file.read_text())["steps"] for file in folder.glob("runs/*direct-4-*/model/training.json")]
    assert sorted(steps) == [1, 4]
    given = argparse.Namespace(photos="", base=str(ROOT / "models/tiny-base"), runs="runs")
    assert all(photos.training(arm, 4, 0, given).curriculum.maps_from_image for arm in ARMS)


def test_check_prints_the_targets_of_the_stored_result(measured, capsys):
    folder, *_ = measured
    assert photos.main(["--check", "--out", str(folder / "photos.json")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("points" in line for line in said)
    assert photos.main(["--check", "--out", str(folder / "none.json")]) == 1
    assert "measure first" in capsys.readouterr().out


def test_a_model_is_measured_on_held_out_photographs_without_writing(photo_base, capsys):
    data, base = map(str, photo_base)
    before = photo_tiny.RESULT.read_bytes() if photo_tiny.RESULT.exists() else None
    assert photo_tiny.main(["--photos", data, "--model", base, "--each", "2"]) == 0
    said = capsys.readouterr().out
    for name in ("point named where it is", "counting", "depth, 3-5 points, the model reads the map", "counts: "):
        assert name in said
    assert "published marker style, point named where it is: " in said
    for ends in ("", ", ends as greedy decoding has them"):
        assert f"counts where two or more are shown{ends}: " in said
        assert f"counts where single things are shown{ends}: " in said
    assert photo_tiny.main(["--photos", data, "--model", base, "--check"]) == 1
    assert len([line for line in capsys.readouterr().out.splitlines() if "target" in line]) == 3
    assert (photo_tiny.RESULT.read_bytes() if photo_tiny.RESULT.exists() else None) == before
