"""Chains of perception: turn tasks into prompts and targets, and read answers back.

There are three kinds of task (AURORA, arXiv 2412.03548, section 4): *atomic* tasks ask for perception itself, *chain*
tasks draw perception first and then answer, *direct* tasks answer directly. A target is a sequence of plain text and
`Span`s, and generated ids are read back into the same form.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import torch.nn.functional as F

from perception.answers import POINT_LETTERS, asks_for_farthest, letters_in, names_points, read_answer
from perception.grammar.automaton import SpanLimits
from perception.model.image_inputs import TOKEN_TYPES
from perception.vocabulary.continuation import (
    adds_space,
    adds_space_behind,
    decode_continuation,
    split_before_tokens,
    split_behind_tokens,
)
from perception.vocabulary.names import MODALITIES, PerceptionVocabulary, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATOMIC_DEPTH, ATOMIC_BOXES, ATOMIC_POINTS = "atomic_depth", "atomic_boxes", "atomic_points"
ATOMIC_READINGS, ATOMIC_MASKS = "atomic_readings", "atomic_masks"
CHAIN_COUNT, CHAIN_DEPTH = "chain_count", "chain_depth"
DIRECT_COUNT, DIRECT_DEPTH = "direct_count", "direct_depth"
DIRECT_OTHER = "direct_other"
ATOMIC = (ATOMIC_DEPTH, ATOMIC_BOXES, ATOMIC_POINTS, ATOMIC_READINGS, ATOMIC_MASKS)
CHAIN = (CHAIN_COUNT, CHAIN_DEPTH)
DIRECT = (DIRECT_COUNT, DIRECT_DEPTH)
TASKS = (*ATOMIC, *CHAIN, *DIRECT, DIRECT_OTHER)
"""All tasks. DIRECT_OTHER, a question that neither counts nor asks for depth, occurs in your own data only."""

IMAGE = "\ufffc"
"""Where an image is shown in a question of a conversation with several: Unicode's sign for an object in a text"""
BOXES_FIRST = "Draw their boxes first."
DEPTH_FIRST = "Draw the depth map first."
_AND_READ_IT = "Draw the depth map and read it"
_DRAWN = {"count": ("boxes",), "depth": ("depth", "points")}
"""Modalities that the chain of each kind of question draws"""

LOW_CONFIDENCE = 0.5
"""Confidence below which the model holds another answer to be likelier than its own, all others together"""

_SAME_THING = 0.8  # IoU from which two boxes of an answer are one thing drawn twice

