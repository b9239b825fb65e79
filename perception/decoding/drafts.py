"""Drafts: guesses of an answer's ids, which `perception.decoding.decoder` verifies in parallel.

A wrong draft costs time and changes no answer. The first draft is the last answer to a similar question, as chains of
perception have a fixed form and depth maps of similar scenes are similar. After that the draft is what the model itself
predicted for the ids that are not yet confirmed (Jacobi decoding: Santilli et al., arXiv 2305.10427).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from perception.vocabulary.names import PerceptionVocabulary


@dataclass
class DraftBook:
    """The latest answer to each question and to each kind of question, used as drafts."""

    most: int = 256
    """Number of answers that are kept; the oldest is dropped first"""
    _answers: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def look_up(self, question: str, kind: str | None = None) -> tuple[int, ...]:
        """Return the ids of the latest answer to a question, else to its kind; empty where there is none."""
        return self._answers.get(question) or self._answers.get(f"kind: {kind}") or ()

    def remember(self, question: str, kind: str | None, ids: Sequence[int]) -> None:
        """Keep an answer as a draft."""
        for key in (question, f"kind: {kind}"):
            self._answers.pop(key, None)
            self._answers[key] = tuple(ids)
        while len(self._answers) > self.most:
            self._answers.pop(next(iter(self._answers)))


class RowDraft:
    """The draft of one row: guesses of the ids after the confirmed ones.

    Where the answer differs from the draft in a START or END (one more box, another number of points), the rest of the
    draft is aligned again with the skeleton, by the number of spans passed and the place within the current part.
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
        """Return at most `count` guesses."""
        return self._guesses[:count]

    def confirm(self, new: Sequence[int], predicted: Sequence[int]) -> None:
        """Take in confirmed ids, and the model's predictions after them, which were made on top of the guesses."""
        last = new[-1]
        expected = self._guesses[len(new) - 1] if len(new) <= len(self._guesses) else None
        for token in new:
            border = self._is_border(token)
            self._passed, self._since = (self._passed + 1, 0) if border else (self._passed, self._since + 1)
        ahead = len(new) + len(predicted)
        self._guesses = [*predicted, *self._guesses[ahead:]]
        parted = expected is None or self._is_border(last) or self._is_border(expected)
        if last != expected and parted:
            self._guesses = self._aligned()

    def force(self, ids: Sequence[int]) -> None:
        """Put ids that must come next in the place of as many guesses."""
        self._guesses = [*ids, *self._guesses[len(ids) :]]

    def _aligned(self) -> list[int]:
        if self._passed > len(self._borders):
            return []
        start = self._borders[self._passed - 1] + 1 if self._passed else 0
        end = self._borders[self._passed] if self._passed < len(self._borders) else len(self._skeleton)
        return self._skeleton[min(start + self._since, end) :]
