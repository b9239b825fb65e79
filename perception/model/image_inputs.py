"""What processors give a model beside ids: pixels in whatever form, and what each token is.

LLaVA's processor gives pixels (1, 3, H, W) for an image, Qwen's packed patches (N, D) and their grid (1, 3),
LLaVA-OneVision's and Idefics' views (1, N, 3, H, W), InternVL's (N, 3, H, W). All of them are batched by one rule: rows
are put one behind the other, and where their other sides differ the shorter ones are padded with zeros, as these
processors do themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""What each token is: one number a token, and so as long as the ids"""
_TEXT = ("input_ids", "attention_mask", "labels")
_PLACEHOLDERS = ("image", "video", "audio", "vision", "boi", "eoi")


def accepted_inputs(model: Any) -> frozenset[str]:
    """Names of what a model's forward takes; processors give more."""
    return frozenset(inspect.signature(model.forward).parameters)


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Ids that by a model's configuration stand for images or enclose them, and are no text."""
    names = [f"{word}_token_{end}" for word in _PLACEHOLDERS for end in ("id", "index")]
    names += [f"vision_{end}_token_id" for end in ("start", "end")]
    found = {getattr(config, name, None) for name in names}
    return tuple(sorted(i for i in found if isinstance(i, int)))


def image_inputs(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a processor's outputs, those that are about images as a whole."""
    return {name: value for name, value in row.items() if name not in (*_TEXT, *TOKEN_TYPES)}


def batch_images(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The image inputs of several rows, one behind the other along the first axis."""
    names = image_inputs(rows[0]) if rows else {}
    return {name: _join([row[name] for row in rows]) for name in names}


def _join(tensors: list[Tensor]) -> Tensor:
    """(n, ...) each, to (sum of n, ...), padded with zeros at the ends of all other axes."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
        # torch counts axes from the last
        padded.append(F.pad(tensor, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else tensor)
    return torch.cat(padded)


def token_types(row: Mapping[str, Tensor], prompt: int, answer: int) -> dict[str, list[int]]:
    """Types of a row's tokens: a prompt of so many tokens, of which the processor typed the first, then an answer.

    They mark images (Gemma3, Qwen-VL), so that text is 0. Where they leave images at 0 they mark what follows the
    prompt (PaliGemma, whose prompt is seen in both directions): the answer is 1.
    """
    types = {}
    for name in TOKEN_TYPES:
        if name in row:
            head = row[name].flatten().tolist()
            types[name] = head + [0] * (prompt - len(head)) + [0 if any(head) else 1] * answer
    return types


def pad_rows(rows: Sequence[Sequence[Any]], value: float, left: bool) -> Tensor:
    """(B, longest), padded on the left or on the right."""
    longest = max(len(row) for row in rows)
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([f + list(r) if left else list(r) + f for f, r in zip(fill, rows, strict=True)])


def batch_types(types: Sequence[Mapping[str, list[int]]], left: bool) -> dict[str, Tensor]:
    """(B, longest) of each kind of `token_types`. Padding is 0, which no row attends to."""
    return {name: pad_rows([row[name] for row in types], 0, left) for name in (types[0] if types else ())}
