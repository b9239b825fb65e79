"""AURORA-style against direct answers: the same questions, put to both, with intervals; and what the tokens are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table

from perception.evaluation.bootstrap import Interval, bootstrap_interval, paired_difference
from perception.evaluation.interventions import INTERVENTIONS, forced_chains
from perception.evaluation.scenes import DEPTH_COUNTS, Item, Outcome, evaluate_items, map_order_accuracy
from perception.model import PerceptionModel

GROUPS = {
    "counting": ("count",),
    **{f"depth, {n} points": (f"depth-{n}",) for n in DEPTH_COUNTS},
    "depth, 3-5 points": tuple(f"depth-{n}" for n in DEPTH_COUNTS if n > 2),
}
"""Rows of the tables: a name, and the groups of items it pools."""


@dataclass(frozen=True)
class Comparison:
    """Everything measured on one look. Intervals are by row name, then by arm."""

    look: str
    accuracy: dict[str, dict[str, Interval]]
    """arms: "direct" (the baseline), "chain" (AURORA-style, drawing first), "aurora, direct" (it, answering at once)"""
    gain: dict[str, Interval]
    """chain minus direct, paired"""
    interventions: dict[str, dict[str, Interval]]
    """rows "counting" and "depth, 3-5 points"; own span, then each intervention"""
    drawn_map_order: dict[str, float]
    """share of drawn maps that are highest at the right point, by group"""

    def to_json(self) -> dict:
        return asdict(self)


def _rows(items: Sequence[Item], name: str) -> list[int]:
    return [i for i, item in enumerate(items) if item.group in GROUPS[name]]


def _interval(outcomes: Sequence[Outcome], rows: Sequence[int]) -> Interval:
    return bootstrap_interval([float(outcomes[i].correct) for i in rows])


def compare(
    look: str, items: Sequence[Item], aurora: PerceptionModel, direct: PerceptionModel, with_interventions: bool = True
) -> tuple[Comparison, list[Outcome], list[Outcome]]:
    """Measures both models on `items`; returns the figures and the outcomes of the chain and of the baseline."""
    arms = {
        "direct": evaluate_items(direct, items, "direct", title=f"{look}: baseline"),
        "chain": evaluate_items(aurora, items, "chain", title=f"{look}: chains of perception"),
        "aurora, direct": evaluate_items(aurora, items, "direct", title=f"{look}: aurora, answering at once"),
    }
    rows = {name: _rows(items, name) for name in GROUPS}
    accuracy = {
        name: {arm: _interval(outcomes, rows[name]) for arm, outcomes in arms.items()} for name in GROUPS if rows[name]
    }
    gain = {
        name: paired_difference(
            [float(arms["chain"][i].correct) for i in rows[name]], [float(arms["direct"][i].correct) for i in rows[name]]
        )
        for name in accuracy
    }
    measured = [name for name in ("counting", "depth, 3-5 points") if rows[name]]
    interventions = {name: {"own": accuracy[name]["chain"]} for name in measured}
    for intervention in INTERVENTIONS if with_interventions else ():
        chosen = [i for name in measured for i in rows[name]]
        subset = [items[i] for i in chosen]
        forced = forced_chains(aurora, subset, intervention)
        outcomes = evaluate_items(aurora, subset, "chain", forced, title=f"{look}: {intervention} spans")
        for name in measured:
            places = [k for k, i in enumerate(chosen) if i in set(rows[name])]
            interventions[name][intervention] = _interval(outcomes, places)
    order = map_order_accuracy(aurora, items, arms["chain"])
    return Comparison(look, accuracy, gain, interventions, order), arms["chain"], arms["direct"]


def accuracy_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.look} look: accuracy, % [95 % interval]", title_justify="left")
    for column in ("task", "n", "direct", "chain of perception", "gain, points", "same model, direct"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, arms in comparison.accuracy.items():
        cells = [str(arms["direct"]), str(arms["chain"]), str(comparison.gain[name]), str(arms["aurora, direct"])]
        table.add_row(name, str(arms["direct"].count), *cells)
    return table


def intervention_table(comparison: Comparison) -> Table:
    table = Table(title=f"{comparison.look} look: accuracy when the span is replaced", title_justify="left")
    table.add_column("task")
    columns = list(next(iter(comparison.interventions.values())))
    for column in columns:
        table.add_column(column, justify="right")
    for name, cells in comparison.interventions.items():
        table.add_row(name, *(str(cells[column]) for column in columns))
    return table


def print_comparison(comparison: Comparison, console: Console) -> None:
    console.print(accuracy_table(comparison))
    if len(next(iter(comparison.interventions.values()))) > 1:
        console.print(intervention_table(comparison))
