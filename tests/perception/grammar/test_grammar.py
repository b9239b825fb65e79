"""The language of spans: the automaton and the logits processor."""

from __future__ import annotations

import math
import random
import re
from typing import Any

import pytest
import torch
from random_spans import EOS, MASKED, NUM_TEXT, SETTINGS, SMALL, bound, random_decodes
from tiny_models import build_llava, build_tokenizer, image_inputs

from perception.grammar.automaton import GrammarState, SpanGrammar, SpanLimits
from perception.grammar.processor import SpanLogitsProcessor
from perception.vocabulary.names import PerceptionVocabulary, Span, SpanError


@pytest.mark.slow
def test_no_malformed_span_in_10_000_random_decodes() -> None:
    vocabulary = bound(depth_grid=(4, 4))
    grammar = SpanGrammar(vocabulary, eos_id=EOS, interleave=True)
    spans, malformed = {"depth": 0, "boxes": 0, "points": 0}, 0
    for seed in range(5):
        for ids in random_decodes(grammar, 2000, 40, seed):
            malformed += not grammar.accepts(ids)
            for span in vocabulary.parse(ids):
                if isinstance(span, Span):
                    spans[span.modality] += 1
    assert malformed == 0 and min(spans.values()) > 1000


@pytest.mark.slow
def test_no_malformed_span_with_the_default_sizes() -> None:
    grammar = SpanGrammar(bound(), eos_id=EOS)
    for ids in random_decodes(grammar, 100, 260):
        assert grammar.accepts(ids)


