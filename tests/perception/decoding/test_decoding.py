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

from perception.chains import BOXES_FIRST, DEPTH_FIRST
from perception.decoding.decoder import DecodingTrace, SpanDecoder
from perception.decoding.drafts import DraftBook, RowDraft
from perception.decoding.sampling import Sampling
from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import SpanLogitsProcessor
from perception.model.perception_model import PerceptionModel, Prompt
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


@pytest.mark.parametrize("seed", range(3))
def test_ids_are_those_of_one_at_a_time_where_ends_are_weighed(seed):
    model = build_perception(seed)
    begun, end = prompts(seed, (model.vocabulary.start_id("boxes"),)), model.vocabulary.end_id("boxes")
    went_on = model.generate_ids(begun, max_new_tokens=40)[0][1]
    for factor in (1.02, 0.98):  # one of them makes END a little likelier than the location that went on
        with torch.no_grad():
            rows = model.model.get_output_embeddings().weight
            rows[end] = factor * rows[went_on]
        greedy = model.generate_ids(begun, max_new_tokens=40, fast=False)
        if greedy[0][1] == end:
            break
    model.model.config.weighs_ends = True
    model = PerceptionModel(model.model, model.processor, model.vocabulary, model.depth_tokenizer)
    plain = model.generate_ids(begun, max_new_tokens=40, fast=False)
    assert greedy[0][1] == end != plain[0][1]
    for _ in range(2):  # without a draft, and with the answer as its own
        assert model.generate_ids(begun, max_new_tokens=40) == plain


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


def fond_of(model, *modalities):
    """Make a random model start and end spans of these modalities wherever it may, and never end its answer."""
    borders = [
        border(modality) for border in (model.vocabulary.start_id, model.vocabulary.end_id) for modality in modalities
    ]

    def prefer(module, args, logits):
        logits[..., borders] += 1e3
        logits[..., list(model.stop_ids)] -= 1e3
        return logits

    model.model.lm_head.register_forward_hook(prefer)
    model.decoder._head = False  # a sliced output layer has no hooks
    return model


