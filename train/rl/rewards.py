"""Rewards of reinforcement learning, as plain functions with trl's signature: completions and columns of the data set
in, a number in [0, 1] a completion out.

`answer_reward` and `format_reward` judge interleaved chains; `box_iou_reward`, `depth_order_reward` and `count_reward`
(after Visual-RFT, arXiv 2503.01785) judge what a chain perceives, so that chains of depth maps and boxes can be
reinforced by the same trainer, or by trl's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from perception.answers import MARKED, final_answer, same_answer
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from perception.vocabulary.spans import SpanError

Reward = Callable[..., list[float]]
"""(completions, **columns) -> one number in [0, 1] a completion."""


def answer_reward(completions: Sequence[str], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the final answer is right."""
    return [float(same_answer(final_answer(c), a)) for c, a in zip(completions, answer, strict=True)]


def format_reward(completions: Sequence[str], heading: str = r"Step (\d+):", **_: Any) -> list[float]:
    """1 where steps are numbered from 1 up and one answer follows the last of them.

    Args:
        heading: of a step, its number in the first group.
    """
    rewards = []
    for completion in completions:
        steps = list(re.finditer(heading, completion))
        answers = list(MARKED.finditer(completion))
        in_order = [int(step[1]) for step in steps] == list(range(1, len(steps) + 1))
        follows = len(answers) == 1 and bool(steps) and answers[0].start() > steps[-1].start()
        rewards.append(float(in_order and follows))
    return rewards


# Perception


def _spans(completion: str, vocabulary: PerceptionVocabulary, modality: str) -> list[Span] | None:
    """A completion's spans of a modality; None where any span is malformed."""
    try:
        parts = vocabulary.parse_text(completion)
    except SpanError:
        return None
    return [part for part in parts if isinstance(part, Span) and part.modality == modality]


def _pairwise_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes xyxy (N, 4) and (M, 4)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)  # (N, M)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def box_iou(drawn_xyxy: np.ndarray, boxes_xyxy: np.ndarray) -> float:
    """Sum of the IoUs of boxes matched one to one, the best pair first, over the larger of the two numbers of boxes.

    1 for the same boxes in any order; a box that is missing and one too many both cost.
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
    """`box_iou` of the boxes that a chain draws.

    Args:
        completions: with the names of perception tokens in them (decoded with skip_special_tokens=False).
        boxes_xyxy: (N, 4) in [0, 1] a completion.
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
        drawn = np.zeros(codes.shape)  # a box that ends before it begins is drawn, and overlaps none
        drawn[ordered] = np.reshape(tokenizer.decode(codes[ordered].ravel().tolist()), (-1, 4))
        rewards.append(box_iou(drawn, np.reshape(np.asarray(truth, float), (-1, 4))))
    return rewards


def depth_order_reward(completions: Sequence[str], depth_order: Sequence[Sequence[str]], **_: Any) -> list[float]:
    """Share of the pairs of marked points that a chain's readings (" A ... 12, B ... 40") put in the right order.

    Args:
        completions: readings are 0 farthest .. 99 nearest, the last of a letter counts; perception tokens in between
            are passed over.
        depth_order: letters, the nearest first, a completion.
    """
    rewards = []
    for completion, order in zip(completions, depth_order, strict=True):
        plain = re.sub(r"<[A-Z]+_[A-Z0-9]+>", "", completion)
        readings = {letter: int(value) for letter, value in re.findall(r"\b([A-Z])\s+(\d+)", plain)}
        pairs = [(near, far) for i, near in enumerate(order) for far in order[i + 1 :]]
        right = sum(near in readings and far in readings and readings[near] > readings[far] for near, far in pairs)
        rewards.append(right / len(pairs) if pairs else 0.0)
    return rewards


def count_reward(completions: Sequence[str], count: Sequence[int], **_: Any) -> list[float]:
    """1 for the right count as the last number outside perception tokens, half of it for one that is off by one."""
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
"""They read completions with the names of perception tokens in them."""
REWARDS: dict[str, Reward] = {"answer": answer_reward, "format": format_reward, **PERCEPTION_REWARDS}
