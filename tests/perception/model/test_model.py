"""PerceptionModel: what it answers, what it saves, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_perception import NUM_CODES, build_depth_tokenizer, build_perception
from transformers import AutoProcessor, CLIPImageProcessor, GenerationConfig

from perception.chains import encode_target
from perception.interleave.reasoner import Reasoner
from perception.model.images import load_image
from perception.model.perception_model import PerceptionModel, Prompt
from perception.model.shipped import shipped
from perception.vocabulary.names import FILE_NAME, Span

HEAD = "language_model.lm_head.weight"  # on disk
LIMIT = "max_position_embeddings"
QUESTIONS = ("How many red cubes are there?", "Which point is closest, A or B?", "What is this? It is a long question.")


@pytest.fixture(scope="module")
def model() -> PerceptionModel:
    return build_perception()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory) -> Path:
    """The model's folder; tests that damage it take a copy."""
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    return folder


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def prompts(forced: tuple[int, ...] = ()) -> list[Prompt]:
    return [Prompt(noise(i), question, None, forced) for i, question in enumerate(QUESTIONS)]


def test_settings_of_the_base_choose_no_ids(tmp_path):
    """A chat model's penalties and sampling settings are for chats."""
    model = build_perception()
    model.model.generation_config.update(repetition_penalty=1.8, top_k=1, no_repeat_ngram_size=2, max_length=77)
    model = PerceptionModel(model.model, model.processor, model.vocabulary, model.depth_tokenizer)
    assert model.generate_ids(prompts(), max_new_tokens=30, fast=False) == model.generate_ids(prompts(), 30)
    torch.manual_seed(0)
    drawn = [model.generate_ids(prompts()[:1], 12, fast=False, do_sample=True)[0] for _ in range(4)]
    assert len({tuple(ids) for ids in drawn}) > 1
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert "repetition_penalty" not in written and written["max_length"] == 77
    with pytest.raises(ValueError, match="num_return_sequences must be 1"):
        model.generate_ids(prompts(), 12, do_sample=True, num_return_sequences=2)


def test_settings_of_generate_go_beside_ours(model):
    plain = model.generate_ids(prompts(), 30)
    seen = []

    def watch(ids, scores):
        seen.append(ids.shape)
        return scores

    assert model.generate_ids(prompts(), 30, logits_processor=[watch]) == plain and seen
    banned = plain[0][0]
    ids = model.generate_ids(
        prompts(), 30, logits_processor=[lambda _, s: s.index_fill(-1, torch.tensor([banned]), -99)]
    )
    assert all(banned not in row and model.grammar.accepts(row) for row in ids)
    for end in (plain[0][3], [plain[0][3]], torch.tensor([plain[0][3]])):
        found = model.generate_ids(prompts(), 30, eos_token_id=end)
        assert found == [row[: row.index(plain[0][3])] if plain[0][3] in row else row for row in plain]
    assert model.generate_ids(prompts(), 30, temperature=None, top_k=None, top_p=None, do_sample=None) == plain
    assert model.generate_ids(prompts(), 30, fast=False, top_k=None) == plain
    torch.manual_seed(0)
    assert model.generate_ids(prompts(), 30, do_sample=True, top_k=None, temperature=None)
    with pytest.raises(ValueError, match="return_dict_in_generate goes with model.generate") as caught:
        model.generate_ids(prompts(), 30, return_dict_in_generate=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="give its settings one by one"):  # ours would go before its own
        model.generate_ids(prompts(), 30, generation_config=GenerationConfig(do_sample=True))


