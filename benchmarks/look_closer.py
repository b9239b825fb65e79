"""Measure whether looks pay that see what the model did not (`python -m benchmarks.look_closer`).

Figures of 512 x 512 pixels hold small print that is gone at the 128 x 128 at which `models/geometry-base` reads them.
The base first learns to read these figures: their letters at the first size, and their print in crops at native size.
All arms then learn from the same problems for the same number of steps: with each of three seeds, looks at native
resolution; with the first seed alone, text-only at the first size, native looks at random cells, text-only with the
whole image at native size (the figure and, after it, its 16 tiles), looks at seen resolution, the whole image again at
seen resolution, native looks at bounding boxes, and native looks whose last tokens are taken along. The upper line of
native looks is the same model given the true cells. The models of native looks are then reinforced by GRPO with rewards
for the answer and its form, and so is that of random cells, whose selection no region label has taught: the rewards
have to find where to look. All answer the same problems with values that no training had, and with two families that
none had; accuracy stands beside the visual tokens and the seconds that an answer takes.

Trained models stay in --runs, so a run that was stopped goes on with the same command. Writes
`benchmarks/results/look_closer.json`, and from it a page and a figure of accuracy against visual tokens.

With --check it trains text-only, native looks and random cells for a short while with one seed, prints one line per
target, writes nothing, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bars import Bar, all_met
from benchmarks.comparison_page import markdown_table
from benchmarks.interleaved_reasoning import Arm, chooser, gain
from perception.datasets.progress import track
from perception.evaluation.bootstrap import crossed_interval
from perception.geometry.fine import PRINT
from perception.geometry.problems import Split
from perception.interleave.triggers import NATIVE, SEEN, Resolution
from perception.model.shipped import shipped
from train import geometry_base, interleave, reinforce
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import ChainProblem
from train.figure_tower import SIZE, GeometrySize
from train.loop.provenance import ROOT, provenance
from train.models.saving import TRAINING_FILE
from train.rl.answers import answer_problems, selection_f1
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "look_closer.json"
RUNS = ROOT / "runs" / "look_closer"
SEEDS = (0, 1, 2)
MAX_NEW_TOKENS = 60


@dataclass(frozen=True)
class Scale:
    """Length of the trainings."""

    problems: int = 20_000
    reading: int = 1500
    """Steps in which the base learns to read the figures, once for all seeds"""
    text: int = 600
    """Steps of text-only solutions that all arms begin with"""
    second: int = 900
    """Steps that follow, each arm its own way"""
    batch_size: int = 8
    reinforced: int = 200
    """Steps of GRPO"""
    test: int = 300
    """Number of held-out problems of a split"""


SHORT = Scale(reading=800, text=300, second=500, reinforced=0, test=150)
"""Scale of --check"""


@dataclass(frozen=True)
class LookArm(Arm):
    """One way to train and to look."""

    resolution: Resolution = SEEN
    whole: bool = False
    """The prompt shows the whole image at native size too, in tiles"""
    take_along: int | None = None
    """As in `InterleaveSettings`"""


TEXT, WHOLE, LOOKS = "text-only, first size", "text-only, whole image at native size", "looks, seen resolution"
AGAIN = "whole image again, seen resolution"
NATIVE_LOOKS, RANDOM, TRUE = "looks, native resolution", "native looks, random cells", "native looks, true cells"
BOXES = "native looks, bounding boxes"
ALONG = "native looks, taken along"
REINFORCED, UNLABELLED = "native looks, reinforced", "native looks, reinforced without region labels"
EVERY_SEED = (NATIVE_LOOKS, TRUE, REINFORCED)
"""Arms that are trained with every seed; the others with the first"""
ARMS = {
    TEXT: LookArm("text"),
    WHOLE: LookArm("text", whole=True),
    LOOKS: LookArm("interleaved"),
    NATIVE_LOOKS: LookArm("interleaved", resolution=NATIVE),
    RANDOM: LookArm("interleaved", resolution=NATIVE, regions="random"),
    TRUE: LookArm("interleaved", resolution=NATIVE, oracle=True),
    BOXES: LookArm("interleaved", resolution=NATIVE, regions="boxes"),
    ALONG: LookArm("interleaved", resolution=NATIVE, take_along=1),
    AGAIN: LookArm("interleaved", regions="whole"),
    REINFORCED: LookArm("interleaved", resolution=NATIVE, reinforced=True),
    UNLABELLED: LookArm("interleaved", resolution=NATIVE, regions="random", reinforced=True),
}


@dataclass(frozen=True)
class Tiled(Sequence[ChainProblem]):
    """Problems whose prompt shows the image and, after it, its tiles of the size that the model reads."""

    problems: Sequence[ChainProblem]
    side: int

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Tiled(self.problems[index], self.side)
        problem, side = self.problems[index], self.side
        rows, columns = (range(0, length, side) for length in problem.image.shape[:2])
        tiles = [problem.image[y : y + side, x : x + side] for y in rows for x in columns]
        return replace(problem, image=(problem.image, *tiles))


@dataclass(frozen=True)
class Views(Sequence[ChainProblem]):
    """Figures to read: in turn a whole figure with its letters, and a crop at native size with the print inside it."""

    problems: Sequence[ChainProblem]
    side: int

    def __len__(self) -> int:
        return 2 * len(self.problems)

    def __getitem__(self, index: Any) -> Any:
        problem, height = self.problems[index // 2], self.problems[index // 2].image.shape[0]
        large = tuple(mark for mark in problem.marks if mark.font > PRINT)
        if index % 2 == 0:
            return replace(problem, marks=large)
        rng, small = np.random.default_rng(index), [mark for mark in problem.marks if mark.font == PRINT]
        middle = np.array(small[int(rng.integers(len(small)))].place_xy) * height
        start = middle + rng.uniform(-0.3, 0.3, 2) * self.side - self.side / 2
        x, y = start.clip(0, height - self.side).astype(int).tolist()
        inside = []
        for mark in small:
            left, top, right, bottom = (np.array(mark.box) * height - (x, y, x, y)) / self.side
            if min(left, top) >= 0 and max(right, bottom) <= 1:
                inside.append(replace(mark, place_xy=((left + right) / 2, (top + bottom) / 2)))
        return replace(problem, image=problem.image[y : y + self.side, x : x + self.side], marks=tuple(inside))


@dataclass(frozen=True)
class Recipes:
    """All trainings of the benchmark, each made once and kept in a folder."""

    folder: Path
    scale: Scale
    data: GeometryData = field(default_factory=lambda: GeometryData(problems="fine", image_size=512))
    base: Path = field(default_factory=lambda: shipped("geometry-base"))
    size: GeometrySize = SIZE
    """Of the base"""

    def problems(self, arm: LookArm, **more: Any) -> Sequence[ChainProblem]:
        found = read_problems(replace(self.data, **more))
        return Tiled(found, self.size.image_size) if arm.whole else found

    def reader(self) -> Path:
        """Folder of the base that has learned to read the figures."""
        out = self.folder / "reader"
        if not (out / TRAINING_FILE).exists():
            config = geometry_base.GeometryBaseConfig(
                start=str(self.base),
                tower="",
                tower_lr_ratio=0.3,
                out=str(out),
                run_dir=str(self.folder / "run-reader"),
            )
            steps = self.scale.reading
            loop = replace(config.loop, steps=steps, learning_rate=1e-3, warmup_steps=min(50, steps // 4))
            problems = read_problems(replace(self.data, count=self.scale.problems))
            geometry_base.train(replace(config, loop=loop), Views(problems, self.size.image_size), self.size)
        return out

    def model(self, arm: LookArm, seed: int) -> Path:
        """Folder of an arm's model, which is trained if it is missing."""
        if arm.reinforced:
            return self._reinforced(arm, seed)
        first = self._stage(LookArm("text"), seed, self.reader(), f"first-{seed}", self.scale.text)
        view = "tiles" if arm.whole else "along" if arm.take_along else arm.resolution
        return self._stage(arm, seed, first, f"{arm.stage}-{view}-{arm.regions}-{seed}", self.scale.second)

    def _stage(self, arm: LookArm, seed: int, start: Path, name: str, steps: int) -> Path:
        out = self.folder / name
        if (out / TRAINING_FILE).exists():
            return out
        selects = arm.stage == "interleaved" and arm.regions in ("own", "boxes")
        config = interleave.InterleaveConfig(
            stage=arm.stage,
            start=str(start),
            out=str(out),
            run_dir=str(self.folder / f"run-{name}"),
            data=replace(self.data, count=self.scale.problems),
            regions=arm.regions,
            resolution=arm.resolution,
            take_along=arm.take_along,
            batch_size=self.scale.batch_size,
            announce=True,
            # There is nothing to learn of a selection that is random, or everything.
            selection_weight=1.0 if selects else 0.0,
            own_looks=0.5 if selects else 0.0,
            selector_lr_ratio=3.0,
            threshold=0.85,
        )
        loop = replace(config.loop, steps=steps, seed=seed, learning_rate=8e-4, warmup_steps=min(30, steps // 4))
        interleave.train(replace(config, loop=loop), self.problems(arm, count=self.scale.problems))
        return out

    def _reinforced(self, arm: LookArm, seed: int) -> Path:
        out = self.folder / f"reinforced-{arm.regions}-{seed}"
        if not (out / TRAINING_FILE).exists():
            config = reinforce.ReinforceConfig(
                start=str(self.model(replace(arm, reinforced=False), seed)),
                out=str(out),
                run_dir=str(self.folder / f"run-reinforced-{arm.regions}-{seed}"),
                data=replace(self.data, count=self.scale.problems),
                num_held_out=self.scale.test // 2,
                max_completion_length=MAX_NEW_TOKENS,
            )
            steps = self.scale.reinforced
            loop = replace(config.loop, steps=steps, seed=seed, learning_rate=5e-5, warmup_steps=min(10, steps // 4))
            reinforce.train(replace(config, loop=loop))
        return out


def outcomes(recipes: Recipes, name: str, seed: int, split: Split) -> dict[str, Any]:
    """Right answers, visual tokens and seconds of an arm on a split; kept beside the models."""
    arm = ARMS[name]
    folder = recipes.model(arm, seed)
    path = recipes.folder / f"outcomes-{name.replace(' ', '_')}-{seed}-{split}-{recipes.scale.test}.json"
    if not path.exists():
        found = interleave.read_interleaved(folder)
        model, problems = found.model.eval(), recipes.problems(arm, split=split, seed=1000, count=recipes.scale.test)
        # A reinforced model selects by itself, whatever it started from.
        looks, kept = replace(arm, regions="own") if arm.reinforced else arm, list(problems)
        choose = chooser(looks, recipes.data.grid, seed, model.selector.select)
        started = time.process_time()
        answered = answer_problems(model, found.encoder, kept, MAX_NEW_TOKENS, choose=choose)
        record = {
            "right": [outcome.right for outcome in answered],
            "visual_tokens": float(np.mean([outcome.visual_tokens for outcome in answered])),
            "seconds": (time.process_time() - started) / len(kept),
            "selection_f1": selection_f1(answered) if arm.stage == "interleaved" else None,
            "examples": [outcome.text for outcome in answered[:5]],
        }
        write_whole(path, json.dumps(record) + "\n")
    return dict(json.loads(path.read_text()))


def measure(recipes: Recipes, names: Sequence[str], seeds: Sequence[int], split: Split) -> dict[str, dict[str, Any]]:
    """Per arm: whether each of its seeds answers each problem of a split right, and means over the seeds."""
    table = {}
    for name in track(names, split):
        found = {seed: outcomes(recipes, name, seed, split) for seed in (seeds if name in EVERY_SEED else seeds[:1])}
        first = next(iter(found.values()))
        means = {key: float(np.mean([one[key] for one in found.values()])) for key in ("visual_tokens", "seconds")}
        scores = [one["selection_f1"] for one in found.values() if one["selection_f1"] is not None]
        table[name] = {
            "right": {seed: np.array(one["right"], float) for seed, one in found.items()},
            **means,
            "selection_f1": float(np.mean(scores)) if scores else None,
            "example": first["examples"][0],
        }
    return table


COMPARED = (
    (NATIVE_LOOKS, TEXT, 20.0),
    (NATIVE_LOOKS, WHOLE, -5.0),
    (NATIVE_LOOKS, RANDOM, 10.0),
    (NATIVE_LOOKS, TRUE, -5.0),
    (REINFORCED, NATIVE_LOOKS, 3.0),
)
"""(arm, other arm, least gain in points)"""


def bars(table: Mapping[str, dict[str, Any]]) -> list[Bar]:
    """Targets of the arms that were measured."""
    found = []
    for better, worse, least in COMPARED:
        if better in table and worse in table and (difference := gain(dict(table), better, worse)):
            found.append(Bar(f"{better}, over {worse}", 100 * difference.mean, least))
    if WHOLE in table and NATIVE_LOOKS in table:
        ratio = table[WHOLE]["visual_tokens"] / table[NATIVE_LOOKS]["visual_tokens"]
        found.append(Bar("visual tokens of the whole image over those of native looks", ratio, 4.0, "times"))
    if {TEXT, NATIVE_LOOKS, UNLABELLED} <= table.keys():
        with_labels, without = (gain(dict(table), arm, TEXT) for arm in (NATIVE_LOOKS, UNLABELLED))
        if with_labels and without and with_labels.mean > 0:
            share = 100 * without.mean / with_labels.mean
            found.append(Bar("gain without region labels, of that with them", share, 50.0, "%"))
    return found


def row_of(name: str, table: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """An arm's figures; accuracy in [0, 1], with an interval over seeds and problems together."""
    right = table[name]["right"]
    row: dict[str, Any] = {"arm": name, "accuracy": vars(crossed_interval(np.stack(list(right.values()))))}
    row["by_seed"] = {seed: round(float(values.mean()), 4) for seed, values in right.items()}
    return row | {key: value for key, value in table[name].items() if key != "right"}


_INTRO = """\
# Looking closer

Made by `python -m benchmarks.look_closer`; do not edit.

Figures of 512 x 512 pixels with small print, seen at first at 128 x 128. `models/geometry-base` learns for {reading}
steps to read such figures and crops of them; each arm begins with it and learns from the same {problems:,} problems:
{text} steps of text-only solutions, then {second} steps of its own, in batches of {batch_size}. Reinforcement adds up
to {reinforced} steps of GRPO. All answer the same {test} problems of a split, greedily. Accuracy is in %, with 95 %
bootstrap intervals over seeds and problems; visual tokens and seconds of the processor are means per answer.
"""
_SPLITS = {
    "test": "Families seen in training, with values never seen",
    "held-out": "Two families never seen in training",
}


def page(record: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    parts = [_INTRO.format(**record)]
    for split, rows in record["rows"].items():
        cells = []
        for row in rows:
            mean, low, high = (100 * row["accuracy"][key] for key in ("mean", "low", "high"))
            seeds = ", ".join(f"{100 * value:.1f}" for value in row["by_seed"].values())
            f1 = "-" if row["selection_f1"] is None else f"{row['selection_f1']:.2f}"
            accuracy = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
            cells.append((row["arm"], accuracy, seeds, f"{row['visual_tokens']:.0f}", f"{row['seconds']:.2f}", f1))
        header = ("arm", "accuracy", "per seed", "visual tokens", "seconds", "F1 of the selection")
        parts += [f"## {_SPLITS[split]}\n", markdown_table(header, cells)]
    lines = [f"- {Bar(**{key: value for key, value in bar.items() if key != 'met'}).line()}" for bar in record["bars"]]
    return "\n".join([*parts, "![Accuracy against visual tokens](look_closer.png)\n", "## Targets\n", *lines, ""])


_TICKS = (64, 128, 256, 512, 1024)
"""Numbers of visual tokens"""


def draw(record: Mapping[str, Any], path: Path) -> None:
    """Plot accuracy against visual tokens, one point per arm and one panel per split."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator

    figure, axes = pyplot.subplots(1, len(record["rows"]), figsize=(10, 4), squeeze=False, layout="constrained")
    for axis, (split, rows) in zip(axes[0], record["rows"].items(), strict=True):
        for row in rows:
            mean, low, high = (100 * row["accuracy"][key] for key in ("mean", "low", "high"))
            spread = [[mean - low], [high - mean]]
            axis.errorbar(row["visual_tokens"], mean, spread, marker="o", linestyle="", label=row["arm"])
        axis.set(xscale="log", xlabel="visual tokens per answer", ylabel="right answers, %", ylim=(0, 100))
        axis.set_title(_SPLITS[split], fontsize=9)
        axis.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check targets on short trainings; write nothing")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the trainings")
    usual = [arm for arm in ARMS if arm != UNLABELLED]  # it learns nothing, in an hour
    without = f"default: all but {UNLABELLED!r}"
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=usual, help=without)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 0 1 2")
    arguments = parser.parse_args(argv)
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            found = bars(measure(Recipes(Path(folder), SHORT), (TEXT, NATIVE_LOOKS, RANDOM, TRUE), (0,), "test"))
        for bar in found:
            print(bar.line())
        return 0 if all_met(found) else 1
    recipes = Recipes(arguments.runs, Scale())
    splits: tuple[Split, ...] = ("test", "held-out")
    tables = {split: measure(recipes, arguments.arms, arguments.seeds, split) for split in splits}
    rows = {split: [row_of(name, table) for name in table] for split, table in tables.items()}
    found = bars(tables["test"])
    record = {**vars(recipes.scale), "seeds": arguments.seeds, "rows": rows, "bars": [bar.to_json() for bar in found]}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({**record, **provenance()}, indent=1) + "\n")
    RESULT.with_suffix(".md").write_text(page(record))
    draw(record, RESULT.with_suffix(".png"))
    for bar in found:
        print(bar.line())
    print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
