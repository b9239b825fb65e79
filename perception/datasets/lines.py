"""Text files of data: UTF-8 with or without a byte order mark, as JSON or as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark. Raises ValueError naming a file that is missing or not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); save it again as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); give a file that exists") from None


def text_lines(text: str) -> list[str]:
    """The lines of a text, split at line feeds alone: JSON holds U+2028 and its like, at which `splitlines` splits.

    Use:
        >>> text_lines('{"a": "one\\u2028two"}\\n{"a": 3}\\n')
        ['{"a": "one\\u2028two"}', '{"a": 3}']
    """
    lines = text.split("\n")
    return lines[:-1] if not lines[-1] else lines


def json_lines(
    path: Path, remedy: str = "write one JSON value per line", skipped: list[str] | None = None
) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, value) for each line that is not blank.

    Args:
        skipped: gets a message for each line that is no JSON, and the others are read; None: such a line is an error.

    Raises:
        ValueError: naming the file and the line.
    """
    for number, line in enumerate(text_lines(read_text(path)), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            said = f"{path}, line {number} is not complete JSON ({error}); {remedy}"
            if skipped is None:
                raise ValueError(said) from None
            skipped.append(said)
            continue
        yield number, value


def json_rows(path: Path, remedy: str, skipped: list[str] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield ("line 3" or "entry 2", value) for a file of JSON lines, or for one with a JSON list.

    Lines are numbered from 1, entries of a list from 0.

    Args:
        skipped: as for `json_lines`. A list that is no JSON is an error in any case.

    Raises:
        ValueError: naming the file and the line.
    """
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from ((f"line {number}", value) for number, value in json_lines(path, remedy, skipped))
        return
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not complete JSON ({error}); {remedy}") from None
    yield from ((f"entry {number}", value) for number, value in enumerate(rows))


def json_objects(path: Path, skipped: list[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("a.jsonl, line 3" or "a.json, entry 2", object) for a file of JSON lines, or for one with a JSON list.

    Args:
        skipped: gets a message for each line or entry that is no object, and the others are read; None: it is an error.

    Raises:
        ValueError: naming the file and the line or entry.
    """
    remedy = "write one object per line"
    for place, value in json_rows(path, remedy, skipped):
        where = f"{path.name}, {place}"
        if isinstance(value, dict):
            yield where, value
            continue
        said = f"{where} must be a JSON object, got {type(value).__name__}; {remedy}"
        if skipped is None:
            raise ValueError(said)
        skipped.append(said)
