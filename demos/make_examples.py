"""Make the examples that ship with the demos: `python -m demos.make_examples`.

Scenes and figures are rendered from seeds that no training uses; photographs are scikit-image's.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from demos.handlers import EXAMPLES
from perception.geometry.problems import problem
from perception.scenes.render import render_scenes

SIZE = 320
SCENES = {"standard": (70_000_003, 70_000_008, 70_000_012), "shifted": (70_000_004, 70_000_011, 70_000_017)}
DEPTH = (("standard", 70_000_021), ("shifted", 70_000_022))
MASKS = (("standard", 70_000_003), ("shifted", 70_000_011))
"""Scenes whose largest object has its mask saved"""

FIGURES = {"third_angle": 11, "allied_angles": 12, "hypotenuse": 13, "fourth_angle": 14, "triangle_area": 15}
"""Families of geometry problems, and seeds of test problems"""
CHARTS = {"bars": 21, "curve": 22, "table": 23, "polygon": 24, "places": 25}
"""The same of figures with small print"""
_CHART = 512
"""Pixels per side of a figure with small print"""

PHOTOGRAPHS = ("coffee", "chelsea", "rocket")
"""Functions of skimage.data; demos/examples/README.md names their licences"""
_LONGEST = 480
"""Longer side of a photograph, in pixels"""


def main() -> None:
    from skimage import data

    EXAMPLES.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(data, name)())
        photograph.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        photograph.save(EXAMPLES / f"photo-{name}.jpg", quality=85, optimize=True)
    for style, seeds in SCENES.items():
        for seed in seeds:
            pixels = render_scenes([seed], style, SIZE).images[0].numpy()
            Image.fromarray(pixels).save(EXAMPLES / f"scene-{style}-{seed}.png", optimize=True)
    for style, seed in DEPTH:
        depth = render_scenes([seed], style, SIZE).depth[0].numpy()
        Image.fromarray((depth * 1000).round().astype(np.uint16)).save(EXAMPLES / f"depth-{style}-{seed}.png")
    for style, seed in MASKS:
        ids = render_scenes([seed], style, SIZE).object_ids[0].numpy()
        largest = np.bincount(ids[ids > 0]).argmax()
        Image.fromarray(ids == largest).save(EXAMPLES / f"mask-{style}-{seed}.png")
    for family, seed in FIGURES.items():
        figure = problem(seed, "test", SIZE, family).image
        Image.fromarray(figure).convert("L").save(EXAMPLES / f"figure-{family}-{seed}.png", optimize=True)
    for family, seed in CHARTS.items():
        chart = problem(seed, "test", _CHART, family, "fine").image
        Image.fromarray(chart).convert("L").save(EXAMPLES / f"chart-{family}-{seed}.png", optimize=True)
    print(EXAMPLES)


if __name__ == "__main__":
    main()
