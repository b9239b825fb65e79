"""Measure the cost and error of depth maps of frames when unchanged cells are kept (`python -m benchmarks.frames`).

In sequences of rendered frames one object is moved, added or removed from frame to frame, or nothing changes.
`perception.extras.frames` predicts their maps at several thresholds and margins. Reports codes decoded per frame, speed
relative to decoding every frame in full (the ways take turns per sequence), and the error against the exact depth and
against the maps of full decoding. First frames are left out. Writes `benchmarks/results/frames.json` and
`docs/frames.png` in about five minutes on one core.

With --check it reads fewer sequences, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bars import Bar, all_met
from perception.evaluation.bootstrap import bootstrap_interval, paired_difference
from perception.evaluation.scenes import depth_tokenizer_of
from perception.extras.frames import FrameConfig, FrameDepth, FrameMap
from perception.model.perception_model import PerceptionModel
from perception.scenes.frames import render_frames
from perception.scenes.markers import choose_markers
from perception.scenes.render import SceneBatch
from perception.scenes.scene import Scene
from train.loop.provenance import ROOT, provenance
from vqvae.metrics import depth_errors, order_is_right

RESULT = ROOT / "benchmarks" / "results" / "frames.json"
PLOT = ROOT / "docs" / "frames.png"
MODEL = ROOT / "models" / "aurora-tiny"
FIRST_SEED = 98_000_000
FRAMES = 6
POINTS = 4
FULL = FrameConfig(0.0)
CONFIGS = (
    FULL,
    *(FrameConfig(threshold) for threshold in (0.0005, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)),
    FrameConfig(0.02, 0),
    FrameConfig(0.02, 2),
)
SAVED, ADDED = 50.0, 0.01
"""Targets: least percentage of codes that the default keeps, and most AbsRel that it adds"""

_LABELLED = ("0, margin 1", "0.0005, margin 1", "0.1, margin 1")


def name_of(config: FrameConfig) -> str:
    return f"{config.threshold:g}, margin {config.margin}"


@dataclass
class Tally:
    """Results of one way of reading frames, frame by frame."""

    decoded: list[float] = field(default_factory=list)
    forwards: list[float] = field(default_factory=list)
    abs_rel: list[float] = field(default_factory=list)
    order: list[float] = field(default_factory=list)
    same_codes: list[float] = field(default_factory=list)
    from_full: list[float] = field(default_factory=list)
    """mean difference in nearness to the maps of full decoding"""
    seconds: float = 0.0


def read_sequence(model: PerceptionModel, batch: SceneBatch, config: FrameConfig) -> tuple[list[FrameMap], float]:
    """Maps of all frames, and seconds for all frames but the first."""
    reader, images = FrameDepth(model, config), [image.numpy() for image in batch.images]
    made = [reader(images[0])]
    start = time.perf_counter()
    made += [reader(image) for image in images[1:]]
    return made, time.perf_counter() - start


def add(tally: Tally, model: PerceptionModel, batch: SceneBatch, maps: list[FrameMap], full: list[FrameMap]) -> None:
    """Score all frames of a sequence but the first."""
    tokenizer, depth = depth_tokenizer_of(model), batch.depth[1:]  # (F, H, W)
    codes = torch.tensor([made.codes for made in maps[1:]])  # (F, N)
    with torch.no_grad():
        size = (depth.shape[1], depth.shape[2])
        scale = tokenizer.normalise(depth).depth_range  # (F, 2): not in the codes, so the exact one is given to all
        metric = tokenizer.decode(codes, scale, size=size).clamp_min(1e-3)
        near = tokenizer.decode(codes, size=size)
        near_full = tokenizer.decode(torch.tensor([made.codes for made in full[1:]]), size=size)
    tally.abs_rel += depth_errors(metric, depth).abs_rel.tolist()
    tally.from_full += (near - near_full).abs().mean((1, 2)).tolist()
    for n, made in enumerate(maps[1:], start=1):
        tally.decoded.append(made.decoded)
        tally.forwards += [] if made.forwards is None else [made.forwards]
        tally.same_codes.append(float(np.mean(np.array(made.codes) == np.array(full[n].codes))))
        tally.order += _order(near[n - 1], Scene.from_batch(batch, n), batch.seeds[0] + n)


def _order(near: Tensor, scene: Scene, seed: int) -> list[float]:
    """True if a map (H, W) puts four points of a scene in order; None if the scene has no room for them."""
    points = choose_markers(scene, POINTS, np.random.default_rng(seed))
    if points is None:
        return []
    return order_is_right(near[None], 1 / scene.depth[None], torch.from_numpy(points)[None]).double().tolist()


def measure(model: PerceptionModel, style: str, sequences: int, configs: tuple[FrameConfig, ...]) -> dict[str, Tally]:
    tallies = {name_of(config): Tally() for config in configs}
    read_sequence(model, render_frames(FIRST_SEED - 1, 2, style)[0], configs[-1])  # warms up
    for seed in range(FIRST_SEED, FIRST_SEED + sequences):
        batch, _ = render_frames(seed, FRAMES, style)
        full: list[FrameMap] = []
        for config in configs:
            maps, seconds = read_sequence(model, batch, config)
            full = full or maps
            tally = tallies[name_of(config)]
            tally.seconds += seconds
            add(tally, model, batch, maps, full)
    return tallies


def report(tallies: dict[str, Tally]) -> dict[str, dict[str, Any]]:
    full = tallies[name_of(FULL)]
    rows = {}
    for name, tally in tallies.items():
        added = paired_difference(tally.abs_rel, full.abs_rel)
        error, order = bootstrap_interval(tally.abs_rel), bootstrap_interval(tally.order)
        rows[name] = {
            "frames": len(tally.decoded),
            "codes_decoded": round(float(np.mean(tally.decoded)), 2),
            "forwards": round(float(np.mean(tally.forwards)), 2) if tally.forwards else None,
            "times_as_fast": round(full.seconds / tally.seconds, 2),
            "abs_rel": [round(value, 4) for value in (error.mean, error.low, error.high)],
            "abs_rel_added": [round(value, 4) for value in (added.mean, added.low, added.high)],
            "order_of_4_right": [round(100 * value, 1) for value in (order.mean, order.low, order.high)],
            "codes_as_anew": round(100 * float(np.mean(tally.same_codes)), 1),
            "nearness_from_anew": round(float(np.mean(tally.from_full)), 4),
        }
    return rows


def bars(styles: dict[str, dict[str, dict[str, Any]]], length: int) -> list[Bar]:
    found = []
    for style, rows in styles.items():
        own = rows[name_of(FrameConfig())]
        found.append(Bar(f"{style} style: codes kept", 100 * (1 - own["codes_decoded"] / length), SAVED, "%"))
        spare = 100 * (ADDED - own["abs_rel_added"][0])
        found.append(
            Bar(f"{style} style: AbsRel added stays below {ADDED:g}, in hundredths to spare", spare, 0.0, "/100")
        )
    return found


def same_as_ever(model: PerceptionModel, sequences: int) -> Bar:
    """True if a threshold of 0 gives the same maps as asking about each frame alone."""
    same = total = 0
    for seed in range(FIRST_SEED, FIRST_SEED + sequences):
        batch, _ = render_frames(seed, FRAMES)
        maps, _ = read_sequence(model, batch, FULL)
        for image, made in zip(batch.images, maps, strict=True):
            same += FrameDepth(model)(image.numpy()).codes == made.codes
            total += 1
    return Bar(f"threshold 0: maps as of each of {total} frames alone", 100 * same / total, 100.0, "%")


def plot(styles: dict[str, dict[str, dict[str, Any]]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for style, rows in styles.items():
        swept = {name: row for name, row in rows.items() if name.endswith("margin 1")}
        codes = [row["codes_decoded"] for row in swept.values()]
        for axis, key in ((axes[0], "abs_rel"), (axes[1], "order_of_4_right")):
            values = np.array([row[key] for row in swept.values()])
            (line,) = axis.plot(codes, values[:, 0], "o-", label=f"{style} style")
            axis.fill_between(codes, values[:, 1], values[:, 2], color=line.get_color(), alpha=0.12, lw=0)
            for name, x, y in zip(swept, codes, values[:, 0], strict=True):
                if name in _LABELLED:
                    axis.annotate(name.split(",")[0], (x, y), textcoords="offset points", xytext=(3, 5), fontsize=8)
    axes[0].set(xlabel="codes decoded per frame", ylabel="AbsRel against exact depth")
    axes[1].set(xlabel="codes decoded per frame", ylabel="order of 4 points right, %")
    for axis in axes:
        axis.set_xscale("log", subs=(2, 5))
        axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"], minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle("Frames at several thresholds, some of them named, margin 1; bands: 95 % over frames", fontsize=10)
    figure.savefig(PLOT, dpi=90)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer sequences; write nothing")
    parser.add_argument("--sequences", type=int, default=20, help="sequences per style")
    arguments = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(MODEL)
    sequences, configs = (6, (FULL, FrameConfig())) if arguments.check else (arguments.sequences, CONFIGS)
    styles = {style: report(measure(model, style, sequences, configs)) for style in ("standard", "shifted")}
    measured = [*bars(styles, model.vocabulary.depth_length), same_as_ever(model, 2 if arguments.check else 5)]
    for bar in measured:
        print(bar.line())
    if not arguments.check:
        kept = {"first_seed": FIRST_SEED, "frames_a_sequence": FRAMES, "threads": torch.get_num_threads()}
        result = {**provenance(), **kept, "styles": styles, "bars": [bar.to_json() for bar in measured]}
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        plot(styles)
        print(f"written: {RESULT} and {PLOT}")
    return int(arguments.check and not all_met(measured))


if __name__ == "__main__":
    sys.exit(main())
