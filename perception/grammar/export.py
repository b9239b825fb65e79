"""The grammar of spans for other engines: a regular expression, GBNF, and llguidance's Lark.

`SpanGrammar.to_regex`, `to_ebnf` and `to_lark` call these functions and say how they differ from the automaton.
`limits` maps each allowed modality to the largest number of boxes or points in a span, None for any number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from perception.vocabulary.names import INTERLEAVE, NAMINGS, PerceptionVocabulary

Limits = Mapping[str, int | None]
Block = tuple[str, int, int, int]
"""prefix, first and last of the next digit, how many free digits follow: ("1", 2, 7, 1) is 120..179"""


def _number_blocks(low: int, high: int) -> list[Block]:
    """Cut the integers low..high, written without leading zeros, into blocks that differ in whole digits."""
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
    parts = [prefix + _digits(a, b) + "[0-9]" * free for prefix, a, b, free in _number_blocks(low, high)]
    return "(?:" + "|".join(parts) + ")"


def _ebnf_numbers(low: int, high: int) -> str:
    parts = []
    for prefix, a, b, free in _number_blocks(low, high):
        parts.append(" ".join([f'"{prefix}"'] * bool(prefix) + [_digits(a, b)] + ["[0-9]"] * free))
    return "( " + " | ".join(parts) + " )"


def _repeat(most: int | None) -> str:
    return "*" if most is None else f"{{0,{most}}}"


def regex(vocabulary: PerceptionVocabulary, limits: Limits, interleave: bool, ordered_boxes: bool) -> str:
    """The grammar as a regular expression of Python's `re`."""
    last, word = vocabulary.num_locations - 1, NAMINGS[vocabulary.naming]
    depth_code = f"<DEPTH_{_regex_numbers(0, vocabulary.depth_codes - 1)}>"
    location = f"<{word}_{_regex_numbers(0, last)}>"
    # At x1 and again at y1: looks ahead for "n, any location, at least n".
    ordered = "|".join(f"<{word}_{n}>{location}<{word}_{_regex_numbers(n, last)}>" for n in range(last + 1))
    check = f"(?={ordered})" if ordered_boxes else ""
    box = f"(?:{check}{location}{check}{location}{location}{location})"
    bodies = {
        "depth": f"(?:{depth_code}){{{vocabulary.depth_length}}}",
        "boxes": box + _repeat(limits.get("boxes")),
        "points": f"(?:{location}{location})" + _repeat(limits.get("points")),
    }
    names = [INTERLEAVE, depth_code, location]
    if vocabulary.mask_codes is not None:
        names.append(f"<MASK_{_regex_numbers(0, vocabulary.mask_codes - 1)}>")
        bodies["masks"] = f"{box}(?:{names[-1]}){{{vocabulary.mask_length}}}"
    markers = [mark(modality) for modality in bodies for mark in (vocabulary.start_name, vocabulary.end_name)]
    any_name = "|".join([*markers, *names])
    choices = [f"{vocabulary.start_name(m)}{bodies[m]}{vocabulary.end_name(m)}" for m in limits]
    choices += [INTERLEAVE] if interleave else []
    choices.append(rf"(?!{any_name})[\s\S]")
    return f"(?:{'|'.join(choices)})*"


def ebnf(vocabulary: PerceptionVocabulary, limits: Limits, interleave: bool) -> str:
    """The grammar in GBNF, llama.cpp's EBNF."""
    bodies = {
        "depth": f"depth-code{{{vocabulary.depth_length}}}",
        "boxes": f"box{_repeat(limits.get('boxes'))}",
        "points": f"point{_repeat(limits.get('points'))}",
        "masks": f"box mask-code{{{vocabulary.mask_length}}}",
    }
    rules = {"root": _any_of(limits, interleave)}
    for modality in limits:
        start, end = vocabulary.start_name(modality), vocabulary.end_name(modality)
        rules[modality] = f'"{start}" {bodies[modality]} "{end}"'
    if interleave:
        rules["interleave"] = f'"{INTERLEAVE}"'
    if "depth" in limits:
        rules["depth-code"] = f'"<DEPTH_" {_ebnf_numbers(0, vocabulary.depth_codes - 1)} ">"'
    if "masks" in limits:
        rules["mask-code"] = f'"<MASK_" {_ebnf_numbers(0, vocabulary.num_codes("masks") - 1)} ">"'
    if {"boxes", "masks"} & set(limits):
        rules["box"] = "location location location location"
    if "points" in limits:
        rules["point"] = "location location"
    if {"boxes", "points", "masks"} & set(limits):
        word = NAMINGS[vocabulary.naming]
        rules["location"] = f'"<{word}_" {_ebnf_numbers(0, vocabulary.num_locations - 1)} ">"'
    rules["text"] = f'[^<] | "<" [^<DBLPI{"M" if "masks" in vocabulary.modalities else ""}]'
    return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())


