"""The batch of unfinished answers that the decoder works on: their ids and drafts, and the cache they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perception.decoding.cache_slots import SlotCache, cache_key, pack, packed_order
from perception.decoding.drafts import RowDraft
from perception.vocabulary.names import PerceptionVocabulary

_MAX_JUNK = 64  # masked slots of the cache before it is packed


class Row:
    """One unfinished answer."""

    def __init__(self, prompt: Sequence[int], draft: Sequence[int], vocabulary: PerceptionVocabulary):
        self.draft = RowDraft(vocabulary, draft)
        self.ids: list[int] = []
        self.span: list[int] = []
        """the newest ids, from the last that is no code: all that the grammar looks at"""
        self.drafted = False
        """whether the draft is a network's, for this very prompt"""
        self.sweeps = 0
        """forwards over the depth map that is open"""
        self._roles = vocabulary.id_roles
        self._depth_start, self._depth_length = vocabulary.start_id("depth"), vocabulary.depth_length
        self._depth_end = vocabulary.end_id("depth")
        codes = vocabulary.code_ids("depth")
        self._is_depth, self._middle = frozenset(codes), codes[len(codes) // 2]
        self._read(prompt)

    def _read(self, ids: Sequence[int]) -> None:
        for token in ids:
            role = self._roles.get(token)
            self.span = [*self.span, token] if role is not None and role.kind == "code" else [token]

    def confirm(self, new: Sequence[int], predicted: Sequence[int]) -> None:
        self.ids += new
        self._read(new)
        self.draft.confirm(new, predicted)

    def codes_left(self) -> int:
        """Codes that the open depth map lacks; 0 outside of one."""
        return self._depth_length + 1 - len(self.span) if self.span[0] == self._depth_start else 0

    def settles(self, sweeps: int | None) -> bool:
        """Whether the next forward is the last over the open depth map, of so many."""
        if sweeps is None or not self.codes_left():
            return False
        return self.sweeps + 1 >= (sweeps if self.drafted else max(sweeps, 2))

    def fed(self, width: int, filler: int) -> list[int]:
        """The last confirmed id and guesses behind it, `filler` where there are none. Guesses keep to the form of an
        open depth map whatever the draft says: codes up to its length, then its END."""
        ids = [self.ids[-1], *self.draft.guesses(width - 1)]
        ids += [filler] * (width - len(ids))
        codes = self.codes_left()
        for place in range(1, min(codes, width - 1) + 1):
            if ids[place] not in self._is_depth:
                ids[place] = ids[place - 1] if ids[place - 1] in self._is_depth else self._middle
        if self.span[0] == self._depth_start and codes + 1 < width:
            ids[codes + 1] = self._depth_end
        return ids


class Batch:
    """The cache of unfinished rows, and which of its slots are real."""

    def __init__(self, model: Any, cache: Any, mask: Tensor):
        self.model = model
        self.cache = cache
        self.mask = mask.long()  # (b, slots)
        self.real: list[int] = self.mask.sum(1).tolist()
        """slots of each row that the mask has"""
        deltas = getattr(getattr(model, "model", None), "rope_deltas", None)
        self.deltas = None if deltas is None else deltas.expand(len(mask), 1)  # (b, 1)

    def inputs(self, fed: Tensor) -> dict[str, Any]:
        """What a forward over fed ids (b, width) takes."""
        width = fed.shape[1]
        ahead = torch.arange(width, device=fed.device)
        positions = torch.tensor(self.real, device=fed.device)[:, None] + ahead  # (b, width)
        if self.deltas is not None:
            positions = (positions + self.deltas)[None].expand(3, -1, -1)  # time, height, width: all alike in text
        return {
            "input_ids": fed,
            "attention_mask": torch.cat([self.mask, torch.ones_like(fed)], 1),
            "position_ids": positions,
            cache_key(): self.cache,
            "use_cache": True,
        }

    def keep(self, taken: Sequence[int], width: int) -> None:
        """Of the newest `width` slots, the first `taken` of each row hold."""
        most = max(taken)
        held = torch.arange(most) < torch.tensor(taken)[:, None]  # (b, most)
        if most < width:
            self.cache.crop(most - width)
        self.mask = torch.cat([self.mask, held.to(self.mask)], 1)
        self.real = [real + count for real, count in zip(self.real, taken, strict=True)]
        if self.mask.shape[1] - max(self.real) > _MAX_JUNK:
            self._pack()

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Lets go of all other rows; `rows` in ascending order."""
        places = torch.tensor(rows, device=self.mask.device)
        if isinstance(self.cache, SlotCache):
            self.cache.keep_rows(rows)
        else:
            self.cache.batch_select_indices(places)
        self.mask, self.real = self.mask[places], [self.real[row] for row in rows]
        self.deltas = None if self.deltas is None else self.deltas[places]

    def _pack(self) -> None:
        """Moves every row's real slots to the right and drops the columns that no row needs."""
        order = packed_order(self.mask)  # (b, kept)
        pack(self.cache, order)
        self.mask = self.mask.gather(1, order)


def sequences(rows: Sequence[Row], fed: Tensor) -> Tensor:
    """(b, L + width): what of each row the grammar looks at, -1 to its left, then the ids fed (b, width)."""
    before = [row.span[:-1] for row in rows]  # the newest id is fed
    longest = max(len(ids) for ids in before)
    padded = [[-1] * (longest - len(ids)) + ids for ids in before]
    return torch.cat([torch.tensor(padded, dtype=torch.long, device=fed.device).view(len(rows), longest), fed], 1)


def taken(predicted: Sequence[int], fed: Sequence[int], left: int, stop_ids: Sequence[int]) -> int:
    """How many of a row's predicted ids hold: to the first that parts from its guess, `left`, or a stop id."""
    for place, token in enumerate(predicted):
        if token in stop_ids or place + 1 == left or place + 1 == len(fed) or token != fed[place + 1]:
            return place + 1
    raise ValueError("a row without a predicted id")
