"""Measure how much of a depth map the shipped tokenizer's 100 codes keep (`python -m benchmarks.tokenizer_quality`).

Measures held-out rendered scenes of both styles (the tokenizer was trained on neither these seeds nor the shifted
style), the maps of `perception.datasets.depth.measured` whose packages are installed, and the effect of missing pixels
on the codes, and one wild pixel. Writes `benchmarks/results/tokenizer_quality.json` in three minutes on two cores.
`python -m train.tokenizer` makes the weights.

With --tokenizer another tokenizer is measured. The shipped one's figures on the same maps stand beside its own, there
are targets that compare them, and the result is `tokenizer_quality_NAME.json`.

With --check it measures the targets on fewer scenes, prints one line per target, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.depth_sets import (
    FIRST_SEED,
    POINT_COUNTS,
    DepthSet,
    Figures,
    figures,
    measured_set,
    reconstruct_with,
    scene_set,
    true_nearness,
)
from benchmarks.missing_depth import missing_figures
from perception.datasets.depth.measured import MeasuredMap, measured_maps
from train.loop.provenance import ROOT, provenance
from vqvae import VQVAE

TOKENIZER = ROOT / "tokenizers" / "depth-scenes-100"
RESULT = ROOT / "benchmarks" / "results" / "tokenizer_quality.json"
GROUND_TRUTH, MATCHED = "measured: ground truth", "measured: stereo matching"
WILD = "measured: ground truth, one wild pixel"
COLUMNS = ("standard", "shifted", "exact cell means", GROUND_TRUTH, MATCHED, WILD)
WILD_DEPTH = 0.05
"""Metres, of a false reading in the middle of a map"""


def exact_cell_means(depth: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, S, S) as the exact mean of each of 10 x 10 cells: what 100 unquantised numbers would keep."""
    near, _ = true_nearness(depth)
    cells = F.adaptive_avg_pool2d(near[:, None], 10)
    return F.interpolate(cells, size=depth.shape[1:])[:, 0], torch.zeros(len(depth), 10, 10, dtype=torch.long)


def with_wild_pixel(one: MeasuredMap) -> MeasuredMap:
    """The map with its middle pixel at `WILD_DEPTH`."""
    depth = one.depth.clone()
    depth[depth.shape[0] // 2, depth.shape[1] // 2] = WILD_DEPTH
    return replace(one, depth=depth)


def measure_scenes(model: VQVAE, sets: dict[str, DepthSet]) -> dict[str, Figures]:
    """Figures per style of rendered scenes."""
    reconstruct = reconstruct_with(model)
    return {style: figures(reconstruct, scenes, model.config.codebook_size) for style, scenes in sets.items()}


def measure_measured(model: VQVAE, measured: list[MeasuredMap]) -> dict[str, Figures]:
    """Figures per kind of measured maps, those without a wild pixel also one by one."""
    size, reconstruct, found = model.config.codebook_size, reconstruct_with(model), dict[str, Figures]()
    for name, truth in ((GROUND_TRUTH, True), (MATCHED, False)):
        chosen = [one for one in measured if one.ground_truth is truth]
        if chosen:
            each: Figures = {one.name: figures(reconstruct, measured_set([one]), size) for one in chosen}
            found[name] = {**figures(reconstruct, measured_set(chosen), size), "each": each}
    wild = [with_wild_pixel(one) for one in measured if one.ground_truth]
    return found | ({WILD: figures(reconstruct, measured_set(wild), size)} if wild else {})


def against(results: dict[str, Figures], shipped: dict[str, Figures]) -> list[tuple[str, float, float]]:
    """(name, figure, bar) of every target that compares a tokenizer with the shipped one on the same maps."""
    found: list[tuple[str, float, float]] = []
    for name, ours in results.items():
        theirs = shipped.get(name, {})
        rows = [(name, ours, theirs)]
        if name == GROUND_TRUTH:
            order: dict[str, float] = ours["order_5"]  # type: ignore[assignment]
            found.append((f"{name}: order of 5 points", order["mean"], 0.95))
            one_by_one: dict[str, Figures] = theirs.get("each", {})  # type: ignore[assignment]
            rows += [(one, ours["each"][one], one_by_one[one]) for one in one_by_one]  # type: ignore[index]
        for label, mine, other in rows:
            if "abs_rel" in mine and "abs_rel" in other:
                ratio = other["abs_rel"]["mean"] / mine["abs_rel"]["mean"]  # type: ignore[index]
                found.append((f"{label}: AbsRel of the shipped tokenizer over its own", ratio, 1.0))
    used = max(float(results[style]["codebook_usage"]) for style in ("standard", "shifted"))  # type: ignore[arg-type]
    return [*found, ("codebook used", used, 1.0)]


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
    other = arguments.tokenizer.resolve() != TOKENIZER.resolve()
    count = arguments.scenes or (500 if arguments.check else 1500)
    model, measured = VQVAE.from_pretrained(arguments.tokenizer), measured_maps()
    sets = {style: scene_set(style, count) for style in ("standard", "shifted")}
    results = measure_scenes(model, sets)
    targets, beside = bars(results), dict[str, Figures]()
    if not arguments.check:
        size = model.config.codebook_size
        results["exact cell means"] = figures(exact_cell_means, sets["standard"], size)
        results["missing pixels"] = missing_figures(model, torch.cat(sets["standard"].depth))
    if not arguments.check or other:
        results |= measure_measured(model, measured)
    if other:
        default = VQVAE.from_pretrained(TOKENIZER)
        beside = measure_scenes(default, sets) | measure_measured(default, measured)
        targets += against(results, beside)
    console = Console()
    if not arguments.check:
        print_table(results, console)
    if beside and not arguments.check:
        console.print(f"{TOKENIZER.name}, on the same maps:")
        print_table(beside, console)
    if not arguments.check and GROUND_TRUTH not in results:
        print("no measured maps: none of their packages is installed (perception.datasets.depth.measured)")
    failed = False
    for name, figure, bar in targets:
        failed |= figure < bar
        print(f"{name}: {figure:.4f}, target {bar:.2f}{'' if figure >= bar else '  <-- missed'}")
    if not arguments.check:
        path = RESULT.with_stem(f"{RESULT.stem}_{arguments.tokenizer.name}") if other else RESULT
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"first_seed": FIRST_SEED, "scenes_a_style": count, "config": asdict(model.config), **provenance()}
        shipped = {TOKENIZER.name: beside} if beside else {}
        path.write_text(json.dumps({**head, "results": results, **shipped}, indent=2) + "\n")
    return int(failed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
