"""Benchmarks that train, run with trainings of one step."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import label_efficiency


def measure(benchmark: ModuleType, words: list[str], out: Path) -> dict[str, Any]:
    """Measure with trainings of one step; return the result."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(benchmark, "MOST_STEPS"):
            patch.setattr(benchmark, "MOST_STEPS", 1)
        else:
            patch.setattr(benchmark, "STEPS", (1,))
        assert benchmark.main([*words, "--out", str(out)]) == 0
    return dict(json.loads(out.read_text()))


def measure_again(benchmark: ModuleType, words: list[str], out: Path) -> dict[str, Any]:
    """Measure as before; fail where a training runs again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_efficiency, "train", lambda config: pytest.fail("it trained again"))
        return measure(benchmark, words, out)