def test_a_written_model_keeps_what_training_wrote(tmp_path):
    """The end that it was trained to write, and the selector of a model that reasons with looks."""
    model = build_perception()
    model.model.generation_config.eos_token_id = 7
    model.save_pretrained(tmp_path / "one")
    written = json.loads((tmp_path / "one" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [model.processor.tokenizer.eos_token_id, 7]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "interleave_settings.json").write_text("{}")  # of another model that was there before
    PerceptionModel.from_pretrained(shipped("geometry-tiny")).save_pretrained(tmp_path / "two")
    assert Reasoner.from_pretrained(tmp_path / "two").settings == Reasoner.from_pretrained("geometry-tiny").settings


def test_a_processor_that_crops_shows_the_whole_image(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "crops")
    side = build_perception().processor.image_processor.size["height"]
    cropping = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    processor = AutoProcessor.from_pretrained(saved)
    processor.image_processor = cropping
    processor.save_pretrained(tmp_path / "crops")
    model = PerceptionModel.from_pretrained(tmp_path / "crops")
    wide = np.zeros((30, 120, 3), np.uint8)
    wide[:, :20] = 255  # at the left edge, outside the middle square
    pixels = model.prepare_image(wide).get("pixel_values", torch.device("cpu"), torch.float32)
    assert pixels.shape[-2:] == (side, side) and pixels[..., 0].min() > pixels[..., -1].max()


# Images


def test_the_same_picture_in_any_form(tmp_path):
    array = noise()
    Image.fromarray(array).save(tmp_path / "a.png")
    for image in (array, torch.from_numpy(array), Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(load_image(image)), array)
    assert load_image(Image.new("RGBA", (4, 4))).mode == load_image(Image.new("L", (4, 4))).mode == "RGB"


def write_bad_image(path: Path, kind: str) -> None:
    if kind == "cut short":
        Image.fromarray(noise()).save(path)
        path.write_bytes(path.read_bytes()[:400])
    elif kind == "text":
        path.write_text("How many red cubes are there?")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut short", "corrupt image .*save it anew"),
        ("text", "not an image in a known format; give a PNG or JPEG"),
        ("empty", "not an image in a known format"),
        ("folder", "is not a file; give the path"),
        ("missing", "does not exist .*give the path"),
    ],
)
def test_bad_image_files_are_named(model, tmp_path, kind, said):
    path = tmp_path / "picture.png"
    write_bad_image(path, kind)
    with pytest.raises(ValueError, match=f"picture.png.*{said}"):
        model.ask(path, QUESTIONS[0])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        torch.zeros(4, 4, 3),
        torch.zeros(4, 4, 3, requires_grad=True),
        torch.zeros(4, 4, 3, dtype=torch.bfloat16),
        None,
        7,
    ],
)
def test_bad_arrays_are_described(model, array):
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, got (\(|NoneType|int)"):
        model.ask(array, QUESTIONS[0])


# Questions and answers


@pytest.mark.parametrize("most", [0, -1])
def test_an_answer_of_no_token_is_refused(model, most):
    with pytest.raises(ValueError, match=f"max_new_tokens must be at least 1, got {most}"):
        model.ask(noise(), QUESTIONS[0], "direct", max_new_tokens=most)


@pytest.mark.parametrize(
    ("question", "mode", "said"),
    [
        ("", "auto", "the question is empty; ask"),
        (" \n", "direct", "the question is empty; ask"),
        (QUESTIONS[0], "fast", "unknown mode 'fast'; known modes: chain, direct, auto"),
        ("What is this?", "chain", "no chain of perception fits.*use mode='direct'"),
        (None, "auto", "the question must be text, got NoneType"),
    ],
)
def test_bad_questions(model, question, mode, said):
    with pytest.raises(ValueError, match=said):
        model.ask(noise(), question, mode)


def test_a_question_of_a_kind_that_the_model_was_not_taught_gets_no_answer():
    """It is answered directly, what the model wrote is kept, and the answer says why it is none."""
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    answer = model.ask(noise(), "What colour is the wall?")
    assert answer.mode == "direct" and answer.value is None and (answer.text or answer.spans)
    assert answer.warning == "the model was taught questions of count and depth alone, this question asks for neither"
    assert not model.ask(noise(), "Please draw the boxes of the cones.").warning.startswith("the model was taught")
    assert not model.ask(noise(), QUESTIONS[0], "direct").warning.startswith("the model was taught")


def test_depths_of_things_get_no_answer_from_a_model_that_compares_lettered_points():
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    answer = model.ask(noise(), "Which is closer, the cup or the spoon?")
    assert answer.mode == "chain" and answer.value is None and answer.spans
    assert answer.warning == "the model was taught to compare lettered points alone, and this question names none"
    asked = ["Which point is closest to the camera, A, B or C?", "Which marker is nearer, A or B?"]
    assert not any("taught" in answer.warning for answer in model.ask_many(noise(), asked))
    model.taught = ()
    assert "taught" not in model.ask(noise(), "Which is closer, the cup or the spoon?").warning


def test_a_thing_that_the_model_was_not_taught_to_count_gets_no_number():
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"))
    model.taught_things = ("bus", "dining table", "knife", "mouse", "person", "sheep", "tie", "wine glass")
    known = ("buses", "dining tables", "knives", "mice", "people", "sheep", "ties", "wine glasses")
    questions = [f"How many {things} are there?" for things in known]
    assert {answer.warning for answer in model.ask_many(noise(), questions, "direct")} == {""}
    answer = model.ask(noise(), "How many red unicorns are in the picture?")
    assert answer.mode == "chain" and answer.value is None and answer.text
    assert answer.warning == "the model was taught to count 8 kinds of things, and none is called 'red unicorn'"
    assert model.ask(noise(), "Which point is closest, A or B?").value in ("A", "B")


def test_token_names_in_a_question_stay_text(model):
    typed = "How many <DEPTH_START><LOC_3><INTERLEAVE><image></s> are there?"
    inputs = model.inputs([Prompt(noise(), typed)])
    ids = inputs["input_ids"][0].tolist()
    assert not set(ids) & set(model.vocabulary.ids.values())
    assert ids.count(model.model.config.image_token_id) == 4 and model.processor.tokenizer.eos_token_id not in ids
    assert typed in model.processor.tokenizer.decode(ids)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_answers_as_one_by_one(seed):
    model = build_perception(seed)
    alone = [model.generate_ids([prompt], max_new_tokens=40)[0] for prompt in prompts()]
    assert model.generate_ids(prompts(), max_new_tokens=40) == alone
    assert all(model.grammar.accepts(ids) for ids in alone)


def test_answers_hold_whole_spans_only():
    """Over random models: whatever they would say, spans parse, and most models begin some."""
    drawn = 0
    for seed in range(6):
        answers = build_perception(seed).answer(prompts(), max_new_tokens=40)
        drawn += sum(len(answer.spans) for answer in answers)
        assert all(len(s.codes) == 4 for a in answers for s in a.spans if s.modality == "depth")
    assert drawn > 0


def test_forced_spans_are_kept_and_gone_on_from(model):
    spans = (Span("points", (1, 2, 3, 4)), Span("depth", (0, 7, 3, 1)))
    forced = tuple(encode_target(model.processor.tokenizer, model.vocabulary, spans))
    mixed = [*prompts(forced), Prompt(noise(9), QUESTIONS[0])]
    rows = model.generate_ids(mixed, max_new_tokens=12)
    for row, answer in zip(rows[:3], model.answer(mixed, max_new_tokens=12), strict=False):
        assert tuple(row[: len(forced)]) == forced and answer.spans[:2] == spans
    assert any(len(row) > len(forced) for row in rows[:3])
    assert rows[:3] == [model.generate_ids([prompt], max_new_tokens=12)[0] for prompt in mixed[:3]]


def test_a_span_begun_by_force_is_finished(model):
    begun = tuple(model.vocabulary.span_ids(Span("depth", (5, 5, 5, 5))))[:3]
    (answer,) = model.answer([Prompt(noise(), QUESTIONS[1], "depth", begun)], max_new_tokens=8)
    assert answer.spans[0].modality == "depth" and answer.spans[0].codes[:2] == (5, 5)


def test_image_and_padding_tokens_are_never_written():
    model = build_perception()
    banned = [model.model.config.image_token_id, len(model.processor.tokenizer)]
    model.model.resize_token_embeddings(len(model.processor.tokenizer) + 3, mean_resizing=False)

    def prefer_them(module, args, logits):
        logits[..., banned] += 1e4
        return logits

    model.model.lm_head.register_forward_hook(prefer_them)
    ids = [i for row in model.generate_ids(prompts(), max_new_tokens=6) for i in row]
    assert ids and not set(ids) & set(banned)


# Folders


def test_save_then_load_gives_the_same_logits(model, saved):
    again = PerceptionModel.from_pretrained(saved)
    assert again.vocabulary == model.vocabulary and again.depth_tokenizer is not None
    inputs, inputs_again = model.inputs(prompts()), again.inputs(prompts())
    assert all(torch.equal(inputs[name], inputs_again[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(model.model(**inputs).logits, again.model(**inputs_again).logits)
    state, other = model.depth_tokenizer.state_dict(), again.depth_tokenizer.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 2 // 3])

    return damage


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]  # type: ignore[return-value, func-returns-value]


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def edit_json(name: str, **changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | changes))

    return damage


def swap_ids(folder: Path) -> None:
    values = json.loads((folder / FILE_NAME).read_text())
    values["ids"]["<LOC_1>"], values["ids"]["<LOC_2>"] = values["ids"]["<LOC_2>"], values["ids"]["<LOC_1>"]
    (folder / FILE_NAME).write_text(json.dumps(values))


def list_a_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def other_depth_tokenizer(folder: Path) -> None:
    build_depth_tokenizer(2 * NUM_CODES).save_pretrained(folder / "depth_tokenizer")


def shrink_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[HEAD][:-4].clone()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("model.safetensors"), "model.safetensors missing; train one"),
        (remove(FILE_NAME), f"{FILE_NAME} missing; train one"),
        (remove("tokenizer.json", "config.json"), "config.json, tokenizer.json missing"),
        (remove("processor_config.json"), "processor_config.json missing"),
        (list_a_shard, "model-00002-of-00002.safetensors is missing.*copy the whole folder anew"),
        (cut("model.safetensors"), "model.safetensors is half written.*copy the whole folder anew"),
        (cut("config.json"), "config.json is half written.*anew"),
        (cut("tokenizer.json"), "tokenizer.json is half written.*anew"),
        (cut(FILE_NAME), f"{FILE_NAME} is half written.*anew"),
        (cut("depth_tokenizer/model.safetensors"), "depth_tokenizer.model.safetensors is cut short.*anew"),
        (edit_json("config.json", model_type="magic"), "config.json gives no model.*magic.*anew"),
        (edit_json("config.json", quantization_config={"quant_method": "fp8"}), r"quantised weights \(fp8\).*made of"),
        (edit_json("tokenizer.json", model={"type": "magic"}), "gives no processor: tokenizer.json.*anew"),
        (edit_weights(lambda t: t.pop(HEAD)), "does not fit config.json: it lacks lm_head.weight;.*anew"),
        (edit_weights(lambda t: t.update(more=torch.zeros(1))), "does not fit config.json: it has unknown more;.*anew"),
        (edit_weights(shrink_head), r"does not fit config.json: it has lm_head.weight \(.*anew"),
        (swap_ids, f"{FILE_NAME} does not match.*saved together"),
        (other_depth_tokenizer, "depth tokenizer makes 16 codes.*vocabulary names 8.*saved with the model"),
    ],
)
def test_damaged_folders_are_refused_by_file_and_remedy(saved, tmp_path, damage, said):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    damage(folder)
    with pytest.raises(ValueError, match=said) as caught:
        PerceptionModel.from_pretrained(folder)
    assert str(folder) in str(caught.value) or damage is other_depth_tokenizer


