"""Rewards: what earns, what does not, and what must not be gamed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from train.rl.rewards import (
    answer_reward,
    box_iou,
    box_iou_reward,
    count_reward,
    depth_order_reward,
    final_answer,
    format_reward,
    same_answer,
)

VOCABULARY = PerceptionVocabulary(depth_codes=4, depth_grid=(2, 2), num_locations=10)


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        ("42", "42", True),
        ("42.0", "42", True),
        ("1,200", "1200", True),
        ("3/4", "0.75", True),
        ("60°", "60", True),
        ("12 cm", "12", True),
        ("41", "42", False),
        ("42 or 43", "42", False),
        ("12 + 30", "12", False),
        ("", "0", False),
        ("1/0", "1", False),
        ("(B)", "B", True),
        ("B. 40", "B", True),
        ("Because", "B", False),
        ("A", "B", False),
    ],
)
def test_answers_are_compared_as_what_they_are(
    said: str, answer: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as where it is not installed
    assert same_answer(said, answer) is right


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [
        (r"3\sqrt{2}", r"\sqrt{18}", True),
        (r"5\sqrt{3}", r"5\sqrt{2}", False),
        (r"$\frac{1}{2}$", "0.5", True),
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2+1", "(x-1)(x+1)", False),
    ],
)
def test_expressions_are_compared_by_math_verify(said: str, answer: str, right: bool) -> None:
    pytest.importorskip("math_verify")
    assert same_answer(said, answer) is right


def test_the_last_answer_counts_and_a_box_is_one() -> None:
    assert final_answer("Step 1: 5 + 7 = 12. Answer: 12.") == "12"
    assert final_answer("The answer is 3. No, the answer is 4") == "4"
    assert final_answer(r"so \boxed{7}") == "7"
    assert final_answer("A 7, B 3, so A.") == "A" and final_answer("of ABC 4, of A 5") == "5"
    assert final_answer("it makes 5, then 9") == "9" and final_answer("none") == ""
    assert answer_reward(["Answer: 12", "12. Answer: 13"], answer=["12", "12"]) == [1.0, 0.0]


def test_the_format_wants_steps_in_order_and_one_answer_behind_them() -> None:
    good = "Step 1: a\nStep 2: b\nAnswer: 4"
    assert format_reward([r"Step 1: I answer this first. Answer: \boxed{4}"]) == [1.0], "it is announced once"
    bad = ["Step 2: b\nStep 1: a\nAnswer: 4", "Answer: 4", "Step 1: a", "Answer: 4\nStep 1: a", good + "\nAnswer: 5"]
    assert format_reward([good, *bad]) == [1.0] + [0.0] * len(bad)


def test_boxes_earn_their_overlap_in_any_order() -> None:
    boxes = np.array([[0.0, 0.0, 0.4, 0.4], [0.5, 0.5, 0.9, 0.9]])
    assert box_iou(boxes[::-1], boxes) == pytest.approx(1)
    assert box_iou(boxes[:1], boxes) == pytest.approx(0.5), "a missing box costs"
    assert box_iou(np.concatenate([boxes, boxes]), boxes) == pytest.approx(0.5), "so does one too many"
    assert box_iou(boxes[:0], boxes[:0]) == 1 and box_iou(boxes[:0], boxes) == 0
    shifted = boxes[:1] + np.array([0.2, 0.0, 0.2, 0.0])
    assert box_iou(shifted, boxes[:1]) == pytest.approx(1 / 3)
    codes = BoxTokenizer(10).encode(boxes)
    text = VOCABULARY.span_text(Span("boxes", tuple(codes))) + " 2."
    truth = BoxTokenizer(10).decode(codes)
    rewards = box_iou_reward([text, "2.", "<BOX_START><LOC_1> 2."], [truth] * 3, vocabulary=VOCABULARY)
    assert rewards == [pytest.approx(1), 0.0, 0.0]
    # one of two boxes, and one that ends before it begins
    crooked = VOCABULARY.span_text(Span("boxes", (*codes[:4], 5, 5, 1, 1)))
    assert box_iou_reward([crooked], [truth], vocabulary=VOCABULARY) == [pytest.approx(0.5)]


def test_depth_order_earns_the_pairs_that_are_right() -> None:
    depth = VOCABULARY.span_text(Span("depth", (1,) * VOCABULARY.depth_length))
    readings = " A<POINT_START><LOC_1><LOC_7><POINT_END> 12, B 40, C 30, so B."
    paid = depth_order_reward([depth + readings] * 2, depth_order=["BCA", "BAC"], vocabulary=VOCABULARY)
    assert paid == [1.0, pytest.approx(2 / 3)]
    for unpaid in (depth + " A 5, so A.", readings, "<DEPTH_START><DEPTH_1><DEPTH_END>" + readings):
        assert depth_order_reward([unpaid], depth_order=["BA"], vocabulary=VOCABULARY) == [0.0]


def test_counts_earn_by_how_near_they_are() -> None:
    chains = ["<BOX_START><LOC_3><BOX_END> 4.", "5.", "9.", "<LOC_4>"]
    assert count_reward(chains, count=[4] * 4) == [1.0, 0.5, 0.0, 0.0]
