"""Recognition of the perception tokens that published tokenizers have, by their names."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

_MARKERS = {"depth": "DEPTH", "boxes": "BOX", "points": "POINT"}
_KNOWN = "known are <DEPTH_START>, <DEPTH_n>, <DEPTH_END> of AURORA and MolmoAct, <loc0000> of PaliGemma, and our own"


def recognised_settings(names: Set[str]) -> dict[str, Any]:
    """Return the settings of the `PerceptionVocabulary` whose tokens are among a tokenizer's names.

    Raises:
        ValueError: where there are none, or a number is missing among them.
    """
    locations = _count(names, "<loc{:04d}>", r"<loc(\d{4})>")
    if locations:
        return {"naming": "paligemma", "modalities": ("boxes",), "num_locations": locations}
    present = tuple(m for m, word in _MARKERS.items() if {f"<{word}_START>", f"<{word}_END>"} <= names)
    found: dict[str, Any] = {}
    if "depth" in present:
        found["depth_codes"] = _count(names, "<DEPTH_{}>", r"<DEPTH_(\d+)>")
    if {"boxes", "points"} & set(present):
        word, found["naming"] = ("PIXEL", "aurora") if "<PIXEL_0>" in names else ("LOC", "default")
        found["num_locations"] = _count(names, f"<{word}_{{}}>", rf"<{word}_(\d+)>")
    if "boxes" in present and {"<MASK_START>", "<MASK_END>"} <= names:
        found["mask_codes"] = _count(names, "<MASK_{}>", r"<MASK_(\d+)>")
    if present and all(found.get(name) != 0 for name in ("depth_codes", "num_locations")):
        return found | {"modalities": present}
    if "<PIXEL_0>" in names:
        raise ValueError(
            "the tokenizer has <PIXEL_n> and no <BOX_START>, as AURORA's for counting, which writes boxes in brackets "
            "with commas; add boxes with PerceptionVocabulary(naming='aurora', num_locations=336).extend(...)"
        )
    raise ValueError(f"the tokenizer has no perception tokens that are known; {_KNOWN}; extend(...) adds ours")


def _count(names: Set[str], form: str, pattern: str) -> int:
    """Return the number of numbered names, which must have all numbers from 0."""
    numbers = {int(match[1]) for name in names if (match := re.fullmatch(pattern, name))}
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
    if missing:
        raise ValueError(
            f"the tokenizer has {len(numbers)} tokens like {form.format(max(numbers))}, and {form.format(missing[0])} "
            "is missing; load the tokenizer that was saved with the model"
        )
    return len(numbers)
