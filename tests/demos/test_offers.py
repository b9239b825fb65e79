"""Which models the page offers, with which examples, and what a choice between them does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_perception import build_perception

pytest.importorskip("gradio")

from demos import app, offers
from demos.guards import Refused, read_image
from demos.handlers import EXAMPLES, scene_examples
from demos.offers import PHOTOGRAPHS, SCENES, Offer
from perception.chains import kind_of_question
from perception.model.perception_model import PerceptionModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny models."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("photo-tiny", "aurora-tiny")):
        model = build_perception(seed)
        model.model.config.trained_on = f"pictures of {name}"
        model.save_pretrained(folder / name)
    return folder


def offered(models: Path, monkeypatch: pytest.MonkeyPatch, photographs: bool) -> dict[str, Offer]:
    def shipped(name: str) -> Path:
        if name == "photo-tiny" and not photographs:
            raise ValueError(f"nothing called {name!r} ships")
        return models / name

    monkeypatch.setattr(offers, "shipped", shipped)
    return offers.offers(None, "cpu")


def function(demo: Any, api_name: str) -> Any:
    return next(one.fn for one in demo.fns.values() if one.api_name == api_name)


def radios(demo: Any) -> list[Any]:
    return [block for block in demo.blocks.values() if getattr(block, "label", "") == "Model for"]


def texts(demo: Any) -> list[str]:
    return [block.value for block in demo.blocks.values() if type(block).__name__ == "Markdown"]


def test_the_model_for_photographs_comes_first_where_it_is_installed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = offered(models, monkeypatch, photographs=True)
    assert list(found) == [PHOTOGRAPHS, SCENES]
    assert found[PHOTOGRAPHS].model.trained_on == "pictures of photo-tiny"
    assert [path.name for path, _ in found[SCENES].examples] == [path.name for path in scene_examples()]
    demo = app.build_demo(found)
    assert [(radio.value, radio.visible) for radio in radios(demo)] == [(PHOTOGRAPHS, True)] * 2
    assert (
        "The model for photographs was trained on pictures of photo-tiny. The model for rendered scenes was trained on "
        "pictures of aurora-tiny. Of other pictures they know little."
    ) in texts(demo)
    datasets = [block for block in demo.blocks.values() if type(block).__name__ == "Dataset"]
    shown = [block.visible for block in datasets if "photo-" in str(block.samples) or "scene-" in str(block.samples)]
    assert shown == [True, False, True, False], "counting, then depth"
    assert offers.shown_examples(found)(SCENES) == [
        {"visible": False, "__type__": "update"},
        {"visible": True, "__type__": "update"},
    ]


def test_without_it_the_page_is_as_ever(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = offered(models, monkeypatch, photographs=False)
    assert list(found) == [SCENES]
    demo = app.build_demo(found)
    assert [radio.visible for radio in radios(demo)] == [False, False]
    said = "The model of the first two tabs was trained on pictures of aurora-tiny. Of other pictures it knows little."
    assert said in texts(demo)


def test_a_model_that_is_named_is_the_only_one(models: Path) -> None:
    (name,) = offers.offers(str(models / "photo-tiny"), "cpu")
    assert name == "photo-tiny"


def test_a_named_model_is_shown_with_pictures_that_it_can_answer_about() -> None:
    for name in ("photo-tiny", "aurora-tiny"):
        (offer,) = offers.offers(name, "cpu").values()
        for path, question in offer.examples:
            assert path.is_file() and not offer.model.strange(question)


def test_the_chosen_model_answers(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = offered(models, monkeypatch, photographs=True)
    demo, asked = app.build_demo(found), []
    monkeypatch.setattr(
        PerceptionModel, "stream_ids", lambda self, prompt: asked.append(self) or iter([self.generate_ids([prompt])[0]])
    )
    example = str(EXAMPLES / "photo-coffee.jpg")
    for name, model in ((None, PHOTOGRAPHS), (PHOTOGRAPHS, PHOTOGRAPHS), (SCENES, SCENES)):
        asked.clear()
        *_, last = function(demo, "count")(example, "How many cups are there?", name)
        assert last[1] and set(map(id, asked)) == {id(found[model].model)}
        asked.clear()
        *_, last = function(demo, "depth")(example, [[0.2, 0.9], [0.7, 0.4]], name)
        assert last[1] and set(map(id, asked)) == {id(found[model].model)}
    with pytest.raises(Refused, match="there is no model 'other' here; there is photographs, rendered scenes"):
        offers.find_offer(found, "other")


def test_photographs_are_small_and_each_has_a_counting_question_and_a_source() -> None:
    sources = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in EXAMPLES.glob("*.jpg")} == set(offers.PHOTO_QUESTIONS)
    for name, question in offers.PHOTO_QUESTIONS.items():
        path = EXAMPLES / name
        assert path.stat().st_size <= 60_000 and f"`{name}`" in sources
        assert kind_of_question(question) == "count"
        with Image.open(path) as image:
            assert image.format == "JPEG" and not image.getexif()
        assert min(read_image(path).size) >= 300
