"""The Markdown page of `benchmarks.interleaved_reasoning`, made from its result file only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.comparison_page import markdown_table
from perception.evaluation.bootstrap import Interval

_INTRO = """\
# Does looking again help?

Made by `python -m benchmarks.interleaved_reasoning`; do not edit.

Each arm begins with `models/geometry-base`, which reads figures and has never seen a solution. All learn from the same
{problems:,} problems: {text} steps of text-only solutions, then {second} steps of their own, in batches of
{batch_size}. RL adds {reinforced} steps of GRPO. All answer the same {test} problems, greedily. Accuracy is in %, the
mean over seeds, with 95 % bootstrap intervals over {intervals_over} in brackets; gains are in points,
paired by problem and seed.
"""
_SPLITS = {
    "test": "Families seen in training, with numbers never seen",
    "held-out": "Two families never seen in training",
}


def page(record: Mapping[str, Any]) -> str:
    """The page: one table per split, and the targets."""
    parts = [_INTRO.format(**{"intervals_over": "problems", **record})]  # records of before do not say it
    for split, rows in record["rows"].items():
        parts += [f"## {_SPLITS[split]}\n", _table(rows)]
    lines = [
        f"- {bar['name']}: {bar['figure']:.1f} points, target {bar['bar']:g}, {'met' if bar['met'] else 'missed'}"
        for bar in record["bars"]
    ]
    return "\n".join([*parts, "## Targets\n", *lines, ""])


def _table(rows: list[dict[str, Any]]) -> str:
    gains = ("gain over text-only SFT", "gain over interleaved SFT")
    cells = [
        (
            row["arm"],
            Interval(**row["accuracy"]),
            ", ".join(f"{100 * value:.1f}" for value in row["by_seed"].values()),
            "-" if row["selection_f1"] is None else f"{row['selection_f1']:.2f}",
            *(str(Interval(**row[gain])) if gain in row else "-" for gain in gains),
        )
        for row in rows
    ]
    return markdown_table(("arm", "accuracy", "per seed", "F1 of the selection", *gains), cells)
