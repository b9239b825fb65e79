"""Measure a vision-language model assembled from pretrained parts (`python -m benchmarks.assembly`).

SmolLM2-135M behind an EfficientNet-Lite0 (`train.assemble`), with an aligned projector, was fine-tuned with LoRA in two
arms on the same scenes for the same number of steps: drawing first, and answering directly. Both answer held-out
questions, and the spans of the chain are replaced to see whether they are used. Beside them the page shows the tiny
model, which saw more than two hundred times as many examples, and its baseline. docs/assembly.md has the commands that
train the two arms; --aurora and --direct give their folders. Writes `benchmarks/results/assembly.json` and the page.

With --check it asks fewer questions, prints one line per target, writes nothing, and exits 1 if a target is missed.
Exit code 2 means that there is no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.aurora_vs_direct import RESULT as TINY
from benchmarks.aurora_vs_direct import Baseline, ItemSet, measure, model_record
from benchmarks.bars import Bar, all_met
from benchmarks.comparison_page import markdown_table
from perception.evaluation.comparison import Comparison
from perception.evaluation.scenes import HELD_OUT_SEED
from perception.model.perception_model import PerceptionModel
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "assembly.json"
RUNS = ROOT / "runs" / "assembly"
SETS = tuple(ItemSet("assembly", style, 100, 25, HELD_OUT_SEED) for style in ("standard", "shifted"))
CHANCE = {"counting": 0.1, "depth, 3-5 points": 0.26}
"""Accuracy of guessing: a count of 0 to 9 at random; a letter of three, four or five"""
_FIRST = """\
# An assembly of pretrained parts

Made by `python -m benchmarks.assembly`; do not edit.

SmolLM2-135M-Instruct behind an EfficientNet-Lite0, both arms trained for {steps} steps with LoRA, beside
`models/aurora-tiny` and its baseline, which answers directly (from `aurora_vs_direct.json`). The commands that trained
the arms are in the result file. Accuracy is in %, with 95 % bootstrap intervals over questions.
"""


def bars(comparisons: Mapping[str, Comparison]) -> list[Bar]:
    """Targets: drawing first is better than guessing, on the style it was trained on."""
    found = []
    for row, chance in CHANCE.items():
        if row in comparisons["standard"].accuracy:
            low = comparisons["standard"].accuracy[row]["chain"].low
            found.append(Bar(f"{row}, drawing first: low end of the interval over guessing", 100 * (low - chance), 0.0))
    return found


def page(result: Mapping[str, Any]) -> str:
    """The page: tables of both models, per style."""
    tiny = json.loads(TINY.read_text())["styles"] if TINY.exists() else {}
    parts = [_FIRST.format(steps=result["steps"])]
    for style, values in result["styles"].items():
        ours = Comparison.from_json(values)
        theirs = Comparison.from_json(tiny[style]) if style in tiny else None
        rows = []
        for row, arms in ours.accuracy.items():
            other = theirs.accuracy.get(row) if theirs else None
            tiny_cells = [other[arm] if other else "-" for arm in ("direct", "chain")]
            rows.append((row, arms["direct"].count, arms["direct"], arms["chain"], *tiny_cells))
        head = ("task", "n", "direct", "drawing first", "aurora-tiny's baseline, direct", "aurora-tiny, drawing first")
        parts += [f"## {style} style\n", markdown_table(head, rows), _interventions(ours)]
    lines = [f"- {b['name']}: {b['figure']:.1f} points, {'met' if b['met'] else 'missed'}" for b in result["bars"]]
    return "\n".join([*parts, "## Targets\n", *lines, ""])


def _interventions(comparison: Comparison) -> str:
    """Table of the accuracy when the model's span is replaced by another."""
    if not comparison.interventions:
        return ""
    names = list(next(iter(comparison.interventions.values())))
    rows = [(row, *(cells.get(name, "-") for name in names)) for row, cells in comparison.interventions.items()]
    return "Accuracy when its span is replaced before it answers:\n\n" + markdown_table(("task", *names), rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer questions; write nothing")
    parser.add_argument("--aurora", type=Path, default=RUNS / "aurora" / "model", help="folder of the arm that draws")
    parser.add_argument("--direct", type=Path, default=RUNS / "direct" / "model", help="folder of the baseline")
    parser.add_argument("--num-count", type=int, help=f"counting questions per style ({SETS[0].num_count})")
    parser.add_argument("--num-depth", type=int, help=f"depth questions per number of points ({SETS[0].num_depth})")
    given = parser.parse_args(argv)
    for folder in (given.aurora, given.direct):
        if not folder.exists():
            print(f"error: {folder} holds no model; docs/assembly.md has the commands that train one", file=sys.stderr)
            return 2
    model, baseline = PerceptionModel.from_pretrained(given.aurora), Baseline(given.direct, None)
    sets = [
        replace(s, num_count=given.num_count or s.num_count, num_depth=given.num_depth or s.num_depth) for s in SETS
    ]
    sets = sets[:1] if given.check else sets
    comparisons = {one.style: measure(model, baseline, one)[0] for one in sets}
    found = bars(comparisons)
    for bar in found:
        print(bar.line())
    if given.check:
        return int(not all_met(found))
    record = model_record(given.aurora, model)
    training = record["training"] or {}
    result = {
        "steps": training.get("steps"),
        "aurora": record,
        "direct": baseline.record(),
        "sets": [vars(one) for one in sets],
        "styles": {style: comparison.to_json() for style, comparison in comparisons.items()},
        "bars": [bar.to_json() for bar in found],
        **provenance(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(page(result))
    print(f"written: {RESULT} and its page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
