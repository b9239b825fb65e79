"""Read AURORA's published training files (arXiv 2412.03548): a JSON list of LLaVA-style conversations.

    {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nHow many cats are there?"},
     {"from": "gpt", "value": "... (<PIXEL_3>,<PIXEL_20>,<PIXEL_110>,<PIXEL_300>) ... 1."}]}

A depth map is <DEPTH_START>, 100 tokens <DEPTH_n>, <DEPTH_END>. A box is four <PIXEL_n> in brackets, in pixels of the
image resized to 336 x 336. The codes belong to AURORA's depth tokenizer; this package's tokenizers do not decode them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from perception import answers, chains
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.lines import json_rows
from perception.datasets.records import Record, RecordSet, bad_row
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span, SpanError

AURORA_VOCABULARY = PerceptionVocabulary(depth_codes=128, depth_grid=(10, 10), num_locations=336, naming="aurora")
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_LIKE_A_TOKEN = re.compile(r"<[A-Z]+(?:_[A-Z0-9]+)+>")
_BOX = r"[(\[]\s*(?:<PIXEL_\d+>\s*,?\s*){4}[)\]]"
_BOXES = re.compile(rf"{_BOX}(?:[\s,;]*(?:and\s*)?{_BOX})*")
_PIXEL = re.compile(r"<PIXEL_\d+>")


def read_aurora(
    path: Path, images: Path, vocabulary: PerceptionVocabulary = AURORA_VOCABULARY, skip_bad: bool = False
) -> RecordSet:
    """One record per question and answer of a file. Boxes keep the file's order.

    A conversation of several turns becomes several records, and each question is asked without the turns before it.

    Args:
        images: folder that the entries' `image` is relative to.
        vocabulary: the token names and sizes to expect; by default AURORA's.
        skip_bad: name entries that cannot be used in the set's `skipped`, and go on.

    Raises:
        ValueError: naming file and entry, if an entry is not a conversation, a token name is unknown, a span is cut
            short, or an image is missing.
    """
    records, skipped = list[Record](), list[str]()
    for number, entry in enumerate(_entries(path)):
        where = f"{path.name}, entry {number}"
        if isinstance(entry, dict) and "id" in entry:
            where += f" (id {entry['id']})"
        with bad_row(skipped if skip_bad else None):
            image, turns = _read_entry(entry, where)
            check_exists(images / image, where)
            examples = [_example(question, answer, vocabulary, where) for question, answer in turns]
            records += [Record(ImageFile(images / image), example, where) for example in examples]
    return RecordSet(tuple(records), tuple(skipped))


def _entries(path: Path) -> list[Any]:
    """The entries of a JSON list, or of JSON lines."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give one of AURORA's JSON files")
    entries = [entry for _, entry in json_rows(path, "it must hold a list of conversations; fetch it again")]
    if len(entries) == 1 and isinstance(entries[0], dict) and "conversations" not in entries[0]:
        raise ValueError(f"{path} must hold a list of conversations, got {type(entries[0]).__name__}")
    return entries