_COUNT_QUESTION = re.compile(r"\bhow\s+many\b|\bcount\b|\bnumber\s+of\b(?!\s+(?:the|this|that|your)\b)", re.IGNORECASE)
_DEPTH_QUESTION = re.compile(r"\bclos(er|est)\b|\bnear(er|est)\b|\b(far|fur)th(er|est)\b|\bdepth\b", re.IGNORECASE)
_SPACES = "\u0120\u010a\u0109\u010d\u2581"
"""How vocabularies write a space, a line break, a tab and a return: byte-level ones, and SentencePiece a space"""
_YES_OR_NO = re.compile(
    r"\s*(is|are|was|were|does|do|did|has|have|can|could|would)\b"
    r"(?!.*\bwhich\b|(?!.*\bthan\b).*\b[A-H],?\s+or\s+(?:the\s+)?(?:point\s+)?[A-H]\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Example:
    """One task on one image."""

    task: str
    question: str
    target: tuple[str | Span, ...]
    answer: str
    """The final answer alone: "4", "B", "" for atomic tasks"""
    places_given: bool = True
    """False where the points in the target were chosen at random, so that their places cannot be learned"""
    concludes: bool = True
    """False where the last part of the target is not learned: it would be the answer to a question"""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known tasks: {', '.join(TASKS)}")
        if not self.question.strip():
            raise ValueError("the question is empty; give every example a question")


ATOMIC_DEPTH_QUESTION = "Draw the depth map."


def atomic_depth(depth: Span) -> Example:
    """A task that draws the depth map."""
    return Example(ATOMIC_DEPTH, ATOMIC_DEPTH_QUESTION, (depth,), "")


def atomic_boxes(things: str, boxes: Span) -> Example:
    """A task that draws the boxes of some things. `things` is their plural: "red cubes"."""
    return Example(ATOMIC_BOXES, f"Draw the boxes of the {things}.", (boxes,), "")


def atomic_points(points: Span) -> Example:
    """A task that draws the marked points."""
    return Example(ATOMIC_POINTS, "Draw the marked points.", (points,), "")


def atomic_masks(things: str, masks: Sequence[Span]) -> Example:
    """A task that draws the masks of some things, a span for each.

    Args:
        things: their singular where there is one mask ("red cube"), else their plural.
        masks: at least one, in the order of boxes.
    """
    return Example(ATOMIC_MASKS, f"Draw the mask{'s' if len(masks) > 1 else ''} of the {things}.", tuple(masks), "")


def atomic_readings(depth: Span, points: Sequence[Span], readings: Sequence[int], foreign: bool) -> Example:
    """A task that draws the depth map, reads it at the image's lettered points, and says which of them is nearest.

    Its target has the form of a depth chain's, so that a model learns to name the points and to conclude from readings.
    The conclusion is learned on foreign maps alone: on the image's own it is the answer to a question.

    Args:
        points: spans of one point each.
        readings: of the map at each point, from 0 (farthest) to 99 (nearest).
        foreign: True if the map belongs to another image.
    """
    *read, last = _read(points, readings, _nearest(readings))
    end = f" so {_nearest(readings)}."
    target = (depth, *read, str(last).removesuffix(end), end)
    return Example(ATOMIC_READINGS, readings_question(len(points)), target, "", concludes=foreign)


def readings_question(count: int) -> str:
    """The question of `atomic_readings` for an image with `count` lettered points."""
    letters = " and ".join(", ".join(POINT_LETTERS[:count]).rsplit(", ", 1))
    return f"{_AND_READ_IT} at the points {letters}."


def more_readings(sets: Sequence[tuple[Sequence[Span], Sequence[int]]]) -> Example:
    """A further turn of `atomic_readings`: it reads the same map at several sets of random points.

    Args:
        sets: pairs of points and readings, as of `atomic_readings`.
    """
    read: list[str | Span] = []
    for points, readings in sets:
        read += _read(points, readings, _nearest(readings))
    return Example(ATOMIC_READINGS, "Read it at other points.", tuple(read), "", places_given=False)


def _nearest(readings: Sequence[int]) -> str:
    return POINT_LETTERS[max(range(len(readings)), key=readings.__getitem__)]


def _read(points: Sequence[Span], readings: Sequence[int], nearest: str) -> list[str | Span]:
    """Return the part of a target that reads a map: each letter with its point and reading, then the nearest."""
    read: list[str | Span] = []
    before = ""
    for letter, point, value in zip(POINT_LETTERS, points, readings, strict=False):
        read += [f"{before} {letter}", point]
        before = f" {value},"
    return [*read, f"{before} so {nearest}."]


def direct_task(question: str) -> str:
    """Return the task of answering a question directly."""
    return {"count": DIRECT_COUNT, "depth": DIRECT_DEPTH}.get(kind_of_question(question) or "", DIRECT_OTHER)


def direct(task: str, question: str, answer: str) -> Example:
    """A task that answers directly."""
    return Example(task, question, (f" {answer}.",), answer)


def chain_count(question: str, boxes: Span) -> Example:
    """A task that draws boxes, then states their number."""
    count = str(len(boxes.codes) // 4)
    return Example(CHAIN_COUNT, f"{question} {BOXES_FIRST}", (boxes, f" {count}."), count)


def chain_depth(question: str, points: Sequence[Span], depth: Span, readings: Sequence[int], answer: str) -> Example:
    """A task that draws the depth map, then gives each letter with its point and the map's reading, then the answer.

    AURORA's chain names the points' coordinates, draws the map and concludes. Ours names each point where its reading
    follows, in the form of `atomic_readings`, so that every reading of the map is supervised.

    Args:
        points: spans of one point each.
        readings: of the map at each point, from 0 (farthest) to 99 (nearest).
    """
    target = (depth, *_read(points, readings, answer))
    return Example(CHAIN_DEPTH, f"{question} {DEPTH_FIRST}", target, answer)


def kind_of_question(question: str) -> str | None:
    """Return "count" for a question after a number of things, "depth" for one after a point, a letter or one of several
    things by its depth ("Is A or B closer?"), and None for any other: "Is A closer than B?", "What colour is the
    nearest car?"."""
    if _COUNT_QUESTION.search(question):
        return "count"
    if not _DEPTH_QUESTION.search(question) or _YES_OR_NO.match(question):
        return None
    return "depth" if re.search(r"\bwhich\b", question, re.IGNORECASE) or names_points(question) else None


def asks_to_draw(question: str) -> bool:
    """True for a question that asks for a drawing alone: "Draw the boxes of the cubes."."""
    return bool(re.match(r"\s*(please\s+)?(draw|read)\b", question, re.IGNORECASE))


def is_depth_chain(question: str) -> bool:
    """True if a prompt's question asks for a depth map that is then read: before an answer, or as an atomic task."""
    return question.endswith(DEPTH_FIRST) or question.startswith(_AND_READ_IT)


@dataclass(frozen=True)
class ChainRoom:
    """Numbers of tokens that parts of a chain take with one tokenizer, from which limits of answers follow."""

    depth_length: int
    """Codes of a depth map"""
    letter: int
    """A letter with its point and its reading"""
    conclusion: int
    """The answer behind the last span or reading, with the end of sequence"""
    silent_ids: frozenset[int] = frozenset()
    """Ids that readers skip: special tokens, and what ends an answer"""
    blank_ids: frozenset[int] = frozenset()
    """Ids of text without a letter or digit"""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, stop_ids: Sequence[int] = ()
    ) -> ChainRoom:
        """Measure a tokenizer. `stop_ids` end an answer beside the tokenizer's own end of sequence."""

        def length(text: str) -> int:
            return len(vocabulary.encode_plain(tokenizer, text))

        letter = length(" A") + len(("START", "x", "y", "END")) + length(" 99,")
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        silent = (special | {*tokenizer.all_special_ids, *stop_ids}) - set(vocabulary.ids.values())
        texts = ((token, _text_of(name)) for name, token in tokenizer.get_vocab().items())
        blank = {token for token, text in texts if not any(character.isalnum() for character in text)}
        conclusion = 1 + max(length(" so A."), length(" 999."))
        return cls(vocabulary.depth_length, letter, conclusion, frozenset(silent), frozenset(blank - silent))

    @property
    def default(self) -> int:
        """Room for an answer where none is given: for a depth map and a good deal more, at least 256."""
        return max(256, self.depth_length + 156)

    def limits(self, question: str) -> SpanLimits | None:
        """What a chain may draw, so that it ends with an answer; None for a prompt that asks for no chain.

        A counting chain draws one list of boxes; a depth chain one map, and at most one span of points per letter. Both
        go on with text behind their last span, and so does the atomic task that reads a map; other atomic tasks end
        with a span, and have no limits.
        """
        if question.endswith(BOXES_FIRST):
            most = {"depth": 0, "boxes": 1, "points": 0, "masks": 0}
        elif is_depth_chain(question):
            most = {"depth": 1, "boxes": 0, "points": _points_in(question), "masks": 0}
        else:
            return None
        return SpanLimits(most, self.conclusion, self.silent_ids, self.blank_ids)

    def check(self, question: str, max_new_tokens: int) -> None:
        """Raise ValueError where a prompt asks for a chain that does not fit into `max_new_tokens`."""
        if is_depth_chain(question):
            needed = 2 + self.depth_length + self.letter * _points_in(question) + self.conclusion
            holds = f"a depth map of {self.depth_length} codes, {_points_in(question)} readings and an answer"
        else:
            needed = 2 + self.conclusion if question.endswith(BOXES_FIRST) else 0
            holds = "a list of boxes and an answer"
        if max_new_tokens < needed:
            raise ValueError(
                f"max_new_tokens must be at least {needed} for {holds}, got {max_new_tokens}; raise it, leave it out "
                f"for {self.default}, or use mode='direct'"
            )


def _text_of(name: str) -> str:
    """Text of a token by its name in the vocabulary, without spaces; the byte of one like <0x0A>."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", name)
    return chr(int(byte[1], 16)) if byte else name.strip(_SPACES)


def _points_in(question: str) -> int:
    """Number of points of a depth question: those that it names, or all letters where they are in the image alone."""
    named = len(letters_in(question))
    return named if named > 1 else len(POINT_LETTERS)


def check_question(question: str) -> None:
    """Raise ValueError for a question that is no text, or an empty one."""
    if not isinstance(question, str):
        raise ValueError(f"the question must be text, got {type(question).__name__}")
    if not question.strip():
        raise ValueError("the question is empty; ask something, such as 'How many red cubes are there?'")


def choose_mode(question: str, mode: str, modalities: Sequence[str] = MODALITIES) -> str:
    """Choose how to answer a question: "chain" or "direct". Mode "auto" is "chain" where a chain fits the question and
    the vocabulary.

    Args:
        modalities: those that the vocabulary has tokens for.

    Raises:
        ValueError: as `check_question`; for an unknown mode, or mode "chain" with a question that no chain fits, or
            whose chain draws what the vocabulary has no tokens for.
    """
    check_question(question)
    if mode not in ("chain", "direct", "auto"):
        raise ValueError(f"unknown mode {mode!r}; known modes: chain, direct, auto")
    kind = kind_of_question(question)
    if mode == "chain" and kind is None:
        raise ValueError(
            f"no chain of perception fits the question {question.strip()!r}: ask 'how many ...' or which point is "
            "closest, or use mode='direct'"
        )
    missing = [name for name in _DRAWN.get(kind or "", ()) if name not in modalities]
    if mode == "chain" and missing:
        raise ValueError(
            f"the chain of the question {question.strip()!r} draws {' and '.join(_DRAWN[kind or ''])}, and the "
            f"vocabulary has no tokens for {' and '.join(missing)}; use mode='direct' or mode='auto'"
        )
    return "direct" if mode == "direct" or kind is None or missing else "chain"


def prompt_for(question: str, mode: str, modalities: Sequence[str] = MODALITIES) -> tuple[str, str | None]:
    """Return the text that puts a question to the model in a mode, and the question's kind.

    A chain's text asks for the perception that the kind calls for, once: a question that ends so stays as it is.
    Arguments as those of `choose_mode`, and ValueError as it raises.
    """
    chosen, question, kind = choose_mode(question, mode, modalities), question.strip(), kind_of_question(question)
    if chosen == "direct":
        return question, kind
    wish = BOXES_FIRST if kind == "count" else DEPTH_FIRST
    return f"{question.removesuffix(wish).rstrip()} {wish}", kind


@dataclass(frozen=True)
class ChatPrompt:
    """A chat template split where the question goes, so that the question is encoded apart and stays plain text.

    Tokenizers that put a space before every text (SentencePiece's) encode the question together with the template's
    text around it, up to the nearest special tokens, so that its ids are those of the whole prompt.
    """

    before: str
    after: str
    completed: bool = False
    """True if the processor itself appends `after` to every text"""
    between: str | None = None
    """text from the token that ends an answer to the next question; None if the template has one turn alone"""

    @classmethod
    def from_processor(cls, processor: Any, images: int = 1) -> ChatPrompt:
        """Render the processor's chat template around so many images, one question, and a second question after it.

        PaliGemma has no template: its prompt is the images, the question and a line break, which its processor adds.
        Raises ValueError where another processor has no chat template.
        """
        if not getattr(processor, "chat_template", None):
            if type(processor).__name__ == "PaliGemmaProcessor":
                return cls(processor.image_token * images, "\n", completed=True)
            raise ValueError("the processor has no chat template; set processor.chat_template to the model's own")
        mark = "\u241fQUESTION\u241f"
        content = [*[{"type": "image"}] * images, {"type": "text", "text": mark}]
        asked = {"role": "user", "content": content}
        text = processor.apply_chat_template([asked], add_generation_prompt=True)
        before, _, after = text.partition(mark)
        return cls(before, after, between=cls._between(processor, asked, mark))

    @staticmethod
    def _between(processor: Any, asked: dict[str, Any], mark: str) -> str | None:
        said = "\u241fANSWER\u241f"
        answered = {"role": "assistant", "content": [{"type": "text", "text": said}]}
        again = {"role": "user", "content": [{"type": "text", "text": mark}]}
        try:
            text = processor.apply_chat_template([asked, answered, again], add_generation_prompt=True)
        except jinja2.TemplateError:
            return None
        _, _, rest = text.rpartition(said)
        between, found, _ = rest.partition(mark)
        if not found:
            return None
        return between.removeprefix(processor.tokenizer.eos_token or "")

    def head_ids(self, processor: Any, image: Any) -> tuple[list[int], dict[str, Any]]:
        """Ids up to the question, image tokens expanded, and the processor's other outputs (pixel values, ...)."""
        text, _ = self._split_before(processor.tokenizer, self.before)
        inputs = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
        ids = inputs.pop("input_ids")[0].tolist()
        inputs.pop("attention_mask", None)
        inputs.pop("labels", None)
        begin = self.begin_ids(processor.tokenizer, ids)
        tail = processor.tokenizer.encode(self.after, add_special_tokens=False) if self.completed else []
        end = len(ids) - len(tail)
        for name in TOKEN_TYPES:
            if name in inputs:
                types = inputs[name][:, :end]
                inputs[name] = F.pad(types, (len(begin), 0))
        return begin + ids[:end], dict(inputs)

    @staticmethod
    def begin_ids(tokenizer: Any, ids: list[int]) -> list[int]:
        """The beginning of sequence, where the tokenizer writes it and the template does not (LLaVA-1.5)."""
        bos = tokenizer.bos_token_id
        writes_it = bos is not None and tokenizer("a")["input_ids"][0] == bos
        return [bos] if writes_it and bos not in ids else []

    def tail_ids(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, question: str
    ) -> list[int]:
        """Ids of the question, encoded as plain text, and of the template's text after it."""
        return self._asked(tokenizer, vocabulary, *self._split_before(tokenizer, self.before), question)

    def next_ids(
        self, tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, question: str
    ) -> list[int]:
        """Ids from the token that ends an answer to the start of the next one.

        Raises:
            ValueError: if the chat template has one turn alone.
        """
        if self.between is None:
            raise ValueError("the chat template takes one question; ask each question of an image in a row of its own")
        end = (tokenizer.eos_token or "") if adds_space(tokenizer) else ""
        before, text = self._split_before(tokenizer, end + self.between)
        ended, ids = (tokenizer.encode(said, add_special_tokens=False) for said in (end, before))
        return ids[len(ended) :] + self._asked(tokenizer, vocabulary, before, text, question)

    def _split_before(self, tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, str]:
        """Split the template's text before a question: what is encoded apart, and what together with the question."""
        return (text, "") if self.completed or not adds_space(tokenizer) else split_behind_tokens(tokenizer, text)

    def _asked(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: PerceptionVocabulary,
        before: str,
        text: str,
        question: str,
    ) -> list[int]:
        """Ids of the template's text before the question, the question and the text after it, behind `before`."""
        if self.completed or not adds_space(tokenizer):
            after, rest, alone = "", self.after, False
        else:
            after, rest = split_before_tokens(tokenizer, self.after)
            alone = adds_space_behind(tokenizer, before)
        ids = vocabulary.encode_plain(tokenizer, text + question + after, alone=alone)
        return ids + (tokenizer.encode(rest, add_special_tokens=False) if rest else [])


def encode_target(
    tokenizer: PreTrainedTokenizerBase, vocabulary: PerceptionVocabulary, target: Sequence[str | Span]
) -> list[int]:
    """Ids of a target, without an end of sequence."""
    ids: list[int] = []
    for part in target:
        ids += vocabulary.span_ids(part) if isinstance(part, Span) else vocabulary.encode_plain(tokenizer, part)
    return ids


@dataclass(frozen=True)
class Answer:
    """A model's answer."""

    text: str
    """All plain text"""
    spans: tuple[Span, ...]
    """The spans that it drew, in order"""
    value: int | str | None
    """The final answer: a number, a letter, or the text itself; None where none could be read"""
    mode: str = ""
    """"chain" or "direct", set by `PerceptionModel.ask` and `ask_many`"""
    warning: str = ""
    """What speaks against the answer: it differs from what was drawn or read before it ("3 said, 2 boxes drawn"), a box
    was drawn again ("3 said, 2 different boxes drawn"), or the model was not taught such questions; empty where
    nothing does"""
    confidence: float | None = field(default=None, compare=False)
    """Probability that the model gives its decisions, set by `PerceptionModel.ask` (`PerceptionModel.confidence`)"""

    @property
    def doubt(self) -> str:
        """Say that the confidence is low; empty where it is not, or not known."""
        return doubt(self.confidence)


def doubt(confidence: float | None) -> str:
    """Say that a confidence is low, below one half; empty where it is not, or not known."""
    if confidence is None or confidence >= LOW_CONFIDENCE:
        return ""
    return f"the model is unsure: it gives this answer a probability of {100 * confidence:.0f} %"


def read_ids(
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: PerceptionVocabulary,
    ids: Sequence[int],
    kind: str | None,
    question: str = "",
) -> Answer:
    """Read generated ids back. The final answer is read from the text after the last span.

    Args:
        question: says which of several numbers or letters in that text is the answer.

    Raises:
        SpanError: where a span is malformed.
    """
    parts: list[str | Span] = []
    run: list[int] = []
    for part in vocabulary.parse(ids):
        if isinstance(part, Span):
            parts += [decode_continuation(tokenizer, run), part]
            run = []
        else:
            run.append(part)
    parts.append(decode_continuation(tokenizer, run))
    texts = [p for p in parts if isinstance(p, str)]
    spans = tuple(p for p in parts if isinstance(p, Span))
    lettered = any(span.modality == "points" for span in spans)
    text, value = "".join(texts).strip(), read_answer(texts[-1], kind, question, lettered)
    return Answer(text, spans, value, warning=_mismatch(kind, value, spans, text, question))


def _boxes(count: int, which: str = "") -> str:
    return f"{count} {which}box{'es' if count != 1 else ''}"


def _different(boxes: Sequence[Sequence[int]]) -> int:
    """Number of boxes (x1, y1, x2, y2) without those that overlap one before them by `_SAME_THING` or more."""
    found: list[Sequence[int]] = []
    for box in boxes:
        if all(_iou(box, other) < _SAME_THING for other in found):
            found.append(box)
    return len(found)


def _iou(one: Sequence[int], other: Sequence[int]) -> float:
    """Intersection over union of two boxes in bins; a box covers the bins of all its sides."""
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])  # (2,) each
    shared = float(np.clip(high + 1 - low, 0, None).prod())
    areas = [(x2 + 1 - x1) * (y2 + 1 - y1) for x1, y1, x2, y2 in (one, other)]
    return shared / (sum(areas) - shared)


