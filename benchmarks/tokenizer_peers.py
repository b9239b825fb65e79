"""Compare our depth tokenizer with others of its kind, trained alike (`python -m benchmarks.tokenizer_peers`).

Four tokenizers of 100 tokens and 128 codes see the same number of the same rendered scenes, without augmentation: ours;
AURORA's design built from its description (`benchmarks.reference_vqvae`) with its optimizer and schedule; and, with the
same optimizer and schedule, an autoencoder around vector-quantize-pytorch and diffusers' VQModel
(`benchmarks.library_vqvaes`). Each is measured on held-out scenes at 320 x 320, the reference's own size, and on
measured maps, with holes filled in for tokenizers that do not support them. Takes about two hours on one core; trained
models stay in --runs, so a run that was stopped goes on. Writes `benchmarks/results/tokenizer_peers.json` and `.md`.

With --check it trains ours and AURORA's design on a tenth of the scenes (some five minutes), prints one line per
target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.bars import Bar, all_met
from benchmarks.depth_sets import DepthSet, Reconstruct, figures, measured_set, scene_set
from benchmarks.library_vqvaes import DiffusersVQVAE, LibraryQuantizerVQVAE
from benchmarks.reference_vqvae import ReferenceVQVAE
from benchmarks.tokenizer_speed import parameters
from perception.datasets.depth.measured import measured_maps
from perception.scenes.store import SceneStore
from train.loop.config import LoopConfig
from train.loop.fit import fit
from train.loop.provenance import ROOT, provenance
from train.tokenizer import DepthBatches, tokenizer_loss
from vqvae import VQVAE
from vqvae.holes import fill_holes

RESULT = ROOT / "benchmarks" / "results" / "tokenizer_peers.json"
RUNS = ROOT / "runs" / "tokenizer_peers"
OURS, REFERENCE = "ours", "AURORA's design"
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    OURS: VQVAE,
    REFERENCE: ReferenceVQVAE,
    "vector-quantize-pytorch autoencoder": LibraryQuantizerVQVAE,
    "diffusers VQModel": DiffusersVQVAE,
}
IMAGES = 48_000
"""Number of maps that each tokenizer sees"""
STORE_SIZE = 160
"""Side of the maps that all are trained on, in pixels"""
EVALUATION_SIZE = 320
FIRST_SEED, NUM_SCENES = 1_000_000, 12_000
ERROR_BAR = 0.7
"""Largest share of the reference's AbsRel that ours may have"""
USAGE_BAR = 98.0
"""Share of the codebook that ours must use, in percent"""
_BATCH = 16


def _settings(name: str, images: int) -> tuple[int, LoopConfig]:
    """Batch size and schedule.

    Ours uses its recipe's; the others use AURORA's (Adam, 3e-4, times 0.98 every 500 batches of 8).
    """
    if name == OURS:
        steps = images // 32
        return 32, LoopConfig(
            steps=steps,
            learning_rate=1.5e-3,
            warmup_steps=min(100, steps // 4),
            min_lr_ratio=0.02,
            betas=(0.9, 0.98),
            precision="bf16",
        )
    steps = images // 8
    return 8, LoopConfig(
        steps=steps,
        learning_rate=3e-4,
        schedule="exponential",
        min_lr_ratio=0.98 ** (steps / 500),
        weight_decay=0.0,
        betas=(0.9, 0.999),
        grad_clip=0.0,
    )


def _peer_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    terms: dict[str, Tensor] = model(batch["depth"])
    return torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()}


def trained(name: str, folder: Path, images: int) -> nn.Module:
    """A tokenizer after `images` maps, continued from its newest checkpoint if there is one."""
    torch.manual_seed(0)
    model = BUILDERS[name]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch_size, loop = _settings(name, images)
    seeds = range(FIRST_SEED, FIRST_SEED + min(NUM_SCENES, images))
    store = SceneStore.build(folder / f"scenes-{STORE_SIZE}", seeds, image_size=STORE_SIZE)
    batches = DepthBatches(store, batch_size, loop.seed, augment=False)  # mirrored at most: the others know no holes
    run = folder / f"{list(BUILDERS).index(name)}-{images}"
    fit(model, batches, tokenizer_loss if name == OURS else _peer_loss, loop, run, title=name)
    return model.cpu().eval()


