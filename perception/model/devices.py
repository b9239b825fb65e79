"""Where models run: the device and the precision of their weights, by name."""

from __future__ import annotations

import torch

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def find_device(name: str | None = None) -> torch.device:
    """Return the device of that name ("cpu", "cuda", "cuda:1", "mps"); the best one there is for None.

    Raises:
        ValueError: for an unknown name, or a device that is not there.
    """
    best = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name is None:
        return best
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); give cpu{_or(best)}") from error
    return device


def _or(best: torch.device) -> str:
    return "" if best.type == "cpu" else f" or {best.type}"


def find_dtype(name: str) -> torch.dtype:
    """Return the floating-point type of a name in DTYPES. Raises ValueError for others."""
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(DTYPES)}")
    return DTYPES[name]
