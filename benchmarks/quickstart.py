"""Measure the gain that `make quickstart` shows, with several seeds (`python -m benchmarks.quickstart`).

Trains what the quickstart trains, with its defaults, once per seed, and asks both models of every seed the same
held-out questions of both styles, more than the quickstart does. Intervals are over questions and seeds together.
Trainings and outcomes stay in --runs, so that a benchmark that was stopped goes on. Writes
`benchmarks/results/quickstart_seeds.json`.

With --check it measures nothing: it prints one line per target of the stored result, and exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.bars import APART, Bar, all_met
from benchmarks.label_efficiency import BASELINES, DRAWN, ROWS, STYLES, interval, pick
from perception.evaluation.scenes import Item, evaluate_items, scene_items
from perception.model.perception_model import PerceptionModel
from train.finetune import train
from train.loop.provenance import ROOT, provenance
from train.quickstart import ARMS, QuickstartConfig
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "quickstart_seeds.json"
MODES: dict[str, Literal["direct", "chain"]] = {"direct": "direct", "aurora": "chain"}
NAMES = {"direct": BASELINES[0], "aurora": DRAWN}
BARS = {"counting": 8.0, "depth, 3-5 points": 15.0}
"""Least gain on the shifted style, in points, by row"""


def outcomes(
    config: QuickstartConfig, items: Mapping[str, Sequence[Item]], file: Path
) -> dict[str, dict[str, list[int]]]:
    """Train both arms, or take the finished models; return 1 or 0 per item, by style and arm. `file` keeps them."""
    if file.exists():
        stored: dict[str, dict[str, list[int]]] = json.loads(file.read_text())
        return stored
    found: dict[str, dict[str, list[int]]] = {style: {} for style in items}
    for arm in ARMS:
        name = f"seed {config.loop.seed}, {NAMES[arm]}"
        print(name, flush=True)
        train(config.training(arm))
        model = PerceptionModel.from_pretrained(config.training(arm).out)
        for style, asked in items.items():
            answers = evaluate_items(model, asked, MODES[arm], title=f"{name}, {style} style")
            found[style][arm] = [int(answer.correct) for answer in answers]
    write_whole(file, json.dumps(found))
    return found


def figures(correct: Mapping[str, Sequence[Sequence[int]]], items: Sequence[Item]) -> dict[str, Any]:
    """Return, by row, the accuracy of each arm and the gain of drawing first, paired, with their intervals."""
    found = {}
    for row in ROWS:
        at = pick(items, row)
        values = {arm: np.array(correct[arm], float)[:, at] for arm in ARMS}
        found[row] = {NAMES[arm]: vars(interval(values[arm])) for arm in ARMS}
        found[row]["gain"] = vars(interval(values["aurora"] - values["direct"]))
        found[row]["gain of each seed"] = (values["aurora"] - values["direct"]).mean(1).tolist()
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    items = {style: scene_items(style, given.num_count, given.num_depth) for style in STYLES}
    correct: dict[str, dict[str, list[list[int]]]] = {style: {arm: [] for arm in ARMS} for style in STYLES}
    for seed in given.seeds:
        folder = Path(given.runs) / f"seed-{seed}"
        config = QuickstartConfig(run_dir=str(folder))
        config = replace(config, loop=replace(config.loop, seed=seed))
        made = outcomes(config, items, folder / f"outcomes-{given.num_count}-{given.num_depth}.json")
        for style, arms in made.items():
            for arm, values in arms.items():
                correct[style][arm].append(values)
    return {
        "command": " ".join(["python -m benchmarks.quickstart", *given.words]),
        "seeds": given.seeds,
        "questions": {"counting": given.num_count, "depth, for each number of points": given.num_depth},
        **provenance(),
        "styles": {style: figures(correct[style], items[style]) for style in STYLES},
    }


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Return the targets, on the shifted style: the gains, and the arms' intervals apart."""
    found = []
    for row, least in BARS.items():
        cell = result["styles"]["shifted"][row]
        found.append(Bar(f"{row}: gain of drawing first", 100 * cell["gain"]["mean"], least))
        gap = cell[NAMES["aurora"]]["low"] - cell[NAMES["direct"]]["high"]
        found.append(Bar(f"{row}: gap between the intervals", 100 * gap, APART))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets of the stored result; measure nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num-count", type=int, default=800, help="counting questions per style")
    parser.add_argument("--num-depth", type=int, default=100, help="depth questions per style and number of points")
    parser.add_argument("--runs", default="runs/quickstart_seeds", help="folder of the trainings and their outcomes")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    given = parser.parse_args(argv)
    given.words = sys.argv[1:] if argv is None else argv
    if given.check:
        if not given.out.exists():
            print(f"{given.out} does not exist; measure first: python -m benchmarks.quickstart")
            return 1
        found = bars(json.loads(given.out.read_text()))
    else:
        result = measure(given)
        found = bars(result)
        write_whole(given.out, json.dumps({**result, "bars": [bar.to_json() for bar in found]}, indent=1) + "\n")
        print(f"written: {given.out}")
    print(*(bar.line() for bar in found), sep="\n")
    return int(given.check and not all_met(found))


if __name__ == "__main__":
    sys.exit(main())
