"""Attention for training on a CPU, where PyTorch's own kernel is slow for narrow heads in bfloat16."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "plain_matmul"


def plain_matmul_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Compute softmax(q k^T * scaling + mask) v in the precision of `query`, as two batched products.

    Args:
        query: (B, H, L, D); `key` and `value` are (B, H, S, D), with the same number of heads.
        attention_mask: (B, 1, L, S), True where a query attends to a key; None means causal.

    Returns:
        (B, L, H, D), and None for the weights.
    """
    batch, heads, length, width = query.shape
    seen = key.shape[2]
    if attention_mask is None:
        attention_mask = torch.ones(length, seen, dtype=torch.bool, device=query.device).tril(seen - length)
    bias = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
    bias = bias.masked_fill_(~attention_mask, torch.finfo(query.dtype).min / 2)
    scores = torch.baddbmm(
        bias.expand(batch, heads, length, seen).reshape(batch * heads, length, seen),
        query.reshape(batch * heads, length, width),
        key.reshape(batch * heads, seen, width).transpose(1, 2),
        alpha=scaling,
    )
    weights = nn.functional.dropout(torch.softmax(scores, -1), dropout, module.training)
    out = weights @ value.reshape(batch * heads, seen, width)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, plain_matmul_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_plain_attention(text_model: PreTrainedModel) -> None:
    """Use `plain_matmul_attention` in a text model that runs on a CPU and whose heads share no keys.

    A saved model does not keep this setting.
    """
    config = text_model.config
    shared = getattr(config, "num_key_value_heads", config.num_attention_heads) != config.num_attention_heads
    if text_model.device.type == "cpu" and not torch.cuda.is_available() and not shared:
        text_model.set_attn_implementation(NAME)
