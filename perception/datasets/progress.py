"""Progress of long work, on standard error: a live bar on a terminal, elsewhere a plain line a minute."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress as Bar

FIRST_PLAIN_SECONDS, PLAIN_SECONDS = 10.0, 60.0
"""Seconds until the first plain line, and between two"""

T = TypeVar("T")


def hours(seconds: float) -> str:
    """Write a time as hours, minutes and seconds: 26:00:05 is more than a day."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


class Progress:
    """Shows how much of a task is done. A bar is gone when the task ends; short tasks print no plain line.

    Use:
        >>> with Progress("answering", total=2) as progress:
        ...     progress.advance()
    """

    def __init__(self, title: str, total: int, done: int = 0):
        """
        Args:
            done: how much of `total` was done before; it does not count for the time that is left.
        """
        console = Console(stderr=True)
        self._title, self._total, self._done, self._before = title, total, done, done
        self._console = console
        self._bar = Bar(console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task(title, total=total, completed=done)
        self._began = time.monotonic()
        self._due = self._began + FIRST_PLAIN_SECONDS

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Say that `count` more are done."""
        self._done += count
        self._bar.advance(self._task, count)
        now = time.monotonic()
        if not self._console.is_terminal and now >= self._due:
            self._due = now + PLAIN_SECONDS
            rate = (self._done - self._before) / (now - self._began)
            left = hours((self._total - self._done) / max(rate, 1e-9))
            said = f"{self._title}: {self._done} of {self._total}, {left} left"
            self._console.print(said, markup=False, highlight=False, soft_wrap=True)


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items and show how many of them are done.

    Args:
        total: number of items, where they have no length.
    """
    if total is None:
        assert isinstance(items, Collection), "items without a length need a total"
        total = len(items)
    with Progress(title, total) as progress:
        for item in items:
            yield item
            progress.advance()
