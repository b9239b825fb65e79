"""Slots of a key-value cache that no row needs, taken out again."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def why_not_packable(cache: Any) -> str | None:
    """Why slots cannot be moved within this filled cache of transformers, in words; None where they can."""
    for layer in cache.layers:
        if getattr(layer, "is_sliding", False) or not getattr(layer, "is_croppable", hasattr(layer, "crop")):
            return f"its cache has layers that cannot be cropped ({type(layer).__name__})"
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
            places = order[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
            setattr(layer, name, held.gather(2, places))
