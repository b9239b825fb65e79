"""The example about blood cells: its commands run as written on the stand-in that it draws, with fewer steps."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from page_commands import ROOT, commands, execute, like_a_checkout

from perception.datasets.detection import CountRules
from perception.datasets.voc import read_voc

for needed in ("timm", "peft", "inflect"):
    pytest.importorskip(needed)
EXAMPLE = ROOT / "examples" / "cells"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
def test_the_commands_of_the_page_run(tmp_path: Path, capsys: Any) -> None:
    with like_a_checkout(tmp_path) as folder:
        for words in commands((EXAMPLE / "README.md").read_text(), run=True):
            if "--train" in words:
                words[words.index("--train") + 1] = "4"
            if "train.aurora" in words:
                words += ["--loop.steps", "1", "--loop.warmup_steps", "1", "--batch_size", "2"]
            if "--evaluation.data.counts" in words:
                words += ["--evaluation.most", "2", "--evaluation.asked", "2"]
            execute(words)
        assert (folder / "runs/cells/counted.png").is_file() and (folder / "runs/cells/run/held_out.html").is_file()
    # 16 photographs, three kinds of cells each, of which boxes, a chain and a direct answer
    assert "done: 1 steps on 0 scenes and 144 records (0 left out)" in capsys.readouterr().out
    record = json.loads((tmp_path / "runs/cells/model/training.json").read_text())
    assert record["evaluation"]["records"] == 36


def test_the_stand_in_is_dense_and_lies_inside_its_photographs(tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLE / "draw.py"))["main"](tmp_path)
    rules = CountRules(max_count=60, every_class=True)
    made = read_voc(tmp_path / "ImageSets/Main/train.txt", tmp_path / "JPEGImages", 100, rules)
    counts = [int(r.example.answer) for r in made.records if r.example.task == "direct_count"]
    assert made.skipped == () and len(counts) == 48 and max(counts) > 20 and min(counts) == 0
