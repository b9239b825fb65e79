"""What trains under LoRA, in which precision, and what is kept of a frozen tower, in every family of models."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import FAMILIES, save_family
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from perception.model.folder import read_model, read_processor
from perception.vocabulary.names import PerceptionVocabulary
from train.finetune import FinetuneConfig, Parts, build_parts
from train.loop.optimizer import parameter_groups
from train.models.adapters import LoraSettings, adapt, merged
from train.models.parts import projector_names, tower_parameters, vision_tower
from train.models.saving import Precision, precision_of, save_perception_model

pytest.importorskip("peft")
SETTINGS = {"depth_tokenizer": "", "depth_codes": 8, "depth_side": 2, "num_locations": 10}
LORA = LoraSettings(4, 8)


@pytest.fixture(scope="module", params=FAMILIES)
def base(request: Any, tmp_path_factory: Any) -> Path:
    """A family's folder, with tied embeddings."""
    if request.param == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    return save_family(request.param, tmp_path_factory.mktemp(request.param), tied=True)


def parts_of(base: Path, **changes: Any) -> Parts:
    return build_parts(FinetuneConfig(base=str(base), **(SETTINGS | changes)), None)


def loss_of(parts: Parts, bf16: bool = False) -> Tensor:
    """Mean cross-entropy of a prompt's own ids, with its image."""
    image = torch.randint(0, 255, (40, 72, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    processor = parts.processor
    if processor.chat_template is None:
        inputs = processor(images=[image], text="<image>How many", return_tensors="pt")
    else:
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many red cubes"}]}
        text = processor.apply_chat_template([turn], add_generation_prompt=True)
        inputs = processor(images=[image], text=[text], return_tensors="pt")
    inputs = {name: value for name, value in inputs.items() if name in parts.accepted}
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = parts.model(**inputs, use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, inputs["input_ids"][0, 1:])


def step(parts: Parts, learning_rate: float, bf16: bool = False) -> dict[str, tuple[Tensor, Tensor]]:
    """(before, after) of every trained parameter whose gradient is not 0 everywhere, over a step of AdamW."""
    parts.model.train()
    loss_of(parts, bf16).backward()
    trained = {n: p for n, p in parts.model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    before = {name: p.detach().clone() for name, p in trained.items()}
    torch.optim.AdamW(trained.values(), lr=learning_rate, weight_decay=0.0).step()
    return {name: (before[name], p.detach()) for name, p in trained.items()}


def test_tied_rows_train_as_one_and_stay_tied(base: Path, tmp_path: Path) -> None:
    """With LoRA and all rows trained: logits come from the trained rows, in the merged folder too."""
    parts = parts_of(base, lora=LORA)
    before = parts.model.get_output_embeddings().weight.detach().clone()
    step(parts, 1e-2)
    rows = parts.model.get_output_embeddings().weight
    new = list(parts.vocabulary.ids.values())
    assert rows is parts.model.get_input_embeddings().weight
    assert bool((rows[new] != before[new]).any(1).all()), "every output row has a gradient"
    with torch.no_grad():
        expected = loss_of(replace_model(parts, parts.model.eval()))
    model = merged(parts.model)
    save_perception_model(
        model, parts.processor, parts.vocabulary, tmp_path / "model", precision=Precision(torch.float32)
    )
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert stock.config.tie_word_embeddings and stock.config.get_text_config().tie_word_embeddings
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    assert torch.equal(stock.get_input_embeddings().weight, rows)
    with torch.no_grad():
        assert torch.allclose(loss_of(replace_model(parts, stock)), expected, rtol=1e-4)


def replace_model(parts: Parts, model: Any) -> Parts:
    return Parts(model, parts.processor, parts.vocabulary, parts.accepted, parts.tower, parts.tables)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("train_rows", ["all", "new"])
def test_what_trains_is_float32_inside_a_bf16_base(base: Path, train_rows: str, autocast: bool) -> None:
    """A step at 2e-5 moves every weight that has a gradient; in bfloat16 most of them would stay."""
    tower = 0.5 if train_rows == "all" else 0.0
    parts = parts_of(base, lora=LORA, base_precision="bf16", train_rows=train_rows, tower_lr_ratio=tower)
    frozen = [p for p in parts.model.parameters() if not p.requires_grad]
    assert frozen and {p.dtype for p in frozen} == {torch.bfloat16}
    assert {p.dtype for p in parts.model.parameters() if p.requires_grad} == {torch.float32}
    moved = step(parts, 2e-5, autocast)
    for name in [*projector_names(parts.model), "lora_"]:
        assert any(name in key for key in moved), name
    assert not tower or any(p.grad is not None and bool(p.grad.any()) for p in parts.tower)
    large = torch.cat([(b - a)[b.abs() > 0.01].flatten() for b, a in moved.values()])
    assert (large != 0).float().mean() > 0.8
    rows = "embed_tokens" if train_rows == "all" else "trainable_tokens_delta"
    assert any(rows in key for key in moved)


@pytest.mark.parametrize(
    "settings", [{}, {"lora": LORA}, {"lora": LORA, "train_rows": "new"}, {"only_projector": True}]
)
def test_a_frozen_tower_keeps_no_graph(base: Path, settings: dict[str, Any]) -> None:
    """With activations checkpointed; the gradients are those without."""
    parts = parts_of(base, gradient_checkpointing=True, **settings)
    seen: list[Tensor] = []
    projectors = [parts.model.get_submodule(n) for n in projector_names(parts.model)]
    mergers = {m for p in projectors for m in p.modules()}
    tower = vision_tower(parts.model.get_base_model() if "lora" in settings else parts.model)
    for module in tower.modules():
        if module not in mergers and module is not tower:
            module.register_forward_hook(lambda _, args, out: seen.extend(tensors_in(out)))
    parts.model.train()
    loss_of(parts).backward()
    assert seen and not any(tensor.requires_grad for tensor in seen)
    plain = parts_of(base, **settings)
    plain.model.train()
    loss_of(plain).backward()
    assert_same_gradients(parts.model, plain.model)
    assert all(p.grad is not None for m in projectors for p in m.parameters() if p.requires_grad)


def assert_same_gradients(first: Any, second: Any) -> None:
    expected = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        other = expected[name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:
            assert torch.allclose(parameter.grad, other, rtol=1e-4, atol=1e-6), name


def tensors_in(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output if isinstance(output, list | tuple) else ()
    return [tensor for value in values for tensor in tensors_in(value)]


@pytest.mark.parametrize("lora", [LoraSettings(), LORA])
def test_the_projector_trains_beside_a_frozen_tower(base: Path, lora: LoraSettings) -> None:
    """Qwen-VL keeps it, the merger, inside of the tower."""
    parts = parts_of(base, lora=lora)
    names = projector_names(parts.model)
    groups = parameter_groups(parts.model, (parts.tower, 0.0))
    trained = {id(p) for group in groups for p in group["params"]}
    assert not any(id(p) in trained for p in parts.tower)
    moved = step(parts, 1e-3)
    for name in names:
        assert any(key.startswith(name) and not torch.equal(b, a) for key, (b, a) in moved.items()), name
    assert not any(p.requires_grad for p in parts.tower) and parts.tower


def test_a_vocabulary_s_size_is_in_every_config(base: Path) -> None:
    """PaliGemma's config has a size of its own beside its language model's."""
    processor, model = read_processor(base), read_model(base, torch.float32)
    PerceptionVocabulary(8, (2, 2), 10).extend(model, processor.tokenizer)
    rows = len(model.get_input_embeddings().weight)
    sizes = [c.to_dict().get("vocab_size") for c in (model.config, model.config.get_text_config())]
    assert sizes[1] == rows and sizes[0] in (None, rows)


def test_embeddings_that_peft_unties_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    base = save_family("llava", tmp_path / "base", tied=True)
    processor, model = read_processor(base), read_model(base, torch.float32)
    vocabulary = PerceptionVocabulary(8, (2, 2), 10).extend(model, processor.tokenizer)

    def older(**settings: Any) -> Any:
        return real(**(settings | {"ensure_weight_tying": False}))

    real = peft.LoraConfig
    monkeypatch.setattr(peft, "LoraConfig", older)
    with pytest.raises(ValueError, match="unties the embeddings.*update peft"), pytest.warns(UserWarning):
        adapt(model, vocabulary, LORA, "all")


def test_bf16_is_for_frozen_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base_precision bf16 is for frozen weights.*lora.rank 0.*fp32"):
        FinetuneConfig(base_precision="bf16")
    base = save_family("qwen2_vl", tmp_path / "base", tied=True)
    parts = parts_of(base, base_precision="bf16", only_projector=True)
    trained = {p.dtype for p in parts.model.parameters() if p.requires_grad}
    assert trained == {torch.float32} and {p.dtype for p in tower_parameters(parts.model)} == {torch.bfloat16}
    assert all("merger" in name for name in step(parts, 1e-3))


@pytest.mark.parametrize(("own", "expected"), [(None, 1), (1, 1), (7, [1, 7]), ([7, 9], [1, 7, 9]), ([7, 1], [7, 1])])
def test_a_saved_model_stops_at_the_trained_end(tmp_path: Path, own: Any, expected: Any) -> None:
    base = save_family("internvl", tmp_path / "base")
    processor, model = read_processor(base), read_model(base, torch.float32)
    vocabulary = PerceptionVocabulary(8, (2, 2), 10).extend(model, processor.tokenizer)
    assert processor.tokenizer.eos_token_id == 1
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = own, None
    save_perception_model(model, processor, vocabulary, tmp_path / "model")
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").generation_config
    assert saved.eos_token_id == expected and saved.pad_token_id == processor.tokenizer.pad_token_id


def test_a_saved_model_keeps_the_base_s_declared_precision_and_drops_its_penalties(tmp_path: Path) -> None:
    """So that stock loading takes no more memory than the base, and engines draw what the package draws."""
    base = save_family("llava", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["dtype"] = config["text_config"]["dtype"] = "bfloat16"
    (base / "config.json").write_text(json.dumps(config))
    processor, model = read_processor(base), read_model(base, torch.float32)
    vocabulary = PerceptionVocabulary(8, (2, 2), 10).extend(model, processor.tokenizer)
    model.generation_config.repetition_penalty, model.generation_config.do_sample = 1.05, True
    precision = Precision(torch.bfloat16, precision_of(base).declared)
    save_perception_model(model, processor, vocabulary, tmp_path / "model", precision=precision)
    found = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert found.dtype == found.get_input_embeddings().weight.dtype == torch.bfloat16
    assert found.generation_config.repetition_penalty in (None, 1) and not found.generation_config.do_sample


# peft's own options


def test_the_tower_is_adapted_where_that_is_asked_for(base: Path) -> None:
    """Its own weights stay as they are, and the merged model has them changed by the update alone."""
    parts = parts_of(base, lora=LoraSettings(4, 8, tower=True), train_rows="new")
    tower = {id(p) for p in parts.tower}
    names = [name for name, p in parts.model.named_parameters() if p.requires_grad and "lora_" in name]
    inside = [n for n, m in vision_tower(parts.model.get_base_model()).named_modules() if hasattr(m, "lora_A")]
    projectors = [name for name in names if any(part in name for part in projector_names(parts.model.get_base_model()))]
    assert inside and not projectors
    assert not any(p.requires_grad for p in parts.model.parameters() if id(p) in tower)
    frozen = [p.detach().clone() for p in parts.tower]
    moved = step(parts, 0.1)
    assert any("lora_B" in name and any(place in name for place in inside) for name in moved)
    assert all(torch.equal(a, b) for a, b in zip(frozen, parts.tower, strict=True))


def test_targets_dropout_and_ranks_by_pattern(tmp_path: Path) -> None:
    base = save_family("llava", tmp_path)
    lora = LoraSettings(4, 8, dropout=0.25, targets=("q_proj", "down_proj"), ranks=(r"layers\.0\..*=2",))
    model = parts_of(base, lora=lora).model
    adapted = {name.removeprefix("base_model.model."): m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    assert {name.rpartition(".")[2] for name in adapted} == {"q_proj", "down_proj"}
    assert all("language_model" in name for name in adapted) and len(adapted) == 4
    for name, module in adapted.items():
        assert module.r["default"] == (2 if "layers.0." in name else 4)
        assert module.scaling["default"] == 2.0, "alpha / rank is the same"
        assert module.lora_dropout["default"].p == 0.25


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 4, "targets": ("c_attn",)}, "no linear layer has the name 'c_attn'; their names end in down_proj, "),
        ({"rank": 4, "ranks": ("conv=2",)}, "lora.ranks: 'conv' matches the end of no adapted layer, such as "),
        ({"rank": 4, "ranks": ("q_proj",)}, "lora.ranks must be PATTERN=RANK with a rank of at least 1, got 'q_proj'"),
        ({"rank": 4, "ranks": ("(=2",)}, "'(' is not a regular expression"),
        ({"dropout": 0.1}, "lora.dropout needs LoRA, and lora.rank is 0; set lora.rank"),
        ({"rank": 4, "dropout": 1.0}, "lora.dropout must be at least 0 and below 1, got 1.0"),
        ({"rank": -1}, "lora.rank must not be negative, got -1"),
    ],
)
def test_settings_of_lora_that_cannot_be_are_said_in_one_line(tmp_path: Path, settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        parts_of(save_family("llava", tmp_path), lora=LoraSettings(**settings))
    assert "\n" not in str(error.value)
