"""A folder of drawn photographs in the layout of labelled ones, for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64


def make_photos(folder: Path, count: int = 12) -> Path:
    """Write `count` images, nearer in eight steps to the right, each with a person, an unsure dog and 1 to 3 cars."""
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, splits = [], []
    steps = np.arange(WIDTH // 2) // 6 * 36  # 0, 36, .. 252: markers need level ground
    near = np.broadcast_to(steps, (HEIGHT // 2, WIDTH // 2)).astype(np.uint8)
    for number in range(count):
        pixels = rng.integers(60, 200, size=(8, 12, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        boxes = [[8 + 28 * k, 30, 28 + 28 * k, 50, "car", 0.9] for k in range(1 + number % 3)]
        for x1, y1, x2, y2, *_ in boxes:
            image.paste((220, 30, 30), (x1, y1, x2, y2))
        name = f"{number:05d}.jpg"
        image.save(folder / "images" / name, quality=95)
        Image.fromarray(near).save(folder / "depth" / f"{number:05d}.png")
        boxes += [[0, 0, 10, 10, "dog", 0.25], [60, 2, 80, 20, "person", 0.8]]
        rows.append({"image": name, "width": WIDTH, "height": HEIGHT, "boxes": boxes})
        splits.append({"image": name, "split": "test" if number % 4 == 3 else "train"})
    (folder / "boxes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "split.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "split"])
        writer.writeheader()
        writer.writerows(splits)
    return folder
