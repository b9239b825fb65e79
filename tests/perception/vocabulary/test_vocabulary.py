"""The vocabulary: names, ids, new rows, user text, files."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import build_mllama
from tiny_models import build_llama, build_llava, build_tokenizer, image_inputs
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from perception.model.shipped import shipped
from perception.vocabulary.extension import CONFIG_KEY
from perception.vocabulary.names import FILE_NAME, PerceptionVocabulary, Span, SpanError

SMALL = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=10)
MASKED = PerceptionVocabulary(depth_codes=8, depth_grid=(2, 2), num_locations=10, mask_codes=6, mask_length=3)


def weights(model: Any) -> list[Tensor]:
    return [model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()]


def random_span(vocabulary: PerceptionVocabulary, rng: random.Random) -> Span:
    modality = rng.choice(vocabulary.modalities)
    counts = {"boxes": 4 * rng.randrange(4), "points": 2 * rng.randrange(4), "masks": vocabulary.mask_length}
    count = counts.get(modality, vocabulary.depth_length)
    box = [rng.randrange(vocabulary.num_locations) for _ in range(4)] if modality == "masks" else []
    return Span(modality, (*box, *(rng.randrange(vocabulary.num_codes(modality)) for _ in range(count))))


# Names


def test_default_names() -> None:
    tokens = PerceptionVocabulary().tokens
    assert len(tokens) == len(set(tokens)) == 128 + 100 + 6 + 1
    for name in (
        "<DEPTH_START>",
        "<DEPTH_127>",
        "<DEPTH_END>",
        "<BOX_START>",
        "<LOC_99>",
        "<BOX_END>",
        "<POINT_START>",
    ):
        assert name in tokens
    assert {"<POINT_END>", "<INTERLEAVE>"} < set(tokens)
    assert not {"<DEPTH_128>", "<LOC_100>"} & set(tokens)


def test_aurora_names() -> None:
    tokens = PerceptionVocabulary(naming="aurora", num_locations=336).tokens
    assert {"<PIXEL_0>", "<PIXEL_335>", "<DEPTH_127>"} < set(tokens) and not any("LOC" in name for name in tokens)


@pytest.mark.parametrize(
    "settings",
    [
        {"naming": "mine"},
        {"depth_codes": 0},
        {"depth_grid": (10,)},
        {"num_locations": 2.5},
        {"ids": {"a": 1}},
        {"mask_codes": 0},
        {"mask_codes": 8, "mask_length": 0},
        {"mask_codes": 8, "modalities": ("depth",)},
        {"modalities": ("boxes", "masks")},
    ],
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        PerceptionVocabulary(**settings)


def test_masks_are_there_if_they_are_asked_for() -> None:
    plain, masked = PerceptionVocabulary(), PerceptionVocabulary(mask_codes=128)
    assert plain.modalities == ("depth", "boxes", "points") and not any("MASK" in name for name in plain.tokens)
    assert masked.modalities == ("depth", "boxes", "points", "masks") and masked.mask_length == 16
    new = set(masked.tokens) - set(plain.tokens)
    assert new == {"<MASK_START>", "<MASK_END>", *(f"<MASK_{n}>" for n in range(128))}
    assert masked.without_masks == plain and PerceptionVocabulary(**masked.settings) == masked
    with pytest.raises(SpanError, match="no tokens for masks, only for depth, boxes, points"):
        plain.span_text(Span("masks", (1, 2, 3, 4, *range(16))))
    with pytest.raises(SpanError, match=r"location codes must lie in 0\.\.99, got 1\.\.100"):
        masked.span_text(Span("masks", (1, 2, 3, 100, *range(16))))
    with pytest.raises(SpanError, match=r"mask codes must lie in 0\.\.127, got 0\.\.128"):
        masked.span_text(Span("masks", (1, 2, 3, 4, *range(15), 128)))


@pytest.mark.parametrize("name", ["perception-tiny", "aurora-tiny", "geometry-tiny", "chart-tiny"])
def test_vocabularies_of_before_masks_load_unchanged(name: str) -> None:
    folder = shipped(name)
    vocabulary, written = PerceptionVocabulary.load(folder), json.loads((folder / FILE_NAME).read_text())
    assert vocabulary.mask_codes is None and "masks" not in vocabulary.modalities
    assert vocabulary.settings | {"ids": vocabulary.ids} == written
    assert json.loads((folder / "config.json").read_text())[CONFIG_KEY] == vocabulary.settings


# New rows


@pytest.mark.parametrize("build", [build_llama, build_llava])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("spare_rows", [0, 10, 100])
@pytest.mark.parametrize("init", ["mean", "description", "codebook"])
def test_extend_adds_rows_and_leaves_the_old(build: Any, tied: bool, spare_rows: int, init: str) -> None:
    tokenizer = build_tokenizer()
    model = build(tokenizer, tied, spare_rows)
    size, old = len(tokenizer), [w.clone() for w in weights(model)]
    codebook = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) if init == "codebook" else None
    vocabulary = SMALL.extend(model, tokenizer, init=init, codebook=codebook)
    assert sorted(vocabulary.ids.values()) == list(range(size, size + len(SMALL.tokens)))
    rows = max(size + spare_rows, size + len(SMALL.tokens))
    assert model.config.get_text_config().vocab_size == rows
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for weight, before in zip(weights(model), old, strict=True):
        assert weight.shape[0] == rows
        assert torch.equal(weight[:size], before[:size])
        assert torch.equal(weight[len(tokenizer) : len(before)], before[len(tokenizer) :])  # spare rows left over
        torch.testing.assert_close(weight[vocabulary.start_id("depth")], before[:size].mean(0))
    assert model.get_output_embeddings().out_features == rows
    assert not vocabulary.encode_plain(tokenizer, "") and vocabulary.check(model, tokenizer) is None


def test_description_init() -> None:
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer)
    vocabulary = PerceptionVocabulary().extend(model, tokenizer, init="description", descriptions={"<DEPTH_0>": " far"})
    for weight in weights(model):
        for name, text in {"<LOC_34>": " 34", "<LOC_7>": " 7", "<DEPTH_0>": " far"}.items():
            ids = tokenizer.encode(text, add_special_tokens=False)
            torch.testing.assert_close(weight[vocabulary.token_id(name)], weight[ids].mean(0))


def test_codebook_init_keeps_neighbours_and_spread() -> None:
    tokenizer = build_tokenizer()
    models = [build_llama(tokenizer), build_llama(tokenizer)]
    codebook = torch.linspace(-1, 1, 8)[:, None] * torch.tensor([[3.0, -5.0, 1.0]])  # on a line, far to near
    for model in models:
        old = weights(model)[0].clone()
        vocabulary = SMALL.extend(model, build_tokenizer(), init="codebook", codebook=codebook)
        rows = weights(model)[0][vocabulary.code_ids("depth")]  # (8, D)
        distance = torch.cdist(rows, rows)[0]
        assert (distance.diff() > 0).all()
        torch.testing.assert_close(rows.std(), old.std(0).mean(), rtol=0.3, atol=0)
    assert torch.equal(weights(models[0])[0], weights(models[1])[0])  # the projection is fixed


def test_a_biased_output_layer_is_filled_too() -> None:
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer)
    model.lm_head = torch.nn.Linear(16, len(tokenizer), bias=True)
    SMALL.extend(model, tokenizer)
    bias = model.lm_head.bias.detach()
    torch.testing.assert_close(bias[290:], bias[:290].mean().expand(len(SMALL.tokens)))


def test_bfloat16_stays() -> None:
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer).to(torch.bfloat16)
    SMALL.extend(model, tokenizer, init="description")
    assert {w.dtype for w in weights(model)} == {torch.bfloat16}


def test_extending_again_changes_nothing() -> None:
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer)
    vocabulary = SMALL.extend(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[vocabulary.token_id("<LOC_3>")] += 1  # as training does
    before = [w.clone() for w in weights(model)]
    assert SMALL.extend(model, tokenizer) == vocabulary and vocabulary.extend(model, tokenizer) == vocabulary
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


@pytest.mark.parametrize("spare_rows", [0, 10])
def test_a_second_fresh_model_takes_an_extended_tokenizer(spare_rows: int) -> None:
    tokenizer = build_tokenizer()
    models = [build_llava(tokenizer, spare_rows=spare_rows) for _ in range(2)]
    bound = [SMALL.extend(model, tokenizer) for model in models]
    assert bound[0] == bound[1]
    assert all(torch.equal(a, b) for a, b in zip(weights(models[0]), weights(models[1]), strict=True))


@pytest.mark.parametrize("spare_rows", [0, 100])
def test_a_model_that_has_the_vocabulary_gets_masks_beside_it(tmp_path: Path, spare_rows: int) -> None:
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer, spare_rows=spare_rows)
    before = SMALL.extend(model, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight[list(before.ids.values())] += 1  # as training does
    kept = [w[: max(before.ids.values()) + 1].clone() for w in weights(model)]
    vocabulary = MASKED.extend(model, tokenizer, init="description", descriptions={"<MASK_0>": " far"})
    assert before.ids.items() < vocabulary.ids.items() and min(vocabulary.code_ids("masks")) > max(before.ids.values())
    assert all(torch.equal(w[: len(k)], k) for w, k in zip(weights(model), kept, strict=True))
    far = tokenizer.encode(" far", add_special_tokens=False)
    for weight in weights(model):
        torch.testing.assert_close(weight[vocabulary.token_id("<MASK_0>")], weight[far].mean(0))
    vocabulary.save(tmp_path)
    assert PerceptionVocabulary.load(tmp_path) == vocabulary
    with pytest.raises(ValueError, match="was extended with .*mask_codes"):  # masks are not taken away again
        SMALL.extend(model, tokenizer)


def test_another_vocabulary_is_refused() -> None:
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer)
    SMALL.extend(model, tokenizer)
    other = PerceptionVocabulary(depth_codes=16, depth_grid=(2, 2), num_locations=10)
    with pytest.raises(ValueError, match="was extended with .*original model"):
        other.extend(model, tokenizer)
    with pytest.raises(ValueError, match="has 8 of the 16 codes"):
        other.extend(build_llava(build_tokenizer()), tokenizer)
    with pytest.raises(ValueError, match="of another vocabulary.*LOC_"):
        PerceptionVocabulary(8, (2, 2), 10, "aurora").extend(build_llava(build_tokenizer()), tokenizer)
    with pytest.raises(ValueError, match="saved with the model"):
        SMALL.extend(model, build_tokenizer())


def test_a_model_with_unequal_tables_is_refused_and_stays_as_it_was() -> None:
    model, processor = build_mllama()
    old, known = [weight.clone() for weight in weights(model)], len(processor.tokenizer)
    counts = [len(weight) for weight in old]
    with pytest.raises(ValueError, match=f"input table has {counts[0]} rows and its output layer {counts[1]}, .*Llama"):
        SMALL.extend(model, processor.tokenizer)
    assert len(processor.tokenizer) == known and all(map(torch.equal, old, weights(model)))


def test_rows_of_unknown_origin_are_not_overwritten() -> None:
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer, spare_rows=100)
    tokenizer.add_tokens(SMALL.tokens, special_tokens=True)
    with pytest.raises(ValueError, match=r"bind\(tokenizer\)"):
        SMALL.extend(model, tokenizer)
    SMALL.bind(tokenizer).check(model, tokenizer)


def test_unprotected_tokens_are_refused() -> None:
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(SMALL.tokens)  # not special: a user's text would become them
    with pytest.raises(ValueError, match="no special token"):
        SMALL.bind(tokenizer).check(None, tokenizer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "zeros"}, "one of"),
        ({"init": "codebook"}, "go together"),
        ({"codebook": torch.zeros(8, 2)}, "go together"),
        ({"init": "codebook", "codebook": torch.zeros(7, 2)}, r"\(8, D\), got \(7, 2\)"),
        ({"init": "description", "descriptions": {"<LOC_10>": "x"}}, "by token name"),
    ],
)
def test_bad_arguments_leave_all_as_it_was(arguments: dict[str, Any], message: str) -> None:
    tokenizer = build_tokenizer()
    model = build_llama(tokenizer)
    with pytest.raises(ValueError, match=message):
        SMALL.extend(model, tokenizer, **arguments)
    assert len(tokenizer) == weights(model)[0].shape[0] == 290


def test_a_processor_in_place_of_its_tokenizer() -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="takes a tokenizer, got SimpleNamespace; give processor.tokenizer"):
        SMALL.extend(build_llama(tokenizer), SimpleNamespace(tokenizer=tokenizer))


# Text


def test_every_token_is_one_id_and_stays_plain_in_user_text() -> None:
    tokenizer = build_tokenizer()
    vocabulary = PerceptionVocabulary().extend(build_llama(tokenizer), tokenizer)
    ours = set(vocabulary.ids.values())
    for name in vocabulary.tokens:
        assert tokenizer.encode(name, add_special_tokens=False) == [vocabulary.token_id(name)]
        text = f"What is {name}{name} here?"
        ids = vocabulary.encode_plain(tokenizer, text)
        assert not ours & set(ids) and tokenizer.decode(ids) == text
    everything = "".join(vocabulary.tokens)
    ids = vocabulary.encode_plain(tokenizer, everything)
    assert not ours & set(ids) and tokenizer.decode(ids) == everything


# Spans


@pytest.mark.parametrize("unbound", [SMALL, MASKED], ids=["plain", "masks"])
def test_parse_inverts_span_ids(rng: random.Random, unbound: PerceptionVocabulary) -> None:
    tokenizer = build_tokenizer()
    vocabulary = unbound.extend(build_llama(tokenizer), tokenizer)
    for _ in range(200):
        answer: list[int | Span] = []
        for _ in range(rng.randrange(5)):
            answer += [random_span(vocabulary, rng), *rng.choices(range(4, 290), k=rng.randrange(4))]
        ids = [i for part in answer for i in (vocabulary.span_ids(part) if isinstance(part, Span) else [part])]
        assert vocabulary.parse(ids) == vocabulary.parse(torch.tensor(ids, dtype=torch.long)) == answer
        text = "".join(vocabulary.span_text(p) if isinstance(p, Span) else "x" for p in answer)
        assert [p for p in vocabulary.parse_text(text) if isinstance(p, Span)] == [
            p for p in answer if isinstance(p, Span)
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<DEPTH_START><DEPTH_1>", "cut short after 1"),
        ("<DEPTH_START><DEPTH_1><DEPTH_END>", "exactly 4 codes, got 1"),
        ("<DEPTH_START>" + "<DEPTH_1>" * 5 + "<DEPTH_END>", "exactly 4 codes, got 5"),
        ("<BOX_START><LOC_1><LOC_1><LOC_1><BOX_END>", "multiple of 4 locations, got 3"),
        ("<POINT_START><LOC_1><POINT_END>", "multiple of 2 locations, got 1"),
        ("<BOX_START><LOC_1><DEPTH_1>", "expected a location code .* got code depth"),
        ("<BOX_START><POINT_END>", "got end points"),
        ("<BOX_START><BOX_START>", "got start boxes"),
        ("<BOX_START> <BOX_END>", "got text"),
        ("<BOX_START><INTERLEAVE><BOX_END>", "got interleave"),
        ("<MASK_START><LOC_1><MASK_1>", "expected a location code .* got code mask"),
        ("<MASK_START>" + "<LOC_1>" * 5, "expected a mask code .* got code location"),
        ("<MASK_START>" + "<LOC_1>" * 4 + "<MASK_1>" * 2 + "<MASK_END>", "exactly 7 codes, .* box included, got 6"),
        ("a <LOC_1>", "stray code .* position 1"),
        ("<BOX_END>", "stray end"),
    ],
)
def test_malformed_spans(text: str, message: str) -> None:
    tokenizer = build_tokenizer()
    vocabulary = MASKED.extend(build_llama(tokenizer), tokenizer)
    with pytest.raises(SpanError, match=message):
        vocabulary.parse_text(text)
    with pytest.raises(SpanError):
        vocabulary.parse(tokenizer.encode(text, add_special_tokens=False))


def test_span_errors() -> None:
    with pytest.raises(SpanError, match=r"0\.\.9, got 3\.\.10"):
        SMALL.span_text(Span("points", (3, 10)))
    with pytest.raises(ValueError, match="must be one of"):
        Span("faces", ())
    for codes in ((1.5, 2), "12"):
        with pytest.raises(ValueError, match="codes must be integers"):
            Span("points", codes)  # type: ignore[arg-type]
    assert Span("points", tuple(np.array([3, 9]))).codes == (3, 9)
    with pytest.raises(ValueError, match="no ids yet"):
        SMALL.span_ids(Span("points", (3, 9)))


# Files


def test_same_logits_after_save_and_reload(tmp_path: Path) -> None:
    for build, auto in ((build_llava, AutoModelForImageTextToText), (build_llama, AutoModelForCausalLM)):
        for tied in (False, True):
            tokenizer, folder = build_tokenizer(), tmp_path / f"{build.__name__}-{tied}"
            model = build(tokenizer, tied)
            vocabulary = SMALL.extend(model, tokenizer, init="description")
            for part in (model, tokenizer):
                part.save_pretrained(folder)
            vocabulary.save(folder)
            again, read, loaded = (
                auto.from_pretrained(folder),
                AutoTokenizer.from_pretrained(folder),
                PerceptionVocabulary.load(folder),
            )
            assert loaded == vocabulary and loaded.extend(again, read) == vocabulary
            loaded.check(again, read, folder)
            text = vocabulary.span_text(Span("boxes", (1, 2, 3, 4))) + vocabulary.span_text(Span("depth", (1, 7, 3, 4)))
            inputs = image_inputs(tokenizer, [text, "x"])
            assert torch.equal(inputs["input_ids"], image_inputs(read, [text, "x"])["input_ids"])
            if build is build_llama:
                del inputs["pixel_values"]
            with torch.no_grad():
                assert torch.equal(model(**inputs).logits, again(**inputs).logits)


def test_file_is_missing_cut_or_foreign(tiny_folder: Path) -> None:
    path = tiny_folder / FILE_NAME
    whole = json.loads(path.read_text())
    bad = {
        "is not whole JSON": path.read_text()[:100],
        "must hold exactly the keys": json.dumps(whole | {"extra": 1}),
        "must hold exactly": json.dumps({k: v for k, v in whole.items() if k != "naming"}),
        "got list": "[]",
        "missing .*<LOC_3>": json.dumps(whole | {"ids": {k: v for k, v in whole["ids"].items() if k != "<LOC_3>"}}),
        "different integers": json.dumps(whole | {"ids": whole["ids"] | {"<LOC_3>": whole["ids"]["<LOC_4>"]}}),
        "no ids": json.dumps(whole | {"ids": {}}),
        "valid vocabulary": json.dumps(whole | {"depth_grid": 4}),
        "valid": json.dumps(whole | {"ids": whole["ids"] | {"<LOC_3>": "7"}}),
    }
    for message, text in bad.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            PerceptionVocabulary.load(tiny_folder)
        assert str(path) in str(caught.value) and "save" in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match="is missing") as caught:
        PerceptionVocabulary.load(tiny_folder)
    assert str(path) in str(caught.value)


def test_check_names_what_does_not_match(tiny_folder: Path, llava: Any, tokenizer: Any) -> None:
    vocabulary = PerceptionVocabulary.load(tiny_folder)
    fresh = build_tokenizer()
    with pytest.raises(ValueError, match="None in the tokenizer.*saved together"):
        vocabulary.check(llava, fresh, tiny_folder)
    with pytest.raises(ValueError, match="lacks 25 of 25"):
        SMALL.bind(fresh)
    with pytest.raises(ValueError, match="embedding has 290 rows") as caught:
        vocabulary.check(build_llava(fresh), tokenizer, tiny_folder)
    assert str(tiny_folder / FILE_NAME) in str(caught.value)
    shifted = PerceptionVocabulary(**vocabulary.settings, ids={name: i + 1 for name, i in vocabulary.ids.items()})
    with pytest.raises(ValueError, match="is id 291 here and 290"):
        shifted.check(llava, tokenizer)
    llava.config.perception_vocabulary = vocabulary.settings | {"depth_grid": [1, 4]}
    with pytest.raises(ValueError, match="config says"):
        vocabulary.check(llava, tokenizer)


def test_an_unbound_vocabulary_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without ids"):
        SMALL.save(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_import_is_light() -> None:
    code = (
        "import sys, perception, perception.grammar.automaton, perception.tokenizers; perception.PerceptionVocabulary;"
        "perception.SpanGrammar; assert 'transformers' not in sys.modules, 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
