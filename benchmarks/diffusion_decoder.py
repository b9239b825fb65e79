"""Measure how sharp a diffusion decoder's maps are (`python -m benchmarks.diffusion_decoder`).

The shipped tokenizer encodes held-out scenes of both styles, and the measured maps that are installed, at 160 x 160.
Its plain decoder and the diffusion decoder with 1 to 8 steps decode the same codes. Reports edge errors and RMSE, and
the time of each relative to the plain decoder in the same run. Writes `benchmarks/results/diffusion_decoder.json` and
the picture `docs/diffusion_decoder.png` in five minutes on two cores. `python -m train.diffusion_decoder` makes the
weights.

With --check it measures the targets on fewer scenes, prints one line per target, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.bars import Bar, all_met
from benchmarks.depth_sets import DepthSet, Reconstruct, figures, measured_set, scene_set, true_nearness
from benchmarks.tokenizer_picture import sheet
from perception.datasets.depth.measured import MeasuredMap, measured_maps
from perception.model.shipped import shipped
from perception.tokenizers.depth import DepthTokenizer
from train.loop.provenance import ROOT, provenance
from vqvae import VQVAE
from vqvae.diffusion import DiffusionDecoder
from vqvae.normalisation import resize_masked

RESULT = ROOT / "benchmarks" / "results" / "diffusion_decoder.json"
PICTURE = ROOT / "docs" / "diffusion_decoder.png"
STEPS = (1, 2, 4, 8)
DEFAULT_STEPS = 2
PLAIN = "plain decoder"
SEEDS = (0, 1, 2)
_BATCH = 25
_ROUNDS = 7


def reconstruct_with(tokenizer: VQVAE, decoder: DiffusionDecoder | None, num_steps: int, seed: int = 0) -> Reconstruct:
    """A function that encodes and decodes maps, by a diffusion decoder, or by the tokenizer's own if it is None."""

    def reconstruct(depth: Tensor) -> tuple[Tensor, Tensor]:
        size = (depth.shape[1], depth.shape[2])
        codes = tokenizer.encode(depth)
        if decoder is None:
            return tokenizer.decode(codes, size=size), codes
        chunks = [decoder.decode(some, size=size, num_steps=num_steps, seed=seed) for some in codes.split(_BATCH)]
        return torch.cat(chunks), codes

    return reconstruct


def squashed(one: MeasuredMap, size: int) -> MeasuredMap:
    """A measured map resized to (size, size) as inverse depth, so that holes do not bleed."""
    valid = one.depth.isfinite()
    inverse = torch.where(valid, 1 / one.depth, 0)
    values, mask = resize_masked(inverse[None], valid[None], (size, size))
    return MeasuredMap(one.name, torch.where(mask, 1 / values, torch.nan)[0], one.ground_truth)


def depth_sets(scenes: int, size: int, measured: bool) -> dict[str, DepthSet]:
    """The sets of maps, by name."""
    sets = {style: scene_set(style, scenes, size) for style in ("standard", "shifted")}
    maps = [squashed(one, size) for one in measured_maps()] if measured else []
    return sets | ({"measured": measured_set(maps)} if maps else {})


def measure(tokenizer: VQVAE, decoder: DiffusionDecoder, sets: dict[str, DepthSet], steps: tuple[int, ...]) -> Any:
    """Figures per set and decoder; for the default number of steps also with other seeds."""
    size = tokenizer.config.codebook_size
    found: dict[str, dict[str, Any]] = {}
    for name, chosen in sets.items():
        found[name] = {PLAIN: figures(reconstruct_with(tokenizer, None, 0), chosen, size)}
        for count in steps:
            seeds = SEEDS if count == DEFAULT_STEPS and len(steps) > 1 else SEEDS[:1]
            for seed in seeds:
                label = f"diffusion, {count} steps" + (f", seed {seed}" if seed else "")
                found[name][label] = figures(reconstruct_with(tokenizer, decoder, count, seed), chosen, size)
    return found


def times_plain(tokenizer: VQVAE, decoder: DiffusionDecoder, depth: Tensor) -> dict[int, float]:
    """Time relative to the plain decoder per number of steps: medians of rounds in which they take turns."""
    codes, ratios = tokenizer.encode(depth), dict[int, list[float]]()
    for turn in range(_ROUNDS + 1):
        start = time.perf_counter()
        tokenizer.decode(codes, size=(depth.shape[1], depth.shape[2]))
        plain = time.perf_counter() - start
        for count in STEPS:
            start = time.perf_counter()
            decoder.decode(codes, num_steps=count)
            if turn:
                ratios.setdefault(count, []).append((time.perf_counter() - start) / plain)
    return {count: round(statistics.median(values), 1) for count, values in ratios.items()}


