"""Measure what the codes before do to a drawn map (`python -m benchmarks.codes_before --photos FOLDER`).

A language model writes a depth map code by code. If it learns each code after the true ones, it learns to trust them;
when it is used, the codes before are its own, mistakes included (exposure bias, Ranzato et al., arXiv 1511.06732). Each
map is drawn by the model itself, and three times all codes at once, after codes that are given: those that it drew
itself, the true ones, and those of another image. A model that draws from the image alone draws the same four times.

Measured are the loss of the true codes, how far the decoded map lies from the true one, and whether it is nearest at
the right one of the true points. The models are `models/aurora-tiny` on held-out scenes, and with --photos
`models/photo-tiny` on the photographs of the test part of a folder (docs/data.md shows the layout). Writes
`benchmarks/results/codes_before.json`.

With --check it looks at few maps and writes nothing. --model FOLDER measures another model in place of photo-tiny and
writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.bars import Bar, all_met
from benchmarks.label_efficiency import pick
from benchmarks.perception_tiny import ask, drawn, interval_over_images
from benchmarks.photo_tiny import DEPTH
from benchmarks.photos import SIZE
from perception import chains
from perception.answers import POINT_LETTERS
from perception.datasets.photographs import Photographs
from perception.evaluation.bootstrap import bootstrap_interval
from perception.evaluation.photos import photo_items
from perception.evaluation.scenes import Item, depth_tokenizer_of, scene_items
from perception.model.image_inputs import accepted_inputs
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped
from perception.tokenizers.depth import readings_at
from perception.vocabulary.names import Span
from train.data.photos import codes_of
from train.data.rows import Row, RowEncoder, TokenWeights
from train.loop.provenance import ROOT, provenance
from train.models.losses import target_logits

RESULT = ROOT / "benchmarks" / "results" / "codes_before.json"
SCENES, PHOTOGRAPHS = "aurora-tiny", "photo-tiny"
ON_PHOTOS = ", photographs"
OWN, TRUE, OTHER = "its own", "the true ones", "another image's"
MOST_LOST = 1.0
"""Most points of right maps that another image's codes may cost, over a model's own"""
_BATCH = 25


@torch.no_grad()
def logits_behind(model: PerceptionModel, items: Sequence[Item], codes: np.ndarray, before: np.ndarray) -> Tensor:
    """Return the logits (B, h * w, K) of maps' codes (B, h * w) where the model reads the codes `before` (B, h * w)."""
    encoder = RowEncoder(model.vocabulary, model.processor, model.prompt, TokenWeights(), accepted_inputs(model.model))
    depth_ids, found = torch.tensor(model.vocabulary.code_ids("depth")), list[Tensor]()
    for start in range(0, len(items), _BATCH):
        rows = [
            Row(
                Image.fromarray(items[n].image.numpy()),
                chains.atomic_depth(Span("depth", tuple(codes[n].tolist()))),
                before[n],
            )
            for n in range(start, min(start + _BATCH, len(items)))
        ]
        (batch,) = encoder.batches(rows, 1)
        logits, labels, _ = target_logits(model.model, batch)
        found.append(logits[torch.isin(labels, depth_ids)][:, depth_ids].view(len(rows), codes.shape[1], -1))
    return torch.cat(found)


