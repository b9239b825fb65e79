"""The Markdown page of `benchmarks.interleaved_reasoning`, made from its result file and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.comparison_page import markdown_table
from perception.evaluation.bootstrap import Interval

_INTRO = """\
# Does looking again help?

Made by `python -m benchmarks.interleaved_reasoning`; do not edit.

Every arm begins with `models/geometry-base`, which reads figures and has never seen a solution, and learns on the same
{problems:,} problems: {text} steps of text-only solutions, then {second} steps of its own, batches of {batch_size};
RL is {reinforced} steps of GRPO behind that. All are asked the same {test} problems, greedily. Accuracy in %, the mean
over seeds, with 95 % bootstrap intervals over problems in brackets; gains are in points, paired by problem and seed.
"""
_SPLITS = {
    "test": "Families of the training, numbers never seen in it",
    "held-out": "Two families never seen in training",
}


def page(record: Mapping[str, Any]) -> str:
    """Tables by split, and the bars."""
    parts = [_INTRO.format(**record)]
    for split, rows in record["rows"].items():
        parts += [f"## {_SPLITS[split]}\n", _table(rows)]
    lines = [
        f"- {bar['name']}: {bar['figure']:.1f} points, bar {bar['bar']:g}, {'met' if bar['met'] else 'missed'}"
        for bar in record["bars"]
    ]
    return "\n".join([*parts, "## Bars\n", *lines, ""])


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
    return markdown_table(("arm", "right", "by seed", "F1 of the selection", *gains), cells)
