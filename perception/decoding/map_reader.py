"""Executed reading of drawn depth maps: the package decodes the map and reads it at the points the model names.

A depth chain draws a map, then names each point and says what the map shows there. With `read="decoded"` these readings
are not the model's: once a point is closed, the ids of its reading are forced into the answer and the model goes on
behind them. The tokens are a representation that can be decoded, and here the package decodes it. Where whoever asks
knows the places of the points, the package writes these too, and the model has only to draw and to conclude.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perception.answers import POINT_LETTERS
from perception.tokenizers.depth import readings_at
from perception.tokenizers.locations import to_places
from perception.vocabulary.names import PerceptionVocabulary, Span

if TYPE_CHECKING:
    from vqvae import VQVAE

Due = Callable[[Sequence[int]], list[int]]
"""Ids of an answer so far -> ids that must come next; empty where the model is free."""
_MAPS = 64  # decoded maps kept: a batch asks for each of its maps several times


class MapReader:
    """Readings of one model's maps, as ids."""

    def __init__(self, vocabulary: PerceptionVocabulary, text_tokenizer: Any, vqvae: VQVAE):
        self.vocabulary = vocabulary
        self._vqvae = vqvae
        self._point_start, self._point_end = vocabulary.start_id("points"), vocabulary.end_id("points")
        self._depth_end = vocabulary.end_id("depth")
        self._roles = vocabulary.id_roles
        self._encode = partial(vocabulary.encode_plain, text_tokenizer)
        self._readings = [tuple(self._encode(f" {value},")) for value in range(100)]
        self._longest = max(map(len, self._readings))
        self._map = lru_cache(_MAPS)(self._decode)
        self._read_out = lru_cache(_MAPS)(self._write_read_out)

    def due(self, forced: Sequence[int], written: Sequence[int], places: Sequence[Sequence[int]] = ()) -> list[int]:
        """Ids that must come next, what is written of them left out; empty elsewhere.

        A reading is due behind a span of one point that follows a whole depth map. Where the points are known, all
        letters, points and readings are due behind the first whole depth map.

        Args:
            forced: ids that the answer was begun with.
            written: ids of the answer behind them so far.
            places: location codes (x, y) of the points A, B, .., where they are known.
        """
        if places:
            return self._due_at(places, [*forced, *written])
        ids = [*forced, *written]
        end = next((n for n in range(1, min(self._longest, len(ids)) + 1) if ids[-n] == self._point_end), None)
        if end is None or len(ids) < end + 3 or ids[-end - 3] != self._point_start:
            return []
        begun, before = tuple(ids[len(ids) - end + 1 :]), ids[: len(ids) - end - 3]
        depth = next((n for n in range(len(before) - 1, -1, -1) if before[n] == self._depth_end), None)
        if depth is None or depth < self.vocabulary.depth_length:
            return []
        codes = self._codes(before[depth - self.vocabulary.depth_length : depth], "depth")
        point = self._codes(ids[len(ids) - end - 2 : len(ids) - end], "location")
        if codes is None or point is None:  # unverified guesses may be malformed
            return []
        reading = self._readings[self._reading(codes, point)]
        return list(reading[len(begun) :]) if reading[: len(begun)] == begun else []

    def _due_at(self, places: Sequence[Sequence[int]], ids: Sequence[int]) -> list[int]:
        depth = next((n for n, token in enumerate(ids) if token == self._depth_end), None)
        if depth is None or depth < self.vocabulary.depth_length:
            return []
        codes = self._codes(ids[depth - self.vocabulary.depth_length : depth], "depth")
        if codes is None:  # unverified guesses may be malformed
            return []
        begun, whole = tuple(ids[depth + 1 :]), self._read_out(codes, tuple(map(tuple, places)))
        return list(whole[len(begun) :]) if whole[: len(begun)] == begun else []

    def _write_read_out(self, codes: tuple[int, ...], places: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
        """All that stands between a map of known points and the conclusion, as `perception.chains` writes it."""
        ids, before = list[int](), ""
        for letter, place in zip(POINT_LETTERS, places, strict=False):
            ids += [*self._encode(f"{before} {letter}"), *self.vocabulary.span_ids(Span("points", place))]
            before = f" {self._reading(codes, place)},"
        return (*ids, *self._encode(before))

    def _codes(self, ids: Sequence[int], family: str) -> tuple[int, ...] | None:
        """Codes of ids; None where one is no code of the family."""
        roles = [self._roles.get(token) for token in ids]
        codes = tuple(role.code for role in roles if role is not None and role.kind == "code" and role.family == family)
        return codes if len(codes) == len(ids) else None

    def _reading(self, codes: tuple[int, ...], point: Sequence[int]) -> int:
        place = to_places(point, self.vocabulary.num_locations, 2, "points")  # (1, 2)
        return int(readings_at(self._map(codes), place.astype("float32"))[0])

    @torch.no_grad()
    def _decode(self, codes: tuple[int, ...]) -> Tensor:
        return self._vqvae.decode(torch.tensor(codes)[None]).cpu()  # (1, S, S)


class DueIds:
    """Forces due ids in transformers' `generate`, as a logits processor.

    Behind `SpanLogitsProcessor` in the list.
    """

    def __init__(self, dues: Sequence[Due | None], width: int):
        """
        Args:
            dues: one per prompt; None where nothing is forced.
            width: of the prompts, padding included.
        """
        self.dues, self.width = list(dues), width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        copies = len(input_ids) // len(self.dues)  # beams, or sequences returned per prompt
        for row, ids in enumerate(input_ids[:, self.width :].tolist()):
            due = self.dues[row // copies]
            forced = due(ids) if due is not None else []
            if forced:
                scores = scores.clone()
                scores[row] = -torch.inf
                scores[row, forced[0]] = 0.0
        return scores
