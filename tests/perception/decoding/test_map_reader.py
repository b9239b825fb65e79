"""Executed reading: the package writes what the drawn map says at the points that the model names."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_perception import build_perception

from perception.chains import DEPTH_FIRST, encode_target
from perception.decoding.decoder import SpanDecoder
from perception.model.perception_model import PerceptionModel, Places, Prompt
from perception.model.shipped import shipped
from perception.tokenizers.depth import readings_at
from perception.vocabulary.names import Span

QUESTION = f"Which point is closest, A or B? {DEPTH_FIRST}"
DEPTH, POINT = Span("depth", (1, 7, 3, 4)), Span("points", (8, 1))
KNOWN = ((0.83, 0.15), (0.25, 0.25))
"""Places in the bins 8, 1 and 2, 2 of 10 x 10"""


def build(seed: int) -> PerceptionModel:
    """A random model whose random maps differ in what they show."""
    model = build_perception(seed)
    assert model.depth_tokenizer is not None
    with torch.no_grad():
        model.depth_tokenizer.codebook.mul_(20)
    return model


def forced(model: PerceptionModel, *parts: str | Span) -> tuple[int, ...]:
    return tuple(encode_target(model.processor.tokenizer, model.vocabulary, parts))


def prompt(
    model: PerceptionModel, *parts: str | Span, question: str = QUESTION, seed: int = 0, points: Places = ()
) -> Prompt:
    image = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    return Prompt(image, question, "depth", forced(model, *parts), points)


def written(model: PerceptionModel, asked: Prompt, **settings) -> list[int]:
    """Ids behind the forced ones; the package reads, unless settings say otherwise."""
    return model.generate_ids([asked], 20, **{"read": "decoded", **settings})[0][len(asked.forced) :]


def reading(model: PerceptionModel, depth: Span, point: Span) -> tuple[int, ...]:
    """Ids of what the decoded map says at the middle of the point's bin."""
    assert model.depth_tokenizer is not None
    with torch.no_grad():
        nearness = model.depth_tokenizer.decode(torch.tensor(depth.codes)[None])
    place = (np.asarray(point.codes, np.float32)[None] + 0.5) / model.vocabulary.num_locations
    return forced(model, f" {readings_at(nearness, place)[0]},")


def starts(ids: list[int], begin: tuple[int, ...]) -> bool:
    return tuple(ids[: len(begin)]) == begin


@pytest.mark.parametrize("seed", range(4))
def test_the_reading_of_the_decoded_map_follows_the_point(seed):
    model = build(seed)
    asked = prompt(model, DEPTH, " A", POINT)
    right = reading(model, DEPTH, POINT)
    assert starts(written(model, asked), right)
    assert not starts(written(model, asked, read="model"), right), "a random model does not read maps"


def test_an_edited_cell_changes_the_reading():
    model = build(0)
    other = Span("depth", (1, 0, 3, 4))  # the cell of the point: bins 8, 1 of 10 lie in the upper right of 2 x 2
    assert reading(model, DEPTH, POINT) != reading(model, other, POINT)
    assert starts(written(model, prompt(model, other, " A", POINT)), reading(model, other, POINT))


def test_known_points_are_written_with_what_the_map_shows_there():
    model = build(0)
    first, second = reading(model, DEPTH, POINT), reading(model, DEPTH, Span("points", (2, 2)))
    whole = (*forced(model, " A", POINT), *first, *forced(model, " B", Span("points", (2, 2))), *second)
    for begun in range(len(whole)):
        asked = prompt(model, DEPTH, points=KNOWN)
        asked = replace(asked, forced=asked.forced + whole[:begun])
        found = model.generate_ids([asked], 60)[0][len(asked.forced) :]
        assert starts(found, whole[begun:]), "also where the answer was begun with a part of it"
    with pytest.raises(ValueError, match="written where the package reads the map"):
        written(model, prompt(model, DEPTH, points=KNOWN), read="model")


