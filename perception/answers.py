"""Read answers: option letters, digits and number words in a model's text.

Published sets are scored by letters and numbers, and models answer "(B)", "B.", "The answer is B", "three", "There are
3 cats: 2 on the left and 1 on the right". All readers first read what a text announces as its answer
(`announcements`), the last one first, then the whole text. Of several options they take the one that opens the text,
then the one that is called right, then the one that a comparison of depths makes the answer, then the last one that is
not ruled out; none where that is a mere list ("A or B"), a doubt or a tie. Of several numbers they take the one of the
thing that the question counts (`read_number`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import ge, gt, le, lt

LETTERS = "ABCDEFGH"
"""Letters of options"""
POINT_LETTERS = LETTERS[:5]
"""Letters of the points that a depth question may mark"""
_SMALL = rf"\(?\b[{POINT_LETTERS.lower()}]\b\)?"
_SMALL_LETTERS = re.compile(rf"{_SMALL}(?:(?:\s*,(?:\s*(?:or|and)\b)?|\s+(?:or|and)\b)\s*{_SMALL}(?![.']\w))+")
"""A list of small letters, such as "a or b" or "(a), (b) and (c)" with its brackets"""
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
_NOT_ANY = (
    r"(?:\bnot|(?<!ca)n['\u2019]t|\bwithout)\s+(?:(?:see|find|spot|detect|notice|have|contain|show|depict|include|"
    r"(?:appear|seem)\s+to\s+(?:be|have|contain|show))\s+)?(?:any(?!\s+(?:more|other|further)\b)|a\s+single)\b"
)
_NONE = (
    rf"\b(?:zero|none|nobody|no\s+one)\b|{_NOT_ANY}|\bno\b(?=\s+(?!(?:more|fewer|less|"
    r"longer|doubt|idea|way|other|further|matter|there|it|they|i)\b)[a-z])"
)
"""Says 0: "no trucks", "none", "not a single one", "I don't see any"; not "no, .." or "no more than" """
_DIGITS = (
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:(?:,\d{3})+|(?:[ \u00a0\u202f]\d{3})+)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?!\d|(?:st|nd|rd|th|d)\b)"
)
_BELOW_100 = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:{'|'.join(_BELOW_20[:9])}))?|{'|'.join(_BELOW_20[::-1])})"
_BELOW_1000 = rf"(?:(?:(?:{_BELOW_100}|an?)\s+)?hundred(?:\s+(?:and\s+)?{_BELOW_100})?|{_BELOW_100})"
_SPELT = (
    rf"\b(?:half\s+a\s+dozen|(?:{_BELOW_100}|an?)\s+dozen|dozen|an?\s+couple|(?:(?:{_BELOW_1000}|an?)\s+)?(?:thousand|million)"
    rf"(?:,?\s+(?:and\s+)?{_BELOW_1000})?|{_BELOW_1000})\b"
)
_NUMBER = re.compile(rf"(?P<none>{_NONE})|(?:{_DIGITS})(?:\s+(?:{'|'.join(_SCALES)})\b)?|{_SPELT}", re.IGNORECASE)
_ARTICLE = re.compile(r"\ban?\b", re.IGNORECASE)

_PLAIN = r"[-+]?\d+(?:\.\d+)?(?:\s*/\s*\d+(?:\.\d+)?)?"
_OPTION = re.compile(r"\(?([A-H])\)?\.?")
_LETTER_OF_OPTION = re.compile(r"(?:(?i:the\s+)?(?i:option|choice|letter|point)\s+)?[(\[]?([A-Ha-h])[)\]]?")
_GROUPING = re.compile(r"(?<=\d)(?:,|\\,|\{,\}|[ \u00a0\u202f])(?=\d{3}(?!\d))")
"""What groups the digits of a number by thousands"""
_FRACTION = re.compile(r"^\$?([-+]?)\\[dt]?frac\{(\d+)\}\{(\d+)\}\$?$")
_TOLERANCE = 1e-4
"""Relative difference below which two numbers are the same answer"""


def read_count(text: str, question: str = "") -> int | None:
    """Return the count that a text states (see `read_number`); None where there is none, or no whole number from 0."""
    number = read_number(text, question)
    return int(number) if number is not None and number >= 0 and number == int(number) else None


def read_letter(text: str, question: str = "") -> str | None:
    """Return the letter of the point that a text names as the answer; None where there is none.

    In a sentence that compares it is the letter that the question asks for ("A is closer than B" is A where the closest
    is asked for).
    """
    for part in (*_announced(text), text):
        chosen = _choose(_mark_letters(part, POINT_LETTERS), question, len(letters_in(question)))
        if chosen is not None:
            return LETTERS[chosen]
    return None


def read_answer(text: str, kind: str | None, question: str = "", lettered: bool = False) -> int | str | None:
    """Return the final answer of a text: a number for kind "count", a letter for "depth", else the stripped text.

    A depth question after things, not after lettered points ("Which is closer, the cup or the spoon?"), is answered by
    their names: the value is the text, unless that is a letter alone. None where there is no answer.

    Args:
        lettered: True if the answer is known to be about lettered points, whatever the question says.
    """
    if kind == "count":
        return read_count(text, question)
    if kind == "depth" and (lettered or not question or names_points(question) or _LETTER_ALONE.fullmatch(text)):
        return read_letter(text, question)
    return text.strip() or None


_LETTER_ALONE = re.compile(rf"\s*(?:so\s+)?[(\[]?[{POINT_LETTERS}][)\]]?[.!]?\s*")


# Questions of depth

_NEAR, _FAR = r"closer|closest|nearer|nearest", r"farther|farthest|further|furthest"


def letters_in(question: str) -> set[str]:
    """Letters of points that a question names; small ones count in a list alone ("a or b"), as "a" is an article."""
    small = " ".join(found[0] for found in _SMALL_LETTERS.finditer(question))
    return set(re.findall(rf"\b([{POINT_LETTERS}])\b", question + " " + re.sub(r"\b(and|or)\b", " ", small).upper()))


def names_points(question: str) -> bool:
    """True for a question about points of the image: "Which marker is closest?", "Which is nearer, A or B?"."""
    return re.search(r"\b(points?|markers?)\b", question, re.IGNORECASE) is not None or len(letters_in(question)) > 1


def asks_for_farthest(question: str) -> bool:
    """True if a depth question asks for the farther or farthest, not for the nearer or nearest."""
    return re.search(rf"\b(?:{_FAR})\b", question, re.IGNORECASE) is not None


def asks_for_nearest(question: str) -> bool:
    """True if a depth question asks for the nearer or nearest, in these words."""
    return re.search(rf"\b(?:{_NEAR})\b", question, re.IGNORECASE) is not None


# Announcements


@dataclass(frozen=True)
class Announcement:
    """An answer that a text announces: <answer>12</answer>, \\boxed{12}, "Answer: 12", "The answer is 12."."""

    start: int
    """Place in the text where the announcement begins"""
    said: str
    """The answer, to the end of its sentence, box or tag"""
    mark: str
    """"tag", "box" or "words" """


_ANNOUNCING = re.compile(
    r"(?P<tag><answer>)|(?P<box>\\boxed\s*\{)|"
    r"(?P<words>\b(?:answer|(?:correct|right|best|final|chosen|my)\s+(?:option|choice)|(?:option|choice)(?=\s*[:=]))\b"
    r"(?:\s+(?:to|for)\b[^.:=\n]*?)?[*\s]*(?:\b(?:is|was|(?:would|should|must|will)\s+be)\b|[:=])[*\s:=]*)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\d!)(?=\s)|\n")
_TEXT_IN_MATHS = re.compile(r"\\(?:text|mathrm|mathbf)(?:bf|rm|it)?\s*\{([^{}]*)\}")
_SAYS = re.compile(r"[\d\\=^]|(?<![\w'])(?:A|[B-Zb-z])(?![\w'])")
"""Holds a number, a letter or maths, as final answers do: not "The answer is found." """


def announcements(text: str) -> list[Announcement]:
    """Return the answers that a text announces, in order. One inside another is what the outer one announces."""
    found, end = list[Announcement](), 0
    for match in _ANNOUNCING.finditer(text):
        inner = match.start() < end
        close = _end_of(str(match.lastgroup), text, match.end())
        said = _TEXT_IN_MATHS.sub(r"\1", text[match.end() : min(close, end) if inner else close]).strip().strip("*")
        if inner:
            found[-1] = replace(found[-1], said=said)
        else:
            found.append(Announcement(match.start(), said, str(match.lastgroup)))
            end = close
    return found


def _end_of(mark: str, text: str, start: int) -> int:
    """Where the answer ends that is announced by a mark up to `start`; the end of its line for a box left open."""
    if mark == "tag":
        close = text.find("</answer>", start)
        return close if close >= 0 else len(text)
    depth = 1
    for brace in re.finditer(r"[{}]", text[start:]) if mark == "box" else ():
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return start + brace.start()
    close_of_sentence = _SENTENCE_END.search(text, start)
    return close_of_sentence.start() if close_of_sentence else len(text)


def _by_trust(text: str) -> list[Announcement]:
    """Announcements, the most trusted first: <answer> before others, later before earlier ones."""
    return sorted(reversed(announcements(text)), key=lambda one: one.mark != "tag")


def _announced(text: str) -> list[str]:
    """What a text announces, the most trusted first."""
    return [one.said for one in _by_trust(text)]


def final_announcement(text: str) -> Announcement | None:
    """Return the announcement of a text's final answer: the most trusted one that says something; None without any."""
    found = _by_trust(text)
    said = (one for one in found if one.mark != "words" or _SAYS.search(one.said))
    return next(said, found[0] if found else None)


