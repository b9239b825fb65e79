"""Measure how much of a depth map the shipped tokenizer's 100 codes keep (`python -m benchmarks.tokenizer_quality`).

Measures held-out rendered scenes of both styles (the tokenizer was trained on neither these seeds nor the shifted
style), the maps of `perception.datasets.depth.measured` whose packages are installed, and the effect of missing pixels
on the codes. Writes `benchmarks/results/tokenizer_quality.json` in three minutes on two cores. `python -m
train.tokenizer` makes the weights.

With --check it measures the targets on fewer scenes, prints one line per target, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.depth_sets import (
    FIRST_SEED,
    POINT_COUNTS,
    Figures,
    figures,
    measured_set,
    reconstruct_with,
    scene_set,
    true_nearness,
)
from benchmarks.missing_depth import missing_figures
from perception.datasets.depth.measured import measured_maps
from train.loop.provenance import ROOT, provenance
from vqvae import VQVAE

TOKENIZER = ROOT / "tokenizers" / "depth-scenes-100"
RESULT = ROOT / "benchmarks" / "results" / "tokenizer_quality.json"
GROUND_TRUTH, MATCHED = "measured: ground truth", "measured: stereo matching"
COLUMNS = ("standard", "shifted", "exact cell means", GROUND_TRUTH, MATCHED)


def exact_cell_means(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, S, S) as the exact mean of each of 10 x 10 cells: what 100 unquantised numbers would keep."""
    near, _ = true_nearness(depth)
    cells = F.adaptive_avg_pool2d(near[:, None], 10)
    return F.interpolate(cells, size=depth.shape[1:])[:, 0], torch.zeros(len(depth), 10, 10, dtype=torch.long)


def measure(model: VQVAE, count: int, bars_alone: bool = False) -> dict[str, Figures]:
    """All figures, by column of the table; measured maps also one by one, and the effect of missing pixels.

    With `bars_alone` it computes no more than `bars` needs.
    """
    size, reconstruct = model.config.codebook_size, reconstruct_with(model)
    sets = {style: scene_set(style, count) for style in ("standard", "shifted")}
    found = {style: figures(reconstruct, depth_set, size) for style, depth_set in sets.items()}
    if bars_alone:
        return found
    found["exact cell means"] = figures(exact_cell_means, sets["standard"], size)
    measured = measured_maps()
    for name, truth in ((GROUND_TRUTH, True), (MATCHED, False)):
        chosen = [one for one in measured if one.ground_truth is truth]
        if chosen:
            each: Figures = {one.name: figures(reconstruct, measured_set([one]), size) for one in chosen}
            found[name] = {**figures(reconstruct, measured_set(chosen), size), "each": each}
    found["missing pixels"] = missing_figures(model, torch.cat(sets["standard"].depth))
    return found


def bars(results: dict[str, Figures]) -> list[tuple[str, float, float]]:
    """(name, figure, bar) of every target; a figure under its bar misses it."""
    found: list[tuple[str, float, float]] = []
    for style in ("standard", "shifted"):
        measured = results[style]
        for number in POINT_COUNTS:
            order: dict[str, float] = measured[f"order_{number}"]  # type: ignore[assignment]
            found.append((f"{style}: order of {number} points", order["mean"], 0.97 if number == 2 else 0.95))
        found.append((f"{style}: codebook used", measured["codebook_usage"], 0.95))  # type: ignore[arg-type]
    delta1: dict[str, float] = results["standard"]["delta1"]  # type: ignore[assignment]
    found.append(("standard: delta1", delta1["mean"], 0.97))
    return found


def print_table(results: dict[str, Figures], console: Console) -> None:
    """Print the figures of scenes and measured maps side by side."""
    columns = [name for name in COLUMNS if name in results]
    table = Table("figure", *columns)
    names = [f"{kind}_{number}" for kind in ("order", "nearest") for number in POINT_COUNTS]
    names += ["delta1", "abs_rel", "rmse", "silog", "nearness_l1_255", "slope_error_255", "boundary_f1"]
    for name in [*names, "codebook_usage"]:
        row = []
        for column in columns:
            value = results[column].get(name, "")
            if isinstance(value, dict):
                value = f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
            row.append(f"{value:.3f}" if isinstance(value, float) else str(value))
        table.add_row(name, *row)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="check the targets, write nothing, exit 1 if one is missed"
    )
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of the tokenizer")
    parser.add_argument("--scenes", type=int, help="held-out scenes per style (default 1500, with --check 500)")
    arguments = parser.parse_args(argv)
    count = arguments.scenes or (500 if arguments.check else 1500)
    model = VQVAE.from_pretrained(arguments.tokenizer)
    results = measure(model, count, bars_alone=arguments.check)
    console = Console()
    if not arguments.check:
        print_table(results, console)
    if not arguments.check and GROUND_TRUTH not in results:
        print("no measured maps: none of their packages is installed (perception.datasets.depth.measured)")
    failed = False
    for name, figure, bar in bars(results):
        failed |= figure < bar
        print(f"{name}: {figure:.4f}, target {bar:.2f}{'' if figure >= bar else '  <-- missed'}")
    if not arguments.check:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        head = {"first_seed": FIRST_SEED, "scenes_a_style": count, "config": asdict(model.config), **provenance()}
        RESULT.write_text(json.dumps({**head, "results": results}, indent=2) + "\n")
    return int(failed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
