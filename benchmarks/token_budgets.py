"""Measure depth tokenizers with different numbers of tokens and codes (`python -m benchmarks.token_budgets`).

Trains a tokenizer for each combination of 16 to 400 tokens per map and 128 to 4,096 codes, with an EMA codebook and
with FSQ: 36 in total. Adds two more seeds of the shipped design, and a nested one, whose first n tokens decode too. All
are trained on the shipped tokenizer's data and measured on held-out scenes of both styles at 160 x 160 and on the
measured maps whose packages are installed. Takes about two hours on two cores; trained models stay in --runs, so a run
that was stopped goes on. Writes `benchmarks/results/token_budgets.json`, the table
`benchmarks/results/token_budgets.md` and the plot `docs/token_budgets.png`.

With --check it trains three small tokenizers for a minute, prints one line per target (more tokens and more codes must
lose less), writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bars import Bar, all_met
from benchmarks.budget_page import draw_curves, write_page
from benchmarks.depth_sets import DepthSet, figures, measured_set, reconstruct_with, scene_set
from perception.datasets.depth.measured import measured_maps
from perception.datasets.progress import track
from train.loop.config import LoopConfig
from train.loop.provenance import ROOT, provenance
from train.tokenizer import TokenizerConfig, train
from vqvae import VQVAE, VQVAEConfig
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "token_budgets.json"
RUNS = ROOT / "runs" / "token_budgets"
BUDGETS = (16, 36, 64, 100, 196, 400)
"""Tokens per map"""
CODEBOOKS = (128, 512, 4096)
FSQ_LEVELS = {128: (8, 4, 4), 512: (8, 8, 8), 4096: (8, 8, 8, 8)}
CELL = 8
"""Side, in pixels, of the cell that a token stands for; every budget has the same network at another resolution"""
STEPS = 800
EVALUATION_SIZE = 160
"""Side of the held-out scenes, in pixels"""


@dataclass(frozen=True)
class Variant:
    """One tokenizer of the grid."""

    tokens: int
    codebook_size: int
    quantizer: str
    seed: int = 0
    nested: bool = False

    @property
    def name(self) -> str:
        more = (f"-seed{self.seed}" if self.seed else "") + ("-nested" if self.nested else "")
        return f"{self.tokens}-{self.codebook_size}-{self.quantizer}{more}"

    @property
    def model(self) -> VQVAEConfig:
        levels = FSQ_LEVELS[self.codebook_size] if self.quantizer == "fsq" else ()
        return VQVAEConfig(
            image_size=CELL * round(self.tokens**0.5),
            downsample=CELL,
            codebook_size=self.codebook_size,
            codebook_dim=len(levels) or 16,
            quantizer=self.quantizer,
            fsq_levels=levels,
            nested=self.nested,
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Numbers of first tokens that it is measured at."""
        return tuple(n for n in BUDGETS if n <= self.tokens) if self.nested else (self.tokens,)


def variants() -> list[Variant]:
    """The grid, two more seeds of the shipped design to show the spread of trainings, and that design nested."""
    grid = [Variant(tokens, size, kind) for size in CODEBOOKS for kind in ("ema", "fsq") for tokens in BUDGETS]
    return grid + [Variant(100, 128, "ema", seed) for seed in (1, 2)] + [Variant(100, 128, "ema", nested=True)]


def training(variant: Variant, folder: Path, steps: int, num_scenes: int = 12_000) -> TokenizerConfig:
    """Recipe of one tokenizer: the shipped one's data, batch and schedule, with fewer steps."""
    return TokenizerConfig(
        run_dir=str(folder / variant.name / "run"),
        out=str(folder / variant.name / "finished"),
        store=str(folder / f"scenes-{variant.model.image_size}"),
        num_scenes=num_scenes,
        num_held_out=64,
        model=variant.model,
        loop=LoopConfig(
            steps=steps,
            learning_rate=1.5e-3,
            warmup_steps=min(100, steps // 4),
            min_lr_ratio=0.02,
            betas=(0.9, 0.98),
            precision="bf16",
            seed=variant.seed,
        ),
    )


def finished(variant: Variant, folder: Path, steps: int, num_scenes: int = 12_000) -> VQVAE:
    """The trained tokenizer, from `folder` if it is there already."""
    config = training(variant, folder, steps, num_scenes)
    if not (Path(config.out) / "config.json").exists():
        train(config)
    return VQVAE.from_pretrained(config.out)


def depth_sets(scenes: int) -> dict[str, DepthSet]:
    """The sets that all are measured on, by name."""
    sets = {style: scene_set(style, scenes, EVALUATION_SIZE) for style in ("standard", "shifted")}
    measured = measured_maps()
    for name, truth in (("measured: ground truth", True), ("measured: stereo matching", False)):
        chosen = [one for one in measured if one.ground_truth is truth]
        if chosen:
            sets[name] = measured_set(chosen)
    return sets


def measure(folder: Path, steps: int, scenes: int) -> list[dict[str, Any]]:
    """One row per tokenizer, and per length of a nested one: what it is, bits per map, and its figures on each set.

    The figures of a tokenizer are kept beside it, so that a run that was stopped goes on.
    """
    sets: dict[str, DepthSet] = {}
    rows = []
    for variant in track(variants(), "measuring"):
        model = finished(variant, folder, steps)
        for tokens in variant.lengths:
            kept = folder / variant.name / f"figures-{tokens}-{scenes}-{model.fingerprint()}.json"
            if not kept.exists():
                sets = sets or depth_sets(scenes)
                write_whole(kept, json.dumps(_figures(variant, model, tokens, sets)))
            bits = tokens * (variant.codebook_size - 1).bit_length()
            rows.append({**vars(variant), "tokens": tokens, "bits": bits, "results": json.loads(kept.read_text())})
    return rows


def _figures(variant: Variant, model: VQVAE, tokens: int, sets: dict[str, DepthSet]) -> dict[str, Any]:
    reconstruct = reconstruct_with(model, tokens if variant.nested else None)
    return {name: figures(reconstruct, chosen, variant.codebook_size) for name, chosen in sets.items()}


def check() -> list[Bar]:
    """Train three tokenizers for a short while and compare them."""
    small, shipped, many = Variant(16, 128, "ema"), Variant(64, 128, "ema"), Variant(64, 512, "ema")
    sets = scene_set("standard", 200, EVALUATION_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        errors = {}
        for variant in (small, shipped, many):
            model = finished(variant, Path(folder), 300, num_scenes=2000)
            measured: Any = figures(reconstruct_with(model), sets, variant.codebook_size)
            errors[variant.name] = measured["abs_rel"]["mean"]
    few, middle, more = (errors[variant.name] for variant in (small, shipped, many))
    return [
        Bar("AbsRel of 16 tokens over that of 64", few / middle, 1.5, "times"),
        Bar("AbsRel of 128 codes over that of 512", middle / more, 1.05, "times"),
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="check the targets on three short trainings; write nothing"
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of stores and trainings")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"steps of each training, 32 maps per step; default {STEPS}"
    )
    parser.add_argument("--scenes", type=int, default=250, help="held-out scenes per style")
    arguments = parser.parse_args(argv)
    if arguments.check:
        found = check()
        for bar in found:
            print(bar.line())
        return 0 if all_met(found) else 1
    rows = measure(arguments.runs, arguments.steps, arguments.scenes)
    head = {"steps": arguments.steps, "batch_size": 32, "scenes_a_style": arguments.scenes, **provenance()}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    print(f"written: {RESULT}, {write_page(json.loads(RESULT.read_text()))}, {draw_curves(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
