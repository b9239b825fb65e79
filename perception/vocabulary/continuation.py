"""Text that goes on behind other text, as tokenizers write it that put a space before every text.

SentencePiece's tokenizers (LLaVA-1.5) put a space before a text that is encoded alone and take one from a text that is
decoded alone. Questions and answers go on behind a template or a span, where both would be wrong, so they are encoded
and decoded behind an anchor whose ids or letters are left out. Byte-level tokenizers need none of this.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_SPACE = "\u2581"
_ANCHORS = ("\n", ":")
"""Texts that hardly any token joins to what follows; some tokenizers make a space of the first"""


def adds_space(tokenizer: Any) -> bool:
    """True for a tokenizer that puts a space before a text, as SentencePiece's do."""
    return _begins_with_space(tokenizer, tokenizer.encode("a", add_special_tokens=False))


def adds_space_behind(tokenizer: Any, text: str) -> bool:
    """True for a tokenizer that puts a space before a text behind a special token, which ends `text`, too."""
    before = tokenizer.encode(text, add_special_tokens=False)
    return _begins_with_space(tokenizer, tokenizer.encode(f"{text}a", add_special_tokens=False)[len(before) :])


def _begins_with_space(tokenizer: Any, ids: Sequence[int]) -> bool:
    return any(name.startswith(_SPACE) for name in tokenizer.convert_ids_to_tokens(ids[:1]))


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
    """Encode plain text without a space before it that it does not have. No name becomes a special token."""

    def encode(plain: str) -> list[int]:
        return list(tokenizer.encode(plain, add_special_tokens=False, split_special_tokens=True))

    for anchor in _ANCHORS if text and adds_space(tokenizer) else ():
        before, ids = encode(anchor), encode(anchor + text)
        if before and ids[: len(before)] == before:
            return ids[len(before) :]
    return encode(text)


def decode_continuation(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode ids without special tokens, and without losing a space that the text begins with."""
    if ids and adds_space(tokenizer):
        anchor = tokenizer.encode(_ANCHORS[-1], add_special_tokens=False)
        before, text = (tokenizer.decode([*anchor, *some], skip_special_tokens=True) for some in ((), ids))
        if text.startswith(before):
            return str(text[len(before) :])
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def split_behind_tokens(tokenizer: Any, text: str) -> tuple[str, str]:
    """Split text behind the last name of an added token in it."""
    ends = [match.end() for match in _added(tokenizer).finditer(text)]
    return text[: max(ends, default=0)], text[max(ends, default=0) :]


def split_before_tokens(tokenizer: Any, text: str) -> tuple[str, str]:
    """Split text before the first name of an added token in it."""
    match = _added(tokenizer).search(text)
    start = match.start() if match else len(text)
    return text[:start], text[start:]


def _added(tokenizer: Any) -> re.Pattern[str]:
    names = sorted((token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or r"(?!)")
