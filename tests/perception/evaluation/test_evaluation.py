"""Evaluation: intervals that cover, held-out questions that are true, interventions that do what they say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_perception import build_perception

from perception.answers import POINT_LETTERS
from perception.chains import BOXES_FIRST, Answer
from perception.evaluation import scenes as evaluation_scenes
from perception.evaluation.bootstrap import (
    accuracy_interval,
    bootstrap_interval,
    crossed_interval,
    paired_difference,
)
from perception.evaluation.replacement import INTERVENTIONS, forced_chains, true_span
from perception.evaluation.scenes import (
    DEPTH_COUNTS,
    HELD_OUT_SEED,
    ScoredAnswer,
    evaluate_items,
    map_order_accuracy,
    scene_items,
)
from perception.scenes.markers import marker_nearness
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import Span
from vqvae.metrics import values_at


@pytest.fixture(scope="module")
def items():
    return scene_items("standard", 6, 2)


@pytest.fixture(scope="module")
def model():
    return build_perception()


# Intervals


def test_intervals_cover_the_true_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    draws = [bootstrap_interval(rng.random(60) < 0.3, seed=i) for i in range(200)]
    covered = np.mean([d.low <= 0.3 <= d.high for d in draws])
    assert 0.9 <= covered <= 0.985


def test_intervals_are_seeded_and_shrink_with_the_data():
    values = np.random.default_rng(1).random(50)
    one = bootstrap_interval(values)
    assert one == bootstrap_interval(values) and one != bootstrap_interval(values, seed=1)
    assert one.low < one.mean < one.high and one.mean == pytest.approx(values.mean()) and one.count == 50
    more = bootstrap_interval(np.tile(values, 16))
    assert (more.high - more.low) == pytest.approx((one.high - one.low) / 4, rel=0.15)
    sure = bootstrap_interval([1.0] * 5)
    assert (sure.mean, sure.low, sure.high, str(sure)) == (1, 1, 1, "100.0 [100.0, 100.0]")
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


def test_answers_about_one_image_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for seed in range(200):
        images = np.repeat(rng.random(40) < 0.3, 3)  # three questions about each, right or wrong together
        found = bootstrap_interval(images, seed, [n // 3 for n in range(120)])
        inside.append(found.low <= 0.3 <= found.high)
    assert 0.87 <= np.mean(inside) <= 1
    values = rng.random(50)
    assert bootstrap_interval(values, groups=range(50)) == bootstrap_interval(values)
    assert accuracy_interval([1.0] * 9, "aaabbbccc").low == accuracy_interval([1.0] * 3).low
    with pytest.raises(ValueError, match="each value needs its group, got 3 values and 2 groups"):
        bootstrap_interval([0, 1, 1], groups=[0, 1])


def test_questions_about_a_single_image_say_nothing_of_others() -> None:
    found = accuracy_interval([1.0, 0.0, 1.0, 0.0], ["a"] * 4)
    assert (found.mean, found.low, found.high, found.count) == (0.5, 0, 1, 4)


def test_pairs_that_never_differ_are_not_sure_to_be_alike() -> None:
    found = paired_difference([1.0] * 20, [1.0] * 20)
    assert found.mean == 0 and found.low == -found.high and found.high == pytest.approx(0.168, abs=1e-3)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(2)
    hard = rng.random(200)
    first, second = hard + 0.1, hard + 0.01 * rng.standard_normal(200)
    paired = paired_difference(list(first), list(second))
    assert paired.low < 0.1 < paired.high and paired.high - paired.low < 0.01
    with pytest.raises(ValueError, match="of one length, got 2 and 1"):
        paired_difference([1, 2], [1])


# Held-out questions


def test_items_are_the_same_every_time_and_true(items):
    again = scene_items("standard", 6, 2)
    assert [i.group for i in items] == ["count"] * 6 + [f"depth-{n}" for n in DEPTH_COUNTS for _ in range(2)]
    for item, same in zip(items, again, strict=True):
        assert (item.question, item.answer) == (same.question, same.answer) and torch.equal(item.image, same.image)
        if item.kind == "count":
            assert item.answer == len(item.boxes_xyxy) and torch.equal(item.image, item.scene.image)
        else:
            near = marker_nearness(item.scene.depth, item.points_xy)
            assert item.answer == POINT_LETTERS[int(near.argmax())] and len(near) == int(item.group[-1])
            assert not torch.equal(item.image, item.scene.image)  # markers are drawn on it


def test_every_item_has_a_scene_of_its_own_from_the_held_out_seeds(monkeypatch):
    seeds = []
    render = evaluation_scenes.render_scenes

    def record(wanted, style):
        seeds.extend(wanted)
        return render(wanted, style)

    monkeypatch.setattr(evaluation_scenes, "render_scenes", record)
    made = scene_items("shifted", 3, 1)
    assert len({id(item.scene.objects) for item in made}) == len(made) == 7
    assert min(seeds) == HELD_OUT_SEED and len(set(seeds)) == len(seeds)


class Oracle:
    """Stands for a model that is right on every image whose first pixel is even, and notes what it was asked."""

    def __init__(self, items):
        self.answers = {item.image.numpy().tobytes(): item.answer for item in items}
        self.asked = []

    def answer(self, prompts, read=None):
        self.asked += prompts
        values = [(p, self.answers[p.image.numpy().tobytes()]) for p in prompts]
        return [Answer("", (), v if int(p.image[0, 0, 0]) % 2 == 0 else "nonsense") for p, v in values]


def test_outcomes_come_in_the_items_order(items):
    model = Oracle(items)
    forced = [[i] for i in range(len(items))]
    outcomes = evaluate_items(model, items, "chain", forced, batch_size=3)
    assert [o.group for o in outcomes] == [item.group for item in items]
    assert [o.correct for o in outcomes] == [int(item.image[0, 0, 0]) % 2 == 0 for item in items]
    places = {item.image.numpy().tobytes(): i for i, item in enumerate(items)}
    assert all(p.forced == (places[p.image.numpy().tobytes()],) for p in model.asked)
    assert all(p.question.endswith(BOXES_FIRST) == (p.kind == "count") for p in model.asked)
    direct = Oracle(items)
    evaluate_items(direct, items, "direct")
    assert {p.question for p in direct.asked} == {item.question for item in items}
    assert all(p.forced == () for p in direct.asked)


# Interventions


def spans_of(model, items, intervention, seed=0) -> list[Span]:
    """The span that stands at the head of each item's answer."""
    replaced = []
    for item, ids in zip(items, forced_chains(model, items, intervention, seed), strict=True):
        assert model.grammar.accepts(ids)
        (span,) = model.vocabulary.parse(ids)
        assert span.modality == ("boxes" if item.kind == "count" else "depth")
        replaced.append(span)
    return replaced


