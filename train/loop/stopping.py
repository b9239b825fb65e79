"""Ends a program that Ctrl-C stops with one line, and a training run also with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from vqvae.files import DiskFull

_REPEATED = 2.0
"""Seconds within which a second signal is the first one, passed on by a launcher"""


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal, after it had saved a checkpoint; the message says which."""


class StopSignals:
    """Notes Ctrl-C, and SIGTERM where one process trains, so that a step is finished and saved before the run ends.

    A second Ctrl-C ends the run at once.
    """

    def __init__(self, with_sigterm: bool) -> None:
        self.asked = False
        """True once a signal has come"""
        self._numbers = [signal.SIGINT, signal.SIGTERM] if with_sigterm else [signal.SIGINT]
        self._before: dict[int, Any] = {}
        self._first = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python sets no handlers
            self._before = {number: signal.signal(number, self._note) for number in self._numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._first > _REPEATED:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._first = True, time.monotonic()


def end_in_one_line() -> None:
    """Let Ctrl-C, a full disk and an error that the user can mend end this program with one line, not a traceback."""
    before = sys.excepthook

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            told = str(error) if isinstance(error, Stopped) else "stopped; the same command goes on from what was saved"
            if told:
                print(told, file=sys.stderr)
        elif issubclass(kind, DiskFull | ValueError | FloatingPointError) and "\n" not in str(error):
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, error, trace)

    sys.excepthook = say
