"""How much of a depth map the shipped tokenizer's 100 codes keep: `python -m benchmarks.tokenizer_quality`.

Held-out rendered scenes of both looks (the tokenizer was trained on neither these seeds nor the shifted look), and one
measured map, the stereo motorcycle. Written to `benchmarks/results/tokenizer_quality.json`; two minutes on two cores.
The weights are made by `python -m train.tokenizer`.

With `--check` it measures the bars afresh on fewer scenes, prints one line a bar and exits 1 where one falls short.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from perception.datasets.motorcycle import motorcycle_depth
from perception.evaluation.bootstrap import bootstrap_interval
from perception.scenes.markers import MIN_GAP, choose_markers
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from train.provenance import ROOT, provenance
from vqvae import VQVAE
from vqvae.metrics import depth_errors, nearest_is_right, order_is_right
from vqvae.normalisation import nearness_to_depth
from vqvae.quantizer import codebook_usage, perplexity

TOKENIZER = ROOT / "tokenizers" / "depth-scenes-100"
RESULT = ROOT / "benchmarks" / "results" / "tokenizer_quality.json"
FIRST_SEED = 60_000_000
"""No training takes seeds from here up."""
POINT_COUNTS = (2, 3, 4, 5)
_BATCH = 50

Figures = dict[str, object]


def _held_out(look: str, count: int) -> tuple[Tensor, dict[int, list[np.ndarray | None]]]:
    """Depth (N, S, S) of held-out scenes, and of each scene one set of markers for each number of points (or None)."""
    maps: list[Tensor] = []
    points: dict[int, list[np.ndarray | None]] = {number: [] for number in POINT_COUNTS}
    for start in range(FIRST_SEED, FIRST_SEED + count, _BATCH):
        batch = render_scenes(range(start, min(start + _BATCH, FIRST_SEED + count)), look)
        maps.append(batch.depth)
        for index, seed in enumerate(batch.seeds):
            rng = np.random.default_rng((seed, len(look)))
            for number in POINT_COUNTS:
                points[number].append(choose_markers(Scene.from_batch(batch, index), number, rng))
    return torch.cat(maps), points


def _interval(values: Tensor) -> Figures:
    return asdict(bootstrap_interval(values.double().numpy()))


def _map_figures(decoded: Tensor, near: Tensor, depth: Tensor, ranges: Tensor, model: VQVAE) -> Figures:
    """Errors of decoded nearness (N, S, S): as depth in the map's own range, and as nearness in 1/255."""
    errors = depth_errors(nearness_to_depth(decoded, ranges, model.config), depth)
    figures: Figures = {name: _interval(value) for name, value in vars(errors).items()}
    figures["nearness_l1_255"] = _interval(255 * (decoded - near).abs().mean((1, 2)))
    return figures


def _order_figures(decoded: Tensor, near: Tensor, points: dict[int, list[np.ndarray | None]]) -> Figures:
    """Of each number of points: share of sets wholly in order, and share whose nearest point is the true one."""
    figures: Figures = {}
    for number, sets in points.items():
        found = {row: chosen for row, chosen in enumerate(sets) if chosen is not None}
        rows, placed = list(found), torch.from_numpy(np.stack(list(found.values())))
        figures[f"order_{number}"] = _interval(order_is_right(decoded[rows], near[rows], placed))
        figures[f"nearest_{number}"] = _interval(nearest_is_right(decoded[rows], near[rows], placed))
    return figures


def scene_figures(model: VQVAE, look: str, count: int) -> Figures:
    """Everything measured on `count` held-out scenes of a look."""
    depth, points = _held_out(look, count)
    normalised = model.normalise(depth)
    near, size = normalised.nearness, model.config.image_size
    codes = torch.cat([model.encode(chunk) for chunk in depth.split(_BATCH)])  # (N, h, w)
    decoded = torch.cat([model.decode(chunk) for chunk in codes.split(_BATCH)])  # (N, S, S)
    counts = torch.bincount(codes.flatten(), minlength=model.config.codebook_size)
    # What 100 exact numbers, the mean of each cell, would keep: the yardstick for 100 codes of 7 bits.
    cells = F.avg_pool2d(near[:, None], model.config.downsample)
    means = F.interpolate(cells, size=(size, size))[:, 0]
    ranges = normalised.depth_range
    return {
        "scenes": count,
        "codebook_usage": codebook_usage(counts),
        "perplexity": float(perplexity(counts)),
        **_order_figures(decoded, near, points),
        **_map_figures(decoded, near, depth, ranges, model),
        "exact_cell_means": {**_order_figures(means, near, points), **_map_figures(means, near, depth, ranges, model)},
    }


