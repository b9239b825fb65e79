"""Drafts: what an answer will probably be, before it is drawn. `perception.decoding.decoder` verifies them in parallel.

A wrong draft costs time, never an answer. The first draft of a question is the last answer to a question like it:
chains of perception have a fixed form, and maps of like scenes are alike. From then on a draft is what the model itself
predicted at the places not yet reached (Jacobi decoding: Santilli et al., arXiv 2305.10427).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from perception.vocabulary.names import PerceptionVocabulary


@dataclass
class DraftBook:
    """The newest answer to each question, and to each kind of question, by way of drafts for the next."""

    most: int = 256
    """questions that are remembered; the oldest is forgotten first"""
    _answers: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def look_up(self, question: str, kind: str | None = None) -> tuple[int, ...]:
        """Ids of the newest answer to the question, else to any of its kind; empty where there is none."""
        return self._answers.get(question) or self._answers.get(f"kind: {kind}") or ()

    def remember(self, question: str, kind: str | None, ids: Sequence[int]) -> None:
        for key in (question, f"kind: {kind}"):
            self._answers.pop(key, None)
            self._answers[key] = tuple(ids)
        while len(self._answers) > self.most:
            self._answers.pop(next(iter(self._answers)))


class RowDraft:
    """The draft of one row: guesses of the ids that follow what has been confirmed so far.

    Where an answer parts from the draft by a START or END (one box more, another number of points), the rest is lined
    up anew with the skeleton, by the spans passed and the place within the part.
    """

    def __init__(self, vocabulary: PerceptionVocabulary, skeleton: Sequence[int]):
        self._roles = vocabulary.id_roles
        self._skeleton = list(skeleton)
        self._borders = [place for place, token in enumerate(self._skeleton) if self._is_border(token)]
        self._passed = 0  # borders confirmed
        self._since = 0  # ids confirmed since the last of them
        self._guesses = list(skeleton)

    def _is_border(self, token: int) -> bool:
        role = self._roles.get(token)
        return role is not None and role.kind in ("start", "end")

    def guesses(self, count: int) -> list[int]:
        """At most `count` ids."""
        return self._guesses[:count]

    def confirm(self, new: Sequence[int], predicted: Sequence[int]) -> None:
        """Takes note of confirmed ids, and of what the model predicted behind them, given the guesses."""
        last = new[-1]
        expected = self._guesses[len(new) - 1] if len(new) <= len(self._guesses) else None
        for token in new:
            border = self._is_border(token)
            self._passed, self._since = (self._passed + 1, 0) if border else (self._passed, self._since + 1)
        ahead = len(new) + len(predicted)
        self._guesses = [*predicted, *self._guesses[ahead:]]
        parted = expected is None or self._is_border(last) or self._is_border(expected)
        if last != expected and parted:
            self._guesses = self._lined_up()

    def _lined_up(self) -> list[int]:
        if self._passed > len(self._borders):
            return []
        start = self._borders[self._passed - 1] + 1 if self._passed else 0
        end = self._borders[self._passed] if self._passed < len(self._borders) else len(self._skeleton)
        return self._skeleton[min(start + self._since, end) :]