def test_the_oracle_s_span_is_the_truth(model, items):
    for item, span in zip(items, spans_of(model, items, "oracle"), strict=True):
        if item.kind == "count":
            assert list(span.codes) == BoxTokenizer(model.vocabulary.num_locations).encode(item.boxes_xyxy)
            assert len(span.codes) == 4 * item.answer
        else:
            codes = model.depth_tokenizer.encode(item.scene.depth[None]).flatten().tolist()
            assert list(span.codes) == codes


def test_shuffling_keeps_the_codes_and_moves_them(model, items):
    truth, shuffled = spans_of(model, items, "oracle"), spans_of(model, items, "shuffled")
    assert [Counter(s.codes) for s in truth] == [Counter(s.codes) for s in shuffled]
    assert truth != shuffled
    for span in shuffled:
        if span.modality == "boxes":
            boxes = np.array(span.codes).reshape(-1, 4)
            assert (boxes[:, :2] <= boxes[:, 2:]).all()


def test_another_image_s_span_is_another_image_s(model, items):
    truth, moved = spans_of(model, items, "oracle"), spans_of(model, items, "other image")
    assert moved[:6] == [*truth[1:6], truth[0]] and moved[6:] == [*truth[7:], truth[6]]


def test_random_spans_are_drawn_anew_for_every_item(model, items):
    drawn = spans_of(model, items, "random")
    assert drawn == spans_of(model, items, "random") and drawn != spans_of(model, items, "random", seed=1)
    depth = [s for s in drawn if s.modality == "depth"]
    assert len(set(depth)) > 1 and drawn != spans_of(model, items, "oracle")


def test_an_unknown_intervention_names_the_known_ones(model, items):
    with pytest.raises(ValueError, match=f"unknown intervention 'none'; known ones: {', '.join(INTERVENTIONS)}"):
        forced_chains(model, items, "none")


# Maps that were drawn


def test_map_order_is_read_off_the_drawn_map(model, items):
    codes = (0, 7, 3, 1)
    near = model.depth_tokenizer.decode(torch.tensor([codes]))[0]  # (S, S)
    size = near.shape[0]
    extremes = [divmod(int(place), size) for place in (near.argmax(), near.argmin())]
    points = np.array([[(x + 0.5) / size, (y + 0.5) / size] for y, x in extremes], dtype=np.float32)
    high, low = values_at(near[None], torch.from_numpy(points)[None])[0]
    assert high > low
    item = replace(items[-1], group="depth-2", points_xy=points, answer="A")
    drawn = ScoredAnswer("depth-2", False, Answer("", (Span("points", (1, 2)), Span("depth", codes)), None))
    none = ScoredAnswer("depth-2", False, Answer("A", (), "A"))
    swapped = replace(item, points_xy=points[::-1].copy())
    asked = [item, swapped, item, items[0]]
    assert map_order_accuracy(model, asked, [drawn, drawn, none, drawn]) == {"depth-2": 0.5}
    assert map_order_accuracy(model, [item], [drawn]) == {"depth-2": 1.0}


def test_a_model_without_a_depth_tokenizer_is_told_so(items):
    model = build_perception()
    model.depth_tokenizer = None
    with pytest.raises(ValueError, match="no depth tokenizer.*add its depth_tokenizer folder"):
        true_span(model, items[-1])


def test_an_interval_over_trainings_and_questions_is_wider_where_trainings_differ():
    """Values (S, N): the same questions, S trainings. Equal trainings add nothing; different ones do."""
    questions = np.random.default_rng(0).random(200) < 0.6
    shown = [n // 4 for n in range(len(questions))]
    groups = np.repeat(questions[::4], 4)[: len(questions)]  # four answers about an image are alike
    wide, narrow = (crossed_interval(np.stack([groups] * 3), groups=g) for g in (shown, None))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low) and wide.mean == narrow.mean
    alike = crossed_interval(np.stack([questions] * 3))
    alone = bootstrap_interval(questions)
    assert alike.mean == alone.mean and alike.count == 600
    assert alike.high - alike.low == pytest.approx(alone.high - alone.low, abs=0.02)
    apart = crossed_interval(np.stack([np.zeros(200), questions, np.ones(200)]))
    assert apart.high - apart.low > 3 * (alike.high - alike.low)
    with pytest.raises(ValueError, match="trainings, questions"):
        crossed_interval(np.zeros((0, 4)))
