"""Depth maps of frame sequences: only cells whose part of the image has changed are predicted again.

`FrameDepth` keeps the newest frame of each sequence and its codes. Of the next frame the codes of unchanged cells are
given to the model as they were, as if it had written them, and the changed ones are decoded under the grammar; several
at once are guessed and verified, so that they are the ids of one at a time. MolmoAct2 reuses depth tokens likewise. A
threshold of 0 predicts every cell anew.

Codes are relative to a map's nearest and farthest point. Where those move all codes do, and the image does not tell.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from perception.chains import ATOMIC_DEPTH_QUESTION
from perception.decoding.cache_slots import cache_key
from perception.decoding.decoder import why_not
from perception.decoding.draft_network import prompt_states
from perception.model.images import ImageLike, load_image
from perception.model.perception_model import PerceptionModel, Prompt

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameConfig:
    """When a cell counts as changed."""

    threshold: float = 0.02
    """mean difference of its pixels, the most of the three colours, in [0, 1]; 0: all cells, always"""
    margin: int = 1
    """cells around a changed one that count as changed too"""
    window: int = 32
    """codes fed to a forward at most"""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}; divide differences of bytes by 255")
        if self.margin < 0 or self.window < 1:
            raise ValueError(f"margin must be 0 or more and window at least 1, got {self.margin} and {self.window}")


@dataclass(frozen=True)
class FrameMap:
    """The depth map of one frame."""

    codes: tuple[int, ...]
    """as the model wrote them"""
    decoded: int
    """of them, those that were predicted anew"""
    forwards: int | None
    """of the model, the prompt's included; None where all was decoded as ever, by `PerceptionModel.generate_ids`"""