# Options that a question lists

_OPTIONS_HEADING = re.compile(r"\b(?:options|choices)\s*:", re.IGNORECASE)
_LISTED = [
    re.compile(rf"\(?(?<![\w.])({x})[).:]\s*(.*?)(?=\s*,?\s*\(?(?<![\w.]){x}[).:]\s|\s\(?{x}\)|\s*$)", re.DOTALL)
    for x in ("[A-H]", "[a-h]")
]
_HOW_TO_ANSWER = re.compile(r"\s+(?=(?:Please|Answer|Select|Choose|Pick|Give|Respond|Reply|Return|Output)\b)|\s*\n")
"""Ends the last option: a new line, or a sentence that says how to answer"""


def options_in(question: str) -> tuple[str, ...]:
    """Texts of the options that a question lists, as in "Options: A: 3, B: 4"; empty where it lists none."""
    return split_options(question)[1]


def split_options(question: str) -> tuple[str, tuple[str, ...]]:
    """Return a question without the options that it lists, and their texts; the question itself where it lists none."""
    begin = max((heading.end() for heading in _OPTIONS_HEADING.finditer(question)), default=0)
    for listed in _LISTED:
        found = list(listed.finditer(question, begin))
        if len(found) < 2 or "".join(each[1] for each in found).upper() != LETTERS[: len(found)]:
            continue
        *texts, last = (each[2] for each in found)
        if not any("\n" in text for text in texts):
            last = _HOW_TO_ANSWER.split(last, maxsplit=1)[0]
        options = tuple(re.sub(r"[\s,]+(?:or|and)\s*$|[\s,]+$", "", text) for text in (*texts, last))
        if begin or not {*options} & {"", "or", "and"}:  # "(A), (B) and (C)" are points
            return f"{question[: found[0].start()]}\n{question[found[-1].start(2) + len(last) :]}", options
    return question, ()


