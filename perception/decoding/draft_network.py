"""A small network that drafts a whole answer from the model's hidden states of the prompt.

One forward pass of about 25 million multiplications drafts all places of the answer at once: codes of the depth map
from the hidden states of the image tokens around each cell, and the text and points after the map by attention over the
single image tokens, which is where marked points are found. `perception.decoding.decoder` verifies the draft, so that
the network changes the speed of an answer and never the answer. Drafts from the hidden states of a frozen model are
Medusa's idea (arXiv 2401.10774), guessing all places at once that of blockwise parallel decoding (arXiv 1811.03115).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vqvae.files import write_whole

FILE_NAME = "draft_network.safetensors"


@dataclass(frozen=True)
class DraftNetworkConfig:
    """Sizes of a `DraftNetwork`."""

    hidden_size: int
    """Width of the language model"""
    vocab_size: int
    grid: tuple[int, int]
    """Height and width of the depth map in codes; the prompt may have any square number of image tokens"""
    length: int = 140
    """Number of ids that are drafted"""
    width: int = 64
    num_blocks: int = 3

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", tuple(self.grid))
        if self.length < 2 + math.prod(self.grid):
            raise ValueError(f"length ({self.length}) must hold a whole span of {math.prod(self.grid)} codes and 2 ids")


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.mix = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.gelu(self.norm(x)))


class DraftNetwork(nn.Module):
    """Scores of the ids of a whole answer, from the prompt's last hidden states."""

    def __init__(self, config: DraftNetworkConfig):
        super().__init__()
        self.config = config
        width, cells = config.width, math.prod(config.grid)
        self.visual = nn.Linear(config.hidden_size, width)
        self.question = nn.Linear(config.hidden_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(cells, width))
        self.marks = nn.Linear(config.hidden_size, width)
        self.mark_positions = nn.Parameter(0.02 * torch.randn(cells, width))
        self.blocks = nn.Sequential(*[_Block(width) for _ in range(config.num_blocks)])
        self.places = nn.Parameter(0.5 * torch.randn(config.length, width))
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, config.vocab_size)

    def forward(self, states: Tensor) -> Tensor:
        """Scores (B, length, V) for states (B, tokens + 1, D): the image tokens', row by row, and the last."""
        rows, columns = self.config.grid
        states = F.layer_norm(states, states.shape[-1:])
        cells = self._on_grid(self.visual(states[:, :-1])) + self.positions  # (B, cells, W)
        x = self.blocks(cells.transpose(1, 2).unflatten(2, (rows, columns)))  # (B, W, rows, columns)
        cells = x.flatten(2).transpose(1, 2)
        marks = self._on_grid(self.marks(states[:, :-1])) + self.mark_positions  # (B, cells, W)
        queries = self.places + self.question(states[:, -1:])  # (B, length, W)
        found = self.attend(queries, marks, marks, need_weights=False)[0]  # (B, length, W)
        behind = self.config.length - 1 - rows * columns
        own = F.pad(cells, (0, 0, 1, behind))  # code n of the map is id n + 1 of the answer
        x = queries + found + own
        x = x + self.narrow(F.gelu(self.widen(self.norm(x))))
        scores: Tensor = self.head(x)
        return scores

    def _on_grid(self, seen: Tensor) -> Tensor:
        """Resize features of image tokens (B, tokens, W) to the grid's cells (B, cells, W)."""
        rows, columns = self.config.grid
        side = math.isqrt(seen.shape[1])
        if (side, side) == (rows, columns):
            return seen
        x = seen.transpose(1, 2).unflatten(2, (side, side))  # (B, W, side, side)
        return F.interpolate(x, (rows, columns), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)

    def check(self, model: Any) -> None:
        """Raise ValueError where the network was made for another model."""
        text = model.config.get_text_config()
        made, needed = (self.config.hidden_size, self.config.vocab_size), (text.hidden_size, text.vocab_size)
        if made != needed:
            raise ValueError(
                f"the draft network was made for (hidden_size, vocab_size) {made}, the model has {needed}; train one "
                "for it with `python -m train.drafts`, or give none"
            )

    @torch.no_grad()
    def draft(self, states: Tensor) -> list[list[int]]:
        """Return the ids of one draft per row of states (B, tokens + 1, D)."""
        drafts: list[list[int]] = self(states.float()).argmax(-1).tolist()
        return drafts

    def save(self, folder: str | Path) -> None:
        """Write the network in half precision into the model's folder."""
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        write_whole(Path(folder) / FILE_NAME, save(weights, metadata={"config": json.dumps(asdict(self.config))}))

    @classmethod
    def load(cls, folder: str | Path) -> DraftNetwork | None:
        """Load the network of a model's folder; None where there is none.

        Raises:
            ValueError: where the file holds no draft network.
        """
        from safetensors import safe_open

        path = Path(folder) / FILE_NAME
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "config" not in metadata:
            raise ValueError(f"{path} has no sizes of a draft network; train one with `python -m train.drafts`")
        network = cls(DraftNetworkConfig(**json.loads(metadata["config"])))
        try:
            network.load_state_dict({name: value.float() for name, value in load_file(path).items()})
        except RuntimeError as error:
            raise ValueError(
                f"{path} was made by another version: {error}; run `python -m train.drafts` again"
            ) from None
        return network.eval()


def prompt_states(hidden: Tensor, ids: Tensor, image_id: int) -> Tensor | None:
    """Select the states (B, tokens + 1, D) that the network reads, from a prompt's (B, T, D) and its ids (B, T).

    None where the rows do not have the same, square number of image tokens.
    """
    found = ids == image_id  # (B, T)
    counts = found.sum(1)
    count = int(counts[0])
    if not count or math.isqrt(count) ** 2 != count or bool((counts != count).any()):
        return None
    visual = hidden[found].view(len(ids), count, -1)  # (B, tokens, D)
    return torch.cat([visual, hidden[:, -1:]], 1)
