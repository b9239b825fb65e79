"""Compare a model that draws first with one that answers directly, on the same questions, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from perception.evaluation.bootstrap import Interval, accuracy_interval, paired_difference
from perception.evaluation.replacement import INTERVENTIONS, forced_chains
from perception.evaluation.scenes import DEPTH_COUNTS, Item, ScoredAnswer, evaluate_items, map_order_accuracy
from perception.model.perception_model import PerceptionModel

GROUPS = {
    "counting": ("count",),
    **{f"depth, {n} points": (f"depth-{n}",) for n in DEPTH_COUNTS},
    "depth, 3-5 points": tuple(f"depth-{n}" for n in DEPTH_COUNTS if n > 2),
}
"""Groups of items that each row of the tables pools, by the row's name"""


@dataclass(frozen=True)
class Comparison:
    """Measurements on one style. Intervals are by row name, then by arm."""

    style: str
    accuracy: dict[str, dict[str, Interval]]
    """Arms: "direct" (the baseline), "chain" (AURORA-style, drawing first, the package reading the map), "chain, model
    reads" (the same, the model reading it; the depth rows alone), "aurora, direct" (the same model, not drawing)"""
    gain: dict[str, Interval]
    """Chain minus direct, paired by item"""
    interventions: dict[str, dict[str, Interval]]
    """Rows "counting" and "depth, 3-5 points"; accuracy with the model's own span, then with each intervention"""
    drawn_map_order: dict[str, float]
    """Share of drawn maps whose nearest marked point is the right one, by group"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """Read what `to_json` returned. Raises ValueError naming what is missing."""
        try:
            return cls(
                data["style"],
                _nested_intervals(data["accuracy"]),
                {name: Interval(**cell) for name, cell in data["gain"].items()},
                _nested_intervals(data["interventions"]),
                dict(data["drawn_map_order"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no stored comparison ({error}); measure it again") from None


def _nested_intervals(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Interval]]:
    return {name: {arm: Interval(**cell) for arm, cell in arms.items()} for name, arms in cells.items()}


def _rows(items: Sequence[Item], name: str) -> list[int]:
    return [i for i, item in enumerate(items) if item.group in GROUPS[name]]


def _evenly(rows: Sequence[int], most: int | None) -> list[int]:
    """At most `most` of the rows, evenly spaced, as rows are sorted by group."""
    count = len(rows) if most is None else min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _interval(outcomes: Sequence[ScoredAnswer], rows: Sequence[int]) -> Interval:
    return accuracy_interval([float(outcomes[i].correct) for i in rows])


def compare(
    style: str, items: Sequence[Item], aurora: PerceptionModel, direct: PerceptionModel, with_interventions: bool = True
) -> tuple[Comparison, list[ScoredAnswer], list[ScoredAnswer]]:
    """Measure both models on `items`; returns the comparison and the scored answers of the chain and the baseline."""
    at_once = evaluate_items(direct, items, "direct", title=f"{style}: baseline")
    chosen = INTERVENTIONS if with_interventions else ()
    comparison, chain = compare_with(style, items, aurora, [o.correct for o in at_once], chosen)
    return comparison, chain, at_once


def compare_with(
    style: str,
    items: Sequence[Item],
    aurora: PerceptionModel,
    direct_correct: Sequence[bool],
    interventions: Sequence[str] = INTERVENTIONS,
    max_replaced: int | None = None,
) -> tuple[Comparison, list[ScoredAnswer]]:
    """Compare as `compare` does, given which items the baseline answered correctly.

    Args:
        direct_correct: whether the baseline answered each item correctly, in the items' order.
        max_replaced: number of items per row whose spans are replaced, evenly spaced; None for all.

    Returns:
        The comparison and the scored answers of the chain.

    Raises:
        ValueError: where `direct_correct` has not one entry per item, or an intervention is unknown.
    """
    if len(direct_correct) != len(items):
        raise ValueError(f"direct_correct must have one entry per item, {len(items)}, got {len(direct_correct)}")
    chain = evaluate_items(aurora, items, "chain", title=f"{style}: chains of perception")
    of_depth = [i for i, item in enumerate(items) if item.kind == "depth"]
    read = evaluate_items(
        aurora, [items[i] for i in of_depth], "chain", title=f"{style}: maps read by the model", read="model"
    )
    read_correct = {i: float(outcome.correct) for i, outcome in zip(of_depth, read, strict=True)}
    without = evaluate_items(aurora, items, "direct", title=f"{style}: the same model, answering directly")
    correct = {
        "direct": [float(value) for value in direct_correct],
        "chain": [float(o.correct) for o in chain],
        "aurora, direct": [float(o.correct) for o in without],
    }
    rows = {name: _rows(items, name) for name in GROUPS}
    accuracy = {
        name: {arm: accuracy_interval([values[i] for i in rows[name]]) for arm, values in correct.items()}
        for name in GROUPS
        if rows[name]
    }
    for name, arms in accuracy.items():
        if all(i in read_correct for i in rows[name]):
            arms["chain, model reads"] = accuracy_interval([read_correct[i] for i in rows[name]])
    gain = {
        name: paired_difference([correct["chain"][i] for i in rows[name]], [correct["direct"][i] for i in rows[name]])
        for name in accuracy
    }
    chosen = {name: _evenly(rows[name], max_replaced) for name in ("counting", "depth, 3-5 points") if rows[name]}
    replaced = {name: {"own": _interval(chain, places)} for name, places in chosen.items()}
    subset = [items[i] for places in chosen.values() for i in places]
    for intervention in interventions:
        forced = forced_chains(aurora, subset, intervention)
        outcomes = evaluate_items(aurora, subset, "chain", forced, title=f"{style}: {intervention} spans")
        start = 0
        for name, places in chosen.items():
            replaced[name][intervention] = _interval(outcomes, range(start, start + len(places)))
            start += len(places)
    order = map_order_accuracy(aurora, items, chain)
    return Comparison(style, accuracy, gain, replaced, order), chain


def _compact(interval: Interval) -> str:
    """Mean and half the interval's width, short enough for six columns in a terminal of 80 characters."""
    return f"{100 * interval.mean:.1f} ±{50 * (interval.high - interval.low):.1f}"


