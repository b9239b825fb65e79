"""Compare losses on top of cross-entropy (`python -m benchmarks.loss_ablation`).

Fine-tunes the shipped model on a style of scenes that it has not seen, as users fine-tune on their own data: with plain
cross-entropy, with each term of `train.models.losses` on top of it, and with all of them, on the same data, steps and
seeds. Each model, and the one before fine-tuning, answers the same held-out questions of that style. A term is worth
having if the interval of its gain over plain cross-entropy, question by question over all seeds, lies above zero for
counting or for depth, and below zero for neither.

A training takes minutes on two cores. Trained models and answers stay in --runs, so a run that was stopped goes on.
`--base models/tiny-base --steps 3000` compares trainings from the start, which takes hours. Writes
`benchmarks/results/loss_ablation.json` and the table beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perception.evaluation.bootstrap import bootstrap_interval
from perception.evaluation.scenes import Item, evaluate_items, map_order_accuracy, scene_items
from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import FILE_NAME
from train.aurora import AuroraConfig, train
from train.data.curriculum import CurriculumConfig
from train.loop.config import LoopConfig
from train.loop.provenance import ROOT, provenance
from train.models.losses import LossSettings
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "loss_ablation.json"
RUNS = ROOT / "runs" / "loss_ablation"
PLAIN, BASE = "cross-entropy", "before fine-tuning"
VARIANTS = {
    PLAIN: LossSettings(),
    "reconstruction": LossSettings(reconstruction=10.0),
    "location spread": LossSettings(location_spread=1.0),
    "marker": LossSettings(marker=1.0),
    "count": LossSettings(count=0.5),
    "all": LossSettings(reconstruction=10.0, location_spread=1.0, marker=1.0, count=0.5),
}
ROWS = {"counting": ("count",), "depth, 3-5 points": ("depth-3", "depth-4", "depth-5")}
"""Groups of questions per row of the table"""


@dataclass(frozen=True)
class Scale:
    """Length of the trainings."""

    base: str
    steps: int
    scenes: int

    @property
    def from_the_start(self) -> bool:
        """True if the base has no perception tokens yet."""
        return not (Path(self.base) / FILE_NAME).exists()


def training(name: str, seed: int, folder: Path, scale: Scale) -> AuroraConfig:
    """Recipe of one training: the whole curriculum from the start, or its final mixture for a trained base."""
    place = folder / f"{name.replace(' ', '-')}-{seed}"
    steps = scale.steps
    return AuroraConfig(
        base=scale.base,
        depth_tokenizer=str(ROOT / "tokenizers" / "depth-scenes-100"),
        out=str(place / "model"),
        run_dir=str(place / "run"),
        store=str(folder / "scenes"),
        style="shifted",
        num_scenes=scale.scenes,
        batch_size=16 if scale.from_the_start else 8,
        curriculum=CurriculumConfig(schedule="phases" if scale.from_the_start else "constant"),
        losses=VARIANTS[name],
        loop=LoopConfig(
            steps=steps,
            learning_rate=1e-3 if scale.from_the_start else 3e-4,
            weight_decay=0.05,
            warmup_steps=min(60, steps // 4),
            min_lr_ratio=0.03,
            precision="bf16",
            seed=seed,
            find_unused_parameters=True,
        ),
    )


def answered(config: AuroraConfig, items: Sequence[Item]) -> dict[str, Any]:
    """Results of a training, which is run and evaluated unless it was done before."""
    kept = Path(config.run_dir).parent / f"answers-{len(items)}.json"
    if not kept.exists():
        if not (Path(config.out) / "training.json").exists():
            train(config)
        found = asked(config.out, items)
        write_whole(kept, json.dumps(found))
    answers: dict[str, Any] = json.loads(kept.read_text())
    return answers


def asked(folder: str, items: Sequence[Item]) -> dict[str, Any]:
    """Answers of a model that draws first."""
    model = PerceptionModel.from_pretrained(folder)
    outcomes = evaluate_items(model, items, "chain")
    return {
        "groups": [outcome.group for outcome in outcomes],
        "correct": [outcome.correct for outcome in outcomes],
        "without_an_answer": sum(outcome.answer.value is None for outcome in outcomes),
        "map_order": map_order_accuracy(model, items, outcomes),
    }


def row_of(name: str, seeds: dict[int, dict[str, Any]], plain: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A variant's figures over its seeds, and its gain over plain cross-entropy if it is another variant."""
    row: dict[str, Any] = {"losses": name, "seeds": sorted(seeds)}
    row |= {"settings": vars(VARIANTS[name])} if name in VARIANTS else {}
    for title, groups in ROWS.items():
        right = {seed: chosen(found, groups) for seed, found in seeds.items()}
        accuracy = bootstrap_interval(np.mean(list(right.values()), axis=0))
        row[title] = {
            "accuracy": vars(accuracy),
            "of_each_seed": {seed: round(float(values.mean()), 4) for seed, values in right.items()},
        }
        if name not in (PLAIN, BASE):
            gains = np.mean([right[seed] - chosen(plain[seed], groups) for seed in seeds], axis=0)
            row[title]["gain"] = vars(bootstrap_interval(gains))
    row["map_order"] = float(np.mean([np.mean(list(found["map_order"].values()) or [0.0]) for found in seeds.values()]))
    row["without_an_answer"] = sum(found["without_an_answer"] for found in seeds.values())
    return row


