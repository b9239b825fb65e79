"""The page about fine-tuning: its commands run as written, its settings exist, its example is what its script makes."""

from __future__ import annotations

import json
import os
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_commands import ROOT, commands, execute, like_a_checkout

from perception.vocabulary.names import PerceptionVocabulary
from train.finetune import FinetuneConfig
from train.loop.command_line import flatten

pytest.importorskip("peft")
PAGE = (ROOT / "docs" / "fine_tune.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    with like_a_checkout(tmp_path) as folder:
        yield folder


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
def test_the_commands_of_the_page_run(checkout: Path, capsys: Any) -> None:
    for words in commands(PAGE, run=True):
        execute(words)
    said = capsys.readouterr().out
    assert "done: 4 steps" in said and "done: 2 steps" in said and "GB per device" in said
    for name in ("own", "lora"):
        assert (checkout / "runs" / name / "model" / "model.safetensors").stat().st_size > 0
    check_request(checkout)


def check_request(checkout: Path) -> None:
    """What the serving example sends: the image, the question, and a grammar over the ids of the model's folder."""
    example = runpy.run_path("examples/serve_with_vllm.py")
    image = checkout / "examples" / "own_questions" / "scene-01.png"
    body = json.loads(json.dumps(example["request"]("runs/own/model", image, "How many cubes are there?")))
    vocabulary = PerceptionVocabulary.load(Path("runs/own/model"))
    grammar = body["structured_outputs"]["grammar"]
    assert f"boxes: <[{vocabulary.start_id('boxes')}]>" in grammar
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert body["skip_special_tokens"] is False


def test_commands_that_are_not_run_name_settings_and_files_that_exist() -> None:
    known, words = set(flatten(FinetuneConfig())), [w for command in commands(PAGE, run=False) for w in command]
    trained = [c for c in commands(PAGE, run=False) if "train.finetune" in c]
    for command in trained:
        flags = command[command.index("train.finetune") :]
        assert {w[2:] for w in flags if w.startswith("--")} <= known
    assert all((ROOT / word).is_file() for word in words if word.startswith(("train/", "examples/")))
    named = set(re.findall(r"`--((?:data|loop)\.[\w.]+)", PAGE))
    assert named and named <= known
    assert all((ROOT / "train/configs/accelerate" / name).is_file() for name in re.findall(r"`(\w+\.yaml)`", PAGE))


def test_the_example_is_what_its_script_makes(tmp_path: Path) -> None:
    folder = ROOT / "examples" / "own_questions"
    runpy.run_path(str(folder / "render.py"))["main"](tmp_path)
    assert (tmp_path / "questions.csv").read_text() == (folder / "questions.csv").read_text()
    assert sorted(os.listdir(tmp_path)) == sorted(p.name for p in folder.iterdir() if p.suffix in (".png", ".csv"))