def _read_entry(entry: Any, where: str) -> tuple[str, list[tuple[str, str]]]:
    """The image of an entry and its (question, answer) pairs."""
    remedy = "correct or remove the entry"
    several = isinstance(entry, dict) and (entry.get("images") or entry.get("image"))
    if isinstance(several, list) and len(several) > 1:
        raise ValueError(f"{where} has {len(several)} images; a question is about one image: split or remove the entry")
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise ValueError(f"{where} names no image; {remedy}")
    said = entry.get("conversations")
    if not isinstance(said, list) or len(said) < 2 or len(said) % 2:
        raise ValueError(f"{where}: conversations must alternate between human and gpt, human first; {remedy}")
    words = []
    for turn, expected in zip(said, ("human", "gpt") * (len(said) // 2), strict=True):
        speaker = _SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if speaker != expected or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"{where}: expected a turn of {expected} with its text as value, got {turn!r:.80}; {remedy}"
            )
        if turn["value"].count("<image>") > 1:
            raise ValueError(f"{where}: a turn asks about several images (<image> is there twice); {remedy}")
        words.append(turn["value"].replace("<image>", "").strip())
        if not words[-1]:
            raise ValueError(f"{where}: a turn of {expected} is empty; {remedy}")
    return entry["image"], list(zip(words[::2], words[1::2], strict=True))


def _example(question: str, answer: str, vocabulary: PerceptionVocabulary, where: str) -> chains.Example:
    try:
        target = read_target(answer, vocabulary)
    except SpanError as error:
        raise ValueError(f"{where}: {error}") from error
    return example_of(question, target)


def example_of(question: str, target: tuple[str | Span, ...]) -> chains.Example:
    """The task of a question and its target, with the answer that the target ends with."""
    text = target[-1] if isinstance(target[-1], str) else ""
    task = task_of(question, target)
    kind = chains.kind_of_question(question)
    lettered = any(isinstance(part, Span) and part.modality == "points" for part in target)
    value = "" if task in chains.ATOMIC else answers.read_answer(text, kind, question, lettered)
    return chains.Example(task, question, target, "" if value is None else str(value))


def read_target(text: str, vocabulary: PerceptionVocabulary) -> tuple[str | Span, ...]:
    """Split text with AURORA's token names into plain text and spans; consecutive boxes become one span.

    Raises:
        SpanError: if a name is unknown, or a span or box is cut short, or a box has x2 < x1 or y2 < y1.
    """
    known = set(vocabulary.tokens)
    unknown = [name for name in _LIKE_A_TOKEN.findall(text) if name not in known]
    if unknown:
        raise SpanError(
            f"unknown token {unknown[0]}; known: <DEPTH_0> .. <DEPTH_{vocabulary.depth_codes - 1}>, <PIXEL_0> .. "
            f"<PIXEL_{vocabulary.num_locations - 1}> and their START and END"
        )
    start, end = vocabulary.start_name("boxes"), vocabulary.end_name("boxes")
    text = _BOXES.sub(lambda found: start + "".join(_PIXEL.findall(found[0])) + end, text)
    try:
        parts = vocabulary.parse_text(text)
    except SpanError as error:
        raise SpanError(
            f"{str(error).split('; decode')[0]}; a depth map is START, {vocabulary.depth_length} codes, END, a box "
            "(<PIXEL_x1>,<PIXEL_y1>,<PIXEL_x2>,<PIXEL_y2>): correct or remove the entry"
        ) from error
    for part in parts:
        if isinstance(part, Span) and part.modality == "boxes":
            try:
                BoxTokenizer(vocabulary.num_locations).decode(part.codes)
            except ValueError as error:
                raise SpanError(f"a box is inverted ({error})") from error
    parts = [part for part in parts if isinstance(part, Span) or part.strip()]
    if parts and isinstance(parts[0], str):
        parts[0] = " " + parts[0].lstrip()  # the space that follows "ASSISTANT:"
    return tuple(parts)


def task_of(question: str, target: tuple[str | Span, ...]) -> str:
    """The task of a target: direct without spans, a chain if text follows the last span, else atomic."""
    modalities = [part.modality for part in target if isinstance(part, Span)]
    if not modalities:
        return chains.direct_task(question)
    said = isinstance(target[-1], str) and any(letter.isalnum() for letter in target[-1])
    if "depth" in modalities:
        return chains.CHAIN_DEPTH if said else chains.ATOMIC_DEPTH
    if "boxes" in modalities:
        return chains.CHAIN_COUNT if said else chains.ATOMIC_BOXES
    if "masks" in modalities:
        return chains.CHAIN_COUNT if said else chains.ATOMIC_MASKS
    return chains.CHAIN_DEPTH if said else chains.ATOMIC_POINTS
