"""The examples of docs/asking.md run, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_examples_run_one_after_the_other(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "asking.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, object] = {"__name__": "__example__"}
    for block in blocks:
        exec(block, names)
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[-1] in ("chain", "direct") and said[-1] == "100 0"
    assert [answer.mode for answer in names["answers"]] == ["chain", "direct"]  # type: ignore[attr-defined]
