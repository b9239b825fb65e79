"""Slots of a key-value cache: taken out again where no row needs them, written into room that is kept for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class SlotCache:
    """Keys and values in buffers with room for what follows, so that a step writes its own slots alone.

    A cache of transformers is copied whole by every step.
    """

    def __init__(self, cache: Any, room: int = 128):
        """Takes the keys and values out of a filled `DynamicCache`, layer by layer.

        Args:
            cache: that `why_not_packable` has nothing against; empty afterwards.
            room: slots by which the buffers grow at least.
        """
        self.filled: int = cache.get_seq_length()
        self.room = room
        self.keys: list[Tensor] = []
        """of a layer: (B, heads, slots, width), of which the first `filled` count"""
        self.values: list[Tensor] = []
        for layer in cache.layers:
            self.keys.append(_with_room(layer.keys, room))
            self.values.append(_with_room(layer.values, room))
            layer.keys = layer.values = None

    def take(self, count: int) -> int:
        """Makes room for so many slots more, to be written from the returned one on."""
        start, self.filled = self.filled, self.filled + count
        if self.filled > self.keys[0].shape[2]:
            more = max(self.room, count)
            self.keys = [_with_room(held[:, :, :start], more) for held in self.keys]
            self.values = [_with_room(held[:, :, :start], more) for held in self.values]
        return start

    def crop(self, count: int) -> None:
        """Lets go of the newest -count slots."""
        self.filled += count

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Keeps these rows alone, in ascending order."""
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
    """A copy with so many slots more, whose content means nothing."""
    buffer = held.new_empty(*held.shape[:2], held.shape[2] + room, held.shape[3])
    buffer[:, :, : held.shape[2]] = held
    return buffer


def _ordered(held: Tensor, order: Tensor) -> Tensor:
    rows, heads = (torch.arange(n, device=order.device) for n in held.shape[:2])
    return held[rows[:, None, None], heads[None, :, None], order[:, None]]


def pack(cache: Any, order: Tensor) -> None:
    """Moves the slots of every row as `order` (B, kept) says, and drops the rest."""
    if isinstance(cache, SlotCache):
        cache.pack(order)
        return
    for layer in cache.layers:
        for name in ("keys", "values"):
            setattr(layer, name, _ordered(getattr(layer, name), order))
