"""Plurals of class names: "teddy bear" -> "teddy bears", "person" -> "people", "scissors" -> "scissors".

`inflect` knows irregular nouns but takes every name for a singular. Names that data sets already write in the plural
(skis, goggles, nuclei) are therefore recognised first and stay as they are, and so do names that do not end in a Latin
letter.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

# Plurals and uncountable nouns that inflect does not know, and to which it would add an s.
_IN_THE_PLURAL = """binoculars blinders broccoli checkers drawers darts dice earphones eyeglasses glasses goggles
headphones jeans leggings overalls pants silverware skis shoelaces spectacles sunglasses tights tongs underwear clothes
shorts billiards boxers bread rice corn garlic celery hummus lettuce cattle livestock poultry police lice larvae pupae
hyphae antennae fungi cacti octopi radii foci bacilli cocci mitochondria media taxis bikinis kiwis menus"""
_KEPT = frozenset(_IN_THE_PLURAL.split())
# Singulars that end in s: bus, glass, iris. inflect guesses wrong singulars for them.
_SINGULAR_ENDS = ("ss", "us", "is")
_SINGULAR = {"gas", "atlas", "canvas", "pancreas", "albatros", "asbestos", "cosmos", "rhinoceros"}
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
    if not unicodedata.name(word[-1], "").startswith("LATIN"):
        return word
    if _ABBREVIATION.fullmatch(word):
        return f"{word}s"
    lower = word.lower()
    if lower in _KEPT:
        return word
    if lower in _IRREGULAR:
        return word[:1] + _IRREGULAR[lower][1:]
    engine = _engine()
    in_s = lower.endswith("s")
    single = engine.singular_noun(lower)
    if in_s and (lower.endswith(_SINGULAR_ENDS) or lower in _SINGULAR):
        single = False
    if single and (not in_s or lower in (single, engine.plural_noun(single))):
        return word  # already a plural
    many = str(engine.plural_noun(word))
    return f"{word}s" if many == f"{word}S" else many  # inflect writes LEDS


@cache
def _engine() -> Any:
    try:
        import inflect
    except ImportError as error:
        raise ValueError(
            "plurals of class names need inflect: pip install inflect, or the extra perception-tokens[data]"
        ) from error
    return inflect.engine()
