"""Benchmarks that train, run with trainings of one step."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import label_efficiency


def measure(benchmark: ModuleType, words: list[str], out: Path, **lengths: Any) -> dict[str, Any]:
    """Measure with trainings of one step; return the result.

    Args:
        lengths: names of the benchmark that say what and how long it trains, and their values here.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lengths.items():
            patch.setattr(benchmark, name, value)
        assert benchmark.main([*words, "--out", str(out)]) == 0
    return dict(json.loads(out.read_text()))


def measure_again(benchmark: ModuleType, words: list[str], out: Path, **lengths: Any) -> dict[str, Any]:
    """Measure as before; fail where a training runs again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_efficiency, "train", lambda config: pytest.fail("it trained again"))
        return measure(benchmark, words, out, **lengths)
