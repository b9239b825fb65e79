"""Several questions: a prepared image gives the same answers, and so do mixed batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_perception import build_perception
from tiny_vlms import KINDS, TinyVLM

from perception.model.perception_model import PerceptionModel, Prompt
from perception.model.prepared_images import CachedFeatures, PreparedImage, mark_pixels

QUESTIONS = (
    "How many red cubes are there?",
    "Which point is closest, A or B?",
    "How many objects are there?",
    "What is this? It is a long question about a picture.",
)
MODES = ("chain", "chain", "direct", "direct")


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def count_tower_calls(model: PerceptionModel) -> list[int]:
    """How many images the tower is given, call by call."""
    calls: list[int] = []
    tower = model.model.model.vision_tower
    tower.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    return calls


def test_one_prepared_image_serves_all_questions_and_changes_no_id():
    model = build_perception(1)
    prompts = [Prompt(noise(), question) for question in QUESTIONS]
    alone = [model.generate_ids([prompt], 40)[0] for prompt in prompts]
    batch, plain = model.generate_ids(prompts, 40), model.generate_ids(prompts, 40, fast=False)
    streamed = [list(model.stream_ids(prompt, 40))[-1] for prompt in prompts]
    calls = count_tower_calls(model)
    prepared = model.prepare_image(noise())
    again = [Prompt(prepared, question) for question in QUESTIONS]
    assert [model.generate_ids([prompt], 40)[0] for prompt in again] == alone == batch == plain == streamed
    assert model.generate_ids(again, 40) == batch and model.generate_ids(again, 40, fast=False) == plain
    assert [list(model.stream_ids(prompt, 40))[-1] for prompt in again] == streamed
    assert calls == [1]
    assert model.prepare_image(prepared) is prepared


def test_beams_leave_the_features_of_a_prepared_image_as_they_are():
    """`generate` repeats encoder outputs for beams in place."""
    model = build_perception()
    images = [model.prepare_image(noise(n)) for n in (3, 4)]
    batch = [Prompt(image, "How many?") for image in images]
    plain = model.generate_ids(batch, max_new_tokens=8)
    beams = [model.generate_ids([prompt], max_new_tokens=8, num_beams=3)[0] for prompt in batch]
    assert model.generate_ids(batch, max_new_tokens=8, num_beams=3) == beams
    assert model.generate_ids(batch, max_new_tokens=8) == plain


def test_prepared_and_other_images_share_a_batch():
    model = build_perception(2)
    images = [noise(3), model.prepare_image(noise(4)), noise(5)]
    expected = [model.generate_ids([Prompt(noise(3 + i), QUESTIONS[i])], 30)[0] for i in range(3)]
    got = model.generate_ids([Prompt(image, question) for image, question in zip(images, QUESTIONS, strict=False)], 30)
    assert got == expected
    prepared = [model.prepare_image(noise(3 + i)) for i in range(3)]
    assert model.generate_ids([Prompt(s, q) for s, q in zip(prepared, QUESTIONS, strict=False)], 30) == expected


def test_an_image_prepared_for_another_model_is_prepared_anew():
    one, other = build_perception(1), build_perception(3)
    prepared = one.prepare_image(noise())
    prompt = Prompt(noise(), QUESTIONS[0])
    one.generate_ids([Prompt(prepared, QUESTIONS[0])], 20)
    assert other.generate_ids([Prompt(prepared, QUESTIONS[0])], 20) == other.generate_ids([prompt], 20)
    assert other.prepare_image(prepared) is not prepared


def test_training_uses_no_kept_features():
    model = build_perception(1)
    prepared = model.prepare_image(noise())
    model.generate_ids([Prompt(prepared, QUESTIONS[0])], 4)
    loss = model.model(**model.inputs([Prompt(prepared, QUESTIONS[0])])).logits.sum()
    loss.backward()
    weight = next(model.model.model.vision_tower.parameters())
    assert weight.grad is not None and float(weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_families_read_kept_features_as_their_own(kind):
    """Prompts of several images whose pixels are known: the same ids and logits, and a tower that is not run again."""
    tiny = TinyVLM(kind)
    inputs = tiny.inputs(7, (1, 1, 1))
    rows = [tiny.row(inputs, n) for n in range(3)]
    extras = [{k: v for k, v in row.items() if k not in ("input_ids", "attention_mask")} for row in rows]
    for made in (inputs, *rows) if kind.startswith("qwen") else ():
        made["mm_token_type_ids"] = (made["input_ids"] == tiny.layout.image_id).int()
    prepared = [PreparedImage(None, [], extra, tiny.hf) for extra in extras]
    runs: list[int] = []
    inner = tiny.hf.base_model
    inner_tower = getattr(inner, "visual", None) or getattr(inner, "vision_tower", None) or inner.vision_model
    inner_tower.register_forward_pre_hook(lambda module, args: runs.append(1))
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    with torch.no_grad():
        expected, ids = tiny.hf(**inputs).logits, tiny.hf.generate(**inputs, **settings)
        assert CachedFeatures.install(tiny.hf) and CachedFeatures.install(tiny.hf)
        before = len(runs)
        for _ in range(2):
            mark_pixels(inputs["pixel_values"], prepared)
            assert torch.allclose(tiny.hf(**inputs).logits, expected, atol=1e-4)
        assert len(runs) == before + 3 and all(len(image.features) == 1 for image in prepared)
        assert torch.equal(tiny.hf.generate(**inputs, **settings), ids)
        assert len(runs) == before + 3
        for row, image in zip(rows, prepared, strict=True):
            plain = tiny.hf(**row).logits
            mark_pixels(row["pixel_values"], [image])
            assert torch.equal(tiny.hf(**row).logits, plain)


def test_a_batch_of_mixed_modes_and_kinds_answers_as_one_by_one():
    for seed in range(3):
        model = build_perception(seed)
        images = [noise(i) for i in range(4)]
        alone = [model.ask(i, q, m, 40) for i, q, m in zip(images, QUESTIONS, MODES, strict=True)]
        assert model.ask_many(images, QUESTIONS, MODES, 40) == alone
        assert model.ask_many(images, QUESTIONS, MODES, 40, batch_size=3) == alone
        assert [answer.mode for answer in alone] == list(MODES)
        one = [model.ask(images[0], q, m, 40) for q, m in zip(QUESTIONS, MODES, strict=True)]
        assert model.ask_many(images[0], QUESTIONS, MODES, 40) == one


def test_many_questions_about_one_image_prepare_it_once():
    model = build_perception(0)
    calls = count_tower_calls(model)
    model.ask_many(noise(), QUESTIONS * 2, "direct", 6, batch_size=3)
    assert calls == [1]


def test_one_text_is_no_list_of_questions():
    with pytest.raises(ValueError, match="questions must be a list of texts, got one text; give .text., or use ask"):
        build_perception(0).ask_many(noise(), "How many cubes are there?")


@pytest.mark.parametrize(
    ("images", "modes", "said"),
    [
        ([noise()] * 3, "direct", "images must be one, or one per question: got 3 for 4"),
        (noise(), ["direct"] * 5, "modes must be one, or one per question: got 5 for 4"),
        (noise(), "chain", "no chain of perception fits"),
        (noise(), ("direct", "fast", "direct", "direct"), "unknown mode 'fast'"),
    ],
)
def test_bad_batches_are_refused_before_anything_is_answered(images, modes, said):
    model = build_perception(0)
    model.model.forward = None  # nothing may run
    with pytest.raises(ValueError, match=said):
        model.ask_many(images, QUESTIONS, modes)


def test_no_questions_no_answers():
    assert build_perception(0).ask_many(noise(), []) == []


def test_auto_draws_where_a_chain_fits_the_question():
    model = build_perception(1)
    answers = model.ask_many(noise(), ["How many red cubes are there?", "Which point is closest?", "What is this?"])
    assert [answer.mode for answer in answers] == ["chain", "chain", "direct"]


def test_a_folder_with_the_gate_of_an_older_version_loads_and_saves_without_it(tmp_path):
    build_perception(1).save_pretrained(tmp_path / "old")
    save_file({"weight": torch.zeros(3, 24)}, tmp_path / "old" / "thinking_gate.safetensors")
    model = PerceptionModel.from_pretrained(tmp_path / "old")
    assert model.ask(noise(), "How many red cubes are there?").mode == "chain"
    model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new" / "thinking_gate.safetensors").exists()
