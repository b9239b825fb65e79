"""Batching of what processors return beside ids: pixels in the model's form, and the type of each token.

For one image, LLaVA's processor returns pixels (1, 3, H, W), Qwen's packed patches (N, D) and their grid (1, 3),
LLaVA-OneVision's and Idefics' views (1, N, 3, H, W), InternVL's (N, 3, H, W). One rule batches them all: rows are
concatenated along the first axis, and shorter ones are padded with zeros along the others, as these processors do
themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
"""Outputs that hold one number per token"""
_TEXT = ("input_ids", "attention_mask", "labels")
_PLACEHOLDERS = ("image", "video", "audio", "vision", "boi", "eoi")


def accepted_inputs(model: Any) -> frozenset[str]:
    """Names of the inputs that a model's forward takes; processors return more."""
    return frozenset(inspect.signature(model.forward).parameters)


def placeholder_ids(config: Any) -> tuple[int, ...]:
    """Ids that stand for images or enclose them, by a model's configuration; they are never text."""
    names = [f"{word}_token_{end}" for word in _PLACEHOLDERS for end in ("id", "index")]
    names += [f"vision_{end}_token_id" for end in ("start", "end")]
    found = {getattr(config, name, None) for name in names}
    return tuple(sorted(i for i in found if isinstance(i, int)))


def image_inputs(row: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A processor's outputs that describe whole images."""
    return {name: value for name, value in row.items() if name not in (*_TEXT, *TOKEN_TYPES)}


def batch_images(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The image inputs of several rows, concatenated along the first axis; rows without images have none."""
    rows = [row for row in rows if image_inputs(row)]
    names = image_inputs(rows[0]) if rows else {}
    return {name: _join([row[name] for row in rows]) for name in names}


def _join(tensors: list[Tensor]) -> Tensor:
    """Concatenate tensors (n, ...) along the first axis, padded with zeros at the ends of all other axes."""
    shape = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [want - have for want, have in zip(shape, tensor.shape[1:], strict=True)]
        # torch counts axes from the last
        padded.append(F.pad(tensor, [n for m in reversed(missing) for n in (0, m)]) if any(missing) else tensor)
    return torch.cat(padded)


def token_types(row: Mapping[str, Tensor], prompt: int, answer: int) -> dict[str, list[int]]:
    """Types of a row's tokens, for a prompt of `prompt` tokens, whose first ones the processor typed, and an answer.

    A row whose tokens are typed up to the answer's end, as a conversation's are, keeps its types.

    Where types mark images (Gemma3, Qwen-VL) text is 0. Where images are 0 too, types mark what follows the prompt
    (PaliGemma, whose prompt attends in both directions), and the answer is 1.
    """
    types = {}
    for name in TOKEN_TYPES:
        if name in row:
            head = row[name].flatten().tolist()
            made = head + [0] * (prompt - len(head)) + [0 if any(head) else 1] * answer
            types[name] = made[: prompt + answer]
    return types


def pad_rows(rows: Sequence[Sequence[Any]], value: float, left: bool) -> Tensor:
    """Pad rows to (B, longest), on the left or on the right."""
    longest = max(len(row) for row in rows)
    fill = [[value] * (longest - len(row)) for row in rows]
    return torch.tensor([f + list(r) if left else list(r) + f for f, r in zip(fill, rows, strict=True)])


def batch_types(types: Sequence[Mapping[str, list[int]]], left: bool) -> dict[str, Tensor]:
    """Pad each kind of `token_types` to (B, longest), with 0."""
    return {name: pad_rows([row[name] for row in types], 0, left) for name in (types[0] if types else ())}
