"""Compare drawing first with answering directly (`python -m benchmarks.aurora_vs_direct`).

Asks the shipped `models/aurora-tiny` (chains of perception) and a baseline that answers directly the same held-out
questions about rendered scenes of both styles. Replaces the spans of the chain to see whether they are used. Both come
from `models/tiny-base` and the same images; the page lists how each was trained. Writes
`benchmarks/results/aurora_vs_direct.json` and the page `aurora_vs_direct.md` beside it.

Shipped weights stay under 20 MB in total, so the baseline's weights may be missing. Then its outcomes, stored item by
item, are read from the result file; outcomes of other questions are refused. The command that trains the baseline is on
the page, and is printed by a run that needs it.

With --check it measures only the shifted style, on scenes of other seeds, in at most five minutes on two cores. It
prints one line per target, writes nothing, and exits 1 if a target is missed. Exit code 2 means that the comparison
could not be made; the message says why.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.bars import all_met, comparison_bars
from benchmarks.comparison_page import DIRECT_COMMAND, comparison_page
from benchmarks.outcomes import StaleOutcomes, StoredOutcomes
from perception.evaluation.comparison import Comparison, compare_with, print_comparison
from perception.evaluation.replacement import INTERVENTIONS
from perception.evaluation.scenes import HELD_OUT_SEED, Item, evaluate_items, scene_items
from perception.model.perception_model import PerceptionModel
from train.loop.provenance import ROOT, provenance

AURORA = ROOT / "models" / "aurora-tiny"
DIRECT = ROOT / "models" / "direct-tiny"
RESULT = ROOT / "benchmarks" / "results" / "aurora_vs_direct.json"
CHECK_SEED = HELD_OUT_SEED + 5_000_000


@dataclass(frozen=True)
class ItemSet:
    """A set of held-out questions, reproducible from its seed."""

    name: str
    style: str
    num_count: int
    num_depth: int
    first_seed: int

    @property
    def key(self) -> str:
        """Key of the baseline's stored outcomes."""
        return f"{self.name}/{self.style}"

    def items(self) -> list[Item]:
        return scene_items(self.style, self.num_count, self.num_depth, self.first_seed)


FULL = tuple(ItemSet("full", style, 600, 250, HELD_OUT_SEED) for style in ("standard", "shifted"))
CHECK = ItemSet("check", "shifted", 600, 250, CHECK_SEED)
CHECK_REPLACED = 200
"""Number of items per task whose spans `--check` replaces, to stay within five minutes."""


class Baseline:
    """The model that answers directly: its folder, or its outcomes as stored in a result file."""

    def __init__(self, folder: Path, stored: dict[str, Any] | None):
        self.folder, self.stored = folder, stored
        self.model = PerceptionModel.from_pretrained(folder) if folder.exists() else None

    def correct(self, item_set: ItemSet, items: list[Item]) -> list[bool]:
        """True for each item that it answers right.

        Raises:
            StaleOutcomes: if there is neither a model nor outcomes that belong to these items.
        """
        if self.model is not None:
            outcomes = evaluate_items(self.model, items, "direct", title=f"{item_set.key}: baseline")
            return [o.correct for o in outcomes]
        kept = (self.stored or {}).get("direct_outcomes", {}).get(item_set.key)
        remedy = f"train the baseline with `{self.command}` and give its folder with --direct"
        if kept is None:
            raise StaleOutcomes(f"{self.folder} holds no model and no outcomes are stored for {item_set.key}; {remedy}")
        return StoredOutcomes.from_json(kept).read_for(items, f"ask for the stored sizes, or {remedy}")

    @property
    def command(self) -> str:
        """The command that trains it."""
        training = self.record().get("training") or {}
        return str(training.get("command", DIRECT_COMMAND))

    def record(self) -> dict[str, Any]:
        """The model's record (see `model_record`); the stored one if there is no folder."""
        if self.model is not None:
            return model_record(self.folder, self.model)
        return dict((self.stored or {}).get("direct", {}))


def model_record(folder: Path, model: PerceptionModel) -> dict[str, Any]:
    """Identification of a model: folder, size, SHA-256 of its weights, and `training.json` if it has one."""
    inside = folder.resolve().is_relative_to(ROOT)
    training = folder / "training.json"
    with (folder / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "folder": str(folder.resolve().relative_to(ROOT)) if inside else folder.name,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "weights_sha256": digest,
        "training": json.loads(training.read_text()) if training.exists() else None,
    }


