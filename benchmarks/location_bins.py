"""Measure what the number of location bins costs boxes and points (`python -m benchmarks.location_bins`).

A box is four bins of [0, 1] and a point two; the default is 100 bins, where other models have about 1,000. The boxes of
the objects of held-out rendered scenes are written with several numbers of bins and decoded again. The figures are the
intersection over union (IoU) with the exact box, on scenes of 80 x 80 and of 320 x 320 pixels, and the share of sets of
five points, drawn as the depth questions draw them, whose nearest point stays the nearest when the exact map is read at
the decoded points. No model takes part: this is the most that finer bins could add. Writes
`benchmarks/results/location_bins.json` in a minute on one core.

With --check it measures fewer scenes, prints one line per target, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bars import Bar, all_met
from benchmarks.mask_tokens import scenes_of
from perception.evaluation.bootstrap import bootstrap_interval
from perception.scenes.markers import marker_nearness
from perception.scenes.questions import depth_question
from perception.scenes.scene import Scene
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.masks import tight_box
from perception.tokenizers.points import PointTokenizer
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "location_bins.json"
BINS = (50, 100, 200, 500, 1000)
DEFAULT = 100
SIDES = (80, 320)
LEAST_IOU, LEAST_NEAREST = 90.0, 99.0
"""%, of the default number of bins"""
_SMALL = 0.1
"""Side, of the image's, below which a box counts as small"""


def box_ious(boxes: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """IoU (n,) of boxes (n, 4) in [0, 1] with what is decoded of them."""
    tokenizer = BoxTokenizer(bins)
    decoded = np.concatenate([tokenizer.decode(tokenizer.encode(box[None])) for box in boxes])
    low, high = np.maximum(boxes[:, :2], decoded[:, :2]), np.minimum(boxes[:, 2:], decoded[:, 2:])
    inside = (high - low).clip(0).prod(1)
    areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (boxes, decoded)]
    found: NDArray[np.float64] = inside / (areas[0] + areas[1] - inside)
    return found


def nearest_kept(scenes: Sequence[Scene], bins: int) -> list[bool]:
    """For one set of five points per scene: whether the nearest one stays it at the decoded points."""
    tokenizer, kept = PointTokenizer(bins), []
    for number, scene in enumerate(scenes):
        question = depth_question(scene, np.random.default_rng(number), 5)
        if question is not None:
            decoded = tokenizer.decode(tokenizer.encode(question.points_xy))
            near = marker_nearness(scene.depth, decoded)
            kept.append(bool(near.argmax() == question.nearness.argmax()))
    return kept


def measure(count: int) -> dict[str, Any]:
    """The figures of every number of bins, by pixels per side."""
    found: dict[str, Any] = {}
    for side in SIDES:
        scenes = [scene for style in ("standard", "shifted") for scene in scenes_of(style, side, count)]
        masks = [scene.mask_of(number) for scene in scenes for number in range(1, len(scene.objects) + 1)]
        boxes = np.stack([tight_box(mask) for mask in masks])
        small = (boxes[:, 2:] - boxes[:, :2]).min(1) < _SMALL
        rows = {}
        for bins in BINS:
            ious = box_ious(boxes, bins)
            rows[str(bins)] = {
                "iou": asdict(bootstrap_interval(ious)),
                "iou_5th_percentile": float(np.quantile(ious, 0.05)),
                "iou_small": asdict(bootstrap_interval(ious[small])),
                "nearest_kept": asdict(bootstrap_interval(np.array(nearest_kept(scenes, bins), float))),
            }
        found[str(side)] = {"scenes": len(scenes), "boxes": len(boxes), "small_boxes": int(small.sum()), "bins": rows}
    return found


def bars(found: dict[str, Any]) -> list[Bar]:
    """The targets of the default number of bins."""
    of_default = {side: found[str(side)]["bins"][str(DEFAULT)] for side in SIDES}
    return [
        Bar(f"{DEFAULT} bins, {side} pixels: {words}", 100 * of_default[side][name]["mean"], least, "%")
        for side in SIDES
        for name, words, least in (
            ("iou", "mean IoU of decoded boxes", LEAST_IOU),
            ("nearest_kept", "nearest of five points kept", LEAST_NEAREST),
        )
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets, write nothing")
    parser.add_argument("--scenes", type=int, help="held-out scenes per style (default 200, with --check 40)")
    arguments = parser.parse_args(argv)
    found = measure(arguments.scenes or (40 if arguments.check else 200))
    measured = bars(found)
    for side, record in found.items():
        for bins, row in record["bins"].items():
            iou, kept = 100 * row["iou"]["mean"], 100 * row["nearest_kept"]["mean"]
            small = 100 * row["iou_small"]["mean"]
            print(f"{side} pixels, {bins} bins: IoU {iou:.1f} % (small boxes {small:.1f}), nearest kept {kept:.1f} %")
    for bar in measured:
        print(bar.line())
    if arguments.check:
        return 0 if all_met(measured) else 1
    record = {"sides": found, "bars": [bar.to_json() for bar in measured], **provenance()}
    RESULT.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
