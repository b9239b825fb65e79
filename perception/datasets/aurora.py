"""AURORA's own training files (arXiv 2412.03548): a JSON list of LLaVA-style conversations.

    {"id": "1", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nHow many cats are there?"},
     {"from": "gpt", "value": "... (<PIXEL_3>,<PIXEL_20>,<PIXEL_110>,<PIXEL_300>) ... 1."}]}

Depth maps are <DEPTH_START>, a hundred <DEPTH_n>, <DEPTH_END>; boxes four <PIXEL_n> in brackets, on the image squashed
to 336 x 336. Its codes are those of its own depth tokenizer: a model trained on them draws maps that ours does not
decode.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from perception import answers, chains
from perception.datasets.images import ImageFile, check_exists
from perception.datasets.records import Record, RecordSet
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span, SpanError

AURORA_VOCABULARY = PerceptionVocabulary(depth_codes=128, depth_grid=(10, 10), num_locations=336, naming="aurora")
_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_LIKE_A_TOKEN = re.compile(r"<[A-Z]+(?:_[A-Z0-9]+)+>")
_BOX = r"[(\[]\s*(?:<PIXEL_\d+>\s*,?\s*){4}[)\]]"
_BOXES = re.compile(rf"{_BOX}(?:[\s,;]*(?:and\s*)?{_BOX})*")
_PIXEL = re.compile(r"<PIXEL_\d+>")


def read_aurora(path: Path, images: Path, vocabulary: PerceptionVocabulary = AURORA_VOCABULARY) -> RecordSet:
    """A record of every question and answer of a file; boxes keep the file's order.

    Conversations of several turns become several records: a question is put without those before it.

    Args:
        images: folder that the entries' `image` is relative to.
        vocabulary: the sizes and names to expect; of the file's own tokens by default.

    Raises:
        ValueError: naming file and entry, for what is no conversation, an unknown token name, a span that is cut short,
            or an image that is missing.
    """
    records = []
    for number, entry in enumerate(_entries(path)):
        where = f"{path.name}, entry {number}"
        if isinstance(entry, dict) and "id" in entry:
            where += f" (id {entry['id']})"
        image, turns = _read_entry(entry, where)
        check_exists(images / image, where)
        for question, answer in turns:
            records.append(Record(ImageFile(images / image), _example(question, answer, vocabulary, where), where))
    return RecordSet(tuple(records))


def _entries(path: Path) -> list[Any]:
    """Of a JSON list, or of JSON lines."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give one of AURORA's JSON files")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON ({error}); fetch it anew") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of conversations, got {type(entries).__name__}")
    return entries


def _read_entry(entry: Any, where: str) -> tuple[str, list[tuple[str, str]]]:
    """Image and (question, answer) pairs."""
    remedy = "mend the entry or take it out"
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"]:
        raise ValueError(f"{where} names no image; {remedy}")
    said = entry.get("conversations")
    if not isinstance(said, list) or len(said) < 2 or len(said) % 2:
        raise ValueError(f"{where}: conversations must be turns of human and gpt, two by two; {remedy}")
    words = []
    for turn, expected in zip(said, ("human", "gpt") * (len(said) // 2), strict=True):
        speaker = _SPEAKERS.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if speaker != expected or not isinstance(turn.get("value"), str):
            raise ValueError(
                f"{where}: expected a turn of {expected} with its text as value, got {turn!r:.80}; {remedy}"
            )
        words.append(turn["value"].replace("<image>", "").strip())
        if not words[-1]:
            raise ValueError(f"{where}: a turn of {expected} is empty; {remedy}")
    return entry["image"], list(zip(words[::2], words[1::2], strict=True))


def _example(question: str, answer: str, vocabulary: PerceptionVocabulary, where: str) -> chains.Example:
    try:
        target = read_target(answer, vocabulary)
    except SpanError as error:
        raise ValueError(f"{where}: {error}") from error
    text = target[-1] if isinstance(target[-1], str) else ""
    task = task_of(question, target)
    value = "" if task in chains.ATOMIC else answers.read_answer(text, chains.kind_of_question(question))
    return chains.Example(task, question, target, "" if value is None else str(value))


def read_target(text: str, vocabulary: PerceptionVocabulary) -> tuple[str | Span, ...]:
    """Text in AURORA's names as plain text and spans; boxes that follow each other are one span.

    Raises:
        SpanError: for unknown names, and spans or boxes that are cut short or turned inside out.
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
            "(<PIXEL_x1>,<PIXEL_y1>,<PIXEL_x2>,<PIXEL_y2>): mend the entry or take it out"
        ) from error
    for part in parts:
        if isinstance(part, Span) and part.modality == "boxes":
            try:
                BoxTokenizer(vocabulary.num_locations).decode(part.codes)
            except ValueError as error:
                raise SpanError(f"a box is turned inside out ({error})") from error
    parts = [part for part in parts if isinstance(part, Span) or part.strip()]
    if parts and isinstance(parts[0], str):
        parts[0] = " " + parts[0].lstrip()  # as words follow "ASSISTANT:"
    return tuple(parts)


def task_of(question: str, target: tuple[str | Span, ...]) -> str:
    """Atomic where nothing is said behind the last span, a chain where something is, direct without spans."""
    modalities = [part.modality for part in target if isinstance(part, Span)]
    if not modalities:
        return chains.direct_task(question)
    said = isinstance(target[-1], str) and any(letter.isalnum() for letter in target[-1])
    if "depth" in modalities:
        return chains.CHAIN_DEPTH if said else chains.ATOMIC_DEPTH
    if "boxes" in modalities:
        return chains.CHAIN_COUNT if said else chains.ATOMIC_BOXES
    return chains.CHAIN_DEPTH if said else chains.ATOMIC_POINTS
