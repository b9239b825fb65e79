"""The grammar of spans for batches of ids, and for transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LogitsProcessor

from perception.grammar.automaton import SpanGrammar, SpanLimits, bounded
from perception.vocabulary.spans import BOX_OF_MASK, GROUP_SIZES, MODALITIES

_BOXES, _MASKS = 1 + MODALITIES.index("boxes"), 1 + MODALITIES.index("masks")
_OTHER, _CODE = 0, len(MODALITIES) + 1  # kinds of ids; 1, 2, 3, 4 are the STARTs, in the order of MODALITIES
_OUTSIDE, _DEPTH_CODE, _DEPTH_END, _LOCATION, _BOX_OR_END, _BOX_END, _POINT_OR_END, _POINT_END = range(8)
_MASK_CODE, _MASK_END, _NUM_STATES = 8, 9, 10

_ENDS = {
    "depth": [_DEPTH_END],
    "boxes": [_BOX_OR_END, _BOX_END],
    "points": [_POINT_OR_END, _POINT_END],
    "masks": [_MASK_END],
}
"""States that allow the END of each modality"""


@dataclass(frozen=True)
class _Tables:
    """The grammar as tensors, for one device and one number of logits."""

    kinds: Tensor
    """(T + 1,) long: kind of each id; the last entry stands for all ids from T"""
    codes: Tensor
    """(T + 1,) long: bin of a location, 0 for the rest"""
    masks: Tensor
    """(states, V) bool: ids that each state allows"""
    location_ids: Tensor
    """(N,) long"""


def _build_tables(grammar: SpanGrammar, num_logits: int, device: torch.device) -> _Tables:
    vocabulary = grammar.vocabulary
    size = max(vocabulary.ids.values()) + 1
    if num_logits < size:
        raise ValueError(
            f"the model has {num_logits} logits and perception ids go up to {size - 1}; use the model that the "
            "vocabulary was saved with, or extend(model, tokenizer)"
        )
    kinds = torch.full((size + 1,), _OTHER)
    codes = torch.zeros(size + 1, dtype=torch.long)
    location_ids = torch.tensor(vocabulary.code_ids("boxes"), dtype=torch.long)  # (N,)
    depth_ids = torch.tensor(vocabulary.code_ids("depth"), dtype=torch.long)  # (K,)
    mask_ids = torch.tensor(vocabulary.code_ids("masks"), dtype=torch.long)  # (K,), empty without masks
    kinds[location_ids] = kinds[depth_ids] = kinds[mask_ids] = _CODE
    codes[location_ids] = torch.arange(len(location_ids))
    for kind, modality in enumerate(MODALITIES, start=1):
        if modality in vocabulary.marked:
            kinds[vocabulary.start_id(modality)] = kind
    masks = torch.zeros(_NUM_STATES, num_logits, dtype=torch.bool)
    masks[_OUTSIDE, : grammar.num_ids] = True
    masks[_OUTSIDE, list(vocabulary.ids.values())] = False
    masks[_OUTSIDE, [i for i in grammar.banned_ids if i < num_logits]] = False
    masks[_OUTSIDE, [vocabulary.start_id(m) for m in grammar.allow if m in vocabulary.marked]] = True
    masks[_OUTSIDE, location_ids] = grammar.bare_boxes
    if grammar.interleave:
        masks[_OUTSIDE, vocabulary.interleave_id] = True
    masks[_DEPTH_CODE, depth_ids] = True
    masks[_MASK_CODE, mask_ids] = True
    for state in (_LOCATION, _BOX_OR_END, _POINT_OR_END):
        masks[state, location_ids] = True
    for modality, states in _ENDS.items():
        if modality in vocabulary.marked:
            masks[states, vocabulary.end_id(modality)] = True
    return _Tables(kinds.to(device), codes.to(device), masks.to(device), location_ids.to(device))


class GrammarMasks:
    """The automaton of `SpanGrammar` for batches: masks of the ids that may follow sequences and their prefixes."""

    def __init__(self, grammar: SpanGrammar):
        self.grammar = grammar
        self._tables: dict[tuple[torch.device, int], _Tables] = {}
        self._map_ids: dict[torch.device, Tensor] = {}
        roles = grammar.vocabulary.id_roles
        self._kinds = {token: _CODE for token, role in roles.items() if role.kind == "code"}
        marked = grammar.vocabulary.marked
        self._kinds |= {grammar.vocabulary.start_id(name): 1 + MODALITIES.index(name) for name in marked}

    def after(self, ids: Tensor, num_logits: int, count: int = 1, remaining: Tensor | None = None) -> Tensor:
        """Mask of the ids that may follow the last `count` prefixes of sequences, the shortest prefix first.

        Args:
            ids: (B, L), with any padding on the left. They must be well-formed, or the mask is meaningless.
            num_logits: V, the number of columns of the mask.
            count: number of prefixes, from `ids` without their last count - 1 ids to `ids` whole.
            remaining: (B, count), number of tokens that may still follow each prefix; None for no limit. A span is only
                started where it can end within the limit, and boxes and points are ended in time.

        Returns:
            (B, count, V) bool.
        """
        tables = self._tables_for(ids.device, num_logits)
        modality, seen = self._open_spans(tables, ids, count)  # (B, count) each
        allowed = tables.masks[self._states(modality, seen, remaining)]  # (B, count, V), a copy
        if remaining is not None:
            if self.grammar.bare_boxes:
                short = (remaining < self.grammar.shortest("boxes")) & (seen % GROUP_SIZES["boxes"] == 0)  # (B, count)
                allowed[..., tables.location_ids] &= ~short[..., None]
            for name in set(self.grammar.allow) & set(self.grammar.vocabulary.marked):
                allowed[..., self.grammar.vocabulary.start_id(name)] &= remaining >= self.grammar.shortest(name)
        if self.grammar.ordered_boxes:
            bounds = (seen % 4 >= 2) & ((modality == self._boxes) | ((modality == _MASKS) & (seen < BOX_OF_MASK)))
            if bool(bounds.any()):  # (B, count)
                # x2 comes two ids after x1, y2 two after y1
                two_before = F.pad(ids, (count + 1, 0), value=-1)[:, -count - 1 : -1]  # (B, count)
                lowest = torch.where(bounds, tables.codes[_lookup(tables, two_before)], 0)  # (B, count)
                bins = torch.arange(len(tables.location_ids), device=ids.device)  # (N,)
                allowed[..., tables.location_ids] &= bins >= lowest[..., None]  # (B, count, N)
        return allowed

    def weigh_ends(self, scores: Tensor) -> Tensor:
        """Apply `SpanGrammar.weighs_ends` to masked scores (..., V), in place; END gets -inf where a list goes on."""
        if not self.grammar.weighs_ends:
            return scores
        vocabulary = self.grammar.vocabulary
        locations = self._tables_for(scores.device, scores.shape[-1]).location_ids  # (N,)
        going_on = scores[..., locations].float().logsumexp(-1)  # (...)
        for name in {"boxes", "points"} & set(vocabulary.marked):
            end = scores[..., vocabulary.end_id(name)]
            scores[..., vocabulary.end_id(name)] = end.masked_fill(going_on > end, -torch.inf)
        return scores

    @property
    def _boxes(self) -> int:
        """What `_open_spans` gives for a box that is being written."""
        return _OTHER if self.grammar.bare_boxes else _BOXES

    def in_map(self, device: torch.device, num_logits: int) -> Tensor:
        """Mask (V,) of the ids that may follow inside a depth map that is not complete."""
        return self._tables_for(device, num_logits).masks[_DEPTH_CODE]

    def map_ids(self, device: torch.device) -> Tensor:
        """Ids (K,) of the depth codes, in ascending order."""
        if device not in self._map_ids:
            self._map_ids[device] = torch.tensor(
                sorted(self.grammar.vocabulary.code_ids("depth")), dtype=torch.long, device=device
            )
        return self._map_ids[device]

    @property
    def ample(self) -> int:
        """Number of remaining tokens from which a limit bans nothing."""
        return 1 + max([2 * max(GROUP_SIZES.values()), *(self.grammar.shortest(name) for name in self.grammar.allow)])

    def open_spans(self, ids: Tensor, num_logits: int) -> list[tuple[int, int]]:
        """Open span per sequence of ids (B, L): 1 + its index in MODALITIES, or 0, and its number of codes."""
        modality, seen = self._open_spans(self._tables_for(ids.device, num_logits), ids, 1)
        return list(zip(modality[:, 0].tolist(), seen[:, 0].tolist(), strict=True))

    def read_on(self, spans: list[tuple[int, int]], new: list[int]) -> list[tuple[int, int]]:
        """Open spans after one more id per sequence."""
        read = []
        for (modality, seen), token in zip(spans, new, strict=True):
            kind = self._kinds.get(token, _OTHER)
            read.append((modality, seen + 1) if kind == _CODE else (kind, 0))
        return read

    def plain_states(self, spans: list[tuple[int, int]]) -> list[int] | None:
        """States of open spans where no limit is near; None where a side of a box bounds the next one."""
        states = {}
        for modality, seen in set(spans):  # rows of a batch are often in the same state
            name = (None, *MODALITIES)[modality] if modality != self._boxes else "boxes"
            if self.grammar.ordered_boxes and bounded(name, seen):
                return None
            states[modality, seen] = self._state(modality, seen)
        return [states[span] for span in spans]

    def _state(self, modality: int, seen: int) -> int:
        if modality == _OTHER:
            return _LOCATION if self.grammar.bare_boxes and seen % GROUP_SIZES["boxes"] else _OUTSIDE
        name = MODALITIES[modality - 1]
        if name == "depth":
            return _DEPTH_CODE if seen < self.grammar.vocabulary.depth_length else _DEPTH_END
        if name == "masks":
            if seen < BOX_OF_MASK:
                return _LOCATION
            return _MASK_CODE if seen < self.grammar.vocabulary.lengths["masks"] else _MASK_END
        if seen % GROUP_SIZES[name]:
            return _LOCATION
        most = self.grammar.most_codes(name)
        any_or_end, end = (_BOX_OR_END, _BOX_END) if modality == _BOXES else (_POINT_OR_END, _POINT_END)
        return end if most is not None and seen >= most else any_or_end

    def of_states(self, states: list[int], device: torch.device, num_logits: int) -> Tensor:
        """Masks (B, V) of states, or (1, V) where all are the same."""
        masks = self._tables_for(device, num_logits).masks
        if len(set(states)) == 1:
            return masks[states[0]][None]
        return masks[torch.tensor(states, device=device)]

    def _tables_for(self, device: torch.device, num_logits: int) -> _Tables:
        key = (device, num_logits)
        if key not in self._tables:
            self._tables[key] = _build_tables(self.grammar, num_logits, device)
        return self._tables[key]

    def _open_spans(self, tables: _Tables, ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Open span per prefix of ids (B, L): 1 + its index in MODALITIES, or 0; and its number of codes; (B, count).

        A span is open where the last id that is not a code is a START.
        """
        ids = F.pad(ids, (1, 0), value=-1)  # no prefix is empty
        length = ids.shape[1]
        width = min(length, self.grammar.vocabulary.depth_length + 1 + count)
        while True:
            kinds = tables.kinds[_lookup(tables, ids[:, length - width :])]  # (B, width)
            places = torch.arange(width, device=ids.device)
            last = torch.where(kinds != _CODE, places, -1).cummax(1).values[:, width - count :]  # (B, count)
            if width == length or bool((last[:, 0] >= 0).all()):
                break
            width = min(length, 2 * width)
        kind = kinds.gather(1, last.clamp_min(0))  # (B, count)
        modality = torch.where(kind == _CODE, _OTHER, kind)  # codes without a START belong to no span
        return modality, places[width - count :] - last

    def _states(self, modality: Tensor, seen: Tensor, remaining: Tensor | None) -> Tensor:
        """States of open spans by modality and number of codes; all (B, count)."""

        def grouped(name: str, any_or_end: int, end: int) -> Tensor:
            size, most = GROUP_SIZES[name], self.grammar.most_codes(name)
            full = seen >= (torch.inf if most is None else most)
            if remaining is not None:
                full = full | (remaining <= size)
            return torch.where(seen % size == 0, torch.where(full, end, any_or_end), _LOCATION)

        whole_mask = self.grammar.vocabulary.lengths["masks"]
        states = torch.stack(
            [
                torch.where((seen % GROUP_SIZES["boxes"] > 0) & self.grammar.bare_boxes, _LOCATION, _OUTSIDE),
                torch.where(seen < self.grammar.vocabulary.depth_length, _DEPTH_CODE, _DEPTH_END),
                grouped("boxes", _BOX_OR_END, _BOX_END),
                grouped("points", _POINT_OR_END, _POINT_END),
                torch.where(seen < BOX_OF_MASK, _LOCATION, torch.where(seen < whole_mask, _MASK_CODE, _MASK_END)),
            ]
        )  # (5, B, count)
        return states.gather(0, modality[None])[0]


