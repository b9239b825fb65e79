"""Compare drawing first with direct answers on photographs (`python -m benchmarks.photos --photos FOLDER`).

Teacher models label the depth and the things of all photographs; answers are made from these labels, for the first N
photographs of the part to train on. Every arm starts from `models/photo-base`, which has learned to draw photographs'
depth maps, boxes and points and has never seen an answer, and takes as many steps:

- direct: learns to answer directly;
- auxiliary: the same, with tasks of perception between;
- drawing: learns to draw first; its maps are read by the package and by the model itself.

The direct arm of the first seed is also trained four times as long, lest it should only be too short.
All are asked about the photographs of the test part, whose answers are the teachers' too: they bound what can be
learned, and are no truth. Also measured is what the common start perceives: where it says that the marked points are,
and whether its maps are nearest at the right one of them. Trainings and outcomes stay in --runs, so that a benchmark
that was stopped goes on. Writes `benchmarks/results/photos.json`; numbers of answers that were measured before from the
same base, perhaps with other seeds, stay in it.

With --check it measures nothing: it prints one line per target of the stored result, and exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bars import Bar, all_met
from benchmarks.label_efficiency import (
    ARMS,
    BASELINES,
    DRAWN,
    ROWS,
    arm_config,
    figures,
    interval,
    joined,
    kept,
    pick,
    run_folder,
    trained_model,
    training_minutes,
)
from benchmarks.perception_tiny import interval_over_images, on_marked
from perception.datasets.photographs import Photographs
from perception.evaluation.photos import photo_items
from perception.evaluation.scenes import Item, evaluate_items
from perception.model.adapter import base_digest
from perception.model.folder import find_folder
from perception.model.perception_model import PerceptionModel
from train.aurora import AuroraConfig
from train.data.photos import PhotosConfig
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.loop.provenance import ROOT, provenance
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "photos.json"
SIZE = 320
STEPS = {100: 100, 500: 200}
"""Steps of 16 rows by number of answers"""
MOST_STEPS = 400
"""Steps of 16 rows with more answers"""
RATE = 1e-3
LONGER, LONGER_TITLE = 4, "directly, four times the steps"
FEW = 500
DEPTH_BAR, GAIN_BAR, NAMED_BAR = 85.0, 6.0, 97.0


def training(arm: str, answers: int, seed: int, given: argparse.Namespace, longer: int = 1) -> AuroraConfig:
    """Return the configuration of one training. Maps are learned as the start has learned them, from the image."""
    steps = longer * STEPS.get(answers, MOST_STEPS)
    data = SourcesConfig(scenes=ScenesConfig(0), photos=PhotosConfig(given.photos, SIZE, answers))
    config = arm_config(arm, given.base, run_folder(arm, answers, steps, seed, given), data, steps, RATE, seed)
    return replace(config, curriculum=replace(config.curriculum, maps_from_image=True))


def outcomes(config: AuroraConfig, arm: str, items: Sequence[Item]) -> dict[str, list[int]]:
    """Train, or take the finished model; return 1 or 0 per item, by curve. Both are kept."""
    file = Path(config.out).parent / "test.json"
    if file.exists():
        stored: dict[str, list[int]] = json.loads(file.read_text())
        return stored
    name = file.parent.name
    model = trained_model(config, name)
    found = {}
    for curve, (mode, read) in ARMS[arm].asked.items():
        answers = evaluate_items(model, items, mode, title=f"{name}: {curve}", read=read)
        found[curve] = [int(answer.correct) for answer in answers]
    write_whole(file, lambda partial: partial.write_text(json.dumps(found)))
    return found


def perceives(base: str, items: Sequence[Item]) -> dict[str, Any]:
    """Return the intervals of what the common start sees on photographs with 3 to 5 points."""
    model = PerceptionModel.from_pretrained(base)
    hits = on_marked(model, [item for item in items if len(item.points_xy) > 2])
    return {name: vars(interval_over_images(values)) for name, values in hits.items()}


def constants(items: Sequence[Item]) -> dict[str, float]:
    """Return how often one and the same answer, the most common one, is right: what any model must beat."""
    shares = {}
    for row in ROWS:
        answers = [items[i].answer for i in pick(items, row)]
        shares[row] = max(answers.count(answer) for answer in set(answers)) / len(answers)
    return shares


def accuracies(values: Sequence[int], items: Sequence[Item]) -> dict[str, Any]:
    """Return the interval of one training's outcomes in each row of the table."""
    rows = {row: pick(items, row) for row in ROWS}
    return {
        row: vars(interval(np.array([[values[i] for i in which]]), [id(items[i].scene) for i in which]))
        for row, which in rows.items()
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    every = photo_items(Photographs(given.photos, "test"), SIZE, each=given.each)
    items = [every[i] for row in ROWS for i in pick(every, row)]
    total = len(Photographs(given.photos))
    common = {
        "photographs": {"train": total, "test": len({id(item.scene) for item in items})},
        "questions": {row: len(pick(items, row)) for row in ROWS},
        "base": base_digest(find_folder(given.base))[:16],
    }
    before = kept(given, common)
    found, models = {}, []
    for answers in given.sizes:
        correct: dict[str, list[list[int]]] = {}
        for arm in ARMS:
            for seed in given.seeds:
                config = training(arm, min(answers, total), seed, given)
                models.append(config.out)
                made = outcomes(config, arm, items)
                for curve, values in made.items():
                    correct.setdefault(curve, []).append(values)
        config = training("direct", min(answers, total), given.seeds[0], given, LONGER)
        models.append(config.out)
        (values,) = outcomes(config, "direct", items).values()
        of_seeds = {"seeds": given.seeds, **figures(correct, items)}
        found[str(answers)] = of_seeds | {LONGER_TITLE: accuracies(values, items)}
    run = {
        "command": "python -m benchmarks.photos " + " ".join(given.words),
        "sizes": given.sizes,
        **provenance(),
        "training_minutes": training_minutes(models),
    }
    seen = {"the most common answer": constants(items), "start": perceives(given.base, items)}
    return joined(common | seen | {"runs": [run], "answers": found}, before)


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Return the targets."""
    found = [
        Bar("points named where they are", 100 * result["start"]["point named where it is"]["mean"], NAMED_BAR, "%")
    ]
    sizes = sorted(int(size) for size in result["answers"])
    depth = result["answers"][str(sizes[-1])]["accuracy"][DRAWN]["depth, 3-5 points"]["mean"]
    found.append(Bar(f"depth of 3 to 5 points, drawing first, {sizes[-1]} answers", 100 * depth, DEPTH_BAR, "%"))
    if FEW in sizes:
        gain = result["answers"][str(FEW)]["gain"]["depth, 3-5 points"]
        found.append(Bar(f"{FEW} answers, depth: drawing first over {gain['against']}", 100 * gain["mean"], GAIN_BAR))
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    said = [f"start: {name}: {_percent(row)}" for name, row in result["start"].items()]
    for answers, cell in result["answers"].items():
        said.append(f"{answers} answers, seeds: {', '.join(map(str, cell['seeds']))}")
        for row in ROWS:
            for curve in (*BASELINES, *ARMS["drawing"].asked):
                said.append(f"{answers} answers, {row}, {curve}: {_percent(cell['accuracy'][curve][row])}")
            said.append(f"{answers} answers, {row}, {LONGER_TITLE}, one seed: {_percent(cell[LONGER_TITLE][row])}")
    said += [
        f"always the same answer, {row}: {100 * share:.1f} %" for row, share in result["the most common answer"].items()
    ]
    return said


def _percent(row: Mapping[str, float]) -> str:
    return f"{100 * row['mean']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets of the stored result; measure nothing")
    parser.add_argument("--photos", help="folder of labelled photographs (docs/data.md shows the layout)")
    parser.add_argument("--base", default="models/photo-base", help="model that all arms start from")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 3610], help="numbers of answers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--each", type=int, help="most test questions of each kind; default: all")
    parser.add_argument("--runs", default="runs/photos/arms", help="folder of the trainings and their outcomes")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    given = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    given.words = ["FOLDER" if word == given.photos else word for word in words]  # its place is of no interest
    if given.check:
        if not given.out.exists():
            print(f"{given.out} does not exist; measure first: python -m benchmarks.photos --photos FOLDER")
            return 1
        found = bars(json.loads(given.out.read_text()))
        print(*(bar.line() for bar in found), sep="\n")
        return 0 if all_met(found) else 1
    if not given.photos:
        parser.error("give --photos FOLDER")
    try:
        result = measure(given)
    except ValueError as error:
        print(f"photos: {error}", file=sys.stderr)
        return 1
    result["bars"] = [bar.to_json() for bar in bars(result)]
    write_whole(given.out, json.dumps(result, indent=1) + "\n")
    print(*lines(result), f"written: {given.out}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
