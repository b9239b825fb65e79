"""Plain attention for CPUs: the numbers of the attention it stands in for."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from train.models.attention import NAME, use_plain_attention


def make_model(key_value_heads: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=key_value_heads,
    )
    return LlamaForCausalLM(config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="plain attention is for machines without a GPU")
@pytest.mark.parametrize("padded", [False, True])
def test_logits_and_gradients_are_those_of_sdpa(padded: bool) -> None:
    ids = torch.randint(32, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 5:] = 0
        mask[1, :2] = 0
    results = []
    for plain in (False, True):
        model = make_model()
        if plain:
            use_plain_attention(model.model)
            assert model.model.config._attn_implementation == NAME
        logits = model(ids, attention_mask=mask).logits[mask.bool()]
        logits.square().sum().backward()
        results.append((logits.detach(), model.model.layers[0].self_attn.q_proj.weight.grad))
    for sdpa, plain_one in zip(*results, strict=True):
        torch.testing.assert_close(plain_one, sdpa, rtol=1e-4, atol=1e-5)


def test_models_whose_heads_share_keys_keep_their_attention() -> None:
    model = make_model(key_value_heads=1)
    use_plain_attention(model.model)
    assert model.model.config._attn_implementation == "sdpa"
