"""The benchmark of native looks on a tiny model: every arm is trained once, sees what it should, and is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_figures import TINY, make_toy_folder

from benchmarks.look_closer import (
    ARMS,
    LOOKS,
    NATIVE_LOOKS,
    RANDOM,
    REINFORCED,
    TEXT,
    TRUE,
    UNLABELLED,
    WHOLE,
    Recipes,
    Scale,
    Tiled,
    Views,
    bars,
    draw,
    measure,
    page,
    row_of,
)
from train import geometry_base, interleave, reinforce
from train.data.geometry import GeometryData

SHORTEST = Scale(problems=8, reading=1, text=1, second=1, batch_size=2, reinforced=1, test=2)
DATA = GeometryData(problems="fine", image_size=64, grid_size=4)


def test_every_arm_is_trained_once_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.look_closer.MAX_NEW_TOKENS", 4)
    make_toy_folder(tmp_path / "base")
    recipes = Recipes(tmp_path, SHORTEST, DATA, tmp_path / "base", TINY)
    table = measure(recipes, list(ARMS), (0,), "test")
    assert table[TEXT]["visual_tokens"] == 16 and table[WHOLE]["visual_tokens"] == 16 * 5
    resolutions = {name: interleave.read_interleaved(recipes.model(ARMS[name], 0)).settings.resolution for name in ARMS}
    assert [resolutions[name] for name in (TEXT, LOOKS, NATIVE_LOOKS, RANDOM)] == ["seen", "seen", "native", "native"]
    assert recipes.model(ARMS[TRUE], 0) == recipes.model(ARMS[NATIVE_LOOKS], 0) != recipes.model(ARMS[RANDOM], 0)
    trained = {recipes.model(ARMS[name], 0) for name in (NATIVE_LOOKS, RANDOM, REINFORCED, UNLABELLED)}
    assert len(trained) == 4
    monkeypatch.setattr(interleave, "train", None)
    monkeypatch.setattr(reinforce, "train", None)
    monkeypatch.setattr(geometry_base, "train", None)  # everything is trained already
    again = measure(recipes, list(ARMS), (0,), "test")
    rows = [row_of(name, table) for name in table]
    assert [row_of(name, again) for name in again] == rows
    record = {**vars(SHORTEST), "seeds": [0], "rows": {"test": rows}, "bars": [bar.to_json() for bar in bars(table)]}
    text = page(record)
    assert f"| {NATIVE_LOOKS} | " in text and text.count("target") == 6
    draw(record, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.size == (1100, 440)


def test_bars_are_those_of_the_claim() -> None:
    def arm(right: float, tokens: float) -> dict[str, object]:
        return {"right": {0: np.array([1.0] * int(right) + [0.0] * int(100 - right))}, "visual_tokens": tokens}

    table = {
        TEXT: arm(5, 64),
        WHOLE: arm(80, 1088),
        NATIVE_LOOKS: arm(78, 100),
        RANDOM: arm(10, 100),
        TRUE: arm(84, 99),
        REINFORCED: arm(80, 100),
        UNLABELLED: arm(45, 100),
    }
    found = {bar.name: (round(bar.figure, 2), bar.met) for bar in bars(table)}
    assert found == {
        f"{NATIVE_LOOKS}, over {TEXT}": (73.0, True),
        f"{NATIVE_LOOKS}, over {WHOLE}": (-2.0, True),
        f"{NATIVE_LOOKS}, over {RANDOM}": (68.0, True),
        f"{NATIVE_LOOKS}, over {TRUE}": (-6.0, False),
        f"{REINFORCED}, over {NATIVE_LOOKS}": (2.0, False),
        "visual tokens of the whole image over those of native looks": (10.88, True),
        "gain without region labels, of that with them": (54.79, True),
    }


def test_tiles_cover_the_image() -> None:
    problem = Recipes(Path("unused"), SHORTEST, DATA).problems(ARMS[TEXT])[0]
    (tiled,) = Tiled([problem], 32)[0:1]
    whole, *tiles = tiled.image
    assert torch.equal(whole, problem.image) and len(tiles) == 4
    assert torch.equal(torch.cat([torch.cat(tiles[:2], 1), torch.cat(tiles[2:], 1)]), problem.image)


def test_the_base_reads_letters_at_the_first_size_and_print_in_crops() -> None:
    problems = Recipes(Path("unused"), SHORTEST, GeometryData(problems="fine", image_size=512)).problems(ARMS[TEXT])
    views = Views(problems[:3], 128)
    assert len(views) == 6
    for number, view in enumerate(views[n] for n in range(6)):
        if number % 2 == 0:
            assert view.image.shape == (512, 512, 3) and all(mark.text.isalpha() for mark in view.marks)
            continue
        assert view.image.shape == (128, 128, 3) and view.marks and all(mark.text.isdigit() for mark in view.marks)
        for mark in view.marks:
            x, y = (int(place * 128) for place in mark.place_xy)
            assert int(view.image[max(0, y - 4) : y + 5, max(0, x - 6) : x + 7].min()) < 100, "it stands there"
