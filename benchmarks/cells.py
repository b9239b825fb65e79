"""Count blood cells by drawing their boxes first, or directly (`python -m benchmarks.cells --cells FOLDER`).

FOLDER holds photographs with boxes of red cells (RBC), white cells (WBC) and platelets in Pascal VOC's layout, with the
published split. Two arms learn from the same N photographs of the part to train on, drawn anew for each seed; each
photograph is asked about all three kinds of cells:

- direct: learns to answer directly;
- drawing: learns to draw the boxes first. Its count is the number of its boxes, or the number that it says after them.

Both start from one model that has learned to draw the boxes of drawn cells and has seen no real one
(models/cells-base), train its neck too, and see random parts of the photographs, turned and recoloured.
Each arm takes the number of steps with which its first seed counts best on the photographs of the validation part. All
are asked about the photographs of the test part. Intervals are over those and seeds together, so over which photographs
were labelled, too. Trainings and answers stay in --runs, so that a benchmark that was stopped goes on.
Writes `benchmarks/results/cells.json` and a figure beside it; numbers of photographs that were measured before from the
same base, perhaps with other seeds, stay in both.

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
from benchmarks.label_efficiency import arm_config, interval, joined, kept, run_folder, trained_model, training_minutes
from perception.chains import CHAIN_COUNT, DIRECT_COUNT
from perception.datasets.detection import CountRules
from perception.datasets.plurals import plural
from perception.datasets.records import Record, RecordSet
from perception.datasets.voc import read_voc
from perception.model.adapter import base_digest
from perception.model.folder import find_folder
from train.aurora import AuroraConfig
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.loop.provenance import ROOT, provenance
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "cells.json"
CELLS = {"red cells": "RBC", "white cells": "WBC", "platelets": "Platelets"}
"""Class of each kind of cell in the labels"""
ASKED = CountRules(max_count=60, every_class=True)
STEPS = (150, 300)
"""Numbers of steps of 16 rows"""
RATE = 1e-3
TAUGHT = ("direct", "drawing")
DIRECT, DRAWN, SAID = "directly", "boxes first", "boxes first, the model says"
CURVES = {DIRECT: "direct", DRAWN: "drawing", SAID: "drawing"}
"""The arm of each way to count"""
FEW = 50
EXACT_BAR, ERROR_BAR = 10.0, 30.0
Counts = dict[str, list[int | None]]
"""By way to count: a number per question, None where the answer holds none"""
Parts = dict[str, list[Record]]
"""By part of the split: the questions about it"""


def read_part(given: argparse.Namespace, part: str) -> tuple[Record, ...]:
    """Return the records of a part of the split, three per kind of cell and photograph."""
    root = Path(given.cells)
    return read_voc(
        root / "ImageSets" / "Main" / f"{part}.txt", root / "JPEGImages", AuroraConfig().num_locations, ASKED
    ).records


def labelled(records: Sequence[Record], count: int, seed: int) -> tuple[Record, ...]:
    """Return the records of `count` photographs, those that the seed draws."""
    images = list(dict.fromkeys(record.image for record in records))
    chosen = {images[n] for n in np.random.default_rng(seed).permutation(len(images))[:count]}
    return tuple(record for record in records if record.image in chosen)


def training(arm: str, count: int, steps: int, seed: int, given: argparse.Namespace) -> AuroraConfig:
    """Return the configuration of one training; its data are the records.jsonl of its folder."""
    folder = run_folder(arm, count, steps, seed, given)
    data = SourcesConfig(scenes=ScenesConfig(0), records=(str(folder / "records.jsonl"),), augment="turned")
    config = arm_config(arm, given.base, folder, data, steps, RATE, seed)
    return replace(config, depth_tokenizer=str(find_folder(given.base) / "depth_tokenizer"), tower_lr_ratio=1.0)


def counted(config: AuroraConfig, arm: str, records: Sequence[Record], part: str, parts: Parts) -> Counts:
    """Train on records, or take the finished model; return what it counts in a part of the split. Both are kept."""
    folder, questions = Path(config.out).parent, parts[part]
    file = folder / f"{part}.json"
    if file.exists():
        stored: Counts = json.loads(file.read_text())
        return stored
    folder.mkdir(parents=True, exist_ok=True)
    RecordSet(tuple(records)).write(folder / "records.jsonl")
    model = trained_model(config, folder.name)
    mode = "direct" if arm == "direct" else "chain"
    images = {record.image: record.image.load() for record in questions if record.image is not None}
    answers = model.ask_many(
        [images[q.image] for q in questions if q.image is not None], [q.example.question for q in questions], mode
    )
    said = [answer.value if isinstance(answer.value, int) else None for answer in answers]
    boxes: list[int | None] = [sum(len(s.codes) // 4 for s in a.spans if s.modality == "boxes") for a in answers]
    found: Counts = {DIRECT: said} if arm == "direct" else {DRAWN: boxes, SAID: said}
    write_whole(file, json.dumps(found))
    return found


def score(values: Sequence[int | None], questions: Sequence[Record]) -> float:
    """Return how wrong numbers are, relative to what is there: the mean of |number - right| / (1 + right)."""
    right = np.array([int(record.example.answer) for record in questions])
    return float(np.mean(np.abs(np.array([value or 0 for value in values]) - right) / (1 + right)))


def tune(
    arm: str, count: int, train: Sequence[Record], parts: Parts, given: argparse.Namespace
) -> tuple[int, dict[str, float]]:
    """Return the best number of steps for the first seed, and the scores on the validation part of those tried."""
    scores: dict[int, float] = {}
    for steps in STEPS:
        config = training(arm, count, steps, given.seeds[0], given)
        counts = counted(config, arm, labelled(train, count, given.seeds[0]), "val", parts)
        scores[steps] = score(next(iter(counts.values())), parts["val"])
        if scores[steps] > min(scores.values()):
            break
    return min(scores, key=lambda steps: scores[steps]), {str(steps): value for steps, value in scores.items()}


def pick(questions: Sequence[Record], kinds: Sequence[str]) -> list[int]:
    """Return the indices of the questions about kinds of cells."""
    texts = {f"How many {plural(CELLS[kind])} are there?" for kind in kinds}
    return [n for n, record in enumerate(questions) if record.example.question in texts]


def figures(counts: Mapping[str, Sequence[Sequence[int | None]]], questions: Sequence[Record]) -> dict[str, Any]:
    """Return the shares of exact counts and the mean absolute errors, by way to count, and what drawing gains.

    Args:
        counts: by way to count, numbers of (seeds, questions). A missing one is no exact count, and an error as 0 is.
    """
    right = [int(record.example.answer) for record in questions]
    exact = {
        c: np.array([[float(v == r) for v, r in zip(row, right, strict=True)] for row in counts[c]]) for c in CURVES
    }
    error = {
        c: np.array([[abs((v or 0) - r) for v, r in zip(row, right, strict=True)] for row in counts[c]]) for c in CURVES
    }
    few, red = pick(questions, ("white cells", "platelets")), pick(questions, ("red cells",))
    shown = [questions[n].image for n in few]
    rows = {kind: pick(questions, (kind,)) for kind in CELLS} | {"white cells and platelets": few}
    agree = [
        said == drawn
        for pair in zip(counts[SAID], counts[DRAWN], strict=True)
        for said, drawn in zip(*pair, strict=True)
    ]
    saved = 1 - error[DRAWN][:, red].mean() / max(error[DIRECT][:, red].mean(), 1e-9)
    return {
        "exact": {
            c: {row: vars(interval(exact[c][:, at], [questions[n].image for n in at])) for row, at in rows.items()}
            for c in CURVES
        },
        "error": {c: {row: vars(interval(error[c][:, at])) for row, at in rows.items()} for c in CURVES},
        "gain in exact counts, white cells and platelets": vars(
            interval(exact[DRAWN][:, few] - exact[DIRECT][:, few], shown)
        ),
        "fewer wrong by, red cells": vars(interval(error[DIRECT][:, red] - error[DRAWN][:, red])),
        "error saved, red cells": float(saved),
        "the number said is the number of boxes": float(np.mean(agree)),
    }


def constants(questions: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return what one and the same number gets, by kind of cell: the most common one, and the median for the error."""
    found = {}
    for kind in CELLS:
        right = np.array([int(questions[n].example.answer) for n in pick(questions, (kind,))])
        shares = [float((right == number).mean()) for number in set(right.tolist())]
        found[kind] = {"exact": max(shares), "error": float(np.abs(right - np.median(right)).mean())}
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    parts = {
        part: [record for record in read_part(given, part) if record.example.task == DIRECT_COUNT]
        for part in ("val", "test")
    }
    questions = parts["test"]
    train = read_part(given, "train")
    total = len({record.image for record in train})
    drawn = [len(record.example.target[0].codes) // 4 for record in train if record.example.task == CHAIN_COUNT]  # type: ignore[union-attr]
    if max(given.sizes) > total:
        raise ValueError(f"--sizes holds {max(given.sizes)}, and there are {total} photographs to train on")
    for kind, name in CELLS.items():
        if not pick(questions, (kind,)):
            raise ValueError(f"{given.cells} has no question about {kind} to test on; call them {name} in the labels")
    photographs = {"train": total, "test": len({record.image for record in questions})}
    common = {"photographs": photographs, "base": base_digest(find_folder(given.base))[:16]}
    before = kept(given, common, "labelled")
    found, models = {}, []
    for count in given.sizes:
        counts: dict[str, list[list[int | None]]] = {}
        chosen = {}
        for arm in TAUGHT:
            steps, scores = tune(arm, count, train, parts, given)
            chosen[arm] = {"steps": steps, "scores": scores}
            models += [training(arm, count, int(tried), given.seeds[0], given).out for tried in scores]
            for seed in given.seeds:
                config = training(arm, count, steps, seed, given)
                models.append(config.out)
                for curve, values in counted(config, arm, labelled(train, count, seed), "test", parts).items():
                    counts.setdefault(curve, []).append(values)
        found[str(count)] = {"seeds": given.seeds, "chosen": chosen} | figures(counts, questions)
    run = {
        "command": "python -m benchmarks.cells " + " ".join(given.words),
        "sizes": given.sizes,
        **provenance(),
        "training_minutes": training_minutes(models),
    }
    result = common | {
        "most boxes of a question to train on": max(drawn),
        "one and the same number": constants(questions),
        "runs": [run],
        "labelled": found,
    }
    return joined(result, before, "labelled")


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Return the targets. Raises ValueError for a result without the number of photographs that they are for."""
    if str(FEW) not in result["labelled"]:
        raise ValueError(f"the targets are for {FEW} photographs, and the result has none; measure with --sizes {FEW}")
    cell = result["labelled"][str(FEW)]
    gain = cell["gain in exact counts, white cells and platelets"]["mean"]
    return [
        Bar(f"{FEW} photographs, exact counts of white cells and platelets: gain over directly", 100 * gain, EXACT_BAR),
        Bar(f"{FEW} photographs, error of red cells saved", 100 * cell["error saved, red cells"], ERROR_BAR, "%"),
    ]


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    said = []
    for count, cell in result["labelled"].items():
        said.append(f"{count} photographs, seeds: {', '.join(map(str, cell['seeds']))}")
        for arm, choice in cell["chosen"].items():
            tried = ", ".join(f"{value:.2f} after {steps}" for steps, value in choice["scores"].items())
            said.append(f"{count} photographs, {arm}: {choice['steps']} steps (relative error: {tried})")
        for kind in CELLS:
            for curve in CURVES:
                exact, error = cell["exact"][curve][kind], cell["error"][curve][kind]
                said.append(
                    f"{count} photographs, {kind}, {curve}: exact {100 * exact['mean']:.1f} % "
                    f"({100 * exact['low']:.1f} to {100 * exact['high']:.1f}), wrong by {error['mean']:.2f} "
                    f"({error['low']:.2f} to {error['high']:.2f})"
                )
    for kind, row in result["one and the same number"].items():
        said.append(f"always the same number, {kind}: exact {100 * row['exact']:.1f} %, wrong by {row['error']:.2f}")
    return said


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the curves: exact counts of the few kinds, and the error of the many red cells. A line shows what always the
    same number gets."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted(int(size) for size in result["labelled"])
    panels_of = (
        ("exact", ("white cells", "platelets"), "exact counts, %", 100),
        ("error", ("red cells",), "mean absolute error, cells", 1),
    )
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for panel, (measure_of, kinds, label, scale) in zip(panels, panels_of, strict=True):
        row = " and ".join(kinds)
        always = np.mean([scale * result["one and the same number"][kind][measure_of] for kind in kinds])
        panel.axhline(always, color="grey", linestyle="--", linewidth=1, label="always the same number")
        for shift, curve in zip((0.96, 1.0, 1.04), CURVES, strict=True):  # side by side, so that all can be seen
            cells = [result["labelled"][str(n)][measure_of][curve][row] for n in sizes]
            means = np.array([scale * cell["mean"] for cell in cells])
            reach = np.array([[scale * abs(cell["mean"] - cell[end]) for cell in cells] for end in ("low", "high")])
            panel.errorbar(shift * np.array(sizes), means, reach, marker="o", capsize=3, label=curve)
        panel.set(title=row, xlabel="photographs to learn from", ylabel=label, xscale="log", ylim=(0, None))
        panel.set_xlim(0.7 * sizes[0], 1.4 * sizes[-1])
        panel.set_xticks(sizes, [str(n) for n in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets of the stored result; measure nothing")
    parser.add_argument("--cells", help="folder of the photographs: Annotations, ImageSets and JPEGImages")
    parser.add_argument("--base", default="models/cells-base", help="model that both arms start from")
    parser.add_argument("--sizes", type=int, nargs="+", default=[20, 50, 100, 205], help="numbers of photographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/cells/arms", help="folder of the trainings and their answers")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    given = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    given.words = ["FOLDER" if word == given.cells else word for word in words]  # its place is of no interest
    try:
        if given.check:
            if not given.out.exists():
                raise ValueError(
                    f"{given.out} does not exist; measure first: python -m benchmarks.cells --cells FOLDER"
                )
            found = bars(json.loads(given.out.read_text()))
            print(*(bar.line() for bar in found), sep="\n")
            return 0 if all_met(found) else 1
        if not given.cells:
            parser.error("give --cells FOLDER")
        result = measure(given)
    except ValueError as error:
        print(f"cells: {error}", file=sys.stderr)
        return 1
    if str(FEW) in result["labelled"]:
        result["bars"] = [bar.to_json() for bar in bars(result)]
    write_whole(given.out, json.dumps(result, indent=1) + "\n")
    draw(result, given.out.with_suffix(".png"))
    print(*lines(result), f"written: {given.out}, and its figure", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
