"""Count by drawing boxes or points (`python -m benchmarks.counting_points`).

A box is four location tokens and a point two. Two models learn from the same rendered scenes and the same counting
questions, several about each scene, to draw what they count and then to say the number. One draws the boxes of the
things, the other their centres, in the same order, and the words of the questions are the same. One thing is not: half
of the images of the model that draws boxes are mirrored, as records with boxes are, and none with points. Both start
from `models/tiny-base`, which has never drawn either. They are asked about held-out scenes of both styles. Intervals
are over questions and seeds together. Trainings and answers stay in --runs, so that a benchmark that was stopped goes
on. Writes `benchmarks/results/counting_points.json`.

With --check it measures nothing: it prints one line per target of the stored result, and exits 1 if one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.bars import Bar, all_met
from benchmarks.label_efficiency import STYLES, interval, trained_model, training_minutes
from perception.chains import CHAIN_COUNT, Example
from perception.datasets.images import ImageFile
from perception.datasets.progress import track
from perception.datasets.records import Record, RecordSet
from perception.evaluation.scenes import Item, scene_items
from perception.model.perception_model import Prompt
from perception.scenes.questions import CountQuestion, count_question
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.spans import GROUP_SIZES, Span
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig
from train.loop.config import LoopConfig
from train.loop.provenance import ROOT, provenance
from vqvae.files import write_whole

RESULT = ROOT / "benchmarks" / "results" / "counting_points.json"
BASE = ROOT / "models" / "tiny-base"
FORMS = ("boxes", "points")
QUESTIONS = 4
"""Most questions about one scene, in the turns of one row"""
STEPS, ROWS, RATE = 800, 16, 1e-3
BATCH = 50
Counts = dict[str, list[int | None]]
"""By "said" and "drawn": a number per question"""


def drawn_span(form: str, boxes_xyxy: np.ndarray) -> Span:
    """Return the span of boxes (n, 4) in [0, 1], or of their centres in the same order."""
    bins = AuroraConfig().num_locations
    boxes = BoxTokenizer(bins)
    codes = boxes.encode(boxes_xyxy)
    if form == "boxes":
        return Span("boxes", tuple(codes))
    places = boxes.decode(codes)  # (n, 4), in the order in which boxes are written
    return Span("points", tuple(PointTokenizer(bins).encode((places[:, :2] + places[:, 2:]) / 2)))


def asked(question: str) -> str:
    """Return a counting question as it is put to both models."""
    return f"{question} Mark them first."


def examples(scene: Scene, seed: int, form: str) -> tuple[Example, ...]:
    """Return up to `QUESTIONS` different tasks that count things of a scene."""
    rng, found = np.random.default_rng(seed), dict[str, CountQuestion]()
    for _ in range(QUESTIONS):
        question = count_question(scene, rng)
        found.setdefault(question.text, question)
    return tuple(
        Example(CHAIN_COUNT, asked(q.text), (drawn_span(form, q.boxes_xyxy), f" {q.answer}."), str(q.answer))
        for q in found.values()
    )


def records_file(form: str, given: argparse.Namespace) -> Path:
    """Return the file of the records to train on."""
    return Path(given.runs) / f"{form}-{given.scenes}.jsonl"


def write_records(store: SceneStore, form: str, given: argparse.Namespace) -> None:
    """Write the scenes' images and records to train on. What is there stays."""
    file, folder = records_file(form, given), Path(given.runs)
    if not file.exists():
        (folder / "images").mkdir(parents=True, exist_ok=True)
        records = []
        for index in track(range(len(store)), f"records of {form}"):
            image = folder / "images" / f"{index}.png"
            if not image.exists():
                Image.fromarray(np.asarray(store.images[index])).save(image)
            first, *more = examples(Scene.from_store(store, index), store.seeds[index], form)
            records.append(Record(ImageFile(image), first, f"scene {store.seeds[index]}", more=tuple(more)))
        RecordSet(tuple(records)).write(file)


def training(form: str, seed: int, given: argparse.Namespace) -> AuroraConfig:
    """Return the configuration of one training."""
    folder = Path(given.runs) / f"{form}-{given.scenes}-{given.steps}-{seed}"
    return AuroraConfig(
        base=str(BASE),
        out=str(folder / "model"),
        run_dir=str(folder / "training"),
        batch_size=ROWS,
        data=SourcesConfig(scenes=ScenesConfig(0), records=(str(records_file(form, given)),)),
        curriculum=CurriculumConfig("constant", atomic_end=0.0, chain_share=1.0),
        loop=LoopConfig(
            steps=given.steps, learning_rate=RATE, weight_decay=0.05, warmup_steps=0.1, precision="bf16", seed=seed
        ),
    )


