"""The commands of recipes that pages print: their settings exist and have values that the recipe takes."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from typing import Any

import pytest
from page_commands import ROOT, commands

from train.loop import command_line

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*/*/README.md"))]


class Parsed(Exception):
    """The command line was read; nothing is to be trained."""


def recipe_commands(text: str) -> list[list[str]]:
    """Words of the commands that run a module of `train`, from its name on."""
    found = commands(text, run=True) + commands(text, run=False)
    found += [shlex.split(code) for code in re.findall(r"`([^`\n]*-m train\.[^`\n]*)`", text)]
    words = [line[line.index("-m") + 1 :] for line in found if "-m" in line]
    lines = [[word for word in line if word != "..."] for line in words if re.fullmatch(r"train\.[a-z_.]+", line[0])]
    return [line for line in lines if line[1:] not in ([], ["--help"])]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=f"{page.relative_to(ROOT)}: {shlex.join(words)}"[:100])
        for page in PAGES
        for words in recipe_commands(page.read_text())
    ],
)
def test_its_settings_are_read(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    original = command_line.parse_config

    def read_alone(config_class: type[Any], argv: Any = None) -> Any:
        original(config_class, argv)
        raise Parsed

    holders = [m for name, m in list(sys.modules.items()) if name.startswith("train.") and hasattr(m, "parse_config")]
    for module in (command_line, *holders):
        monkeypatch.setattr(module, "parse_config", read_alone)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.chdir(ROOT)  # configurations are files of the repository
    with pytest.raises(Parsed):
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
