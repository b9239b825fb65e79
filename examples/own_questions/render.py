"""Render the images and questions of this folder again: `python examples/own_questions/render.py`.

Twelve rendered scenes with counting questions and a few questions with one-word answers, in the layout that
`perception.datasets.own` describes. Your own images come from a camera, and the answers from your annotators.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from perception.scenes.questions import count_question
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene

FOLDER = Path(__file__).parent
FIRST_SEED, COUNT = 30_000_000, 12


def main(folder: Path = FOLDER) -> None:
    rng = np.random.default_rng(0)
    batch = render_scenes(range(FIRST_SEED, FIRST_SEED + COUNT))
    rows: list[list[str]] = []
    for number in range(COUNT):
        scene, name = Scene.from_batch(batch, number), f"scene-{number:02d}.png"
        Image.fromarray(scene.image.numpy()).save(folder / name)
        height, width = scene.image.shape[:2]
        for _ in range(2):
            asked = count_question(scene, rng)
            boxes = np.round(asked.boxes_xyxy * (width, height, width, height), 1).tolist()
            rows.append([name, asked.text, str(asked.answer), json.dumps(boxes), asked.things])
        if scene.objects:
            widest = max(scene.objects, key=lambda item: item.box_xyxy[2] - item.box_xyxy[0])
            rows.append([name, "What colour is the widest object?", widest.color, "", ""])
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["image", "question", "answer", "boxes", "things"], *rows])


if __name__ == "__main__":
    main()
