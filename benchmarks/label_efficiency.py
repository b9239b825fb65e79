"""Measure how many answers each way of training needs (`python -m benchmarks.label_efficiency`).

Labels of perception (depth maps, boxes, points) are given for all scenes; answers only for the first N of them, one
fixed question of each kind per scene. Three arms learn from the same N answers:

- direct: `models/tiny-base` learns to answer directly;
- auxiliary: `models/perception-tiny` learns to answer directly, with tasks of perception between;
- drawing: `models/perception-tiny` learns to draw first; its maps are read by the package and by the model itself.

Each arm has its own number of steps and learning rate for every N: longer runs are tried until two in a row are no
better on held-out questions of the standard style. All arms then answer the same test questions of both styles, with
three seeds. Intervals are over questions and seeds together. Every training and its outcomes stay in --runs, so that a
benchmark that was stopped goes on. Writes `benchmarks/results/label_efficiency.json`, its page `.md`, and the figure
`.png`. Numbers of answers that are in the file and not in --sizes stay there, with the run that measured them.

With --check it measures nothing: it prints one line per target of the stored result, and exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.bars import Bar, all_met
from benchmarks.comparison_page import markdown_table
from perception.evaluation.bootstrap import Interval, bootstrap_interval, crossed_interval
from perception.evaluation.comparison import GROUPS
from perception.evaluation.scenes import HELD_OUT_SEED, Item, evaluate_items, scene_items
from perception.model.adapter import base_digest
from perception.model.folder import find_folder
from perception.model.perception_model import PerceptionModel, Read
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.finetune import FinetuneConfig, train
from train.loop.config import LoopConfig
from train.loop.provenance import ROOT, provenance
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "label_efficiency.json"
SIZES = (100, 500, 2000, 10_000, 40_000)
STEPS = (100, 200, 400, 800, 1600, 3200, 6400)
"""Lengths of training that are tried, until two in a row are no better"""
RATES = (5e-4, 1e-3)
"""Learning rates; the second one is tried at the best length"""
VALIDATION_SEED = HELD_OUT_SEED + 7_000_000
STYLES = ("standard", "shifted")
ROWS = ("counting", "depth, 3-5 points")
COUNTING_BAR, DEPTH_BAR, FEW = 10.0, 15.0, 500
COUNTING_BAR_ALL, DEPTH_BAR_ALL = 8.0, 2.0


@dataclass(frozen=True)
class Arm:
    """One way of training, and the ways in which its answers are asked for."""

    title: str
    base: str
    arm: Literal["aurora", "direct"]
    curriculum: CurriculumConfig
    asked: Mapping[str, tuple[str, Read | None]]
    """by name: mode and who reads the map"""


ARMS = {
    "direct": Arm(
        "directly", "models/tiny-base", "direct", CurriculumConfig("constant"), {"directly": ("direct", None)}
    ),
    "auxiliary": Arm(
        "directly, perception as an auxiliary task",
        "models/perception-tiny",
        "aurora",
        CurriculumConfig("constant", atomic_end=0.3, chain_share=0.0),
        {"directly, after perception": ("direct", None)},
    ),
    "drawing": Arm(
        "drawing first",
        "models/perception-tiny",
        "aurora",
        CurriculumConfig("constant", atomic_end=0.15, chain_share=1.0),
        {"drawing first": ("chain", "decoded"), "drawing first, the model reads": ("chain", "model")},
    ),
}
CURVES = tuple(name for arm in ARMS.values() for name in arm.asked)
DRAWN, BASELINES = "drawing first", ("directly", "directly, after perception")


def arm_config(
    arm: str, base: str, folder: Path, data: SourcesConfig, steps: int, learning_rate: float, seed: int
) -> AuroraConfig:
    """Return the configuration of one training of an arm, with its model and its run in a folder."""
    return AuroraConfig(
        arm=ARMS[arm].arm,
        base=base,
        out=str(folder / "model"),
        run_dir=str(folder / "training"),
        tower_lr_ratio=0.0,
        data=data,
        curriculum=ARMS[arm].curriculum,
        loop=LoopConfig(
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=0.05,
            warmup_steps=0.1,
            precision="bf16",
            seed=seed,
        ),
    )


def run_folder(arm: str, count: int, steps: int, seed: int, given: argparse.Namespace) -> Path:
    """Return the folder of one training from `given.base`, whose weights name it too."""
    return Path(given.runs) / f"{base_digest(find_folder(given.base))[:8]}-{arm}-{count}-{steps}-{seed}"


@dataclass(frozen=True)
class Cell:
    """One training."""

    arm: str
    answers: int
    steps: int
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.answers}-{self.steps}-{self.learning_rate:g}-{self.seed}"

    def config(self, given: argparse.Namespace) -> AuroraConfig:
        data = SourcesConfig(scenes=ScenesConfig(given.scenes, given.store, answers=self.answers))
        base, folder = str(ROOT / ARMS[self.arm].base), Path(given.runs) / self.name
        return arm_config(self.arm, base, folder, data, self.steps, self.learning_rate, self.seed)

    def outcomes(self, given: argparse.Namespace, name: str, items: Sequence[Item]) -> dict[str, list[int]]:
        """Train, or take the finished model; return 1 or 0 per item, by curve. Both are kept."""
        file = Path(given.runs) / self.name / f"{name}.json"
        if file.exists():
            stored: dict[str, list[int]] = json.loads(file.read_text())
            return stored
        model = trained_model(self.config(given), self.name)
        found = {}
        for curve, (mode, read) in ARMS[self.arm].asked.items():
            answers = evaluate_items(model, items, mode, title=f"{self.name}, {name}: {curve}", read=read)
            found[curve] = [int(answer.correct) for answer in answers]
        write_whole(file, lambda partial: partial.write_text(json.dumps(found)))
        return found


def trained_model(config: FinetuneConfig, name: str) -> PerceptionModel:
    """Return the model of a training, which is run and named first where it is not finished."""
    if not (Path(config.out) / "training.json").exists():
        print(name, flush=True)
        train(config)
        shutil.rmtree(config.run_dir)
    return PerceptionModel.from_pretrained(config.out)


def pick(items: Sequence[Item], row: str) -> list[int]:
    """Return the indices of the items of a row of the tables."""
    return [i for i, item in enumerate(items) if item.group in GROUPS[row]]


def score(outcomes: Mapping[str, Sequence[int]], items: Sequence[Item]) -> float:
    """Return what the length of training is chosen by: accuracy of the arm's first curve, mean over the rows."""
    first = next(iter(outcomes.values()))
    return float(np.mean([np.mean([first[i] for i in pick(items, row)]) for row in ROWS]))


