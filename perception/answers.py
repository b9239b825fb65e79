"""Read answers: option letters, digits and number words in a model's text.

Published sets are scored by letters and numbers, and models answer "(B)", "B.", "The answer is B", "three", "There are
3 cars". Where a text holds several letters or numbers, the one after the last "answer" counts, then an option that
opens the text, then the last one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

LETTERS = "ABCDEFGH"
"""Letters of options"""
POINT_LETTERS = LETTERS[:5]
"""Letters of the points that a depth question may mark"""
_WORDS = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_NUMBERS = (
    {"no": 0, "none": 0}
    | {word: n for n, word in enumerate(_WORDS)}
    | {word: 10 * n for n, word in enumerate(_TENS, start=2)}
    | {f"{tens}-{_WORDS[n]}": 10 * m + n for m, tens in enumerate(_TENS, start=2) for n in range(1, 10)}
)
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?|(?<![\w.])[-+]?\d+(?:\.\d+)?|\b(?:"
    + "|".join(sorted(_NUMBERS, key=len, reverse=True))
    + r")\b",
    re.IGNORECASE,
)
_COMMITTED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be))?\s*[:=]?\s*", re.IGNORECASE)
_BRACKETED = r"[(\[]([{0}])[)\]]"
_BARE = r"(?<![\w'])([{0}])(?![\w'])"

_PLAIN = r"[-+]?\d+(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?"
MARKED = re.compile(r"\\boxed\{(?P<boxed>[^{}]*)\}|[Aa]nswer\s*(?:is|:|=)?")
"""Announces a final answer"""
_OPTION = re.compile(r"\(?([A-H])\)?\.?")
_TOLERANCE = 1e-4
"""Relative difference below which two numbers are the same answer"""


def read_count(text: str) -> int | None:
    """Return the last whole number of a text; None where there is none."""
    numbers = re.findall(r"\d+", text)
    return int(numbers[-1]) if numbers else None


def read_letter(text: str) -> str | None:
    """Return the last lone capital letter of a point in a text; None where there is none."""
    letters = re.findall(rf"\b([{POINT_LETTERS}])\b", text)
    return letters[-1] if letters else None


def read_answer(text: str, kind: str | None) -> int | str | None:
    """Return the final answer of a text: a number for kind "count", a letter for "depth", else the stripped text."""
    if kind == "count":
        return read_count(text)
    return read_letter(text) if kind == "depth" else text.strip()


# Tolerant of the wording, for published sets


def committed(text: str) -> str:
    """Return the text after the last "answer", "option" or "choice"; the whole text where there is none."""
    found = [match for match in _COMMITTED.finditer(text) if text[match.end() :].strip(" .:")]
    return text[found[-1].end() :] if found else text


def read_option(text: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that a text chooses, by letter or by words; None where it chooses none.

    Args:
        options: the texts of A, B, ..; only their letters are read where two of them are equal.
    """
    letters = LETTERS[: len(options)]
    said = committed(text)
    for part in (said, text):
        found: str | None = _by_letter(part, letters) or _by_words(part, options)
        if found is not None:
            return found
    return None


def _by_letter(text: str, letters: str) -> str | None:
    opening = re.match(rf"\s*[(\[]?([{letters}{letters.lower()}])(?:[)\].:,]|\s*$)", text)
    if opening:
        return opening[1].upper()
    bracketed = re.findall(_BRACKETED.format(letters), text)
    if bracketed:
        return str(bracketed[-1])
    bare = [found[1] for found in re.finditer(_BARE.format(letters), text) if not _is_article(text, found)]
    return str(bare[-1]) if bare else None


def _is_article(text: str, found: re.Match[str]) -> bool:
    """True if an A begins a noun phrase: "A red car is closest"."""
    return (
        found[1] == "A"
        and re.match(r"\s+[a-z]", text[found.end() :]) is not None
        and not re.match(r"\s+(?:is|has|lies|appears|looks|seems|and|or|because|since|as)\b", text[found.end() :])
    )


def _by_words(text: str, options: Sequence[str]) -> str | None:
    lowered = [option.strip().strip(".").lower() for option in options]
    if len(set(lowered)) < len(lowered):
        return None
    numbers = [read_number(option) if _NUMBER.fullmatch(option.strip().strip(".")) else None for option in options]
    if all(number is not None for number in numbers):
        value = read_number(text)
        return LETTERS[numbers.index(value)] if value in numbers else None
    places = {n: text.lower().rfind(option) for n, option in enumerate(lowered) if option and option in text.lower()}
    # "blue car" contains "car": the longer option is the one that was said.
    longest = [n for n in places if not any(lowered[n] in lowered[m] for m in places if m != n)]
    return LETTERS[max(longest, key=lambda n: places[n])] if longest else None


def read_number(text: str) -> float | None:
    """Return the number that a text states, in digits or in words below a hundred; None where there is none."""
    for part in (committed(text), text):
        found = _NUMBER.findall(part)
        if found:
            last = found[-1].lower()
            return float(_NUMBERS[last]) if last in _NUMBERS else float(last.replace(",", ""))
    return None


# Final answers of solutions


def final_answer(completion: str) -> str:
    """Return the final answer of a solution: the text after the last "answer" or in the last \\boxed{}, else an option
    letter at the end ("so B."), else the last number; empty where there is none."""
    marked = list(MARKED.finditer(completion))
    if marked:
        boxed = marked[-1]["boxed"]
        said = completion[marked[-1].end() :].partition("\n")[0] if boxed is None else boxed
        return said.strip().rstrip(".").strip()
    if ending := re.search(r"(?<![\w'])([A-H])[)\].]*\s*$", completion):
        return ending[1]
    numbers = re.findall(_PLAIN, completion)
    return numbers[-1] if numbers else ""


def _as_number(text: str) -> float | None:
    """Return the number that a text begins with, as in "3/4" and "12 cm"; None where there is none."""
    found = re.match(rf"\$?\s*({_PLAIN})", text.strip())
    if found is None:
        return None
    above, _, below = found[1].partition("/")
    if below and float(below) == 0:
        return None
    return float(above) / (float(below) if below else 1.0)


def same_answer(said: str, answer: str) -> bool:
    """True if two answers are the same option letter, number, or, where math-verify is installed, expression."""
    said, answer = (re.sub(r"(?<=\d),(?=\d{3}\b)", "", text.strip()) for text in (said, str(answer)))
    if not said:
        return False
    if option := _OPTION.fullmatch(answer):
        given = re.match(r"\(?([A-H])\b", said)
        return given is not None and given[1] == option[1]
    one, other = _as_number(said), _as_number(answer)
    plain = re.fullmatch(rf"\$?\s*{_PLAIN}\s*[^\d\s+*^/\\-]*\s*\$?", said) is not None
    if one is not None and other is not None and plain:
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=1e-9)
    return said.lower() == answer.lower() or _verified(said, answer)


def _verified(said: str, answer: str) -> bool:
    try:
        from math_verify import parse, verify
    except ImportError:
        return False
    return bool(verify(parse(f"${answer}$"), parse(f"${said}$")))