HEADER = ("task", "n", "direct baseline", "drawing first", "gain, points", "model reads the map", "same model, direct")
"""Columns of `accuracy_rows`"""


def accuracy_rows(comparison: Comparison) -> list[tuple[object, ...]]:
    """Rows of the table of accuracy, with the columns of `HEADER`; "-" where an arm was not measured."""
    return [
        (
            name,
            arms["direct"].count,
            arms["direct"],
            arms["chain"],
            comparison.gain[name],
            *(arms.get(arm, "-") for arm in ("chain, model reads", "aurora, direct")),
        )
        for name, arms in comparison.accuracy.items()
    ]


def accuracy_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.style} style: accuracy, % ±95 % interval", title_justify="left")
    for column in ("task", "n", "direct", "drawing first", "gain", "model reads", "same, direct"):
        table.add_column(column, justify="left" if column == "task" else "right", no_wrap=column == "task")
    for row in accuracy_rows(comparison):
        table.add_row(*(_compact(cell) if isinstance(cell, Interval) else str(cell) for cell in row))
    return table


def intervention_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.style} style: accuracy when the span is replaced", title_justify="left")
    table.add_column("task", no_wrap=True)
    columns = list(next(iter(comparison.interventions.values())))
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in comparison.interventions.items():
        table.add_row(name, *(_compact(cells[column]) for column in columns))
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    console.print(accuracy_table(comparison))
    if len(next(iter(comparison.interventions.values()))) > 1:
        console.print(intervention_table(comparison))
