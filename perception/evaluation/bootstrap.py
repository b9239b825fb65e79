"""Bootstrap intervals of means and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % percentile bootstrap interval (Efron 1979) over `count` items."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def bootstrap_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Interval of the mean of `values` (N,). Raises ValueError for no values."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("an interval needs at least one value; the evaluation set is empty")
    rng = np.random.default_rng(seed)
    means = array[rng.integers(len(array), size=(RESAMPLES, len(array)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def accuracy_interval(right: Sequence[float]) -> Interval:
    """Interval of the share of right answers (N,), each 1 or 0; shares in between count as they are.

    Where all answers are right, or all are wrong, resampling says nothing; the end inside [0, 1] is then the exact one
    (Clopper and Pearson 1934). Raises ValueError for no values.
    """
    found = bootstrap_interval(right)
    reach = 0.025 ** (1 / found.count)
    if found.low == found.high == 1:
        return Interval(1.0, reach, 1.0, found.count)
    return Interval(0.0, 0.0, 1 - reach, found.count) if found.low == found.high == 0 else found


def paired_difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """Interval of the mean of `first - second`, paired by item. Raises ValueError where the lengths differ."""
    if len(first) != len(second):
        raise ValueError(f"paired values must be of one length, got {len(first)} and {len(second)}")
    return bootstrap_interval(np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64), seed)


def crossed_interval(values: Sequence[Sequence[float]] | np.ndarray, seed: int = 0) -> Interval:
    """Interval of the mean of `values` (S, N) of S trainings on the same N questions, over both together.

    Trainings and questions are resampled independently of each other (the pigeonhole bootstrap, Owen 2007), so that the
    interval holds for another seed as well as for other questions. `count` is S * N. Raises ValueError for no values.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"values must be (trainings, questions) with at least one of each, got {array.shape}")
    rng = np.random.default_rng(seed)
    trainings, questions = array.shape
    means = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        rows = array[rng.integers(trainings, size=trainings)].mean(0)
        means[n] = rows[rng.integers(questions, size=questions)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), int(array.size))