@pytest.mark.parametrize("vocabulary", [SMALL, MASKED], ids=["plain", "masks"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_every_setting(settings: dict[str, Any], vocabulary: PerceptionVocabulary) -> None:
    grammar = SpanGrammar(vocabulary, eos_id=EOS, **settings)
    seen = set()
    for ids in random_decodes(grammar, 300, 40):
        assert grammar.accepts(ids)
        for part in vocabulary.parse(ids):
            if isinstance(part, Span):
                seen.add(part.modality)
                most = grammar.most_codes(part.modality)
                assert most is None or len(part.codes) <= most
            else:
                assert part < NUM_TEXT or (grammar.interleave and part == vocabulary.interleave_id)
    assert seen == set(grammar.allow)


@pytest.mark.parametrize("vocabulary", [SMALL, MASKED], ids=["plain", "masks"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_processor_is_the_automaton(settings: dict[str, Any], vocabulary: PerceptionVocabulary) -> None:
    """At each step of random sequences, left-padded to a batch, exactly the ids that the automaton lets in are left."""
    grammar = SpanGrammar(vocabulary, eos_id=EOS, banned_ids=(5,), **settings)
    free = SpanGrammar(vocabulary, eos_id=EOS)
    size, max_length = NUM_TEXT + len(vocabulary.tokens) + 3, 30
    rng = random.Random(0)
    prompts = [ids[: rng.randrange(1, 30)] for ids in random_decodes(free, 60, 30, seed=3)]
    rows = [ids for ids in prompts if EOS not in ids]
    for limit in (None, max_length):
        width = max(map(len, rows))
        padded = torch.tensor([[0] * (width - len(ids)) + ids for ids in rows])
        left = SpanLogitsProcessor(grammar, limit)(padded, torch.zeros(len(rows), size)) == 0
        remaining = None if limit is None else limit - width
        for ids, row in zip(rows, left, strict=True):
            state = free.run(ids)
            assert [grammar.allows(state, i, remaining) for i in range(size)] == row.tolist()


@pytest.mark.parametrize("length", range(1, 40))
def test_budget_is_kept_to_the_token(length: int) -> None:
    """Every span ends by max_length, whatever is left of it, and no room that suffices is refused."""
    vocabulary = bound(depth_codes=4, depth_grid=(2, 2), num_locations=4, mask_codes=3, mask_length=2)
    grammar = SpanGrammar(vocabulary)
    assert all(grammar.accepts(ids) for ids in random_decodes(grammar, 40, length, spare=0))
    scores = SpanLogitsProcessor(grammar, length)(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, 60))[0]
    assert (scores[vocabulary.start_id("depth")] == 0) == (length >= 6)
    assert (scores[vocabulary.start_id("masks")] == 0) == (length >= 2 + 4 + 2)
    assert (scores[vocabulary.start_id("boxes")] == 0) == (length >= 2)


def test_spans_begun_in_the_prompt_are_finished() -> None:
    prompts = [
        "<DEPTH_START><DEPTH_1>",
        "<BOX_START><LOC_7><LOC_3><LOC_9>",
        "<POINT_START><LOC_1><LOC_2>",
        "<BOX_START>",
    ]
    grammar = SpanGrammar(SMALL, eos_id=EOS, allow=())  # none may be started
    for text in prompts:
        start = [SMALL.ids[name] for name in re.findall("<.*?>", text)]
        prompt = torch.tensor([[1, 3, *start]] * 50)
        for ids in random_decodes(grammar, 50, 30, prompt=prompt):
            spans = [part for part in SMALL.parse(ids) if isinstance(part, Span)]
            assert len(spans) == 1
            codes = spans[0].codes
            if spans[0].modality == "boxes":
                assert all(codes[i + 2] >= codes[i] for i in range(len(codes)) if i % 4 < 2)


def test_a_long_span_is_followed_to_its_start() -> None:
    """More boxes than the scanned tail holds at first."""
    grammar = SpanGrammar(SMALL)
    box = SMALL.span_ids(Span("boxes", (1, 2, 3, 4)))[1:-1]
    ids = torch.tensor([[3, SMALL.start_id("boxes"), *box * 50, *box[:2]], [3] * 204])
    left = SpanLogitsProcessor(grammar)(ids, torch.zeros(2, NUM_TEXT + len(SMALL.tokens))) == 0
    assert left[0].nonzero()[:, 0].tolist() == sorted(SMALL.code_ids("boxes")[1:])
    assert left[1, 3]


def test_stuck_rows_get_their_allowed_ids_back() -> None:
    grammar = SpanGrammar(SMALL)
    scores = torch.full((1, NUM_TEXT + len(SMALL.tokens)), -torch.inf)
    scores[0, 3] = 1.0  # what another processor left is not allowed here
    ids = torch.tensor([SMALL.span_ids(Span("depth", (0,) * 6))[:-1]])
    assert (SpanLogitsProcessor(grammar)(ids, scores) == 0).nonzero()[:, 1].tolist() == [SMALL.end_id("depth")]


def test_scores_are_not_changed_in_place_and_kept_where_allowed() -> None:
    grammar = SpanGrammar(SMALL)
    scores = torch.randn(2, NUM_TEXT + len(SMALL.tokens), dtype=torch.bfloat16)
    before = scores.clone()
    processed = SpanLogitsProcessor(grammar)(torch.tensor([[0, 3], [3, 3]]), scores)
    assert torch.equal(scores, before) and processed.dtype == scores.dtype
    assert torch.equal(processed[:, :NUM_TEXT], scores[:, :NUM_TEXT])


def test_padding_rows_and_placeholders() -> None:
    vocabulary = SMALL
    size = NUM_TEXT + len(vocabulary.tokens)
    ids = torch.tensor([[-200, 10_000]])  # placeholders of image tokens outside the vocabulary
    default = SpanLogitsProcessor(SpanGrammar(vocabulary))(ids, torch.zeros(1, size + 20))
    assert (default[:, size:] == -torch.inf).all() and default[0, 3] == 0
    wider = SpanLogitsProcessor(SpanGrammar(vocabulary, vocab_size=size + 5))(ids, torch.zeros(1, size + 20))
    assert (wider[:, size : size + 5] == 0).all() and (wider[:, size + 5 :] == -torch.inf).all()
    with pytest.raises(ValueError, match="the model has 40 logits"):
        SpanLogitsProcessor(SpanGrammar(vocabulary))(ids, torch.zeros(1, 40))


def test_an_end_behind_the_perception_tokens_may_be_written() -> None:
    eos = NUM_TEXT + len(SMALL.tokens) + 2
    grammar = SpanGrammar(SMALL, eos_id=eos)
    scores = SpanLogitsProcessor(grammar)(torch.tensor([[3]]), torch.zeros(1, eos + 5))[0]
    assert scores[eos] == 0 and (scores[eos + 1 :] == -torch.inf).all()
    assert grammar.accepts([3, eos]) and grammar.allows(GrammarState(), eos)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_limits_are_one_per_prompt(rows: int) -> None:
    processor = SpanLogitsProcessor(SpanGrammar(SMALL), limits=[SpanLimits({"boxes": 0})] * 2)
    assert processor(torch.tensor([[3]] * 4), torch.zeros(4, 60))[3, SMALL.start_id("boxes")] == -torch.inf
    with pytest.raises(ValueError, match=f"limits must be one per prompt: got 2 for {rows} rows"):
        processor(torch.tensor([[3]] * rows), torch.zeros(rows, 60))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"allow": ("faces",)}, "must hold modalities"),
        ({"max_boxes": -1}, "max_boxes must be 0 or more"),
        ({"eos_id": SMALL.start_id("depth")}, "must not be ids of perception tokens"),
        ({"banned_ids": [SMALL.start_id("depth")]}, "must not be ids of perception tokens"),
        ({"vocab_size": NUM_TEXT}, "must exceed"),
        ({"eos_id": 10**9, "vocab_size": 400}, "must be an id of the 400 of vocab_size"),
    ],
)
def test_bad_grammars(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpanGrammar(SMALL, **arguments)


def test_an_unbound_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="no ids yet"):
        SpanGrammar(PerceptionVocabulary())


