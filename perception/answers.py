"""Read answers: option letters, digits and number words in a model's text.

Published sets are scored by letters and numbers, and models answer "(B)", "B.", "The answer is B", "three", "There are
3 cars". Where a text holds several letters or numbers, the one after the last "answer" counts, then an option that
opens the text, then the last one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS = "ABCDEFGH"
"""Letters of options"""
POINT_LETTERS = LETTERS[:5]
"""Letters of the points that a depth question may mark"""
_BELOW_20 = re.findall(
    r"\w+",
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_VALUES = {word: n for n, word in enumerate(_BELOW_20, start=1)} | {
    word: 10 * n for n, word in enumerate(_TENS, start=2)
}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 1_000_000}
_NONE = (
    r"\b(?:zero|none|nobody|no\s+one)\b|(?:\bnot|n't|\bwithout)\s+(?:any|a\s+single)\b|\bno\b(?=\s+(?!(?:more|fewer|less|"
    r"longer|doubt|idea|way|other|further|matter|there|it|they|i)\b)[a-z])"
)
"""Says 0: "no trucks", "none", "not a single one"; not "no, .." or "no more than" """
_DIGITS = r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?!\d|(?:st|nd|rd|th|d)\b)"
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_BELOW_20[:9])}))?|{'|'.join(_BELOW_20[::-1])})"
_BELOW_1000 = rf"(?:(?:(?:{_BELOW_100}|an?)\s+)?hundred(?:\s+(?:and\s+)?{_BELOW_100})?|{_BELOW_100})"
_SPELT = (
    rf"\b(?:half\s+a\s+dozen|(?:{_BELOW_100}|an?)\s+dozen|dozen|an?\s+couple|(?:(?:{_BELOW_1000}|an?)\s+)?(?:thousand|million)"
    rf"(?:,?\s+(?:and\s+)?{_BELOW_1000})?|{_BELOW_1000})\b"
)
_NUMBER = re.compile(rf"(?P<none>{_NONE})|(?:{_DIGITS})(?:\s+(?:{'|'.join(_SCALES)})\b)?|{_SPELT}", re.IGNORECASE)
_ARTICLE = re.compile(r"\ban?\b", re.IGNORECASE)
_COMMITTED = re.compile(r"\b(?:answer|option|choice)\b(?:\s+(?:is|would be|should be))?\s*[:=]?\s*", re.IGNORECASE)
_BRACKETED = r"[(\[]([{0}])[)\]]"
_BARE = r"(?<![\w'])([{0}])(?![\w'])"

_PLAIN = r"[-+]?\d+(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?"
MARKED = re.compile(r"\\boxed\{(?P<boxed>[^{}]*)\}|[Aa]nswer\s*(?:is|:|=)?")
"""Announces a final answer"""
_OPTION = re.compile(r"\(?([A-H])\)?\.?")
_TOLERANCE = 1e-4
"""Relative difference below which two numbers are the same answer"""


def read_count(text: str, question: str = "") -> int | None:
    """Return the count that a text states (see `read_number`); None where there is none, or no whole number from 0."""
    number = read_number(text, question)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def read_letter(text: str, question: str = "") -> str | None:
    """Return the letter of the point that a text names as the answer; None where there is none.

    In a sentence that compares it is the letter that the question asks for ("A is closer than B" is A where the closest
    is asked for), else the last lone capital letter.
    """
    letters = re.findall(rf"\b([{POINT_LETTERS}])\b", text)
    return _compared(text, POINT_LETTERS, question) or (letters[-1] if letters else None)


def read_answer(text: str, kind: str | None, question: str = "") -> int | str | None:
    """Return the final answer of a text: a number for kind "count", a letter for "depth", else the stripped text.

    None where there is none.
    """
    if kind == "count":
        return read_count(text, question)
    return read_letter(text, question) if kind == "depth" else text.strip() or None


# Tolerant of the wording, for published sets


def committed(text: str) -> str:
    """Return the text after the last "answer", "option" or "choice"; the whole text where there is none."""
    found = [match for match in _COMMITTED.finditer(text) if text[match.end() :].strip(" .:")]
    return text[found[-1].end() :] if found else text


def read_option(text: str, options: Sequence[str], question: str = "") -> str | None:
    """Return the letter of the option that a text chooses, by letter or by words; None where it chooses none.

    Args:
        options: the texts of A, B, ..; only their letters are read where two of them are equal.
        question: says which of several numbers or letters is the answer (see `read_number`, `read_letter`).
    """
    letters = LETTERS[: len(options)]
    said = committed(text)
    for part in (said, text):
        found: str | None = _by_letter(part, letters, question) or _by_words(part, options, question)
        if found is not None:
            return found
    return None


def _by_letter(text: str, letters: str, question: str) -> str | None:
    opening = re.match(rf"\s*[(\[]?([{letters}{letters.lower()}])(?:[)\].:,]|\s*$)", text)
    if opening:
        return opening[1].upper()
    if compared := _compared(text, letters, question):
        return compared
    bracketed = re.findall(_BRACKETED.format(letters), text)
    if bracketed:
        return str(bracketed[-1])
    bare = [found[1] for found in re.finditer(_BARE.format(letters), text) if not _is_article(text, found)]
    return str(bare[-1]) if bare else None


def _is_article(text: str, found: re.Match[str]) -> bool:
    """True if an A begins a noun phrase: "A red car is closest"."""
    behind = text[found.end(1) :]
    return (
        found[1] == "A"
        and re.match(r"\s+[a-z]", behind) is not None
        and not re.match(r"\s+(?:is|has|lies|appears|looks|seems|and|or|because|since|as)\b", behind)
    )


_NEAR, _FAR = r"closer|closest|nearer|nearest", r"farther|farthest|further|furthest"


def asks_for_farthest(question: str) -> bool:
    """True if a depth question asks for the farther or farthest, not for the nearer or nearest."""
    return re.search(rf"\b(?:{_FAR})\b", question, re.IGNORECASE) is not None


def asks_for_nearest(question: str) -> bool:
    """True if a depth question asks for the nearer or nearest, in these words."""
    return re.search(rf"\b(?:{_NEAR})\b", question, re.IGNORECASE) is not None


def _compared(text: str, letters: str, question: str) -> str | None:
    """The letter that the last comparison of depths makes the answer; None where none does."""
    letter = rf"[(\[]?\b([{letters}])\b"
    comparison = rf"{letter}(?P<words>(?:(?!{letter})[^.;!?\n])*?)\b(?:(?P<near>{_NEAR})|(?:{_FAR}))\b"
    than = rf"(?:(?!{letter})[^.;!?\n])*?\bthan\b(?:(?!{letter})[^.;!?\n])*?{letter}"
    asked_far, answer = asks_for_farthest(question), None
    for found in re.finditer(comparison, text):
        if _is_article(text, found) or re.search(r"\bnot\b|n't\b", found["words"]):
            continue
        if (found["near"] is None) == asked_far:
            answer = found[1]
        elif other := re.match(than, text[found.end() :]):
            answer = other.groups()[-1]
    return answer


def _by_words(text: str, options: Sequence[str], question: str) -> str | None:
    lowered = [option.strip().strip(".").lower() for option in options]
    if len(set(lowered)) < len(lowered):
        return None
    numbers = [read_number(option) if _NUMBER.fullmatch(option.strip().strip(".")) else None for option in options]
    if all(number is not None for number in numbers):
        value = read_number(text, question)
        return LETTERS[numbers.index(value)] if value in numbers else None
    places = {n: text.lower().rfind(option) for n, option in enumerate(lowered) if option and option in text.lower()}
    # "blue car" contains "car": the longer option is the one that was said.
    longest = [n for n in places if not any(lowered[n] in lowered[m] for m in places if m != n)]
    return LETTERS[max(longest, key=lambda n: places[n])] if longest else None


# Numbers


def read_number(text: str, question: str = "") -> float | None:
    """Return the number that a text states, in digits or words; None where there is none.

    Args:
        question: names what is counted. Of several numbers the one of that thing counts: "3 cars and no trucks" is 3
            where cars are asked for, and 0 where trucks are. Where the thing has no number of its own its parts are
            added: "two red cubes and a ball" are 3 objects. Without a question, or where the text does not name the
            thing, it is the last number.
    """
    thing = asked_thing(question)
    for part in (committed(text), text):
        stated = _stated_numbers(part)
        found = _number_of(stated, thing) if thing else None
        numbers = [number.value for number in stated if not number.is_article]
        if found is not None:
            return found
        if numbers:
            return numbers[-1]
    return None


_LINKS = frozenset(re.findall(r"\w+", "of the these those all visible different more total other"))
"""Words that may stand between a number and its thing without narrowing it"""
ENDS = frozenset(
    re.findall(
        r"\w+",
        "is are was were be do does did can could have has had in on at with that which who whose there but and or "
        "while from to by for under over behind near next inside outside if when you we i it they this so as than "
        "shown seen appear appears present depicted pictured standing sitting parked altogether",
    )
)
"""Words that end the name of a thing"""
_GENERIC = {"object", "thing", "item", "shape"}
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse", "feet": "foot"}
_IRREGULAR |= {
    "geese": "goose",
    "teeth": "tooth",
    "knives": "knife",
    "leaves": "leaf",
    "buses": "bus",
    "shelves": "shelf",
}


@dataclass(frozen=True)
class _Stated:
    """One number of a text."""

    value: float
    after: tuple[str, ...]
    """Singular words behind it that may name its thing: up to the next number, or a word that ends names"""
    before: tuple[str, ...]
    """Singular words in front of it, in its clause; its label where nothing is behind it: "cars: 3" """
    joined: bool
    """True if it goes on with the list that the number before it is in"""
    is_article: bool = False

    def narrows(self, thing: tuple[str, ...]) -> set[str] | None:
        """Words that narrow a thing down ("red" of cubes); None if the number is of another thing."""
        *kind, head = thing
        if self.after:
            if head not in self.after:
                return None
            words = set(self.after[: self.after.index(head)])
            if self.is_article and words & {"lot", "few", "number", "group", "of"}:
                return None
        elif head in self.before and not self.is_article:
            words = set(self.before)
            return set() if set(kind) <= words else None
        else:
            return None
        return words - set(kind) - _LINKS if set(kind) - _LINKS <= words | _LINKS else None


def _words(text: str) -> list[str]:
    return [_singular(word) for word in re.findall(r"[^\W\d_]+", text.lower())]


def _singular(word: str) -> str:
    if word in ENDS or word in _LINKS:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, one in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + one
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _name(words: Sequence[str]) -> tuple[str, ...]:
    """The words in front of the first one that ends names."""
    return tuple(words[: next((n for n, word in enumerate(words) if word in ENDS), len(words))])


COUNTED = re.compile(r"\b(?:how many|number of|count)\b([^.,;:?!()\n]*)", re.IGNORECASE)
"""A question after a number of things, and the words behind it, which begin with their name"""


def asked_thing(question: str) -> tuple[str, ...]:
    """Singular words that name what a question counts, the thing itself last: ("red", "cube"); empty if it does not."""
    asked = COUNTED.search(question)
    return tuple(word for word in _name(_words(asked[1])) if word not in _LINKS) if asked else ()


def _stated_numbers(text: str) -> list[_Stated]:
    found = [(match, False) for match in _NUMBER.finditer(text)]
    taken = [match.span() for match, _ in found]
    articles = [m for m in _ARTICLE.finditer(text) if not any(start <= m.start() < end for start, end in taken)]
    found = sorted([*found, *((match, True) for match in articles)], key=lambda pair: pair[0].start())
    stated: list[_Stated] = []
    for n, (match, is_article) in enumerate(found):
        behind = text[match.end() : found[n + 1][0].start() if n + 1 < len(found) else None]
        front = text[found[n - 1][0].end() if n else 0 : match.start()]
        sentence = re.split(r"[.!?](?=\s|$)|[\n;:()]", behind)[0]
        after = () if re.match(r"\s*[,)]", behind) else _name(_words(sentence))
        clause = re.split(r"[.!?](?=\s)|[\n;,]", re.sub(r"[\s:=(-]+$", "", front))[-1]
        is_pronoun = (
            match[0].lower() == "one"
            and not after
            and re.search(
                r"\b(?:the|this|that|each|every|another|any)\s+(?:\w+\s+)?$", text[: match.start()], re.IGNORECASE
            )
        )
        if not is_pronoun:
            joined = bool(stated) and re.search(r"(?:,|\b(?:and|plus|but)|&)\s*$", front) is not None
            value = 1.0 if is_article else _value(match)
            stated.append(_Stated(value, after, tuple(_words(clause)), joined, is_article))
    return stated


def _value(found: re.Match[str]) -> float:
    """The value of a match of `_NUMBER`."""
    if found["none"]:
        return 0.0
    said = re.sub(r"(?<=[a-z])-", " ", found[0].lower()).replace(",", "")
    total = current = 0.0
    for word in said.split():
        if word in ("thousand", "million"):
            total, current = total + max(current, 1.0) * _SCALES[word], 0.0
        elif word in _SCALES:
            current = (current or 1.0) * _SCALES[word]
        elif word in ("half", "couple"):
            current = {"half": 0.5, "couple": 2.0}[word]
        elif word in ("a", "an"):
            current = current or 1.0
        elif word != "and":
            current += _VALUES.get(word) or float(word)
    return total + current


def _number_of(stated: Sequence[_Stated], thing: tuple[str, ...]) -> float | None:
    """The number of a thing; None where none can be told from the last one."""
    if not stated:
        return None
    narrowed = {n: words for n, number in enumerate(stated) if (words := number.narrows(thing)) is not None}
    whole = [n for n, words in narrowed.items() if not words and not stated[n].is_article]
    if whole:
        return stated[whole[-1]].value
    if narrowed:
        return sum(stated[n].value for n in _last_list(stated, list(narrowed)))
    if stated[-1].after and thing[-1] in _GENERIC:
        return sum(stated[n].value for n in _last_list(stated, [n for n, one in enumerate(stated) if one.after]))
    others = [one.value for one in stated if not one.is_article and (one.value or not one.after)]
    return others[-1] if others else None


def _last_list(stated: Sequence[_Stated], places: Sequence[int]) -> list[int]:
    """The last of some places, and those before it that are in the same list."""
    first = places[-1]
    while stated[first].joined and first - 1 in places:
        first -= 1
    return [n for n in places if n >= first]


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
