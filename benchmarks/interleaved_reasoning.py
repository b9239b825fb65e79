"""Measure whether looking again at selected visual tokens helps (`python -m benchmarks.interleaved_reasoning`).

All arms begin with the shipped geometry-base, which reads figures and has never seen a solution. With each of three
seeds, on the same problems and for the same number of steps, it learns text-only solutions, solutions with interleaved
visual tokens, and the controls of the latter: as many tokens at random, the whole image again, and the bounding box of
the selection. Text-only and interleaved go on with reinforcement learning. The oracle is the interleaved model given
the true regions. All answer the same held-out problems.

Trained models stay in --runs, so a run that was stopped goes on. Writes `benchmarks/results/interleaved_reasoning.json`
and the page made from it.

With --check it trains text-only and interleaved for a short while, prints one line per target, writes nothing, and
exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.bars import Bar, all_met
from benchmarks.reasoning_page import page
from perception.datasets.progress import track
from perception.evaluation.bootstrap import Interval, crossed_interval
from perception.geometry.problems import Split
from perception.model.shipped import shipped
from train import interleave, reinforce
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import REGIONS, ChainProblem, RegionName
from train.interleave import Stage
from train.loop.fit import LoopConfig
from train.loop.provenance import ROOT, provenance
from train.models.saving import TRAINING_FILE
from train.rl.answers import Chooser, Outcome, answer_problems, selection_f1
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "interleaved_reasoning.json"
RUNS = ROOT / "runs" / "interleaved_reasoning"
SEEDS = (0, 1, 2)
MAX_NEW_TOKENS = 160


@dataclass(frozen=True)
class Scale:
    """Length of the trainings."""

    problems: int = 24_000
    text: int = 600
    """Steps of the text-only stage that all arms begin with"""
    second: int = 2400
    """Steps that follow: text-only again, or interleaved"""
    batch_size: int = 8
    """Rows per supervised step"""
    sums: int = 0
    """Rows of sums beside them"""
    selection_weight: float = 0.3
    """Weight of the selection's loss; with 1 the model learns less of the text"""
    selector_lr_ratio: float = 3.0
    learning_rate: float = 8e-4
    """Learning rate of the supervised stages"""
    reinforced: int = 200
    """Steps of GRPO"""
    reinforced_learning_rate: float = 5e-5
    test: int = 400
    """Number of held-out problems"""


SHORT = Scale(problems=8000, text=200, second=600, reinforced=0, test=200)
"""Scale of --check"""


@dataclass(frozen=True)
class Arm:
    """One way to train and to look."""

    stage: Stage
    regions: RegionName = "own"
    """What looks bring in, during training and afterwards"""
    reinforced: bool = False
    oracle: bool = False
    """True regions are given when the answers are measured"""


ARMS = {
    "text-only SFT": Arm("text"),
    "interleaved SFT": Arm("interleaved"),
    "random selection": Arm("interleaved", regions="random"),
    "whole image again": Arm("interleaved", regions="whole"),
    "bounding boxes": Arm("interleaved", regions="boxes"),
    "oracle regions": Arm("interleaved", oracle=True),
    "text-only SFT + RL": Arm("text", reinforced=True),
    "interleaved SFT + RL": Arm("interleaved", reinforced=True),
}