@torch.no_grad()
def judged(model: PerceptionModel, items: Sequence[Item], drawn_codes: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """Return how far drawn maps lie from the true ones, and the share that is nearest at the right true point."""
    tokenizer = depth_tokenizer_of(model)
    ours, true = (tokenizer.decode(torch.from_numpy(part.astype(np.int64))) for part in (drawn_codes, codes))
    right = [
        POINT_LETTERS[int(readings_at(near[None], item.points_xy).argmax())] == item.answer
        for near, item in zip(ours, items, strict=True)
    ]
    return {
        "error": asdict(bootstrap_interval((ours - true).abs().mean((1, 2)).tolist(), groups=_images(items))),
        "right": asdict(interval_over_images(list(zip(items, right, strict=True)))),
    }


def _images(items: Sequence[Item]) -> list[int]:
    """Return the image of each item: those about one have the same map, and are resampled together."""
    return [id(item.scene) for item in items]


def _another(items: Sequence[Item], at: int) -> int:
    """Return the number of the next item about another image."""
    following = [n % len(items) for n in range(at + 1, at + len(items))]
    return next(n for n in following if items[n].scene is not items[at].scene)


def measure(model: PerceptionModel, items: Sequence[Item]) -> dict[str, Any]:
    """Return the figures of all ways to draw the maps of items with 3 to 5 points."""
    asked = [items[n] for n in pick(items, DEPTH)]
    codes = codes_of(depth_tokenizer_of(model), torch.stack([item.scene.depth for item in asked]))
    maps = [
        drawn(answer, "depth") for answer in ask(model, asked, [chains.ATOMIC_DEPTH_QUESTION] * len(asked), "model")
    ]
    own = np.array([spans[0].codes for spans in maps], dtype=codes.dtype)
    found: dict[str, Any] = {"drawn by itself": judged(model, asked, own, codes)}
    others = codes[[_another(asked, at) for at in range(len(asked))]]
    for name, before in ((OWN, own), (TRUE, codes), (OTHER, others)):
        logits = logits_behind(model, asked, codes, before)
        true = torch.from_numpy(codes.astype(np.int64))
        loss = F.cross_entropy(logits.transpose(1, 2), true, reduction="none").mean(1)
        at_once = logits.argmax(-1).numpy()
        found[f"behind {name}"] = {
            "loss": asdict(bootstrap_interval(loss.tolist(), groups=_images(asked))),
            **judged(model, asked, at_once, codes),
        }
        if name == OTHER:
            found["codes that are the same by itself and at once"] = float((at_once == own).mean())
    return {"maps": len(asked), **found}


def bars(found: dict[str, Any]) -> list[Bar]:
    """Return the target, where photographs were asked about: maps behind another image's codes are as good as its own,
    so the model draws from the image."""
    return [
        Bar(
            f"{name}: right maps behind another image's codes, over those drawn by itself",
            100 * (rows[f"behind {OTHER}"]["right"]["mean"] - rows["drawn by itself"]["right"]["mean"]),
            -MOST_LOST,
        )
        for name, rows in found.items()
        if name.endswith(ON_PHOTOS)
    ]


def lines(found: dict[str, Any]) -> list[str]:
    """Return the result as lines of text."""
    said = []
    for name, rows in found.items():
        for way, row in rows.items():
            if isinstance(row, dict):
                loss = f"loss {row['loss']['mean']:.2f}, " if "loss" in row else ""
                right = " ".join(f"{100 * row['right'][end]:.1f}" for end in ("mean", "low", "high"))
                off = 100 * row["error"]["mean"]
                said.append(f"{name}, {way}: {loss}off by {off:.2f} of 100, nearest at the right point in % {right}")
    return said


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets on few maps; write nothing")
    parser.add_argument("--photos", help="folder of labelled photographs; default: scenes alone")
    parser.add_argument("--model", help="measure another model on the photographs alone; write nothing")
    given = parser.parse_args(argv)
    if given.model and not given.photos:
        parser.error("--model is measured on photographs; give --photos FOLDER")
    found = {}
    if not given.model:
        model = PerceptionModel.from_pretrained(shipped(SCENES))
        for style in ("standard", "shifted"):
            found[f"{SCENES}, {style} style"] = measure(model, scene_items(style, 0, 5 if given.check else 100))
    if given.photos:
        name = given.model or PHOTOGRAPHS
        items = photo_items(Photographs(given.photos, "test"), SIZE, each=10 if given.check else None)
        found[f"{name}{ON_PHOTOS}"] = measure(PerceptionModel.from_pretrained(given.model or shipped(name)), items)
    made = bars(found)
    print(*lines(found), *(bar.line() for bar in made), sep="\n")
    if given.check:
        return 0 if all_met(made) else 1
    if not given.model:
        words = " --photos FOLDER" if given.photos else ""
        record = {"command": f"python -m benchmarks.codes_before{words}", **provenance(), "maps": found}
        RESULT.write_text(json.dumps(record | {"bars": [bar.to_json() for bar in made]}, indent=1) + "\n")
        print(f"written: {RESULT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
