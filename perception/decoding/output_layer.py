"""Logits in float32 from a model in half precision.

A half-precision output layer rounds its logits: in bfloat16 those around 20 are 0.125 apart, so that the best two are
often equal and the first id of the two wins. Hidden states differ in their last bits between batch sizes and between
one token and a window of tokens per forward pass, which then decides such ties. In float32 only near-ties of the
hidden states themselves are left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def float32_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` (.., D) @ weight (V, D).T + bias (V,) as float32 (.., V), whatever their precision."""
    if x.is_cuda and x.dtype == weight.dtype and x.dtype in (torch.float16, torch.bfloat16):
        product = _in_rows(x, partial(torch.mm, mat2=weight.t(), out_dtype=torch.float32))
    else:
        product = nn.functional.linear(x.float(), weight.float())
    return product if bias is None else product + bias.float()


def _in_rows(x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """`multiply`, which maps rows (N, D) to (N, V), over `x` (.., D)."""
    rows = multiply(x.reshape(-1, x.shape[-1]))
    return rows.view(*x.shape[:-1], rows.shape[-1])


def use_float32_logits(model: Any) -> None:
    """Let a transformers model in half precision compute its logits in float32; others stay as they are."""
    head = model.get_output_embeddings()
    half = type(head) is nn.Linear and head.weight.dtype in (torch.float16, torch.bfloat16)
    if half and not hasattr(head, "_hf_hook"):  # accelerate's hooks replace the layer's forward themselves
        head.forward = partial(_forward, head)


def _forward(head: nn.Linear, x: Tensor) -> Tensor:
    return float32_linear(x, head.weight, head.bias)
