"""What long work says where there is no terminal."""

from __future__ import annotations

import pytest

from perception.datasets import progress
from perception.datasets.progress import Progress, hours, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_after_ten_seconds_and_then_one_a_minute(clock: list[float], capsys: object) -> None:
    for number in track(range(20), "answering"):
        clock[0] += 9 if number == 0 else 6
    said = capsys.readouterr()  # type: ignore[attr-defined]
    assert said.out == ""
    # 15 s after the start 2 of 20 are done, so the other 18 take 135 s more; 66 s later 13
    assert said.err.splitlines() == ["answering: 2 of 20, 00:02:15 left", "answering: 12 of 20, 00:00:50 left"]


def test_what_was_done_before_says_nothing_about_the_pace(clock: list[float], capsys: object) -> None:
    with Progress("asking", total=30, done=20) as shown:
        clock[0] += 50
        shown.advance(5)
    assert capsys.readouterr().err == "asking: 25 of 30, 00:00:50 left\n"  # type: ignore[attr-defined]


def test_short_work_says_nothing(capsys: object) -> None:
    assert list(track((n for n in range(3)), "checking", 3)) == [0, 1, 2]
    assert capsys.readouterr().err == ""  # type: ignore[attr-defined]


def test_times_of_more_than_a_day_are_whole() -> None:
    assert [hours(seconds) for seconds in (0, 59.6, 3599, 93_605)] == ["00:00:00", "00:01:00", "00:59:59", "26:00:05"]
