"""What the Token Replacement Test puts in the place of what a model thought: its span, or its latent tokens.

The test asks whether a model uses the perception that it draws (Ablate-to-Validate, arXiv 2605.21642): the thought that
precedes the answer is replaced, the image, the question and the decoding stay, and the model writes the rest. A model
that reasons over its tokens gains from true ones and loses from others; one that needs their presence alone does not
change. `perception.evaluation.ablation` runs the test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from perception.evaluation.scenes import Item, depth_tokenizer_of
from perception.model.perception_model import PerceptionModel
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span

INTERVENTIONS = ("oracle", "other image", "shuffled", "random")
"""Replacements of the comparison with the baseline, which start from true spans"""

_MOST_BOXES = 12
"""Largest number of boxes in a random span"""
_PLACES = 64
"""Places tried for a box that is added or moved"""

Thought = TypeVar("Thought")
"""What a model writes before its answer: a `Span`, a tensor of latents (tokens, width), ..."""


@dataclass(frozen=True)
class Case(Generic[Thought]):
    """One question of the test, and what the model itself wrote before its answer."""

    question: Any
    """Whatever the model's answers are made from, such as an image with a question"""
    truth: Any
    """The right answer; answers are compared with == """
    own: Thought
    oracle: Thought | None = None
    """What a perfect model would write; None where it is not known"""


@dataclass(frozen=True)
class Replacement(Generic[Thought]):
    """One condition of the test."""

    about: str
    """What is put in, for tables"""
    put: Callable[[Sequence[Case[Thought]], np.random.Generator], Sequence[Thought | None]]
    """Returns a thought per case; None: the model answers without one"""
    applies: Callable[[Case[Thought]], bool] = lambda case: True
    """Says for which cases the condition makes sense; the others are left out of it"""
    is_random: bool = False
    """True if it is drawn anew with each seed"""


# One thought at a time. `forced_chains` starts from true spans, the test from what the model wrote.


def of_others(thoughts: Sequence[Thought], shift: int = 1) -> list[Thought]:
    """Give every question the thought of the one `shift` places after it."""
    shift %= max(1, len(thoughts))
    return [*thoughts[shift:], *thoughts[:shift]]


def shuffled_span(span: Span, rng: np.random.Generator) -> Span:
    """Depth codes in random order; for boxes their locations in random order, sorted into as many valid boxes."""
    codes = rng.permutation(np.array(span.codes, dtype=int))
    if span.modality == "boxes" and len(codes):
        corners = codes.reshape(-1, 2, 2)
        codes = np.sort(corners, axis=1).reshape(-1)
    return Span(span.modality, tuple(codes.tolist()))


def random_span(vocabulary: PerceptionVocabulary, modality: str, rng: np.random.Generator) -> Span:
    """Depth codes drawn evenly; or 0 to 12 boxes with corners drawn evenly."""
    if modality == "boxes":
        count, bins = int(rng.integers(0, _MOST_BOXES + 1)), vocabulary.num_locations
        corners = np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4)  # x1 y1 x2 y2
        return Span("boxes", tuple(BoxTokenizer(bins).encode(corners)))
    return Span("depth", tuple(rng.integers(vocabulary.depth_codes, size=vocabulary.depth_length).tolist()))


