"""The tokenizer's race: its reference is the design that is published, its table and bars say what was measured."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import tokenizer_speed
from benchmarks.reference_vqvae import ReferenceVQVAE, min_max
from benchmarks.tokenizer_speed import INSIDE_320, OURS, REFERENCE, bars, parameters, table


def result(speed: float) -> dict[str, Any]:
    cell = {"encode": speed, "decode": speed, "both": speed}
    races = [{"batch_size": n, "speed_over_reference": {OURS: cell, REFERENCE: cell}} for n in (1, 32)]
    return {"parameters": {OURS: 1_000_000, REFERENCE: 7_700_000}, "races": races}


def test_the_reference_has_the_published_shape_and_size() -> None:
    model = ReferenceVQVAE().eval()
    assert 7.6e6 < parameters(model) < 7.8e6
    depth = 1 + torch.rand(2, 40, 60)
    values = min_max(depth, model.image_size)
    assert values.shape == (2, 1, 320, 320)
    torch.testing.assert_close(values.amin((1, 2, 3)), torch.full((2,), -1.0))
    torch.testing.assert_close(values.amax((1, 2, 3)), torch.ones(2))
    codes = model.encode(depth)
    assert codes.shape == (2, 10, 10) and codes.min() >= 0 and codes.max() < 128
    nearness = model.decode(codes, (40, 60))
    assert nearness.shape == (2, 40, 60) and nearness.min() >= 0 and nearness.max() <= 1


def test_bars_fall_short_where_ours_is_slow() -> None:
    assert all(bar.met for bar in bars(result(2.5)))
    assert [bar.met for bar in bars(result(1.5))] == [False, False, True]
    assert "| depth-scenes-100 | 1.0 M | 2.5x (encode 2.5x, decode 2.5x) |" in table(result(2.5))


def test_every_peer_races_on_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {OURS: (0.1, 0.1), INSIDE_320: (0.2, 0.2), REFERENCE: (0.3, 0.5)}
    models: dict[str, Any] = dict.fromkeys(took)
    models.update({name: name for name in took})
    monkeypatch.setattr(tokenizer_speed, "seconds", lambda model, _: took[model])
    raced = tokenizer_speed.race(models, torch.zeros(3, 4, 4), batch_size=2, rounds=3)
    assert raced["speed_over_reference"][OURS]["both"] == 4.0
    assert raced["speed_over_reference"][INSIDE_320]["encode"] == 1.5
    assert raced["speed_over_reference"][REFERENCE]["both_quartiles"] == [1.0, 1.0, 1.0]


def test_too_few_rounds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tokenizer_speed.main(["--rounds", "1"])
    assert "--rounds must be at least 2" in capsys.readouterr().err