def test_automaton() -> None:
    grammar = SpanGrammar(SMALL, eos_id=EOS)
    depth, empty = SMALL.span_ids(Span("depth", (1,) * 6)), SMALL.span_ids(Span("boxes", ()))
    assert grammar.accepts([]) and grammar.accepts([3, *depth, *empty, 4, EOS, *depth[:3]])
    assert grammar.run(depth[:3]) == GrammarState("depth", (1, 1))
    for bad in (
        depth[:-1],
        depth[1:],
        [*depth[:3], EOS],
        [*depth[:3], 4],
        [SMALL.interleave_id],
        depth[:-2] + depth[-1:],
    ):
        assert not grammar.accepts(bad)
    with pytest.raises(SpanError, match="may not follow 1 codes of depth"):
        grammar.run([*depth[:2], 4])
    flipped = [SMALL.start_id("boxes"), *(SMALL.code_ids("boxes")[n] for n in (3, 3, 2, 4)), SMALL.end_id("boxes")]
    assert not grammar.accepts(flipped) and SpanGrammar(SMALL, ordered_boxes=False).accepts(flipped)


def test_tensors_are_read_as_lists_are() -> None:
    grammar, end = SpanGrammar(SMALL, eos_id=EOS), SMALL.end_id("boxes")
    whole = [3, *SMALL.span_ids(Span("boxes", (1, 2, 3, 4))), EOS]
    for ids in (whole, whole[:4], [end], SMALL.span_ids(Span("boxes", (3, 2, 3, 4)))[1:]):
        given = torch.tensor(ids)
        assert grammar.accepts(given) == grammar.accepts(list(given)) == grammar.accepts(ids)
        assert grammar.allows(GrammarState(), given[0]) == grammar.allows(GrammarState(), ids[0])
    assert grammar.run(torch.tensor(whole[:4])) == grammar.run(whole[:4]) == GrammarState("boxes", (1, 2))
    for call in (grammar.run, lambda ids: grammar.advance(GrammarState(), ids[0])):
        with pytest.raises(SpanError, match=f"id {end} may not follow 0 codes of no span"):
            call(torch.tensor([end]))


