"""Speculative decoding under the grammar: several tokens per forward pass, with the output of plain decoding.

Each forward pass reads the last confirmed id and a window of guesses after it (`perception.decoding.drafts`). Guesses
that the model itself would have chosen are confirmed, and so is the id that it chose after them. The other guesses are
dropped, and the model's predictions become the next ones. Greedy answers have the same ids as decoding one at a time,
in float32 up to rare ties; in half precision near-ties differ, as they do in plain decoding between two batch sizes
(docs/fast_decoding.md).
Sampled answers have the same distribution: a guess is accepted with the probability that the model gives it, and where
it is rejected the id is drawn from the remaining probability (speculative sampling, Leviathan et al., arXiv 2211.17192,
with drafts of probability 1).

Rows of a batch are confirmed at different speeds. The cache has a slot for every token that was fed; slots of rejected
tokens are masked, and dropped where no row needs the slots after them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perception.decoding.cache_slots import SlotCache, cache_key, pack, packed_order, why_not_packable
from perception.decoding.draft_network import DraftNetwork, prompt_states
from perception.decoding.drafts import RowDraft
from perception.decoding.lean_forward import LeanForward
from perception.decoding.map_reader import Due
from perception.decoding.output_layer import float32_linear
from perception.decoding.sampling import Sampling, choose_ids
from perception.grammar.automaton import SpanGrammar, SpanLimits
from perception.grammar.processor import GrammarMasks, mask_scores
from perception.vocabulary.names import PerceptionVocabulary

_logger = logging.getLogger(__name__)
_AT_ONCE = 96  # tokens of all rows per forward pass; with more it takes longer than the passes that it saves
_BEHIND = 16  # guesses after a map that is accepted unverified
_NARROWEST = 4  # smallest number of tokens of a row per forward pass, in batches of any size
_MAX_JUNK = 64  # masked slots of the cache before it is packed
_SLICE_SHARE = 4  # the output layer is sliced where at most one in this many of its rows is allowed


NO_ID = -1
"""Equal to no token's id"""


def map_markers(vocabulary: PerceptionVocabulary) -> tuple[int, int]:
    """Ids of a depth map's START and END; NO_ID for both where the vocabulary has no depth."""
    if "depth" not in vocabulary.modalities:
        return NO_ID, NO_ID
    return vocabulary.start_id("depth"), vocabulary.end_id("depth")


@dataclass
class DecodingTrace:
    """Counts of a call of `decode`."""

    forwards: int = 0
    """Forward passes, the prompt's included"""
    fed: int = 0
    """Tokens of all rows after the prompt, rejected ones included"""
    confirmed: int = 0
    """Tokens of the answers"""


@dataclass(frozen=True)
class _Limits:
    """Limits of an answer and of a forward pass."""

    most: int
    """Largest number of tokens of an answer"""
    stop_ids: tuple[int, ...]
    num_logits: int
    width: int
    """Number of tokens of a row per forward pass"""
    sweeps: int | None

    def ends(self, ids: Sequence[int]) -> bool:
        return ids[-1] in self.stop_ids or len(ids) >= self.most


