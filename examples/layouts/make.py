"""Make this folder's data again: `python examples/layouts/make.py`, with `pip install 'perception-tokens[data]'`.

Three rendered scenes with their objects, in the layouts of docs/data.md. Each file holds the same boxes, so that
you can look at how yours differ.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene

FOLDER = Path(__file__).parent
SEEDS = (30_000_001, 30_000_004, 30_000_005)
Objects = list[tuple[str, list[float]]]
"""Names and boxes, xyxy in [0, 1]"""


def scenes(folder: Path) -> dict[str, Objects]:
    """The objects of each image, by its name; the images are written."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    batch, found = render_scenes(SEEDS), dict[str, Objects]()
    for number in range(len(SEEDS)):
        scene, name = Scene.from_batch(batch, number), f"scene-{number}.png"
        Image.fromarray(scene.image.numpy()).save(folder / "images" / name)
        found[name] = [(f"{item.color} {item.shape}", list(item.box_xyxy)) for item in scene.objects]
    return found


def pixels(box: list[float], width: int, height: int) -> list[float]:
    return np.round(np.array(box) * [width, height, width, height], 1).tolist()


def messages(found: dict[str, Objects]) -> list[dict[str, Any]]:
    """Several turns, several images, a system turn, and text alone."""
    (first, items), (second, others), *_ = found.items()

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    many = [said("user", "How many objects are there?"), said("assistant", f"{len(items)}.")]
    more = [said("user", "What is the first one?"), said("assistant", f"A {items[0][0]}.")]
    texts = ("Image 1: <image> Image 2: <image> Which shows more objects?", "1" if len(items) > len(others) else "2")
    return [
        {"messages": many + more, "images": [f"images/{first}"]},
        {
            "messages": [said("system", "Be brief."), said("user", texts[0]), said("assistant", texts[1])],
            "images": [f"images/{first}", f"images/{second}"],
        },
        {"messages": [said("user", "What is a cylinder?"), said("assistant", "A round column.")], "images": []},
    ]


def prompts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same as trl's prompt and completion: a list of turns, and a text."""
    _, turns, text = ((row["messages"], row["images"]) for row in rows)
    return [
        {"prompt": turns[0][:-1], "completion": turns[0][-1:], "images": turns[1]},
        {"prompt": text[0][0]["content"], "completion": text[0][1]["content"], "images": text[1]},
    ]


def grounding(found: dict[str, Objects]) -> list[dict[str, Any]]:
    """ms-swift's objects: placed by the texts, and as labels alone."""
    rows = []
    for name, items in found.items():
        size = Image.open(FOLDER / "images" / name).size
        boxes = [pixels(box, *size) for _, box in items]
        asked = {"role": "user", "content": "<image>Find the <ref-object>."}
        row: dict[str, Any] = {
            "messages": [asked, {"role": "assistant", "content": "<bbox>"}],
            "images": [f"images/{name}"],
        }
        rows.append(row | {"objects": {"ref": [items[0][0]], "bbox": boxes[:1]}})
        shapes = [kind.split()[1] for kind, _ in items]
        rows.append({"images": [f"images/{name}"], "objects": {"ref": shapes, "bbox": boxes}})
    return rows


def thousandths(found: dict[str, Objects]) -> list[dict[str, Any]]:
    """Questions with boxes in thousandths of the image."""
    rows = []
    for name, items in found.items():
        boxes = [pixels(box, 1000, 1000) for _, box in items]
        asked = {"image": f"images/{name}", "question": "How many objects are there?", "answer": len(items)}
        rows.append(asked | {"boxes": boxes, "things": "objects"})
    return rows


def coco(found: dict[str, Objects]) -> dict[str, Any]:
    names = sorted({kind for items in found.values() for kind, _ in items})
    images, annotations = [], list[dict[str, Any]]()
    for number, (name, items) in enumerate(found.items()):
        width, height = Image.open(FOLDER / "images" / name).size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for kind, box in items:
            x1, y1, x2, y2 = pixels(box, width, height)
            sides = np.round([x1, y1, x2 - x1, y2 - y1], 1).tolist()
            entry = {"id": len(annotations), "image_id": number, "category_id": names.index(kind), "bbox": sides}
            annotations.append(entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def voc(name: str, items: Objects) -> str:
    width, height = Image.open(FOLDER / "images" / name).size
    lines = ["<annotation>", f"  <filename>{name}</filename>"]
    lines.append(f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for kind, box in items:
        x1, y1, x2, y2 = (round(side) for side in pixels(box, width, height))
        corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        lines.append(f"  <object><name>{kind}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>", ""])


def yolo(items: Objects, shapes: list[str]) -> str:
    lines = []
    for kind, (x1, y1, x2, y2) in items:
        numbers = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
        lines.append(" ".join([str(shapes.index(kind.split()[1])), *(f"{number:.4f}" for number in numbers)]))
    return "".join(f"{line}\n" for line in lines)


def tables(folder: Path) -> None:
    """A parquet file and a `datasets` folder, with the images inside."""
    import datasets

    rows = [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]
    for row in rows:
        row["images"] = [{"bytes": (folder / path).read_bytes(), "path": Path(path).name} for path in row["images"]]
    turn = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    features = datasets.Features({"messages": [turn], "images": datasets.List(datasets.Image())})
    table = datasets.Dataset.from_list(rows, features=features)
    table.to_parquet(folder / "messages.parquet")
    table.save_to_disk(folder / "dataset")


def main(folder: Path = FOLDER) -> None:
    found = scenes(folder)
    said = messages(found)
    tables = {"messages": said, "prompts": prompts(said), "grounding": grounding(found), "boxes": thousandths(found)}
    for name, made in tables.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (folder / "coco.json").write_text(json.dumps(coco(found)) + "\n")
    shapes = sorted({kind.split()[1] for items in found.values() for kind, _ in items})
    (folder / "yolo.yaml").write_text(f"train: images\nnames: {json.dumps(shapes)}\n")
    for part in ("voc", "labels"):
        (folder / part).mkdir(exist_ok=True)
    for name, items in found.items():
        (folder / "voc" / name).with_suffix(".xml").write_text(voc(name, items))
        (folder / "labels" / name).with_suffix(".txt").write_text(yolo(items, shapes))


if __name__ == "__main__":
    main()
    tables(FOLDER)
