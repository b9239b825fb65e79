"""The grammar of spans for other engines: a regular expression, GBNF, and llguidance's Lark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from perception.vocabulary.names import INTERLEAVE, NAMINGS
from perception.vocabulary.spans import GROUP_SIZES

if TYPE_CHECKING:
    from perception.grammar.automaton import SpanGrammar

Block = tuple[str, int, int, int]
"""prefix, first and last of the next digit, how many free digits follow: ("1", 2, 7, 1) is 120..179"""


def number_blocks(low: int, high: int) -> list[Block]:
    """The integers low..high, without leading zeros, cut into blocks that differ in whole digits."""
    blocks: list[Block] = []
    while low <= high:
        free = 0
        while low and low % 10 ** (free + 1) == 0 and low + 10 ** (free + 1) - 1 <= high:
            free += 1
        step = 10**free
        digit, prefix = low // step % 10, low // step // 10
        last = digit
        while last < 9 and low + (last + 2 - digit) * step - 1 <= high:
            last += 1
        blocks.append((str(prefix) if prefix else "", digit, last, free))
        low += (last + 1 - digit) * step
    return blocks


def _digits(first: int, last: int) -> str:
    return f"[{first}-{last}]"


def _regex_numbers(low: int, high: int) -> str:
    parts = [prefix + _digits(a, b) + "[0-9]" * free for prefix, a, b, free in number_blocks(low, high)]
    return "(?:" + "|".join(parts) + ")"


def _ebnf_numbers(low: int, high: int) -> str:
    parts = []
    for prefix, a, b, free in number_blocks(low, high):
        parts.append(" ".join([f'"{prefix}"'] * bool(prefix) + [_digits(a, b)] + ["[0-9]"] * free))
    return "( " + " | ".join(parts) + " )"


def _repeat(modality: str, grammar: SpanGrammar) -> str:
    most = grammar.most_codes(modality)
    return "*" if most is None else f"{{0,{most // GROUP_SIZES[modality]}}}"


def _location_word(grammar: SpanGrammar) -> str:
    return NAMINGS[grammar.vocabulary.naming]


def regex(grammar: SpanGrammar) -> str:
    """See `SpanGrammar.to_regex`."""
    vocabulary = grammar.vocabulary
    last, word = vocabulary.num_locations - 1, _location_word(grammar)
    depth_code = f"<DEPTH_{_regex_numbers(0, vocabulary.depth_codes - 1)}>"
    location = f"<{word}_{_regex_numbers(0, last)}>"
    # "a, any, at least a" is looked ahead for at x1 and again at y1.
    ordered = "|".join(f"<{word}_{n}>{location}<{word}_{_regex_numbers(n, last)}>" for n in range(last + 1))
    check = f"(?={ordered})" if grammar.ordered_boxes else ""
    box = f"(?:{check}{location}{check}{location}{location}{location})"
    bodies: dict[str, Callable[[], str]] = {
        "depth": lambda: f"(?:{depth_code}){{{vocabulary.depth_length}}}",
        "boxes": lambda: box + _repeat("boxes", grammar),
        "points": lambda: f"(?:{location}{location})" + _repeat("points", grammar),
    }
    markers = [f"{mark(m)}" for m in bodies for mark in (vocabulary.start_name, vocabulary.end_name)]
    any_name = "|".join([*markers, INTERLEAVE, depth_code, location])
    choices = [f"{vocabulary.start_name(m)}{bodies[m]()}{vocabulary.end_name(m)}" for m in grammar.allow]
    choices += [INTERLEAVE] if grammar.interleave else []
    choices.append(rf"(?!{any_name})[\s\S]")
    return f"(?:{'|'.join(choices)})*"


def ebnf(grammar: SpanGrammar) -> str:
    """See `SpanGrammar.to_ebnf`."""
    vocabulary = grammar.vocabulary
    bodies = {
        "depth": f"depth-code{{{vocabulary.depth_length}}}",
        "boxes": f"box{_repeat('boxes', grammar)}",
        "points": f"point{_repeat('points', grammar)}",
    }
    choices = [*grammar.allow, *(["interleave"] if grammar.interleave else []), "text"]
    rules = {"root": f"( {' | '.join(choices)} )*"}
    for modality in grammar.allow:
        start, end = vocabulary.start_name(modality), vocabulary.end_name(modality)
        rules[modality] = f'"{start}" {bodies[modality]} "{end}"'
    if grammar.interleave:
        rules["interleave"] = f'"{INTERLEAVE}"'
    if "depth" in grammar.allow:
        rules["depth-code"] = f'"<DEPTH_" {_ebnf_numbers(0, vocabulary.depth_codes - 1)} ">"'
    if "boxes" in grammar.allow:
        rules["box"] = "location location location location"
    if "points" in grammar.allow:
        rules["point"] = "location location"
    if {"boxes", "points"} & set(grammar.allow):
        rules["location"] = f'"<{_location_word(grammar)}_" {_ebnf_numbers(0, vocabulary.num_locations - 1)} ">"'
    rules["text"] = '[^<] | "<" [^<DBLPI]'
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


MOST_ORDERED = 128
"""Locations of which every pair of a box's sides is given a rule; ordering more of them would take megabytes"""