def test_a_mask_is_its_box_and_then_all_of_its_codes() -> None:
    """With sixteen codes, as shipped: fifteen, seventeen, a code in the box and an inverted box are refused."""
    vocabulary = bound(mask_codes=128, mask_length=16)
    grammar = SpanGrammar(vocabulary)
    ids = vocabulary.span_ids(Span("masks", (20, 30, 40, 50, *range(16))))
    start, box, codes, end = ids[0], ids[1:5], ids[5:-1], ids[-1]
    assert grammar.accepts([3, *ids, *ids, 4]) and vocabulary.parse(ids) == [
        Span("masks", (20, 30, 40, 50, *range(16)))
    ]
    assert grammar.run(ids[:7]) == GrammarState("masks", (20, 30, 40, 50, 0, 1))
    for bad in (
        [start, *box, *codes[:-1], end],
        [start, *box, *codes, codes[0], end],
        [start, *box[:-1], codes[0], *codes, end],
        [start, *codes, end],
        [start, *reversed(box), *codes, end],
        codes,
    ):
        assert not grammar.accepts(bad)
    free = SpanGrammar(vocabulary, ordered_boxes=False)
    assert free.accepts([start, *reversed(box), *codes, end])
    for unfinished, message in (
        ([*ids[:-2], end], "exactly 20 codes, those of its box included, got 19"),
        (ids[:3], "cut short"),
    ):
        with pytest.raises(SpanError, match=message):
            vocabulary.parse(unfinished)


