"""The grammar of spans in transformers' `generate`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from perception.grammar import SpanGrammar
from perception.spans import GROUP_SIZES, MODALITIES

_OTHER, _CODE = 0, len(MODALITIES) + 1  # kinds of ids; 1, 2, 3 are the STARTs, in the order of MODALITIES
_OUTSIDE, _DEPTH_CODE, _DEPTH_END, _LOCATION, _BOX_OR_END, _BOX_END, _POINT_OR_END, _POINT_END = range(8)


@dataclass(frozen=True)
class _Tables:
    """The grammar as tensors, on one device and for one number of logits."""

    kinds: Tensor
    """(T + 1,) long: what each id is; the last entry stands for every id from T on"""
    codes: Tensor
    """(T + 1,) long: bin of a location, 0 for the rest"""
    masks: Tensor
    """(8, V) bool: ids that a state lets in"""
    location_ids: Tensor
    """(N,) long"""


def _build_tables(grammar: SpanGrammar, num_logits: int, device: torch.device) -> _Tables:
    vocabulary = grammar.vocabulary
    size = max(vocabulary.ids.values()) + 1
    if num_logits < size:
        raise ValueError(
            f"the model gives {num_logits} logits and perception ids go up to {size - 1}; use the model that the "
            "vocabulary was saved with, or extend(model, tokenizer)"
        )
    kinds = torch.full((size + 1,), _OTHER)
    codes = torch.zeros(size + 1, dtype=torch.long)
    location_ids = torch.tensor(vocabulary.code_ids("boxes"))  # (N,)
    depth_ids = torch.tensor(vocabulary.code_ids("depth"))  # (K,)
    kinds[location_ids] = kinds[depth_ids] = _CODE
    codes[location_ids] = torch.arange(len(location_ids))
    for kind, modality in enumerate(MODALITIES, start=1):
        kinds[vocabulary.start_id(modality)] = kind
    masks = torch.zeros(8, num_logits, dtype=torch.bool)
    masks[_OUTSIDE, : grammar.num_ids] = True
    masks[_OUTSIDE, list(vocabulary.ids.values())] = False
    masks[_OUTSIDE, [i for i in grammar.banned_ids if i < num_logits]] = False
    masks[_OUTSIDE, [vocabulary.start_id(m) for m in grammar.allow]] = True
    masks[_OUTSIDE, vocabulary.interleave_id] = grammar.interleave
    masks[_DEPTH_CODE, depth_ids] = True
    masks[_DEPTH_END, vocabulary.end_id("depth")] = True
    for state in (_LOCATION, _BOX_OR_END, _POINT_OR_END):
        masks[state, location_ids] = True
    masks[[_BOX_OR_END, _BOX_END], vocabulary.end_id("boxes")] = True
    masks[[_POINT_OR_END, _POINT_END], vocabulary.end_id("points")] = True
    return _Tables(kinds.to(device), codes.to(device), masks.to(device), location_ids.to(device))


class SpanLogitsProcessor(LogitsProcessor):
    """Lets `generate` write well-formed spans only, whatever the model: greedy, sampled, beams, batches, any number of
    spans and mixed modalities, and spans that the prompt begins.

    The state is read from the ids at every step, so beams may be reordered and one processor may serve many calls. A
    span is open where the last id that is no code is a START; only the ids since then are looked at.

    The prompt must be well-formed as far as it goes. Where other processors have left no allowed id, all allowed ones
    get the score 0.
    """

    supports_continuous_batching = False

    def __init__(self, grammar: SpanGrammar, max_length: int | None = None):
        """
        Args:
            grammar: what is allowed.
            max_length: of a whole sequence, prompt included, as `generate` stops there. No span is started that could
                not end by then, and boxes and points end in time. Without it a span can be cut short by the limit.
        """
        self.grammar = grammar
        self.max_length = max_length
        self._tables: dict[tuple[torch.device, int], _Tables] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with -inf for every id that may not follow input_ids (B, L)."""
        key = (scores.device, scores.shape[-1])
        if key not in self._tables:
            self._tables[key] = _build_tables(self.grammar, scores.shape[-1], scores.device)
        tables = self._tables[key]
        remaining = None if self.max_length is None else self.max_length - input_ids.shape[1]
        modality, count = self._open_spans(tables, input_ids)  # (B,), (B,)
        allowed = tables.masks[self._states(modality, count, remaining)]  # (B, V), a copy
        if remaining is not None:
            for name in self.grammar.allow:
                if remaining < self.grammar.shortest(name):
                    allowed[:, self.grammar.vocabulary.start_id(name)] = False
        if self.grammar.ordered_boxes and input_ids.shape[1] >= 2:
            # x2 stands two after x1, y2 two after y1
            partner = tables.codes[_lookup(tables, input_ids[:, -2])]  # (B,)
            bounded = (modality == 1 + MODALITIES.index("boxes")) & (count % 4 >= 2)
            lowest = torch.where(bounded, partner, 0)  # (B,)
            bins = torch.arange(len(tables.location_ids), device=scores.device)  # (N,)
            allowed[:, tables.location_ids] &= bins >= lowest[:, None]  # (B, N)
        masked = scores.masked_fill(~allowed, -torch.inf)  # (B, V)
        stuck = masked.amax(-1, keepdim=True) == -torch.inf  # (B, 1)
        return masked.masked_fill(stuck & allowed, 0)

    def _open_spans(self, tables: _Tables, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of sequences (B, L): the open span's modality (B,), 1 + its place in MODALITIES or 0; its codes (B,)."""
        length = input_ids.shape[1]
        if length == 0:
            zeros = input_ids.new_zeros(input_ids.shape[0], dtype=torch.long)
            return zeros, zeros
        width = min(length, self.grammar.vocabulary.depth_length + 2)
        while True:
            kinds = tables.kinds[_lookup(tables, input_ids[:, length - width :])]  # (B, width)
            places = torch.arange(width, device=input_ids.device)
            last = torch.where(kinds != _CODE, places, -1).amax(1)  # (B,): of the last id that is no code
            if width == length or bool((last >= 0).all()):
                break
            width = min(length, 2 * width)
        kind = kinds.gather(1, last.clamp_min(0)[:, None])[:, 0]  # (B,)
        modality = torch.where(kind == _CODE, _OTHER, kind)  # codes that no START begins are nobody's
        return modality, width - 1 - last

    def _states(self, modality: Tensor, count: Tensor, remaining: int | None) -> Tensor:
        """Rows of `masks` (B,) for open spans (B,) with so many codes (B,)."""

        def grouped(name: str, any_or_end: int, end: int) -> Tensor:
            size, most = GROUP_SIZES[name], self.grammar.most_codes(name)
            no_room = remaining is not None and remaining <= size
            full = (
                torch.ones_like(count, dtype=torch.bool) if no_room else count >= (torch.inf if most is None else most)
            )
            return torch.where(count % size == 0, torch.where(full, end, any_or_end), _LOCATION)

        states = torch.stack(
            [
                torch.full_like(count, _OUTSIDE),
                torch.where(count < self.grammar.vocabulary.depth_length, _DEPTH_CODE, _DEPTH_END),
                grouped("boxes", _BOX_OR_END, _BOX_END),
                grouped("points", _POINT_OR_END, _POINT_END),
            ]
        )  # (4, B)
        return states.gather(0, modality[None])[0]


def _lookup(tables: _Tables, ids: Tensor) -> Tensor:
    """Indices into `kinds` and `codes` for any ids, those of placeholders beyond the vocabulary and below 0 too."""
    size = len(tables.kinds) - 1
    return torch.where((ids < 0) | (ids > size), size, ids)
