"""The forward pass of a Llama-shaped language model over a few tokens, without the wrapper modules.

On a window of guesses a small model spends much of its time in Python: making masks, wrappers, hooks. For language
models of Llama's, Mistral's and Qwen2's classes with nothing changed, this module computes the same result directly.
`LeanForward.of` verifies that on the model first; any other model runs its own forward pass. The weights are the
model's own, not copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.decoding.cache_slots import SlotCache, cache_key

_CLASSES = ("LlamaModel", "MistralModel", "Qwen2Model")


class LeanForward:
    """Computes last hidden states of tokens that follow a cache; made by `of`."""

    def __init__(self, text: Any):
        """`text`: the language model, without its output layer."""
        self.text = text
        self._layers: Callable[..., Tensor] = self._run_layers

    def compile(self, **settings: Any) -> None:
        """Compile the layers with `torch.compile`; dynamic=True by default."""
        self._layers = torch.compile(self._run_layers, **{"dynamic": True, **settings})

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any) -> LeanForward | None:
        """Make one for a model of transformers; None where it is of another class, was changed, or differs."""
        text = getattr(model.base_model, "language_model", model.base_model)
        if not _is_stock(text):
            return None
        from transformers import DynamicCache

        lean, found = cls(text), []
        ids = torch.arange(5, device=model.device)[None] % text.config.vocab_size  # (1, 5)
        places = torch.arange(5, device=model.device)[None]
        given = {"input_ids": ids[:, 2:], "attention_mask": torch.ones_like(ids), "position_ids": places[:, 2:]}
        for ours in (True, False):
            cache: Any = DynamicCache(config=text.config)
            text(input_ids=ids[:, :2], **{cache_key(): cache}, use_cache=True)
            if ours:
                found.append(lean(**given, cache=SlotCache(cache)))
            else:
                found.append(text(**given, **{cache_key(): cache}, use_cache=True).last_hidden_state)
        near = 1e-4 if found[0].dtype == torch.float32 else 1e-2
        return lean if torch.allclose(found[0], found[1], rtol=near, atol=near) else None

    @property
    def holds(self) -> bool:
        """True if the model is unchanged since `of` verified it, without LoRA or hooks."""
        return _is_stock(self.text)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: SlotCache) -> Tensor:
        """Hidden states (B, n, D) after the last norm; the cache grows by n slots.

        Args:
            input_ids: (B, n).
            attention_mask: (B, slots + n), 0 for slots that no token attends to.
            position_ids: (B, n).
            cache: with `slots` slots in use.
        """
        text, (batch, count) = self.text, input_ids.shape
        x = F.embedding(input_ids, text.embed_tokens.weight)  # (B, n, D)
        cos, sin = (part[:, None] for part in text.rotary_emb(x, position_ids))  # (B, 1, n, d)
        slots = attention_mask.shape[1]
        unseen = attention_mask.bool().logical_not()[:, None, None].expand(-1, -1, count, -1)
        unseen = unseen | torch.ones(count, slots, dtype=torch.bool, device=x.device).triu(slots - count + 1)
        bias = x.new_zeros(batch, 1, count, slots).masked_fill_(unseen, -torch.inf)
        start = cache.take(count)
        hidden: Tensor = self._layers(x, cos, sin, bias, cache.keys, cache.values, start)
        return hidden

    def _run_layers(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        all_keys: list[Tensor],
        all_values: list[Tensor],
        start: int,
    ) -> Tensor:
        """Run states x (B, n, D) through all layers and the last norm; writes the slots from `start`."""
        text, (batch, count), slots = self.text, x.shape[:2], bias.shape[-1]
        for number, layer in enumerate(text.layers):
            attention, mlp = layer.self_attn, layer.mlp
            y = _norm(layer.input_layernorm, x)
            pairs = torch.cat([_linear(attention.q_proj, y), _linear(attention.k_proj, y)], -1)
            pairs = pairs.view(batch, count, -1, attention.head_dim).transpose(1, 2)  # (B, heads of both, n, d)
            first, second = pairs.chunk(2, -1)
            pairs = pairs * cos + torch.cat([-second, first], -1) * sin
            queries, keys = pairs.split([text.config.num_attention_heads, text.config.num_key_value_heads], 1)
            values = _linear(attention.v_proj, y).view(batch, count, -1, attention.head_dim).transpose(1, 2)
            all_keys[number][:, :, start:slots] = keys
            all_values[number][:, :, start:slots] = values
            keys, values = all_keys[number][:, :, :slots], all_values[number][:, :, :slots]
            grouped = queries.shape[1] != keys.shape[1]
            found = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=bias, scale=attention.scaling, enable_gqa=grouped
            )  # (B, heads, n, d)
            x = x + _linear(attention.o_proj, found.transpose(1, 2).reshape(batch, count, -1))
            y = _norm(layer.post_attention_layernorm, x)
            x = x + _linear(mlp.down_proj, mlp.act_fn(_linear(mlp.gate_proj, y)) * _linear(mlp.up_proj, y))
        return _norm(text.norm, x)


def _norm(module: Any, x: Tensor) -> Tensor:
    if x.dtype == torch.float32:
        return F.rms_norm(x, x.shape[-1:], module.weight, module.variance_epsilon)
    normed: Tensor = module(x)  # in low precision the module rounds between its two products
    return normed


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias)


def _is_stock(text: Any) -> bool:
    """True if a module is of a known class and none of its parts were changed."""
    if type(text).__name__ not in _CLASSES or not type(text).__module__.startswith("transformers."):
        return False
    if set(getattr(text.config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        return False
    if getattr(text.config, "sliding_window", None) and getattr(text.config, "use_sliding_window", True):
        return False
    names = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    linears = [
        getattr(part, name)
        for layer in text.layers
        for part, some in zip((layer.self_attn, layer.mlp), names, strict=True)
        for name in some
    ]
    if any(type(linear) is not nn.Linear for linear in linears):  # LoRA's, quantised ones
        return False
    norms = [norm for layer in text.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    stock = type(text).__name__.replace("Model", "RMSNorm")
    if type(text.embed_tokens) is not nn.Embedding or any(type(n).__name__ != stock for n in (*norms, text.norm)):
        return False
    return not any(
        module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in text.modules()
    )
