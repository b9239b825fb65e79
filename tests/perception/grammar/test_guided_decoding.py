"""The grammar in the engines that serve models: they allow what our LogitsProcessor allows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from random_spans import SETTINGS
from tiny_models import build_llama, build_tokenizer

from perception.chains import BOXES_FIRST, ChainRoom
from perception.grammar.automaton import SpanGrammar, SpanLimits
from perception.grammar.export import id_set
from perception.grammar.processor import SpanLogitsProcessor
from perception.vocabulary.names import PerceptionVocabulary, Span

STEPS = 40


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> PerceptionVocabulary:
    small = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 3), num_locations=12, mask_codes=5, mask_length=3)
    return small.extend(build_llama(tokenizer), tokenizer)


def grammar_of(vocabulary: PerceptionVocabulary, tokenizer: Any, **settings: Any) -> SpanGrammar:
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    banned = (image_id, tokenizer.pad_token_id, tokenizer.bos_token_id)
    return SpanGrammar(vocabulary, tokenizer.eos_token_id, vocab_size=len(tokenizer), banned_ids=banned, **settings)


def allowed_by_us(grammar: SpanGrammar, ids: Sequence[int], limits: SpanLimits | None = None) -> set[int]:
    processor = SpanLogitsProcessor(grammar, limits=[limits])
    scores = processor(torch.tensor([ids], dtype=torch.long), torch.zeros(1, grammar.num_ids))
    return set(scores[0].isfinite().nonzero().flatten().tolist())


@pytest.mark.parametrize("settings", SETTINGS)
def test_llguidance_allows_what_the_processor_allows_at_every_step(
    tokenizer: Any, vocabulary: PerceptionVocabulary, settings: dict[str, Any]
) -> None:
    """Along random answers, that go into spans more often than not."""
    llguidance = pytest.importorskip("llguidance")
    hf = pytest.importorskip("llguidance.hf")
    grammar, rng = grammar_of(vocabulary, tokenizer, **settings), random.Random(0)
    engine, text = hf.from_tokenizer(tokenizer), llguidance.grammar_from("grammar", grammar.to_lark())
    ours, spans = set(vocabulary.ids.values()), 0
    for _ in range(8):
        matcher, ids = llguidance.LLMatcher(engine, text), list[int]()
        assert not matcher.get_error()
        for _ in range(STEPS):
            bias = matcher.compute_logit_bias()
            allowed = {i for i in range(len(tokenizer)) if bias[i]}
            assert allowed == allowed_by_us(grammar, ids), ids
            assert matcher.is_accepting() == grammar.accepts(ids)
            known = sorted(allowed & ours)
            choices = known if known and rng.random() < 0.7 else sorted(allowed - {tokenizer.eos_token_id})
            ids.append(rng.choice(choices))
            spans += ids[-1] in ours
            assert matcher.consume_token(ids[-1])
    assert spans > 0 or not grammar.allow


def test_llguidance_asks_for_text_behind_a_chain_s_spans(tokenizer: Any, vocabulary: PerceptionVocabulary) -> None:
    """As our processor does at every step, as long as no span is one too many."""
    llguidance = pytest.importorskip("llguidance")
    hf = pytest.importorskip("llguidance.hf")
    grammar, rng = grammar_of(vocabulary, tokenizer), random.Random(0)
    limits = replace(ChainRoom.of(tokenizer, vocabulary).limits(f"How many? {BOXES_FIRST}"), reserve=0)
    several = replace(limits, most={**limits.most, "boxes": STEPS})
    engine, text = hf.from_tokenizer(tokenizer), llguidance.grammar_from("grammar", grammar.to_lark(limits))
    held = 0
    for _ in range(8):
        matcher, ids = llguidance.LLMatcher(engine, text), list[int]()
        assert not matcher.get_error()
        for _ in range(STEPS):
            bias = matcher.compute_logit_bias()
            allowed = {i for i in range(len(tokenizer)) if bias[i]}
            assert allowed == allowed_by_us(grammar, ids, several), ids
            ends = grammar.accepts(ids)
            held += ends and tokenizer.eos_token_id not in allowed
            known = sorted(allowed & {*vocabulary.ids.values(), *limits.blank_ids})
            choices = known if known and rng.random() < 0.8 else sorted(allowed - {tokenizer.eos_token_id})
            ids.append(rng.choice(choices))
            assert matcher.consume_token(ids[-1])
    assert held > 3


def test_sizes_of_the_shipped_vocabulary_compile(tokenizer: Any) -> None:
    """A depth map of a hundred codes, and a box whose x2 may not be left of its x1."""
    llguidance, hf = pytest.importorskip("llguidance"), pytest.importorskip("llguidance.hf")
    own = build_tokenizer()
    vocabulary = PerceptionVocabulary().extend(build_llama(own), own)
    grammar = grammar_of(vocabulary, own)
    text = llguidance.grammar_from("grammar", grammar.to_lark())  # as vLLM reads it
    matcher = llguidance.LLMatcher(hf.from_tokenizer(own), text)
    good = vocabulary.span_ids(Span("depth", (5,) * 100)) + vocabulary.span_ids(Span("boxes", (20, 30, 20, 99)))
    bad = [vocabulary.start_id("boxes"), *(vocabulary.code_ids("boxes")[n] for n in (20, 30, 19))]
    assert matcher.validate_tokens(good) == len(good) and matcher.validate_tokens(bad) == len(bad) - 1


def test_xgrammar_reads_the_ebnf(tokenizer: Any, vocabulary: PerceptionVocabulary) -> None:
    """As text: what it accepts is well-formed, and what is well-formed it accepts."""
    xgrammar = pytest.importorskip("xgrammar")
    grammar = grammar_of(vocabulary, tokenizer, ordered_boxes=False)
    compiled = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer)).compile_grammar(
        grammar.to_ebnf()
    )
    boxes = vocabulary.span_text(Span("boxes", (1, 11, 3, 4)))
    depth = vocabulary.span_text(Span("depth", (7, 0, 1, 2, 3, 4)))
    mask = vocabulary.span_text(Span("masks", (1, 11, 3, 4, 0, 4, 2)))
    for text in ("", "So 3 > 2.", f"There are {boxes}{depth} 1.", f"{depth} x < y", f"{mask}{boxes}"):
        assert accepts(xgrammar, compiled, text), text
    for text in (
        boxes.replace("<LOC_3>", ""),
        boxes.replace("11", "12"),
        depth.replace("<DEPTH_7>", ""),
        boxes[:-1],
        mask.replace("<MASK_4>", ""),
    ):
        assert not accepts(xgrammar, compiled, text), text


def accepts(xgrammar: Any, compiled: Any, text: str) -> bool:
    matcher = xgrammar.GrammarMatcher(compiled, terminate_without_stop_token=True)
    return bool(matcher.accept_string(text)) and bool(matcher.is_completed())


def test_ids_are_written_as_runs() -> None:
    assert id_set([9, 3, 8, 7]) == "<[3,7-9]>" and id_set([1]) == "<[1]>"
