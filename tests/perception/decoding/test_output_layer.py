"""Logits in float32: the product over rows that a CUDA device computes, in a stand-in that a CPU can compute."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perception.decoding.output_layer import _in_rows, float32_linear

SHAPES = [(6,), (1, 6), (2, 3, 6), (0, 6), (2, 0, 6)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_any_shape_are_multiplied_and_put_back(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(9, 6).to(dtype), torch.randn(shape).to(dtype)
    seen = list[tuple[int, ...]]()

    def multiply(rows: Tensor) -> Tensor:
        seen.append(tuple(rows.shape))
        return torch.mm(rows.float(), weight.t().float())

    found = _in_rows(x, multiply)
    assert seen == [(x.numel() // 6, 6)] and found.shape == (*shape[:-1], 9)
    torch.testing.assert_close(found, float32_linear(x, weight))


def test_rows_need_not_lie_one_after_another_in_memory() -> None:
    x, weight = torch.randn(6, 3, 2).permute(2, 1, 0), torch.randn(9, 6)
    torch.testing.assert_close(_in_rows(x, lambda rows: rows @ weight.t()), x @ weight.t())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cuda_device_computes_what_the_cpu_does(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in [(2, 3, 64), (9, 64), (9,)])
    found = float32_linear(x.cuda(), weight.cuda(), bias.cuda())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), float32_linear(x, weight, bias), atol=1e-3, rtol=1e-3)
