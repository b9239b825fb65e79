"""The commands of a page of the docs, and how they are run."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = "<!-- not run -->"
_BLOCK = re.compile(rf"(?P<mark>{NOT_RUN}\n)?^```sh\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(page: str, run: bool) -> list[list[str]]:
    """Words of each command of a page's text, of those that run or of the others."""
    blocks = [m["code"].replace("\\\n", " ") for m in _BLOCK.finditer(page) if bool(m["mark"]) != run]
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]


def execute(words: list[str]) -> None:
    """In this process: imports take longer than the commands."""
    with pytest.MonkeyPatch.context() as patch:
        if words[0] == "python":
            module = words[1] == "-m"
            patch.setattr(sys, "argv", words[2 if module else 1 :])
            try:
                if module:
                    runpy.run_module(words[2], run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(words[1], run_name="__main__")
            except SystemExit as ended:
                assert not ended.code, words
        else:
            assert words[0] == "perception"
            from perception import cli

            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert not ended.value.code


@contextmanager
def like_a_checkout(folder: Path) -> Iterator[Path]:
    """Works in a folder that looks like the root, so that nothing is written into the checkout."""
    for entry in ROOT.iterdir():
        if entry.name[0] != "." and entry.name != "runs":
            (folder / entry.name).symlink_to(entry)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)  # a process has one precision, which other tests set anew