def measure(
    aurora: PerceptionModel, baseline: Baseline, item_set: ItemSet, max_replaced: int | None = None
) -> tuple[Comparison, StoredOutcomes]:
    """Compare on one set; also return the baseline's outcomes in the form they are stored in."""
    items = item_set.items()
    correct = baseline.correct(item_set, items)
    comparison, _ = compare_with(item_set.style, items, aurora, correct, INTERVENTIONS, max_replaced)
    return comparison, StoredOutcomes.of(items, correct)


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a stored result, None if there is none. Raises ValueError for a file that is not a result."""
    if not path.exists():
        return None
    wrong = ValueError(f"{path} is no result of this benchmark; delete it and give --direct a trained model")
    try:
        result = json.loads(path.read_text())
    except ValueError:
        raise wrong from None
    if not isinstance(result, dict) or "styles" not in result:
        raise wrong
    return result


def full_run(aurora_folder: Path, baseline: Baseline, sets: list[ItemSet], check: ItemSet) -> dict[str, Any]:
    """Measure every set and return the whole result. The outcomes that `--check` needs are stored with it."""
    aurora, start, console = PerceptionModel.from_pretrained(aurora_folder), time.monotonic(), Console()
    old = baseline.stored or {}
    styles, outcomes, asked = {}, dict(old.get("direct_outcomes", {})), dict(old.get("sets", {}))
    for item_set in sets:
        comparison, stored = measure(aurora, baseline, item_set)
        styles[item_set.style] = comparison
        outcomes[item_set.key], asked[item_set.key] = stored.to_json(), vars(item_set)
        print_comparison(comparison, console)
    if baseline.model is not None:
        items = check.items()
        outcomes[check.key] = StoredOutcomes.of(items, baseline.correct(check, items)).to_json()
        asked[check.key] = vars(check)
    return {
        "sets": asked,
        **provenance(),
        "minutes": round((time.monotonic() - start) / 60, 2),
        "aurora": model_record(aurora_folder, aurora),
        "direct": baseline.record(),
        "direct_was": "asked" if baseline.model is not None else "read from the outcomes stored by an earlier run",
        "bars": [bar.to_json() for bar in comparison_bars(styles["shifted"])],
        "styles": {style: comparison.to_json() for style, comparison in styles.items()},
        "direct_outcomes": outcomes,
    }


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on fewer scenes; write nothing")
    parser.add_argument(
        "--aurora", type=Path, default=AURORA, help="folder of the model that draws (default: models/aurora-tiny)"
    )
    parser.add_argument("--direct", type=Path, help="folder of the baseline (default: models/direct-tiny if it exists)")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file; the page is written beside it as .md")
    parser.add_argument(
        "--num-count", type=int, help=f"counting questions per style ({FULL[0].num_count}, check {CHECK.num_count})"
    )
    parser.add_argument(
        "--num-depth",
        type=int,
        help=f"depth questions per style for each of 2 to 5 points ({FULL[0].num_depth}, check {CHECK.num_depth})",
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the result file, and stop")
    return parser


def _write(result: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(comparison_page(result))
    print(f"written: {path} and {path.with_suffix('.md').name}")


def _sized(item_set: ItemSet, arguments: argparse.Namespace) -> ItemSet:
    return replace(
        item_set,
        num_count=arguments.num_count or item_set.num_count,
        num_depth=arguments.num_depth or item_set.num_depth,
    )


def _run(arguments: argparse.Namespace) -> int:
    stored = read_result(arguments.out)
    if arguments.page_only:
        if stored is None:
            raise ValueError(f"{arguments.out} does not exist; run without --page-only first")
        _write(stored, arguments.out)
        return 0
    if arguments.direct is not None and not arguments.direct.exists():
        raise ValueError(
            f"{arguments.direct} does not exist; give the folder of a trained baseline, or leave --direct out"
        )
    baseline, check = Baseline(arguments.direct or DIRECT, stored), _sized(CHECK, arguments)
    if baseline.model is None:
        print(f"{DIRECT.relative_to(ROOT)} is not there: the baseline's outcomes are read from {arguments.out}")
        print(f"the baseline is trained by: {baseline.command}")
    if arguments.check:
        aurora = PerceptionModel.from_pretrained(arguments.aurora)
        comparison, _ = measure(aurora, baseline, check, CHECK_REPLACED)
        bars = comparison_bars(comparison)
    else:
        sets = [_sized(item_set, arguments) for item_set in FULL]
        result = full_run(arguments.aurora, baseline, sets, check)
        _write(result, arguments.out)
        bars = comparison_bars(Comparison.from_json(result["styles"]["shifted"]))
    for bar in bars:
        print(bar.line())
    return int(arguments.check and not all_met(bars))


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    try:
        return _run(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
