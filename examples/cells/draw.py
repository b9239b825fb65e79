"""Draw photographs of blood, to learn from before real ones: `python examples/cells/draw.py FOLDER --train 2000`.

Red cells that lie over each other, white cells with their nuclei and platelets, with their boxes, in Pascal VOC's
layout: JPEGImages, Annotations, and the split in ImageSets/Main. Colours, sharpness and shapes vary from photograph to
photograph, as do stains and microscopes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from perception.datasets.progress import track

WIDTH, HEIGHT = 400, 300
RADII = {"RBC": 31.0, "WBC": 47.0, "Platelets": 9.0}
"""Mean radius in pixels of each kind of cell"""
SIDES = ("xmin", "ymin", "xmax", "ymax")
_RED_APART, _APART = 0.5, 0.75  # least distance from other centres, as a share of the two radii together

Pixels = NDArray[np.float64]
Cell = tuple[str, float, float, float]
"""Kind, centre x and y, radius"""
Part = tuple[slice, slice]


def place(rng: np.random.Generator) -> list[Cell]:
    """Return the cells of a photograph: 2 to 28 red ones, 0 to 2 white ones, 0 to 5 platelets; red ones may overlap."""
    counts = {
        "RBC": int(np.clip(rng.normal(14, 6), 2, 28)),
        "Platelets": int(rng.choice(6, p=[0.4, 0.25, 0.15, 0.1, 0.05, 0.05])),
        "WBC": int(rng.choice(3, p=[0.1, 0.8, 0.1])),
    }
    size, clumped, cells = rng.uniform(0.8, 1.15), rng.random(), list[Cell]()
    for kind, count in counts.items():
        for _ in range(20 * count):
            if sum(cell[0] == kind for cell in cells) == count:
                break
            r = RADII[kind] * size * rng.uniform(0.8, 1.2)
            x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            if cells and kind == "RBC" and rng.random() < clumped:  # beside another one
                _, at_x, at_y, at_r = cells[rng.integers(len(cells))]
                turn = rng.uniform(0, 2 * np.pi)
                x, y = at_x + (r + at_r) * 0.8 * np.cos(turn), at_y + (r + at_r) * 0.8 * np.sin(turn)
            inside = -0.5 * r < x < WIDTH + 0.5 * r and -0.5 * r < y < HEIGHT + 0.5 * r
            nearest = min((np.hypot(x - cell[1], y - cell[2]) / (r + cell[3]) for cell in cells), default=2.0)
            if inside and nearest > (_RED_APART if kind == "RBC" else _APART):
                cells.append((kind, x, y, r))
    return cells


def around(x: float, y: float, r: float) -> Part:
    """Return the rows and columns of the part of the image where a cell lies."""
    low, high = np.array([y, x]) - 2 * r, np.array([y, x]) + 2 * r
    (top, left), (bottom, right) = (np.clip(at.astype(int), 0, (HEIGHT, WIDTH)) for at in (low, high))
    return slice(top, bottom), slice(left, right)


def blob(part: Part, x: float, y: float, r: float, rng: np.random.Generator) -> Pixels:
    """Return how far inside a blob each pixel of a part is: 1 at its centre, 0 at its edge, negative outside."""
    rows, columns = np.mgrid[part]
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.25) ** 0.5
    across = ((columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)) / stretch
    down = ((rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)) * stretch
    angle, edge = np.arctan2(down, across), np.full(rows.shape, r)
    for waves in (2, 3, 4, 5):
        edge += r * rng.normal(0, 0.05) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return 1 - np.hypot(across, down) / edge


def paint(image: Pixels, depth: Pixels, colour: Pixels, opacity: float, soft: float) -> None:
    """Lay a colour over the pixels inside a blob, in place; its edge is `soft` of its radius wide."""
    image += opacity * np.clip(depth / soft, 0, 1)[..., None] * (colour - image)


def picture(cells: list[Cell], rng: np.random.Generator) -> tuple[Image.Image, list[tuple[str, list[int]]]]:
    """Return a photograph of cells, and the kind and box of each one, in pixels from 1."""
    ground = np.array([205, 205, 205]) + rng.uniform(-25, 30) + rng.normal(0, 9, 3)
    red = np.array([178, 128, 122]) + rng.normal(0, 13, 3)
    violet = np.array([112, 88, 205]) + rng.normal(0, 18, 3)
    light = np.linspace(-1, 1, WIDTH) * rng.normal(0, 6) + np.linspace(-1, 1, HEIGHT)[:, None] * rng.normal(0, 6)
    whole = np.repeat(light[..., None], 3, axis=2) + ground
    pale, boxes = rng.random(), list[tuple[str, list[int]]]()
    for kind, x, y, r in cells:
        part = around(x, y, r)
        image, depth = whole[part], blob(part, x, y, r, rng)

        def inner(off: float, least: float, most: float) -> Pixels:
            """Return a smaller blob near the centre of the cell, cut to the cell."""
            at_x, at_y = np.array([x, y]) + rng.normal(0, off * r, 2)  # noqa: B023
            return np.minimum(blob(part, at_x, at_y, r * rng.uniform(least, most), rng), depth)  # noqa: B023

        if kind == "RBC":
            paint(image, depth, red + rng.normal(0, 8, 3), rng.uniform(0.7, 0.95), 0.12)
            if rng.random() < pale:
                paint(image, inner(0.1, 0.3, 0.6), ground, rng.uniform(0.3, 0.8), 0.5)
            if rng.random() < 0.3:
                paint(image, inner(0.3, 0.08, 0.12), ground + 40, 0.9, 0.5)
        elif kind == "WBC":
            paint(image, depth, 0.55 * ground + 0.45 * violet, rng.uniform(0.5, 0.9), 0.15)
            for _ in range(int(rng.integers(1, 5))):
                paint(image, inner(0.3, 0.35, 0.65), violet + rng.normal(0, 8, 3), 0.95, 0.12)
        else:
            paint(image, depth, 0.8 * violet + 0.2 * red, rng.uniform(0.6, 0.95), 0.4)
        rows, columns = np.nonzero(depth > 0)
        if len(rows):
            top, left = part[0].start + 1, part[1].start + 1
            corners = (left + columns.min(), top + rows.min(), left + columns.max(), top + rows.max())
            boxes.append((kind, [int(corner) for corner in corners]))
    noisy = whole + rng.normal(0, rng.uniform(1, 5), whole.shape)
    drawn = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    return drawn.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.5))), boxes


def annotation(name: str, boxes: list[tuple[str, list[int]]]) -> str:
    lines = ["<annotation>", f"  <filename>{name}.jpg</filename>"]
    lines.append(f"  <size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>")
    for kind, box in boxes:
        corners = "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, box, strict=True))
        lines.append(f"  <object><name>{kind}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def main(folder: Path, train: int = 16, test: int = 4) -> None:
    lists = folder / "ImageSets" / "Main"
    for made in (folder / "JPEGImages", folder / "Annotations", lists):
        made.mkdir(parents=True, exist_ok=True)
    names = [f"blood-{number:02d}" for number in range(train + test)]
    for number, name in enumerate(track(names, "drawing")):
        rng = np.random.default_rng(number)
        drawn, boxes = picture(place(rng), rng)
        drawn.save(folder / "JPEGImages" / f"{name}.jpg", quality=90)
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(name, boxes))
    for part, of_part in (("train", names[:train]), ("test", names[train:])):
        (lists / f"{part}.txt").write_text("".join(f"{name}\n" for name in of_part))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to draw into")
    parser.add_argument("--train", type=int, default=16, help="photographs to train on")
    parser.add_argument("--test", type=int, default=4, help="photographs to test on")
    given = parser.parse_args()
    main(given.folder, given.train, given.test)
