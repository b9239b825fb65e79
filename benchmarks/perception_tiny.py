"""Measure what models/perception-tiny perceives, without any answer seen (`python -m benchmarks.perception_tiny`).

The model draws the depth maps of held-out scenes with 3 to 5 lettered points, reads them at these points, and draws the
boxes of things. Counted are the maps that are nearest at the right one of the true points, the points that are named
where they are, the nearest points that are right, and the lists of boxes of the right length: so answers from
perception alone. Both styles are written to `benchmarks/results/perception_tiny.json`.

With --check it looks at fewer scenes of the shifted style, prints one line per target, writes nothing, and exits 1 if a
target is missed. --model FOLDER measures another model and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from benchmarks.bars import Bar, all_met
from perception.answers import POINT_LETTERS, asks_for_farthest
from perception.chains import ATOMIC_DEPTH_QUESTION, Answer, atomic_boxes, readings_question
from perception.evaluation.bootstrap import Interval, accuracy_interval
from perception.evaluation.scenes import Item, depth_tokenizer_of, scene_items
from perception.model.perception_model import PerceptionModel, Prompt, Read
from perception.model.shipped import shipped
from perception.tokenizers.depth import readings_at
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import Span
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "perception_tiny.json"
MODEL = "perception-tiny"
STYLES = ("standard", "shifted")
NEAR = 0.03
"""Largest distance of a point that counts as named where it is, as a share of the image's side"""
_BATCH = 50
_NO_BOXES = Span("boxes", ())


def ask(model: PerceptionModel, items: Sequence[Item], questions: Sequence[str], read: Read) -> list[Answer]:
    """Put one question to each item's image."""
    prompts = [Prompt(item.image, text, item.kind) for item, text in zip(items, questions, strict=True)]
    found: list[Answer] = []
    for start in range(0, len(prompts), _BATCH):
        found += model.answer(prompts[start : start + _BATCH], read=read)
    return found


Hits = list[tuple[Item, bool]]
"""Whether something about an image is right, with the question that it was asked in"""


def interval_over_images(hits: Hits) -> Interval:
    """Return the interval of the share of hits; those about one image are resampled together."""
    return accuracy_interval([float(hit) for _, hit in hits], [id(item.scene) for item, _ in hits])


def drawn(answer: Answer, modality: str) -> list[Span]:
    return [span for span in answer.spans if span.modality == modality]


def nearest(model: PerceptionModel, item: Item, answer: Answer) -> str:
    """Return the letter of the true point at which the drawn map is nearest; "" without a map."""
    maps = drawn(answer, "depth")
    if not maps:
        return ""
    with torch.no_grad():
        near = depth_tokenizer_of(model).decode(torch.tensor(maps[0].codes)[None])  # (1, S, S)
    return POINT_LETTERS[int(readings_at(near, item.points_xy).argmax())]


def named(model: PerceptionModel, item: Item, answer: Answer) -> list[bool]:
    """Return, for each point of the image, whether the answer names it where it is."""
    tokenizer = PointTokenizer(model.vocabulary.num_locations)
    places = [place for span in drawn(answer, "points") for place in tokenizer.decode(span.codes)]
    return [
        number < len(places) and float(np.linalg.norm(places[number] - point)) <= NEAR
        for number, point in enumerate(item.points_xy)
    ]


def on_marked(model: PerceptionModel, marked: Sequence[Item]) -> dict[str, Hits]:
    """Return what is right about images with lettered points: drawn maps, named points, and the nearest one."""
    maps = ask(model, marked, [ATOMIC_DEPTH_QUESTION] * len(marked), "model")
    read = ask(model, marked, [readings_question(len(item.points_xy)) for item in marked], "decoded")
    return {
        "map nearest at the right one of the true points": [
            (item, nearest(model, item, answer) == item.answer) for item, answer in zip(marked, maps, strict=True)
        ],
        "point named where it is": [
            (item, hit) for item, answer in zip(marked, read, strict=True) for hit in named(model, item, answer)
        ],
        "nearest point, the package reads the map": [
            (item, answer.value == item.answer) for item, answer in zip(marked, read, strict=True)
        ],
    }


def measure(model: PerceptionModel, style: str, num_count: int, num_depth: int) -> dict[str, Any]:
    """Return the intervals of all figures on held-out scenes of a style."""
    return perceived(model, scene_items(style, num_count, num_depth))


def perceived(model: PerceptionModel, items: Sequence[Item]) -> dict[str, Any]:
    """Return the intervals of all figures on images with things to count, and on those with 3 to 5 points."""
    counted = [item for item in items if item.kind == "count"]
    marked = [item for item in items if len(item.points_xy) > 2 and not asks_for_farthest(item.question)]
    things = [item.question.removeprefix("How many ").removesuffix(" are there?") for item in counted]
    boxes = ask(model, counted, [atomic_boxes(name, _NO_BOXES).question for name in things], "model")
    by_model = ask(model, marked, [readings_question(len(item.points_xy)) for item in marked], "model")
    hits = on_marked(model, marked) | {
        "nearest point, the model reads the map": [
            (item, answer.value == item.answer) for item, answer in zip(marked, by_model, strict=True)
        ],
        "number of boxes": [
            (item, sum(len(span.codes) // 4 for span in drawn(answer, "boxes")) == item.answer)
            for item, answer in zip(counted, boxes, strict=True)
        ],
    }
    return {name: asdict(interval_over_images(values)) for name, values in hits.items()}


def bars(shifted: dict[str, Any]) -> list[Bar]:
    """Return the targets, on the shifted style."""
    wanted = {
        "map nearest at the right one of the true points": 80.0,
        "point named where it is": 97.0,
        "nearest point, the package reads the map": 75.0,
        "number of boxes": 50.0,
    }
    return [Bar(f"{name}, shifted style", 100 * shifted[name]["mean"], least, "%") for name, least in wanted.items()]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer scenes; write nothing")
    parser.add_argument("--model", help="measure another model; write nothing")
    parser.add_argument("--num-count", type=int, default=200, help="scenes with boxes to draw, per style")
    parser.add_argument("--num-depth", type=int, default=60, help="scenes with points, per style and number of points")
    given = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(given.model or shipped(MODEL))
    if given.check:
        found = bars(measure(model, "shifted", 60, 30))
        print(*(bar.line() for bar in found), sep="\n")
        return 0 if all_met(found) else 1
    styles = {style: measure(model, style, given.num_count, given.num_depth) for style in STYLES}
    for style, rows in styles.items():
        for name, row in rows.items():
            print(f"{style}: {name}: {100 * row['mean']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})")
    if given.model is None:
        asked = f"--num-count {given.num_count} --num-depth {given.num_depth}"
        record = {"command": f"python -m benchmarks.perception_tiny {asked}", **provenance(), "styles": styles}
        record["bars"] = [bar.to_json() for bar in bars(styles["shifted"])]
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
