"""Chains: what is written is read back, and questions are put as their kind calls for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import build_llava, build_sentencepiece, build_tokenizer

from perception import chains
from perception.answers import read_answer
from perception.chains import ChainRoom, Example, encode_target, kind_of_question, prompt_for, read_ids
from perception.datasets.aurora import example_of
from perception.grammar.automaton import SpanGrammar
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span

DEPTH = Span("depth", tuple(i % 128 for i in range(100)))
BOXES = Span("boxes", (1, 2, 30, 40, 50, 60, 70, 80))
TWICE = Span("boxes", (*BOXES.codes, *BOXES.codes[4:]))
POINTS = Span("points", (10, 20, 60, 70))


def pair_of(shift):
    """Two boxes of 20 x 20 bins, the second one to the right: 2 bins shifted they share 0.82, 3 bins shifted 0.74."""
    return Span("boxes", (10, 10, 29, 29, 10 + shift, 10, 29 + shift, 29))


READ = (DEPTH, " A", POINTS, " 63, B", POINTS)


@pytest.fixture
def extended():
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer)
    return model, tokenizer, PerceptionVocabulary().extend(model, tokenizer)


def test_a_counting_chain_says_the_number_of_its_boxes():
    example = chains.chain_count("How many red cubes are there?", BOXES)
    assert example.answer == "2" and example.target == (BOXES, " 2.")
    assert chains.chain_count("How many?", Span("boxes", ())).answer == "0"


def test_a_depth_chain_reads_its_map_before_it_concludes():
    first, second = Span("points", (10, 20)), Span("points", (30, 40))
    example = chains.chain_depth("Which point is closest?", (first, second), DEPTH, [63, 41], "A")
    assert example.target == (DEPTH, " A", first, " 63, B", second, " 41, so A.")
    assert read_answer(example.target[-1], "depth") == "A"


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        (" 4.", "count", 4),
        ("There are 12 of 13.", "count", 13),
        ("none", "count", 0),
        ("I cannot tell", "count", None),
        (" A 63, B 41, so B.", "depth", "B"),
        ("(C)", "depth", "C"),
        ("no letter here", "depth", None),
        (" a red cube. ", None, "a red cube."),
    ],
)
def test_final_answers_are_read(text, kind, value):
    assert read_answer(text, kind) == value


def test_kinds_of_questions():
    assert kind_of_question("How many red cubes are there?") == "count"
    assert kind_of_question("Which point is closest to the camera, A or B?") == "depth"
    assert kind_of_question("Which cup is nearest?") == kind_of_question("What is farther, A or B?") == "depth"
    assert kind_of_question("Is A or B closer?") == kind_of_question("Are A, B, or the point C nearest?") == "depth"
    for other in (
        "What colour is the cube?",
        "What colour is the nearest cube?",
        "Is the cube closer than the ball?",
        "What is the number of the bus?",
    ):
        assert kind_of_question(other) is None and prompt_for(other, "auto") == (other, None)


def test_modes_put_the_question():
    question = "How many cubes are there?"
    assert prompt_for(question, "direct") == (question, "count")
    asked = f"{question} {chains.BOXES_FIRST}"
    assert prompt_for(question, "chain")[0] == prompt_for(question, "auto")[0] == asked
    assert prompt_for(asked, "chain") == (asked, "count"), "it asks for the boxes once"
    assert prompt_for("What is this?", "auto") == ("What is this?", None)
    for arguments, message in [
        (("  ", "auto"), "the question is empty"),
        ((question, "slow"), "known modes: chain, direct, auto"),
        (("What is this?", "chain"), "no chain of perception fits"),
    ]:
        with pytest.raises(ValueError, match=message):
            prompt_for(*arguments)


def test_examples_refuse_unknown_tasks_and_empty_questions():
    with pytest.raises(ValueError, match="known tasks: atomic_depth"):
        Example("caption", "What?", (), "")
    with pytest.raises(ValueError, match="empty"):
        Example("direct_count", " ", (" 3.",), "3")


def test_what_is_written_is_read_back(extended):
    _, tokenizer, vocabulary = extended
    for example, kind in [
        (chains.chain_count("How many?", BOXES), "count"),
        (chains.chain_depth("Which is closest?", (POINTS, POINTS), DEPTH, [9, 41], "B"), "depth"),
        (example_of("Which is closest?", (DEPTH, " A", POINTS, " 63, B", POINTS, " 41, so A.")), "depth"),
    ]:
        ids = encode_target(tokenizer, vocabulary, example.target)
        answer = read_ids(tokenizer, vocabulary, ids, kind, example.question)
        assert answer.spans == tuple(p for p in example.target if isinstance(p, Span))
        assert str(answer.value) == example.answer


@pytest.mark.parametrize(
    ("parts", "kind", "question", "warning"),
    [
        ((BOXES, " 2."), "count", "How many cubes?", ""),
        ((BOXES, " 3."), "count", "How many cubes?", "3 said, 2 boxes drawn"),
        ((BOXES, " many"), "count", "How many cubes?", "no number said, 2 boxes drawn"),
        ((TWICE, " 3."), "count", "How many cubes?", "3 said, 2 different boxes drawn"),
        ((TWICE, " 2."), "count", "How many cubes?", "2 said, 3 boxes drawn"),
        ((pair_of(2), " 2."), "count", "How many cubes?", "2 said, 1 different box drawn"),
        ((pair_of(3), " 2."), "count", "How many cubes?", ""),
        ((" 3.",), "count", "How many cubes?", ""),
        ((*READ, " 41, so A."), "depth", "Which is closest?", ""),
        ((*READ, " 41, so A."), "depth", "Which is farthest?", "A said, readings A 63, B 41"),
        ((*READ, " 41, so B."), "depth", "Which is closest?", "B said, readings A 63, B 41"),
    ],
)
def test_an_answer_that_differs_from_the_drawing_is_flagged(extended, parts, kind, question, warning):
    _, tokenizer, vocabulary = extended
    ids = encode_target(tokenizer, vocabulary, parts)
    assert read_ids(tokenizer, vocabulary, ids, kind, question).warning == warning


def test_room_follows_from_the_grid(extended):
    _, tokenizer, vocabulary = extended
    room = ChainRoom.of(tokenizer, vocabulary)
    assert room.default == 256 and replace(room, depth_length=256).default == 412
    asked = prompt_for("Which point is closest, A or B?", "chain")[0]
    needed = 2 + 256 + 2 * room.letter + room.conclusion
    replace(room, depth_length=256).check(asked, needed)
    with pytest.raises(ValueError, match=f"max_new_tokens must be at least {needed} for a depth map of 256 codes.*412"):
        replace(room, depth_length=256).check(asked, needed - 1)
    room.check("What is this?", 1)


def test_a_chain_may_draw_what_it_needs(extended):
    _, tokenizer, vocabulary = extended
    room = ChainRoom.of(tokenizer, vocabulary)
    assert room.limits("What is this?") is None
    assert room.limits(prompt_for("How many?", "chain")[0]).most == {"depth": 0, "boxes": 1, "points": 0, "masks": 0}
    for question, points in (("Which is closest, A, B or C?", 3), ("Which point is closest?", 5)):
        limits = room.limits(prompt_for(question, "chain")[0])
        assert (
            limits.most == {"depth": 1, "boxes": 0, "points": points, "masks": 0} and limits.reserve == room.conclusion
        )


def test_a_list_of_sixty_boxes_has_room_for_its_number(extended):
    _, tokenizer, vocabulary = extended
    room, grammar = ChainRoom.of(tokenizer, vocabulary), SpanGrammar(vocabulary)
    corners = np.stack(np.meshgrid(np.arange(10) / 10, np.arange(6) / 6), -1).reshape(60, 2)
    boxes = BoxTokenizer(100).encode(np.concatenate([corners, corners + 0.15], 1).clip(0, 1))
    example = chains.chain_count("How many cells are there?", Span("boxes", tuple(boxes)))
    ids = encode_target(tokenizer, vocabulary, example.target)
    assert len(ids) + len(("the end",)) <= room.default
    state = grammar.run([])
    for written, token in enumerate(ids[: 2 + 4 * 60]):
        assert grammar.allows(state, token, room.default - room.limits(example.question).reserve - written)
        state = grammar.advance(state, token)
    answer = read_ids(tokenizer, vocabulary, ids, "count", example.question)
    assert answer.value == 60 and answer.spans == (example.target[0],) and not answer.warning


def test_bytes_of_sentencepiece_are_read_as_what_they_are():
    """A newline is no text that can be read, a digit is."""
    tokenizer = build_sentencepiece(legacy=True)
    room = ChainRoom.of(tokenizer, PerceptionVocabulary().extend(build_llava(tokenizer), tokenizer))
    blank = {name for name in tokenizer.get_vocab() if tokenizer.convert_tokens_to_ids(name) in room.blank_ids}
    assert {"<0x0A>", "<0x20>", "<0x2E>", "."} <= blank and not {"<0x41>", "<0x33>", "<0xC3>", "A"} & blank


def test_token_names_in_a_target_s_text_stay_text(extended):
    _, tokenizer, vocabulary = extended
    ids = encode_target(tokenizer, vocabulary, ("<DEPTH_START><LOC_3>",))
    assert not set(ids) & set(vocabulary.ids.values())
