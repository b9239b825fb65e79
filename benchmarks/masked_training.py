"""Measure masked training on maps with missing pixels (`python -m benchmarks.masked_training`).

Trains the shipped design for a short while, plainly, and as AiT does with half of the patches of half of the maps
hidden from the encoder; each with holes filled in before the encoder, and with holes that the encoder is told of; three
seeds. Each is measured on whole held-out scenes and on the same scenes with half of their pixels missing
(`benchmarks.missing_depth`). Takes about half an hour on one core; trained models stay in --runs. Writes
`benchmarks/results/masked_training.json` and `.md`.

With --check it trains four small tokenizers for a minute, prints one line per target, writes nothing, and exits 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.bars import Bar, all_met
from benchmarks.depth_sets import scene_set
from benchmarks.missing_depth import missing_figures
from benchmarks.token_budgets import RUNS, STEPS, Variant, training
from perception.datasets.progress import track
from train.loop.provenance import ROOT, provenance
from train.tokenizer import TokenizerConfig, train
from vqvae import VQVAE

RESULT = ROOT / "benchmarks" / "results" / "masked_training.json"
SEEDS = (0, 1, 2)
PATTERNS = ("single pixels", "patches", "blobs")
EVALUATION_SIZE = 80


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    masked: bool
    fill_holes: bool

    @property
    def name(self) -> str:
        return f"{'masked' if self.masked else 'plain'}, holes {'filled in' if self.fill_holes else 'as they are'}"


ARMS = tuple(Arm(masked, filled) for masked in (False, True) for filled in (True, False))


def recipe(arm: Arm, seed: int, folder: Path, steps: int, num_scenes: int = 12_000) -> TokenizerConfig:
    """Training of an arm. Plain maps with holes filled in are trained as in `benchmarks.token_budgets`."""
    variant = Variant(100, 128, "ema", seed)
    config = training(variant, folder, steps, num_scenes)
    if arm == ARMS[0]:
        return config
    here = folder / f"{variant.name}-{'masked' if arm.masked else 'plain'}-{'filled' if arm.fill_holes else 'holed'}"
    return replace(
        config,
        run_dir=str(here / "run"),
        out=str(here / "finished"),
        masked_maps=0.5 if arm.masked else 0.0,
        model=replace(config.model, fill_holes=arm.fill_holes),
    )


def finished(config: TokenizerConfig) -> VQVAE:
    """The trained tokenizer, from its folder if it is there already."""
    if not (Path(config.out) / "config.json").exists():
        train(config)
    return VQVAE.from_pretrained(config.out).eval()


def measure(folder: Path, steps: int, scenes: int, seeds: tuple[int, ...], num_scenes: int = 12_000) -> dict[str, Any]:
    """Per arm: the figures of each seed."""
    depth = torch.cat(scene_set("standard", scenes, EVALUATION_SIZE).depth)
    jobs = [(arm, seed) for arm in ARMS for seed in seeds]
    found: dict[str, Any] = {arm.name: [] for arm in ARMS}
    for arm, seed in track(jobs, "training and measuring"):
        found[arm.name].append(missing_figures(finished(recipe(arm, seed, folder, steps, num_scenes)), depth))
    return found


def mean_of(found: dict[str, Any], arm: str, pattern: str, figure: str) -> float:
    """Mean over seeds."""
    return fmean(one[pattern][figure]["mean"] for one in found[arm])


def bars(found: dict[str, Any]) -> list[Bar]:
    """Targets of masked training.

    It costs little on whole maps, and wins where patches are missing and holes are not filled in.
    """
    told, whole = ARMS[1].name, "whole"
    masked = ARMS[3].name
    gain = mean_of(found, told, "patches", "abs_rel") / mean_of(found, masked, "patches", "abs_rel")
    cost = mean_of(found, masked, whole, "abs_rel") / mean_of(found, told, whole, "abs_rel")
    stay = 100 * mean_of(found, ARMS[0].name, "single pixels", "same_codes")
    return [
        Bar("AbsRel, patches missing, holes as they are: plain over masked training", gain, 1.2, "times"),
        Bar("AbsRel of whole maps: 2 minus masked over plain training", 2 - cost, 0.6, "times"),
        Bar("codes that stay with single pixels missing, holes filled in", stay, 60, "%"),
    ]


def page(result: dict[str, Any]) -> str:
    """The page: means over seeds, and the smallest and largest seed."""
    lines = [
        f"Made by `python -m benchmarks.masked_training`: {result['steps']} steps of {result['batch_size']} maps, "
        f"{len(result['seeds'])} seeds, {result['scenes']} held-out scenes. Means over seeds [smallest, largest].",
        "",
        "| training | AbsRel, whole | " + " | ".join(f"codes that stay, {p} | AbsRel, {p}" for p in PATTERNS) + " |",
        "|---" * (2 + 2 * len(PATTERNS)) + "|",
    ]
    for arm, seeds in result["arms"].items():
        cells = [_cell([one["whole"]["abs_rel"]["mean"] for one in seeds], 1, 4)]
        for pattern in PATTERNS:
            cells.append(_cell([one[pattern]["same_codes"]["mean"] for one in seeds], 100, 0) + " %")
            cells.append(_cell([one[pattern]["abs_rel"]["mean"] for one in seeds], 1, 4))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: list[float], factor: float, digits: int) -> str:
    mean, low, high = (f"{factor * value:.{digits}f}" for value in (fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on four short trainings; write nothing")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of stores and trainings")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"steps of each training, 32 maps per step; default {STEPS}"
    )
    parser.add_argument("--scenes", type=int, default=250, help="held-out scenes")
    arguments = parser.parse_args(argv)
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            checked = bars(measure(Path(folder), 200, 60, (0,), num_scenes=1500))
        for bar in checked:
            print(bar.line())
        return 0 if all_met(checked) else 1
    arms = measure(arguments.runs, arguments.steps, arguments.scenes, SEEDS)
    head = {"steps": arguments.steps, "batch_size": 32, "seeds": SEEDS, "scenes": arguments.scenes, **provenance()}
    found = bars(arms)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    result = {**head, "bars": [bar.to_json() for bar in found], "arms": arms}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(page(result))
    for bar in found:
        print(bar.line())
    print(f"written: {RESULT}, {RESULT.with_suffix('.md')}")
    return 0 if all_met(found) else 1


if __name__ == "__main__":
    sys.exit(main())
