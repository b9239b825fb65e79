"""Triggers of looks: the headings of steps, or interleave tokens that the model writes itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

Trigger = Literal["headings", "generated"]
HEADINGS: Trigger = "headings"
GENERATED: Trigger = "generated"
TRIGGERS: tuple[str, ...] = get_args(Trigger)
Resolution = Literal["seen", "native"]
SEEN: Resolution = "seen"
NATIVE: Resolution = "native"
RESOLUTIONS: tuple[str, ...] = get_args(Resolution)
Region = Literal["selected", "boxes"]
SELECTED: Region = "selected"
BOXES: Region = "boxes"
_WINDOW = 64  # number of newest ids that are searched for a heading; no heading is that long


@dataclass(frozen=True)
class InterleaveSettings:
    """When a chain looks and what it then sees; must be the same in training and generation."""

    trigger: Trigger = HEADINGS
    """"headings": the interleave token is inserted after every heading of a step, as in the paper, and the model never
    writes it. "generated": the model writes it as an ordinary token, and its cross-entropy is supervised"""
    heading: str = r"Step \d+:"
    """A regular expression; a look follows the token that completes a match. r"^|\n" looks at the start and at every
    new line"""
    max_looks: int | None = 12
    """Largest number of looks in an answer, by default that of the published data; None for any number"""
    resolution: Resolution = SEEN
    """What a look inserts. "seen": the selected visual tokens again. "native": the selected cells, cut from the
    original image and encoded anew (`perception.interleave.native`)"""
    look_tokens: int = 64
    """Largest number of visual tokens that a look at native resolution inserts"""
    region: Region = SELECTED
    """What a look is at. "selected": the visual tokens that the selector selects. "boxes": the boxes of the last span
    that was written before it, at native resolution; with heading r"<BOX_END>" a look follows every span of boxes"""

    take_along: int | None = None
    """A look that selects nothing, the n-th in a row, brings in what the last look brought in again: visual tokens are
    taken along a long chain (TVC, arXiv 2503.13360). None: it brings in nothing"""

    def __post_init__(self) -> None:
        if self.trigger not in TRIGGERS:
            raise ValueError(f"trigger must be one of {TRIGGERS}, got {self.trigger!r}")
        if self.resolution not in RESOLUTIONS or self.look_tokens < 1:
            raise ValueError(
                f"resolution must be one of {RESOLUTIONS} and look_tokens 1 or more, got {self.resolution!r} and "
                f"{self.look_tokens}"
            )
        if self.region not in get_args(Region) or (self.region == BOXES and self.resolution != NATIVE):
            raise ValueError(
                f"region must be one of {get_args(Region)}, boxes with resolution 'native' only, got {self.region!r} "
                f"with {self.resolution!r}"
            )
        if self.max_looks is not None and self.max_looks < 0:
            raise ValueError(f"max_looks must be 0 or more, or None for any number; got {self.max_looks}")
        if self.take_along is not None and self.take_along < 1:
            raise ValueError(f"take_along must be 1 or more, or None for never; got {self.take_along}")
        try:
            re.compile(self.heading)
        except re.error as error:
            raise ValueError(f"heading must be a regular expression, got {self.heading!r}: {error}") from None


class HeadingTrigger:
    """Finds where a heading is complete, token by token, in the same way for given and for generated text."""

    def __init__(self, tokenizer: Any, settings: InterleaveSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        self._pattern = re.compile(settings.heading)
        # Each text is counted twice, once whole and once as the text before the next token.
        self._count = lru_cache(maxsize=1024)(self._count_headings)

    def fires(self, ids: Sequence[int]) -> bool:
        """True if the newest id of an answer's text completes a heading; for an empty text, if a heading is empty.

        Args:
            ids: all ids that the model has written, without interleave and visual tokens.
        """
        window = tuple(ids[-_WINDOW:])
        return self._count(window) > (self._count(window[:-1]) if window else 0)

    def _count_headings(self, ids: tuple[int, ...]) -> int:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False) if ids else ""
        return sum(1 for _ in self._pattern.finditer(text))
