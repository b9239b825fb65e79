"""Chains: what is written is read back, and questions are put as their kind calls for."""

from __future__ import annotations

import pytest
from tiny_models import build_llava, build_tokenizer

from perception import chains
from perception.answers import read_answer
from perception.chains import Example, encode_target, kind_of_question, prompt_for, read_ids
from perception.vocabulary.names import PerceptionVocabulary, Span

DEPTH = Span("depth", tuple(i % 128 for i in range(100)))
BOXES = Span("boxes", (1, 2, 30, 40, 50, 60, 70, 80))
POINTS = Span("points", (10, 20, 60, 70))


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
        ("none", "count", None),
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
    assert kind_of_question("What colour is the cube?") is None


def test_modes_put_the_question():
    question = "How many cubes are there?"
    assert prompt_for(question, "direct") == (question, "count")
    assert prompt_for(question, "chain")[0] == prompt_for(question, "auto")[0] == f"{question} {chains.BOXES_FIRST}"
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
    ]:
        ids = encode_target(tokenizer, vocabulary, example.target)
        answer = read_ids(tokenizer, vocabulary, ids, kind)
        assert answer.spans == tuple(p for p in example.target if isinstance(p, Span))
        assert str(answer.value) == example.answer


def test_token_names_in_a_target_s_text_stay_text(extended):
    _, tokenizer, vocabulary = extended
    ids = encode_target(tokenizer, vocabulary, ("<DEPTH_START><LOC_3>",))
    assert not set(ids) & set(vocabulary.ids.values())
