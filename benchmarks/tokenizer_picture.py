"""Draw `docs/tokenizer.png`: depth maps and what 100 tokens keep of them (`python -m benchmarks.tokenizer_picture`)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from perception.datasets.depth.measured import motorcycle_depth
from perception.model.shipped import shipped
from perception.scenes import render_scenes
from perception.tokenizers.depth import DepthTokenizer

SEED = 60_000_004
_HEIGHT, _GAP, _TITLE = 220, 12, 26


def nearness_of(depth: Tensor) -> Tensor:
    """Relative inverse depth (H, W) in [0, 1] of one map; NaN at holes."""
    valid = torch.isfinite(depth) & (depth > 0)
    near = torch.where(valid, 1 / depth, torch.nan)
    low, high = near[valid].min(), near[valid].max()
    return (near - low) / (high - low)


def panels(tokenizer: DepthTokenizer) -> list[tuple[str, Image.Image]]:
    """Titles and pictures: a held-out scene per style, and the motorcycle if scikit-image is installed."""
    out = []
    for style in ("standard", "shifted"):
        scene = render_scenes([SEED], style, image_size=240)
        depth = scene.depth[0]
        decoded = tokenizer.decode(tokenizer.encode(depth), size=(240, 240))
        out.append((f"{style} style", Image.fromarray(scene.images[0].numpy())))
        out += [("depth", tokenizer.draw(nearness_of(depth))), ("from 100 tokens", tokenizer.draw(decoded))]
    measured = motorcycle_depth()
    if measured is not None:
        decoded = tokenizer.decode(tokenizer.encode(measured), size=(measured.shape[0], measured.shape[1]))
        out.append(("measured (stereo; grey: holes)", tokenizer.draw(nearness_of(measured))))
        out.append(("from 100 tokens", tokenizer.draw(decoded)))
    return out


def sheet(pictures: list[tuple[str, Image.Image]], columns: int = 3) -> Image.Image:
    """Titled pictures, `columns` per row, on white."""
    scaled = [
        (t, p.resize((round(p.width * _HEIGHT / p.height), _HEIGHT), Image.Resampling.BILINEAR)) for t, p in pictures
    ]
    rows = [scaled[i : i + columns] for i in range(0, len(scaled), columns)]
    width = max(sum(p.width + _GAP for _, p in row) for row in rows) + _GAP
    page = Image.new("RGB", (width, len(rows) * (_HEIGHT + _TITLE + _GAP) + _GAP), "white")
    canvas = ImageDraw.Draw(page)
    for number, row in enumerate(rows):
        left, top = _GAP, _GAP + number * (_HEIGHT + _TITLE + _GAP)
        for title, picture in row:
            canvas.text((left, top + 4), title, fill="black", font_size=15)
            page.paste(picture, (left, top + _TITLE))
            left += picture.width + _GAP
    return page


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/tokenizer.png"))
    args = parser.parse_args(argv)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(panels(DepthTokenizer.from_pretrained(shipped("depth-scenes-100")))).save(args.out)
    print(args.out)


if __name__ == "__main__":
    main()
