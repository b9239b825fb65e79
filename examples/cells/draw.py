"""Draw a stand-in for photographs of blood, to try the commands on: `python examples/cells/draw.py FOLDER`.

Red cells, white cells and platelets on a pale ground, with their boxes, in Pascal VOC's layout: JPEGImages,
Annotations, and the split in ImageSets/Main.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 320, 240
TRAIN, TEST = 16, 4
KINDS = {"RBC": (22, "#d98880"), "WBC": (34, "#7d5ba6"), "Platelets": (7, "#8e44ad")}
"""Radius in pixels and colour of each kind of cell"""
Cell = tuple[str, int, int, int]
"""Kind, centre x and y, radius"""


def place(rng: np.random.Generator) -> list[Cell]:
    """Return the cells of one photograph: 8 to 28 red ones, 0 to 2 white ones, 0 to 4 platelets; none hides another."""
    counts = {"WBC": int(rng.integers(0, 3)), "Platelets": int(rng.integers(0, 5)), "RBC": int(rng.integers(8, 29))}
    cells = list[Cell]()
    for kind, count in counts.items():
        made, tries = 0, 0
        while made < count and tries < 400:
            tries += 1
            r = round(KINDS[kind][0] * rng.uniform(0.85, 1.1))
            x, y = int(rng.integers(r, WIDTH - r)), int(rng.integers(r, HEIGHT - r))
            if all(np.hypot(x - other_x, y - other_y) > 0.8 * (r + other_r) for _, other_x, other_y, other_r in cells):
                cells.append((kind, x, y, r))
                made += 1
    return cells


def picture(cells: list[Cell]) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "#f3e9dc")
    canvas = ImageDraw.Draw(image)
    for kind, x, y, r in cells:
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=KINDS[kind][1])
        if kind == "RBC":
            canvas.ellipse((x - r // 3, y - r // 3, x + r // 3, y + r // 3), fill="#eab5ae")
    return image


def annotation(name: str, cells: list[Cell]) -> str:
    lines = ["<annotation>", f"  <filename>{name}.jpg</filename>"]
    lines.append(f"  <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>")
    for kind, x, y, r in cells:
        sides = {"xmin": x - r + 1, "ymin": y - r + 1, "xmax": x + r, "ymax": y + r}
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
        lines.append(f"  <object><name>{kind}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def main(folder: Path) -> None:
    lists = folder / "ImageSets" / "Main"
    for made in (folder / "JPEGImages", folder / "Annotations", lists):
        made.mkdir(parents=True, exist_ok=True)
    names = [f"blood-{number:02d}" for number in range(TRAIN + TEST)]
    for number, name in enumerate(names):
        cells = place(np.random.default_rng(number))
        picture(cells).save(folder / "JPEGImages" / f"{name}.jpg", quality=90)
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, cells))
    for part, of_part in (("train", names[:TRAIN]), ("test", names[TRAIN:])):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in of_part))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("draw.py: give the folder to draw into: python examples/cells/draw.py FOLDER")
    main(Path(sys.argv[1]))