def why_not(model: Any, cache: Any) -> str | None:
    """Describe why a model cannot decode several tokens per forward pass; None where it can."""
    if reason := why_not_packable(cache):
        return reason
    if getattr(model.config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    return None


class _RowState:
    """One unfinished answer."""

    def __init__(
        self,
        prompt: Sequence[int],
        draft: Sequence[int],
        vocabulary: PerceptionVocabulary,
        due: Due | None = None,
        limits: SpanLimits | None = None,
    ):
        self.draft = RowDraft(vocabulary, draft)
        self.due = due
        limits = limits or SpanLimits({})
        self.reserve = limits.reserve
        limited = [name for name in limits.most if name in vocabulary.marked]
        self.starts_left = {vocabulary.start_id(name): limits.most[name] for name in limited}
        """Number of spans that may still be started, by the id of their START; any number of others"""
        self.silent, self.blank = list(limits.silent_ids), limits.blank_ids
        self.last = NO_ID
        """The newest id that is not blank"""
        self.ids: list[int] = []
        self.span: list[int] = []
        """The newest ids, from the last one that is not a code: all that the grammar reads"""
        self.drafted = False
        """True if the draft was made for this prompt by a draft network"""
        self.sweeps = 0
        """Number of forward passes over the open depth map"""
        self._roles = vocabulary.id_roles
        (self._depth_start, self._depth_end), self._depth_length = map_markers(vocabulary), vocabulary.depth_length
        codes = vocabulary.code_ids("depth") or [NO_ID]
        self._is_depth, self._middle = frozenset(codes), codes[len(codes) // 2]
        self._read(prompt)

    def _read(self, ids: Sequence[int]) -> None:
        for token in ids:
            role = self._roles.get(token)
            self.span = [*self.span, token] if role is not None and role.kind == "code" else [token]
            if token in self.starts_left:
                self.starts_left[token] -= 1
            if token not in self.blank:
                self.last = token

    def confirm(self, new: Sequence[int], predicted: Sequence[int]) -> None:
        self.ids += new
        self._read(new)
        self.draft.confirm(new, predicted)
        if self.due is not None:
            self.draft.force(self.due(self.ids))

    def restrict(self, allowed: Tensor, fed: Sequence[int]) -> None:
        """Restrict the masks (width, V) after each of the ids fed (width): no more spans than the row may start, no
        silent id where text must follow a span, and only the id that is due where one is."""
        for start, left in self.starts_left.items():
            opened = [place for place, token in enumerate(fed) if place and token == start]
            if left <= len(opened):
                allowed[opened[left - 1] if left > 0 else 0 :, start] = False
        last = self.last
        for place, token in enumerate(fed if self.silent else ()):
            if place and token not in self.blank:
                last = token
            if last in self._roles:
                allowed[place, self.silent] = False
        if self.due is not None:
            for place in range(len(fed)):
                if forced := self.due([*self.ids, *fed[1 : place + 1]]):
                    allowed[place] = False
                    allowed[place, forced[0]] = True

    def codes_left(self) -> int:
        """Number of codes that the open depth map lacks; 0 outside a depth map."""
        return self._depth_length + 1 - len(self.span) if self.span[0] == self._depth_start else 0

    def settles(self, sweeps: int | None) -> bool:
        """True if the next forward pass is the last one over the open depth map."""
        if sweeps is None or not self.codes_left():
            return False
        return self.sweeps + 1 >= (sweeps if self.drafted else max(sweeps, 2))

    def fed(self, width: int, filler: int) -> list[int]:
        """The last confirmed id and the guesses after it, then `filler` up to `width` ids.

        Inside an open depth map guesses always have its form: codes up to its length, then its END.
        """
        ids = [self.ids[-1], *self.draft.guesses(width - 1)]
        ids += [filler] * (width - len(ids))
        codes = self.codes_left()
        for place in range(1, min(codes, width - 1) + 1):
            if ids[place] not in self._is_depth:
                ids[place] = ids[place - 1] if ids[place - 1] in self._is_depth else self._middle
        if self.span[0] == self._depth_start and codes + 1 < width:
            ids[codes + 1] = self._depth_end
        return ids


class _BatchState:
    """The cache that unfinished rows share, and the mask of its real slots."""

    def __init__(self, model: Any, cache: Any, mask: Tensor):
        self.model = model
        self.cache = cache
        self.mask = mask.long()  # (b, slots)
        self.real: list[int] = self.mask.sum(1).tolist()
        """Number of real slots per row"""
        deltas = getattr(getattr(model, "model", None), "rope_deltas", None)
        self.deltas = None if deltas is None else deltas.expand(len(mask), 1)  # (b, 1)

    def inputs(self, fed: Tensor) -> dict[str, Any]:
        """Inputs of a forward pass over fed ids (b, width)."""
        width = fed.shape[1]
        ahead = torch.arange(width, device=fed.device)
        positions = torch.tensor(self.real, device=fed.device)[:, None] + ahead  # (b, width)
        if self.deltas is not None:
            positions = (positions + self.deltas)[None].expand(3, -1, -1)  # time, height, width: equal in text
        return {
            "input_ids": fed,
            "attention_mask": torch.cat([self.mask, torch.ones_like(fed)], 1),
            "position_ids": positions,
            cache_key(): self.cache,
            "use_cache": True,
        }

    def keep(self, taken: Sequence[int], width: int) -> None:
        """Keep the first `taken` of the newest `width` slots, per row."""
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
        """Drop all rows but these, which are in ascending order."""
        places = torch.tensor(rows, device=self.mask.device)
        if isinstance(self.cache, SlotCache):
            self.cache.keep_rows(rows)
        else:
            self.cache.batch_select_indices(places)
        self.mask, self.real = self.mask[places], [self.real[row] for row in rows]
        self.deltas = None if self.deltas is None else self.deltas[places]

    def _pack(self) -> None:
        """Move every row's real slots to the right and drop the columns that no row needs."""
        order = packed_order(self.mask)  # (b, kept)
        pack(self.cache, order)
        self.mask = self.mask.gather(1, order)


class SpanDecoder:
    """Decodes answers of a model under a grammar."""

    def __init__(self, model: Any, grammar: SpanGrammar, window: int = 32, draft_network: DraftNetwork | None = None):
        """
        Args:
            window: largest number of tokens of a row per forward pass; large batches use fewer.
            draft_network: drafts answers that begin with a depth map.

        Raises:
            ValueError: for a window below 2, or a network that was made for another model.
        """
        if window < 2:
            raise ValueError(f"window must be at least 2 (the last id and one guess), got {window}")
        self.model = model
        self.grammar = grammar
        self.window = window
        self.draft_network = draft_network
        if draft_network is not None:
            draft_network.check(model)
            draft_network.to(model.device)
        self._masks = GrammarMasks(grammar)
        self._head: Any = None  # the output layer, where it can be sliced; False where it cannot
        self._lean: LeanForward | None = None  # the direct forward pass, where the model allows it
        self._compiled: dict[str, Any] | None = None  # settings of torch.compile
        self._warned = False

    def compile(self, **settings: Any) -> None:
        """Compile forward passes over guesses with `torch.compile`; each new size costs seconds when it first occurs.

        Args:
            settings: of `torch.compile`; dynamic=True by default.
        """
        self._compiled, self._head = settings, None  # the next prompt sets up the lean forward pass again

    def decode(
        self,
        inputs: dict[str, Tensor],
        drafts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling | None = None,
        trace: DecodingTrace | None = None,
        sweeps: int | None = None,
        dues: Sequence[Due | None] | None = None,
        limits: Sequence[SpanLimits | None] | None = None,
    ) -> list[list[int]] | None:
        """Decode the answers to a batch of prompts; returns their ids, with the stop id where one was reached.

        Args:
            inputs: of the model: input_ids (B, T), padded on the left, attention_mask, and the images.
            drafts: one per row, a guess of its answer; may be empty.
            max_new_tokens: per row.
            dues: one per row, what tells the ids that must come next (`perception.decoding.map_reader`); None forces
                nothing.
            limits: one per row, the spans that it may draw; None for any number.
            sweeps: if given, decoding is approximate: all codes of a depth map are guessed at once, and after this many
                forward passes the guesses are accepted, verified or not. With 1 the draft network's map is accepted as
                it is; a map that it did not draft gets at least two passes.

        Returns:
            The ids per row; None where the model cannot decode several tokens per forward pass (a warning says why,
            once), so that they must be decoded one at a time.

        Raises:
            ValueError: where sweeps is below 1, or is 1 and there is no draft network.
        """
        steps = self.stream(inputs, drafts, max_new_tokens, stop_ids, sampling, trace, sweeps, dues, limits)
        newest: deque[list[list[int]]] = deque(steps, maxlen=1)
        return newest[0] if newest else None

    @torch.no_grad()
    def stream(
        self,
        inputs: dict[str, Tensor],
        drafts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        sampling: Sampling | None = None,
        trace: DecodingTrace | None = None,
        sweeps: int | None = None,
        dues: Sequence[Due | None] | None = None,
        limits: Sequence[SpanLimits | None] | None = None,
    ) -> Iterator[list[list[int]]]:
        """Yield all rows' ids so far after each forward pass; yields nothing where `decode` returns None.

        Decoding stops when the caller stops iterating.
        """
        if sweeps is not None and sweeps < (1 if self.draft_network is not None else 2):
            raise ValueError(
                f"sweeps must be at least 2 (one pass guesses, one refines), got {sweeps}; 1 needs a draft network "
                "beside the model (`python -m train.drafts`)"
            )
        from transformers import DynamicCache

        trace, sampling = trace or DecodingTrace(), sampling or Sampling()
        prompt, mask = inputs["input_ids"], inputs["attention_mask"]
        cache: Any = DynamicCache(config=self.model.config.get_text_config())
        logits, states = self._prefill(inputs, cache)  # (B, 1, V)
        trace.forwards += 1
        if reason := why_not(self.model, cache):
            if not self._warned:
                _logger.warning(
                    "decoding one token at a time: %s cannot decode several, as %s", type(self.model).__name__, reason
                )
                self._warned = True
            return
        dues, limits = dues or [None] * len(prompt), limits or [None] * len(prompt)
        rows = [
            _RowState(ids, draft, self.grammar.vocabulary, due, limit)
            for ids, draft, due, limit in zip(prompt.tolist(), drafts, dues, limits, strict=True)
        ]
        room = torch.tensor([[max_new_tokens - row.reserve] for row in rows], device=prompt.device)  # (B, 1)
        allowed = self._masks.after(prompt, logits.shape[-1], remaining=room)  # (B, 1, V)
        for row, masks in zip(rows, allowed, strict=True):
            row.restrict(masks, [-1])
        predicted = self._choose(mask_scores(logits.float(), allowed), None, sampling)  # (B, 1)
        if self.draft_network is not None and states is not None:
            self._draft(rows, predicted[:, 0].tolist(), self.draft_network.draft(states))
        self._confirm(rows, predicted.tolist(), [1] * len(rows), trace)
        width = min(self.window, max(_NARROWEST, _AT_ONCE // len(rows)))
        most = _Limits(max_new_tokens, tuple(stop_ids), logits.shape[-1], width, sweeps)
        if self._lean is not None:
            with torch.inference_mode():  # as in `_step`, since compiled code tells inference tensors from others
                cache = SlotCache(cache)
        batch = _BatchState(self.model, cache, mask)
        answers = list(rows)
        while True:
            yield [list(row.ids) for row in answers]
            keep = [n for n, row in enumerate(rows) if not most.ends(row.ids)]
            if not keep:
                return
            if len(keep) < len(rows):
                rows = [rows[n] for n in keep]
                batch.select(keep)
            self._step(rows, batch, most, sampling, trace)

    @torch.inference_mode()
    def _step(
        self, rows: list[_RowState], batch: _BatchState, limits: _Limits, sampling: Sampling, trace: DecodingTrace
    ) -> None:
        """Run one forward pass for all unfinished rows, and confirm the ids that it settles."""
        device = batch.mask.device
        drawn = [row.codes_left() if limits.sweeps else 0 for row in rows]  # codes that are guessed at once
        settles = [row.settles(limits.sweeps) for row in rows]
        width = 1 + max(
            len(row.draft.guesses(max(limits.width - 1, count + _BEHIND if now else count)))
            for row, count, now in zip(rows, drawn, settles, strict=True)
        )
        width = max(width, 1 + max(drawn))
        guesses = [row.fed(width, limits.stop_ids[0]) for row in rows]
        fed = torch.tensor(guesses, device=device)  # (b, width)
        left = [limits.most - len(row.ids) for row in rows]
        in_map = all(row.codes_left() >= width for row in rows)  # `fed` holds only codes of maps
        if in_map and not sampling.do_sample and self._head is not False:
            codes = self._masks.map_ids(device)  # (K,)
            predicted = codes[self._head_over(self._hidden(batch, fed), codes).argmax(-1)]  # (b, width)
        else:
            if in_map:
                allowed = self._masks.in_map(device, limits.num_logits).expand(len(rows), width, -1)
            else:
                free = torch.tensor([n - row.reserve for n, row in zip(left, rows, strict=True)], device=device)
                room = free[:, None] - torch.arange(width, device=device)  # (b, width)
                allowed = self._masks.after(_sequences(rows, fed), limits.num_logits, width, room)  # (b, width, V)
                for row, masks, held in zip(rows, allowed, guesses, strict=True):
                    row.restrict(masks, held)
            predicted = self._choose(self._scores(batch, fed, allowed), fed[:, 1:], sampling)
        trace.forwards, trace.fed = trace.forwards + 1, trace.fed + fed.numel()
        found = predicted.tolist()
        for row, ids, held, count, now in zip(rows, found, guesses, drawn, settles, strict=True):
            row.sweeps = row.sweeps + 1 if count else 0
            if now:
                ids[:count] = held[1 : count + 1]  # accepted as fed, since the cache holds what was fed
        counts = [
            _taken(ids, held, most, limits.stop_ids) for ids, held, most in zip(found, guesses, left, strict=True)
        ]
        batch.keep(counts, width)
        self._confirm(rows, found, counts, trace)

    def _choose(self, scores: Tensor, guesses: Tensor | None, sampling: Sampling) -> Tensor:
        return choose_ids(scores if sampling.do_sample else self._masks.weigh_ends(scores), guesses, sampling)

    def _confirm(
        self, rows: list[_RowState], predicted: list[list[int]], taken: list[int], trace: DecodingTrace
    ) -> None:
        for row, ids, count in zip(rows, predicted, taken, strict=True):
            row.confirm(ids[:count], ids[count:])
            trace.confirmed += count

    def _draft(self, rows: list[_RowState], first: list[int], drafts: list[list[int]]) -> None:
        """Give the network's drafts to the rows whose first id starts a depth map."""
        start, _ = map_markers(self.grammar.vocabulary)
        for row, token, draft in zip(rows, first, drafts, strict=True):
            if token == start:
                row.draft, row.drafted = RowDraft(self.grammar.vocabulary, [token, *draft[1:]]), True

    @torch.inference_mode()
    def _prefill(self, inputs: dict[str, Tensor], cache: Any) -> tuple[Tensor, Tensor | None]:
        """Logits (B, 1, V) after the prompt, and the hidden states that a draft network reads."""
        given: dict[str, Any] = dict(inputs)
        if not _has_rope_deltas(self.model):
            given["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        if self._head is None:
            self._head = self._find_head({**given, "use_cache": False})
            self._lean = LeanForward.of(self.model) if self._head is not False else None
            if self._compiled is not None and self._lean is not None:
                self._lean.compile(**self._compiled)
            elif self._compiled is not None:
                _logger.warning("nothing is compiled: %s runs its own forward pass", type(self.model).__name__)
        elif self._head is not False and not self._is_stock(self._head):  # changed since the last prompt
            self._head = False
        if self._head is False or (self._lean is not None and not self._lean.holds):
            self._lean = None
        given |= {cache_key(): cache, "use_cache": True}
        if self._head is False:
            logits: Tensor = self.model(**given, logits_to_keep=1).logits
            return logits, None
        hidden = self.model.base_model(**given).last_hidden_state  # (B, T, D)
        image_id = getattr(self.model.config, "image_token_id", None)
        states = None
        if self.draft_network is not None and image_id is not None:
            states = prompt_states(hidden, inputs["input_ids"], image_id)
        return self._head(hidden[:, -1:]), states

    def _find_head(self, inputs: dict[str, Any]) -> Any:
        """The output layer, where it alone turns the last hidden states into logits; else False."""
        head, inner = self.model.get_output_embeddings(), self.model.base_model
        if not self._is_stock(head) or inner is self.model:
            return False
        hidden = inner(**inputs).last_hidden_state[:, -1:]  # (B, 1, D)
        logits = self.model(**inputs, logits_to_keep=1).logits  # (B, 1, V)
        return head if torch.allclose(head(hidden), logits, rtol=1e-4, atol=1e-4) else False

    def _is_stock(self, head: Any) -> bool:
        """True for the model's output layer if it is a plain one without hooks, whose rows can be used one by one."""
        if type(head) is not torch.nn.Linear or head is not self.model.get_output_embeddings():
            return False
        return not (head._forward_hooks or head._forward_pre_hooks or hasattr(head, "_hf_hook"))

    def _hidden(self, batch: _BatchState, fed: Tensor) -> Tensor:
        """Last hidden states (b, width, D) of fed ids."""
        given = batch.inputs(fed)
        if self._lean is not None:
            return self._lean(fed, given["attention_mask"], given["position_ids"], batch.cache)
        hidden: Tensor = self.model.base_model(**given).last_hidden_state
        return hidden

    def _head_over(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """Scores (b, width, C) of some ids (C,) only."""
        bias = None if self._head.bias is None else self._head.bias[columns]
        return float32_linear(hidden, self._head.weight[columns], bias)

    def _scores(self, batch: _BatchState, fed: Tensor, allowed: Tensor) -> Tensor:
        """Scores (b, width, V) after each fed id, -inf where not allowed."""
        if self._head is False:
            return mask_scores(self.model(**batch.inputs(fed)).logits.float(), allowed)
        hidden = self._hidden(batch, fed)
        columns = allowed.flatten(0, 1).any(0).nonzero()[:, 0]  # (C,)
        if len(columns) * _SLICE_SHARE > allowed.shape[-1]:
            return mask_scores(self._head(hidden).float(), allowed)
        scores = hidden.new_full(allowed.shape, -torch.inf, dtype=torch.float32)
        scores[..., columns] = mask_scores(self._head_over(hidden, columns), allowed[..., columns])
        return scores


def _has_rope_deltas(model: Any) -> bool:
    """True if the model computes its own positions (Qwen-VL); ids after a prompt are then offset by rope_deltas."""
    return hasattr(getattr(model, "model", None), "rope_deltas")


def _sequences(rows: Sequence[_RowState], fed: Tensor) -> Tensor:
    """Ids (b, L + width) that the grammar reads: the row's newest ones, padded with -1 on the left, then `fed`."""
    before = [row.span[:-1] for row in rows]  # the newest id is the first of `fed`
    longest = max(len(ids) for ids in before)
    padded = [[-1] * (longest - len(ids)) + ids for ids in before]
    return torch.cat([torch.tensor(padded, dtype=torch.long, device=fed.device).view(len(rows), longest), fed], 1)


def _taken(predicted: Sequence[int], fed: Sequence[int], left: int, stop_ids: Sequence[int]) -> int:
    """Number of a row's predicted ids to confirm: up to the first that differs from its guess, `left`, or a stop id."""
    for place, token in enumerate(predicted):
        if token in stop_ids or place + 1 == left or place + 1 == len(fed) or token != fed[place + 1]:
            return place + 1
    raise ValueError("a row without a predicted id")
