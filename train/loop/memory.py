"""Peak memory of a run."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes per unit of `ru_maxrss`: kilobytes on Linux, bytes on macOS."""


@dataclass(frozen=True)
class PeakMemory:
    """Largest resident sizes so far, in bytes."""

    process: int
    """peak of this process"""
    child: int
    """peak of the largest child that has ended; pages that it shares with this process are counted in both"""

    @property
    def total(self) -> int:
        """Peak of this process plus one such child: the most that a run with one data worker takes."""
        return self.process + self.child

    def __str__(self) -> str:
        return f"{self.process / 1e9:.2f} GB, its largest worker {self.child / 1e9:.2f} GB"


def release_memory() -> None:
    """Return free memory to the system (glibc only). Call it before a fork, or the child keeps a copy for good."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def peak_memory() -> PeakMemory:
    """Return the peaks of this process and of its finished children, as the kernel counted them."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return PeakMemory(own * _UNIT, children * _UNIT)