def _any_of(limits: Limits, interleave: bool) -> str:
    """The first rule of a grammar: any number of spans, interleave tokens and pieces of text."""
    return f"( {' | '.join([*limits, *(['interleave'] if interleave else []), 'text'])} )*"


MOST_ORDERED = 128
"""With more locations boxes are not ordered: that takes one rule per pair of sides, and would make megabytes"""


def id_set(ids: Iterable[int]) -> str:
    """Any one of these ids, as llguidance's Lark writes it: `<[3,7-9]>`."""
    runs: list[list[int]] = []
    for token in sorted(ids):
        if runs and token == runs[-1][1] + 1:
            runs[-1][1] = token
        else:
            runs.append([token, token])
    return "<[" + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) + "]>"


def _ordered_boxes(locations: Sequence[int]) -> dict[str, str]:
    """Rules of a box x1 y1 x2 y2, one per x1 and y1, so that x2 and y2 are bounded from below."""
    every = range(len(locations))
    rules = {"box": " | ".join(f"box_{x}" for x in every)}
    for x in every:
        pairs = " | ".join(f"{id_set([locations[y]])} from_{x} from_{y}" for y in every)
        rules[f"box_{x}"] = f"{id_set([locations[x]])} ( {pairs} )"
    return rules | {f"from_{n}": id_set(locations[n:]) for n in every}


def lark(
    vocabulary: PerceptionVocabulary,
    limits: Limits,
    interleave: bool,
    ordered_boxes: bool,
    text_ids: Iterable[int],
    told: tuple[Sequence[int], Sequence[int]] | None = None,
) -> str:
    """The grammar in llguidance's Lark, over ids.

    Args:
        text_ids: ids that may stand outside of spans.
        told: blank and readable ids among them, where text that can be read must follow the last span.
    """
    rules = {"start": _any_of(limits, interleave)}
    spans = [*limits, *(["interleave"] if interleave else [])]
    if told is not None and spans:
        blank, readable = told
        rules = {"start": "( told | text )*"}
        rules["told"] = f"( ( {' | '.join(spans)} ){' blank*' if blank else ''} )+ {id_set(readable)}"
        if blank:
            rules["blank"] = id_set(blank)
    locations = vocabulary.code_ids("boxes")
    bodies = {
        "depth": f"{id_set(vocabulary.code_ids('depth'))}{{{vocabulary.depth_length}}}",
        "boxes": f"box{_repeat(limits.get('boxes'))}",
        "points": f"point{_repeat(limits.get('points'))}",
        "masks": f"box {id_set(vocabulary.code_ids('masks'))}{{{vocabulary.mask_length}}}",
    }
    for modality, most in limits.items():
        if vocabulary.bare_boxes:
            rules[modality] = "box"
        else:
            ends = [id_set([i]) for i in (vocabulary.start_id(modality), vocabulary.end_id(modality))]
            rules[modality] = " ".join([ends[0], *([] if most == 0 else [bodies[modality]]), ends[1]])
        if vocabulary.bare_boxes or (modality in ("boxes", "masks") and most != 0):
            ordered = ordered_boxes and len(locations) <= MOST_ORDERED
            rules |= _ordered_boxes(locations) if ordered else {"box": f"{id_set(locations)}{{4}}"}
        elif modality == "points" and most != 0:
            rules["point"] = f"{id_set(locations)}{{2}}"
    if interleave:
        rules["interleave"] = id_set([vocabulary.interleave_id])
    rules["text"] = id_set(text_ids)
    return "".join(f"{name}: {rule}\n" for name, rule in rules.items())
