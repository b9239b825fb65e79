from __future__ import annotations

import pytest

from benchmarks import scene_rendering
from benchmarks.bars import all_met
from benchmarks.scene_rendering import bars, share_after


def result(rate: float, share: float) -> dict:
    rendering = [{"size": size, "style": "standard", "images_a_second": rate} for size in (96, 80)]
    return {"rendering": rendering, "waiting": {"share": 0.9, "share_after_step_5": share}}


def test_bars_are_about_96_pixels_and_the_steps_after_the_first() -> None:
    measured = bars(result(240.0, 0.02))
    assert [bar.name for bar in measured] == ["standard scenes of 96 x 96", "a training step not waiting for data"]
    assert all_met(measured) and measured[1].figure == pytest.approx(98)
    assert not any(bar.met for bar in bars(result(150.0, 0.3)))


def test_shares_of_a_log_are_cumulative() -> None:
    records = [{"step": 5, "wait_share": 0.5, "seconds": 10.0}, {"step": 15, "wait_share": 0.3, "seconds": 20.0}]
    assert share_after(records, 5) == pytest.approx(0.1)  # 6 seconds of waiting in all, 5 of them before
    with pytest.raises(ValueError, match="run longer"):
        share_after(records[:1], 5)
    with pytest.raises(ValueError, match="run longer"):
        share_after([], 5)


def test_a_run_too_short_for_its_figure_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scene_rendering.main(["--steps", "5"])
    assert "--steps must be above 5" in capsys.readouterr().err