# Real generation


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"do_sample": True},
        {"do_sample": True, "top_k": 2, "top_p": 0.5},
        {"num_beams": 4},
        {"num_beams": 3, "do_sample": True, "num_return_sequences": 2},
        {"num_return_sequences": 3, "do_sample": True, "temperature": 5.0},
        {"no_repeat_ngram_size": 2, "repetition_penalty": 1.5},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_generate_writes_well_formed_answers(how: dict[str, Any], tied: bool) -> None:
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer, tied, spare_rows=100)
    vocabulary = PerceptionVocabulary(8, (2, 2), 10).extend(model, tokenizer)
    with torch.no_grad():  # make it fond of perception tokens
        weight = model.get_output_embeddings().weight
        weight[list(vocabulary.ids.values())] = torch.randn(len(vocabulary.tokens), weight.shape[1])
    inputs = image_inputs(tokenizer, ["How many?", "Which of all these cubes is nearest?", "x"], "<BOX_START><LOC_3>")
    width = inputs["input_ids"].shape[1]
    grammar = SpanGrammar(vocabulary, eos_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    processor = SpanLogitsProcessor(grammar, max_length=width + 40)
    torch.manual_seed(0)
    out = model.generate(**inputs, max_new_tokens=40, logits_processor=[processor], **how)
    assert len(out) == 3 * how.get("num_return_sequences", 1)
    assert int(out.max()) < len(tokenizer)
    assert all(grammar.accepts(ids.tolist()) for ids in out)
    begun = [vocabulary.start_id("boxes"), vocabulary.token_id("<LOC_3>")]
    assert all(ids[width - 2 : width].tolist() == begun for ids in out[-len(out) // 3 :])  # and it was finished
    spans = [part for ids in out for part in vocabulary.parse(ids) if isinstance(part, Span)]
    assert len(spans) > len(out) // 3


def test_a_batch_decodes_as_its_rows_alone() -> None:
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer).double()
    vocabulary = PerceptionVocabulary(8, (2, 2), 10).extend(model, tokenizer)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(std=2)
    processor = SpanLogitsProcessor(SpanGrammar(vocabulary, eos_id=tokenizer.eos_token_id))
    inputs = image_inputs(tokenizer, ["How many?", "x", "Which of all these cubes is nearest?"])
    inputs["pixel_values"] = inputs["pixel_values"].double()
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False, logits_processor=[processor])
    for i in range(3):
        kept = inputs["attention_mask"][i].bool()
        alone = {
            "input_ids": inputs["input_ids"][i : i + 1, kept],
            "attention_mask": inputs["attention_mask"][i : i + 1, kept],
            "pixel_values": inputs["pixel_values"][i : i + 1],
        }
        single = model.generate(**alone, max_new_tokens=24, do_sample=False, logits_processor=[processor])[0]
        answer = single[int(kept.sum()) :].tolist()
        assert out[i, inputs["input_ids"].shape[1] :][: len(answer)].tolist() == answer


@pytest.mark.parametrize("vocabulary", [SMALL, MASKED], ids=["plain", "masks"])
def test_masks_read_on_are_those_read_anew(vocabulary: PerceptionVocabulary) -> None:
    """Rows that grow by an id, rows that are reordered as beams are, and rows kept in one buffer that is rewritten."""
    grammar = SpanGrammar(vocabulary, eos_id=EOS)
    size = max(vocabulary.ids.values()) + 1
    for limit in (None, 40, 400):
        followed, generator = SpanLogitsProcessor(grammar, limit), torch.Generator().manual_seed(limit or 0)
        buffer = torch.full((6, 41), 5)
        for length in range(1, 40):
            scores = torch.randn(6, size, generator=generator)
            anew = SpanLogitsProcessor(grammar, limit)(buffer[:, :length].clone(), scores)
            masked = followed(buffer[:, :length], scores)
            assert torch.equal(masked, anew)
            buffer[:, length] = torch.multinomial(masked.softmax(-1), 1, generator=generator)[:, 0]
            if length % 7 == 0:
                buffer = buffer[torch.randperm(6, generator=generator)]
            if length % 11 == 0:
                buffer[:, : length + 1] = buffer[torch.randperm(6, generator=generator), : length + 1]


def boxes_scores(end: float, locations: float) -> tuple[PerceptionVocabulary, torch.Tensor, torch.Tensor]:
    """Ids of a list with one box, (1, L), and scores (1, V) of what follows: END, and each location."""
    vocabulary = SMALL
    ids = torch.tensor([[vocabulary.start_id("boxes"), *(vocabulary.code_ids("boxes")[k] for k in (0, 0, 1, 1))]])
    scores = torch.full((1, NUM_TEXT + len(vocabulary.tokens)), 9.0)  # text, which may not follow
    scores[0, list(vocabulary.code_ids("boxes"))] = locations
    scores[0, vocabulary.end_id("boxes")] = end
    return vocabulary, ids, scores


@pytest.mark.parametrize(("above", "goes_on"), [(-0.1, True), (0.1, False)])
def test_a_weighed_list_ends_where_that_is_likelier_than_going_on(above: float, goes_on: bool) -> None:
    count = len(SMALL.code_ids("boxes"))
    assert count > 2  # so that END is the best id in both cases
    vocabulary, ids, scores = boxes_scores(math.log(count) + above, 0.0)
    end = vocabulary.end_id("boxes")
    weighed = SpanLogitsProcessor(SpanGrammar(vocabulary, weighs_ends=True))(ids, scores)
    assert (int(weighed.argmax()) in vocabulary.code_ids("boxes")) == goes_on
    assert (float(weighed[0, end]) == -torch.inf) == goes_on
    plain = SpanLogitsProcessor(SpanGrammar(vocabulary))(ids, scores)
    assert int(plain.argmax()) == end
    sampled = SpanLogitsProcessor(SpanGrammar(vocabulary, weighs_ends=True), greedy=False)(ids, scores)
    assert torch.equal(sampled, plain)


def test_a_weighed_list_ends_where_nothing_else_may_follow() -> None:
    vocabulary, ids, scores = boxes_scores(-50.0, 0.0)
    full = SpanLogitsProcessor(SpanGrammar(vocabulary, max_boxes=1, weighs_ends=True))
    assert int(full(ids, scores).argmax()) == vocabulary.end_id("boxes")
    inside = SpanLogitsProcessor(SpanGrammar(vocabulary, weighs_ends=True))(ids[:, :-1], scores)
    assert torch.equal(inside, SpanLogitsProcessor(SpanGrammar(vocabulary))(ids[:, :-1], scores))
