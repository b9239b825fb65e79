"""Bootstrap intervals of means and of paired differences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

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


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> Interval:
    """Interval of the mean of `values` (N,). Raises ValueError for no values.

    Args:
        groups: (N,), such as the image that each question is about. Groups are resampled whole, since answers about
            one image go together; None if all values stand alone.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("an interval needs at least one value; the evaluation set is empty")
    rng = np.random.default_rng(seed)
    sums, counts = _by_group(array, groups)  # (G,) each
    drawn = rng.integers(len(sums), size=(RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def _by_group(values: np.ndarray, groups: Sequence[Hashable] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values (..., N) of each group, (..., G) and (G,)."""
    if groups is None:
        return values, np.ones(values.shape[-1])
    if len(groups) != values.shape[-1]:
        raise ValueError(f"each value needs its group, got {values.shape[-1]} values and {len(groups)} groups")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    own = [numbers[group] for group in groups]  # (N,)
    sums = np.zeros((*values.shape[:-1], len(numbers)))
    np.add.at(sums.T, own, values.T)
    return sums, np.bincount(own).astype(float)


def accuracy_interval(right: Sequence[float], groups: Sequence[Hashable] | None = None) -> Interval:
    """Interval of the share of right answers (N,), each 1 or 0; shares in between count as they are.

    Where all answers are right, or all are wrong, resampling says nothing; the end inside [0, 1] is then the exact one
    (Clopper and Pearson 1934), for as many answers as there are groups. One group of right and wrong answers says
    nothing of others either: its interval is [0, 1]. Raises ValueError for no values.

    Args:
        groups: see `bootstrap_interval`.
    """
    found = bootstrap_interval(right, groups=groups)
    independent = found.count if groups is None else len({*groups})
    reach = 0.025 ** (1 / independent)
    if found.low == found.high == 1:
        return Interval(1.0, reach, 1.0, found.count)
    if found.low == found.high == 0:
        return Interval(0.0, 0.0, 1 - reach, found.count)
    return found if independent > 1 else replace(found, low=0.0, high=1.0)


def paired_difference(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, seed: int = 0
) -> Interval:
    """Interval of the mean of `first - second`, paired by item. Raises ValueError where the lengths differ.

    Where no pair differs, both ends are the exact ones of a share of pairs of which none was seen.
    """
    if len(first) != len(second):
        raise ValueError(f"paired values must be of one length, got {len(first)} and {len(second)}")
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    found = bootstrap_interval(differences, seed)
    reach = 1 - 0.025 ** (1 / found.count)
    return found if differences.any() else Interval(0.0, -reach, reach, found.count)


def crossed_interval(
    values: Sequence[Sequence[float]] | np.ndarray, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> Interval:
    """Interval of the mean of `values` (S, N) of S trainings on the same N questions, over both together.

    Trainings and questions are resampled independently of each other (the pigeonhole bootstrap, Owen 2007), so that the
    interval holds for another seed as well as for other questions. `count` is S * N. Raises ValueError for no values.

    Args:
        groups: (N,), see `bootstrap_interval`.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"values must be (trainings, questions) with at least one of each, got {array.shape}")
    rng = np.random.default_rng(seed)
    sums, counts = _by_group(array, groups)  # (S, G), (G,)
    trainings, questions = sums.shape
    means = np.empty(RESAMPLES)
    for n in range(RESAMPLES):
        rows = sums[rng.integers(trainings, size=trainings)].mean(0)
        drawn = rng.integers(questions, size=questions)
        means[n] = rows[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(array.mean()), float(low), float(high), int(array.size))
