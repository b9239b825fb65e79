"""The page about labelling: its commands run as written, its settings exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_commands import ROOT, commands, execute, like_a_checkout

from train.loop.command_line import flatten
from train.prepare import PrepareConfig

PAGE = (ROOT / "docs" / "prepare.md").read_text()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
def test_the_commands_of_the_page_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("accelerate", "skimage", "cv2"):
        pytest.importorskip(package)
    with like_a_checkout(tmp_path) as checkout:
        for words in commands(PAGE, run=True):
            execute(words)
        said = capsys.readouterr().out
        assert "1 images labelled, 0 skipped; 1 depth maps, 0 boxes" in said and "done: 2 steps" in said
        assert (checkout / "runs/label/labelled/labels.png").stat().st_size > 10_000


def test_the_example_asks_for_its_folder() -> None:
    ended = subprocess.run(
        [sys.executable, ROOT / "examples/label_images/photos.py"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1 and ended.stderr.startswith("name a folder: python examples/label_images/photos.py")


def test_settings_that_the_page_names_exist() -> None:
    known = set(flatten(PrepareConfig("images", "out")))
    for words in commands(PAGE, run=False):
        if "train.prepare" in words:
            assert {word[2:] for word in words if word.startswith("--")} <= known
    named = set(re.findall(r"`--([\w.]+)", PAGE))
    assert named and named <= known, named - known