def tune(arm: str, answers: int, given: argparse.Namespace, items: Sequence[Item]) -> tuple[Cell, dict[str, float]]:
    """Return the best cell of the first seed, and all scores on the held-out questions, by cell."""
    scores: dict[str, float] = {}

    def tried(cell: Cell) -> float:
        scores[cell.name] = score(cell.outcomes(given, "validation", items), items)
        return scores[cell.name]

    best = Cell(arm, answers, STEPS[0], RATES[0], given.seeds[0])
    tried(best)
    worse = 0
    for steps in STEPS[1:]:
        if steps > given.most_steps or worse == 2:
            break
        longer = replace(best, steps=steps)
        worse = 0 if tried(longer) > scores[best.name] else worse + 1
        best = best if worse else longer
    for rate in RATES[1:]:
        other = replace(best, learning_rate=rate)
        if tried(other) > scores[best.name]:
            best = other
    return best, scores


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Tune, train and ask every arm with every number of answers; return the result."""
    used: set[str] = set()
    validation = scene_items("standard", given.num_count, given.num_depth, VALIDATION_SEED)
    tests = {style: scene_items(style, given.num_count, given.num_depth) for style in STYLES}
    found: dict[str, Any] = {}
    for answers in given.sizes:
        correct: dict[str, dict[str, list[list[int]]]] = {style: {} for style in STYLES}
        chosen = {}
        for arm in ARMS:
            best, scores = tune(arm, answers, given, validation)
            used |= {*scores, *(replace(best, seed=seed).name for seed in given.seeds)}
            chosen[arm] = {"steps": best.steps, "learning_rate": best.learning_rate, "scores": scores}
            for seed in given.seeds:
                for style, items in tests.items():
                    for curve, values in replace(best, seed=seed).outcomes(given, style, items).items():
                        correct[style].setdefault(curve, []).append(values)
        found[str(answers)] = {
            "chosen": chosen,
            "styles": {style: figures(correct[style], tests[style]) for style in STYLES},
        }
    run = {
        "command": "python -m benchmarks.label_efficiency " + " ".join(given.words),
        "sizes": given.sizes,
        **provenance(),
        "training_minutes": training_minutes(Path(given.runs) / name / "model" for name in used),
    }
    return {**settings(given), "runs": [run], "answers": found}


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Return what all numbers of answers in one result file have in common."""
    questions = {"counting": given.num_count, "depth, for each number of points": given.num_depth}
    return {"seeds": given.seeds, "scenes": given.scenes, "questions": questions}


