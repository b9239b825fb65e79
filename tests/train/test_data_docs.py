"""The page about data: the command of every layout trains on its example, which is what its script makes."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from page_commands import ROOT, execute, like_a_checkout

for needed in ("peft", "datasets", "pycocotools", "inflect"):
    pytest.importorskip(needed)
LAYOUTS = ROOT / "examples" / "layouts"
COMMANDS = re.findall(
    r"^\| .* \| `(python -m train\.finetune .*)` \|$", (ROOT / "docs/data.md").read_text(), re.MULTILINE
)
RECORDS = {
    "table": 83, "messages": 3, "prompts": 2, "objects": 12, "parquet": 3, "saved": 3,
    "coco": 9, "voc": 9, "yolo": 9, "boxes": 9,
}  # fmt: skip


def test_every_layout_has_a_command() -> None:
    assert sorted(RECORDS) == sorted(re.search(r"--run_dir runs/(\w+)", command)[1] for command in COMMANDS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: re.search(r"--run_dir runs/(\w+)", command)[1])
def test_the_command_of_a_layout_trains(command: str, tmp_path: Path, capsys: Any) -> None:
    with like_a_checkout(tmp_path):
        execute(shlex.split(command))
    name = re.search(r"--run_dir runs/(\w+)", command)[1]
    said = capsys.readouterr()
    assert f"done: 1 steps on 0 scenes and {RECORDS[name]} records (0 left out)" in said.out, said.out
    assert "left out" not in said.err
    assert (tmp_path / "runs" / name / "skipped.txt").read_text() == ""


def test_the_examples_are_what_their_script_makes(tmp_path: Path) -> None:
    runpy.run_path(str(LAYOUTS / "make.py"))["main"](tmp_path)
    made = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert len(made) == 12
    assert [name for name in made if (LAYOUTS / name).read_text() != (tmp_path / name).read_text()] == []