def changed_cells(
    before: NDArray[np.uint8], after: NDArray[np.uint8], grid: tuple[int, int], threshold: float, margin: int = 1
) -> NDArray[np.bool_]:
    """Cells (h, w) of a grid whose pixels differ between two images (H, W, 3), and those within `margin` of them.

    Raises:
        ValueError: for images of different sizes.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"frames of one sequence must be of one size, got (height, width) {before.shape[:2]}, then "
            f"{after.shape[:2]}; resize them, or call reset() where a new sequence begins"
        )
    apart = np.abs(before.astype(np.int16) - after.astype(np.int16)).max(-1)  # (H, W)
    pixels = torch.from_numpy(apart.astype(np.float32) / 255)[None, None]
    cells = F.adaptive_avg_pool2d(pixels, grid)  # (1, 1, h, w)
    changed = (cells >= threshold).float()
    if margin:
        changed = F.max_pool2d(changed, 2 * margin + 1, 1, margin)
    found: NDArray[np.bool_] = changed[0, 0].bool().numpy()
    return found


class FrameDepth:
    """Depth maps of one or several sequences of frames, frame by frame."""

    def __init__(self, model: PerceptionModel, config: FrameConfig | None = None):
        """Raises ValueError where the model's depth codes are not cells in rows (nested ones go coarse to fine)."""
        tokenizer = model.depth_tokenizer
        if tokenizer is not None and tokenizer.config.nested:
            raise ValueError(
                "codes that go coarse to fine belong to no cell of the image, so none can be kept; use a model with a "
                "depth tokenizer that is not nested"
            )
        self.model = model
        self.config = config or FrameConfig()
        self._frames: list[NDArray[np.uint8]] = []
        self._codes: list[tuple[int, ...]] = []
        self._warned = False

    def reset(self) -> None:
        """Forgets all frames: the next ones are first ones."""
        self._frames, self._codes = [], []

    def __call__(self, frame: ImageLike) -> FrameMap:
        """The map of the next frame of one sequence; see `batch`."""
        return self.batch([frame])[0]

    def batch(self, frames: Sequence[ImageLike]) -> list[FrameMap]:
        """The maps of the next frames of several sequences, a frame each.

        Raises:
            ValueError: for a bad image, another number of sequences than before, or a frame of another size than the
                one before it; what is remembered stays as it was.
        """
        arrays = [np.asarray(load_image(frame)) for frame in frames]
        if self._frames and len(arrays) != len(self._frames):
            raise ValueError(f"{len(self._frames)} sequences were begun, got {len(arrays)} frames; reset() begins anew")
        grid, config = self.model.vocabulary.depth_grid, self.config
        kept: list[NDArray[np.bool_]] = []
        for n, array in enumerate(arrays):
            if self._frames:
                changed = changed_cells(self._frames[n], array, grid, config.threshold, config.margin)
                kept.append(~changed.flatten())
            else:
                kept.append(np.zeros(grid[0] * grid[1], dtype=np.bool_))
        maps = self._predict(arrays, kept)
        self._frames, self._codes = arrays, [made.codes for made in maps]
        return maps

    def _predict(self, arrays: Sequence[NDArray[np.uint8]], kept: Sequence[NDArray[np.bool_]]) -> list[FrameMap]:
        """Unchanged frames cost nothing, wholly changed ones are decoded as ever, the others cell by cell."""
        maps: dict[int, FrameMap] = {}
        for n, own in enumerate(kept):
            if own.all():
                maps[n] = FrameMap(self._codes[n], 0, 0)
        whole = [n for n, own in enumerate(kept) if not own.any()]
        for n, made in zip(whole, self._whole([arrays[n] for n in whole]), strict=True):
            maps[n] = made
        partly: dict[tuple[int, ...], list[int]] = {}
        for n in range(len(arrays)):
            if n not in maps:
                partly.setdefault(arrays[n].shape, []).append(n)  # prompts of one length need no padding
        for rows in partly.values():
            before = torch.tensor([self._codes[n] for n in rows])
            partial = self._partly(
                [arrays[n] for n in rows], torch.from_numpy(np.stack([kept[n] for n in rows])), before
            )
            maps |= zip(rows, partial, strict=True)
        return [maps[n] for n in range(len(arrays))]

    def _prompts(self, arrays: Sequence[NDArray[np.uint8]]) -> list[Prompt]:
        start = (self.model.vocabulary.start_id("depth"),)
        return [Prompt(array, ATOMIC_DEPTH_QUESTION, None, start) for array in arrays]

    def _whole(self, arrays: Sequence[NDArray[np.uint8]]) -> list[FrameMap]:
        if not arrays:
            return []
        length = self.model.vocabulary.depth_length
        rows = self.model.generate_ids(self._prompts(arrays), length + 1)
        first = self.model.vocabulary.code_ids("depth")[0]
        return [FrameMap(tuple(i - first for i in ids[1 : length + 1]), length, None) for ids in rows]

    @torch.no_grad()
    def _partly(self, arrays: Sequence[NDArray[np.uint8]], kept: Tensor, before: Tensor) -> list[FrameMap]:
        """Maps of frames of one size, given which cells are kept (B, N) and the codes before (B, N)."""
        from transformers import DynamicCache

        model = self.model
        inputs = model.inputs(self._prompts(arrays))
        cache = DynamicCache(config=model.model.config.get_text_config())
        out = model.model(**inputs, **{cache_key(): cache, "use_cache": True}, output_hidden_states=True)
        if reason := why_not(model.model, cache):
            if not self._warned:
                _logger.warning("predicting every cell anew: %s", reason)
                self._warned = True
            return self._whole(arrays)
        device = inputs["input_ids"].device
        guesses, kept = before.to(device), kept.to(device)
        if (drafted := self._drafted(inputs["input_ids"], out.hidden_states[-1])) is not None:
            guesses = torch.where(kept, guesses, drafted.to(device))
        codes, forwards = self._verify(out.logits[:, -1], cache, guesses, kept)
        return [
            FrameMap(tuple(row), int((~own).sum()), forwards) for row, own in zip(codes.tolist(), kept, strict=True)
        ]

    def _drafted(self, ids: Tensor, hidden: Tensor) -> Tensor | None:
        """Codes (B, N) that the model's draft network guesses; None without one."""
        network, image_id = self.model.decoder.draft_network, getattr(self.model.model.config, "image_token_id", None)
        states = None if network is None or image_id is None else prompt_states(hidden[:, :-1], ids[:, :-1], image_id)
        if network is None or states is None:
            return None
        first, number = self.model.vocabulary.code_ids("depth")[0], self.model.vocabulary.depth_codes
        length = self.model.vocabulary.depth_length
        drafted = torch.tensor([row[1 : length + 1] for row in network.draft(states)]) - first
        return drafted.clamp(0, number - 1)

    def _verify(self, logits: Tensor, cache: object, guesses: Tensor, kept: Tensor) -> tuple[Tensor, int]:
        """Codes (B, N) and the number of forwards, the prompt's included: what is kept, and what one code a forward
        would choose.

        Args:
            logits: (B, V) behind the prompt and START.
            cache: of the prompt and START; goes on to grow.
            guesses: (B, N), at kept cells their codes.
            kept: (B, N) bool.
        """
        depth_ids = torch.tensor(self.model.vocabulary.code_ids("depth"), device=guesses.device)  # (K,)
        codes, count, forwards = guesses.clone(), guesses.shape[1], 1
        best = logits[:, depth_ids].argmax(-1)  # (B,)
        codes[:, 0] = torch.where(kept[:, 0], codes[:, 0], best)
        done = 1  # codes that hold
        while not bool(kept[:, done:].all()):
            width = min(self.config.window, count - done)
            fed = depth_ids[codes[:, done - 1 : done - 1 + width]]  # (B, width): the last that holds, and guesses
            out = self.model.model(input_ids=fed, **{cache_key(): cache, "use_cache": True})
            forwards += 1
            chosen = out.logits[..., depth_ids].argmax(-1)  # (B, width): of cells done .. done + width - 1
            places = slice(done, done + width)
            settled = torch.where(kept[:, places], codes[:, places], chosen)
            right = (settled == codes[:, places]).all(0)  # (width,), in every sequence
            wrong = (~right).nonzero()[:, 0]
            taken = int(wrong[0]) + 1 if len(wrong) else width
            codes[:, places] = settled
            if taken < width:
                cache.crop(taken - width)  # type: ignore[attr-defined]
            done += taken
        return codes, forwards
