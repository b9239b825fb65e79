"""Plurals of class names: "teddy bear" -> "teddy bears", "person" -> "people", "scissors" -> "scissors".

`inflect` knows irregular nouns but takes every name for a singular. Names that data sets already write in the plural
(skis, goggles) are therefore recognised here first.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

# Plurals and uncountable nouns, to which inflect would add an s.
_IN_THE_PLURAL = """binoculars blinders broccoli checkers drawers darts dice earphones eyeglasses glasses goggles
headphones jeans leggings overalls pants silverware skis shoelaces spectacles sunglasses tights tongs underwear clothes
shorts billiards boxers bread rice corn garlic celery hummus lettuce"""
_KEPT = frozenset(_IN_THE_PLURAL.split())
# Singulars that end in s: bus, glass, iris. inflect guesses wrong singulars for them.
_SINGULAR_ENDS = ("ss", "us", "is", "as", "os")
_IRREGULAR = {"lens": "lenses", "thermos": "thermoses", "lego": "legos", "bison": "bison"}
_ABBREVIATION = re.compile(r"[B-DF-HJ-NP-TV-Z]{2,}")  # RBC, TV; inflect would write RBCS
_QUALIFIER = re.compile(r"\s*\(([^)]*)\)\s*$")


def readable(name: str) -> str:
    """Turn a class name into words: "teddy_bear" -> "teddy bear"."""
    return " ".join(name.replace("_", " ").split())


def without_qualifier(name: str) -> str:
    """Remove a qualifier: "bow (weapon)" -> "bow"."""
    return _QUALIFIER.sub("", name)


def plural(name: str) -> str:
    """The plural of a readable class name; a qualifier in brackets stays at the end.

    Raises:
        ValueError: if the name is empty or inflect is not installed.
    """
    words = without_qualifier(name).split(" ")
    if not words[-1]:
        raise ValueError(f"a class is called {name!r}; give it a name")
    *before, last = words
    found = _QUALIFIER.search(name)
    return " ".join([*before, _plural_word(last)]) + (f" ({found[1]})" if found else "")


@cache
def _plural_word(word: str) -> str:
    if _ABBREVIATION.fullmatch(word):
        return f"{word}s"
    lower = word.lower()
    if lower in _KEPT:
        return word
    if lower in _IRREGULAR:
        return word[:1] + _IRREGULAR[lower][1:]
    engine = _engine()
    if lower.endswith("s") and not lower.endswith(_SINGULAR_ENDS) and len(lower) > 3 and engine.singular_noun(lower):
        single = engine.singular_noun(lower)
        if engine.plural_noun(single) == lower or single == lower:
            return word  # already a plural
    return str(engine.plural_noun(word))


@cache
def _engine() -> Any:
    try:
        import inflect
    except ImportError as error:
        raise ValueError(
            "plurals of class names need inflect: pip install inflect, or the extra perception-tokens[data]"
        ) from error
    return inflect.engine()