def test_points_given_to_ask_are_marked_and_lettered():
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    picture = np.full((40, 60, 3), 128, np.uint8)
    answer = model.ask(picture, "Which point is closest?", points=KNOWN)
    assert [span.codes for span in answer.spans[1:]] == [(83, 15), (25, 25)] and answer.value in ("A", "B")
    marked = np.asarray(model.marked(picture, KNOWN))
    side = len(marked)
    assert (marked != 128).any(-1)[side // 4, side // 4] and not (marked != 128).any(-1)[side // 2 :].any()
    named = model.ask(picture, "Which is farther from the camera, A or B?", points=KNOWN)
    assert [span.codes for span in named.spans[1:]] == [(83, 15), (25, 25)]
    assert model.ask(picture, "Which point is closest?", "direct", points=KNOWN).mode == "direct"
    model.ask(model.prepare_image(picture), "Which point is closest?", read="model", points=KNOWN)  # finds them itself


@pytest.mark.parametrize(
    ("points", "question", "said"),
    [
        ([(0.5, 0.5), (0.505, 0.5)], "Which is closest?", "two points are less than 0.01 apart, too close to compare"),
        ([(0.5, 0.5)], "Which is closest?", r"two to 5 places \(x, y\), got an array of shape \(1, 2\)"),
        ([(0.5, 0.5), (0.2,)], "Which is closest?", r"two to 5 places \(x, y\), got \[\(0.5, 0.5\), \(0.2,\)\]"),
        (["a", "b"], "Which is closest?", r"two to 5 places \(x, y\), got \['a', 'b'\]"),
        ([(0.5, 0.5), (0.2, 1.2)], "Which is closest?", r"must lie in \[0, 1\]"),
        ([(50, 50), (20, 12)], "Which is closest?", "divide pixels by these"),
        (KNOWN, "How many cups are there?", "points go with a question of depth"),
        (KNOWN, "Which is closest, A, B or C?", "names the points A, B, C and 2 places are given, which are A or B"),
    ],
)
def test_points_that_do_not_fit_are_refused(points, question, said):
    with pytest.raises(ValueError, match=said):
        build(0).ask(np.zeros((8, 8, 3), np.uint8), question, points=points)


def test_a_half_written_reading_is_finished():
    model = build(0)
    right = reading(model, DEPTH, POINT)
    assert len(right) > 1, "the tiny tokenizer writes letters"
    for count in range(1, len(right)):
        asked = prompt(model, DEPTH, " A", POINT)
        asked = Prompt(asked.image, asked.question, "depth", asked.forced + right[:count])
        assert starts(written(model, asked), right[count:])


@pytest.mark.parametrize("window", [2, 5, 40])
def test_plain_fast_batched_and_streamed_answers_are_the_same(window):
    model = build(2)
    model.decoder, other = SpanDecoder(model.model, model.grammar, window), Span("depth", (1, 0, 3, 4))
    batch = [
        prompt(model, DEPTH, " A", POINT),
        prompt(model, DEPTH, " A", Span("points", (2, 2)), seed=1),
        prompt(model, DEPTH, seed=2),
        prompt(model, question="How many red cubes are there?", seed=3),
        prompt(model, seed=4, points=KNOWN),
        prompt(model, other, " A", seed=5, points=KNOWN),
    ]
    plain = model.generate_ids(batch, 40, "decoded", fast=False)
    for _ in range(2):  # the second time each answer is its own draft
        assert model.generate_ids(batch, 40, "decoded") == plain
    assert [model.generate_ids([one], 40, "decoded")[0] for one in batch] == plain
    assert [list(model.stream_ids(one, 40, "decoded"))[-1] for one in batch] == plain


def test_sampled_answers_hold_the_reading_too():
    model = build(1)
    asked = prompt(model, DEPTH, " A", POINT)
    torch.manual_seed(0)
    for settings in ({"do_sample": True}, {"do_sample": True, "fast": False}, {"num_beams": 2}):
        assert starts(written(model, asked, **settings), reading(model, DEPTH, POINT)), settings


@pytest.mark.parametrize(
    ("parts", "question"),
    [
        ((" A", POINT), QUESTION),  # no map
        ((DEPTH, " A", Span("points", (8, 1, 2, 2))), QUESTION),  # two points in one span: a list of marks
        ((DEPTH, " A", POINT), "Which point is closest, A or B?"),  # answers directly
        ((DEPTH, " A", POINT, " no"), QUESTION),  # the model went on already
    ],
)
def test_elsewhere_the_model_is_free(parts, question):
    model = build(0)
    asked = prompt(model, *parts, question=question)
    assert written(model, asked) == written(model, asked, read="model")


def test_what_cannot_be_read_is_refused():
    model = build(0)
    with pytest.raises(ValueError, match="read must be one of decoded, model, got 'aloud'"):
        model.ask(np.zeros((8, 8, 3), np.uint8), "Which point is closest?", read="aloud")  # type: ignore[arg-type]
    without = PerceptionModel(model.model, model.processor, model.vocabulary)
    with pytest.raises(ValueError, match="needs a depth tokenizer"):
        without.ask(np.zeros((8, 8, 3), np.uint8), "Which point is closest?", read="decoded")
    asked = prompt(model, DEPTH, " A", POINT)
    assert without.generate_ids([asked], 20) == model.generate_ids([asked], 20, "model"), "else the model reads"
    assert model.generate_ids([asked], 20) == model.generate_ids([asked], 20, "decoded"), "with one the package reads"
