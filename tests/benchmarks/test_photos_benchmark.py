"""The comparison on photographs: what it trains, keeps and writes, and its targets."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("timm")
from photo_folder import make_photos
from photo_world import join_tiny_tower

from benchmarks import label_efficiency, photo_tiny, photos
from benchmarks.label_efficiency import CURVES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    data = make_photos(folder / "set")
    base = join_tiny_tower(data, folder / "tower")
    words = ["--photos", str(data), "--base", str(base), "--sizes", "4", "9", "--seeds", "0", "--each", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photos, "MOST_STEPS", 1)
        assert photos.main([*words, "--runs", str(folder / "runs"), "--out", str(folder / "photos.json")]) == 0
    return folder, [*words, "--runs", str(folder / "runs")]


def test_the_result_has_every_curve_with_its_interval_and_what_a_constant_gets(measured):
    result = json.loads((measured[0] / "photos.json").read_text())
    assert result["questions"]["counting"] == 2 and result["photographs"]["train"] == 9
    for cell in result["answers"].values():
        for curve in CURVES:
            row = cell["accuracy"][curve]["counting"]
            assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 1
    assert 0 < result["the most common answer"]["counting"] <= 1
    assert set(result["start"]) >= {"point named where it is", "map nearest at the right one of the true points"}


def test_a_second_run_trains_nothing_and_gives_the_same_figures(measured, monkeypatch):
    folder, words = measured
    monkeypatch.setattr(photos, "MOST_STEPS", 1)
    monkeypatch.setattr(label_efficiency, "train", lambda config: pytest.fail("it trained again"))
    assert photos.main([*words, "--out", str(folder / "again.json")]) == 0
    first, again = (json.loads((folder / name).read_text()) for name in ("photos.json", "again.json"))
    assert first["answers"] == again["answers"]


def test_check_prints_the_targets_of_the_stored_result(measured, capsys):
    folder, _ = measured
    assert photos.main(["--check", "--out", str(folder / "photos.json")]) == 1
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and all("points" in line for line in said)
    assert photos.main(["--check", "--out", str(folder / "none.json")]) == 1
    assert "measure first" in capsys.readouterr().out


def test_a_model_is_measured_on_held_out_photographs_without_writing(measured, capsys):
    _, words = measured
    data, base = words[1], words[3]
    before = photo_tiny.RESULT.read_bytes() if photo_tiny.RESULT.exists() else None
    assert photo_tiny.main(["--photos", data, "--model", base, "--each", "2"]) == 0
    said = capsys.readouterr().out
    for name in ("point named where it is", "counting", "depth, 3-5 points, the model reads the map", "counts: "):
        assert name in said
    assert photo_tiny.main(["--photos", data, "--model", base, "--check"]) == 1
    assert len([line for line in capsys.readouterr().out.splitlines() if "target" in line]) == 3
    assert (photo_tiny.RESULT.read_bytes() if photo_tiny.RESULT.exists() else None) == before
