"""Measure how often the shipped geometry-tiny is right (`python -m benchmarks.geometry_tiny`).

Asks about figures of the families it learned from, with numbers that it has not seen, and about figures of two families
that it has never seen. Writes accuracy, in total and per family, and the F1 of the selected regions to
`benchmarks/results/geometry_tiny.json`.

With --check it answers fewer problems, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.bars import Bar, all_met
from perception.evaluation.bootstrap import bootstrap_interval
from perception.model.shipped import shipped
from train.data.geometry import GeometryData, draw_problems
from train.interleave import read_interleaved
from train.loop.provenance import ROOT, provenance
from train.rl.answers import answer_problems, selection_f1

RESULT = ROOT / "benchmarks" / "results" / "geometry_tiny.json"
MAX_NEW_TOKENS = 160
SPLITS = ("test", "held-out")


def measure(split: str, count: int) -> dict[str, Any]:
    """Accuracy, in total and per family, and the F1 of the selection, on problems that no training draws."""
    found = read_interleaved(shipped("geometry-tiny"))
    problems = list(draw_problems(GeometryData(split=split, count=count, seed=1000)))
    answered = answer_problems(found.model.eval(), found.encoder, problems, MAX_NEW_TOKENS)
    by_family: dict[str, list[bool]] = defaultdict(list)
    for problem, outcome in zip(problems, answered, strict=True):
        by_family[problem.kind].append(outcome.right)
    interval = bootstrap_interval([float(outcome.right) for outcome in answered])
    return {
        "split": split,
        "problems": count,
        "accuracy": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "selection_f1": selection_f1(answered),
        "by_family": {kind: float(np.mean(right)) for kind, right in sorted(by_family.items())},
    }


def bars(row: dict[str, Any]) -> list[Bar]:
    return [
        Bar("right answers, numbers not seen in training", 100 * row["accuracy"], 50.0, "%"),
        Bar("F1 of the selection", 100 * row["selection_f1"], 70.0),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer problems; write nothing")
    arguments = parser.parse_args(argv)
    rows = [measure("test", 96)] if arguments.check else [measure(split, 400) for split in SPLITS]
    found = bars(rows[0])
    for bar in found:
        print(bar.line())
    if arguments.check:
        return 0 if all_met(found) else 1
    record = {"rows": rows, "bars": [bar.to_json() for bar in found], **provenance()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
