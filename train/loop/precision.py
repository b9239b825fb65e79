"""Check for native bfloat16 support."""

from __future__ import annotations

import platform

import torch


def computes_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 natively.

    Without native instructions PyTorch converts element by element: on a CPU with only AVX2, the product of two
    512 x 512 matrices took 30 times as long in bfloat16 as in float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
