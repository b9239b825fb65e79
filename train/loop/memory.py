"""How much memory a run has taken at most."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from dataclasses import dataclass

_UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes to the unit of `ru_maxrss`: getrusage(2) gives kilobytes, macOS bytes."""


@dataclass(frozen=True)
class PeakMemory:
    """Largest resident sizes so far, in bytes."""

    process: int
    """of this process"""
    child: int
    """of the largest child that has ended; pages it shares with this process are counted in both"""

    @property
    def total(self) -> int:
        """Of this process with one such child: what a run with one data worker takes at most."""
        return self.process + self.child

    def __str__(self) -> str:
        return f"{self.process / 1e9:.2f} GB, its largest worker {self.child / 1e9:.2f} GB"


def release_memory() -> None:
    """Gives what is free back to the system (glibc only). Before a fork: else the child keeps a copy of it for good."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def peak_memory() -> PeakMemory:
    """The peaks of this process and of its children that have ended, as the kernel counted them."""
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return PeakMemory(own * _UNIT, children * _UNIT)
