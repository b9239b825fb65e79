"""Outcomes of a baseline, one bit per item, so that a model can be compared with it when its weights do not ship.

The bits only make sense for the questions they belong to, so a record carries a fingerprint of its items and is refused
for others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from perception.evaluation.scenes import Item

_BRIGHTNESS_TOLERANCE = 0.05
"""Tolerance of an image's mean pixel value (0 to 255): processors round pixels differently"""


class StaleOutcomes(ValueError):
    """Stored outcomes that are missing or belong to other questions; the message says what to do."""


@dataclass(frozen=True)
class Fingerprint:
    """Identification of a set of items without their pixels, which may differ in the last bit between processors."""

    questions: str
    """SHA-256 over group, question, answer and places of each item, in order"""
    brightness: float
    """mean of all pixels, 0..255"""

    def same(self, other: Fingerprint) -> bool:
        close = abs(self.brightness - other.brightness) <= _BRIGHTNESS_TOLERANCE
        return self.questions == other.questions and close


def fingerprint(items: Sequence[Item]) -> Fingerprint:
    """The fingerprint of items in their order."""
    digest, total = hashlib.sha256(), 0.0
    for item in items:
        places = [item.points_xy.round(3).tolist(), item.boxes_xyxy.round(3).tolist()]
        digest.update(json.dumps([item.group, item.question, str(item.answer), places]).encode())
        total += float(item.image.float().mean())
    return Fingerprint(digest.hexdigest(), round(total / max(1, len(items)), 4))


@dataclass(frozen=True)
class StoredOutcomes:
    """One model's outcomes on one set of items."""

    fingerprint: Fingerprint
    correct: str
    """ "1" for each item answered right, "0" for each other, in the items' order"""

    @classmethod
    def of(cls, items: Sequence[Item], correct: Sequence[bool]) -> StoredOutcomes:
        if len(items) != len(correct):
            raise ValueError(f"{len(items)} items need as many outcomes, got {len(correct)}")
        return cls(fingerprint(items), "".join("01"[bool(value)] for value in correct))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StoredOutcomes:
        """Read what `to_json` gave. Raises StaleOutcomes for anything else."""
        try:
            return cls(Fingerprint(**data["fingerprint"]), str(data["correct"]))
        except (KeyError, TypeError) as error:
            raise StaleOutcomes(f"stored outcomes cannot be read ({error}); measure the baseline anew") from None

    def read_for(self, items: Sequence[Item], remedy: str) -> list[bool]:
        """One truth value per item.

        Raises:
            StaleOutcomes: if the outcomes belong to other items; the message ends with `remedy`.
        """
        found = fingerprint(items)
        if len(self.correct) != len(items) or not found.same(self.fingerprint):
            raise StaleOutcomes(
                f"the stored outcomes of the baseline are stale: they belong to {len(self.correct)} items "
                f"({self.fingerprint.questions[:12]}), not to these {len(items)} ({found.questions[:12]}); {remedy}"
            )
        return [bit == "1" for bit in self.correct]