def chosen(found: dict[str, Any], groups: Sequence[str]) -> np.ndarray:
    """(n,) of 0 and 1: whether each question of some groups was answered right."""
    pairs = zip(found["correct"], found["groups"], strict=True)
    return np.array([float(right) for right, group in pairs if group in groups])


def worth_having(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Terms that gain somewhere and lose nowhere, by their intervals."""
    gains = {
        row["losses"]: [row[title]["gain"] for title in ROWS] for row in rows if row["losses"] not in (PLAIN, BASE)
    }
    return [
        name
        for name, found in gains.items()
        if any(gain["low"] > 0 for gain in found) and not any(gain["high"] < 0 for gain in found)
    ]


def page(result: dict[str, Any]) -> str:
    """The page: a Markdown table."""
    head = ["losses", *(f"{title}, %" for title in ROWS), *(f"gain, {title}" for title in ROWS), "maps in order, %"]
    lines = [
        "# Losses on top of cross-entropy",
        "",
        f"Made by `python -m benchmarks.loss_ablation`; do not edit. {result['base']}, {result['steps']} steps each on "
        f"scenes of the shifted style, seeds {result['seeds']}, {result['questions']} held-out questions. "
        "Brackets hold 95 % bootstrap intervals over questions.",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    for row in result["rows"]:
        cells = [row["losses"], *(_percent(row[title]["accuracy"]) for title in ROWS)]
        cells += [_percent(row[title]["gain"]) if "gain" in row[title] else "-" for title in ROWS]
        lines.append("| " + " | ".join([*cells, f"{100 * row['map_order']:.1f}"]) + " |")
    worth = ", ".join(result["worth_having"]) or "none: plain cross-entropy is the default"
    return "\n".join([*lines, "", f"Worth having by these intervals: {worth}.", ""])


def _percent(interval: dict[str, float]) -> str:
    return f"{100 * interval['mean']:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of scenes, trainings and answers")
    parser.add_argument("--base", type=Path, default=ROOT / "models" / "aurora-tiny", help="folder of the model")
    parser.add_argument("--steps", type=int, default=200, help="steps of each training")
    parser.add_argument("--scenes", type=int, default=4000, help="scenes to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--questions", type=int, default=200, help="counting questions, and as many about depth")
    given = parser.parse_args(argv)
    scale = Scale(str(given.base), given.steps, given.scenes)
    items = scene_items("shifted", given.questions, given.questions // 4)
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in VARIANTS}
    for seed in given.seeds:
        for name in VARIANTS:
            config = training(name, seed, given.runs, scale)
            found[name][seed] = answered(config, items)
            print(f"{name}, seed {seed}: done", file=sys.stderr)
    rows = [row_of(name, seeds, found[PLAIN]) for name, seeds in found.items()]
    if not scale.from_the_start:
        rows.insert(0, row_of(BASE, {0: asked(scale.base, items)}, found[PLAIN]))
    result = {
        "base": given.base.name,
        "steps": given.steps,
        "scenes": given.scenes,
        "seeds": given.seeds,
        "questions": len(items),
    }
    result |= {**provenance(), "rows": rows, "worth_having": worth_having(rows)}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(page(result))
    print(f"written: {RESULT} and its page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