def bars(found: dict[str, dict[str, Any]], same_bits: bool) -> list[Bar]:
    """Targets: sharper at edges, hardly worse elsewhere, and the same map each time.

    A sharp edge in the wrong place counts twice in the slope error and a blurred edge half, so slopes need only be
    nearly as good.
    """
    listed = []
    label = f"diffusion, {DEFAULT_STEPS} steps"
    for style in ("standard", "shifted"):
        plain, ours = found[style][PLAIN], found[style][label]
        slope = plain["slope_error_255"]["mean"] / ours["slope_error_255"]["mean"]
        listed.append(Bar(f"{style}: slope error of the plain decoder over diffusion's", slope, 0.9, "times"))
        edges = ours["boundary_f1"]["mean"] / max(1e-6, plain["boundary_f1"]["mean"])
        listed.append(Bar(f"{style}: edges F1 of diffusion over the plain decoder's", edges, 1.2, "times"))
        error = plain["rmse"]["mean"] / ours["rmse"]["mean"]
        listed.append(Bar(f"{style}: RMSE of the plain decoder over diffusion's", error, 0.85, "times"))
    return [*listed, Bar("maps of one seed that are the same, to the bit", float(same_bits), 1.0, "of 1")]


def draw(tokenizer: VQVAE, decoder: DiffusionDecoder, sets: dict[str, DepthSet]) -> Path:
    """Picture of the truth, the plain decoder's map and the diffusion decoder's, one row per map."""
    size = decoder.config.image_size
    depths = [sets["standard"].depth[0][:1], sets["shifted"].depth[0][1:2]]
    depths += [one for one in sets["measured"].depth[:2]] if "measured" in sets else []
    pictures: list[tuple[str, Image.Image]] = []
    for depth in depths:
        codes = tokenizer.encode(depth)
        near = torch.where(depth.isfinite(), true_nearness(depth)[0], torch.nan)
        maps = {
            "depth": near,
            "100 tokens, plain decoder": tokenizer.decode(codes, size=(size, size)),
            f"100 tokens, diffusion, {DEFAULT_STEPS} steps": decoder.decode(codes, num_steps=DEFAULT_STEPS),
        }
        pictures += [(title, DepthTokenizer.draw(values[0])) for title, values in maps.items()]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    sheet(pictures).save(PICTURE)
    return PICTURE


def print_table(found: dict[str, dict[str, Any]], console: Console) -> None:
    """Print one line per set and decoder."""
    names = ("rmse", "abs_rel", "delta1", "slope_error_255", "boundary_f1", "order_5")
    table = Table("maps", "decoder", *names)
    for chosen, decoders in found.items():
        for label, values in decoders.items():
            cells = [f"{values[name]['mean']:.3f}" if name in values else "-" for name in names]
            table.add_row(chosen, label, *cells)
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer scenes; write nothing")
    parser.add_argument("--tokenizer", type=Path, default=shipped("depth-scenes-100"))
    parser.add_argument("--decoder", type=Path, help="folder of the diffusion decoder; default: TOKENIZER/diffusion")
    parser.add_argument("--scenes", type=int, help="held-out scenes per style; default 200, with --check 40")
    arguments = parser.parse_args(argv)
    tokenizer = VQVAE.from_pretrained(arguments.tokenizer)
    decoder = DiffusionDecoder.from_pretrained(arguments.decoder or arguments.tokenizer / "diffusion", tokenizer)
    scenes = arguments.scenes or (40 if arguments.check else 200)
    sets = depth_sets(scenes, decoder.config.image_size, measured=not arguments.check)
    steps = (DEFAULT_STEPS,) if arguments.check else STEPS
    found = measure(tokenizer, decoder, sets, steps)
    codes = tokenizer.encode(sets["standard"].depth[0][:2])
    same_bits = decoder.decode(codes, seed=5).equal(decoder.decode(codes, seed=5))
    listed = bars(found, same_bits)
    if not arguments.check:
        print_table(found, Console())
        ratios = times_plain(tokenizer, decoder, sets["standard"].depth[0][:8])
        result = {"scenes_a_style": scenes, **provenance(), "parameters": sum(p.numel() for p in decoder.parameters())}
        result |= {"time_over_plain": ratios, "results": found, "bars": [bar.to_json() for bar in listed]}
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written: {RESULT}, {draw(tokenizer, decoder, sets)}")
    for bar in listed:
        print(bar.line())
    return 0 if all_met(listed) else 1


if __name__ == "__main__":
    sys.exit(main())
