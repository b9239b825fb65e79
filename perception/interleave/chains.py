"""Teacher-forced batches of chains with looks: inputs, labels, forward pass, loss.

A chain is a prompt and an answer, and an answer is a list of ids and `Look`s. In the sequence, a look is the interleave
token followed by the selected visual tokens, or by those of a crop at native resolution, between the model's vision
markers; a look that selects nothing is the interleave token alone. `perception.interleave.generation` writes the same
sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.interleave.native import NativeCrops, NativeImages
from perception.interleave.selector import VisualTokenSelector, selection_losses
from perception.interleave.visual_tokens import (
    VisualFeatures,
    VisualLayout,
    chain_positions,
    check_count,
    check_images,
    embed,
    gather_columns,
    images_of,
    images_to,
    placeholder_sources,
    read_text,
    visual_columns,
)

IGNORED = -100
"""Label of tokens without cross-entropy"""


@dataclass(frozen=True)
class Look:
    """A step of interleaved reasoning that brings visual tokens in."""

    tokens: tuple[int, ...]
    """Numbers of the visual tokens, from 0 over all images of the row in the prompt's order (for LLaVA and Qwen-VL
    row-major within an image)"""

    def __post_init__(self) -> None:
        tokens = tuple(int(token) for token in self.tokens)
        if list(tokens) != sorted(set(tokens)) or (tokens and tokens[0] < 0):
            raise ValueError(
                f"a look's tokens must be ascending, different numbers from 0, got {tokens[:8]}; sorted(set(tokens))"
            )
        object.__setattr__(self, "tokens", tokens)


InterleavedAnswer = Sequence[int | Look]
"""Ids and looks. An answer that was cut off right after a generated interleave token ends in that token's id."""


def look_ids(inserted: int, layout: VisualLayout) -> list[int]:
    """Ids of a look in a sequence, by the number of visual tokens that it inserts."""
    if not inserted:
        return [layout.interleave_id]
    return [layout.interleave_id, *layout.before, *[layout.image_id] * inserted, *layout.after]


def inserted_sources(
    look: Look, row: int, visual: Sequence[int], crops: NativeCrops | None, prompt_tokens: int
) -> list[int]:
    """Sources of the visual tokens that a look inserts.

    Args:
        row: number of the chain's row among the rows of the original images.
        visual: sources of the row's visual tokens.
        crops: those of the batch; None for looks at seen resolution.
        prompt_tokens: number of visual tokens in all prompts; those of crops are numbered after them.
    """
    if crops is None:
        return [visual[token] for token in look.tokens]
    return [prompt_tokens + number for number in crops.numbers(row, look.tokens)]


class TakenAlong:
    """What the looks of one chain bring in, look by look, where visual tokens are taken along.

    Called with the sources of each look's selection, in order; returns what the look inserts.
    """

    def __init__(self, take_along: int | None):
        """
        Args:
            take_along: as in `InterleaveSettings`.
        """
        self._after, self._last, self._empty = take_along, list[int](), 0

    def __call__(self, sources: list[int]) -> list[int]:
        if not sources:
            self._empty += 1
            if self._empty != self._after:
                return []
        self._empty = 0
        self._last = sources or self._last
        return self._last


@dataclass(frozen=True)
class LabelRule:
    """Tokens of an answer that the cross-entropy supervises, besides its text; the defaults are the paper's."""

    interleave: bool = False
    """The interleave token; True where the model writes it itself"""
    next_token: bool = False
    """The first token after a look"""
    announce: bool = False
    """That token at the interleave token too, where visual tokens come in between. The hidden state that selects then
    says what the step is about"""