# Choices. An option that a text names, by letter or by words, is replaced by a mark, so that the same rules read both.

_OPTION_MARKS = "".join(chr(0xE000 + n) for n in range(len(LETTERS)))
"""One private character per option"""
_SEVERAL = chr(0xE000 + len(LETTERS))
"""Stands for a list of options, of which none is chosen: "A, B or C" """
_MARKS = _OPTION_MARKS + _SEVERAL
_MARK, _OPTION_MARK = f"[{_MARKS}]", f"[{_OPTION_MARKS}]"
_VERB_OF_ONE = r"(?:(?:is|was|has|does|lies|sits|stands|appears|looks|seems)\b|isn't|wasn't)"
_VERB = (
    rf"(?:{_VERB_OF_ONE}|(?:are|were|have|do|lie|sit|stand|appear|look|seem|can|could|would|should|must|may|might)\b|"
    "aren't)"
)
_AFTER_LETTER = rf"(?:{_VERB}|(?:and|or|nor|vs|versus|followed|but|because|since|as|then|than|not|at|in|on|with|to)\b)"
"""What may follow the letter A, and follows no article"""
_OPENING = re.compile(
    rf"[\s*$\"']*(?P<mark>{_OPTION_MARK})[*$\"']*(?!:?\s*{_VERB}|:?\s*,\s*{_MARK})"
    r"(?=\s*$|\s*[\n.,:;)\]\u2013\u2014]|\s+(?:-|(?:because|since|as|for|then)\b))",
    re.IGNORECASE,
)
"""An option that opens a text and is not the subject of a sentence"""
_LABEL = re.compile(rf"(?:({_MARK})[:)]|(?:^|[\n,;])\s*({_MARK})\.)\s*(?!{_VERB})\w", re.IGNORECASE)
_CALLED_RIGHT = re.compile(
    rf"({_OPTION_MARK}):?\s+(?:is|was|seems|(?:would|must|should)\s+be)\s+(?:(?!not\b)\w+\s+){{0,2}}?"
    r"(?:correct\b|answer\b|(?:right|best)(?=\s*(?:$|[.,;!]|answer|option|choice|one\b)))",
    re.IGNORECASE,
)
_RULED_OUT = re.compile(
    r"(?:\b(?:not|nor|neither|without|unlike|rather\s+than|other\s+than|instead\s+of)|n't)\s+"
    rf"(?:(?:in|on|at|to|be|the|an?)\s+)*{_MARK}|"
    rf"{_MARK}:?\s+(?:is|are|was|were|does|do|can|could|would)\s*(?:n't\b|not\b|(?:\w+\s+)?(?:wrong|incorrect|false)\b)",
    re.IGNORECASE,
)
_NEARER, _FARTHER = rf"{_NEAR}|in\s+front\s+of", rf"{_FAR}|behind"
_COMPARISON = re.compile(rf"(?<!second[ -])(?<!third[ -])(?<!next[ -])\b(?:{_NEARER}|{_FARTHER})\b", re.IGNORECASE)
_NAMED_BEHIND = re.compile(
    rf"(?P<words>(?:(?!{_COMPARISON.pattern})[^,{_MARKS}])*?(?:\b(?:is|are|was|be)\b|[:=])\s*(?:\w+\s+){{0,3}}?)"
    rf"(?P<mark>{_MARK})",
    re.IGNORECASE,
)
"""Follows a comparison whose subject comes last: "The closest point is B" """
_NAMED_IN_FRONT = re.compile(rf"(?P<mark>{_MARK})(?P<words>[^{_MARKS}]*)$")
_COMPARED_WITH = re.compile(
    rf"(?:[^{_MARKS}]*?\bthan\b|(?<=in front of)|(?<=behind))[^{_MARKS}]*?({_MARK})", re.IGNORECASE
)
_RANKING = re.compile(
    rf"(?P<front>(?<![^.!?;\n])[^.!?;\n]*)\b(?:(?P<near>{_NEAR})|{_FAR})(?:\s+\w+)?\s+"
    rf"(?:to\s+(?:the\s+)?(?:{_NEAR}|{_FAR})|first)\b"
    r"(?P<behind>(?:(?!(?<!\d)[.!?](?:\s|$)|;|\n\s*\n)[\s\S])*)",
    re.IGNORECASE,
)
"""A sentence that orders options: "From nearest to farthest: B, A, C." """
_LISTED_BEFORE = rf"{_MARK}:?(?:\s*,\s*{_MARK}:?)*"
_LIST = re.compile(
    rf"(?P<neither>\bneither\s+)?(?:{_LISTED_BEFORE}\s*,?\s*(?:or|nor|/|vs\.?|versus)\s*{_MARK}:?|"
    rf"{_LISTED_BEFORE}\s*(?:,|,?\s*(?:and|&))\s*{_MARK}:?(?!\s*{_VERB_OF_ONE}))",
    re.IGNORECASE,
)
"""Several options in a row; in "than B, and C is closest" C is the subject of a sentence"""
_TO_END_OF_CLAUSE = r"(?:(?!\b(?:but|so|however)\b)[^.,;:!?\n])*"
_REASON = re.compile(rf"({_OPTION_MARK}[^.!?;\n]*?)\b(?:because|since)\b[^.!?;\n]*", re.IGNORECASE)
"""An option, and the reason for it in the same sentence"""
_UNDECIDED = re.compile(
    r"(?:(?:\b(?:(?:can)?not|unable\s+to|impossible\s+to|hard\s+to|difficult\s+to|no\s+way\s+to)|n['\u2019]t)\s+"
    r"(?:\w+\s+){0,3}?(?:determined?|tell|say|decided?|choose|know|judged?|sure|certain|clear)|"
    r"\b(?:unclear|unsure|uncertain))\b" + _TO_END_OF_CLAUSE,
    re.IGNORECASE,
)
"""Says that nothing is chosen: "I can't tell whether A is closer" """
_TIED = re.compile(
    r"(?:^|[.,;:!?\n])(?:(?!\bothers?\b)[^.,;:!?\n])*\b(?:equally\s+(?:close|near|far|distant)|equidistant|"
    r"same\s+(?:distance|depth)|(?<!not\s)(?<!n't\s)as\s+(?:close|near|far))\b" + _TO_END_OF_CLAUSE,
    re.IGNORECASE,
)
"""Says that options are equally far: "A is as close as B"; not "the others are equally far" """


