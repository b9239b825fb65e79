"""Measure reinforcement by rewards for perception (`python -m benchmarks.perception_rewards`).

The shipped AURORA model is reinforced with GRPO (`train.reinforce_scenes`) on a style of scenes that it was not trained
on: rewarded for the count and for the overlap of its boxes with the true ones and, as a control, for the count only.
All models answer the same held-out questions of that style, drawing first. Seeds differ only in the order of questions
and in the chains that are drawn. Trained models stay in --runs, so a run that was stopped goes on. Writes
`benchmarks/results/perception_rewards.json`.

With --check it measures what --runs holds, or trains with one seed, prints one line per target, writes nothing, and
exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bars import Bar, all_met
from perception.evaluation.bootstrap import crossed_interval
from perception.evaluation.scenes import Item, evaluate_items, scene_items
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped
from perception.tokenizers.boxes import BoxTokenizer
from train.loop.provenance import ROOT, provenance
from train.reinforce_scenes import SceneReinforceConfig, train
from train.rl.rewards import box_iou

RESULT = ROOT / "benchmarks" / "results" / "perception_rewards.json"
RUNS = ROOT / "runs" / "perception_rewards"
BEFORE, BOTH, COUNT = "before", "count and boxes", "count alone"
ARMS = {BOTH: True, COUNT: False}
FIRST_SEED = 96_000_000


def recipe(arm: str, seed: int, folder: Path, steps: int) -> SceneReinforceConfig:
    place = folder / f"{arm.replace(' ', '-')}-{seed}"
    config = SceneReinforceConfig(out=str(place / "model"), run_dir=str(place), reward_perception=ARMS[arm])
    return replace(config, loop=replace(config.loop, steps=steps, seed=seed))


def asked(folder: Path, items: Sequence[Item]) -> dict[str, list[float]]:
    """Per question: whether the answer is right, and the IoU of the boxes drawn on the way."""
    model = PerceptionModel.from_pretrained(folder)
    boxes = BoxTokenizer(model.vocabulary.num_locations)
    found: dict[str, list[float]] = {"right": [], "iou": []}
    for item, outcome in zip(items, evaluate_items(model, items, "chain"), strict=True):
        drawn = [boxes.decode(span.codes) for span in outcome.answer.spans if span.modality == "boxes"]
        found["right"].append(float(outcome.correct))
        found["iou"].append(box_iou(np.concatenate(drawn) if drawn else np.zeros((0, 4)), item.boxes_xyxy))
    return found


def measure(folder: Path, seeds: Sequence[int], steps: int, count: int, arms: Sequence[str]) -> dict[str, Any]:
    """Answers per arm and seed; arms are trained if they were not."""
    items = scene_items("shifted", count, 0, FIRST_SEED)
    answers: dict[str, Any] = {BEFORE: {0: asked(shipped("aurora-tiny"), items)}}
    for arm in arms:
        answers[arm] = {}
        for seed in seeds:
            config = recipe(arm, seed, folder, steps)
            if not (Path(config.out) / "training.json").exists():
                train(config)
            answers[arm][seed] = asked(Path(config.out), items)
    return answers


def rows_of(answers: dict[str, Any]) -> list[dict[str, Any]]:
    """Means with intervals over seeds and questions together, and the gain over the model before."""
    rows = []
    for arm, seeds in answers.items():
        row: dict[str, Any] = {"arm": arm, "by_seed": {seed: float(np.mean(a["right"])) for seed, a in seeds.items()}}
        for name, values in (("accuracy", "right"), ("box_iou", "iou")):
            ours = np.array([a[values] for a in seeds.values()])  # (S, N)
            row[name] = vars(crossed_interval(ours))
            if arm != BEFORE:
                row[f"{name}_gain"] = vars(crossed_interval(ours - answers[BEFORE][0][values]))
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets with one seed; write nothing")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trainings")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--questions", type=int, default=400)
    given = parser.parse_args(argv)
    seeds, arms = ([0], [BOTH]) if given.check else (given.seeds, list(ARMS))
    rows = rows_of(measure(given.runs, seeds, given.steps, given.questions, arms))
    both = next(row for row in rows if row["arm"] == BOTH)
    bars = [
        Bar("counting, low end of the gain", 100 * both["accuracy_gain"]["low"], 0.0, "points"),
        Bar("overlap of boxes, low end of the gain", 100 * both["box_iou_gain"]["low"], 0.0, "points"),
    ]
    for bar in bars:
        print(bar.line())
    if given.check:
        return int(not all_met(bars))
    result = {"steps": given.steps, "seeds": given.seeds, "questions": given.questions, "rows": rows}
    result |= {"bars": [bar.to_json() for bar in bars], **provenance()}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
