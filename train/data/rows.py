"""Rows of a batch, each with one task on one image, and their encoding for a model.

A source supplies the rows of a batch (`train.data.scenes`, `train.data.records`); the model's own processor makes the
image inputs and the start of each prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perception import chains
from perception.chains import ChatPrompt, Example, encode_target
from perception.model.image_inputs import batch_images, batch_types, pad_rows, token_types
from perception.vocabulary.names import PerceptionVocabulary
from train.data.conversations import ConversationPrompt
from train.models.losses import IGNORE

Encoded = tuple[list[int], list[int], list[float]]
"""Ids and labels of a row, and one weight per token of its target"""


@dataclass(frozen=True)
class TokenWeights:
    """Weights of target tokens in the loss. Depth weighs less: a map has a hundred codes, an answer only one letter."""

    depth: float = 0.4
    location: float = 1.0
    text: float = 1.0
    """of all other tokens, with the markers of spans and the end of each row; above 0"""

    def __post_init__(self) -> None:
        if min(self.depth, self.location) < 0 or not self.text > 0:
            raise ValueError(
                "weights must not be negative, and weights.text must be above 0, since rows without map or box have "
                f"no other; got depth {self.depth}, location {self.location}, text {self.text}"
            )


@dataclass(frozen=True)
class Row:
    """A sample before it is encoded."""

    image: Image.Image | None
    """shown before the question; None where `images` are given"""
    example: Example
    shown: np.ndarray | None = None
    """depth codes that the model reads instead of those that `example` has it draw"""
    map_given: bool = False
    """True if the depth codes are there to be read alone; they are then not learned"""
    more: tuple[Example, ...] = ()
    """further turns of the conversation, without depth maps; the image tokens are read once for all of them. Where the
    chat template takes one question, they are left out"""
    extra: tuple[Example, ...] = ()
    """turns after those of `more`; one that would make the row too long is left out, and no error"""
    images: tuple[Image.Image, ...] | None = None
    """all images of a conversation, each shown where `chains.IMAGE` stands in its questions"""
    system: str = ""
    """system turn of a conversation that gives `images`"""
    tokens: Tensor | None = None
    """visual tokens (N, D) that a frozen tower made of an image before; they take the place of pixels, and `image` only
    says how many they are"""


class RowSource(Protocol):
    """Interface of a source of rows."""

    def rows(self, step: int, shard: int, num_shards: int, count: int) -> list[Row]:
        """Return the `count` rows of one batch of a step. It must be a pure function of its arguments."""


@dataclass(frozen=True)
class RowEncoder:
    """Encoder of rows into batches for one model."""

    vocabulary: PerceptionVocabulary
    processor: Any
    prompt: ChatPrompt
    weights: TokenWeights
    accepted: frozenset[str]
    """names of the inputs that the model's forward accepts"""
    max_length: int | None = None
    """number of tokens of a row at most; None: no limit"""

    def encode(self, row: Row, head_ids: Sequence[int]) -> Encoded:
        """Encode a row. `head_ids` are the ids of the prompt up to the question, with image tokens expanded."""
        vocabulary, tokenizer = self.vocabulary, self.processor.tokenizer
        head = list(head_ids) + self.prompt.tail_ids(tokenizer, vocabulary, row.example.question)
        read, target, weight = self._answer(row.example, row.shown, row.map_given)
        turns = (*row.more, *row.extra) if self.prompt.between is not None else ()
        for number, example in enumerate(turns):
            asked = self.prompt.next_ids(tokenizer, vocabulary, example.question)
            answer, learned, weights = self._answer(example)
            length = len(head) + len(read) + len(asked) + len(answer)
            if number >= len(row.more) and self.max_length is not None and length > self.max_length:
                continue
            read += asked + answer
            target += [IGNORE] * len(asked) + learned
            weight += [0.0] * len(asked) + weights
        self._check_length(row, len(head) + len(read), len(head))
        return head + read, [IGNORE] * len(head) + target, weight

    def _check_length(self, row: Row, length: int, asked: int) -> None:
        if self.max_length is not None and length > self.max_length:
            named = f"{row.example.task} ({row.example.question[:60]!r})"
            raise ValueError(
                f"{named} has {length} tokens, {asked} of them for image and question, and the limit is "
                f"{self.max_length} (max_length, or the positions of the model); shorten it, make its image smaller, "
                "leave it out, or raise the limit"
            )

    def _conversation(self, row: Row) -> tuple[Encoded, dict[str, Tensor]]:
        """Encode a row that gives `images`; also return its image inputs, with the types of all its tokens."""
        assert row.images is not None
        turns = (row.example, *row.more)
        prompt = ConversationPrompt(self.processor, self.vocabulary)
        asked, inputs = prompt.encode(row.system, [example.question for example in turns], row.images)
        ids, labels, weight, types = (
            list(asked[0].ids),
            [IGNORE] * len(asked[0].ids),
            list[float](),
            dict(asked[0].types),
        )
        for number, (part, example) in enumerate(zip(asked, turns, strict=True)):
            if number:
                ids += part.ids
                labels += [IGNORE] * len(part.ids)
                weight += [0.0] * len(part.ids)
                types = {name: types[name] + part.types[name] for name in types}
            read, learned, weights = self._answer(example)
            ids += read
            labels += learned
            weight += weights
            types = {name: values + [0] * len(read) for name, values in types.items()}
        self._check_length(row, len(ids), len(asked[0].ids))
        kept = {name: value for name, value in inputs.items() if name in self.accepted}
        kept |= {name: torch.tensor([values]) for name, values in types.items() if name in self.accepted}
        return (ids, labels, weight), kept

    def _answer(self, example: Example, shown: np.ndarray | None = None, map_given: bool = False) -> Encoded:
        """Return the ids that the model reads, the ids that it learns, and their weights; see `Row`."""
        vocabulary, tokenizer = self.vocabulary, self.processor.tokenizer
        tail = [*encode_target(tokenizer, vocabulary, example.target), tokenizer.eos_token_id]
        depth_ids = vocabulary.code_ids("depth")
        depth = set(depth_ids)
        locations = {*vocabulary.code_ids("boxes"), *vocabulary.code_ids("masks")}  # a mask says where a thing is, too
        of_map = 0.0 if map_given else self.weights.depth
        of_place = self.weights.location if example.places_given else 0.0
        weight = [of_map if i in depth else of_place if i in locations else self.weights.text for i in tail]
        if not example.concludes:
            last = 1 + len(encode_target(tokenizer, vocabulary, example.target[-1:]))
            weight[-last:-1] = [0.0] * (last - 1)
        read = list(tail)
        if shown is not None:
            codes = iter(shown.tolist())
            read = [depth_ids[next(codes)] if i in depth else i for i in tail]
        return read, tail, weight

    def batches(self, rows: Sequence[Row], groups: int) -> list[dict[str, Tensor]]:
        """Split rows into batches of similar length, so that short rows are not padded to the length of long ones."""
        plain = [n for n, row in enumerate(rows) if row.images is None and row.tokens is None]
        pictures = dict(zip(plain, self._pictures([rows[n].image for n in plain]), strict=True))
        pictures |= self._seen_before({n: row for n, row in enumerate(rows) if row.tokens is not None})
        made: list[tuple[Encoded, dict[str, Tensor]]] = []
        for n, row in enumerate(rows):
            made.append(
                (self.encode(row, pictures[n][0]), pictures[n][1]) if n in pictures else self._conversation(row)
            )
        encoded = [row for row, _ in made]
        cut = split_by_length([len(ids) for ids, _, _ in encoded], min(groups, len(rows)))
        tasks = [chains.TASKS.index(row.example.task) for row in rows]
        return [
            self._collate([encoded[n] for n in group], [made[n][1] for n in group])
            | {"task": torch.tensor([tasks[n] for n in group])}
            for group in cut
        ]

    def _pictures(self, images: Sequence[Any]) -> list[tuple[list[int], dict[str, Tensor]]]:
        """Return, per image, the ids of the prompt up to its question and the image inputs of the model.

        If a model's only image input is pixels (LLaVA), the processor takes all images of one size together: sixteen
        at once take little longer than one.
        """
        made: dict[int, tuple[list[int], dict[str, Tensor]]] = {}
        for size in dict.fromkeys(image.size for image in images):
            first, *others = [n for n, image in enumerate(images) if image.size == size]
            head, outputs = self._picture(images[first])
            made[first] = head, {name: value for name, value in outputs.items() if name in self.accepted}
            if others and set(outputs) == {"pixel_values"} and outputs["pixel_values"].shape[:-3] == (1,):
                pixels = self.processor.image_processor(images=[images[n] for n in others], return_tensors="pt")
                for n, row in zip(others, pixels["pixel_values"].split(1), strict=True):
                    made[n] = head, {"pixel_values": row}
            else:
                for n in others:
                    head, outputs = self._picture(images[n])
                    made[n] = head, {name: value for name, value in outputs.items() if name in self.accepted}
        return [made[n] for n in range(len(images))]

    def _seen_before(self, rows: Mapping[int, Row]) -> dict[int, tuple[list[int], dict[str, Tensor]]]:
        """Return what `_pictures` does, of rows that bring visual tokens."""
        made, heads = {}, dict[Any, list[int]]()
        for n, row in rows.items():
            assert row.image is not None and row.tokens is not None
            if row.image.size not in heads:
                heads[row.image.size] = self._picture(row.image)[0]
            made[n] = heads[row.image.size], {"pixel_values": row.tokens[None]}
        return made

    def head_length(self, image: Image.Image) -> int:
        """Return the number of tokens of a prompt up to its question, with those of the image."""
        return len(self._picture(image)[0])

    def _picture(self, image: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
        return self.prompt.head_ids(self.processor, image)

    def _collate(self, rows: Sequence[Encoded], images: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return right-padded ids, labels, mask and weights (B, longest), and the model's image inputs."""
        tokenizer = self.processor.tokenizer
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        types = [
            token_types(image, len(ids) - len(weights), len(weights))
            for (ids, _, weights), image in zip(rows, images, strict=True)
        ]
        batch = {
            "input_ids": pad_rows([ids for ids, _, _ in rows], pad, left=False),
            "labels": pad_rows([labels for _, labels, _ in rows], IGNORE, left=False),
            "attention_mask": pad_rows([[1] * len(ids) for ids, _, _ in rows], 0, left=False),
            "weights": pad_rows([[0.0] * (len(ids) - len(w)) + w for ids, _, w in rows], 0.0, left=False),
        }
        return batch | batch_types(types, left=False) | batch_images(images)


def split_by_length(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Split row indices into `groups` non-empty groups of similar length with as little padding as possible."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    if not 1 <= groups <= len(order):
        raise ValueError(f"{len(order)} rows cannot be cut into {groups} groups; use at most one group per row")
    # cost[g][n]: fewest tokens, with padding, for the n shortest rows in g groups, and where the last group begins
    cost = [[(0.0, 0)] + [(np.inf, 0)] * len(order)]
    for group in range(1, groups + 1):
        row = [(np.inf, 0)] * group
        for end in range(group, len(order) + 1):
            starts = range(group - 1, end)
            row.append(min((cost[-1][s][0] + (end - s) * lengths[order[end - 1]], s) for s in starts))
        cost.append(row)
    cuts = [len(order)]
    for group in range(groups, 0, -1):
        cuts.append(cost[group][cuts[-1]][1])
    cuts.reverse()
    return [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


@dataclass(frozen=True)
class RowBatches:
    """Batches of a run for `train.loop.fit`: rows of all sources, in groups of similar length, one forward pass each.

    Every batch on every device has the same number of forward passes, which sharded models need.
    """

    encoder: RowEncoder
    sources: tuple[tuple[RowSource, int], ...]
    """pairs of a source and its number of rows per batch"""
    groups: int

    def __call__(self, step: int, shard: int, num_shards: int) -> list[dict[str, Tensor]]:
        rows = [row for source, count in self.sources for row in source.rows(step, shard, num_shards, count)]
        return self.encoder.batches(rows, self.groups)
