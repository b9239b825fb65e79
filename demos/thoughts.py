"""An answer as it is written, and as it changes when the drawing is edited. Independent of Gradio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from PIL import Image

from demos.guards import Refused
from perception.chains import doubt, encode_target
from perception.model.perception_model import PerceptionModel, Prompt
from perception.vocabulary.continuation import decode_continuation
from perception.vocabulary.names import PerceptionVocabulary, Span


@dataclass(frozen=True)
class OpenSpan:
    """A span that is being drawn."""

    modality: str
    codes: tuple[int, ...]


Part = str | Span | OpenSpan


@dataclass(frozen=True)
class Thought:
    """What a model has said and drawn so far about one question on one image."""

    image: Image.Image
    question: str
    prompt: Prompt
    points: tuple[tuple[float, float], ...] = ()
    """Places of the points that the question is about, where they were given"""
    parts: tuple[Part, ...] = ()
    """Text and spans in order; an open span can only be the last"""
    done: bool = False
    value: int | str | None = None
    """The final answer, once done: a number, a letter, or the text itself; None if none could be read"""
    warning: str = ""
    """As in `Answer`"""
    confidence: float | None = None
    """As in `Answer`; of answers that drew something"""
    tokens: int = 0

    def span(self, modality: str) -> Span | OpenSpan | None:
        """The first span of a modality, drawn or being drawn."""
        return next((part for part in self.parts if not isinstance(part, str) and part.modality == modality), None)

    @property
    def text(self) -> str:
        """All plain text, without spans."""
        return "".join(part for part in self.parts if isinstance(part, str)).strip()

    @property
    def caution(self) -> str:
        """What speaks against the answer, in one line; empty where nothing does."""
        said = filter(None, (self.warning, doubt(self.confidence)))
        return ". ".join(part[0].upper() + part[1:] for part in said)


def read_partial(model: PerceptionModel, ids: Sequence[int]) -> tuple[Part, ...]:
    """The parts of ids that may end in the middle of a span."""
    vocabulary: PerceptionVocabulary = model.vocabulary
    roles = vocabulary.id_roles
    parts: list[Part] = []
    text: list[int] = []

    def flush() -> None:
        if text:
            parts.append(decode_continuation(model.processor.tokenizer, text))
            text.clear()

    open_span: tuple[str, list[int]] | None = None
    for token in ids:
        role = roles.get(token)
        if role is not None and role.kind == "start":
            flush()
            open_span = (role.family, [])
        elif open_span is None:
            text.append(token)
        elif role is not None and role.kind == "end":
            parts.append(Span(open_span[0], tuple(open_span[1])))
            open_span = None
        elif role is not None:
            open_span[1].append(role.code)
    flush()
    if open_span is not None:
        parts.append(OpenSpan(open_span[0], tuple(open_span[1])))
    return tuple(parts)


def _follow(model: PerceptionModel, thought: Thought) -> Iterator[Thought]:
    """Yield the thought after each forward pass of the model; the last one is done."""
    ids: list[int] = []
    for ids in model.stream_ids(thought.prompt):
        thought = replace(thought, parts=read_partial(model, ids), tokens=len(ids))
        yield thought
    prompt = thought.prompt
    answer = model.judged(model.read_back(prompt, ids), thought.question, prompt.kind)
    confidence = model.confidence(prompt, ids) if answer.spans else None
    yield replace(thought, done=True, value=answer.value, warning=answer.warning, confidence=confidence)


def think(
    model: PerceptionModel, image: Image.Image, question: str, mode: str, points: Sequence[tuple[float, float]] = ()
) -> Iterator[Thought]:
    """Ask a question about an image; yield the thought after each forward pass of the model. The last one is done.

    Args:
        mode: see `PerceptionModel.ask`.
        points: places of the points that the image shows, which are then not the model's to find.

    Raises:
        Refused: for an empty question, an unknown mode, a chain that fits no question, or one that this model has no
            tokens for.
    """
    try:
        text, kind = model.put(question, mode)
    except ValueError as error:
        raise Refused(str(error)) from error
    known = tuple(points) if mode == "chain" and model.reads_maps() else ()
    yield from _follow(model, Thought(image, question, Prompt(image, text, kind, points=known), tuple(points)))


def rethink(model: PerceptionModel, thought: Thought, edited: Span) -> Iterator[Thought]:
    """Replace the first span of a modality and let the model write all that follows it again.

    Raises:
        Refused: if the thought is not done or has no such span.
        SpanError: for a span of the wrong length, or codes out of range.
    """
    if not thought.done:
        raise Refused("the answer is still being written; wait for its end, then edit it")
    place = next(
        (n for n, p in enumerate(thought.parts) if isinstance(p, Span) and p.modality == edited.modality), None
    )
    if place is None:
        raise Refused(f"this answer drew no {edited.modality}, so there is nothing to edit; ask again")
    kept = [part for part in thought.parts[:place] if not isinstance(part, OpenSpan)]
    forced = encode_target(model.processor.tokenizer, model.vocabulary, [*kept, edited])
    prompt = replace(thought.prompt, forced=tuple(forced))
    yield from _follow(model, Thought(thought.image, thought.question, prompt, thought.points))


def last(thoughts: Iterator[Thought]) -> Thought:
    """The last thought, without its steps. Raises Refused if there is none."""
    whole = list(thoughts)
    if not whole:
        raise Refused("the model gave nothing at all; ask again")
    return whole[-1]