def _mismatch(kind: str | None, value: int | str | None, spans: Sequence[Span], text: str, question: str) -> str:
    """How an answer differs from what was drawn or read before it; empty where it agrees, or nothing was.

    The grammar allows a box that is drawn again, in the same bins or in slightly other ones, since two things may lie
    there; the answer says that there is one.
    """
    drawn = any(span.modality == "boxes" for span in spans)
    boxes = [span.codes[i : i + 4] for span in spans if span.modality == "boxes" for i in range(0, len(span.codes), 4)]
    if kind == "count" and drawn and value != len(boxes):
        return f"{'no number' if value is None else value} said, {_boxes(len(boxes))} drawn"
    if kind == "count" and (different := _different(boxes)) < len(boxes):
        return f"{value} said, {_boxes(different, 'different ')} drawn"
    readings = {letter: int(number) for letter, number in re.findall(rf"\b([{POINT_LETTERS}]) (\d+)\b", text)}
    if kind == "depth" and any(span.modality == "depth" for span in spans) and len(readings) > 1:
        pick = min if asks_for_farthest(question) else max
        best = pick(readings.values())
        if value is None or readings.get(str(value)) != best:
            listed = ", ".join(f"{letter} {number}" for letter, number in readings.items())
            return f"{'no letter' if value is None else value} said, readings {listed}"
        if len(same := [letter for letter, number in readings.items() if number == best]) > 1:
            return f"{' and '.join(same)} have the same reading"
    return ""
