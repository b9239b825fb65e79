"""The page about sharing: its commands run as written, and those that need the hub name commands that exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from page_commands import ROOT, commands, execute, like_a_checkout
from typer.testing import CliRunner

from perception import cli
from perception.model.perception_model import PerceptionModel
from vqvae.published import NORMALISATIONS

pytest.importorskip("peft")
PAGE = (ROOT / "docs" / "share.md").read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import.*:RuntimeWarning")
def test_the_commands_of_the_page_run(tmp_path: Any, capsys: Any) -> None:
    with like_a_checkout(tmp_path) as checkout:
        for words in commands(PAGE, run=True):
            execute(words)
        said = capsys.readouterr().out
        assert "adapter for" in said and "tiny-base" in said and "done: 2 steps" in said
        one, whole = (
            PerceptionModel.from_pretrained(checkout / "runs" / "share" / name) for name in ("adapter", "model")
        )
        pairs = zip(one.model.parameters(), whole.model.parameters(), strict=True)
        assert all(torch.allclose(a, b, atol=2e-3, rtol=1e-3) for a, b in pairs), "up to float16, the base's precision"


def test_commands_that_are_not_run_have_settings_that_exist() -> None:
    for words in commands(PAGE, run=False):
        if words[0] == "perception":
            said = CliRunner().invoke(cli.app, [words[1], "--help"], env={"COLUMNS": "200"}).output
            assert all(word in said for word in words if word.startswith("--"))
    assert all(f"`{name}`" in PAGE.replace(f"`{name}:", f"`{name}`") for name in NORMALISATIONS)