def first_repeated(span: Span) -> Span:
    """Every depth code the first one; every box the first one. Length and number stay."""
    size = 4 if span.modality == "boxes" else 1
    return Span(span.modality, span.codes[:size] * (len(span.codes) // size))


# Boxes, of which one is changed. All others stay where they are.


def _free_place(boxes: NDArray[np.float64], size: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """A box (4,) of a size (width, height) in [0, 1]: of random places, the one that overlaps boxes (n, 4) least."""
    low = rng.random((_PLACES, 2)) * (1 - size)  # (p, 2)
    high = low + size  # (p, 2)
    sides = np.minimum(high[:, None], boxes[None, :, 2:]) - np.maximum(low[:, None], boxes[None, :, :2])  # (p, n, 2)
    overlap = sides.clip(0).prod(-1).max(1, initial=0.0)  # (p,)
    best = int(overlap.argmin())
    return np.concatenate([low[best], high[best]]).clip(0, 1)  # (4,)


def box_added(span: Span, tokenizer: BoxTokenizer, rng: np.random.Generator) -> Span:
    """The span with one more box: the size of a box of the span, where it overlaps the others least."""
    boxes = tokenizer.decode(span.codes)  # (n, 4)
    like = boxes[rng.integers(len(boxes))] if len(boxes) else np.array([0, 0, *rng.uniform(0.1, 0.25, size=2)])
    new = _free_place(boxes, like[2:] - like[:2], rng)
    return Span("boxes", tuple(tokenizer.encode([*boxes, new])))


def box_removed(span: Span, tokenizer: BoxTokenizer, rng: np.random.Generator) -> Span:
    """The span without one of its boxes, chosen at random."""
    boxes = tokenizer.decode(span.codes)  # (n, 4)
    return Span("boxes", tuple(tokenizer.encode(np.delete(boxes, rng.integers(len(boxes)), axis=0))))


def box_moved(span: Span, tokenizer: BoxTokenizer, rng: np.random.Generator) -> Span:
    """The span with one box, chosen at random, at another place; its size and the number of boxes stay."""
    boxes = tokenizer.decode(span.codes).copy()  # (n, 4)
    index = rng.integers(len(boxes))
    boxes[index] = _free_place(boxes, boxes[index, 2:] - boxes[index, :2], rng)
    return Span("boxes", tuple(tokenizer.encode(boxes)))


# Conditions


def _each(change: Callable[[Thought, np.random.Generator], Thought | None]) -> Any:
    """Make `Replacement.put` of a change of one thought."""
    return lambda cases, rng: [change(case.own, rng) for case in cases]


def _other_image(cases: Sequence[Case[Thought]], rng: np.random.Generator) -> list[Thought]:
    if len(cases) < 2:
        raise ValueError("what a model wrote for another image needs at least two questions, got 1; ask more")
    return of_others([case.own for case in cases], int(rng.integers(1, len(cases))))


def _shared() -> dict[str, Replacement[Any]]:
    """Conditions that look at no thought's inside."""
    return {
        "own": Replacement("what the model itself wrote", _each(lambda own, rng: own)),
        "oracle": Replacement(
            "what a perfect model would write",
            lambda cases, rng: [case.oracle for case in cases],
            lambda case: case.oracle is not None,
        ),
        "other image": Replacement("what the model wrote for another image", _other_image, is_random=True),
    }


_NO_SPAN: Replacement[Any] = Replacement(
    "nothing: the question still asks to draw, and the model must not", _each(lambda own, rng: None)
)


def span_replacements(vocabulary: PerceptionVocabulary, modality: str) -> dict[str, Replacement[Span]]:
    """Conditions for spans of a modality, "depth" or "boxes", by name."""
    things = "box" if modality == "boxes" else "code"
    conditions: dict[str, Replacement[Span]] = _shared() | {
        "shuffled": Replacement(
            "its codes in random order"
            if modality == "depth"
            else "its locations in random order, sorted into as many valid boxes",
            _each(shuffled_span),
            is_random=True,
        ),
        "random": Replacement(
            "random codes" if modality == "depth" else f"0 to {_MOST_BOXES} random boxes",
            _each(lambda own, rng: random_span(vocabulary, modality, rng)),
            is_random=True,
        ),
        "first code": Replacement(f"every {things} its first one", _each(lambda own, rng: first_repeated(own))),
        "markers only": Replacement(
            "start and end with nothing between", _each(lambda own, rng: Span(own.modality, ()))
        ),
        "no span": _NO_SPAN,
    }
    if modality == "boxes":
        tokenizer = BoxTokenizer(vocabulary.num_locations)
        conditions |= {
            "box added": Replacement(
                "one box more, where it overlaps the others least",
                _each(lambda own, rng: box_added(own, tokenizer, rng)),
                is_random=True,
            ),
            "box removed": Replacement(
                "one box less",
                _each(lambda own, rng: box_removed(own, tokenizer, rng)),
                lambda case: bool(case.own.codes),
                is_random=True,
            ),
            "box moved": Replacement(
                "one box moved to where it overlaps the others least",
                _each(lambda own, rng: box_moved(own, tokenizer, rng)),
                lambda case: bool(case.own.codes),
                is_random=True,
            ),
        }
    return conditions


def _random_latents(cases: Sequence[Case[Tensor]], rng: np.random.Generator) -> list[Tensor]:
    """Normal values with the mean and spread of each feature over all cases."""
    tokens = torch.cat([case.own.float() for case in cases])  # (all tokens, width)
    mean, spread = tokens.mean(0), tokens.std(0, correction=0)  # (width,) each
    noise = [torch.from_numpy(rng.standard_normal(case.own.shape)).to(mean) for case in cases]  # (tokens, width) each
    return [(mean + spread * values).to(case.own) for case, values in zip(cases, noise, strict=True)]


LATENT_REPLACEMENTS: Mapping[str, Replacement[Tensor]] = _shared() | {
    "shuffled": Replacement(
        "its tokens in random order", _each(lambda own, rng: own[rng.permutation(len(own))]), is_random=True
    ),
    "random": Replacement("random values, spread as the model's own are", _random_latents, is_random=True),
    "zero": Replacement("zeros", _each(lambda own, rng: torch.zeros_like(own))),
    "first token": Replacement("every token its first one", _each(lambda own, rng: own[:1].expand_as(own).clone())),
    "no span": _NO_SPAN,
}
"""Conditions for latent tokens (tokens, width), by name"""


# The comparison's, on rendered scenes


def true_span(model: PerceptionModel, item: Item) -> Span:
    """The span a perfect model would draw: the depth map of the scene, or the boxes of what is counted."""
    if item.kind == "count":
        return Span("boxes", tuple(BoxTokenizer(model.vocabulary.num_locations).encode(item.boxes_xyxy)))
    with torch.no_grad():
        tokenizer = depth_tokenizer_of(model)
        codes = tokenizer.to_sequence(tokenizer.encode(item.scene.depth[None]))  # (1, h*w)
    return Span("depth", tuple(codes[0].tolist()))


def forced_chains(model: PerceptionModel, items: Sequence[Item], intervention: str, seed: int = 0) -> list[list[int]]:
    """Ids of the replaced span that each item's answer begins with. Raises ValueError for an unknown intervention."""
    if intervention not in INTERVENTIONS:
        raise ValueError(f"unknown intervention {intervention!r}; known ones: {', '.join(INTERVENTIONS)}")
    rng = np.random.default_rng(seed)
    spans = [true_span(model, item) for item in items]
    if intervention == "other image":
        for kind in {item.kind for item in items}:
            rows = [i for i, item in enumerate(items) if item.kind == kind]
            for i, span in zip(rows, of_others([spans[i] for i in rows]), strict=True):
                spans[i] = span
    elif intervention == "shuffled":
        spans = [shuffled_span(span, rng) for span in spans]
    elif intervention == "random":
        spans = [random_span(model.vocabulary, span.modality, rng) for span in spans]
    return [model.vocabulary.span_ids(span) for span in spans]