def id_set(ids: Iterable[int]) -> str:
    """One token out of these, as llguidance's Lark writes it: `<[3,7-9]>`."""
    runs: list[list[int]] = []
    for token in sorted(ids):
        if runs and token == runs[-1][1] + 1:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    return "<[" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "]>"


def _ordered_boxes(locations: Sequence[int]) -> dict[str, str]:
    """Rules of a box x1 y1 x2 y2: with x1 and y1 the least that x2 and y2 may be is known."""
    every = range(len(locations))
    rules = {"box": " | ".join(f"box_{x}" for x in every)}
    for x in every:
        pairs = " | ".join(f"{id_set([locations[y]])} from_{x} from_{y}" for y in every)
        rules[f"box_{x}"] = f"{id_set([locations[x]])} ( {pairs} )"
    return rules | {f"from_{n}": id_set(locations[n:]) for n in every}


def lark(grammar: SpanGrammar) -> str:
    """See `SpanGrammar.to_lark`."""
    vocabulary = grammar.vocabulary
    other = {*vocabulary.ids.values(), *grammar.banned_ids, grammar.eos_id}
    rules: dict[str, str] = {}
    locations = vocabulary.code_ids("boxes")
    bodies = {
        "depth": f"{id_set(vocabulary.code_ids('depth'))}{{{vocabulary.depth_length}}}",
        "boxes": f"box{_repeat('boxes', grammar)}",
        "points": f"point{_repeat('points', grammar)}",
    }
    for modality in grammar.allow:
        ends = [id_set([i]) for i in (vocabulary.start_id(modality), vocabulary.end_id(modality))]
        empty = grammar.most_codes(modality) == 0
        rules[modality] = " ".join([ends[0], *([] if empty else [bodies[modality]]), ends[1]])
        if modality == "boxes" and not empty:
            ordered = grammar.ordered_boxes and len(locations) <= MOST_ORDERED
            rules |= _ordered_boxes(locations) if ordered else {"box": f"{id_set(locations)}{{4}}"}
        elif modality == "points" and not empty:
            rules["point"] = f"{id_set(locations)}{{2}}"
    if grammar.interleave:
        rules["interleave"] = id_set([vocabulary.interleave_id])
    rules["text"] = id_set(i for i in range(grammar.num_ids) if i not in other)
    choices = [*grammar.allow, *(["interleave"] if grammar.interleave else []), "text"]
    rules = {"start": f"( {' | '.join(choices)} )*"} | rules
    return "".join(f"{name}: {rule}\n" for name, rule in rules.items())
