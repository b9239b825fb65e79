"""Where a chain looks: at the headings of its steps, or wherever the model writes the interleave token itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from perception.interleave.chains import Look

Trigger = Literal["headings", "generated"]
HEADINGS: Trigger = "headings"
GENERATED: Trigger = "generated"
TRIGGERS: tuple[str, ...] = get_args(Trigger)
_WINDOW = 64  # ids that a heading is looked for in: far longer than any


@dataclass(frozen=True)
class InterleaveSettings:
    """When a chain looks. Training and generation must agree on it."""

    trigger: Trigger = HEADINGS
    """"headings": the interleave token is put behind every heading of a step, as in the paper; the model never writes
    it. "generated": the model writes it as an ordinary token, and its cross-entropy is supervised"""
    heading: str = r"Step \d+:"
    """A regular expression; a look follows the token that completes a match. r"^|\n" looks at the start and at every
    new line"""
    max_looks: int | None = 12
    """Looks of an answer at most, the most of the published data; None for any number"""

    def __post_init__(self) -> None:
        if self.trigger not in TRIGGERS:
            raise ValueError(f"trigger must be one of {TRIGGERS}, got {self.trigger!r}")
        if self.max_looks is not None and self.max_looks < 0:
            raise ValueError(f"max_looks must be 0 or more, or None for any number; got {self.max_looks}")
        try:
            re.compile(self.heading)
        except re.error as error:
            raise ValueError(f"heading must be a regular expression, got {self.heading!r}: {error}") from None


class HeadingTrigger:
    """Finds where a heading is complete, token by token: the same for a text that is read and one that is written."""

    def __init__(self, tokenizer: Any, settings: InterleaveSettings):
        self.tokenizer = tokenizer
        self.settings = settings
        self._pattern = re.compile(settings.heading)
        # A text is counted when it ends here and again when it is what stood before the next token.
        self._count = lru_cache(maxsize=1024)(self._count_headings)

    def fires(self, ids: Sequence[int]) -> bool:
        """Whether the newest id of an answer's text completes a heading; of an empty text, whether it begins with one.

        Args:
            ids: all that the model has written, without interleave and visual tokens.
        """
        window = tuple(ids[-_WINDOW:])
        return self._count(window) > (self._count(window[:-1]) if window else 0)

    def _count_headings(self, ids: tuple[int, ...]) -> int:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=False) if ids else ""
        return sum(1 for _ in self._pattern.finditer(text))

    def places(self, ids: Sequence[int]) -> list[int]:
        """How many ids of a text stand before each look."""
        places = [count for count in range(len(ids) + 1) if self.fires(ids[:count])]
        return places if self.settings.max_looks is None else places[: self.settings.max_looks]

    def weave(self, ids: Sequence[int], looks: Sequence[Look]) -> list[int | Look]:
        """A text with its looks where generation would put them.

        Raises:
            ValueError: where the looks are not as many as the headings.
        """
        places = self.places(ids)
        if len(places) != len(looks):
            raise ValueError(
                f"the text has {len(places)} headings (pattern {self.settings.heading!r}) and {len(looks)} looks are "
                "given; give a look a heading, Look(()) where nothing is selected"
            )
        woven: list[int | Look] = []
        start = 0
        for place, look in zip(places, looks, strict=True):
            woven += [*ids[start:place], look]
            start = place
        return [*woven, *ids[start:]]
