"""Several tokens a forward: the very ids, or the very distribution, of one at a time."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import build_llama, build_tokenizer
from tiny_perception import build_perception
from transformers import MistralConfig, MistralForCausalLM

from perception.decoding.decoder import DecodingTrace, SpanDecoder
from perception.decoding.drafts import DraftBook, RowDraft
from perception.decoding.sampling import Sampling
from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import SpanLogitsProcessor
from perception.model.perception_model import Prompt
from perception.vocabulary.names import PerceptionVocabulary, Span

QUESTIONS = ("How many red cubes are there?", "Which point is closest, A or B?", "What is this? It is a long question.")


def prompts(seed: int, forced: tuple[int, ...] = ()) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in QUESTIONS]
    return [Prompt(image, question, None, forced) for image, question in zip(images, QUESTIONS, strict=True)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [2, 5, 40])
def test_ids_are_those_of_one_at_a_time(seed, window):
    """Without drafts, with drafts of other answers, with the answer itself, in a batch and alone."""
    model = build_perception(seed)
    model.decoder = SpanDecoder(model.model, model.grammar, window)
    batch = prompts(seed)
    plain = model.generate_ids(batch, max_new_tokens=40, fast=False)
    assert model.generate_ids(batch, max_new_tokens=40) == plain
    assert model.generate_ids(batch, max_new_tokens=40) == plain  # each is its own draft now
    assert model.generate_ids(batch[::-1], max_new_tokens=40) == plain[::-1]
    for prompt in batch:
        model.drafts.remember(prompt.question, None, plain[0][::-1] + plain[2])
    assert model.generate_ids(batch, max_new_tokens=40) == plain
    assert [model.generate_ids([prompt], max_new_tokens=40)[0] for prompt in batch] == plain


@pytest.mark.parametrize("room", [1, 2, 7, 30])
def test_answers_end_where_the_room_does_and_begin_as_forced(room):
    model = build_perception(1)
    vocabulary = model.vocabulary
    for begun in ([vocabulary.start_id("boxes")], vocabulary.span_ids(Span("depth", (1, 2, 3, 4)))[:3]):
        batch = prompts(0, tuple(begun))
        plain = model.generate_ids(batch, max_new_tokens=room, fast=False)
        for _ in range(2):
            assert model.generate_ids(batch, max_new_tokens=room) == plain


def test_a_good_draft_saves_forwards():
    """An answer that is its own draft is confirmed a window at a time."""
    model = build_perception(2)
    inputs = model.inputs(prompts(3)[:1])
    stop = [model.processor.tokenizer.eos_token_id]
    first, second = DecodingTrace(), DecodingTrace()
    (ids,) = model.decoder.decode(inputs, [[]], 60, stop, trace=first)
    assert model.decoder.decode(inputs, [ids], 60, stop, trace=second) == [ids]
    assert first.confirmed == second.confirmed == len(ids)
    assert second.forwards == 1 + -(-(len(ids) - 1) // model.decoder.window)


def one_row():
    """A causal model without images, its vocabulary and inputs: quick to sample from many times."""
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer)
    vocabulary = PerceptionVocabulary(8, (2, 2), 10).extend(model, tokenizer)
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.3)
    grammar = SpanGrammar(vocabulary, eos_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    begun = torch.tensor([[5, 9, vocabulary.start_id("depth")]])
    return model, grammar, begun


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.7}, {"top_k": 4}, {"top_p": 0.7}])
def test_sampled_ids_have_the_distribution_of_one_at_a_time(settings):
    """The first two codes of a span, 4,000 times both ways; the draft is a likely answer: both roads are used."""
    model, grammar, begun = one_row()
    rows = 4000
    inputs = {"input_ids": begun.expand(rows, -1), "attention_mask": torch.ones(rows, begun.shape[1]).long()}
    codes = grammar.vocabulary.code_ids("depth")
    torch.manual_seed(0)
    decoder = SpanDecoder(model, grammar, 4)
    draft = decoder.decode({k: v[:1] for k, v in inputs.items()}, [[]], 4, [2])[0]
    fast = decoder.decode(inputs, [draft] * rows, 2, [2], Sampling(True, **settings))
    processor = SpanLogitsProcessor(grammar, begun.shape[1] + 2)
    defaults = {"top_k": 0, "temperature": 1.0, "top_p": 1.0}
    plain = model.generate(
        **inputs, max_new_tokens=2, do_sample=True, logits_processor=[processor], **(defaults | settings)
    )[:, -2:]
    counts = np.zeros((2, 64))
    for which, answers in enumerate((fast, plain.tolist())):
        for a, b in answers:
            counts[which, codes.index(a) * 8 + codes.index(b)] += 1
    counts = counts[:, counts.sum(0) >= 20]
    assert counts.shape[1] >= 3
    assert stats.chi2_contingency(counts).pvalue > 1e-4


@pytest.mark.parametrize("sweeps", [2, 3, 50])
def test_a_map_is_settled_after_so_many_sweeps(sweeps):
    """Well-formed always; with as many sweeps as codes the ids are those of one at a time."""
    model = build_perception(1)
    begun = (model.vocabulary.start_id("depth"),)
    batch = prompts(5, begun)
    plain = model.generate_ids(batch, max_new_tokens=5, fast=False)
    rows = model.generate_ids(batch, max_new_tokens=5, sweeps=sweeps)
    assert [len(row) for row in rows] == [len(row) for row in plain]
    assert all(model.grammar.accepts(row) for row in rows)
    if sweeps > model.vocabulary.depth_length:
        assert rows == plain
    trace = DecodingTrace()
    stop = [model.processor.tokenizer.eos_token_id]
    model.decoder.decode(model.inputs(batch), [[]] * 3, 5, stop, trace=trace, sweeps=sweeps)
    assert trace.forwards <= 1 + min(sweeps, model.vocabulary.depth_length)


def test_scores_are_cut_to_what_the_grammar_allows_without_changing_them():
    model, grammar, begun = one_row()
    inputs = {"input_ids": begun, "attention_mask": torch.ones_like(begun)}
    decoder = SpanDecoder(model, grammar)
    cut = decoder.decode(inputs, [[]], 6, [2])
    assert decoder._head is model.get_output_embeddings()
    decoder._head, decoder._lean = False, None
    assert decoder.decode(inputs, [[]], 6, [2]) == cut


def test_a_head_that_is_not_all_of_the_output_is_never_cut(monkeypatch):
    """A model that scales its logits gives other ones than its output layer alone."""
    model, grammar, begun = one_row()
    forward = type(model).forward

    def scaled(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        outputs.logits = torch.tanh(outputs.logits)
        return outputs

    monkeypatch.setattr(type(model), "forward", scaled)
    decoder = SpanDecoder(model, grammar)
    decoder.decode({"input_ids": begun, "attention_mask": torch.ones_like(begun)}, [[]], 4, [2])
    assert decoder._head is False


def test_a_cache_that_cannot_be_cropped_is_left_to_plain_decoding(caplog):
    """A sliding window forgets what a refused guess would have to bring back; one warning, and no answer."""
    _, grammar, begun = one_row()
    config = MistralConfig(
        vocab_size=400, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    decoder = SpanDecoder(MistralForCausalLM(config).eval(), grammar)
    inputs = {"input_ids": begun, "attention_mask": torch.ones_like(begun)}
    with caplog.at_level(logging.WARNING):
        assert decoder.decode(inputs, [[]], 4, [2]) is None
        assert decoder.decode(inputs, [[]], 4, [2]) is None
    assert len(caplog.records) == 1 and "one token at a time" in caplog.text


def test_bad_settings_are_refused():
    model, grammar, _ = one_row()
    with pytest.raises(ValueError, match="window must be at least 2"):
        SpanDecoder(model, grammar, 1)
    with pytest.raises(ValueError, match="sweeps must be at least 2.*train.drafts"):
        build_perception().generate_ids(prompts(0), sweeps=1)
    for settings in ({"temperature": 0.0}, {"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="got"):
            Sampling(True, **settings)


# Drafts


def test_a_book_gives_the_newest_answer_to_a_question_or_to_its_kind():
    book = DraftBook(most=4)
    assert book.look_up("a?", "count") == ()
    book.remember("a?", "count", [1, 2])
    book.remember("b?", "count", [3])
    assert book.look_up("a?", "count") == (1, 2)
    assert book.look_up("c?", "count") == (3,)
    assert book.look_up("c?", "depth") == ()
    for n in range(5):
        book.remember(f"{n}?", "depth", [n])
    assert book.look_up("a?", "other") == ()  # forgotten: the book keeps the newest four


def test_a_draft_is_lined_up_where_a_span_ends_elsewhere():
    """One box fewer than in the draft: what comes behind the span is guessed all the same."""
    vocabulary = one_row()[1].vocabulary
    two = vocabulary.span_ids(Span("boxes", (1, 1, 2, 2, 3, 3, 4, 4)))
    one = vocabulary.span_ids(Span("boxes", (1, 1, 2, 2)))
    draft = RowDraft(vocabulary, [*two, 7, 8, 9])
    draft.confirm(one, two[len(one) :])
    assert draft.guesses(10) == [7, 8, 9]
    draft.confirm([6], [])
    assert draft.guesses(10) == [8, 9]
