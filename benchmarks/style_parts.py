"""Measure which part of a new style costs `models/aurora-tiny` most (`python -m benchmarks.style_parts`).

Scenes of the shifted style differ from those of the training in everything at once: colours, sizes, camera, light,
background, textures, clutter. Here the same kinds of held-out questions are asked about scenes of the standard style
with one of these parts taken from the shifted style, and about both styles as they are. Answers are drawn first.
Accuracy and its change from the standard style are written to `benchmarks/results/style_parts.json`. All conditions
draw their scenes from the same random numbers.

With --check it asks fewer questions, prints one line per target, writes nothing, and exits 1 if a target is missed.
--model FOLDER measures another model and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from typing import Any

from benchmarks.bars import Bar, all_met
from benchmarks.comparison_page import markdown_table
from perception.evaluation.bootstrap import Interval, bootstrap_interval
from perception.evaluation.comparison import GROUPS
from perception.evaluation.scenes import HELD_OUT_SEED, evaluate_items, scene_items
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped
from perception.scenes.styles import SHIFTED, STANDARD, STYLES, Style
from train.loop.provenance import ROOT, provenance

RESULT = ROOT / "benchmarks" / "results" / "style_parts.json"
SEED = HELD_OUT_SEED + 9_000_000
PARTS: dict[str, tuple[str, ...]] = {
    "colours of the things": ("palette", "color_jitter"),
    "sizes of the things": ("radius", "height_ratio"),
    "camera": ("camera_height", "field_of_view", "camera_yaw", "distance", "wall_distance"),
    "light": ("light_azimuth", "light_elevation", "light_color", "ambient", "specular"),
    "background": ("floor_colors", "wall_colors", "floor_textures"),
    "textures of the things": ("object_textures", "texture_contrast"),
    "clutter": ("clutter",),
}
"""The fields of `Style` that each part is made of"""
ROWS = ("counting", "depth, 3-5 points")
NAME = "in parts"
"""Under which every condition is rendered: the random numbers of scenes come from seed and name"""
MOST_LOST = 10.0
"""Points that a part alone may cost"""


def with_parts(*names: str) -> Style:
    """Return the standard style with these parts of the shifted one."""
    taken = {field: getattr(SHIFTED, field) for name in names for field in PARTS[name]}
    return replace(STANDARD, **taken)


@contextmanager
def known_as(name: str, style: Style) -> Iterator[None]:
    """Let scenes be rendered in a style by this name. Raises ValueError if it is another style's."""
    if name in STYLES:
        raise ValueError(f"{name!r} is a style already")
    STYLES[name] = style
    try:
        yield
    finally:
        del STYLES[name]


def measure(model: PerceptionModel, num_count: int, num_depth: int) -> dict[str, dict[str, Any]]:
    """Return the intervals of accuracy by condition and row."""
    conditions = {"nothing": STANDARD} | {name: with_parts(name) for name in PARTS} | {"all of these": SHIFTED}
    assert {f.name for f in fields(Style)} == {f for part in PARTS.values() for f in part}, "every field is in a part"
    found = {}
    for name, style in conditions.items():
        with known_as(NAME, style):
            items = scene_items(NAME, num_count, num_depth, SEED)
            answers = evaluate_items(model, items, "chain", title=f"other: {name}")
        found[name] = {
            row: asdict(bootstrap_interval([float(a.correct) for a in answers if a.group in GROUPS[row]]))
            for row in ROWS
        }
    return found


def change(found: Mapping[str, Mapping[str, Any]], name: str, row: str) -> float:
    """Return the change of accuracy by a condition, in points."""
    return 100 * float(found[name][row]["mean"] - found["nothing"][row]["mean"])


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of accuracy in %, with its change from the standard style."""
    lines = []
    for name, cells in found.items():
        line: list[Any] = [name]
        for row in ROWS:
            line += [Interval(**cells[row]), f"{change(found, name, row):+.1f}" if name != "nothing" else ""]
        lines.append(line)
    return markdown_table(("as in the shifted style", "counting", "change", "depth, 3-5 points", "change"), lines)


def bars(found: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    """Return the targets: what a part alone may cost."""
    return [Bar(f"{row}: change by the {name}", change(found, name, row), -MOST_LOST) for row in ROWS for name in PARTS]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets with fewer questions; write nothing")
    parser.add_argument("--model", help="measure another model; write nothing")
    parser.add_argument("--num-count", type=int, default=400, help="counting questions per condition")
    parser.add_argument("--num-depth", type=int, default=60, help="depth questions per condition and number of points")
    given = parser.parse_args(argv)
    model = PerceptionModel.from_pretrained(given.model or shipped("aurora-tiny"))
    if given.check:
        checked = bars(measure(model, 200, 40))
        print(*(bar.line() for bar in checked), sep="\n")
        return 0 if all_met(checked) else 1
    found = measure(model, given.num_count, given.num_depth)
    print(table(found))
    if given.model is None:
        asked = f"--num-count {given.num_count} --num-depth {given.num_depth}"
        record = {"command": f"python -m benchmarks.style_parts {asked}", **provenance(), "parts": found}
        record["bars"] = [bar.to_json() for bar in bars(found)]
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
