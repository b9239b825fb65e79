"""A picture for checking labels by eye: images with their boxes and the depth maps that their codes decode to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from perception.datasets.images import ImageFile
from perception.datasets.labelling.labeller import LabelledImage
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.depth import DepthTokenizer
from vqvae import VQVAE

_HEIGHT, _GAP, _WORDS = 240, 12, 40


def labelled_sheet(rows: Sequence[LabelledImage], root: Path, vqvae: VQVAE | None) -> Image.Image:
    """Draw one line per image: the image with its boxes, and its depth map if it has one.

    Args:
        root: folder that the rows' names are relative to.
        vqvae: the tokenizer that made the codes.
    """
    lines = [_panels(row, root, vqvae) for row in rows]
    width = max(sum(panel.width + _GAP for panel in line) for line in lines) + _GAP
    page = Image.new("RGB", (width, len(lines) * (_HEIGHT + _WORDS + _GAP) + _GAP), "white")
    canvas = ImageDraw.Draw(page)
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        left, top = _GAP, _GAP + number * (_HEIGHT + _WORDS + _GAP)
        for panel in line:
            page.paste(panel, (left, top))
            left += panel.width + _GAP
        canvas.text((_GAP, top + _HEIGHT + 4), _words(row), fill="black", font_size=14)
    return page


def _words(row: LabelledImage) -> str:
    """The caption of a line: the image's name, and the class and score of each numbered box."""
    if row.detections is None:
        return row.name
    found = zip(row.detections.labels, row.detections.scores, strict=True)
    return f"{row.name}\n" + (
        ", ".join(f"{n} {label} {score:.2f}" for n, (label, score) in enumerate(found, 1)) or "no box"
    )


def _panels(row: LabelledImage, root: Path, vqvae: VQVAE | None) -> list[Image.Image]:
    image = ImageFile(root / row.name).load()
    scaled = image.resize((max(1, round(image.width * _HEIGHT / image.height)), _HEIGHT))
    if row.detections is None:
        panels = [scaled]
    else:
        panels = [BoxTokenizer().draw(row.detections.boxes_xyxy, scaled)]
    if row.codes is not None and vqvae is not None:
        with torch.no_grad():
            device = next(vqvae.parameters()).device
            near = vqvae.decode(torch.tensor([row.codes], device=device), size=(_HEIGHT, scaled.width))[0]
        panels.append(DepthTokenizer.draw(near.cpu()))
    return panels
