"""Check for native bfloat16 support."""

from __future__ import annotations

import platform

import torch


def computes_bf16(device: torch.device) -> bool:
    """Return True if a device multiplies bfloat16 natively.

    Without native instructions PyTorch converts element by element, which is many times slower than float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
