"""Measure what models/photo-tiny makes of photographs (`python -m benchmarks.photo_tiny --photos FOLDER`).

The model is asked about the photographs of the test part of a folder with labels of teacher models (docs/data.md shows
the layout): it draws their maps, names their lettered points, draws boxes, counts, and says which point is nearest.
Points are marked in many styles, and once more as BLINK and HardBLINK mark them. Most counting questions are about one
thing or none, so all that is shown, and one absent kind per photo, are counted by number, too. Lists of boxes end
where that is likelier than any further box (`SpanGrammar.weighs_ends`); counting is measured once more as plain greedy
decoding ends them. What the teachers say counts as right: they bound what can be learned, and are no truth. Beside the
model stands the answer that is right most often without looking. Writes `benchmarks/results/photo_tiny.json`.

With --check it asks about fewer photographs, prints one line per target, writes nothing, and exits 1 if a target is
missed. --model FOLDER measures another model and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from benchmarks.bars import Bar, all_met
from benchmarks.label_efficiency import ROWS, pick
from benchmarks.perception_tiny import Hits, interval_over_images, named, perceived
from benchmarks.photos import SIZE, constants
from perception.datasets.photographs import Photographs
from perception.evaluation.photos import kind_items, photo_items
from perception.evaluation.scenes import Item, evaluate_items
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "photo_tiny.json"
MODEL = "photo-tiny"
DEPTH = "depth, 3-5 points"
KINDS, GREEDY = "counts by number", "ends as greedy decoding has them"
READ = {
    "the package reads the map": ("decoded", False),
    "the package reads the map at points that are given": ("decoded", True),
    "the model reads the map": ("model", False),
}
"""Who reads the map, and whether the places of the points are given"""


def greedily(model: PerceptionModel) -> PerceptionModel:
    """Return the model, whose lists end where END is likelier than any one location."""
    return model.under(replace(model.grammar, weighs_ends=False))


def in_published_style(model: PerceptionModel, items: Sequence[Item]) -> dict[str, Any]:
    """Return the intervals of what is right about points that are marked as published sets do."""
    marked = [items[i] for i in pick(items, DEPTH)]
    answers = evaluate_items(model, marked, "chain", title="published style", read="decoded")
    given = evaluate_items(
        model, marked, "chain", title="published style, points given", read="decoded", points_given=True
    )
    pairs = list(zip(marked, answers, strict=True))
    return {
        "point named where it is": _interval(
            [(item, hit) for item, a in pairs for hit in named(model, item, a.answer)]
        ),
        f"{DEPTH}, the package reads the map": _interval([(item, a.correct) for item, a in pairs]),
        f"{DEPTH}, the package reads the map at points that are given": _interval(
            [(item, a.correct) for item, a in zip(marked, given, strict=True)]
        ),
    }


def by_number(model: PerceptionModel, items: Sequence[Item]) -> dict[str, Any]:
    """Return the intervals of counts that are right, and how far they are off, by how many things are shown."""
    answers = evaluate_items(model, items, "chain", title=KINDS)
    found = {}
    for name, least, most in (("no things", 0, 0), ("single things", 1, 1), ("two or more", 2, 1_000)):
        pairs = [(i, a) for i, a in zip(items, answers, strict=True) if least <= int(i.answer) <= most]
        if not pairs:
            continue
        errors = [abs(int(a.answer.value or 0) - int(i.answer)) for i, a in pairs]  # no number is none
        found[name] = _interval([(i, a.correct) for i, a in pairs]) | {"mean absolute error": float(np.mean(errors))}
    return found


def measure(model: PerceptionModel, items: Sequence[Item]) -> dict[str, Any]:
    """Return the intervals of all figures."""
    drawn = perceived(model, items)
    answered = {}
    counted = [item for item in items if item.kind == "count"]
    greedy = evaluate_items(greedily(model), counted, "chain", title=f"counting, {GREEDY}")
    said = [answer.answer for answer in evaluate_items(model, counted, "chain", title="counting")]
    counts = [(answer.value, item.answer) for answer, item in zip(said, counted, strict=True)]
    answered["counting"] = _interval(
        [(item, value == right) for item, (value, right) in zip(counted, counts, strict=True)]
    )
    answered[f"counting, {GREEDY}"] = _interval(
        [(item, answer.correct) for item, answer in zip(counted, greedy, strict=True)]
    )
    marked = [item for item in items if item.kind == "depth"]
    for name, (read, given) in READ.items():
        answers = evaluate_items(model, marked, "chain", title=name, read=read, points_given=given)  # type: ignore[arg-type]
        answered[f"{DEPTH}, {name}"] = _interval([(marked[i], answers[i].correct) for i in pick(marked, DEPTH)])
        far = [(item, answer.correct) for item, answer in zip(marked, answers, strict=True) if item.group == "farthest"]
        answered[f"farthest of 3 points, {name}"] = _interval(far)
    errors = [abs(int(value) - int(right)) for value, right in counts if isinstance(value, int)]
    return {
        "perception": drawn,
        "answers": answered,
        "mean absolute error of counts": float(np.mean(errors)) if errors else None,
        "counts without a number": len(counts) - len(errors),
        "always the most common answer": constants(items),
    }


def _interval(hits: Hits) -> dict[str, float]:
    return asdict(interval_over_images(hits))


def bars(found: dict[str, Any]) -> list[Bar]:
    """Return the targets."""
    named = found["perception"]["point named where it is"]["mean"]
    depth = found["answers"][f"{DEPTH}, the package reads the map"]["mean"]
    gain = found["answers"]["counting"]["mean"] - found["always the most common answer"]["counting"]
    return [
        Bar("points named where they are", 100 * named, 97.0, "%"),
        Bar("depth of 3 to 5 points", 100 * depth, 85.0, "%"),
        Bar("counting, over the most common answer", 100 * gain, 10.0),
    ]


def lines(found: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    said = [
        f"{name}: {100 * row['mean']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        for name, row in (found["perception"] | found["answers"]).items()
    ]
    said += [
        f"published marker style, {name}: {100 * row['mean']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        for name, row in found["published marker style"].items()
    ]
    said += [
        f"counts where {name} are shown{ends}: {100 * row['mean']:.1f} % ({100 * row['low']:.1f} to "
        f"{100 * row['high']:.1f}), off by {row['mean absolute error']:.2f} in the mean"
        for ends in ("", f", {GREEDY}")
        for name, row in found[KINDS + ends].items()
    ]
    said += [
        f"always the most common answer, {row}: {100 * share:.1f} %"
        for row, share in found["always the most common answer"].items()
    ]
    error = found["mean absolute error of counts"]
    return [*said, f"counts: off by {error:.2f} in the mean" if error is not None else "counts: none"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on 40 photographs; write nothing")
    parser.add_argument("--photos", required=True, help="folder of labelled photographs")
    parser.add_argument("--model", help="measure another model; write nothing")
    parser.add_argument("--each", type=int, help="most questions of each kind; default: all")
    given = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(given.model or shipped(MODEL))
    photos = Photographs(given.photos, "test")
    items = photo_items(photos, SIZE, each=40 if given.check else given.each, farthest=True)
    found = measure(model, items)
    if given.check:
        checked = bars(found)
        print(*(bar.line() for bar in checked), sep="\n")
        return 0 if all_met(checked) else 1
    found["published marker style"] = in_published_style(
        model, photo_items(photos, SIZE, each=given.each, published=True)
    )
    of_kinds = kind_items(photos, SIZE)
    found |= {KINDS: by_number(model, of_kinds), f"{KINDS}, {GREEDY}": by_number(greedily(model), of_kinds)}
    print(*lines(found), sep="\n")
    if given.model is None:
        asked = "" if given.each is None else f" --each {given.each}"
        record = {"command": f"python -m benchmarks.photo_tiny --photos FOLDER{asked}", **provenance()}
        record |= {"questions": {row: len(pick(items, row)) for row in ROWS}} | found
        record["bars"] = [bar.to_json() for bar in bars(found)]
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
