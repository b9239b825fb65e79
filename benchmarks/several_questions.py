"""How much faster are several questions about one image? `python -m benchmarks.several_questions`.

Eight counting questions about each of 12 images, in three ways: one at a time, one at a time with a prepared image
(`PerceptionModel.prepare_image`), and in one batch (`PerceptionModel.ask_many`). The ways take turns image by image on
one thread, the first image is not timed, and what is compared is processor time, which other load on the machine
stretches least. Writes `benchmarks/results/several_questions.json`.

With --check it takes fewer images, prints one line per bar, writes nothing, and exits 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.bars import Bar, all_met
from perception.chains import Answer, prompt_for
from perception.decoding.drafts import DraftBook
from perception.model.perception_model import PerceptionModel, Prompt
from perception.scenes.render import render_scenes
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "several_questions.json"
MODEL = ROOT / "models" / "aurora-tiny"
FIRST_SEED = 97_900_000
TEXTS = [f"How many {color} objects are there?" for color in ("red", "green", "blue", "yellow")] * 2
WAYS = ("one at a time", "one at a time, prepared", "ask_many")


def answer_all(model: PerceptionModel, picture: Tensor, mode: str, way: str) -> list[Answer]:
    """Answers to all questions about one image."""
    if way == "ask_many":
        return model.ask_many(picture, TEXTS, mode)
    if way == "one at a time":  # `ask` prepares its image, so that `answer` is the plain way
        return [model.answer([Prompt(picture, *prompt_for(text, mode))])[0] for text in TEXTS]
    prepared = model.prepare_image(picture)
    return [model.ask(prepared, text, mode) for text in TEXTS]


def measure(model: PerceptionModel, images: int = 12) -> dict[str, Any]:
    """Speed of each way relative to one question at a time, per mode."""
    result: dict[str, Any] = {"questions": len(TEXTS), "images": images}
    for mode in ("direct", "chain"):
        seconds, same = dict.fromkeys(WAYS, 0.0), 0
        for number, picture in enumerate(render_scenes(range(FIRST_SEED, FIRST_SEED + 1 + images)).images):
            given: list[list[Any]] = []
            for way in WAYS:
                model.drafts = DraftBook()  # otherwise the second way would draft from the first one's answers
                start = time.process_time()
                answers = answer_all(model, picture, mode, way)
                seconds[way] += (time.process_time() - start) * (number > 0)
                given.append([(answer.text, answer.spans) for answer in answers])
            same += int(given[0] == given[1] == given[2])
        result[mode] = {
            "times_as_fast": {way: round(seconds[WAYS[0]] / took, 2) for way, took in seconds.items()},
            "images_with_the_same_answers": same,
            "images_asked_about": images + 1,
        }
    return result


def bars(result: dict[str, Any]) -> list[Bar]:
    found = []
    for mode in ("direct", "chain"):
        for way in WAYS[1:]:
            found.append(Bar(f"{mode}: {way}", result[mode]["times_as_fast"][way], 1.0, "times"))
        differing = result[mode]["images_asked_about"] - result[mode]["images_with_the_same_answers"]
        found.append(Bar(f"{mode}: images whose answers differ", 0.0 - differing, 0.0, "images"))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fewer images, print the bars only, write nothing")
    parser.add_argument("--model", default=str(MODEL), help="folder of the model")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = measure(PerceptionModel.from_pretrained(arguments.model), 3 if arguments.check else 12)
    found = bars(result)
    for bar in found:
        print(bar.line())
    if not arguments.check:
        record = {"model": os.path.relpath(arguments.model, ROOT), "threads": torch.get_num_threads(), **result}
        record |= {"bars": [bar.to_json() for bar in found], **provenance()}
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {RESULT}")
    return int(arguments.check and not all_met(found))


if __name__ == "__main__":
    sys.exit(main())