@pytest.mark.parametrize(
    ("question", "most"),
    [
        (f"How many red cubes are there? {BOXES_FIRST}", {"depth": 0, "boxes": 1, "points": 0}),
        (f"Which point is closest, A or B? {DEPTH_FIRST}", {"depth": 1, "boxes": 0, "points": 2}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_chain_opens_as_many_spans_as_it_needs_and_keeps_room_for_the_answer(question, most, seed):
    model = fond_of(build_perception(seed), *most)
    batch = [Prompt(prompt.image, question, None) for prompt in prompts(seed)[:2]]
    batch.append(prompts(seed)[2])  # asks for no chain: as many as it likes
    rows = model.generate_ids(batch, 80)
    assert rows == model.generate_ids(batch, 80, fast=False)
    assert rows == [list(model.stream_ids(prompt, 80))[-1] for prompt in batch]
    for row in rows[:2]:
        assert {m: row.count(model.vocabulary.start_id(m)) for m in most} == most
        assert not set(row[-model.room.conclusion :]) & set(model.vocabulary.ids.values())
    starts = [model.vocabulary.start_id(modality) for modality in most]
    assert sum(rows[2].count(start) for start in starts) > 5
    beams = model.model.generate(
        **model.inputs(batch), num_beams=2, do_sample=False, max_new_tokens=30, pad_token_id=model.pad_id,
        logits_processor=[SpanLogitsProcessor(model.grammar, limits=[model.room.limits(p.question) for p in batch])],
    )  # fmt: skip
    for row in beams[:2].tolist():
        assert all(row.count(model.vocabulary.start_id(m)) <= most[m] for m in most)


def ending_early(seed: int, liked: str) -> PerceptionModel:
    """A random model that ends a span as soon as it may, then its answer, and likes one token next best to that."""
    model = build_perception(seed)
    tokenizer, vocabulary = model.processor.tokenizer, model.vocabulary
    ends = [vocabulary.end_id(name) for name in ("boxes", "depth", "points")]
    ranks = [ends, list(model.stop_ids), [tokenizer.bos_token_id], [tokenizer.convert_tokens_to_ids(liked)]]

    def prefer(module, args, logits):
        for bonus, ids in zip((4e3, 3e3, 2e3, 1e3), ranks, strict=True):
            logits[..., ids] += bonus
        return logits

    model.model.lm_head.register_forward_hook(prefer)
    model.decoder._head = False  # a sliced output layer has no hooks
    return model


@pytest.mark.parametrize("behind", ["", " ", " .\n"])
def test_a_chain_does_not_end_before_text_can_be_read_behind_its_span(behind):
    """Neither right there nor behind spaces and stops alone."""
    model = ending_early(0, "7")
    silent = model.room.silent_ids
    assert {*model.stop_ids, model.processor.tokenizer.bos_token_id} <= silent
    assert not silent & set(model.vocabulary.ids.values())
    boxes = Span("boxes", (1, 1, 5, 5, 2, 2, 8, 8))
    begun = model.vocabulary.span_ids(boxes)
    begun = [*begun, *model.processor.tokenizer.encode(behind)] if behind else begun[:-1]
    batch = [Prompt(prompt.image, f"How many? {BOXES_FIRST}", "count", tuple(begun)) for prompt in prompts(0)]
    rows = model.generate_ids(batch, 40, fast=False)
    assert model.generate_ids(batch, 40) == rows
    assert model.generate_ids(batch, 40) == rows  # each is its own draft now
    assert [model.generate_ids([prompt], 40)[0] for prompt in batch] == rows
    assert [list(model.stream_ids(prompt, 40))[-1] for prompt in batch] == rows
    for answer in model.answer(batch, 40):
        assert (answer.value, answer.spans, answer.text) == (7, (boxes,), f"{behind}7".strip())


@pytest.mark.parametrize("question", ["Draw the boxes of the cubes.", "Draw the depth map.", "Draw the marked points."])
def test_an_atomic_task_ends_with_its_span(question):
    model = ending_early(0, "7")
    spans = {"boxes": (1, 1, 5, 5), "depth": (1, 2, 3, 4), "points": (1, 2)}
    name = next(name for name in spans if name in question)
    begun = model.vocabulary.span_ids(Span(name, spans[name]))
    batch = [Prompt(prompt.image, question, None, tuple(begun[:-1])) for prompt in prompts(0)]
    chain = Prompt(batch[0].image, f"How many? {BOXES_FIRST}", "count", tuple(begun[:-1]))
    for fast in (True, False):
        assert model.generate_ids(batch, 40, fast=fast) == [begun] * 3
        if name == "boxes":  # beside a chain in one batch
            assert [len(row) > len(begun) for row in model.generate_ids([*batch, chain], 40, fast=fast)] == [
                False, False, False, True,
            ]  # fmt: skip


def test_text_follows_the_readings_of_a_depth_chain():
    """Also where the prompt was begun with whole spans, and beams are searched."""
    model = ending_early(0, "A")
    vocabulary = model.vocabulary
    begun = vocabulary.span_ids(Span("depth", (1, 2, 3, 4)))
    batch = [Prompt(prompts(0)[0].image, f"Which point is closest, A or B? {DEPTH_FIRST}", "depth", tuple(begun))]
    for settings in ({}, {"fast": False}, {"num_beams": 2}):
        (row,) = model.generate_ids(batch, 40, **settings)
        assert len(row) > len(begun) and row[len(begun)] not in vocabulary.id_roles
    (answer,) = model.answer(batch, 40)
    assert answer.value == "A"


def test_a_list_of_boxes_without_end_leaves_room_for_the_answer():
    model = build_perception(0)
    end = model.vocabulary.end_id("boxes")
    model.model.lm_head.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, torch.tensor([end]), -1e4)
    )
    begun = (model.vocabulary.start_id("boxes"),)
    batch = [Prompt(prompts(0)[0].image, f"How many? {BOXES_FIRST}", "count", begun)]
    (row,) = model.generate_ids(batch, 40)
    assert row == model.generate_ids(batch, 40, fast=False)[0]
    assert row.count(end) == 1 and row.index(end) <= 40 - model.room.conclusion


def test_a_map_that_does_not_fit_is_refused_and_fits_by_default():
    model = build_perception(0)
    asked = Prompt(prompts(0)[0].image, f"Which point is closest, A or B? {DEPTH_FIRST}", "depth")
    with pytest.raises(ValueError, match="max_new_tokens must be at least .* got 8; raise it, leave it out for 256"):
        model.generate_ids([asked], 8)
    with pytest.raises(ValueError, match="max_new_tokens must be at least .* got 8"):
        next(model.stream_ids(asked, 8))
    assert model.generate_ids([asked]) == model.generate_ids([asked], 256)


def test_an_answer_ends_at_every_stop_id_and_the_surplus_is_no_draft():
    """Plain, fast and streamed: at ids of the generation config, and at padding."""
    for seed in range(3):
        model = build_perception(seed)
        prompt = prompts(seed)[2]
        whole = model.generate_ids([prompt], 30)[0]
        texts = [n for n, token in enumerate(whole) if n and token not in model.vocabulary.ids.values()]
        if texts and whole[texts[0]] not in whole[: texts[0]]:
            break
    place = texts[0]
    for name in ("config", "padding"):
        if name == "config":
            model.model.generation_config.eos_token_id = [model.processor.tokenizer.eos_token_id, whole[place]]
        else:
            model.model.generation_config.eos_token_id = model.processor.tokenizer.eos_token_id
            model.processor.tokenizer.pad_token = model.processor.tokenizer.convert_ids_to_tokens(whole[place])
        ended = PerceptionModel(model.model, model.processor, model.vocabulary)
        assert ended.generate_ids([prompt], 30) == [whole[:place]] == ended.generate_ids([prompt], 30, fast=False)
        ended.drafts = DraftBook()
        assert list(ended.stream_ids(prompt, 30))[-1] == whole[:place]
        assert ended.drafts.look_up(prompt.question) == tuple(whole[: place + 1])


def test_sweeps_are_refused_where_one_token_at_a_time_is_decoded(monkeypatch):
    model = build_perception(0)
    for settings in ({"fast": False}, {"num_beams": 2}):
        with pytest.raises(ValueError, match="sweeps settle a map in fast decoding alone.*leave"):
            model.generate_ids(prompts(0), 5, sweeps=3, **settings)
    monkeypatch.setattr("perception.decoding.decoder.why_not", lambda model, cache: "its cache slides")
    with pytest.raises(ValueError, match="decodes one token at a time; leave sweeps out"):
        model.generate_ids(prompts(0), 5, sweeps=3)


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


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_on_the_output_layer_count(before, later):
    """Those that are there at first, and those that come after some answers."""
    model, batch = build_perception(0), prompts(0, (build_perception(0).vocabulary.start_id("depth"),))
    plain = model.generate_ids(batch, max_new_tokens=12) if later else None
    model.drafts = DraftBook()
    head, liked = model.model.get_output_embeddings(), model.vocabulary.code_ids("depth")[3]
    if before:
        head.register_forward_pre_hook(lambda module, inputs: (-inputs[0],))
    else:
        head.register_forward_hook(lambda module, inputs, scores: scores.index_fill(-1, torch.tensor([liked]), 50))
    ids = model.generate_ids(batch, max_new_tokens=12)
    assert ids == model.generate_ids(batch, max_new_tokens=12, fast=False) and ids != plain


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