def test_a_vocabulary_of_another_model_is_refused(saved, tmp_path):
    """Settings that are not the model's: more codes than its tokenizer has tokens."""
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    values = json.loads((folder / FILE_NAME).read_text())
    values["num_locations"] += 1
    values["ids"]["<LOC_10>"] = max(values["ids"].values()) + 1
    (folder / FILE_NAME).write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"{FILE_NAME} .*save"):
        PerceptionModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "nowhere", "runs/nowhere"])
def test_missing_folders_are_named(name):
    with pytest.raises(ValueError, match=f"{name} (does not exist|is not a local folder).*give the folder"):
        PerceptionModel.from_pretrained(name)


def test_a_prompt_that_leaves_no_position_for_an_answer_is_refused_with_its_length(model, monkeypatch):
    image = Image.new("RGB", (32, 32))
    assert model.positions == getattr(model.model.config.get_text_config(), LIMIT)
    length = model.inputs([Prompt(image, QUESTIONS[0])])["input_ids"].shape[1]
    monkeypatch.setattr(model, "positions", length)
    with pytest.raises(ValueError, match=f"takes {length} tokens, .* model has {length} positions; ask in fewer words"):
        model.inputs([Prompt(image, QUESTIONS[0])])
    with pytest.raises(ValueError, match="positions; ask in fewer words"):
        model.ask(image, QUESTIONS[0])
    monkeypatch.setattr(model, "positions", length + 1)
    model.inputs([Prompt(image, QUESTIONS[0])])
