"""Depth maps of frame sequences, where only cells whose part of the image has changed are decoded again.

`FrameDepth` keeps the newest frame of each sequence and its codes. For the next frame, the codes of unchanged cells are
given to the model as if it had written them, and the changed ones are decoded under the grammar, several per forward
pass, with the ids of decoding one at a time (in half precision up to near-ties). MolmoAct2 reuses depth tokens in a
similar way. A threshold of 0 decodes every cell again.

Codes are relative to a map's nearest and farthest point: if one of these moves all codes change, and unchanged pixels
do not show it.
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
    """Settings of `FrameDepth`."""

    threshold: float = 0.02
    """Mean difference of a changed cell's pixels, the largest of the three colours, in [0, 1]; 0 for all cells"""
    margin: int = 1
    """Number of cells around a changed one that count as changed too"""
    window: int = 32
    """Largest number of codes per forward pass"""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie in [0, 1], got {self.threshold}; divide differences of bytes by 255")
        if self.margin < 0 or self.window < 1:
            raise ValueError(f"margin must be 0 or more and window at least 1, got {self.margin} and {self.window}")


@dataclass(frozen=True)
class FrameMap:
    """The depth map of one frame."""

    codes: tuple[int, ...]
    """As the model wrote them"""
    decoded: int
    """Number of codes that were decoded for this frame"""
    forwards: int | None
    """Number of forward passes, the prompt's included; None where the whole map was decoded by `generate_ids`"""


def changed_cells(
    before: NDArray[np.uint8], after: NDArray[np.uint8], grid: tuple[int, int], threshold: float, margin: int = 1
) -> NDArray[np.bool_]:
    """Mask (h, w) of a grid's cells that differ between two images (H, W, 3), and of those within `margin` of them.

    Raises:
        ValueError: for images of different sizes.
    """
    if before.shape != after.shape:
        raise ValueError(
            f"frames of one sequence must be of one size, got (height, width) {before.shape[:2]}, then "
            f"{after.shape[:2]}; resize them, or call reset() before a new sequence"
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
    """Decodes the depth maps of one or several sequences, frame by frame."""

    def __init__(self, model: PerceptionModel, config: FrameConfig | None = None):
        """Raise ValueError where the model's depth codes are nested, as these belong to no cell of the image."""
        tokenizer = model.depth_tokenizer
        if tokenizer is not None and tokenizer.config.nested:
            raise ValueError(
                "nested depth codes belong to no cell of the image, so none can be kept; use a model with a depth "
                "tokenizer that is not nested"
            )
        self.model = model
        self.config = config or FrameConfig()
        self._frames: list[NDArray[np.uint8]] = []
        self._codes: list[tuple[int, ...]] = []
        self._warned = False

    def reset(self) -> None:
        """Forget all frames, before new sequences."""
        self._frames, self._codes = [], []

    def __call__(self, frame: ImageLike) -> FrameMap:
        """Decode the map of the next frame of one sequence; see `batch`."""
        return self.batch([frame])[0]

    def batch(self, frames: Sequence[ImageLike]) -> list[FrameMap]:
        """Decode the maps of the next frames of several sequences, one frame per sequence.

        Raises:
            ValueError: for a bad image, another number of sequences than before, or a frame of another size than the
                one before it; the kept frames then stay as they were.
        """
        arrays = [np.asarray(load_image(frame)) for frame in frames]
        if self._frames and len(arrays) != len(self._frames):
            raise ValueError(
                f"{len(self._frames)} sequences need as many frames, got {len(arrays)}; reset() starts new ones"
            )
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
        """Return kept maps of unchanged frames, decode wholly changed frames in full and the others in part."""
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
        roles = self.model.vocabulary.id_roles
        return [FrameMap(tuple(roles[i].code for i in ids[1 : length + 1]), length, None) for ids in rows]

    @torch.no_grad()
    def _partly(self, arrays: Sequence[NDArray[np.uint8]], kept: Tensor, before: Tensor) -> list[FrameMap]:
        """Maps of frames of one size, given the mask of kept cells (B, N) and the previous codes (B, N)."""
        from transformers import DynamicCache

        model = self.model
        inputs = model.inputs(self._prompts(arrays))
        cache = DynamicCache(config=model.model.config.get_text_config())
        out = model.model(**inputs, **{cache_key(): cache, "use_cache": True}, output_hidden_states=True)
        if reason := why_not(model.model, cache):
            if not self._warned:
                _logger.warning("decoding every cell of every frame: %s", reason)
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
        """Codes (B, N) that the model's draft network drafts; None without one."""
        network, image_id = self.model.decoder.draft_network, getattr(self.model.model.config, "image_token_id", None)
        states = None if network is None or image_id is None else prompt_states(hidden[:, :-1], ids[:, :-1], image_id)
        if network is None or states is None:
            return None
        length, codes = self.model.vocabulary.depth_length, self.model.vocabulary.code_ids("depth")
        code_of = {token: code for code, token in enumerate(codes)}  # any code where the draft is none
        return torch.tensor([[code_of.get(i, 0) for i in row[1 : length + 1]] for row in network.draft(states)])

    def _verify(self, logits: Tensor, cache: object, guesses: Tensor, kept: Tensor) -> tuple[Tensor, int]:
        """Verify guesses; returns the codes (B, N) of decoding one at a time, and the number of forward passes.

        Args:
            logits: (B, V) after the prompt and START.
            cache: of the prompt and START; it grows.
            guesses: (B, N), with the kept codes at kept cells.
            kept: (B, N) bool.
        """
        depth_ids = torch.tensor(self.model.vocabulary.code_ids("depth"), device=guesses.device)  # (K,)
        codes, count, forwards = guesses.clone(), guesses.shape[1], 1
        best = logits[:, depth_ids].float().argmax(-1)  # (B,)
        codes[:, 0] = torch.where(kept[:, 0], codes[:, 0], best)
        done = 1  # number of settled codes
        while not bool(kept[:, done:].all()):
            width = min(self.config.window, count - done)
            fed = depth_ids[codes[:, done - 1 : done - 1 + width]]  # (B, width): the last settled code, and guesses
            out = self.model.model(input_ids=fed, **{cache_key(): cache, "use_cache": True})
            forwards += 1
            chosen = out.logits[..., depth_ids].float().argmax(-1)  # (B, width), for cells done .. done + width - 1
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
