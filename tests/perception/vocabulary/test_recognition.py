"""Vocabularies of published models, recognised in their tokenizers: drawn with at once, and nothing is trained."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import IMAGE_SIZE, build_llava, build_tokenizer
from tiny_perception import CHAT_TEMPLATE, build_depth_tokenizer
from transformers import LlavaProcessor, SiglipImageProcessor

from perception.chains import encode_target
from perception.evaluation.report import drawn_answer
from perception.grammar.automaton import GrammarState, SpanGrammar
from perception.grammar.processor import GrammarMasks
from perception.model.images import load_image
from perception.model.perception_model import PerceptionModel, Prompt
from perception.vocabulary.names import PerceptionVocabulary, Span, SpanError
from tokenizers import AddedToken

DEPTH = ["<DEPTH_START>", "<DEPTH_END>", *(f"<DEPTH_{n}>" for n in range(8))]
LOCATIONS = [f"<loc{n:04d}>" for n in range(16)]


def published_model(names: list[str], special: bool = False) -> tuple[Any, Any]:
    """A random model and its processor, with tokens added as their authors do: some as plain ones."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(
        [AddedToken(name, special=special, normalized=False) for name in names], special_tokens=special
    )
    model = build_llava(tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight.normal_()
        model.lm_head.weight[tokenizer.convert_tokens_to_ids(names)] *= 3  # so that spans are begun now and then
    images = SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return model.eval(), processor


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def recognised(names: list[str], **settings: Any) -> PerceptionModel:
    model, processor = published_model(names)
    before = dict(processor.tokenizer.get_vocab())
    vocabulary = PerceptionVocabulary.recognise(processor.tokenizer, (2, 2))
    assert processor.tokenizer.get_vocab() == before and all(vocabulary.ids[name] == before[name] for name in names)
    return PerceptionModel(model, processor, vocabulary, **settings)


def answers(model: PerceptionModel, fast: bool) -> list[list[int]]:
    prompts = [Prompt(load_image(picture()), f"What is {n} here?") for n in range(6)]
    return model.generate_ids(prompts, max_new_tokens=40, fast=fast)


def test_depth_tokens_of_aurora_and_molmoact_are_drawn() -> None:
    """Whole maps alone are written, by both ways of decoding; they are decoded and drawn by an imported tokenizer."""
    model = recognised(DEPTH, depth_tokenizer=build_depth_tokenizer())
    vocabulary = model.vocabulary
    assert vocabulary.modalities == ("depth",) and vocabulary.depth_codes == 8 and len(vocabulary.tokens) == 10
    ids = answers(model, fast=True)
    assert ids == answers(model, fast=False)
    spans = [part for row in ids for part in vocabulary.parse(row) if isinstance(part, Span)]
    assert spans and all(span.modality == "depth" and len(span.codes) == 4 for span in spans)
    start = (vocabulary.start_id("depth"),)
    (answer,) = model.answer([Prompt(load_image(picture()), "What is the depth map?", forced=start)], max_new_tokens=12)
    assert answer.spans[0].modality == "depth" and "DEPTH" not in answer.text
    drawn = drawn_answer(model, picture(), answer)
    assert drawn.width > picture().width


def test_names_in_a_question_stay_text_though_their_authors_left_them_open() -> None:
    model = recognised(DEPTH)
    ids = model.inputs([Prompt(load_image(picture()), "What is <DEPTH_3>?")])["input_ids"][0].tolist()
    assert not set(ids) & set(model.vocabulary.ids.values())


def test_boxes_of_paligemma_are_drawn() -> None:
    """Groups of four y1 x1 y2 x2, without markers, with the second corner behind the first."""
    model = recognised(LOCATIONS)
    vocabulary = model.vocabulary
    assert vocabulary.modalities == ("boxes",) and vocabulary.num_locations == 16 and vocabulary.naming == "paligemma"
    ids = answers(model, fast=True)
    assert ids == answers(model, fast=False)
    boxes = [part.codes for row in ids for part in vocabulary.parse(row) if isinstance(part, Span)]
    assert boxes and all(x1 <= x2 and y1 <= y2 for x1, y1, x2, y2 in boxes)
    (answer,) = model.answer([Prompt(load_image(picture()), "detect cup", forced=(vocabulary.ids["<loc0002>"],))], 8)
    assert answer.spans and answer.spans[0].codes[1] == 2 and "<loc" not in answer.text
    assert drawn_answer(model, picture(), answer).width > picture().width


COUNT, NEAREST = "How many cubes are there?", "Which point is closest, A or B?"


@pytest.mark.parametrize(
    ("names", "question", "said"),
    [
        (DEPTH, COUNT, "draws boxes, and the vocabulary has no tokens for boxes; use mode='direct'"),
        (DEPTH, NEAREST, "draws depth and points, and the vocabulary has no tokens for points; use"),
        (LOCATIONS, NEAREST, "the vocabulary has no tokens for depth and points; use"),
    ],
)
def test_a_model_is_asked_for_no_chain_that_it_has_no_tokens_for(names: list[str], question: str, said: str) -> None:
    model = recognised(names)
    assert model.ask(picture(), question, max_new_tokens=8).mode == "direct"
    assert [answer.mode for answer in model.ask_many(picture(), [question], max_new_tokens=8)] == ["direct"]
    assert model.put(question, "auto")[0] == question
    for ask in (model.put, lambda *asked: model.ask(picture(), *asked)):
        with pytest.raises(ValueError, match=said):
            ask(question, "chain")


def test_a_counting_chain_of_bare_boxes_is_read_back() -> None:
    model = recognised(LOCATIONS)
    said = (Span("boxes", (1, 2, 3, 4)), " 1.")
    ids = encode_target(model.processor.tokenizer, model.vocabulary, said)
    answer = model.read_back(Prompt(picture(), *model.put(COUNT, "auto")), ids)
    assert answer.value == 1 and len(answer.spans) == 1


def test_bare_boxes_are_read_and_written_in_their_order() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in LOCATIONS])
    vocabulary = PerceptionVocabulary.recognise(tokenizer)
    text = "<loc0001><loc0002><loc0003><loc0004> cup ; <loc0005><loc0006><loc0007><loc0008> mug"
    first, second = Span("boxes", (2, 1, 4, 3)), Span("boxes", (6, 5, 8, 7))
    assert vocabulary.parse_text(text) == [first, " cup ; ", second, " mug"]
    assert vocabulary.span_text(first) == text[:36] and vocabulary.parse(vocabulary.span_ids(first)) == [first]
    both = Span("boxes", first.codes + second.codes)
    assert vocabulary.parse(vocabulary.span_ids(both)) == [first, second]
    with pytest.raises(SpanError, match="boxes span is cut short after 3 codes"):
        vocabulary.parse_text(text[:27])
    with pytest.raises(SpanError, match="expected a location code"):
        vocabulary.parse_text("<loc0001><loc0002> cup")
    with pytest.raises(SpanError, match="no tokens for depth, only for boxes"):
        vocabulary.span_names(Span("depth", (1,) * 100))


