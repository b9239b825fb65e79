"""Records as batches for any model: its own processor makes the image inputs and the prompt's head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perception.datasets.records import Record
from perception.model.image_inputs import batch_images, batch_types, pad_rows, token_types
from perception.scenes.markers import draw_markers
from train.base import IGNORE
from train.data.rows import RowEncoder, TaskRow


@dataclass(frozen=True)
class RecordRows:
    """What it takes to make a batch of records."""

    encoder: RowEncoder
    processor: Any
    accepted: frozenset[str]
    """names of what the model's forward takes"""
    _heads: dict[tuple[int, int], int] = field(default_factory=dict, repr=False)
    """tokens of a prompt up to its question, by height and width of its image"""

    def length(self, record: Record) -> int:
        """Tokens of a record: its text, and the image's as the processor makes them of one of its size."""
        text = TaskRow(None, record.example, None, False)
        size = record.image.size()
        if size not in self._heads:
            height, width = size
            self._heads[size] = len(self.encoder.prompt.head_ids(self.processor, Image.new("RGB", (width, height)))[0])
        return len(self.encoder.encode(text, ())[0]) + self._heads[size]

    def batch(self, records: Sequence[Record]) -> dict[str, Tensor]:
        """Right-padded ids, labels, mask and weights (B, longest), and the model's image inputs.

        Raises ValueError naming the image that cannot be read.
        """
        rows, images, types = [], [], []
        for record in records:
            shown = load(record)
            head, outputs = self.encoder.prompt.head_ids(self.processor, shown)
            ids, labels, weights = self.encoder.encode(TaskRow(None, record.example, None, False), head)
            kept = {name: value for name, value in outputs.items() if name in self.accepted}
            rows.append((ids, labels, [0.0] * (len(ids) - len(weights)) + weights))
            images.append(kept)
            types.append(token_types(kept, len(ids) - len(weights), len(weights)))
        tokenizer = self.encoder.text_tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        batch = {
            "input_ids": pad_rows([ids for ids, _, _ in rows], pad, left=False),
            "labels": pad_rows([labels for _, labels, _ in rows], IGNORE, left=False),
            "attention_mask": pad_rows([[1] * len(ids) for ids, _, _ in rows], 0, left=False),
            "weights": pad_rows([w for _, _, w in rows], 0.0, left=False),
        }
        return batch | batch_types(types, left=False) | batch_images(images)


def load(record: Record) -> Image.Image:
    """The record's image in RGB, its markers drawn. Raises ValueError naming record and file."""
    try:
        image = record.image.load()
    except ValueError as error:
        raise ValueError(f"{record.source}: {error}") from error
    if not record.marks:
        return image
    marked = draw_markers(torch.from_numpy(np.array(image)), np.array(record.marks))
    return Image.fromarray(marked.numpy())
