"""Questions in the words of people and of published sets, put into the words that small models are taught.

A model that learned one wording of each kind of question from nothing fails on others, even on "How many red cubes do
you see?". A question that says no more than the taught one is put in its words; one that says more ("How many cats are
asleep?") is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence, Set
from itertools import pairwise

from perception.answers import (
    COUNTED,
    ENDS,
    LETTERS,
    POINT_LETTERS,
    asked_thing,
    asks_for_farthest,
    asks_for_nearest,
    letters_in,
    options_in,
    plural_of,
    split_options,
)
from perception.chains import kind_of_question
from perception.scenes.questions import depth_text

_FILLING = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those and or of in on at from to with are is was were be do does did can could would "
        "there here you we i me us your it please tell say give look find spot detect identify notice observe see seen "
        "make out what s how many much count number total altogether overall all exactly just visible shown appear "
        "appears present depicted pictured exist exists image picture photo photograph pic scene shot view frame "
        "answer answers question choices choice option options select choose pick following best correct respond reply "
        "directly only single word phrase letter using digit digits integer numeral given provided provide output "
        "return nothing else your should as contain contains show located",
    )
)
"""Words that a counting question may hold beside the name of what it counts"""
_ON_ANSWERING = _FILLING | frozenset(
    re.findall(
        r"\w+", "above based one carefully short brief briefly concise concisely note not include any additional text"
    )
)
"""Words that may stand before and behind the clause that counts: "from the options above" """
_OF_DEPTH = _FILLING | frozenset(
    re.findall(
        r"\w+",
        "which one point points marker markers dot dots circle circles circled ring rings disc discs spot spots marked "
        "labeled labelled lettered letters label labels letter annotated indicated highlighted drawn placed overlaid "
        "red white black beside near next inside above each every respectively by as among amongst between them their "
        "two three four five some several multiple various few given based closer closest nearer nearest farther "
        "farthest further furthest most away distance position positions location locations camera viewer observer "
        "photographer lens taking lies lie looks shows name who vs versus b c d e",
    )
)
_TO_A_MARKER = re.compile(
    r"\b(?:closer|closest|nearer|nearest|farther|farthest|further|furthest)\b(?:\s+away)?\s+(?:to|from)\s+(?:the\s+|a\s+)?"
    r"(?:(?:(?:red|white|black)\s+)?(?:points?|markers?|dots?|circles?|rings?|discs?|spots?|letters?|labels?)|"
    r"(?-i:[A-Eb-e]))\b",  # a small a is an article
    re.IGNORECASE,
)
"""Asks for the distance from another marker and not from the camera"""
_LINKS = frozenset(("of", "the", "these", "those", "all", "visible", "total", "please", "exactly", "overall"))
"""Words around the name of what is counted"""
_SYNONYMS = {
    "aeroplane": "airplane",
    "automobile": "car",
    "bike": "bicycle",
    "cellularphone": "cellphone",
    "computermouse": "mouse",
    "doughnut": "donut",
    "fridge": "refrigerator",
    "human": "person",
    "hydrant": "firehydrant",
    "lorry": "truck",
    "mobilephone": "cellphone",
    "motorbike": "motorcycle",
    "necktie": "tie",
    "plane": "airplane",
    "remotecontrol": "remote",
    "smartphone": "cellphone",
    "sofa": "couch",
    "stoplight": "trafficlight",
    "television": "tv",
    "tennisracquet": "tennisracket",
    "tvmonitor": "tv",
}
"""Other names of COCO's kinds, without spaces"""


TAUGHT = {
    "count": "'How many cubes are there?'",
    "depth": "'Which point is closest to the camera, A or B?', with up to five letters,",
}
"""The words that the recipes teach, by kind of question"""


def taught_words(question: str, things: Sequence[str] = (), points: int = 0) -> str | None:
    """Return a question of counting or depth in the words that the recipes teach; None where it says more or neither.

    Args:
        things: names of all kinds of things that the model was taught to count; () for any.
        points: number of lettered points in the image, where a question of depth names none.
    """
    kind = kind_of_question(question)
    if kind == "count":
        return _counting(question, things)
    return depth_words(question, points) if kind == "depth" else None


def taught_thing(question: str, things: Sequence[str]) -> str | None:
    """Return which of the things that a model was taught a question counts, spaces aside and by other names as well
    ("cellphones", "sofas"); None for none of them."""
    said = "".join(asked_thing(question))
    joined = {"".join(asked_thing(f"How many {each}?")): each for each in things}
    return joined.get(said) or joined.get(_SYNONYMS.get(said, ""))


def _counting(question: str, things: Sequence[str]) -> str | None:
    question = re.sub(r"\((e?s)\)", r"\1", split_options(question)[0])  # "cat(s)"
    asked = COUNTED.search(question)
    if asked is None:
        return None
    words = _words(asked[1])
    end = next((n for n, word in enumerate(words) if word in ENDS), len(words))
    if any(word == "of" and before not in _LINKS for before, word in pairwise(words[:end])):
        return None  # "kinds of animals" are no animals
    name = " ".join(word for word in words[:end] if word not in _LINKS)
    around = [*_words(question[: asked.start()]), *_words(question[asked.end() :])]
    thing = asked_thing(f"How many {name}?")
    known = taught_thing(f"How many {name}?", things)
    if (things and not known) or not thing or len(thing) < len(name.split()):  # a word such as "different" is no name
        return None
    if not (all(map(_fills(_FILLING), words[end:])) and all(map(_fills(_ON_ANSWERING), around))):
        return None
    return f"How many {plural_of(known) if known else name} are there?"


def _fills(filling: Set[str]) -> Callable[[str], bool]:
    return lambda word: word in filling or word.isdigit() or len(word) == 1


def depth_words(question: str, points: int) -> str | None:
    """Return a question after the nearest or farthest of `points` lettered points, or of those that it names, in the
    taught words; None where it says more or something else."""
    named, far = letters_in(question), asks_for_farthest(question)
    count = len(named) or points
    if not 2 <= count <= len(POINT_LETTERS) or named - set(POINT_LETTERS[:count]) or far == asks_for_nearest(question):
        return None
    if any(letters_in(text.upper()) != {own} for own, text in zip(LETTERS, options_in(question), strict=False)):
        return None  # "(A) point B", "(A) the red dot": a letter would be that of a point, and not of an option
    if _TO_A_MARKER.search(question) or not all(word in _OF_DEPTH or word.isdigit() for word in _words(question)):
        return None
    return depth_text(count, far)


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