def read_option(text: str, options: Sequence[str], question: str = "") -> str | None:
    """Return the letter of the option that a text chooses, by letter or by words; None where it chooses none.

    Args:
        options: the texts of A, B, ..; only their letters are read where two of them are equal.
        question: says which of several numbers or letters is the answer (see `read_number`, `read_letter`).
    """
    options = options[: len(LETTERS)]
    for part in (*_announced(text), text):
        chosen = _choose(_mark_letters(part, LETTERS[: len(options)]), question, len(options))
        chosen = _by_words(part, options, question) if chosen is None else chosen
        if chosen is not None:
            return LETTERS[chosen]
    return None


def _by_words(text: str, options: Sequence[str], question: str) -> int | None:
    names = [option.strip().strip(".?") for option in options]
    if len({name.lower() for name in names}) < len(names):
        return None
    numbers = [number_alone(name) for name in names]
    alone = all(_NUMBER.fullmatch(name) for name in names)
    chosen = None if alone else _choose(_mark_words(text, names), question, len(options))
    value = read_number(text, question) if None not in numbers else number_alone(text)
    if chosen is None and value is not None and (alone or numbers.count(value) == 1):
        return numbers.index(value) if value in numbers else None
    if chosen is None and value is not None:
        fitting = [n for n, name in enumerate(names) if value == numbers[n] or _bounds(name, value)]
        return fitting[0] if len(fitting) == 1 else None
    return chosen


_BOUNDS = {
    r"(?:more\s+than|over|above)\s+#": gt,
    r"at\s+least\s+#|#\s*\+|#\s+or\s+more": ge,
    r"(?:less\s+than|fewer\s+than|under|below)\s+#": lt,
    r"at\s+most\s+#|up\s+to\s+#|#\s+or\s+(?:less|fewer)": le,
}
"""Options that are no number and bound one, which # stands for"""


def _bounds(option: str, value: float) -> bool:
    """True for an option such as "more than five" that a number is among."""
    bound = _NUMBER.search(option)
    said = _NUMBER.sub("#", option)
    return bound is not None and any(
        re.fullmatch(form, said, re.IGNORECASE) and holds(value, _value(bound)) for form, holds in _BOUNDS.items()
    )


def _mark_letters(text: str, letters: str) -> str:
    """The text with marks for option letters: "(B)", "option b", "B", and a small letter that opens it; not articles.

    A letter in brackets is a label, and its mark gets a colon.
    """
    small = letters.lower()

    def mark(found: re.Match[str]) -> str:
        letter = found["bracketed"] or found["bare"] or found["small"] or found["opening"]
        if found["bare"] and _is_article(text, found):
            return found[0]
        return _MARKS[letters.index(letter.upper())] + (":" if found["bracketed"] else "")

    named = (
        r"(?i:\b(?P<of>option|choice|point|letter|marker)\s+)?(?:(?<!\w)[(\[](?P<bracketed>[{0}{1}])[)\]]|"
        r"(?P<bare>(?<![\w'-])[{0}](?!\w|['-]\w))|(?(of)(?P<small>[{1}])(?=\s*$|[).,:;]|\s+is\b)|(?!)))|"
        r"^\s*(?P<opening>[{1}])(?=[).:,]|\s*$)"
    )
    return _settled(re.sub(named.replace("{0}", letters).replace("{1}", small), mark, text))