def kept(given: argparse.Namespace, common: Mapping[str, Any], table: str = "answers") -> dict[str, Any]:
    """Return what a run keeps of the stored result: the sizes that it does not measure, and their runs.

    Args:
        given: `sizes` to measure, and `out`, the file of the result, which need not exist.
        common: what all sizes in a file must have in common.
        table: name of what a result holds by size.

    Raises:
        ValueError: they were measured with other values of `common`.
    """
    stored = json.loads(given.out.read_text()) if given.out.exists() else {table: {}, "runs": []}
    cells = {size: cell for size, cell in stored[table].items() if int(size) not in given.sizes}
    other = [name for name, value in common.items() if stored.get(name) != value]
    if cells and other:
        raise ValueError(
            f"{given.out} holds {', '.join(cells)} with other {', '.join(other)}; give another --out, or measure these "
            "--sizes too"
        )
    left = [[size for size in run["sizes"] if str(size) in cells] for run in stored["runs"]]
    runs = [{**run, "sizes": sizes} for run, sizes in zip(stored["runs"], left, strict=True) if sizes]
    return {table: cells, "runs": runs}


def joined(result: Mapping[str, Any], before: Mapping[str, Any], table: str = "answers") -> dict[str, Any]:
    """Return a result together with what it keeps of the one before, in the order of the sizes."""
    cells = {**before[table], **result[table]}
    return {
        **result,
        "runs": [*before["runs"], *result["runs"]],
        table: {size: cells[size] for size in sorted(cells, key=int)},
    }


def training_minutes(models: Iterable[str | Path]) -> int:
    """Return how long the trainings of these models took together, each counted once."""
    files = {Path(model) / "training.json" for model in models}
    return round(sum(float(json.loads(file.read_text())["minutes"]) for file in files))


def figures(correct: Mapping[str, Sequence[Sequence[int]]], items: Sequence[Item]) -> dict[str, Any]:
    """Return accuracy by curve and row, and by row the gain of drawing first over the better of the direct arms."""
    rows = {row: pick(items, row) for row in ROWS}
    of = {curve: {row: np.array(values)[:, rows[row]] for row in ROWS} for curve, values in correct.items()}
    shown = {row: [id(items[i].scene) for i in rows[row]] for row in ROWS}
    gains = {}
    for row in ROWS:
        against = max(BASELINES, key=lambda curve, row=row: of[curve][row].mean())  # type: ignore[misc]
        gain = interval(of[DRAWN][row].astype(float) - of[against][row], shown[row])
        gains[row] = {"against": against, **vars(gain)}
    return {
        "accuracy": {
            curve: {row: vars(interval(values, shown[row])) for row, values in cells.items()}
            for curve, cells in of.items()
        },
        "gain": gains,
    }


def interval(values: np.ndarray, groups: Sequence[Hashable] | None = None) -> Interval:
    """Return the interval of (seeds, questions); over questions alone if there is one seed.

    Args:
        groups: the image of each question, where several are about one (`bootstrap_interval`).
    """
    return crossed_interval(values, groups=groups) if len(values) > 1 else bootstrap_interval(values[0], groups=groups)


def bars(result: Mapping[str, Any]) -> list[Bar]:
    """Return the targets, on the shifted style: with few answers, and with one about every scene."""
    found = []
    for answers, counting, depth in (
        (FEW, COUNTING_BAR, DEPTH_BAR),
        (result["scenes"], COUNTING_BAR_ALL, DEPTH_BAR_ALL),
    ):
        if str(answers) not in result["answers"]:
            continue
        gain = result["answers"][str(answers)]["styles"]["shifted"]["gain"]
        for row, least in zip(ROWS, (counting, depth), strict=True):
            name = f"{answers} answers, {row}: drawing first over {gain[row]['against']}"
            found.append(Bar(name, 100 * gain[row]["mean"], least))
    return found