@pytest.mark.parametrize("names", [DEPTH, LOCATIONS])
def test_masks_of_batches_are_the_automaton_s(names: list[str]) -> None:
    """At every prefix of random well-formed answers, with and without a limit."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
    grammar = SpanGrammar(PerceptionVocabulary.recognise(tokenizer, (2, 2)), eos_id=tokenizer.eos_token_id)
    masks, rng = GrammarMasks(grammar), random.Random(0)
    size = len(tokenizer)
    for _ in range(12):
        ids, state, length = [5], GrammarState(), 14
        while len(ids) < length:
            remaining = length - len(ids)
            allowed = [token for token in range(size) if grammar.allows(state, token, remaining)]
            row = torch.tensor([ids])
            mask = masks.after(row, size, remaining=torch.tensor([[remaining]]))[0, 0]
            assert mask.nonzero()[:, 0].tolist() == allowed
            free = [token for token in range(size) if grammar.allows(state, token)]
            states = masks.plain_states(masks.open_spans(row, size))
            if states is not None:
                assert masks.of_states(states, row.device, size)[0].nonzero()[:, 0].tolist() == free
            ours = [token for token in allowed if token in grammar.vocabulary.id_roles]
            ids.append(rng.choice(ours if ours and rng.random() < 0.8 else allowed))
            state = grammar.advance(state, ids[-1])
        assert state == GrammarState() and grammar.accepts(ids[1:])


def test_grammars_of_recognised_vocabularies_are_written_over_ids() -> None:
    llguidance = pytest.importorskip("llguidance")
    for names in (DEPTH, LOCATIONS):
        tokenizer = build_tokenizer()
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names])
        grammar = SpanGrammar(PerceptionVocabulary.recognise(tokenizer, (2, 2)), vocab_size=len(tokenizer))
        assert not llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("grammar", grammar.to_lark()))
        for write in (grammar.to_regex, grammar.to_ebnf):
            with pytest.raises(ValueError, match=r"write it over ids: to_lark\(\)"):
                write()


def test_sides_of_bare_boxes_are_ordered_in_the_grammar_over_ids_too() -> None:
    llguidance, hf = pytest.importorskip("llguidance"), pytest.importorskip("llguidance.hf")
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in LOCATIONS])
    grammar = SpanGrammar(PerceptionVocabulary.recognise(tokenizer), vocab_size=len(tokenizer))
    text = llguidance.grammar_from("grammar", grammar.to_lark())
    matcher, ids = llguidance.LLMatcher(hf.from_tokenizer(tokenizer), text), grammar.vocabulary.code_ids("boxes")
    for last, fits in ((7, 4), (4, 3)):  # y1 x1 y2 x2
        box = [ids[n] for n in (3, 5, 3, last)]
        assert matcher.validate_tokens(box) == fits and grammar.accepts(box) == (fits == 4)


def test_a_recognised_vocabulary_is_saved_and_loaded(tmp_path: Any) -> None:
    model = recognised(DEPTH, depth_tokenizer=build_depth_tokenizer())
    model.save_pretrained(tmp_path)
    again = PerceptionModel.from_pretrained(tmp_path)
    assert again.vocabulary == model.vocabulary and again.vocabulary.ids == model.vocabulary.ids
    assert answers(again, fast=True) == answers(model, fast=True)


def test_masks_are_recognised_and_drawn_whole_by_both_ways_of_decoding() -> None:
    model = recognised(PerceptionVocabulary(8, (2, 2), 10, mask_codes=6).tokens)
    assert model.vocabulary.settings == PerceptionVocabulary(8, (2, 2), 10, mask_codes=6).settings
    start = (model.vocabulary.start_id("masks"),)
    prompts = [Prompt(load_image(picture()), f"Draw mask {n}.", forced=start) for n in range(4)]
    ids = model.generate_ids(prompts, max_new_tokens=45)
    assert ids == model.generate_ids(prompts, max_new_tokens=45, fast=False)
    firsts = [model.vocabulary.parse(row)[0] for row in ids]
    assert all(isinstance(span, Span) and span.modality == "masks" and len(span.codes) == 20 for span in firsts)
    with pytest.raises(ValueError, match="no mask tokenizer, so its masks cannot be drawn; add its mask_tokenizer"):
        drawn_answer(model, picture(), model.answer(prompts[:1], max_new_tokens=30)[0])


def test_our_own_tokens_are_recognised(tokenizer: Any, llava: Any) -> None:
    ours = PerceptionVocabulary(8, (2, 2), 10).extend(llava, tokenizer)
    found = PerceptionVocabulary.recognise(tokenizer, (2, 2))
    assert found == ours and found.ids == ours.ids and "modalities" not in found.settings


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no perception tokens that are known; known are <DEPTH_START>"),
        (["<DEPTH_0>", "<DEPTH_1>"], "no perception tokens that are known"),
        ([name for name in DEPTH if name != "<DEPTH_3>"], "7 tokens like <DEPTH_7>, and <DEPTH_3> is missing"),
        ([name for name in LOCATIONS if name != "<loc0000>"], "15 tokens like <loc0015>, and <loc0000> is missing"),
        ([f"<PIXEL_{n}>" for n in range(336)], "has <PIXEL_n> and no <BOX_START>, as AURORA's for counting"),
    ],
)
def test_what_is_not_known_is_said_in_one_line(names: list[str], said: str) -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(names)
    with pytest.raises(ValueError, match=said) as caught:
        PerceptionVocabulary.recognise(tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("special", [False, True])
def test_tokens_of_aurora_s_counting_model_are_kept_where_boxes_are_added(special: bool) -> None:
    """As `recognise` advises: its locations become special, with their ids and rows, and the others come after them."""
    model, processor = published_model([f"<PIXEL_{n}>" for n in range(336)], special)
    tokenizer = processor.tokenizer
    before, rows = dict(tokenizer.get_vocab()), model.get_input_embeddings().weight.detach().clone()
    vocabulary = PerceptionVocabulary(naming="aurora", num_locations=336).extend(model, tokenizer)
    assert all(tokenizer.get_vocab()[name] == number for name, number in before.items())
    assert len(tokenizer) == len(before) + len(vocabulary.tokens) - 336
    assert torch.equal(model.get_input_embeddings().weight[: len(rows)], rows)
    assert not set(vocabulary.encode_plain(tokenizer, "<PIXEL_7>")) & set(vocabulary.ids.values())
    vocabulary.check(model, tokenizer)
