"""Measure how much of an object's mask 16 tokens keep (`python -m benchmarks.mask_tokens`).

The visible pixels of every object of held-out rendered scenes (the tokenizer was trained on neither these seeds nor the
shifted style) are written as a mask span, with the shipped tokenizer of masks, and decoded from it again. The figure is
the intersection over union (IoU) of the two in the pixels of the image. For comparison: the IoU of the object's box,
filled, which is what the four locations alone say. The same is measured on scenes of 320 x 320 pixels, where a location
bin is wider than a pixel. Writes `benchmarks/results/mask_tokens.json` and `docs/masks.png` in two minutes on one core.

With --check it measures the targets on fewer scenes, prints one line per target, and exits 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.bars import Bar, all_met
from benchmarks.depth_sets import FIRST_SEED
from perception.evaluation.bootstrap import bootstrap_interval
from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from perception.tokenizers.masks import MaskTokenizer, mask_iou, tight_box
from train.loop.provenance import ROOT, provenance
from vqvae.quantizer import codebook_usage

TOKENIZER = ROOT / "tokenizers" / "masks-scenes-16"
RESULT = ROOT / "benchmarks" / "results" / "mask_tokens.json"
PICTURE = ROOT / "docs" / "masks.png"
LEAST = 90.0
"""Smallest mean IoU, %"""
SETS = {"standard": ("standard", 80, 1), "shifted": ("shifted", 80, 1), "standard, 320 pixels": ("standard", 320, 3)}
"""Style, pixels per side, and the part of the scenes that is measured (1: all, 3: a third), by name"""
SMALL = 100
"""Pixels, of 80 x 80, below which a mask counts as small"""
_AT_ONCE = 10
_SHOWN, _SIDE = 5, 200


def scenes_of(style: str, image_size: int, count: int) -> list[Scene]:
    """Held-out scenes."""
    found: list[Scene] = []
    for start in range(0, count, _AT_ONCE):
        seeds = range(FIRST_SEED + start, FIRST_SEED + min(start + _AT_ONCE, count))
        batch = render_scenes(seeds, style, image_size)
        found += [Scene.from_batch(batch, n) for n in range(len(seeds))]
    return found


def round_trip(tokenizer: MaskTokenizer, scenes: list[Scene]) -> dict[str, Any]:
    """Figures of all objects of the scenes."""
    iou, of_boxes, areas = [], [], []
    counts = torch.zeros(tokenizer.vqvae.config.codebook_size, dtype=torch.long)
    for scene in scenes:
        for number in range(1, len(scene.objects) + 1):
            mask = scene.mask_of(number)
            codes = tokenizer.encode(mask)
            counts += torch.bincount(torch.tensor(codes[4:]), minlength=len(counts))
            iou.append(mask_iou(mask, tokenizer.decode(codes, mask.shape)))
            x1, y1, x2, y2 = np.round(tight_box(mask) * (mask.shape[::-1] * 2)).astype(int)
            of_boxes.append(mask.sum() / ((x2 - x1) * (y2 - y1)))
            areas.append(mask.mean() * 80**2)
    small = np.array(areas) < SMALL
    return {
        "scenes": len(scenes),
        "masks": len(iou),
        "iou": asdict(bootstrap_interval(iou)),
        "iou_5th_percentile": float(np.quantile(iou, 0.05)),
        "iou_small": asdict(bootstrap_interval(np.array(iou)[small])) if small.any() else None,
        "iou_of_the_box": asdict(bootstrap_interval(of_boxes)),
        "codebook_usage": codebook_usage(counts),
    }


def bars(results: dict[str, dict[str, Any]]) -> list[Bar]:
    """The targets: mean IoU on scenes of 80 x 80 pixels, of both styles."""
    return [
        Bar(f"{name}: mean IoU of decoded masks", 100 * results[name]["iou"]["mean"], LEAST, "%")
        for name in ("standard", "shifted")
    ]


def picture(tokenizer: MaskTokenizer, scenes: list[Scene]) -> Image.Image:
    """Scenes above their objects' masks, and below what is decoded from their tokens."""
    sheet = Image.new("RGB", (_SHOWN * _SIDE, 3 * _SIDE))
    for column, scene in enumerate(scenes[:_SHOWN]):
        image = Image.fromarray(scene.image.numpy()).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        masks = [scene.mask_of(number) for number in range(1, len(scene.objects) + 1)]
        decoded = [tokenizer.decode(tokenizer.encode(mask), mask.shape) for mask in masks]
        rows = (image, tokenizer.draw(masks, image), tokenizer.draw(decoded, image))
        for row, drawn in enumerate(rows):
            sheet.paste(drawn, (column * _SIDE, row * _SIDE))
    return sheet


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="check the targets, write nothing, exit 1 if one is missed"
    )
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder of the tokenizer")
    parser.add_argument("--scenes", type=int, help="held-out scenes per style (default 150, with --check 50)")
    arguments = parser.parse_args(argv)
    count = arguments.scenes or (50 if arguments.check else 150)
    tokenizer = MaskTokenizer.from_pretrained(arguments.tokenizer)
    names = ("standard", "shifted") if arguments.check else tuple(SETS)
    results = {}
    for name in names:
        style, side, part = SETS[name]
        results[name] = round_trip(tokenizer, scenes_of(style, side, -(-count // part)))
    measured = bars(results)
    for bar in measured:
        print(bar.line())
    if arguments.check:
        return 0 if all_met(measured) else 1
    head = {
        "tokens": tokenizer.vocabulary.mask_length,
        "codes": tokenizer.vocabulary.mask_codes,
        "first_seed": FIRST_SEED,
        "scenes_a_style": count,
        "tokenizer": tokenizer.vqvae.fingerprint(),
        "config": asdict(tokenizer.vqvae.config),
    }
    about = {**head, **provenance(), "bars": [bar.to_json() for bar in measured]}
    RESULT.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    picture(tokenizer, scenes_of("standard", 80, _SHOWN)).save(PICTURE, optimize=True)
    print(f"written: {RESULT}, {PICTURE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