def page(result: Mapping[str, Any]) -> str:
    """Return the page: a table per style, the chosen settings, the targets."""
    parts = [
        "# Accuracy by the number of answers to learn from\n",
        f"Made by `python -m benchmarks.label_efficiency`; do not edit. Labels of perception for all "
        f"{result['scenes']:,} scenes, answers for the first N, one fixed question of each kind per scene. "
        f"{len(result['seeds'])} seeds; accuracy in %, with 95 % intervals over questions and seeds together. The gain "
        "is over the better of the two direct arms.\n",
        "![Curves](label_efficiency.png)\n",
    ]
    for style in STYLES:
        for row in ROWS:
            lines = []
            for answers, cell in result["answers"].items():
                data = cell["styles"][style]
                cells = [Interval(**data["accuracy"][curve][row]) for curve in CURVES]
                gain = {key: value for key, value in data["gain"][row].items() if key != "against"}
                lines.append((f"{int(answers):,}", *cells, Interval(**gain)))
            parts += [
                f"## {row.capitalize()}, {style} style\n",
                markdown_table(("answers", *CURVES, "gain, points"), lines),
            ]
    chosen = [
        (f"{int(answers):,}", ARMS[arm].title, values["steps"], f"{values['learning_rate']:g}")
        for answers, cell in result["answers"].items()
        for arm, values in cell["chosen"].items()
    ]
    parts += ["## Chosen on held-out questions\n", markdown_table(("answers", "arm", "steps of 16", "rate"), chosen)]
    parts += ["## Targets\n", *(f"- {bar.line()}" for bar in bars(result)), ""]
    parts += ["## Runs\n", *map(run_line, result["runs"]), ""]
    return "\n".join(parts)


def run_line(run: Mapping[str, Any]) -> str:
    """Return where and how some numbers of answers were measured."""
    return (
        f"- {', '.join(f'{size:,}' for size in run['sizes'])} answers: `{run['command'].strip()}`, {run['processor']}, "
        f"{run['cores']} cores, torch {run['torch']}, commit `{str(run['commit'])[:12]}`"
        f"{' with uncommitted changes' if run['uncommitted_changes'] else ''}; "
        f"{run['training_minutes']} minutes of training"
    )


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Draw the curves: a panel per style and row."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [int(size) for size in result["answers"]]
    figure, panels = plt.subplots(
        len(ROWS), len(STYLES), figsize=(8, 6), sharex=True, sharey="row", layout="constrained"
    )
    for line, row in enumerate(ROWS):
        for column, style in enumerate(STYLES):
            panel = panels[line][column]
            for number, curve in enumerate(CURVES):
                places = np.arange(len(sizes)) + 0.1 * (number - (len(CURVES) - 1) / 2)  # beside each other
                cells = [Interval(**result["answers"][str(n)]["styles"][style]["accuracy"][curve][row]) for n in sizes]
                means = np.array([100 * cell.mean for cell in cells])
                reach = np.array([[100 * (cell.mean - cell.low), 100 * (cell.high - cell.mean)] for cell in cells]).T
                panel.errorbar(places, means, reach, marker="o", capsize=3, label=curve)
            panel.set(title=f"{row}, {style} style", xlim=(-0.5, len(sizes) - 0.5))
            panel.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel("accuracy, %")
            if line == len(ROWS) - 1:
                panel.set_xlabel("answers to learn from")
    handles = panels[0][0].get_legend_handles_labels()
    figure.legend(*handles, fontsize="small", loc="outside lower center", ncols=len(CURVES))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets of the stored result; measure nothing")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of answers")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes with labels of perception")
    parser.add_argument("--most-steps", type=int, default=STEPS[-1], help="longest training that is tried")
    parser.add_argument("--num-count", type=int, default=200, help="counting questions per style")
    parser.add_argument("--num-depth", type=int, default=60, help="depth questions per style and number of points")
    parser.add_argument("--store", default="runs/scenes/standard", help="folder of the rendered scenes")
    parser.add_argument("--runs", default="runs/label_efficiency", help="folder of the trainings and their outcomes")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    return parser


def main(argv: list[str] | None = None) -> int:
    given = build_parser().parse_args(argv)
    given.words = sys.argv[1:] if argv is None else argv
    try:
        found = stored_bars(given) if given.check else renew(given)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for bar in found:
        print(bar.line())
    return int(given.check and not all_met(found))


def stored_bars(given: argparse.Namespace) -> list[Bar]:
    """Return the targets of the stored result. Raises ValueError if there is none."""
    if not given.out.exists():
        raise ValueError(f"{given.out} does not exist; run without --check first")
    return bars(json.loads(given.out.read_text()))


def renew(given: argparse.Namespace) -> list[Bar]:
    """Measure, write the result, its page and its figure; return the targets. Raises ValueError for wrong numbers."""
    if max(given.sizes) > given.scenes:
        raise ValueError(f"{max(given.sizes)} answers need as many scenes, got --scenes {given.scenes}")
    before = kept(given, settings(given))
    result = joined(measure(given), before)
    found = bars(result)
    given.out.write_text(json.dumps({**result, "bars": [bar.to_json() for bar in found]}, indent=1) + "\n")
    given.out.with_suffix(".md").write_text(page(result))
    draw(result, given.out.with_suffix(".png"))
    print(f"written: {given.out}, its page and its figure")
    return found


if __name__ == "__main__":
    sys.exit(main())