def _is_article(text: str, found: re.Match[str]) -> bool:
    """True if an A begins a noun phrase: "A red car is closest"."""
    behind = text[found.end() :]
    return (
        found[0] == "A"
        and re.match(r"\s+[a-z]", behind) is not None
        and re.match(rf"\s+{_AFTER_LETTER}", behind) is None
    )


def _mark_words(text: str, names: Sequence[str]) -> str:
    """The text with marks for the names of options, as whole words; "blue car" is not the option "car"."""
    places = {re.sub(r"^(?:the|an?)\s+", "", name.lower()): n for n, name in enumerate(names) if name}
    longest_first = sorted(places, key=len, reverse=True)
    either = "|".join((r"(?<![.,-])" if name[0].isdigit() else "") + re.escape(name) for name in longest_first)
    named = re.compile(rf"(?<!\w)(?:(?:the|an?)\s+)?({either})(?:e?s)?(?!\w|[.,]\d)", re.IGNORECASE)
    return _settled(named.sub(lambda found: _MARKS[places[found[1].lower()]], text)) if places else text


def _settled(text: str) -> str:
    """The text with marks in plain terms: orders say which option is nearest, lists are one mark, doubts are left out.

    "From nearest to farthest: B, A, C." becomes "the nearest is B; the farthest is C", and "A or B" `_SEVERAL`.
    """

    def ends(found: re.Match[str]) -> str:
        front, behind = (list(dict.fromkeys(re.findall(_MARK, found[side]))) for side in ("front", "behind"))
        order = behind or front
        if len(order) < 2:
            return found[0]
        nearest, farthest = (order[0], order[-1]) if found["near"] else (order[-1], order[0])
        return f"{found['front'] if behind else ''} the nearest is {nearest}; the farthest is {farthest}"

    listed = _LIST.sub(lambda found: "" if found["neither"] else _SEVERAL, _RANKING.sub(ends, text))
    return _UNDECIDED.sub("", listed)


def _choose(text: str, question: str, count: int) -> int | None:
    """The option that a text with marks chooses: see `_chosen`, else the last one that is not ruled out, those in
    reasons for another one ("It is B, because A is far away") last of all."""
    chosen, rest = _chosen(text, question, count), _TIED.split(text)[-1]
    for part in (_REASON.sub(r"\1", rest), rest):
        if chosen is None and (named := re.findall(_MARK, _RULED_OUT.sub("", part))):
            chosen = named[-1]
    return None if chosen is None or chosen == _SEVERAL else _MARKS.index(chosen)


def _chosen(text: str, question: str = "", count: int = 0) -> str | None:
    """The mark that a text opens with, calls right, or makes the answer by a comparison of depths.

    Args:
        count: number of options; 0 if unknown.
    """
    opening = _OPENING.match(text)
    if opening and len({one or other for one, other in _LABEL.findall(text)}) < 2:
        return opening["mark"]
    if called := _CALLED_RIGHT.findall(text):
        return str(called[-1])
    return _compared(text, question, count)


def _compared(text: str, question: str, count: int) -> str | None:
    """The mark that comparisons of depths make the answer: the last one by "closest", else the last by "closer"; one
    option before several."""
    asked_far = asks_for_farthest(question) or (not asks_for_nearest(question) and "behind" in question.lower())
    answers: dict[tuple[bool, bool], str] = {}
    for sentence in re.split(r"[.!?](?=\s|$)|[;\n]", text):
        for found in _COMPARISON.finditer(sentence):
            front = re.sub(rf"\bthan\b[^{_MARKS}]*{_MARK}", "", sentence[: found.start()])  # compared with, not subject
            subject = _NAMED_BEHIND.match(sentence, found.end()) or _NAMED_IN_FRONT.search(front)
            if subject is None:
                continue
            is_far = re.fullmatch(_FARTHER, found[0], re.IGNORECASE) is not None
            denied = re.search(r"\b(?:can)?not\b|n't\b", subject["words"]) is not None
            other = _COMPARED_WITH.match(sentence, found.end())
            if (is_far == asked_far) != denied:
                answer = subject["mark"]
            elif other:
                answer = other[1]
            elif count == 2 and subject["mark"] in _MARKS[:2]:
                answer = _MARKS[1 - _MARKS.index(subject["mark"])]
            else:
                continue
            answers[answer != _SEVERAL, found[0].lower().endswith("est")] = answer
    return answers[max(answers)] if answers else None


# Numbers