def counted(config: AuroraConfig, form: str, style: str, items: Sequence[Item]) -> Counts:
    """Train, or take the finished model; return what it counts. Both are kept."""
    folder = Path(config.out).parent
    file = folder / f"{style}.json"
    if file.exists():
        stored: Counts = json.loads(file.read_text())
        return stored
    model = trained_model(config, folder.name)
    prompts = [Prompt(item.image, asked(item.question), "count") for item in items]
    answers = [a for at in range(0, len(prompts), BATCH) for a in model.answer(prompts[at : at + BATCH])]
    found: Counts = {
        "said": [answer.value if isinstance(answer.value, int) else None for answer in answers],
        "drawn": [sum(len(s.codes) // GROUP_SIZES[form] for s in a.spans if s.modality == form) for a in answers],
    }
    write_whole(file, json.dumps(found))
    return found


def measure(given: argparse.Namespace) -> dict[str, Any]:
    store = ScenesConfig(given.scenes, given.store).build()
    items = {style: scene_items(style, given.num_count, 0) for style in STYLES}
    right: dict[str, dict[str, dict[str, list[list[bool]]]]] = {style: {} for style in STYLES}
    models = []
    for form in FORMS:
        write_records(store, form, given)
        for seed in given.seeds:
            config = training(form, seed, given)
            for style in STYLES:
                for name, values in counted(config, form, style, items[style]).items():
                    correct = [value == item.answer for value, item in zip(values, items[style], strict=True)]
                    right[style].setdefault(name, {}).setdefault(form, []).append(correct)
            models.append(config.out)
    return {
        "command": "python -m benchmarks.counting_points " + " ".join(given.words),
        "seeds": given.seeds,
        "scenes": given.scenes,
        "steps": given.steps,
        "rows of a step": ROWS,
        "questions": given.num_count,
        **provenance(),
        "training_minutes": training_minutes(models),
        "styles": {style: figures(right[style]) for style in STYLES},
    }


def figures(right: dict[str, dict[str, list[list[bool]]]]) -> dict[str, Any]:
    """Return the shares of right numbers, said and drawn, by form, and what boxes gain over points."""
    of = {name: {form: np.array(rows, float) for form, rows in forms.items()} for name, forms in right.items()}
    return {
        name: {form: vars(interval(values)) for form, values in forms.items()}
        | {"boxes over points": vars(interval(forms["boxes"] - forms["points"]))}
        for name, forms in of.items()
    }


def bars(result: dict[str, Any]) -> list[Bar]:
    """Return the targets: boxes, which the package draws, count at least as well as points."""
    return [
        Bar(
            f"{style} style, number said: boxes over points",
            100 * result["styles"][style]["said"]["boxes over points"]["mean"],
            0.0,
        )
        for style in STYLES
    ]


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    return [
        f"{style} style, number {name}, {form}: {100 * row['mean']:.1f} % "
        f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        for style, found in result["styles"].items()
        for name, rows in found.items()
        for form, row in rows.items()
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets of the stored result; measure nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scenes", type=int, default=40_000, help="scenes to train on")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of {ROWS} scenes")
    parser.add_argument("--num-count", type=int, default=600, help="questions per style")
    parser.add_argument("--store", default="runs/scenes/standard", help="folder of the rendered scenes")
    parser.add_argument("--runs", default="runs/counting_points", help="folder of the trainings and their answers")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    given = parser.parse_args(argv)
    given.words = sys.argv[1:] if argv is None else argv
    if not given.check:
        result = measure(given)
        result["bars"] = [bar.to_json() for bar in bars(result)]
        write_whole(given.out, json.dumps(result, indent=1) + "\n")
        print(*lines(result), f"written: {given.out}", sep="\n")
    elif not given.out.exists():
        print(f"counting_points: {given.out} does not exist; run without --check first", file=sys.stderr)
        return 1
    found = bars(json.loads(given.out.read_text()))
    print(*(bar.line() for bar in found), sep="\n")
    return int(given.check and not all_met(found))


if __name__ == "__main__":
    sys.exit(main())
