"""`--help` of every program prints what the program does and what can be set."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perception.cli import app

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for folder in ("train", "benchmarks", "demos", "perception/scenes")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if "argv" in (text := file.read_text()) and '__name__ == "__main__"' in text
]
NEEDS = {"benchmarks.tokenizer_peers": "vector_quantize_pytorch", "benchmarks.training_overhead": "trl"}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_a_program(program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if program in NEEDS:
        pytest.importorskip(NEEDS[program])
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    said = capsys.readouterr()
    assert not ended.value.code and not said.err
    assert said.out.lower().startswith("usage: ") and "--help" in said.out
    assert program.startswith("train.") <= ("--config FILE reads settings from YAML" in " ".join(said.out.split()))


@pytest.mark.parametrize("command", [command.callback.__name__ for command in app.registered_commands])  # type: ignore[union-attr]
def test_help_of_a_command(command: str) -> None:
    result = CliRunner().invoke(app, [command.replace("_", "-"), "--help"])
    assert not result.exit_code and "Usage: " in result.output and "--help" in result.output
