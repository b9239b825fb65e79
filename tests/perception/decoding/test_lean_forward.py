"""The short way through a language model gives what the model gives, and is not taken where it might not."""

from __future__ import annotations

import pytest
import torch
from peft import LNTuningConfig, LoraConfig, TrainableTokensConfig, get_peft_model
from tiny_perception import build_perception
from torch import nn
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from perception.decoding.cache_slots import SlotCache, cache_key
from perception.decoding.lean_forward import LeanForward
from perception.model.perception_model import PerceptionModel

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, **more)),
    "mistral": lambda **more: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None, **more)),
    "qwen2": lambda **more: Qwen2ForCausalLM(Qwen2Config(**SIZES, **more)),
}


def build(name: str, dtype: torch.dtype = torch.float32, **more: object) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name](**more).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_computed_in_float32(dtype):
    built = build_perception(0)
    half = PerceptionModel(built.model.to(dtype), built.processor, built.vocabulary)
    head = half.model.get_output_embeddings()
    hidden = torch.randn(2, 3, head.in_features).to(dtype)
    exact = hidden.double() @ head.weight.double().t()
    assert head(hidden).dtype == torch.float32
    torch.testing.assert_close(head(hidden).double(), exact, rtol=1e-5, atol=1e-5)
    codes = torch.tensor([3, 9])
    half.decoder._head = head
    torch.testing.assert_close(half.decoder._head_over(hidden, codes).double(), exact[..., codes], rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(build_perception(0).model.get_output_embeddings()), "a float32 model is left as it is"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_states_and_cache_are_the_model_s(name, dtype):
    """Rows padded differently, junk slots between real ones, a window of several tokens."""
    model = build(name, dtype)
    lean = LeanForward.of(model)
    assert lean is not None
    prompt, window = torch.randint(50, (3, 9)), torch.randint(50, (3, 4))
    mask = torch.ones(3, 13, dtype=torch.long)
    mask[1, :4] = mask[2, 5:7] = 0
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    found = []
    for ours in (True, False):
        cache = DynamicCache(config=model.config)
        model(prompt, attention_mask=mask[:, :9], position_ids=positions[:, :9], **{cache_key(): cache})
        given = {"input_ids": window, "attention_mask": mask, "position_ids": positions[:, 9:]}
        if ours:
            slots = SlotCache(cache, room=2)
            states = lean(**given, cache=slots)
            found.append((states, slots.keys[1][:, :, :13], slots.values[1][:, :, :13]))
        else:
            states = model.model(**given, **{cache_key(): cache}, use_cache=True).last_hidden_state
            found.append((states, cache.layers[1].keys, cache.layers[1].values))
    near = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=near, atol=near)


def test_others_are_left_to_themselves():
    assert LeanForward.of(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))) is None
    assert LeanForward.of(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))) is None
    adapted = build("llama")
    get_peft_model(adapted, LoraConfig(target_modules=["q_proj"]))
    assert LeanForward.of(adapted) is None
    hooked = build("llama")
    hooked.model.layers[0].register_forward_hook(lambda *_: None)
    assert LeanForward.of(hooked) is None
    scaled = build("llama")
    scaled.model.layers[0].self_attn.scaling *= 2
    assert LeanForward.of(scaled) is not None, "what it reads from the model may differ"
    other = build("llama")
    theirs = other.model.layers[0].forward
    other.model.layers[0].forward = lambda *args, **kwargs: 2 * theirs(*args, **kwargs)
    assert LeanForward.of(other) is None, "the trial tells"


def test_decoding_takes_the_short_way():
    model = build_perception(0)
    from test_decoding import prompts

    batch = prompts(0)
    plain = model.generate_ids(batch, max_new_tokens=12, fast=False)
    assert model.generate_ids(batch, max_new_tokens=12) == plain
    assert model.decoder._lean is not None
    adapted = get_peft_model(model.model, LoraConfig(target_modules=r".*language_model.*q_proj"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 3)
    other = model.generate_ids(batch, max_new_tokens=12, fast=False)
    assert other != plain and model.generate_ids(batch, max_new_tokens=12) == other, "an adapter that came later counts"


@pytest.mark.parametrize(
    "config",
    [
        TrainableTokensConfig(target_modules=["embed_tokens"], token_indices=list(range(300, 310))),
        LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"]),
    ],
    ids=["rows", "norms"],
)
def test_rows_and_norms_that_peft_replaced_count(config):
    from test_decoding import prompts

    model, batch = build_perception(0), prompts(0)
    plain = model.generate_ids(batch, max_new_tokens=30)
    adapted = get_peft_model(model.model, config)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "trainable_tokens_delta" in name or "ln_tuning" in name:
                weight += torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    other = model.generate_ids(batch, max_new_tokens=30, fast=False)
    assert other != plain and model.generate_ids(batch, max_new_tokens=30) == other
    assert model.decoder._lean is None and LeanForward.of(model.model) is None


def test_compiled_forwards_give_the_same_ids():
    """Traced for windows and batches of every size; "eager" needs no C++ compiler."""
    from test_decoding import prompts

    model, batch = build_perception(0), prompts(0)
    plain = model.generate_ids(batch, max_new_tokens=12, fast=False)
    model.compile(backend="eager")
    assert model.generate_ids(batch, max_new_tokens=12) == plain
    assert model.generate_ids(batch[:1], max_new_tokens=12) == plain[:1]
    lean = model.decoder._lean
    assert lean is not None and lean._layers != lean._run_layers


def test_a_model_that_does_its_own_forwards_is_not_compiled(caplog):
    from test_decoding import prompts

    model, batch = build_perception(0), prompts(0)
    model.model.model.language_model.layers[0].register_forward_hook(lambda *_: None)
    model.compile(backend="eager")
    model.generate_ids(batch, max_new_tokens=4)
    assert "nothing is compiled" in caplog.text
