"""The grammar for other engines: its regular expression and EBNF say what the automaton says."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from random_spans import MASKED, SETTINGS, SMALL, bound, random_decodes
from tiny_models import build_llama, build_tokenizer

from perception.grammar.automaton import SpanGrammar
from perception.vocabulary.names import PerceptionVocabulary, Span


def to_text(vocabulary: PerceptionVocabulary, ids: list[int], letters: str = "ab <DLOC_BX>9") -> str:
    names = {i: name for name, i in vocabulary.ids.items()}
    return "".join(names.get(i, letters[i % len(letters)]) for i in ids)


def is_well_formed(grammar: SpanGrammar, text: str) -> bool:
    """By the automaton, over token names and characters."""
    vocabulary = grammar.vocabulary
    pieces = re.split("(" + "|".join(map(re.escape, vocabulary.tokens)) + ")", text)
    return grammar.accepts([vocabulary.ids.get(piece, 3) for piece in pieces if piece])


def mutations(vocabulary: PerceptionVocabulary, text: str, rng: random.Random) -> list[str]:
    """The text with a token or a character dropped, doubled, replaced or put in."""
    pieces = [p for p in re.split(r"(<[A-Z]+_?\w*>)|(.)", text) if p]
    changed = []
    for _ in range(8):
        at, new = rng.randrange(len(pieces) + 1), rng.choice([*vocabulary.tokens, "a", "<", "<LOC_12>", "<LOC_01>"])
        kind = rng.randrange(4)
        after = pieces[at + (kind in (0, 2)) :]
        changed.append("".join(pieces[:at] + {0: [], 1: pieces[at : at + 1], 2: [new], 3: [new]}[kind] + after))
    return changed


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("more", [{}, {"naming": "aurora"}, {"mask_codes": 11, "mask_length": 3}])
def test_regex_matches_exactly_the_well_formed(settings: dict[str, Any], more: dict[str, Any]) -> None:
    vocabulary = bound(depth_codes=11, depth_grid=(2, 2), num_locations=12, **more)
    grammar = SpanGrammar(vocabulary, **settings)
    pattern, rng = re.compile(grammar.to_regex()), random.Random(0)
    verdicts = {True: 0, False: 0}
    for ids in random_decodes(grammar, 60, 24, spare=0):
        text = to_text(vocabulary, ids)
        assert pattern.fullmatch(text)
        for other in mutations(vocabulary, text, rng):
            expected = is_well_formed(grammar, other)
            assert bool(pattern.fullmatch(other)) == expected, other
            verdicts[expected] += 1
    assert min(verdicts.values()) > 50


def test_regex_of_the_default_vocabulary() -> None:
    vocabulary = bound()
    pattern = re.compile(SpanGrammar(vocabulary).to_regex())
    boxes, depth = Span("boxes", (9, 10, 9, 99)), Span("depth", (127,) * 100)
    answer = f"There are {vocabulary.span_text(boxes)}{vocabulary.span_text(depth)} 1."
    assert pattern.fullmatch(answer) and pattern.fullmatch("a < b, <LOC_100> and <DEPTH_128> are text")
    for n in range(100):
        one = f"<BOX_START><LOC_{n}><LOC_0><LOC_{{}}><LOC_0><BOX_END>"
        assert [bool(pattern.fullmatch(one.format(m))) for m in range(100)] == [m >= n for m in range(100)]
    assert not pattern.fullmatch(answer.replace("<DEPTH_127>", "", 1))


def ebnf_to_regex(grammar: str) -> str:
    """GBNF without recursion, its rules put into one another."""
    rules = dict(line.split(" ::= ") for line in grammar.strip().split("\n"))

    def expand(rule: str) -> str:
        out = ""
        for token in re.findall(r'"[^"]*"|\[[^\]]*\]|[a-z][a-z-]*|\{[\d,]*\}|[()|*]', rule):
            if token[0] == '"':
                out += re.escape(token[1:-1])
            elif token in rules:
                out += f"(?:{expand(rules[token])})"
            else:
                out += "(?:" if token == "(" else token
        return out

    return expand(rules["root"])


@pytest.mark.parametrize("vocabulary", [SMALL, MASKED], ids=["plain", "masks"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_ebnf_matches_the_well_formed(settings: dict[str, Any], vocabulary: PerceptionVocabulary) -> None:
    grammar = SpanGrammar(vocabulary, **settings)
    loose = SpanGrammar(vocabulary, **{**settings, "ordered_boxes": False})
    pattern, rng = re.compile(ebnf_to_regex(grammar.to_ebnf())), random.Random(0)
    for ids in random_decodes(grammar, 60, 24, spare=0):
        text = to_text(vocabulary, ids, "ab >9BLOC_X")  # without a bare "<"
        assert pattern.fullmatch(text)
        for other in mutations(vocabulary, text, rng):
            if not re.search(r"<LOC_(01|12)>|<(?!(DEPTH|BOX|POINT|MASK|LOC)_\w+>|INTERLEAVE>)", other):
                assert bool(pattern.fullmatch(other)) == is_well_formed(loose, other), other


def test_ebnf_reads_well() -> None:
    lines = SpanGrammar(bound()).to_ebnf().splitlines()
    assert lines[0] == "root ::= ( depth | boxes | points | text )*"
    assert 'depth ::= "<DEPTH_START>" depth-code{100} "<DEPTH_END>"' in lines
    assert 'location ::= "<LOC_" ( [0-9] | [1-9] [0-9] ) ">"' in lines
    assert SpanGrammar(bound(), max_boxes=15).to_ebnf().count("box{0,15}") == 1


def test_decoded_text_of_a_tokenizer_is_what_the_regex_reads() -> None:
    tokenizer = build_tokenizer()
    vocabulary = PerceptionVocabulary().extend(build_llama(tokenizer), tokenizer)
    ids = vocabulary.encode_plain(tokenizer, "Boxes ") + vocabulary.span_ids(Span("boxes", (1, 2, 3, 4)))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    assert text == "Boxes <BOX_START><LOC_1><LOC_2><LOC_3><LOC_4><BOX_END>"
    assert re.fullmatch(SpanGrammar(vocabulary).to_regex(), text)