def reconstruct_with(model: Any) -> Reconstruct:
    """A function that encodes and decodes maps at their own size, in small batches.

    Holes are filled in for tokenizers that do not support them.
    """

    def reconstruct(depth: Tensor) -> tuple[Tensor, Tensor]:
        size, nearness, codes = (depth.shape[1], depth.shape[2]), [], []
        for chunk in depth.split(_BATCH):
            codes.append(model.encode(chunk if isinstance(model, VQVAE) else fill_holes(chunk)))
            nearness.append(model.decode(codes[-1], size=size))
        return torch.cat(nearness), torch.cat(codes)

    return reconstruct


def measure(names: list[str], folder: Path, images: int, sets: dict[str, DepthSet]) -> dict[str, Any]:
    """Parameters and figures per tokenizer, by name."""
    found = {}
    for name in names:
        model: Any = trained(name, folder, images)
        size = len(model.codebook)
        results = {chosen: figures(reconstruct_with(model), maps, size) for chosen, maps in sets.items()}
        found[name] = {"parameters": parameters(model), "results": results}
    return found


def depth_sets(scenes: int, measured: bool) -> dict[str, DepthSet]:
    """The sets that all are measured on, by name."""
    sets = {style: scene_set(style, scenes, EVALUATION_SIZE) for style in ("standard", "shifted")}
    scanned = [one for one in measured_maps() if one.ground_truth] if measured else []
    return sets | ({"measured: ground truth": measured_set(scanned)} if scanned else {})


def bars(found: dict[str, Any]) -> list[Bar]:
    """Targets: the error and the use of the codebook on each style, and the parameters."""
    ours, reference = found[OURS], found[REFERENCE]
    listed = []
    for style in ("standard", "shifted"):
        mine, theirs = (one["results"][style] for one in (ours, reference))
        ratio = theirs["abs_rel"]["mean"] / mine["abs_rel"]["mean"]
        listed.append(Bar(f"{style}: AbsRel of AURORA's design over ours", ratio, 1 / ERROR_BAR, "times"))
        listed.append(Bar(f"{style}: codes used by ours", 100 * mine["codebook_usage"], USAGE_BAR, "%"))
    share = reference["parameters"] / ours["parameters"]
    return [*listed, Bar("parameters of AURORA's design over ours", share, 1.0, "times")]


def page(result: dict[str, Any]) -> str:
    """The page: Markdown tables, one per set of maps."""
    names = {"abs_rel": "AbsRel", "delta1": "delta1", "rmse": "RMSE", "boundary_f1": "edges F1"}
    orders = {f"order_{number}": f"order of {number}, %" for number in (2, 3, 4, 5)}
    lines = [
        "# Depth tokenizers of 100 tokens and 128 codes, trained alike",
        "",
        f"Made by `python -m benchmarks.tokenizer_peers`: {result['images']:,} rendered scenes seen by each, measured "
        f"on {result['scenes_a_style']} held-out scenes per style at 320 x 320 and on measured maps at their own size.",
        "",
        f"Machine: {result['processor']}, {result['cores']} cores; torch {result['torch']}; "
        f"commit {result['commit'][:12]}.",
    ]
    for chosen in next(iter(result["tokenizers"].values()))["results"]:
        head = ["", "parameters", *names.values(), *orders.values(), "codes used of 128"]
        lines += ["", f"## {chosen}", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for name, one in result["tokenizers"].items():
            figures_of = one["results"][chosen]
            cells = [name, f"{one['parameters'] / 1e6:.1f} M"]
            for figure, factor, digits in [*((f, 1, 3) for f in names), *((f, 100, 1) for f in orders)]:
                value = figures_of.get(figure)
                cells.append("-" if value is None else f"{factor * value['mean']:.{digits}f}")
            cells.append(f"{round(128 * figures_of['codebook_usage'])}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on short trainings; write nothing")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the store and the trainings")
    parser.add_argument("--images", type=int, help=f"maps seen by each; default {IMAGES}, with --check a tenth")
    parser.add_argument("--scenes", type=int, help="held-out scenes per style; default 300, with --check 100")
    arguments = parser.parse_args(argv)
    images = arguments.images or (IMAGES // 10 if arguments.check else IMAGES)
    scenes = arguments.scenes or (100 if arguments.check else 300)
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            found = measure([OURS, REFERENCE], Path(folder), images, depth_sets(scenes, measured=False))
    else:
        found = measure(list(BUILDERS), arguments.runs, images, depth_sets(scenes, measured=True))
        result = {"images": images, "scenes_a_style": scenes, **provenance(), "tokenizers": found}
        result["bars"] = [bar.to_json() for bar in bars(found)]
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        RESULT.with_suffix(".md").write_text(page(result))
        print(page(result))
    for bar in bars(found):
        print(bar.line())
    return 0 if all_met(bars(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
