"""Command lines: what wins over what, and that nothing unknown passes."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import pytest

from perception.datasets.interleaved.keywords import KEYWORD_MAKERS, KeywordMaker
from perception.datasets.interleaved.ocr import OCR_ENGINES, OcrEngine
from perception.scenes.styles import STYLES, StyleName
from train.aurora import AuroraConfig
from train.data.interleaved import REGIONS, RegionName
from train.finetune import FinetuneConfig
from train.interleave import InterleaveConfig
from train.loop.command_line import command_line, flatten, parse_config
from train.prepare import PrepareConfig
from train.prepare_interleave import PrepareInterleaveConfig
from train.reinforce import ReinforceConfig
from train.reinforce_scenes import REWARDS, SceneReinforceConfig, Task


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
    grid: tuple[int, int] | None = None
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
    argv = ["--name", "n", "--on=no", "--limit", "none", "--span", "1", "2", "--grid", "4", "5", f"--config={file}"]
    assert parse_config(Outer, argv) == Outer("n", span=(1.0, 2.0), grid=(4, 5), loop=Inner(steps=30, rate=1.0))


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
        "--data.scenes.store",
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


@pytest.mark.parametrize(
    ("config_class", "argv"),
    [
        (InterleaveConfig, ["--stage", "both"]),
        (InterleaveConfig, ["--regions", "circles"]),
        (InterleaveConfig, ["--trigger", "never"]),
        (InterleaveConfig, ["--loop.schedule", "linear"]),
        (ReinforceConfig, ["--selection", "greedy"]),
        (ReinforceConfig, ["--data.split", "validation"]),
        (SceneReinforceConfig, ["--task", "colour"]),
        (SceneReinforceConfig, ["--style", "baroque"]),
        (PrepareConfig, ["--engine", "spark", "--images", "a", "--out", "b"]),
        (PrepareConfig, ["--teachers.depth", "midas", "--images", "a", "--out", "b"]),
        (PrepareInterleaveConfig, ["--making.ocr", "psychic", "--data", "a", "--out", "b"]),
    ],
)
def test_choices_that_do_not_exist_are_refused_with_those_that_do(
    config_class: type, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(config_class, argv)
    assert stop.value.code == 2
    assert f"invalid choice '{argv[1]}' for argument '{argv[0]}'. Expected one of (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (StyleName, STYLES),
        (RegionName, REGIONS),
        (OcrEngine, OCR_ENGINES),
        (KeywordMaker, KEYWORD_MAKERS),
        (Task, REWARDS),
    ],
)
def test_choices_are_the_keys_of_their_tables(names: Any, table: dict[str, Any]) -> None:
    assert get_args(names) == tuple(table)


@pytest.mark.parametrize(
    ("out", "run_dir", "said"),
    [
        (
            "mine",
            "run",
            "--out mine holds sub, thesis.txt and no model, and would be replaced by one; name a new folder",
        ),
        ("new", "new", "--out new would take the place of --run_dir new; name another folder"),
        ("model", "model/run", "--out model would take the place of --run_dir model/run"),
        ("mine/thesis.txt", "run", "--out mine/thesis.txt is a file; name a folder"),
        ("new", "mine/thesis.txt/run", "--run_dir mine/thesis.txt/run cannot be written"),
        ("/proc/new", "run", "--out /proc/new cannot be written"),
    ],
)
def test_folders_that_a_run_may_not_write_are_refused_before_it_begins(
    out: str,
    run_dir: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.txt").write_text("thesis")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        parse_config(FinetuneConfig, ["--out", out, "--run_dir", run_dir])
    assert stop.value.code == 2 and said in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "thesis"


def test_a_model_an_empty_folder_and_a_new_one_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    for out in ("empty", "model", "new/deep"):
        config = parse_config(FinetuneConfig, ["--out", str(tmp_path / out), "--run_dir", str(tmp_path / "run")])
        assert config.out == str(tmp_path / out)
    assert not (tmp_path / "new" / "deep").exists()
