"""Measure how often a shipped model of figures is right (`python -m benchmarks.geometry_tiny`).

Asks geometry-tiny, or with --model chart-tiny that one, about figures of the families it learned from, with numbers
that it has not seen, and about figures of two families that it has never seen. Writes accuracy, in total and per
family, accuracy where each look is given its true region, the F1 of the selected regions and the visual tokens read per
answer to `benchmarks/results/geometry_tiny.json` or `chart_tiny.json`.

With --check it answers fewer problems, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.bars import Bar, all_met
from benchmarks.interleaved_reasoning import Arm, chooser
from perception.evaluation.bootstrap import bootstrap_interval
from perception.geometry.problems import Split
from perception.model.shipped import shipped
from train.data.geometry import GeometryData, read_problems
from train.interleave import read_interleaved
from train.loop.provenance import ROOT, provenance
from train.rl.answers import answer_problems, selection_f1

RESULTS = ROOT / "benchmarks" / "results"
MODELS = {"geometry-tiny": GeometryData(), "chart-tiny": GeometryData(problems="fine", image_size=512)}
"""The problems that each model learned"""
MAX_NEW_TOKENS = 160
SPLITS: tuple[Split, ...] = ("test", "held-out")


def measure(model: str, split: Split, count: int) -> dict[str, Any]:
    """Accuracy, in total and per family, and the F1 of the selection, on problems that no training draws."""
    found = read_interleaved(shipped(model))
    problems = list(read_problems(replace(MODELS[model], split=split, count=count, seed=1000)))
    interleaved = found.model.eval()
    answered = answer_problems(interleaved, found.encoder, problems, MAX_NEW_TOKENS)
    true = chooser(Arm("interleaved", oracle=True), MODELS[model].grid, 0, interleaved.selector.select)
    given = answer_problems(interleaved, found.encoder, problems, MAX_NEW_TOKENS, choose=true)
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
        "given_true_regions": vars(bootstrap_interval([float(outcome.right) for outcome in given])),
        "selection_f1": selection_f1(answered),
        "visual_tokens": float(np.mean([outcome.visual_tokens for outcome in answered])),
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
    parser.add_argument("--model", choices=list(MODELS), default="geometry-tiny", help="default: geometry-tiny")
    arguments = parser.parse_args(argv)
    model = arguments.model
    rows = [measure(model, "test", 96)] if arguments.check else [measure(model, split, 400) for split in SPLITS]
    found = bars(rows[0])
    for bar in found:
        print(bar.line())
    if arguments.check:
        return 0 if all_met(found) else 1
    record = {"rows": rows, "bars": [bar.to_json() for bar in found], **provenance()}
    path = RESULTS / f"{model.replace('-', '_')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
