"""Measure the shipped nested tokenizer at each number of tokens (`python -m benchmarks.nested_budgets`).

Compares depth-scenes-100-nested at its first 4 to 100 tokens with depth-scenes-100 at its 100 tokens, on held-out
scenes of both styles and on the measured maps whose packages are installed. Writes
`benchmarks/results/nested_budgets.json`.

With --check it takes fewer scenes, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from benchmarks.bars import Bar, all_met
from benchmarks.depth_sets import DepthSet, figures, measured_set, reconstruct_with, scene_set
from perception.datasets.depth.measured import measured_maps
from perception.model.shipped import shipped
from train.loop.provenance import ROOT, provenance
from vqvae import VQVAE

RESULT = ROOT / "benchmarks" / "results" / "nested_budgets.json"
BUDGETS = (4, 9, 16, 36, 64, 100)
SCENES = 500


def measure(sets: dict[str, DepthSet]) -> list[dict[str, Any]]:
    """One row per number of tokens, and one for the tokenizer that is not nested."""
    nested, plain = (VQVAE.from_pretrained(shipped(f"depth-scenes-100{more}")) for more in ("-nested", ""))
    rows = []
    for model, tokens in [(nested, tokens) for tokens in BUDGETS] + [(plain, plain.config.num_codes)]:
        reconstruct = reconstruct_with(model, tokens)
        results = {name: figures(reconstruct, one, model.config.codebook_size) for name, one in sets.items()}
        rows.append({"nested": model.config.nested, "tokens": tokens, "results": results})
    return rows


def bars(rows: list[dict[str, Any]], style: str = "standard") -> list[Bar]:
    """Targets: more tokens lose less, and all of them not much more than the tokenizer that is not nested."""
    lost = [row["results"][style]["abs_rel"]["mean"] for row in rows]
    steps = [before / after for before, after in zip(lost[:-2], lost[1:-1], strict=True)]
    order = 100 * rows[-2]["results"][style]["order_5"]["mean"]
    return [
        Bar("least gain from one budget to the next, AbsRel", min(steps), 1.05, "times"),
        Bar("AbsRel of depth-scenes-100 over that of all nested tokens", 100 * lost[-1] / lost[-2], 60.0, "%"),
        Bar("order of 5 points from all nested tokens", order, 99.0, "%"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer scenes; write nothing")
    arguments = parser.parse_args(argv)
    if arguments.check:
        found = bars(measure({"standard": scene_set("standard", 100)}))
        for bar in found:
            print(bar.line())
        return 0 if all_met(found) else 1
    sets = {style: scene_set(style, SCENES) for style in ("standard", "shifted")}
    for name, truth in (("measured: ground truth", True), ("measured: stereo matching", False)):
        if chosen := [one for one in measured_maps() if one.ground_truth is truth]:
            sets[name] = measured_set(chosen)
    rows = measure(sets)
    found = bars(rows)
    record = {"scenes_a_style": SCENES, "rows": rows, "bars": [bar.to_json() for bar in found], **provenance()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    for bar in found:
        print(bar.line())
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
