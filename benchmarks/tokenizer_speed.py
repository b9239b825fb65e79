"""Measure the speed of the depth tokenizer (`python -m benchmarks.tokenizer_speed`).

Times the way from a depth map of 320 x 320 pixels to 100 codes and back to 320 x 320, with normalisation and resizing:
the shipped tokenizer against AURORA's design (`benchmarks.reference_vqvae`, with its initial weights, since speed does
not depend on them). A third row is our design at the reference's inner resolution, untrained, which shows how much of
the ratio comes from the smaller size inside. All take turns batch by batch in one run, on all cores; every figure is a
ratio to the reference. Writes `benchmarks/results/tokenizer_speed.json` in a minute on two cores.

With --check it measures fewer batches, prints one line per target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars import Bar, all_met
from benchmarks.clock import now
from benchmarks.reference_vqvae import ReferenceVQVAE
from perception.model.devices import find_device
from perception.scenes.render import render_scenes
from train.loop.provenance import ROOT, provenance
from vqvae import VQVAE, VQVAEConfig

RESULT = ROOT / "benchmarks" / "results" / "tokenizer_speed.json"
TOKENIZER = ROOT / "tokenizers" / "depth-scenes-100"
FIRST_SEED = 96_000_000
SIZE = 320
"""Pixels a side of the maps that go in and come out."""
BATCH_SIZES = (1, 32)
SPEED_BAR = 2.0
"""Times as many maps a second, encoded and decoded, as the reference."""
Tokenizer = VQVAE | ReferenceVQVAE
OURS, INSIDE_320, REFERENCE = "depth-scenes-100", "ours at 320 x 320 inside", "reference"


def peers(device: torch.device) -> dict[str, Tokenizer]:
    """The tokenizers by name, ready to run."""
    found: dict[str, Tokenizer] = {
        OURS: VQVAE.from_pretrained(TOKENIZER),
        INSIDE_320: VQVAE(VQVAEConfig(image_size=SIZE, downsample=32)),
        REFERENCE: ReferenceVQVAE(),
    }
    for model in found.values():
        model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return found


def parameters(model: Tokenizer) -> int:
    """Number of learned values: weights, and the rows of the codebook."""
    return sum(weight.numel() for weight in model.parameters()) + model.codebook.numel()


def seconds(model: Tokenizer, depth: Tensor) -> tuple[float, float]:
    """Seconds to encode and to decode a batch (B, S, S)."""
    start = now(depth.device)
    codes = model.encode(depth)
    middle = now(depth.device)
    model.decode(codes, size=(SIZE, SIZE))
    return middle - start, now(depth.device) - middle


def race(models: dict[str, Tokenizer], depth: Tensor, batch_size: int, rounds: int) -> dict[str, Any]:
    """Ratios to the reference: medians of the rounds with their quartiles; the first round warms up and is left out."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(rounds + 1):
        batch = depth[torch.arange(turn * batch_size, (turn + 1) * batch_size) % len(depth)]
        for name, model in models.items():
            both = seconds(model, batch)
            if turn:
                took[name].append(both)
    speeds = {}
    for name, ours in took.items():
        pairs = list(zip(ours, took[REFERENCE], strict=True))
        whole = [sum(theirs) / sum(mine) for mine, theirs in pairs]
        speeds[name] = {
            "encode": round(statistics.median(theirs[0] / mine[0] for mine, theirs in pairs), 2),
            "decode": round(statistics.median(theirs[1] / mine[1] for mine, theirs in pairs), 2),
            "both": round(statistics.median(whole), 2),
            "both_quartiles": [round(q, 2) for q in statistics.quantiles(whole)],
            "milliseconds_a_map": round(1e3 * statistics.median(sum(mine) for mine in ours) / batch_size, 2),
        }
    return {"batch_size": batch_size, "rounds": rounds, "speed_over_reference": speeds}


def measure(rounds: int, batch_sizes: Sequence[int] = BATCH_SIZES, scenes: int = 64) -> dict[str, Any]:
    """Everything in the result file; rounds are for large batches, and single maps get four times as many."""
    device = find_device()
    depth = render_scenes(range(FIRST_SEED, FIRST_SEED + scenes), "standard", SIZE).depth.to(device)  # (scenes, S, S)
    models = peers(device)
    return {
        "parameters": {name: parameters(model) for name, model in models.items()},
        "threads": torch.get_num_threads(),
        "races": [race(models, depth, size, rounds * (4 if size == 1 else 1)) for size in batch_sizes],
    }


def bars(result: dict[str, Any]) -> list[Bar]:
    """Targets: the speed at each batch size, and the reference's parameters over ours."""
    found = [
        Bar(
            f"batch of {race['batch_size']}: maps encoded and decoded over the reference",
            race["speed_over_reference"][OURS]["both"],
            SPEED_BAR,
            "times",
        )
        for race in result["races"]
    ]
    share = result["parameters"][REFERENCE] / result["parameters"][OURS]
    return [*found, Bar("parameters of the reference over ours", share, 1.0, "times")]


def table(result: dict[str, Any]) -> str:
    """The ratios as a Markdown table."""
    head = ["", "parameters", *(f"batch of {race['batch_size']}" for race in result["races"])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, count in result["parameters"].items():
        cells = [race["speed_over_reference"][name] for race in result["races"]]
        speeds = [f"{c['both']:.1f}x (encode {c['encode']:.1f}x, decode {c['decode']:.1f}x)" for c in cells]
        lines.append(f"| {name} | {count / 1e6:.1f} M | {' | '.join(speeds)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer batches; write nothing")
    parser.add_argument("--rounds", type=int, help="batches of the largest size; 12, with --check 4")
    arguments = parser.parse_args(argv)
    rounds = (4 if arguments.check else 12) if arguments.rounds is None else arguments.rounds
    if rounds < 2:
        parser.error(f"--rounds must be at least 2, for a median with its spread; got {rounds}")
    result = measure(rounds)
    found = bars(result)
    if not arguments.check:
        print(table(result))
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        whole = {**provenance(), **result, "bars": [bar.to_json() for bar in found]}
        RESULT.write_text(json.dumps(whole, indent=2) + "\n")
    for bar in found:
        print(bar.line())
    if not arguments.check:
        print(f"written: {RESULT}")
    return 0 if all_met(found) else 1


if __name__ == "__main__":
    sys.exit(main())
