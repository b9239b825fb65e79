"""One server for all tests of the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from demo_server import ROOT, Server


def untrained_reasoner(folder: Path) -> Path:
    """A folder of a model that reasons over regions, for want of a better one: the shipped model with an untrained
    selector, that looks at the start and behind its first tokens."""
    import torch

    from perception.interleave import VisualTokenSelector
    from perception.model import PerceptionModel

    source = ROOT / "models" / "aurora-tiny"
    shutil.copytree(source, folder)
    perception = PerceptionModel.from_pretrained(source)
    torch.manual_seed(0)
    VisualTokenSelector.for_model(perception.model, perception.vocabulary.interleave_id).save(folder)
    settings = {"trigger": "headings", "heading": "^|.", "max_looks": 3}
    (folder / "interleave_settings.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("gradio")
    temporary = tmp_path_factory.mktemp("demos")
    reasoner = untrained_reasoner(tmp_path_factory.mktemp("models") / "reasoner")
    running = Server(temporary, ["--reasoner", str(reasoner)])
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)
