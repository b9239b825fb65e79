"""Slots of a key-value cache: removing those that no row needs, and writing new ones into spare room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache as cached
from typing import Any

import torch
from torch import Tensor

CACHE_KEYS = ("cache", "past_key_values")
"""Names of the key-value cache in arguments and outputs; transformers 5.24 renamed it"""


@cached
def cache_key() -> str:
    """Return the installed transformers' name of the key-value cache in arguments and outputs."""
    from transformers.generation import GenerateDecoderOnlyOutput

    return next(name for name in CACHE_KEYS if name in GenerateDecoderOnlyOutput.__dataclass_fields__)


def cache_given(given: Mapping[str, Any]) -> Any:
    """Return the key-value cache among a forward's arguments; None without one."""
    return next((given[name] for name in CACHE_KEYS if given.get(name) is not None), None)


def why_not_packable(cache: Any) -> str | None:
    """Describe why slots cannot be moved within this filled cache of transformers; None where they can."""
    from transformers.cache_utils import DynamicLayer

    for layer in cache.layers:
        if type(layer) is not DynamicLayer:  # others slide, have a fixed length, or hold more than keys and values
            return f"its cache has layers whose slots cannot be moved ({type(layer).__name__})"
        if not isinstance(getattr(layer, "keys", None), Tensor):
            return f"its cache has layers without keys ({type(layer).__name__})"
    return None


def packed_order(mask: Tensor) -> Tensor:
    """Order of slots (B, kept) that puts every row's real slots at the right and keeps their order.

    Args:
        mask: (B, slots), 1 where a slot is real.
    """
    kept = int(mask.sum(1).max())
    return mask.argsort(dim=1, stable=True)[:, mask.shape[1] - kept :]


class SlotCache:
    """Keys and values in buffers with spare room, so that a step writes only its own slots.

    A cache of transformers is copied as a whole at every step.
    """

    def __init__(self, cache: Any, room: int = 128):
        """Take the keys and values out of a filled `DynamicCache`, layer by layer.

        Args:
            cache: one for which `why_not_packable` returns None; empty afterwards.
            room: smallest number of slots by which the buffers grow.
        """
        self.filled: int = cache.get_seq_length()
        self.room = room
        self.keys: list[Tensor] = []
        """Per layer (B, heads, slots, width), of which the first `filled` slots are in use"""
        self.values: list[Tensor] = []
        for layer in cache.layers:
            self.keys.append(_with_room(layer.keys, room))
            self.values.append(_with_room(layer.values, room))
            layer.keys = layer.values = None

    def take(self, count: int) -> int:
        """Make room for `count` more slots, and return the first of them."""
        start, self.filled = self.filled, self.filled + count
        if self.filled > self.keys[0].shape[2]:
            more = max(self.room, count)
            self.keys = [_with_room(held[:, :, :start], more) for held in self.keys]
            self.values = [_with_room(held[:, :, :start], more) for held in self.values]
        return start

    def crop(self, count: int) -> None:
        """Drop the newest -count slots; `count` is negative, as in transformers."""
        self.filled += count

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which are in ascending order."""
        for held in (*self.keys, *self.values):
            for place, row in enumerate(rows):
                if place != row:
                    held[place, :, : self.filled] = held[row, :, : self.filled]
        self.keys = [held[: len(rows)] for held in self.keys]
        self.values = [held[: len(rows)] for held in self.values]

    def pack(self, order: Tensor) -> None:
        """See `pack`."""
        self.filled = order.shape[1]
        for held in (*self.keys, *self.values):
            held[:, :, : self.filled] = _ordered(held, order)


def _with_room(held: Tensor, room: int) -> Tensor:
    """A copy with `room` more slots of undefined content."""
    buffer = held.new_empty(*held.shape[:2], held.shape[2] + room, held.shape[3])
    buffer[:, :, : held.shape[2]] = held
    return buffer


def _ordered(held: Tensor, order: Tensor) -> Tensor:
    rows, heads = (torch.arange(n, device=order.device) for n in held.shape[:2])
    return held[rows[:, None, None], heads[None, :, None], order[:, None]]


def pack(cache: Any, order: Tensor) -> None:
    """Move the slots of every row into `order` (B, kept), and drop the rest."""
    if isinstance(cache, SlotCache):
        cache.pack(order)
        return
    for layer in cache.layers:
        for name in ("keys", "values"):
            setattr(layer, name, _ordered(getattr(layer, name), order))