@dataclass(frozen=True)
class Recipes:
    """All trainings of the benchmark, each made once and kept in a folder."""

    folder: Path
    scale: Scale
    data: GeometryData
    problems: Callable[[GeometryData], Sequence[ChainProblem]] = read_problems
    base: Path = field(default_factory=lambda: shipped("geometry-base"))

    def training_problems(self) -> Sequence[ChainProblem]:
        return self.problems(replace(self.data, count=self.scale.problems))

    def _loop(self, default: LoopConfig, steps: int, seed: int = 0) -> LoopConfig:
        return replace(default, steps=steps, seed=seed, warmup_steps=min(default.warmup_steps, steps // 4))

    def supervised(self, stage: Stage, regions: RegionName, seed: int) -> Path:
        """Model after the second stage."""
        first = self._stage("text", "own", seed, self.base, "first", self.scale.text)
        return self._stage(stage, regions, seed, first, stage, self.scale.second)

    def _stage(self, stage: Stage, regions: RegionName, seed: int, start: Path, name: str, steps: int) -> Path:
        label = f"{name}-{regions}-{seed}"
        out = self.folder / label
        selects = regions in ("own", "boxes")
        if not _finished(out):
            config = interleave.InterleaveConfig(
                stage=stage,
                start=str(start),
                out=str(out),
                run_dir=str(self.folder / f"run-{label}"),
                data=replace(self.data, count=self.scale.problems),
                regions=regions,
                batch_size=self.scale.batch_size,
                sums=self.scale.sums,
                # Nothing to learn of a selection that is random, or everything.
                selection_weight=self.scale.selection_weight if selects else 0.0,
                selector_lr_ratio=self.scale.selector_lr_ratio,
                own_looks=0.5 if selects and stage == "interleaved" else 0.0,
                threshold=0.85,
            )
            loop = replace(self._loop(config.loop, steps, seed), learning_rate=self.scale.learning_rate)
            interleave.train(replace(config, loop=loop), self.training_problems())
        return out

    def reinforced(self, stage: Stage, seed: int) -> Path:
        """Model after GRPO, stopped on problems that are neither trained on nor measured."""
        out = self.folder / f"reinforced-{stage}-{seed}"
        if not _finished(out):
            config = reinforce.ReinforceConfig(
                start=str(self.supervised(stage, "own", seed)),
                out=str(out),
                run_dir=str(self.folder / f"run-reinforced-{stage}-{seed}"),
                data=replace(self.data, count=self.scale.problems),
            )
            held_out = self.problems(replace(self.data, seed=self.data.seed + 1, count=150))
            loop = self._loop(config.loop, self.scale.reinforced, seed)
            loop = replace(loop, learning_rate=self.scale.reinforced_learning_rate)
            reinforce.train(replace(config, loop=loop), self.training_problems(), held_out)
        return out

    def place(self, arm: Arm, seed: int) -> Path:
        """Folder of an arm's model, trained or not."""
        name = "reinforced" if arm.reinforced else arm.stage
        return self.folder / "-".join([name, arm.stage if arm.reinforced else arm.regions, str(seed)])

    def model(self, arm: Arm, seed: int) -> Path:
        """Folder of an arm's model, which is trained if it is missing."""
        return self.reinforced(arm.stage, seed) if arm.reinforced else self.supervised(arm.stage, arm.regions, seed)


def _finished(folder: Path) -> bool:
    return (folder / TRAINING_FILE).exists()


def chooser(arm: Arm, grid: tuple[int, int], seed: int, select: Callable[[Tensor], Tensor]) -> Chooser | None:
    """What an arm's looks select when its answers are measured; None for the model's own selection.

    Random selections have the size of the true region of the same step.
    """
    if arm.regions == "own" and not arm.oracle:
        return None
    rng = np.random.default_rng(seed)

    def choose(problem: ChainProblem, scores: Tensor, look: int) -> Tensor:
        true = problem.steps[look].tokens if look < len(problem.steps) else ()
        own = tuple(select(scores).nonzero()[:, 0].tolist()) if arm.regions == "boxes" else true
        chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
        chosen[list(REGIONS[arm.regions](own, grid, rng))] = True
        return chosen

    return choose


def outcomes(recipes: Recipes, name: str, seed: int, problems: Sequence[ChainProblem], kept: str) -> dict[str, Any]:
    """Outcome per problem, and the F1 of the selection; kept beside the model."""
    arm = ARMS.get(name)
    folder = recipes.base if arm is None else recipes.model(arm, seed)
    path = recipes.folder / f"outcomes-{name.replace(' ', '_')}-{seed}-{kept}-{len(problems)}.json"
    if not path.exists():
        found = interleave.read_interleaved(folder)
        model = found.model.eval()
        choose = None if arm is None else chooser(arm, recipes.data.grid, seed, model.selector.select)
        answered: list[Outcome] = answer_problems(model, found.encoder, problems, MAX_NEW_TOKENS, choose=choose)
        looks = arm is not None and arm.stage == "interleaved"
        record = {
            "right": [outcome.right for outcome in answered],
            "selection_f1": selection_f1(answered) if looks else None,
            "examples": [outcome.text for outcome in answered[:5]],
        }
        write_whole(path, json.dumps(record) + "\n")
    return dict(json.loads(path.read_text()))


def plan(recipes: Recipes, names: Sequence[str], seeds: Sequence[int], finished: bool = False) -> dict[str, list[int]]:
    """Seeds per arm, and one of the base; with `finished`, only those that are trained already."""
    found: dict[str, list[int]] = {"base": [seeds[0]]}
    for name in names:
        there = [s for s in seeds if not finished or _finished(recipes.place(ARMS[name], s))]
        found |= {name: there} if there else {}
    return found


def measure(recipes: Recipes, seeds: Mapping[str, Sequence[int]], split: Split) -> dict[str, dict[str, Any]]:
    """Per arm: whether each of its seeds answers each problem of a split right, and the selection's F1."""
    problems = recipes.problems(replace(recipes.data, split=split, seed=1000, count=recipes.scale.test))
    table = {}
    for name in track(seeds, split):
        found = {seed: outcomes(recipes, name, seed, problems, split) for seed in seeds[name]}
        scores = [one["selection_f1"] for one in found.values() if one["selection_f1"] is not None]
        table[name] = {
            "right": {seed: np.array(one["right"], float) for seed, one in found.items()},
            "selection_f1": float(np.mean(scores)) if scores else None,
            "example": next(iter(found.values()))["examples"][0],
        }
    return table


def gain(table: dict[str, dict[str, Any]], better: str, worse: str) -> Interval | None:
    """Gain of one arm over another, paired by problem and seed, over the seeds of both; None if there are none."""
    ours, theirs = table[better]["right"], table[worse]["right"]
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return None
    return crossed_interval(np.stack([ours[seed] - theirs[seed] for seed in common]))


COMPARED = (
    ("interleaved SFT", "text-only SFT", 3.0),
    ("interleaved SFT + RL", "interleaved SFT", 3.0),
    ("interleaved SFT", "random selection", 0.1),
)
"""(better arm, worse arm, least gain in points)"""


def bars(table: dict[str, dict[str, Any]]) -> list[Bar]:
    """Targets of the arms that were measured."""
    found = []
    for better, worse, least in COMPARED:
        if better in table and worse in table:
            difference = gain(table, better, worse)
            found += [Bar(f"{better} over {worse}", 100 * difference.mean, least)] if difference else []
    if "interleaved SFT" in table:
        found.append(Bar("F1 of the selection", 100 * table["interleaved SFT"]["selection_f1"], 70.0))
    return found


def row_of(name: str, table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """An arm's figures, in [0, 1]: accuracy, also per seed, and its gain over text-only and interleaved SFT.

    Intervals are over seeds and problems together; `by_seed` shows how far the seeds differ.
    """
    right: dict[int, NDArray[np.float64]] = table[name]["right"]
    row: dict[str, Any] = {"arm": name, "accuracy": vars(crossed_interval(np.stack(list(right.values()))))}
    row["by_seed"] = {seed: round(float(values.mean()), 4) for seed, values in right.items()}
    for other in ("text-only SFT", "interleaved SFT"):
        if name not in (other, "base") and other in table and (difference := gain(table, name, other)):
            row[f"gain over {other}"] = vars(difference)
    return row | {key: value for key, value in table[name].items() if key != "right"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on short trainings; write nothing")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trainings")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="default: all of them")
    parser.add_argument("--finished", action="store_true", help="measure only what is trained already")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 0 1 2")
    arguments = parser.parse_args(argv)
    read = functools.cache(read_problems)
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            recipes = Recipes(Path(folder), SHORT, GeometryData(), read)
            found = bars(measure(recipes, {"text-only SFT": [0], "interleaved SFT": [0]}, "test"))
        for bar in found:
            print(bar.line())
        return 0 if all_met(found) else 1
    recipes = Recipes(arguments.runs, Scale(), GeometryData(), read)
    seeds = plan(recipes, arguments.arms, arguments.seeds, arguments.finished)
    tables = {split: measure(recipes, seeds, split) for split in ("test", "held-out")}
    rows = {split: [row_of(name, table) for name in table] for split, table in tables.items()}
    found = bars(tables["test"])
    record = {**vars(recipes.scale), "seeds": arguments.seeds, "intervals_over": "seeds and problems together"}
    record |= {"rows": rows, "bars": [bar.to_json() for bar in found]}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**record, **provenance()}, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(page(record))
    for bar in found:
        print(bar.line())
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