def mask_scores(scores: Tensor, allowed: Tensor) -> Tensor:
    """Set scores (..., V) to -inf where not allowed; allowed ids get 0 where none of them has a finite score."""
    masked = torch.where(allowed, scores, -torch.inf)
    best = masked.amax(-1, keepdim=True)  # (..., 1)
    if masked.is_cpu and float(best.min()) > -torch.inf:  # on an accelerator this would wait for the result
        return masked
    return masked.masked_fill((best == -torch.inf) & allowed, 0)


class SpanLogitsProcessor(LogitsProcessor):
    """Restricts transformers' `generate` to well-formed spans.

    Works with greedy decoding, sampling, beams and batches, any number of spans of mixed modalities, and spans that the
    prompt starts. The state is read from the ids at every step, so beams may be reordered and one processor may be used
    for many calls.

    The prompt must be well-formed. Where other processors have left no allowed id, all allowed ids get the score 0.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        grammar: SpanGrammar,
        max_length: int | None = None,
        limits: Sequence[SpanLimits | None] | None = None,
        greedy: bool = True,
    ):
        """
        Args:
            grammar: says what is allowed.
            max_length: length in tokens, prompt included, at which `generate` stops. Spans are only started where they
                can end by then, and boxes and points are ended in time. Without it the limit can cut a span short.
            limits: one per prompt; None for any number of spans.
            greedy: False for sampling and beams, whose probabilities `SpanGrammar.weighs_ends` would change.
        """
        self.grammar, self.greedy = grammar, greedy
        self.max_length = max_length
        self.limits = list(limits or ())
        self._reserve = max((limit.reserve for limit in self.limits if limit is not None), default=0)
        self._masks = GrammarMasks(grammar)
        self._ids: Tensor | None = None  # of the last call
        self._spans: list[tuple[int, int]] = []  # the open span of each of its rows, and its codes so far

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set scores (B, V) to -inf for every id that may not follow input_ids (B, L).

        Raises:
            ValueError: where B is no multiple of the number of limits.
        """
        rows, length = input_ids.shape
        if self.limits and rows % len(self.limits):
            raise ValueError(
                f"limits must be one per prompt: got {len(self.limits)} for {rows} rows, which is no multiple; make a "
                "processor for each batch"
            )
        spans = self._follow(input_ids, scores.shape[-1])
        ample = self.max_length is None or self.max_length - length >= self._masks.ample + self._reserve
        if ample and (states := self._masks.plain_states(spans)) is not None:
            masks = self._masks.of_states(states, input_ids.device, scores.shape[-1])  # (B or 1, V)
            return self._weighed(mask_scores(scores, self._limited(input_ids, masks)))
        remaining = None
        if self.max_length is not None:
            free = [0 if limit is None else limit.reserve for limit in self._limits_of(rows)]
            remaining = self.max_length - length - torch.tensor(free, device=input_ids.device)[:, None]  # (B, 1)
        masks = self._masks.after(input_ids, scores.shape[-1], remaining=remaining)[:, 0]
        return self._weighed(mask_scores(scores, self._limited(input_ids, masks)))

    def _weighed(self, scores: Tensor) -> Tensor:
        return self._masks.weigh_ends(scores) if self.greedy else scores

    def _limits_of(self, rows: int) -> list[SpanLimits | None]:
        """Limits of each row; a prompt has several rows where beams or several sequences are asked for."""
        copies = rows // max(len(self.limits), 1)
        return [limit for limit in self.limits for _ in range(copies)] or [None] * rows

    def _limited(self, ids: Tensor, masks: Tensor) -> Tensor:
        """Masks (B, V) without the STARTs of spans that rows of ids (B, L) have enough of, and without silent ids where
        text must follow a span; from (B or 1, V)."""
        if not self.limits or all(modality != _OTHER for modality, _ in self._spans):
            return masks
        limits = self._limits_of(len(ids))
        masks = masks.expand(len(ids), -1).clone()
        if marked := self.grammar.vocabulary.marked:
            starts = torch.tensor([self.grammar.vocabulary.start_id(name) for name in marked], device=ids.device)
            most = [
                [ids.shape[1] + 1 if limit is None else limit.most.get(name, ids.shape[1] + 1) for name in marked]
                for limit in limits
            ]
            enough = (ids[..., None] == starts).sum(1) >= torch.tensor(most, device=ids.device)  # (B, M)
            masks[:, starts] &= ~enough
        for mask, row, limit in zip(masks, ids.tolist(), limits, strict=True):
            if limit is not None and limit.silent_ids:
                last = next((token for token in reversed(row) if token not in limit.blank_ids), None)
                if last in self.grammar.vocabulary.id_roles:
                    mask[list(limit.silent_ids)] = False
        return masks

    def _follow(self, ids: Tensor, num_logits: int) -> list[tuple[int, int]]:
        """Open span per row: updated by the new id where the rows continue those of the last call, else read again."""
        last = self._ids
        goes_on = last is not None and last.shape == (len(ids), ids.shape[1] - 1) and torch.equal(last, ids[:, :-1])
        if goes_on:
            self._spans = self._masks.read_on(self._spans, ids[:, -1].tolist())
        else:
            self._spans = self._masks.open_spans(ids, num_logits)
        self._ids = ids.clone()  # a caller may keep its rows in one buffer
        return self._spans


def _lookup(tables: _Tables, ids: Tensor) -> Tensor:
    """Indices into `kinds` and `codes` for any ids, also negative ones and those beyond the vocabulary."""
    size = len(tables.kinds) - 1
    return torch.where((ids < 0) | (ids > size), size, ids)
