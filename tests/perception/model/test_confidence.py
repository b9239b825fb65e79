"""The probability that a model gives its own decisions, with scores that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_perception import NUM_LOCATIONS, build_perception

from perception.chains import BOXES_FIRST, DEPTH_FIRST, Answer
from perception.model.perception_model import PerceptionModel, Prompt
from perception.model.shipped import shipped
from perception.vocabulary.names import Span

IMAGE = np.zeros((20, 30, 3), np.uint8)
BOXES = Span("boxes", (1, 1, 5, 5, 2, 2, 8, 8))


def scored(**logits: float) -> PerceptionModel:
    """A model that gives these logits to tokens wherever it is asked, -30 to other text and 0 to the rest."""
    model = build_perception(0)
    vocabulary, tokenizer = model.vocabulary, model.processor.tokenizer
    row = torch.full((model.model.lm_head.out_features,), -30.0)
    row[list(vocabulary.ids.values())] = 0.0
    for name, value in logits.items():
        row[vocabulary.end_id("boxes") if name == "END" else tokenizer.convert_tokens_to_ids(name)] = value
    model.model.lm_head.register_forward_hook(lambda module, args, out: row.expand_as(out))
    return model


def ids_of(model: PerceptionModel, *parts: str | Span) -> tuple[int, ...]:
    ids: list[int] = []
    for part in parts:
        text = model.vocabulary.encode_plain
        ids += model.vocabulary.span_ids(part) if isinstance(part, Span) else text(model.processor.tokenizer, part)
    return tuple(ids)


def test_it_counts_whether_another_box_follows_and_the_number():
    """Two boxes: twice another one, then none; where they lie does not count."""
    model = scored(END=math.log(NUM_LOCATIONS), **{"7": 60.0, "8": 60.0})
    prompt = Prompt(IMAGE, f"How many? {BOXES_FIRST}", "count")
    ids = ids_of(model, BOXES, "7")
    assert model.confidence(prompt, ids) == pytest.approx(0.5**3 * 0.5, rel=1e-4)
    assert model.confidence(prompt, ids[:-1]) == pytest.approx(0.5**3, rel=1e-4)
    begun = Prompt(IMAGE, prompt.question, "count", ids_of(model, BOXES))
    assert model.confidence(begun, ids) == pytest.approx(0.5, rel=1e-4), "forced boxes are no decisions"
    assert model.confidence(begun, begun.forced) == 1.0


def test_it_leaves_out_the_reading_of_a_map():
    model = scored(**{"4": 0.0, "5": 60.0, "B": 60.0, ",": 0.0})
    prompt = Prompt(IMAGE, f"Which point is closest, A or B? {DEPTH_FIRST}", "depth")
    ids = ids_of(model, Span("depth", (1, 2, 3, 4)), Span("points", (1, 2)), "44,", "B")
    assert model.confidence(prompt, ids) == pytest.approx(0.5, rel=1e-4)


def test_ask_gives_it_and_says_where_it_is_low():
    model = scored(**{"</s>": 60.0, "7": 59.0, "8": 59.0})
    answer = model.ask(IMAGE, "How many cubes are there?", "direct")
    assert 0 <= answer.confidence <= 1
    assert model.ask_many([IMAGE], ["How many cubes are there?"], "direct")[0] == answer, "of ask alone, not compared"
    assert Answer("7", (), 7).doubt == "" and Answer("7", (), 7, confidence=0.5).doubt == ""
    unsure = Answer("7", (), 7, confidence=0.314).doubt
    assert unsure == "the model is unsure: it gives this answer a probability of 31 %"


def test_a_list_that_fills_its_room_says_so() -> None:
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    picture = "demos/examples/scene-standard-70000008.png"
    whole, cut = (model.ask(picture, "How many objects are there?", max_new_tokens=n) for n in (None, 14))
    assert (whole.value, whole.warning) == (3, "")
    assert cut.warning.startswith("there was no room for more than")
