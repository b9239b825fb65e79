"""Slots of a key-value cache that no row needs, taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache as cached
from typing import Any

import torch
from torch import Tensor

CACHE_KEYS = ("cache", "past_key_values")
"""What callers may call the key-value cache; transformers 5.24 renamed it"""


@cached
def cache_key() -> str:
    """What the installed transformers calls the key-value cache among a forward's arguments and outputs."""
    from transformers.generation import GenerateDecoderOnlyOutput

    return next(name for name in CACHE_KEYS if name in GenerateDecoderOnlyOutput.__dataclass_fields__)


def cache_given(given: Mapping[str, Any]) -> Any:
    """The key-value cache among a forward's arguments, None without one."""
    return next((given[name] for name in CACHE_KEYS if given.get(name) is not None), None)


def why_not_packable(cache: Any) -> str | None:
    """Why slots cannot be moved within this filled cache of transformers, in words; None where they can."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer) is not DynamicLayer:  # others slide, are of one length, or hold more than keys and values
            return f"its cache has layers whose slots cannot be moved ({type(layer).__name__})"
        if not isinstance(getattr(layer, "keys", None), Tensor):
            return f"its cache has layers without keys ({type(layer).__name__})"
    return None


def packed_order(mask: Tensor) -> Tensor:
    """Which slot goes where, (B, kept), so that every row's real slots stand at the right, in their order.

    Args:
        mask: (B, slots), 1 where a slot is real.
    """
    kept = int(mask.sum(1).max())
    return mask.argsort(dim=1, stable=True)[:, mask.shape[1] - kept :]


def pack(cache: Any, order: Tensor) -> None:
    """Moves the slots of every row as `order` (B, kept) says, and drops the rest."""
    for layer in cache.layers:
        for name in ("keys", "values"):
            held = getattr(layer, name)  # (B, heads, slots, width)
            rows, heads = (torch.arange(n, device=order.device) for n in held.shape[:2])
            setattr(layer, name, held[rows[:, None, None], heads[None, :, None], order[:, None]])
