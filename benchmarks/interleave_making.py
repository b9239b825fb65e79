"""Measure the quality of regions made from words and keywords (`python -m benchmarks.interleave_making`).

Drawn geometry problems with exact regions go through `train.prepare_interleave`, with keywords by rules, and with words
once as given and once as read by the OCR engine if it is installed. The cells of each step are compared with the exact
ones; the control has as many cells at random. Writes `benchmarks/results/interleave_making.json`.

With --check it prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bars import Bar, all_met
from perception.datasets.interleaved.jobs import read_shards
from perception.datasets.interleaved.making import MakingSettings
from perception.evaluation.bootstrap import bootstrap_interval
from perception.geometry.problems import GeometryProblem, covered_cells, problems
from train.loop.provenance import ROOT, provenance
from train.prepare_interleave import PrepareConfig, prepare

RESULT = ROOT / "benchmarks" / "results" / "interleave_making.json"
COUNT, IMAGE_SIZE, GRID, SEED = 100, 256, (8, 8), 4242
BARS = {"marks": 65.0, "rapidocr": 60.0}
"""Target F1 of cells, in points"""

Cells = Sequence[tuple[int, ...]]
"""Cells per step of a problem"""


@dataclass(frozen=True)
class Agreement:
    """Agreement of the cells that were found with the true cells."""

    precision: float
    """Over the cells of all steps of all problems"""
    recall: float
    f1: float
    problem_f1: Mapping[str, float]
    """Mean over problems, with its 95 % bootstrap interval"""
    steps_without_region: float
    """Share of the steps"""


def agreement(found: Sequence[Cells], true: Sequence[Cells]) -> Agreement:
    """Agreement of the cells that were found with the true ones, given per problem and step."""
    counts = np.array([_counts(one, other) for one, other in zip(found, true, strict=True)])  # (P, 3)
    hits, chosen, wanted = counts.sum(0)
    by_problem = 2 * counts[:, 0] / np.maximum(1, counts[:, 1] + counts[:, 2])
    steps = [cells for problem in found for cells in problem]
    return Agreement(
        precision=float(hits / max(1, chosen)),
        recall=float(hits / max(1, wanted)),
        f1=float(2 * hits / max(1, chosen + wanted)),
        problem_f1=asdict(bootstrap_interval(by_problem)),
        steps_without_region=sum(not cells for cells in steps) / max(1, len(steps)),
    )


def _counts(found: Cells, true: Cells) -> tuple[int, int, int]:
    hits = sum(len({*one} & {*other}) for one, other in zip(found, true, strict=True))
    return hits, sum(map(len, found)), sum(map(len, true))


def write_rows(drawn: Sequence[GeometryProblem], folder: Path) -> Path:
    """Write the problems as a user's own data: images, and one JSON object per line."""
    lines = []
    for number, problem in enumerate(drawn):
        Image.fromarray(problem.image).save(folder / f"{number}.png")
        marks = [{"text": mark.text, "box_xyxy": np.clip(mark.box, 0, 1).tolist()} for mark in problem.marks]
        row = {"image": f"{number}.png", "question": problem.question, "solution": problem.solution}
        lines.append(json.dumps({**row, "answer": str(problem.answer), "marks": marks}))
    data = folder / "rows.jsonl"
    data.write_text("\n".join(lines) + "\n")
    return data


def made_cells(data: Path, ocr: str, out: Path) -> list[Cells]:
    """Run the pipeline and return the cells per problem and step. Raises ValueError if a row is skipped."""
    report = prepare(PrepareConfig(str(data), str(out), making=MakingSettings(GRID, ocr, "rules")))
    if report.skipped:
        raise ValueError(f"{report.skipped} problems were skipped: {(out / 'skipped.jsonl').read_text()[:300]}")
    return [[step.cells for step in problem.steps] for problem in read_shards(out).problems]


def at_random(found: Sequence[Cells], seed: int) -> list[Cells]:
    """As many cells as were found, at random places."""
    rng = np.random.default_rng(seed)
    draw = lambda cells: tuple(rng.choice(GRID[0] * GRID[1], len(cells), replace=False).tolist())  # noqa: E731
    return [[draw(cells) for cells in problem] for problem in found]


def measure(engines: Sequence[str], count: int = COUNT) -> dict[str, Any]:
    """Agreement per engine, with its random control, per family, and seconds per problem."""
    drawn = list(problems("test", count, SEED, IMAGE_SIZE))
    true = [[covered_cells(step.regions, GRID) for step in problem.steps] for problem in drawn]
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(drawn, Path(folder))
        for engine in engines:
            began = time.perf_counter()
            found = made_cells(data, engine, Path(folder) / engine)
            seconds = (time.perf_counter() - began) / count
            families = sorted({problem.family for problem in drawn})
            of_family = {f: [n for n, problem in enumerate(drawn) if problem.family == f] for f in families}
            rows[engine] = {
                **asdict(agreement(found, true)),
                "random": asdict(agreement(at_random(found, SEED), true)),
                "seconds_a_problem": round(seconds, 3),
                "f1_by_family": {
                    name: agreement([found[n] for n in own], [true[n] for n in own]).f1
                    for name, own in of_family.items()
                },
            }
    return rows


def bars(rows: Mapping[str, Any]) -> list[Bar]:
    """Targets: F1 of each engine that was measured, and its margin over random cells."""
    found = []
    for engine, row in rows.items():
        found.append(Bar(f"F1 of cells, words by {engine}", 100 * row["f1"], BARS[engine]))
        found.append(Bar(f"above cells at random, words by {engine}", 100 * (row["f1"] - row["random"]["f1"]), 40.0))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets; write nothing")
    arguments = parser.parse_args(argv)
    engines = ["marks", *(["rapidocr"] if importlib.util.find_spec("rapidocr") else [])]
    rows = measure(engines)
    found = bars(rows)
    for bar in found:
        print(bar.line())
    if arguments.check:
        return 0 if all_met(found) else 1
    settings = {"problems": COUNT, "image_size": IMAGE_SIZE, "grid": list(GRID), "seed": SEED, "keywords": "rules"}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    record = {**settings, "rows": rows, "bars": [bar.to_json() for bar in found], **provenance()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
