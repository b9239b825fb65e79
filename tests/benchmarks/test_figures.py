"""The README's picture, of a model that does not think."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import figures
from perception.chains import Answer
from perception.evaluation.report import drawn_answer, spans_to_draw
from perception.tokenizers import BoxTokenizer
from perception.vocabulary.names import Span
from vqvae import VQVAE, VQVAEConfig


class Oracle:
    """Draws the same thing whatever it sees, and says 4 or A."""

    def __init__(self) -> None:
        self.vocabulary = SimpleNamespace(num_locations=100)
        small = VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)
        self.depth_tokenizer = VQVAE(small).eval()

    def ask(self, image: Any, text: str, mode: str) -> Answer:
        assert mode == "chain"
        if text.startswith("How many"):
            return Answer("4.", (Span("boxes", (10, 20, 40, 60, 50, 50, 90, 80)),), 4)
        spans = (Span("depth", (0, 3, 5, 7)), Span("points", (10, 20)), Span("points", (40, 60)))
        return Answer("A 90, B 20, so A.", spans, "A")


def test_the_sheet_shows_image_drawing_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RENDERED", 64)
    model: Any = Oracle()
    answers = [figures.first_answer(model, kind, "standard", 7, whatever=True) for kind in ("count", "depth")]
    sheet = figures.answer_sheet(model, answers)
    assert 900 <= sheet.width <= 1100
    corner = np.asarray(sheet)[:20, :20]
    assert (corner == 255).all() and np.asarray(sheet).std() > 20
    assert figures.drawn_panel(model, answers[0])[1] == "2 boxes"
    assert figures.drawn_panel(model, answers[1])[1] == "4 depth tokens, 2 points"


def test_points_named_one_by_one_are_lettered_as_one_set_over_the_map() -> None:
    model: Any = Oracle()
    answer = model.ask(None, "Which point is closest?", "chain")
    assert spans_to_draw(answer.spans) == [answer.spans[0], Span("points", (10, 20, 40, 60))]
    image = Image.new("RGB", (64, 64))
    with_points, map_alone = drawn_answer(model, image, answer), drawn_answer(model, image, answer_of_map(answer))
    assert with_points.size == map_alone.size and with_points.tobytes() != map_alone.tobytes()


def answer_of_map(answer: Answer) -> Answer:
    return Answer(answer.text, answer.spans[:1], answer.value)


def faultless(answer: Answer, places: np.ndarray, true: Any) -> bool:
    question = figures.Question("?", Any, true, places)  # type: ignore[arg-type]
    return figures.Answered(question, answer).faultless(100)


def test_every_box_must_be_right() -> None:
    boxes = np.array([[0.105, 0.205, 0.405, 0.605], [0.505, 0.505, 0.905, 0.805]])
    answer = Answer("2.", (Span("boxes", (10, 20, 40, 60, 50, 50, 90, 80)),), 2)
    assert faultless(answer, boxes, 2)
    assert not faultless(answer, boxes - np.array([0.1, 0.2, 0, 0]), 2)  # a box that reaches over another thing
    assert not faultless(answer, boxes[:1], 2) and not faultless(answer, boxes, 3)


def test_every_point_must_be_right_and_no_readings_may_tie() -> None:
    points = np.array([[0.105, 0.205], [0.405, 0.605]])
    spans = (Span("depth", (0,)), Span("points", (10, 20)), Span("points", (40, 60)))
    answer = Answer("A 90, B 20, so A.", spans, "A")
    assert faultless(answer, points, "A")
    assert not faultless(answer, points[::-1], "A")
    assert not faultless(Answer("A 43, B 43, so A.", spans, "A"), points, "A")


def test_scenes_are_searched_until_every_detail_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "RENDERED", 64)
    asked = list(itertools.islice(figures.questions("count", "standard", 7), 3))
    third = BoxTokenizer(100).encode(asked[2].places)
    monkeypatch.setattr(figures, "_TRIES", 3)
    monkeypatch.setattr(Oracle, "ask", lambda *_, **__: Answer("", (Span("boxes", tuple(third)),), asked[2].answer))
    found = figures.first_answer(Oracle(), "count", "standard", 7)  # type: ignore[arg-type]
    assert np.array_equal(found.question.places, asked[2].places)
    monkeypatch.setattr(Oracle, "ask", lambda *_, **__: Answer("", (), None))
    monkeypatch.setattr(figures, "_TRIES", 2)
    with pytest.raises(ValueError, match=r"answers none of 2 count questions without a fault; train it longer"):
        figures.first_answer(Oracle(), "count", "standard", 7)  # type: ignore[arg-type]


def test_a_missing_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert figures.main(["--model", str(tmp_path / "no"), "--out", str(tmp_path / "a.png")]) == 2
    assert "does not exist" in capsys.readouterr().err and not (tmp_path / "a.png").exists()
