"""`InterleavedContext`: the cache, mask and positions of the rows of an interleaved batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from perception.decoding.cache_slots import cache_given, pack, packed_order, why_not_packable
from perception.interleave.chains import InterleavedModel
from perception.interleave.visual_tokens import (
    VisualFeatures,
    chain_positions,
    check_count,
    embed,
    images_of,
    images_to,
    placeholder_sources,
    read_text,
    visual_columns,
)


class InterleavedContext:
    """What the rows of a batch have read so far. It has no more slots than the longest row has tokens."""

    def __init__(
        self,
        model: InterleavedModel,
        ids: Tensor,
        given: Mapping[str, Any],
        features: VisualFeatures | None = None,
    ):
        """
        Args:
            ids: (B, T), the prompts.
            given: model_kwargs of transformers' `generate`: cache, mask, positions, and the images or their features.
            features: of the images, if they are encoded already.
        """
        self.model = model
        self.cache = cache_given(given) if given.get("use_cache", True) else None
        mask = given.get("attention_mask")
        self.mask = torch.ones_like(ids) if mask is None else mask.long()  # (b, slots)
        self.features = VisualFeatures.encode(model.model, given) if features is None else features
        self.sources = placeholder_sources(ids.where(self.mask.bool(), -1), model.layout.image_id)  # (b, slots)
        check_count(int((self.sources >= 0).sum()), len(self.features.tokens))
        self.prompt_tokens = len(self.features.tokens)
        self.visual_columns = visual_columns(self.sources)  # (B, M), of the prompts
        self.visual_sources = [row[row >= 0].tolist() for row in self.sources]
        """Sources of each row's visual tokens, also for rows that were dropped"""
        self.positions = self._prompt_positions(ids, given)  # (b, slots) or (3, b, slots)
        real = self.positions.masked_fill(self.mask == 0, -1)
        self.next_position = real.amax((0, 2) if real.ndim == 3 else 1) + 1  # (b,)
        self.lengths = self.mask.sum(1).tolist()
        self.peak_slots = 0
        self._ids = ids

    def _prompt_positions(self, ids: Tensor, given: Mapping[str, Any]) -> Tensor:
        positions = given.get("position_ids")
        if positions is None:
            return chain_positions(self.model.model, ids, self.sources >= 0, self.mask, images_of(given))
        # transformers' generate puts plain text positions before Qwen-VL's three.
        return positions[-3:] if positions.ndim == 3 else positions.expand(len(ids), -1)

    def read_prompt(self) -> Tensor:
        """Last hidden states (b, T, H) of the prompts."""
        embeds = self._embed(self._ids, self.sources)
        self.embeds = embeds  # without a cache, everything is read again at every step
        hidden = read_text(self.model.model, embeds, self.mask, self.positions, self.sources, self.features, self.cache)
        if self.cache is not None and (reason := why_not_packable(self.cache)):
            raise ValueError(
                f"{type(self.model.model).__name__} cannot write interleaved chains with this cache: {reason}; use "
                "transformers' dynamic cache, or use_cache=False"
            )
        self._drop_empty()  # columns that are padding in every row
        return hidden

    def _embed(self, ids: Tensor, sources: Tensor) -> Tensor:
        model = self.model
        return embed(model.model, model.layout, model.selector.embedding, ids, sources, self.features)

    def feed(
        self, ids: Sequence[Sequence[int]], newest: Tensor, sources: Sequence[Sequence[int]] | None = None
    ) -> Tensor:
        """Read more ids, one list per row, which may be empty.

        Args:
            newest: (b, H), hidden states that rows without ids keep.
            sources: of the ids, where there are visual tokens among them.

        Returns:
            Last hidden states (b, H) of each row's newest token.
        """
        width = max(len(row) for row in ids)
        if not width:
            return newest
        device = newest.device
        chunk = torch.tensor([[0] * (width - len(row)) + list(row) for row in ids], device=device)  # (b, width)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=device)
        chunk_sources = torch.full_like(chunk, -1)
        if sources is not None:
            chunk_sources = torch.tensor([[-1] * (width - len(row)) + list(row) for row in sources], device=device)
        steps = self.next_position[:, None] + (mask.cumsum(1) - 1).clamp_min(0)  # (b, width)
        self.next_position = self.next_position + mask.sum(1)
        self.lengths = [length + len(row) for length, row in zip(self.lengths, ids, strict=True)]
        self.mask = torch.cat([self.mask, mask], 1)
        positions = steps[None].expand(3, -1, -1) if self.positions.ndim == 3 else steps
        embeds = self._embed(chunk, chunk_sources)
        if self.cache is None:
            embeds = self.embeds = torch.cat([self.embeds, embeds], 1)
            positions = self.positions = torch.cat([self.positions, positions], -1)
            chunk_sources = self.sources = torch.cat([self.sources, chunk_sources], 1)
        visual = chunk_sources if sources is not None or self.cache is None else None
        hidden = read_text(self.model.model, embeds, self.mask, positions, visual, self.features, self.cache)
        self._drop_empty()
        return torch.where(mask.any(1)[:, None], hidden[:, -1], newest)

    def add(self, images: Mapping[str, Any]) -> None:
        """Encode further images; their visual tokens' sources follow those that are there."""
        given = images_to(images, self.mask.device)
        self.features = self.features.and_then(VisualFeatures.encode(self.model.model, given))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        places = torch.tensor(rows, device=self.mask.device)
        self.mask, self.next_position = self.mask[places], self.next_position[places]
        self.lengths = [self.lengths[row] for row in rows]
        self.positions = self.positions[..., places, :]
        if self.cache is None:
            self.embeds, self.sources = self.embeds[places], self.sources[places]
        else:
            self.cache.batch_select_indices(places)
        self._drop_empty()

    def _drop_empty(self) -> None:
        """Remove slots that no row needs, so that every row's tokens are contiguous at the right."""
        if self.mask.shape[1] > max(self.lengths):
            order = packed_order(self.mask)  # (b, slots)
            if self.cache is None:
                self.embeds = self.embeds.gather(1, order[..., None].expand(-1, -1, self.embeds.shape[-1]))
                self.sources = self.sources.gather(1, order)
                self.positions = self.positions.gather(-1, order.expand(*self.positions.shape[:-1], -1))
            else:
                pack(self.cache, order)
            self.mask = self.mask.gather(1, order)
        slots = self.mask.shape[1] if self.cache is None else self.cache.get_seq_length()
        assert slots == self.mask.shape[1] == max(self.lengths), "a slot of the cache is stale"
        self.peak_slots = max(self.peak_slots, slots)
