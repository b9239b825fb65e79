"""Which records make up a step, and how its rows are grouped by length: pure functions of step, seed and numbers.

The rows of a step are drawn for all devices together, so two devices with a batch each see what one with twice the
batch sees. Each device cuts its rows into groups of like length, a forward each: rows are hardly padded, and every
forward of every device has its place whatever the rows (which sharded models need).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from perception.chains import ATOMIC, CHAIN, DIRECT, DIRECT_OTHER
from perception.datasets.records import Record
from train.data.curriculum import KindSchedule, kind_shares
from train.data.record_rows import RecordRows

KINDS: dict[str, tuple[str, ...]] = {"atomic": ATOMIC, "chain": CHAIN, "direct": (*DIRECT, DIRECT_OTHER)}


def available_shares(schedule: KindSchedule, progress: float, available: Sequence[bool]) -> np.ndarray:
    """Shares (3,) of KINDS at `progress` of a run; what data lack goes to what they have, in proportion."""
    shares = np.array(kind_shares(schedule, progress)) * np.array(available)
    if not shares.sum():  # the schedule asks for nothing that is there: all of it alike
        shares = np.array(available, dtype=float)
    return shares / shares.sum()


@dataclass(frozen=True)
class RecordPlan:
    """Indices of the records of every step. Each kind goes through its records once before any of them comes again."""

    rows: np.ndarray
    """(steps, rows of a step)"""

    @classmethod
    def draw(cls, tasks: Sequence[str], schedule: KindSchedule, steps: int, rows_a_step: int, seed: int) -> RecordPlan:
        """Of records with these tasks. Raises ValueError where there are none."""
        if not tasks:
            raise ValueError("there are no records to train on; see what the readers left out, and why")
        members = [np.array([n for n, task in enumerate(tasks) if task in known]) for known in KINDS.values()]
        available = [len(m) > 0 for m in members]
        rng = np.random.default_rng((seed, 0))
        shares = [available_shares(schedule, step / max(1, steps), available) for step in range(steps)]
        kinds = np.stack([rng.choice(len(KINDS), size=rows_a_step, p=share) for share in shares])  # (steps, rows)
        rows = np.zeros_like(kinds)
        for number, member in enumerate(members):
            places = kinds == number
            rows[places] = _dealt(member, int(places.sum()), np.random.default_rng((seed, 1, number)))
        return cls(rows)


def _dealt(members: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` of the members, shuffled anew each time all of them were dealt."""
    rounds = -(-count // max(1, len(members)))
    return np.concatenate([rng.permutation(members) for _ in range(rounds)] or [members[:0]])[:count]


def split_by_length(lengths: Sequence[int], groups: int) -> list[list[int]]:
    """Indices of rows in so many groups of like length, cut where the fewest tokens are padded; none is empty."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    if not 1 <= groups <= len(order):
        raise ValueError(f"{len(order)} rows cannot be cut into {groups} groups; one row a group is the most")
    # cost[g][n]: fewest tokens, padded ones included, of the n shortest rows in g groups, and where the last begins
    cost = [[(0.0, 0)] + [(np.inf, 0)] * len(order)]
    for group in range(1, groups + 1):
        row = [(np.inf, 0)] * group
        for end in range(group, len(order) + 1):
            starts = range(group - 1, end)
            row.append(min((cost[-1][s][0] + (end - s) * lengths[order[end - 1]], s) for s in starts))
        cost.append(row)
    cuts = [len(order)]
    for group in range(groups, 0, -1):
        cuts.append(cost[group][cuts[-1]][1])
    cuts.reverse()
    return [order[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]


@dataclass(frozen=True)
class RecordBatches(Dataset[dict[str, Tensor]]):
    """Forward `index` of a run, over all devices: step by step, part by part, device by device."""

    rows: RecordRows
    records: tuple[Record, ...]
    plan: RecordPlan
    batch_size: int
    """rows of a device before its gradients are added to those of its next part"""
    parts: int
    """of a step, on each device: gradient accumulation"""
    groups: int
    """of like length, of a part; a forward each"""
    world: int
    """devices"""
    _lengths: dict[int, int] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.plan.rows) * self.parts * self.groups * self.world

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        forward, rank = divmod(index, self.world)
        step_part, group = divmod(forward, self.groups)
        step, part = divmod(step_part, self.parts)
        return self.rows.batch([self.records[n] for n in self.members(step, rank * self.parts + part)[group]])

    def members(self, step: int, shard: int) -> list[list[int]]:
        """Records of each group of a part of a step."""
        drawn = self.plan.rows[step, shard * self.batch_size : (shard + 1) * self.batch_size].tolist()
        cut = split_by_length([self.length(n) for n in drawn], min(self.groups, self.batch_size))
        return [[drawn[i] for i in group] for group in cut]

    def length(self, number: int) -> int:
        """Tokens of a record, as far as they can be known without looking at its pixels."""
        if number not in self._lengths:
            self._lengths[number] = self.rows.length(self.records[number])
        return self._lengths[number]
