"""Compare perception tokens with direct answers in minutes (`python -m train.quickstart`, or `make quickstart`).

Labels of perception are cheap, since a teacher model gives them; answers are not. The quickstart therefore starts from
`models/perception-tiny`, which draws depth maps, boxes and points and has never seen an answer, and fine-tunes it twice
on the same few answers, for the same number of steps: once to answer directly, once to draw first. It then asks both
models the same held-out questions, prints the table, and writes a report and a `summary.json` with all figures, minutes
and peak memory.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from rich.console import Console

from perception.datasets.depth.measured import motorcycle_depth
from perception.evaluation.comparison import Comparison, compare, print_comparison
from perception.evaluation.report import CaptionedImage, comparison_html, example_figures, side_by_side, write_report
from perception.evaluation.scenes import depth_tokenizer_of, evaluate_items, scene_items
from perception.model.folder import find_folder
from perception.model.perception_model import PerceptionModel
from perception.tokenizers.depth import DepthTokenizer
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.finetune import build_batches, build_parts, target_loss, train
from train.loop.command_line import command_line, flatten, parse_config
from train.loop.fit import FitResult, LoopConfig
from train.loop.memory import PeakMemory, peak_memory
from train.loop.provenance import provenance
from vqvae import VQVAE
from vqvae.metrics import depth_errors

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


@dataclass(frozen=True)
class QuickstartConfig:
    """Configuration of the quickstart."""

    run_dir: str = "runs/quickstart"
    base: str = "models/perception-tiny"
    num_scenes: int = 1000
    """number of rendered scenes"""
    answers: int = 500
    """number of scenes with an answer to one question of each kind; the other scenes have only depth maps and boxes"""
    batch_size: int = 16
    num_count: int = 200
    """number of counting questions per style"""
    num_depth: int = 60
    """number of depth questions per style and per number of points (2, 3, 4 and 5)"""
    styles: tuple[str, ...] = ("standard", "shifted")
    curriculum: CurriculumConfig = field(
        default_factory=lambda: CurriculumConfig(schedule="constant", atomic_end=0.15, chain_share=0.85)
    )
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=200, learning_rate=1e-3, weight_decay=0.05, warmup_steps=20, precision="bf16"
        )
    )

    def training(self, arm: Literal["aurora", "direct"]) -> AuroraConfig:
        """Return the fine-tuning configuration of an arm. The vision tower stays frozen."""
        folder = Path(self.run_dir)
        scenes = ScenesConfig(self.num_scenes, str(folder / "scenes"), answers=self.answers)
        return AuroraConfig(
            arm=arm,
            base=self.base,
            out=str(folder / arm / "model"),
            run_dir=str(folder / arm),
            tower_lr_ratio=0.0,
            batch_size=self.batch_size,
            data=SourcesConfig(scenes=scenes),
            curriculum=self.curriculum,
            loop=self.loop,
        )


_PASSES = 3
"""Times that every question is asked, in passes of the chain: it is asked directly as well, and with replaced spans"""
ARMS: dict[Literal["aurora", "direct"], str] = {
    "direct": "to answer directly",
    "aurora": "AURORA-style, with perception tokens",
}


def fine_tune_both(config: QuickstartConfig, console: Console) -> dict[str, FitResult]:
    """Fine-tune both arms from the same base, on the same images, for the same number of steps."""
    results: dict[str, FitResult] = {}
    for number, (arm, words) in enumerate(ARMS.items(), start=1):
        console.print(f"\n[bold]{number} of 4: fine-tuning {words}[/] ({config.loop.steps} steps)")
        fit = results[arm] = train(config.training(arm)).fit
        console.print(
            f"{fit.seconds / 60:.1f} minutes, final loss {fit.final_loss:.3f}; "
            f"{100 * fit.data_wait_share:.1f} % of the time was spent waiting for data",
            highlight=False,
        )
    return results


def minutes_needed(config: QuickstartConfig) -> float:
    """Estimate the minutes of the whole run on this machine: one step of each arm and a few answers, scaled up."""
    seconds = 0.0
    for arm in ARMS:
        training = config.training(arm)
        vqvae = VQVAE.from_pretrained(find_folder(training.depth_tokenizer)).eval()
        parts = build_parts(training, vqvae)
        batches = build_batches(training, parts, vqvae, ())
        for step in range(2):  # the first one warms up
            start = time.monotonic()
            for part in batches(step, 0, 1):
                target_loss(parts.model, part, step)[0].backward()
        seconds += config.loop.steps * (time.monotonic() - start)
    model, probe = PerceptionModel.from_pretrained(config.base), scene_items(config.styles[0], 4, 4)
    start = time.monotonic()
    evaluate_items(model, probe, "chain", title="timing")
    questions = config.num_count + 4 * config.num_depth
    seconds += _PASSES * len(config.styles) * questions / len(probe) * (time.monotonic() - start)
    return seconds / 60


def motorcycle_section(tokenizer: VQVAE, console: Console) -> list[str | list[CaptionedImage]]:
    """Return the report's section on a measured depth map with holes; without scikit-image, say so and return []."""
    depth = motorcycle_depth()
    if depth is None:
        console.print("scikit-image is not installed, so the report has no measured depth map")
        return []
    valid = torch.isfinite(depth) & (depth > 0)
    normalised = tokenizer.normalise(depth[None])
    codes = tokenizer.encode(depth[None])
    size = (depth.shape[0], depth.shape[1])
    decoded = tokenizer.decode(codes, depth_range=normalised.depth_range, size=size)[0]
    figures = depth_errors(decoded[None], depth[None], valid[None]).means()
    said = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
    console.print(
        f"\nreal depth (stereo motorcycle, {100 * (1 - valid.float().mean()):.1f} % holes), 100 tokens: {said}"
    )
    near = torch.where(valid, 1 / depth, torch.nan)
    low, high = near[valid].min(), near[valid].max()
    decoded_near = tokenizer.decode(codes, size=size)[0]
    pictures = [DepthTokenizer.draw((near - low) / (high - low)), DepthTokenizer.draw(decoded_near)]
    words = (
        "<h2>A measured depth map through the tokenizer</h2><p>Stereo motorcycle: the ground truth (holes are grey), "
    )
    words += f"and what 100 tokens keep of it. {said}</p>"
    return [words, [CaptionedImage(side_by_side(pictures), "<b>ground truth and decoded</b>")]]


