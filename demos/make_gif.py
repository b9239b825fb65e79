"""Draw the animation of the docs, a depth map that fills in as tokens stream: `python -m demos.make_gif`."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw

from demos import depth
from demos.handlers import scene_examples
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped

POINTS = ((0.3, 0.3), (0.46, 0.52), (0.8, 0.7))
MILLISECONDS = 300
"""Milliseconds per frame; a frame is a forward pass, which brings several tokens"""
_SIDE, _BELOW = 300, 44
_LAST = 4000


def frames(model: PerceptionModel, image: Path) -> list[Image.Image]:
    """The image with its points, beside the map as far as it is drawn, above the answer."""
    left = depth.marked(depth.read_image(image), POINTS).resize((_SIDE, _SIDE))
    found = []
    for view in depth.judge(model, str(image), POINTS):
        right = view.picture.resize((round(_SIDE * view.picture.width / view.picture.height), _SIDE))
        page = Image.new("RGB", (_SIDE + 12 + right.width, _SIDE + _BELOW), "white")
        page.paste(left, (0, 0))
        page.paste(right, (_SIDE + 12, 0))
        ImageDraw.Draw(page).text((4, _SIDE + 12), view.answer, fill="black", font_size=18)
        found.append(page)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/depth.gif"))
    parser.add_argument("--image", type=Path, default=scene_examples()[-1])
    arguments = parser.parse_args()
    drawn = frames(PerceptionModel.from_pretrained(shipped("aurora-tiny")), arguments.image)
    # One table of colours for all, of the begun map and the whole one: no flicker, a small file.
    both = Image.new("RGB", (drawn[0].width, 2 * drawn[0].height))
    both.paste(drawn[len(drawn) // 2], (0, 0))
    both.paste(drawn[-1], (0, drawn[0].height))
    table = both.quantize(128)
    first, *others = (page.quantize(palette=table, dither=Image.Dither.NONE) for page in drawn)
    durations = [MILLISECONDS] * len(others) + [_LAST]
    first.save(arguments.out, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
    size = arguments.out.stat().st_size // 1024
    print(f"{arguments.out}: {len(drawn)} frames, {sum(durations) / 1000:.1f} s, {size} kB")


if __name__ == "__main__":
    main()