def _random_pairs(near: Tensor, valid: Tensor, count: int) -> Tensor:
    """Pairs of valid pixels (P, 2, 2), as (x, y) in [0, 1], at least `MIN_GAP` apart in nearness (H, W)."""
    rng = np.random.default_rng(FIRST_SEED)
    places = valid.nonzero().numpy()  # (M, 2), y and x
    pairs = places[rng.integers(len(places), size=(4 * count, 2))]  # (4P, 2, 2)
    values = near.numpy()[pairs[..., 0], pairs[..., 1]]
    pairs = pairs[np.abs(values[:, 0] - values[:, 1]) >= MIN_GAP][:count]
    return torch.from_numpy((pairs[..., ::-1] + 0.5) / np.array(near.shape[::-1])).float()


def motorcycle_figures(model: VQVAE) -> Figures | None:
    """Everything measured on the stereo motorcycle; None where scikit-image is absent."""
    depth = motorcycle_depth()
    if depth is None:
        return None
    valid = depth.isfinite()
    ranges = model.normalise(depth[None]).depth_range
    decoded = model.decode(model.encode(depth[None]), size=(depth.shape[0], depth.shape[1]))  # (1, H, W)
    errors = depth_errors(nearness_to_depth(decoded, ranges, model.config), depth[None], valid[None])
    inverse = 1 / depth
    low, high = 1 / ranges[0, 1], 1 / ranges[0, 0]
    near = torch.where(valid, (inverse - low) / (high - low), 0)
    pairs = _random_pairs(near, valid, 2000)
    order = order_is_right(decoded.expand(len(pairs), -1, -1), near[None].expand(len(pairs), -1, -1), pairs)
    return {
        "holes": float(1 - valid.float().mean()),
        **errors.means(),
        "nearness_l1_255": float(255 * (decoded[0] - near)[valid].abs().mean()),
        "order_of_random_pairs": _interval(order),
    }


def measure(model: VQVAE, count: int) -> dict[str, Figures | None]:
    """All figures, by look, and of the measured map."""
    looks: dict[str, Figures | None] = {look: scene_figures(model, look, count) for look in ("standard", "shifted")}
    return {**looks, "motorcycle": motorcycle_figures(model)}


def bars(results: dict[str, Figures | None]) -> list[tuple[str, float, float]]:
    """(name, figure, bar) of everything promised; a figure under its bar falls short."""
    found: list[tuple[str, float, float]] = []
    for look in ("standard", "shifted"):
        figures = results[look]
        assert figures is not None
        for number in POINT_COUNTS:
            order: dict[str, float] = figures[f"order_{number}"]  # type: ignore[assignment]
            found.append((f"{look}: order of {number} points", order["mean"], 0.97 if number == 2 else 0.95))
        found.append((f"{look}: codebook used", figures["codebook_usage"], 0.95))  # type: ignore[arg-type]
    delta1: dict[str, float] = results["standard"]["delta1"]  # type: ignore[index, assignment]
    found.append(("standard: delta1", delta1["mean"], 0.97))
    return found


def print_table(results: dict[str, Figures | None], console: Console) -> None:
    """The figures of the looks and the measured map side by side."""
    table = Table("figure", "standard", "shifted", "motorcycle")
    names = [f"order_{n}" for n in POINT_COUNTS] + [f"nearest_{n}" for n in POINT_COUNTS]
    names += ["order_of_random_pairs", "delta1", "abs_rel", "rmse", "silog", "nearness_l1_255", "codebook_usage"]
    for name in names:
        row = []
        for column in ("standard", "shifted", "motorcycle"):
            value = (results[column] or {}).get(name, "")
            if isinstance(value, dict):
                value = f"{value['mean']:.4f} [{value['low']:.4f}, {value['high']:.4f}]"
            row.append(f"{value:.4f}" if isinstance(value, float) else str(value))
        table.add_row(name, *row)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="measure the bars afresh, write nothing, exit 1 if one fails"
    )
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of the tokenizer")
    parser.add_argument("--scenes", type=int, help="held-out scenes a look (default 1500, with --check 500)")
    arguments = parser.parse_args(argv)
    count = arguments.scenes or (500 if arguments.check else 1500)
    model = VQVAE.from_pretrained(arguments.tokenizer)
    results = measure(model, count)
    console = Console()
    if not arguments.check:
        print_table(results, console)
    if results["motorcycle"] is None:
        print("motorcycle: left out, scikit-image is not installed")
    failed = False
    for name, figure, bar in bars(results):
        failed |= figure < bar
        print(f"{name}: {figure:.4f}, bar {bar:.2f}{'' if figure >= bar else '  <-- falls short'}")
    if not arguments.check:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        head = {"first_seed": FIRST_SEED, "scenes_a_look": count, "config": asdict(model.config), **provenance()}
        RESULT.write_text(json.dumps({**head, "results": results}, indent=2) + "\n")
    return int(failed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