def learning_curves(console: Console, folder: Path = RESULTS) -> list[str | list[CaptionedImage]]:
    """Print where the curves of `benchmarks.label_efficiency` are, and return the report's section; [] without them."""
    picture = folder / "label_efficiency.png"
    if not picture.exists():
        return []
    words = "Accuracy by the number of answers to learn from, three seeds: benchmarks/results/label_efficiency.md"
    console.print(f"\n{words}", highlight=False)
    with Image.open(picture) as image:
        return [f"<h2>With fewer and more answers</h2><p>{words}</p>", [CaptionedImage(image.convert("RGB"), "")]]


def ask_both(
    config: QuickstartConfig, aurora: PerceptionModel, direct: PerceptionModel, console: Console
) -> tuple[list[Comparison], list[str | list[CaptionedImage]]]:
    """Compare both models on held-out scenes of each style; return the comparisons and the report's sections."""
    comparisons: list[Comparison] = []
    sections: list[str | list[CaptionedImage]] = []
    for style in config.styles:
        items = scene_items(style, config.num_count, config.num_depth)
        comparison, chain, at_once = compare(style, items, aurora, direct, with_interventions=style == config.styles[0])
        print_comparison(comparison, console)
        comparisons.append(comparison)
        sections += [comparison_html(comparison), example_figures(aurora, items, chain, at_once, each=2)]
    return comparisons, sections


def write_summary(
    config: QuickstartConfig, fits: dict[str, FitResult], comparisons: list[Comparison], seconds: float
) -> PeakMemory:
    """Write `summary.json` with the settings, results, minutes and peak memory; return the peak memory."""
    memory = peak_memory()
    summary = {
        "command": command_line("train.quickstart", config),
        **provenance(),
        "seed": config.loop.seed,
        "minutes": round(seconds / 60, 2),
        "peak_memory_gb": {"process": round(memory.process / 1e9, 3), "largest_worker": round(memory.child / 1e9, 3)},
        "config": flatten(config),
        "training": {arm: asdict(fit) for arm, fit in fits.items()},
        "styles": {comparison.style: comparison.to_json() for comparison in comparisons},
    }
    (Path(config.run_dir) / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return memory


def main(argv: list[str] | None = None) -> None:
    config = parse_config(QuickstartConfig, argv)
    # Read by torch at its first product. Unbounded, its cache of kernels for rows of many lengths takes half a GB.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    console, start = Console(), time.monotonic()
    console.print(
        f"Two copies of {config.base}, which draws but has never seen an answer; {config.num_scenes} rendered scenes, "
        f"{config.answers} of them with answers; {config.loop.steps} steps each: one learns to answer directly, one to "
        f"draw what it sees first. Everything is written to {config.run_dir}; a run that is killed resumes when it is "
        "started again.",
        markup=False,
        highlight=False,
    )
    console.print(f"On this machine it takes about {minutes_needed(config):.0f} minutes.", highlight=False)
    fits = fine_tune_both(config, console)
    folder = Path(config.run_dir)
    aurora = PerceptionModel.from_pretrained(folder / "aurora" / "model")
    direct = PerceptionModel.from_pretrained(folder / "direct" / "model")
    console.print("\n[bold]3 of 4: asking both the same held-out questions[/]")
    comparisons, sections = ask_both(config, aurora, direct, console)
    sections += learning_curves(console)
    console.print("\n[bold]4 of 4: a measured depth map through the tokenizer, and the report[/]")
    sections += motorcycle_section(depth_tokenizer_of(aurora), console)
    intro = (
        f"Two copies of {config.base}, {config.loop.steps} steps of {config.batch_size} samples each on the same "
        f"{config.num_scenes} rendered scenes, {config.answers} of them with answers. Intervals are 95 % bootstrap; "
        "the examples are not picked."
    )
    report = write_report(
        folder / "report.html", "Perception tokens: drawing first, or answering at once", intro, sections
    )
    seconds = time.monotonic() - start
    memory = write_summary(config, fits, comparisons, seconds)
    console.print(f"\n{seconds / 60:.1f} minutes, peak memory {memory}", highlight=False)
    console.print(f"Report:  {report}\nSummary: {folder / 'summary.json'}", highlight=False, soft_wrap=True)
    model = folder / "aurora" / "model"
    perception = "perception" if shutil.which("perception") else ".venv/bin/perception"
    console.print(
        f'Next:    {perception} ask demos/examples/scene-standard-70000008.png "How many cones are there?" '
        f"--draw drawn.png --model {model}",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
