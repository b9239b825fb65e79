"""The proof on the spot (`python -m train.quickstart`, or `make quickstart`).

Fine-tunes the shipped base twice from the same start, on the same images, for the same number of steps: once to answer
directly, once AURORA-style. Then it asks both the same held-out questions, prints the table and writes a report.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from rich.console import Console

from perception.datasets.motorcycle import motorcycle_depth
from perception.evaluation.comparison import compare, print_comparison
from perception.evaluation.report import Figure, comparison_html, example_figures, side_by_side, write_report
from perception.evaluation.scenes import scene_items
from perception.model import PerceptionModel
from perception.tokenizers.depth import DepthTokenizer
from train.aurora import AuroraConfig, train
from train.config import parse_config
from train.loop import FitResult, LoopConfig
from vqvae import VQVAE
from vqvae.metrics import depth_errors


@dataclass(frozen=True)
class QuickstartConfig:
    """Configuration of the quickstart; the defaults fit in twelve minutes on two cores."""

    run_dir: str = "runs/quickstart"
    num_scenes: int = 4000
    num_count: int = 200
    """counting questions a look"""
    num_depth: int = 60
    """depth questions a look for each of 2, 3, 4 and 5 points"""
    looks: tuple[str, ...] = ("standard", "shifted")
    aurora: AuroraConfig = field(
        default_factory=lambda: AuroraConfig(
            loop=LoopConfig(steps=220, learning_rate=1e-3, weight_decay=0.05, warmup_steps=20, precision="bf16"),
        )
    )


def fine_tune_both(config: QuickstartConfig, console: Console) -> dict[str, FitResult]:
    """Both arms, from one base, on one set of images, for one number of steps."""
    results = {}
    for arm, words in (("direct", "to answer directly"), ("aurora", "AURORA-style, with perception tokens")):
        console.print(f"\n[bold]Fine-tuning {words}[/] ({config.aurora.loop.steps} steps)")
        folder = Path(config.run_dir) / arm
        arm_config = replace(
            config.aurora,
            arm=arm,
            run_dir=str(folder),
            out=str(folder / "model"),
            store=str(Path(config.run_dir) / "scenes"),
            num_scenes=config.num_scenes,
        )
        results[arm] = train(arm_config)
        waiting = 100 * results[arm].data_wait_share
        console.print(
            f"final loss {results[arm].final_loss:.3f}; {waiting:.1f} % of the time went into waiting for data"
        )
    return results


def motorcycle_section(tokenizer: VQVAE, console: Console) -> list[str | list[Figure]]:
    """The tokenizer on a measured depth map with holes; empty, and said so, where scikit-image is absent."""
    depth = motorcycle_depth()
    if depth is None:
        console.print("scikit-image is not installed: the real depth map is left out of the report")
        return []
    valid = torch.isfinite(depth) & (depth > 0)
    normalised = tokenizer.normalise(depth[None])
    codes = tokenizer.encode(depth[None])
    decoded = tokenizer.decode(codes, depth_range=normalised.depth_range, size=tuple(depth.shape))[0]
    figures = depth_errors(decoded[None], depth[None], valid[None]).means()
    said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    console.print(
        f"\nreal depth (stereo motorcycle, {100 * (1 - valid.float().mean()):.1f} % holes), 100 tokens: {said}"
    )
    near = torch.where(valid, 1 / depth, torch.nan)
    low, high = near[valid].min(), near[valid].max()
    decoded_near = tokenizer.decode(codes, size=tuple(depth.shape))[0]
    pictures = [DepthTokenizer.draw((near - low) / (high - low)), DepthTokenizer.draw(decoded_near)]
    words = (
        "<h2>A measured depth map through the tokenizer</h2><p>Stereo motorcycle: the ground truth (holes are grey), "
    )
    words += f"and what 100 tokens keep of it. {said}</p>"
    return [words, [Figure(side_by_side(pictures), "<b>ground truth and decoded</b>")]]


def main(argv: list[str] | None = None) -> None:
    config = parse_config(QuickstartConfig, argv)
    console, start = Console(), time.monotonic()
    fine_tune_both(config, console)
    folder = Path(config.run_dir)
    aurora = PerceptionModel.from_pretrained(folder / "aurora" / "model")
    direct = PerceptionModel.from_pretrained(folder / "direct" / "model")
    console.print("\n[bold]Asking both the same held-out questions[/]")
    sections: list[str | list[Figure]] = []
    for look in config.looks:
        items = scene_items(look, config.num_count, config.num_depth)
        comparison, chain, at_once = compare(look, items, aurora, direct, with_interventions=look == config.looks[0])
        print_comparison(comparison, console)
        sections += [comparison_html(comparison), example_figures(aurora, items, chain, at_once, each=2)]
    sections += motorcycle_section(aurora.depth_tokenizer, console)
    intro = (
        f"Two copies of the tiny base, {config.aurora.loop.steps} steps of {config.aurora.batch_size} samples each on the "
        f"same {config.num_scenes} rendered scenes. Intervals are 95 % bootstrap; the examples are the first of each kind."
    )
    report = write_report(
        folder / "report.html", "Perception tokens: drawing first, or answering at once", intro, sections
    )
    console.print(f"\n{(time.monotonic() - start) / 60:.1f} minutes. Report: {report}")
    console.print(f'Next: perception ask IMAGE "How many red cubes are there?" --model {folder / "aurora" / "model"}')


if __name__ == "__main__":
    main()