def read_number(text: str, question: str = "") -> float | None:
    """Return the number that a text states, in digits or words; None where there is none.

    Args:
        question: names what is counted. Of several numbers the one of that thing counts: "3 cars and no trucks" is 3
            where cars are asked for, and 0 where trucks are; "2 of the 5 cars are red" is 2 where red cars are asked
            for, and 5 where cars are. Where the thing has no number of its own its parts are added: "two red cubes and
            a ball" are 3 objects, "2 cats on the left and 3 cats on the right" are 5 cats. Without a question, or where
            the text does not name the thing, it is the last number. Denied numbers ("not 3") do not count; nor do those
            of places, times and ranges ("in lane 2", "10:10", "aged 20 to 30") where there is another number.
    """
    thing, details = asked_thing(question), _asked_details(question)
    for part in (*_announced(text), text):
        stated = _stated_numbers(part)
        found = _number_of(stated, thing, details) if thing else None
        numbers = [number.value for number in stated if not number.is_article]
        if found is not None:
            return found
        if numbers:
            return numbers[-1]
    return None


def number_alone(text: str) -> float | None:
    """Return the number of a text that is a number, alone or with a name ("3", "two", "2 cats"); None for any other
    text ("2 or 3", "more than 2", "2 on the left")."""
    number = _NUMBER.match(text.strip())
    behind = re.fullmatch(r"((?:\s+[^\W\d_]+){0,3})\s*\.?", text.strip()[number.end() :]) if number else None
    if number is None or behind is None or {*behind[1].lower().split()} & (ENDS | _LINKS | _NO_NAMES):
        return None
    return _value(number)


_LINKS = frozenset(re.findall(r"\w+", "of the these those all visible different more total other"))
"""Words that may stand between a number and its thing without narrowing it"""
ENDS = frozenset(
    re.findall(
        r"\w+",
        "is are was were be do does did can could has have had in on at with that which who whose there but and or "
        "while from to by for under over behind near next inside outside if when you we i it they this so as than "
        "shown seen appear appears present depicted pictured standing sitting parked altogether",
    )
)
"""Words that end the name of a thing"""
_NO_NAMES = frozenset(("less", "fewer", "plus"))
"""Words behind a number that make it another one: "5 or more", "5 plus" """
_VERBS = frozenset(re.findall(r"\w+", "is are was were do does did can could has have had"))
_PLACING = frozenset(re.findall(r"\w+", "in on at with from to by for under over behind near next inside outside"))
_SOMEWHERE = "somewhere"
"""Stands for the place that a last word such as "behind" or "in" leaves open: "2 people behind" """
_GENERAL = (_LINKS | _VERBS | ENDS - {"standing", "sitting", "parked"}) - _PLACING | frozenset(
    re.findall(
        r"\w+",
        "a an see here overall just only exactly about number count image picture photo photograph scene view frame",
    )
)
"""Words that say nothing of the things that a number counts"""
_BREAKS = frozenset((",", "and", "or", "but", "while", "so"))
"""What ends the words that say where things are, or what they do"""
_POOL = frozenset(("of", "out", "the", "these", "those", "all"))
"""Words between two numbers of which the first counts some of the things that the second counts: "2 of the 5 cars" """
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
_ONE_FORM = frozenset(("broccoli", "deer", "fish", "sheep"))
"""Names that are their own plural"""


@dataclass(frozen=True)
class _Stated:
    """One number of a text."""

    value: float
    behind: tuple[str, ...]
    """Singular words and commas behind it: up to the next number, or the end of its sentence"""
    label: tuple[str, ...]
    """Singular words of a label in front of it: "cars: 3", "the number of cars is 3"; not "cars in lane 2". Where no
    number has a name behind it, also "cars 3, trucks 0" """
    sentence: int
    """Number of its sentence"""
    is_article: bool = False
    is_share: bool = False
    """True if it counts some of the things that another number counts: "2 of them" """

    @property
    def name(self) -> tuple[str, ...]:
        """Words behind it that may name its thing: up to one that ends names"""
        return _name(tuple(word for word in self.behind if word != ","))

    @property
    def is_total(self) -> bool:
        """True if it is called the total, of no thing in particular: "Total: 5", "The total is 5" """
        return "total" in self.label and not {*self.label} - _GENERAL - {"in"} and not self.name

    def described(self, thing: tuple[str, ...]) -> frozenset[str] | None:
        """Words that narrow a thing down ("red", "on left" of cubes); None if the number is of another thing."""
        *kind, head = thing
        if head in self.name:
            place = self.behind.index(head)
            words, rest = self.behind[:place], self.behind[place + 1 :]
            if self.is_article and {*words} & {"lot", "few", "number", "group", "of"}:
                return None
        elif head in self.label and not self.name and not self.is_article:
            words, rest = self.label, self.behind
        else:
            return None
        found = frozenset((*words, *_said(rest))) - {head}
        return found - {*kind} if {*kind} - _LINKS <= found else None

    def says_of(self, thing: tuple[str, ...]) -> bool:
        """True if its sentence says something of the things ("2 cats are asleep") instead of stating their number."""
        place = self.behind.index(thing[-1]) + 1 if thing[-1] in self.name else 0
        return place < len(self.behind) and self.behind[place] in _VERBS


def _words(text: str) -> list[str]:
    """Singular words of a text, and its commas."""
    return [_singular(word) for word in re.findall(r"[^\W\d_]+|,", text.lower())]


