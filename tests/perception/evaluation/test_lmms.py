"""The adapter for lmms-eval, with lmms-eval itself where it is installed, else with its base class alone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_perception import build_perception

from perception.chains import Answer
from perception.model.perception_model import PerceptionModel, Prompt


@dataclass
class Request:
    """As lmms-eval makes them for tasks that generate."""

    args: tuple[Any, ...]


class StandIn:
    """Of `lmms_eval.api.model.lmms`, what the adapter uses."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Any:
    if importlib.util.find_spec("lmms_eval") is None:
        for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["lmms_eval.api.model"].lmms = StandIn  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, "perception.evaluation.lmms", raising=False)
    yield importlib.import_module("perception.evaluation.lmms")
    sys.modules.pop("perception.evaluation.lmms", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build_perception().save_pretrained(path)
    return path


def requests(model: Any, questions: list[str], **settings: Any) -> list[Request]:
    documents = [{"image": Image.new("RGB", (32, 32), (50 * n, 90, 90))} for n in range(len(questions))]
    model.task_dict = {"blink": {"val": documents}}
    look = lambda document: [document["image"]]  # noqa: E731
    return [Request((text, dict(settings), look, n, "blink", "val")) for n, text in enumerate(questions)]


@pytest.mark.parametrize("mode", ["chain", "direct"])
def test_answers_are_the_model_s_own(adapter: Any, folder: Path, mode: str) -> None:
    model = adapter.PerceptionLmms(str(folder), mode=mode, batch_size="2", max_new_tokens=76)
    questions = ["<image>\nHow many cubes are there?", "What is this?", "Which point is closest?"]
    asked = requests(model, questions, max_new_tokens=4)
    found = model.generate_until(asked)
    own = PerceptionModel.from_pretrained(folder)
    limit = 80 if mode == "chain" else 4
    for n, question in enumerate(questions):
        image = model.task_dict["blink"]["val"][n]["image"]
        text = question.removeprefix("<image>\n")
        assert found[n] == own.ask(image, text, "auto" if mode == "chain" else "direct", limit).text


def test_where_a_question_lists_options_the_answer_is_a_letter(
    adapter: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapter.PerceptionLmms(str(folder), mode="chain", max_new_tokens=76)
    suffix = "\nAnswer with the option's letter from the given choices directly."
    questions = {
        f"How many cubes are there?\n(A) 3\n(B) 2{suffix}": "B",
        f"Which point is closer?\nA. A is closer\nB. B is closer{suffix}": "B",
        f"How many cubes are there?\n(A) 3\n(B) 4{suffix}": "2 cubes.",
        "How many cubes are there?": "2 cubes.",
        f"What is it?\n(A) a cube\n(B) 2 cubes{suffix}": "2 cubes.",
    }

    def answer(prompts: list[Prompt], _: int) -> list[Answer]:
        return [Answer("so B." if "closer" in prompt.question else "2 cubes.", (), None) for prompt in prompts]

    monkeypatch.setattr(model.perception, "answer", answer)
    assert model.generate_until(requests(model, list(questions))) == list(questions.values())


def test_stop_words_and_what_cannot_be_done(adapter: Any, folder: Path) -> None:
    model = adapter.PerceptionLmms(str(folder), mode="direct", max_new_tokens=8)
    (whole,) = model.generate_until(requests(model, ["What is this?"]))
    letter = next(c for c in whole if c.strip())
    (cut,) = model.generate_until(requests(model, ["What is this?"], until=[letter]))
    assert cut == whole.split(letter)[0].strip()
    asked = requests(model, ["What is this?"])
    model.task_dict["blink"]["val"][0] = {"image": "none"}
    with pytest.raises(ValueError, match="blink, document 0: got 0 images"):
        model.generate_until(asked)
    with pytest.raises(NotImplementedError, match="choose a task that generates"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="unknown mode 'both'"):
        adapter.PerceptionLmms(str(folder), mode="both")
    with pytest.raises(ValueError, match="unknown model_args colour"):
        adapter.PerceptionLmms(str(folder), colour="red")


def test_lmms_eval_finds_it(adapter: Any) -> None:
    known = pytest.importorskip("lmms_eval.models.registry_v2")
    models = known.ModelRegistryV2()
    models.register_manifest(adapter.manifest())
    assert models.resolve("perception_tokens").class_path == "perception.evaluation.lmms.PerceptionLmms"
