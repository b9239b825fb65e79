"""Rewards for reinforcement learning, as plain functions with trl's signature.

They take completions and columns of the data set, and return a number in [0, 1] per completion. `answer_reward` and
`format_reward` score interleaved chains; `box_iou_reward`, `depth_order_reward` and `count_reward` (after Visual-RFT,
arXiv 2503.01785) score the perception in a chain, so that the same trainer, or trl's, can train chains with depth maps
and boxes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perception.answers import announcements, final_answer, same_answer
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from perception.vocabulary.spans import SpanError

Reward = Callable[..., list[float]]
"""(completions, **columns) -> one number in [0, 1] per completion."""


def answer_reward(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """Return 1 for completions whose final answer is right, else 0."""
    return [float(same_answer(final_answer(c), a)) for c, a in zip(completions, answer, strict=True)]


def format_reward(completions: Sequence[str], heading: str = r"Step (\d+):", **_: Any) -> list[float]:
    """Return 1 for completions whose steps are numbered 1, 2, .. and followed by exactly one answer, else 0.

    Args:
        heading: regular expression of a step's heading; its first group is the step's number.
    """
    rewards = []
    for completion in completions:
        steps = list(re.finditer(heading, completion))
        answers = announcements(completion)
        in_order = [int(step[1]) for step in steps] == list(range(1, len(steps) + 1))
        follows = len(answers) == 1 and bool(steps) and answers[0].start > steps[-1].start()
        rewards.append(float(in_order and follows))
    return rewards


# Perception


def _spans(completion: str, vocabulary: PerceptionVocabulary, modality: str) -> list[Span] | None:
    """Return a completion's spans of one modality, or None if any span is malformed."""
    try:
        parts = vocabulary.parse_text(completion)
    except SpanError:
        return None
    return [part for part in parts if isinstance(part, Span) and part.modality == modality]


def _pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the IoU (N, M) of xyxy boxes (N, 4) and (M, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)  # (N, M)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def box_iou(drawn_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> float:
    """Match boxes one to one, best pair first; return the sum of the IoUs divided by the larger number of boxes.

    The result is 1 for equal boxes in any order; missing boxes and extra boxes lower it.
    """
    if not len(drawn_xyxy) or not len(boxes_xyxy):
        return float(len(drawn_xyxy) == len(boxes_xyxy))
    overlaps = _pairwise_iou(np.asarray(drawn_xyxy, float), np.asarray(boxes_xyxy, float))
    total, most = 0.0, max(overlaps.shape)
    for _ in range(min(overlaps.shape)):
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        total += overlaps[row, column]
        overlaps[row], overlaps[:, column] = -1, -1
    return float(total / most)


def box_iou_reward(
    completions: Sequence[str], boxes_xyxy: Sequence[Any], vocabulary: PerceptionVocabulary, **_: Any
) -> list[float]:
    """Return the `box_iou` of the boxes that each chain draws; 0 if it draws none or a span is malformed.

    Args:
        completions: texts with the names of perception tokens (decoded with skip_special_tokens=False).
        boxes_xyxy: true boxes (N, 4) in [0, 1] per completion.
    """
    tokenizer = BoxTokenizer(vocabulary.num_locations)
    rewards = []
    for completion, truth in zip(completions, boxes_xyxy, strict=True):
        spans = _spans(completion, vocabulary, "boxes")
        if not spans:
            rewards.append(0.0)
            continue
        codes = np.reshape([code for span in spans for code in span.codes], (-1, 4))
        ordered = (codes[:, 2:] >= codes[:, :2]).all(1)
        drawn = np.zeros(codes.shape)  # a box that ends before it begins counts as drawn but overlaps none
        drawn[ordered] = np.reshape(tokenizer.decode(codes[ordered].ravel().tolist()), (-1, 4))
        rewards.append(box_iou(drawn, np.reshape(np.asarray(truth, float), (-1, 4))))
    return rewards


def depth_order_reward(
    completions: Sequence[str], depth_order: Sequence[Sequence[str]], vocabulary: PerceptionVocabulary, **_: Any
) -> list[float]:
    """Return the share of pairs of marked points that a chain's readings (" A ... 12, B ... 40") order correctly.

    It is 0 without a whole depth map, or if a span is malformed. The readings are what the chain says; that they agree
    with its map is not checked.

    Args:
        completions: texts with readings from 0 (farthest) to 99 (nearest). The last reading of a letter counts;
            perception tokens in between are ignored.
        depth_order: letters per completion, from nearest to farthest.
    """
    rewards = []
    for completion, order in zip(completions, depth_order, strict=True):
        if not _spans(completion, vocabulary, "depth"):
            rewards.append(0.0)
            continue
        plain = re.sub(r"<[A-Z]+_[A-Z0-9]+>", "", completion)
        readings = {letter: int(value) for letter, value in re.findall(r"\b([A-Z])\s+(\d+)", plain)}
        pairs = [(near, far) for i, near in enumerate(order) for far in order[i + 1 :]]
        right = sum(near in readings and far in readings and readings[near] > readings[far] for near, far in pairs)
        rewards.append(right / len(pairs) if pairs else 0.0)
    return rewards


def count_reward(completions: Sequence[str], count: Sequence[int], **_: Any) -> list[float]:
    """Return 1 if the last number outside perception tokens is the right count, 0.5 if it is off by one, else 0."""
    rewards = []
    for completion, truth in zip(completions, count, strict=True):
        numbers = re.findall(r"\d+", re.sub(r"<[A-Z]+_[A-Z0-9]+>", " ", completion))
        off = abs(int(numbers[-1]) - truth) if numbers else None
        rewards.append({0: 1.0, 1: 0.5}.get(off, 0.0) if off is not None else 0.0)
    return rewards


PERCEPTION_REWARDS: dict[str, Reward] = {
    "box_iou": box_iou_reward,
    "depth_order": depth_order_reward,
    "count": count_reward,
}
"""Rewards that need completions with the names of perception tokens in them."""
TRUTHS = {"box_iou": "boxes_xyxy", "depth_order": "depth_order", "count": "count"}
"""Column that each of them compares completions with"""
REWARDS: dict[str, Reward] = {"answer": answer_reward, "format": format_reward, **PERCEPTION_REWARDS}
