"""What the quickstart says and writes around its trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from perception.evaluation.bootstrap import Interval
from perception.evaluation.comparison import GROUPS, Comparison
from train import quickstart
from train.loop.command_line import parse_config
from train.loop.fit import FitResult
from train.loop.memory import PeakMemory, peak_memory
from train.quickstart import QuickstartConfig

CELL = Interval(0.5, 0.4, 0.6, 100)
COMPARISON = Comparison(
    "shifted",
    {name: {"direct": CELL, "chain": CELL, "aurora, direct": CELL} for name in GROUPS},
    dict.fromkeys(GROUPS, CELL),
    {"counting": {"own": CELL}},
    {},
)


def test_the_summary_holds_figures_time_and_memory(tmp_path: Path) -> None:
    config = replace(QuickstartConfig(), run_dir=str(tmp_path))
    fits = {arm: FitResult(220, 1.5, 60.0, 0.02, None) for arm in ("direct", "aurora")}
    memory = quickstart.write_summary(config, fits, [COMPARISON], seconds=90)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["minutes"] == 1.5 and summary["training"]["aurora"]["data_wait_share"] == 0.02
    assert summary["peak_memory_gb"]["process"] == pytest.approx(memory.process / 1e9, abs=1e-3)
    assert Comparison.from_json(summary["styles"]["shifted"]) == COMPARISON
    assert summary["command"].startswith("python -m train.quickstart --run_dir") and summary["cores"] >= 1
    assert summary["config"]["loop.steps"] == config.loop.steps


def test_memory_is_in_bytes() -> None:
    memory = peak_memory()
    assert 1e8 < memory.process < 1e11  # torch alone takes a hundred megabytes
    assert str(PeakMemory(2_000_000_000, 500_000_000)) == "2.00 GB, its largest worker 0.50 GB"
    assert PeakMemory(2, 1).total == 3


def test_the_report_shows_the_shipped_curves_where_they_are(tmp_path: Path) -> None:
    console = Console(record=True, width=120)
    assert quickstart.learning_curves(console, tmp_path) == [] and console.export_text() == ""
    Image.new("RGB", (8, 6), "red").save(tmp_path / "label_efficiency.png")
    words, (picture,) = quickstart.learning_curves(console, tmp_path)
    assert picture.image.size == (8, 6) and "number of answers" in words
    assert "benchmarks/results/label_efficiency.md" in console.export_text()


def test_both_arms_learn_from_the_same_answers(tmp_path: Path) -> None:
    config = replace(QuickstartConfig(), run_dir=str(tmp_path))
    aurora, direct = config.training("aurora"), config.training("direct")
    assert aurora.data == direct.data and aurora.data.scenes.answers == 500 < aurora.data.scenes.count
    assert (aurora.base, aurora.loop, aurora.batch_size) == (direct.base, direct.loop, direct.batch_size)
    assert direct.arm == "direct" and aurora.curriculum.chain_share > 0.5


def test_a_misspelt_setting_is_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(QuickstartConfig, ["--num_scene", "8"])
    assert "did you mean --num_scenes?" in capsys.readouterr().err
