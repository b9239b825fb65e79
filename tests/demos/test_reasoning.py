"""The reasoning tab without Gradio, on the shipped model of figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio")

from demos import reasoning
from demos.app import build_demo
from demos.guards import Refused
from demos.handlers import EXAMPLES
from demos.offers import of_scenes
from perception.interleave.reasoner import Reasoner, Reasoning, ReasoningStep
from perception.model.perception_model import PerceptionModel

FIGURE = sorted(EXAMPLES.glob("chart-*.png"))[0]


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return PerceptionModel.from_pretrained("models/aurora-tiny")


@pytest.fixture(scope="module")
def reasoner() -> Reasoner:
    return Reasoner.from_pretrained("models/chart-tiny")


def test_every_step_has_a_picture_and_words(reasoner: Reasoner) -> None:
    view = reasoning.solve(reasoner, str(FIGURE), "Find A + F.")
    assert len(view.pictures) == len(view.words) >= 1
    assert view.pictures[0].height > view.pictures[0].width, "the figure, and below it what the look brought in"
    assert view.cost.endswith("of looks") and not view.cost.endswith(" 0 of looks")
    assert all("looked at" in said for said in view.words)
    assert view.text.startswith("1. ")
    assert view.answer.isdigit()


def test_steps_are_counted_and_named(monkeypatch: pytest.MonkeyPatch, reasoner: Reasoner) -> None:
    cells = np.zeros((10, 10), dtype=bool)
    cells[2, 3] = True
    steps = (ReasoningStep("angle A is 50.", cells, cells.astype(np.float32), 1),) * 2
    whole = Reasoning(Image.open(FIGURE).convert("RGB"), "..", steps, "130", 102)
    monkeypatch.setattr(reasoner, "solve", lambda *_: whole)
    view = reasoning.solve(reasoner, str(FIGURE), "Find A + F.")
    assert view.answer == "130"
    assert view.words == ("angle A is 50.  (looked at 1 place)",) * 2
    assert view.cost == "102: 100 of the figure, 2 of looks"
    monkeypatch.setattr(reasoner, "solve", lambda *_: Reasoning(whole.image, "", (), None, 100))
    with pytest.raises(Refused, match="no step"):
        reasoning.solve(reasoner, str(FIGURE), "Find A + F.")


def test_what_is_refused(reasoner: Reasoner, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(Refused, match="no image"):
        reasoning.solve(reasoner, str(tmp_path / "text.png"), "Find A + F.")
    with pytest.raises(Refused, match="write a question"):
        reasoning.solve(reasoner, str(FIGURE), " ")


def test_the_tab_is_there_where_a_model_reasons(model: PerceptionModel, reasoner: Reasoner) -> None:
    offered = {"scenes": of_scenes(model)}
    with_tab, without = build_demo(offered, reasoner), build_demo(offered)
    named = [{d.api_name for d in demo.fns.values()} for demo in (with_tab, without)]
    assert "reason" in named[0]
    assert "reason" not in named[1]