@dataclass(frozen=True)
class InterleavedBatch:
    """Teacher-forced chains, padded on the left."""

    ids: Tensor
    """(B, L)"""
    attention_mask: Tensor
    """(B, L), 1 where a token is real"""
    labels: Tensor
    """(B, L), IGNORED where not supervised; labels[:, t] is the id at t, predicted at t - 1"""
    sources: Tensor
    """(B, L), see perception.interleave.visual_tokens"""
    visual_columns: Tensor
    """(B, M) columns of the prompt's visual tokens; -1 for none"""
    look_columns: Tensor
    """(B, S) columns of the interleave tokens; -1 for none"""
    targets: Tensor
    """(B, S, M) bool, the visual tokens that each look selects"""
    images: dict[str, Any]
    """Pixel values and the model's other image inputs"""
    crops: dict[str, Any] = field(default_factory=dict)
    """The same of the looks' crops, where looks have native resolution"""
    native: NativeImages | None = None
    """The original images; None for looks at seen resolution"""
    take_along: int | None = None
    """As in `InterleaveSettings`"""

    @property
    def candidates(self) -> Tensor:
        """(B, S, M) bool: pairs of a look and a visual token of the same row."""
        return (self.look_columns >= 0)[:, :, None] & (self.visual_columns >= 0)[:, None]

    @property
    def num_labels(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def num_looks(self) -> int:
        """Number of looks that have visual tokens to choose from."""
        return int(self.candidates.any(-1).sum())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> InterleavedBatch:
        """Move to a device; pixel values are converted to `dtype` if it is given."""
        names = ("ids", "attention_mask", "labels", "sources", "visual_columns", "look_columns", "targets")
        moved = {name: getattr(self, name).to(device) for name in names}
        images, crops = (images_to(given, device, dtype) for given in (self.images, self.crops))
        return replace(self, images=images, crops=crops, **moved)


@dataclass
class _ChainRow:
    """One chain while it is put together."""

    ids: list[int]
    labels: list[int]
    sources: list[int]
    looks: list[tuple[int, Look]]
    """Place of each interleave token, and its look"""


def _lay_out(
    prompt: list[int],
    own: list[int],
    answer: InterleavedAnswer,
    row: int,
    layout: VisualLayout,
    rule: LabelRule,
    sources_of: Callable[[Look, int, Sequence[int]], list[int]],
    along: TakenAlong,
) -> _ChainRow:
    """Lay out one row of a batch. `own` holds the sources of the prompt's tokens."""
    visual = [source for source in own if source >= 0]
    out = _ChainRow(list(prompt), [IGNORED] * len(prompt), list(own), [])
    supervised = True
    for place, part in enumerate(answer):
        if not isinstance(part, Look):
            if part == layout.interleave_id and place < len(answer) - 1:
                raise ValueError(f"row {row}: id {part} at {place} is the interleave token; give the look as a Look")
            keep = rule.interleave if part == layout.interleave_id else supervised
            out.ids.append(part)
            out.labels.append(part if keep else IGNORED)
            out.sources.append(-1)
            supervised = True
            continue
        if part.tokens and part.tokens[-1] >= len(visual):
            raise ValueError(
                f"row {row}: a look selects visual token {part.tokens[-1]} and the row's images have {len(visual)}, "
                "0 to one less; remap its indices from their own grid to the model's"
            )
        out.looks.append((len(out.ids), part))
        sources = along(sources_of(part, row, visual))
        ids, inserted = look_ids(len(sources), layout), iter(sources)
        out.ids += ids
        labels = [ids[0] if rule.interleave else IGNORED] + [IGNORED] * (len(ids) - 1)
        following = answer[place + 1] if place + 1 < len(answer) else None
        if rule.announce and part.tokens and isinstance(following, int):
            labels[1] = following  # predicted at the interleave token
        out.labels += labels
        out.sources += [next(inserted) if i == layout.image_id else -1 for i in ids]
        supervised = rule.next_token
    return out


def build_batch(
    layout: VisualLayout,
    inputs: Mapping[str, Any],
    answers: Sequence[InterleavedAnswer],
    pad_id: int,
    rule: LabelRule | None = None,
    native: NativeImages | None = None,
    take_along: int | None = None,
) -> InterleavedBatch:
    """Build the teacher-forced inputs of prompts and their answers. Needs no model, so data loaders can call it.

    Args:
        inputs: the processor's outputs for the prompts: input_ids (B, T), attention_mask where rows are padded (on
            either side), and the images.
        answers: one per row, with the end of sequence if it is to be learned.
        pad_id: any id; it is masked.
        rule: the paper's by default.
        native: the original images, for looks at native resolution.
        take_along: as in `InterleaveSettings`.

    Raises:
        ValueError: for a look that is out of range or given as a bare id, or another number of answers than prompts.
    """
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask
    if len(answers) != len(ids):
        raise ValueError(f"there are {len(ids)} prompts and {len(answers)} answers; give one answer per prompt")
    sources = placeholder_sources(torch.where(mask.bool(), ids, -1), layout.image_id)
    crops, prompt_tokens = _crops_of(native, len(ids)), int((sources >= 0).sum())

    def sources_of(look: Look, row: int, visual: Sequence[int]) -> list[int]:
        return inserted_sources(look, row, visual, crops, prompt_tokens)

    rows = []
    for n, answer in enumerate(answers):
        real = mask[n].bool()
        own = sources[n][real].tolist()
        given = (ids[n][real].tolist(), own, answer, n, layout, rule or LabelRule())
        rows.append(_lay_out(*given, sources_of, TakenAlong(take_along)))
    batch = _stack(rows, pad_id)
    prompt_sources = torch.full_like(batch.ids, -1)
    for n, row in enumerate(rows):
        start, prompt_end = batch.ids.shape[1] - len(row.ids), int(mask[n].sum())
        prompt_sources[n, start : start + prompt_end] = batch.sources[n, start : start + prompt_end]
    columns = visual_columns(prompt_sources)  # (B, M)
    targets = torch.zeros(*batch.look_columns.shape, columns.shape[1], dtype=torch.bool)
    for n, row in enumerate(rows):
        for s, (_, look) in enumerate(row.looks):
            targets[n, s, list(look.tokens)] = True
    made = crops.take() if crops is not None else {}
    return replace(
        batch,
        visual_columns=columns,
        targets=targets,
        images=images_of(inputs),
        crops=made,
        native=native,
        take_along=take_along,
    )


def _crops_of(native: NativeImages | None, rows: int) -> NativeCrops | None:
    if native is not None and len(native) != rows:
        raise ValueError(f"there are {rows} prompts and original images of {len(native)}; give those of each row")
    return None if native is None else native.new_crops()


def _stack(rows: Sequence[_ChainRow], pad_id: int) -> InterleavedBatch:
    """Pad rows on the left; visual columns, targets and images are filled in by the caller."""
    longest, most = max(len(row.ids) for row in rows), max(len(row.looks) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    labels, sources, mask = torch.full_like(ids, IGNORED), torch.full_like(ids, -1), torch.zeros_like(ids)
    look_columns = torch.full((len(rows), most), -1)
    for n, row in enumerate(rows):
        start = longest - len(row.ids)
        ids[n, start:] = torch.tensor(row.ids)
        labels[n, start:] = torch.tensor(row.labels)
        sources[n, start:] = torch.tensor(row.sources)
        mask[n, start:] = 1
        for s, (place, _) in enumerate(row.looks):
            look_columns[n, s] = start + place
    nothing = ids.new_empty(len(rows), 0)
    return InterleavedBatch(ids, mask, labels, sources, nothing, look_columns, nothing[:, None].bool(), {})


def with_selections(batch: InterleavedBatch, layout: VisualLayout, chosen: Tensor, pad_id: int) -> InterleavedBatch:
    """Return the batch with other visual tokens brought in by its looks, and the same labels and targets.

    Args:
        batch: as `build_batch` makes it, with looks that bring in their targets.
        chosen: (B, S, M) bool, the visual tokens that the looks bring in instead.
        pad_id: any id; it is masked.
    """
    rows, starts = [], batch.attention_mask.argmax(1)  # (B,)
    crops, prompt_tokens = _crops_of(batch.native, len(batch.ids)), int((batch.visual_columns >= 0).sum())
    for n, start in enumerate(starts.tolist()):
        ids, labels, sources = (values[n, start:].tolist() for values in (batch.ids, batch.labels, batch.sources))
        visual = [sources[column - start] for column in batch.visual_columns[n].tolist() if column >= 0]
        row, place, along = _ChainRow([], [], [], []), 0, TakenAlong(batch.take_along)
        for s, column in enumerate(batch.look_columns[n].tolist()):
            end = len(ids) if column < 0 else column - start + 1
            row.ids += ids[place:end]
            row.labels += labels[place:end]
            row.sources += sources[place:end]
            place = end
            if column < 0:
                continue
            look = Look(tuple(chosen[n, s, : len(visual)].nonzero()[:, 0].tolist()))
            row.looks.append((len(row.ids) - 1, look))
            brought = along(inserted_sources(look, n, visual, crops, prompt_tokens))
            inserted, body = iter(brought), look_ids(len(brought), layout)[1:]
            first = place + len(layout.before)  # of the visual tokens that stood here, if there were any
            stood = ids[first : first + 1] == [layout.image_id]
            row.ids += body
            row.labels += [labels[place] if stood else IGNORED, *[IGNORED] * (len(body) - 1)] if body else []
            row.sources += [next(inserted) if i == layout.image_id else -1 for i in body]
            if stood:
                place = next(end for end in range(first, len(ids) + 1) if ids[end : end + 1] != [layout.image_id])
                place += len(layout.after)
        row.ids += ids[place:]
        row.labels += labels[place:]
        row.sources += sources[place:]
        rows.append(row)
    stacked = _stack(rows, pad_id)
    moved = stacked.attention_mask.argmax(1) - starts.cpu()  # (B,)
    columns = torch.where(batch.visual_columns >= 0, batch.visual_columns + moved.to(starts)[:, None], -1)
    laid = replace(stacked, visual_columns=columns.cpu(), targets=batch.targets.cpu())
    device, made = batch.ids.device, crops.take() if crops is not None else {}
    given: dict[str, Any] = {"images": batch.images, "native": batch.native, "take_along": batch.take_along}
    return replace(laid.to(device), crops=images_to(made, device), **given)


@dataclass(frozen=True)
class InterleavedOutput:
    """Output of a forward pass over a batch."""

    logits: Tensor
    """(T, V), for the supervised tokens only, row by row"""
    labels: Tensor
    """(T,)"""
    scores: Tensor
    """(B, S, M), score of each look for each visual token; meaningful for `candidates` only"""
    targets: Tensor
    """(B, S, M) bool"""
    candidates: Tensor
    """(B, S, M) bool: pairs of a look and a visual token of the same row"""


@dataclass(frozen=True)
class InterleavedLoss:
    total: Tensor
    cross_entropy: Tensor
    selection: Tensor


class InterleavedModel(nn.Module):
    """An unmodified model of transformers with its selector, as one module to train, wrap and move.

    Every parameter of the selector takes part in every forward pass, so that in a batch without looks DDP finds
    gradients (zeros) for all of them.
    """

    def __init__(self, model: Any, selector: VisualTokenSelector, layout: VisualLayout):
        """Raise ValueError where the selector was made for another width."""
        super().__init__()
        width = model.get_input_embeddings().weight.shape[1]
        if selector.config.hidden_size != width:
            raise ValueError(
                f"the selector is made for a text model {selector.config.hidden_size} wide, the model is {width}; use "
                "VisualTokenSelector.for_model(model)"
            )
        self.model = model
        self.selector = selector
        self.layout = layout

    def hidden(self, batch: InterleavedBatch, features: VisualFeatures | None = None) -> Tensor:
        """Last hidden states (B, L, H). Raises ValueError where images and placeholders do not match."""
        is_placeholder = torch.zeros_like(batch.ids, dtype=torch.bool)
        there = batch.visual_columns >= 0
        rows = torch.arange(len(there), device=there.device)[:, None].expand_as(there)
        is_placeholder[rows[there], batch.visual_columns[there]] = True
        check_images(self.model, self.layout, batch.images | {"input_ids": batch.ids.where(is_placeholder, -1)})
        features = VisualFeatures.encode(self.model, batch.images) if features is None else features
        check_count(int(there.sum()), len(features.tokens))
        if batch.crops:
            features = features.and_then(VisualFeatures.encode(self.model, batch.crops))
        positions = chain_positions(self.model, batch.ids, is_placeholder, batch.attention_mask, batch.images)
        embeds = embed(self.model, self.layout, self.selector.embedding, batch.ids, batch.sources, features)
        return read_text(self.model, embeds, batch.attention_mask, positions, batch.sources, features)

    def forward(self, batch: InterleavedBatch, features: VisualFeatures | None = None) -> InterleavedOutput:
        """Logits of the supervised tokens, and scores of the looks.

        Args:
            features: of all rows' images, if they are encoded already; the batch then holds no pixel_values.
        """
        hidden = self.hidden(batch, features)  # (B, L, H)
        looking = gather_columns(hidden, batch.look_columns)  # (B, S, H)
        scores = self.selector(looking, gather_columns(hidden, batch.visual_columns))  # (B, S, M)
        supervised = batch.labels[:, 1:] != IGNORED  # (B, L - 1)
        logits = self.model.get_output_embeddings()(hidden[:, :-1][supervised])  # (T, V)
        return InterleavedOutput(logits, batch.labels[:, 1:][supervised], scores, batch.targets, batch.candidates)


def interleaved_loss(
    output: InterleavedOutput,
    selection_weight: float = 1.0,
    num_labels: int | None = None,
    num_looks: int | None = None,
) -> InterleavedLoss:
    """Mean cross-entropy per supervised token plus `selection_weight` times the mean selection loss per look.

    Args:
        num_labels: divisor of the cross-entropy. Give the number of supervised tokens in all batches of an optimizer
            step, so that several small batches equal a large one. None for those of this batch.
        num_looks: divisor of the selection loss, likewise.
    """
    looks = output.candidates.any(-1)  # (B, S)
    num_labels = len(output.labels) if num_labels is None else num_labels
    num_looks = int(looks.sum()) if num_looks is None else num_looks
    summed = F.cross_entropy(output.logits.float(), output.labels, reduction="sum")
    cross_entropy = summed / max(num_labels, 1)
    chosen = selection_losses(output.scores, output.targets, output.candidates)  # (B, S)
    selection = chosen.sum() / max(num_looks, 1)
    return InterleavedLoss(cross_entropy + selection_weight * selection, cross_entropy, selection)
