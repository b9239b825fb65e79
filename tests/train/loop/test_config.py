"""Command lines: what wins over what, and that nothing unknown passes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from train.aurora import AuroraConfig
from train.loop.command_line import command_line, flatten, parse_config


@dataclass(frozen=True)
class Inner:
    steps: int = 10
    """how many steps, at most 100 %"""
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


@dataclass(frozen=True)
class Outer:
    """What the outer one is for."""

    name: str
    kind: Literal["a", "b"] = "a"
    on: bool = False
    styles: tuple[str, ...] = ("standard",)
    span: tuple[float, float] = (0.0, 1.0)
    limit: float | None = None
    loop: Inner = field(default_factory=lambda: Inner(steps=30))
    """the loop"""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError(f"limit must not be negative, got {self.limit}")


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_config(Outer, argv)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith("\n"), "one line"
    return said


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: from file\nlimit: 1e-3\nloop:\n  rate: 1\n")
    config = parse_config(Outer, ["--config", str(file), "--loop.steps", "7", "--on", "--styles", "x", "y"])
    assert config == Outer("from file", on=True, styles=("x", "y"), limit=1e-3, loop=Inner(steps=7, rate=1.0))
    assert isinstance(config.loop.rate, float)
    argv = ["--name", "n", "--on=no", "--limit", "none", "--span", "1", "2", f"--config={file}"]
    assert parse_config(Outer, argv) == Outer("n", span=(1.0, 2.0), loop=Inner(steps=30, rate=1.0))


def test_nested_defaults_are_those_of_the_outer_class() -> None:
    assert parse_config(Outer, ["--name", "n", "--loop.rate", "0.5"]).loop == Inner(steps=30, rate=0.5)


def test_unknown_keys_and_flags_are_refused_with_the_nearest_known_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(["--name", "n", "--loop.step", "3"], capsys)
    assert "unknown flag --loop.step; did you mean --loop.steps?" in said
    file = tmp_path / "run.yaml"
    file.write_text("loop:\n  batch: 3\n")
    said = refused(["--name", "n", "--config", str(file)], capsys)
    assert "unknown config key loop.batch; did you mean loop.rate?" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--name STR"),
        (["--name", "n", "3"], "Unrecognized options: 3"),
        (["--name", "n", "--loop.steps", "3.5"], "--loop.steps: invalid literal for int() with base 10: '3.5'"),
        (["--name", "n", "--loop.steps", "0"], "steps must be at least 1, got 0"),
        (["--name", "n", "--limit", "-1"], "limit must not be negative, got -1.0"),
        (["--name", "n", "--limit", "much"], "none|FLOAT could be instantiated from ['much']"),
        (["--name", "n", "--kind", "c"], "invalid choice 'c' for argument '--kind'. Expected one of ('a', 'b')"),
        (["--name", "n", "--on", "perhaps"], "--on: expected one of true, yes, 1, false, no, 0, got 'perhaps'"),
        (["--name", "n", "--span", "1"], "Expected 2 values"),
        (["--config", "missing.yaml"], "cannot read config file missing.yaml"),
    ],
)
def test_wrong_values_are_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)


@pytest.mark.parametrize("text", ["loop: [", "- a\n- b\n", "name: [1, 2]\n", "name: n\nloop: 3\n"])
def test_wrong_files_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert "error:" in refused(["--config", str(file)], capsys)


def test_help_shows_every_field_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(Outer, ["--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "What the outer one is for." in said
    assert "--loop.steps INT how many steps, at most 100 % (default: 30)" in said
    assert "--name STR (required)" in said and "--limit none|FLOAT (default: none)" in said
    assert "loop options" in said and "--config FILE" in said


def test_flat_settings_are_plain_values() -> None:
    flat = flatten(Outer("n"))
    assert flat["loop.steps"] == 30 and flat["styles"] == ["standard"] and "loop" not in flat


def test_a_command_line_builds_the_config_it_was_made_of() -> None:
    argv = [
        "--arm",
        "direct",
        "--store",
        "my scenes",
        "--curriculum.temperature",
        "0.5",
        "2.0",
        "--loop.compile",
        "true",
    ]
    config = parse_config(AuroraConfig, argv)
    words = shlex.split(command_line("train.aurora", config))
    assert words[:3] == ["python", "-m", "train.aurora"] and len(words) == 3 + len(argv)
    assert parse_config(AuroraConfig, words[3:]) == config
    assert command_line("train.aurora", AuroraConfig()) == "python -m train.aurora"
    assert parse_config(Outer, ["--name=-n"]).name == "-n"
