"""What counts as perceived, with a model that perceives everything or nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from benchmarks import perception_tiny
from perception.chains import Answer
from perception.evaluation.scenes import scene_items
from perception.model.shipped import shipped
from perception.tokenizers.boxes import BoxTokenizer
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from vqvae import VQVAE


class Seer:
    """Answers with what is in the scene; a blind one draws one box and a flat map, and names the image's corner."""

    def __init__(self, sees: bool):
        folder = shipped("depth-scenes-100")
        self.vocabulary = PerceptionVocabulary(128, (10, 10), 100)
        self.depth_tokenizer, self.sees = VQVAE.from_pretrained(folder).eval(), sees
        items = [item for style in perception_tiny.STYLES for item in scene_items(style, 4, 3)]
        self.items = {item.image.numpy().tobytes(): item for item in items}

    def answer(self, prompts, read):
        return [self._answer(self.items[prompt.image.numpy().tobytes()], prompt.question) for prompt in prompts]

    def _answer(self, item, question: str) -> Answer:
        if question.startswith("Draw the boxes of the "):
            boxes = item.boxes_xyxy if self.sees else np.array([[0, 0, 1, 1]] * 9, np.float32)
            return Answer("", (Span("boxes", tuple(BoxTokenizer(100).encode(boxes))),), None)
        codes = self.depth_tokenizer.encode(item.scene.depth[None])[0].flatten().tolist()
        depth = Span("depth", tuple(codes if self.sees else [codes[0]] * 100))
        if question == "Draw the depth map.":
            return Answer("", (depth,), None)
        assert len(re.findall(r"\b[A-E]\b", question)) == len(item.points_xy)
        places = item.points_xy if self.sees else np.zeros((1, 2), np.float32)
        points = [Span("points", tuple(PointTokenizer(100).encode(point[None]))) for point in places]
        return Answer("", (depth, *points), item.answer if self.sees else None)


@pytest.mark.parametrize("style", perception_tiny.STYLES)
def test_all_is_counted_for_one_who_sees_and_nothing_for_one_who_does_not(style):
    with torch.no_grad():
        seen, blind = (perception_tiny.measure(Seer(sees), style, 4, 3) for sees in (True, False))  # type: ignore[arg-type]
    maps = "map nearest at the right one of the true points"
    assert seen.pop(maps)["mean"] > 0.85, "the tokenizer loses few orders"
    assert blind.pop(maps)["mean"] < 0.7
    assert {row["mean"] for row in seen.values()} == {1.0} and {row["mean"] for row in blind.values()} == {0.0}


def test_targets_are_of_the_shifted_style_in_percent():
    rows = {name: {"mean": 0.5} for name in ("point named where it is", "nearest point, the package reads the map")}
    rows |= {name: {"mean": 0.9} for name in ("map nearest at the right one of the true points", "number of boxes")}
    assert [bar.met for bar in perception_tiny.bars(rows)] == [True, False, False, True]
    assert perception_tiny.bars(rows)[1].line() == (
        "point named where it is, shifted style: 50.0 %, target 97.0, MISSED by 47.0"
    )