def _singular(word: str) -> str:
    if word in ENDS or word in _LINKS:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, one in (("ies", "y"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(ending) and len(word) > len(ending) + 1:
            return word[: -len(ending)] + one
    return word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def plural_of(name: str) -> str:
    """The plural of a name that `asked_thing` reads as that name again: "wine glass" -> "wine glasses".

    For the names of COCO's kinds it is that of `perception.datasets.plurals`, which needs inflect.
    """
    before, last = name[: name.rfind(" ") + 1], name[name.rfind(" ") + 1 :]
    irregular = {one: many for many, one in _IRREGULAR.items()}
    if last in irregular:
        return before + irregular[last]
    if last in _ONE_FORM or (last.endswith("s") and not last.endswith(("ss", "us"))):
        return name  # sheep, scissors
    if last.endswith(("ss", "x", "ch", "sh", "us")):
        return f"{name}es"
    return f"{name[:-1]}ies" if re.search(r"[^aeiou]y$", last) else f"{name}s"


def _name(words: Sequence[str]) -> tuple[str, ...]:
    """The words in front of the first one that ends names."""
    return tuple(words[: next((n for n, word in enumerate(words) if word in ENDS), len(words))])


def _said(words: Sequence[str]) -> list[str]:
    """The words that say where things are, or what they do; with `_SOMEWHERE` where the last one leaves that open."""
    end = next((n for n, word in enumerate(words) if word in _BREAKS), len(words))
    said = [word for word in words[:end] if word not in ("it", "them")]
    return [*said, _SOMEWHERE] if said and said[-1] in _PLACING else said


COUNTED = re.compile(
    r"\b(?:how\s+many|number\s+of|count(?![^.,;:?!()\n]*\b(?:how\s+many|number\s+of)\b))\b([^.,;:?!()\n]*)",
    re.IGNORECASE,
)
"""A question after a number of things, and the words behind it, which begin with their name"""


def asked_thing(question: str) -> tuple[str, ...]:
    """Singular words that name what a question counts, the thing itself last: ("red", "cube"); empty if it does not."""
    asked = COUNTED.search(question)
    return tuple(word for word in _name(_words(asked[1])) if word not in _LINKS) if asked else ()


def _asked_details(question: str) -> frozenset[str]:
    """Words that say more of the counted things behind their name: "on left" in "How many cars are on the left?"."""
    asked = COUNTED.search(question)
    words = _words(asked[1]) if asked else []
    details = frozenset(words[len(_name(words)) :]) - _GENERAL
    return details if details - _PLACING else frozenset()


_LABELLING = re.compile(
    r"(?:[:=(|]|\s[-\u2013\u2014]|\b(?:number|count|total|amount)\b.*\b(?:is|are|was|were|equals))\s*$", re.IGNORECASE
)
"""Ends a label in front of a number: "cars: 3", "the number of cars is 3" """
_NOT = re.compile(r"(?:\bnot|n['\u2019]t|\brather\s+than|\binstead\s+of)\s+$", re.IGNORECASE)
"""Text in front of a number that says that the number is another one"""
_PLACE = re.compile(rf"\b(?:{'|'.join(sorted(_PLACING))})\s+([a-z]+)\s+(?:number\s+)?$", re.IGNORECASE)
"""Text in front of a number that says which place is meant: "in lane 2" """
_FOLLOWS_ON = re.compile(
    r"(?:^|[.,;:!?(\n]|&|\b(?:and|but|plus|of\s+(?:which|whom|these|those|them)))\s*(?:there\s+(?:is|are)\s*)?"
    r"(?:only\s+|just\s+)?$",
    re.IGNORECASE,
)
"""Text between two numbers that ends so leaves the second without a label of its own"""


def _around(text: str, found: re.Match[str]) -> tuple[str, str]:
    """The text close in front of a match and close behind it."""
    return text[max(0, found.start() - 80) : found.start()], text[found.end() : found.end() + 80]


def _counts_nothing(front: str, behind: str) -> bool:
    """True for the number of a place ("in lane 2"), a time ("10:10") and the ends of a range ("aged 20 to 30")."""
    if re.search(r"\d(?::|\s+to\s+)$", front) or re.match(r":\d|\s+to\s+\d", behind):
        return True
    place, name = _PLACE.search(front), re.match(r"\s+([a-z]+)", behind, re.IGNORECASE)
    is_place = place is not None and place[1].lower() not in ENDS | _LINKS
    return is_place and (name is None or name[1].lower() in ENDS)


def _stated_numbers(text: str) -> list[_Stated]:
    text = text.replace("**", "")
    every = list(_NUMBER.finditer(text))
    said = [match for match in every if not _NOT.search(_around(text, match)[0])]
    counts = [match for match in said if not _counts_nothing(*_around(text, match))] or said
    taken = [match.span() for match in every]
    articles = [m for m in _ARTICLE.finditer(text) if not any(start <= m.start() < end for start, end in taken)]
    found = sorted([(m, False) for m in counts] + [(m, True) for m in articles], key=lambda pair: pair[0].start())
    stated: list[_Stated] = []
    fronts: list[tuple[str, ...]] = []  # the words in front of each, in its clause
    sentence, pool = 0, False
    for n, (match, is_article) in enumerate(found):
        behind = text[match.end() : found[n + 1][0].start() if n + 1 < len(found) else None]
        front = text[found[n - 1][0].end() if n else 0 : match.start()]
        sentence += re.search(r"[.!?](?=\s)|[\n;:(]", front) is not None
        words = () if re.match(r"\s*[,)]", behind) else tuple(_words(re.split(r"[.!?](?=\s|$)|[\n;:()|]", behind)[0]))
        clauses = re.split(r"[.!?](?=\s)|[\n;:,)|]|\b(?:and|but)\b", re.sub(r"[\s:=(|-]+$", "", front))
        is_label = _LABELLING.search(front) and (len(clauses) > 1 or not n or found[n - 1][1])  # not "3 buses: 45"
        before = tuple(_words(clauses[-1]))
        one = _Stated(1.0 if is_article else _value(match), words, before if is_label else (), sentence, is_article)
        is_pronoun = (
            match[0].lower() == "one"
            and not one.name
            and re.search(
                r"\b(?:the|this|that|each|every|another|any)\s+(?:\w+\s+)?$", text[: match.start()], re.IGNORECASE
            )
        )
        if is_pronoun:
            continue
        if pool:
            stated[-1] = replace(stated[-1], behind=words, is_share=True)
            one = replace(one, behind=one.name)
        elif stated and _FOLLOWS_ON.search(front):
            one = _with_name_of(one, stated[-1], front)
        stated.append(one)
        fronts.append(before)
        pool = words[:1] in (("of",), ("out",)) and {*words} <= _POOL
    if any(one.name for one in stated):
        return stated
    return [replace(one, label=one.label or before) for one, before in zip(stated, fronts, strict=True)]


def _with_name_of(one: _Stated, previous: _Stated, front: str) -> _Stated:
    """A number that says where things are, or what they do, and does not name them ("3 on the right"): it counts those
    that the number before it counts."""
    is_share = one.behind[:1] == ("of",) or re.search(r"\bof\s+\w+\s*$", front) is not None
    says = {*_said(one.behind)} - _GENERAL - _PLACING
    if {*one.name} - _LINKS - {"them"} or not says:
        return replace(one, is_share=is_share)
    return replace(one, behind=(*previous.name, *one.behind), label=previous.label, is_share=is_share)


def _value(found: re.Match[str]) -> float:
    """The value of a match of `_NUMBER`."""
    if found["none"]:
        return 0.0
    said = re.sub(r"(?<=\d)\s(?=\d)|,", "", re.sub(r"(?<=[a-z])-", " ", found[0].lower()))
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


def _number_of(stated: Sequence[_Stated], thing: tuple[str, ...], details: frozenset[str]) -> float | None:
    """The number of a thing; None where none can be told from the last one.

    A total of things that are all of that kind is the answer ("Left: 2 cats. Right: 3 cats. Total: 5"). Else, of the
    numbers of the thing those count that share most of the asked details, and those of all things before those
    of a share of them. The last one that nothing else narrows down is the answer; else the parts are added that one
    sentence gives, the last one that states numbers.
    """
    if not stated:
        return None
    described = {n: words for n, one in enumerate(stated) if (words := one.described(thing)) is not None}
    totals = [one.value for one in stated if one.is_total]
    if totals and not details and all(n in described or not one.name for n, one in enumerate(stated)):
        return totals[-1]
    if described:
        most = max(len(details & words) for words in described.values())
        fitting = [n for n, words in described.items() if len(details & words) == most]
        fitting = [n for n in fitting if not stated[n].is_share] or fitting
        known = details | _GENERAL | _PLACING | {","}
        whole = [n for n in fitting if not described[n] - known and not stated[n].is_article]
        if whole:
            return stated[whole[-1]].value
        stating = [n for n in fitting if not stated[n].says_of(thing)]
        return _sum_of_last_sentence([stated[n] for n in fitting], stated[(stating or fitting)[-1]].sentence)
    named = [one for one in stated if one.name]
    if stated[-1].name and thing[-1] in _GENERIC:
        return _sum_of_last_sentence(named, named[-1].sentence)
    others = [one.value for one in stated if not one.is_article and (one.value or not one.name)]
    return others[-1] if others else None


def _sum_of_last_sentence(numbers: Sequence[_Stated], sentence: int) -> float:
    return sum(one.value for one in numbers if one.sentence == sentence)


# Final answers of solutions


def final_answer(completion: str) -> str:
    """Return the final answer of a solution: what it announces as one (`final_announcement`), else an option letter at
    the end ("so B."), else the last number; empty where there is none."""
    if announced := final_announcement(completion):
        said = announced.said.rstrip(" .*")
        alone = _LETTER_OF_OPTION.fullmatch(said)
        return alone[1] if alone else said
    if ending := re.search(r"(?:(?<![\w'])([A-H])|(?<!\w)[(\[]([A-Ha-h])[)\]])[)\].]*\s*$", completion):
        return str(ending[1] or ending[2])
    numbers = re.findall(_PLAIN, _GROUPING.sub("", completion))
    return numbers[-1] if numbers else ""


def same_words(said: str, answer: str) -> bool:
    """True if two texts say the same; case, and end marks and spaces around it, do not count."""
    one, other = (re.sub(r"[.!\s]+$", "", text).strip().casefold() for text in (said, answer))
    return one == other


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
    said, answer = (_FRACTION.sub(r"\1\2/\3", _GROUPING.sub("", text.strip())) for text in (said, str(answer)))
    if not said:
        return False
    if option := _OPTION.fullmatch(answer):
        return _chosen(_mark_letters(said, LETTERS)) == _MARKS[LETTERS.index(option[1])]
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
