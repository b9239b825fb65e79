"""Measure what it costs to ask a small model in other words than it was taught (`python -m benchmarks.wordings`).

`models/aurora-tiny` is asked the same questions about held-out scenes of the standard style in the words that it was
taught and in others that people use: as they are, and put in the taught words (`perception.model.wording`), as
`PerceptionModel` does. Writes `benchmarks/results/wordings.json`, in five minutes on two cores.

With --check it asks fewer questions, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.bars import Bar, all_met
from perception.answers import POINT_LETTERS
from perception.evaluation.bootstrap import Interval, bootstrap_interval
from perception.evaluation.scenes import Item, scene_items
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "wordings.json"
MODEL = "aurora-tiny"
FIRST_SEED = 97_000_000
WORDINGS = {
    "count": (
        "How many {} are there?",
        "How many {} do you see?",
        "What number of {} is in the picture?",
        "Please count the {}.",
        "how many {}?",
    ),
    "depth": (
        "Which point is closest to the camera, {}?",
        "Which point is nearest, {}?",
        "Which of {} is closest to the viewer?",
        "which one is nearer: {}",
        "Which point is closest to the camera? {}",
    ),
}
"""By kind of question: the taught words first"""
AS_IT_IS, PUT = "as it is", "put in the taught words"
LOSS_BAR = 1.0
"""Most points that other words may cost"""


def worded(item: Item, wording: str) -> str:
    """Return an item's question in a wording."""
    if item.kind == "count":
        return wording.format(item.question.removeprefix("How many ").removesuffix(" are there?"))
    letters = POINT_LETTERS[: len(item.points_xy)]
    return wording.format(f"{', '.join(letters[:-1])} or {letters[-1]}")


def right(model: PerceptionModel, items: Sequence[Item], wording: str) -> Interval:
    """Return the share of right answers to items in a wording."""
    answers = model.ask_many([item.image for item in items], [worded(item, wording) for item in items])
    return bootstrap_interval([float(a.value == item.answer) for a, item in zip(answers, items, strict=True)])


def measure(model: PerceptionModel, num_count: int, num_depth: int) -> dict[str, Any]:
    """Return the accuracy by kind of question, wording and way of asking."""
    items = [item for item in scene_items("standard", num_count, num_depth, FIRST_SEED) if item.group != "depth-2"]
    taught, found = model.taught, dict[str, Any]()
    for kind, wordings in WORDINGS.items():
        asked = [item for item in items if item.kind == kind]
        rows = dict[str, Any]()
        for wording in wordings:
            ways = dict[str, Any]()
            for way, known in ((AS_IT_IS, ()), (PUT, taught)):
                model.taught = known
                ways[way] = asdict(right(model, asked, wording))
            rows[wording] = ways
            said = ", ".join(f"{way} {100 * one['mean']:.1f} %" for way, one in ways.items())
            print(f"{wording!r}: {said}")
        found[kind] = rows
    model.taught = taught
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    """Return the targets: no wording costs more than `LOSS_BAR` points when it is put in the taught words."""
    made = []
    for kind, rows in found.items():
        taught, *others = [100 * ways[PUT]["mean"] for ways in rows.values()]
        name = f"{kind}: the worst of {len(others)} other wordings over the taught one"
        made.append(Bar(name, min(others) - taught, -LOSS_BAR))
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer questions; write nothing")
    parser.add_argument("--num-count", type=int, default=200, help="counting questions")
    parser.add_argument("--num-depth", type=int, default=60, help="depth questions for each number of points")
    given = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(shipped(MODEL))
    found = measure(model, *((40, 10) if given.check else (given.num_count, given.num_depth)))
    made = bars(found)
    print(*(bar.line() for bar in made), sep="\n")
    if given.check:
        return 0 if all_met(made) else 1
    record = {"command": "python -m benchmarks.wordings", **provenance(), "model": f"models/{MODEL}", "right": found}
    RESULT.write_text(json.dumps(record | {"bars": [bar.to_json() for bar in made]}, indent=1) + "\n")
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
