"""Markers in many styles: where they are drawn, and that letters differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from perception.datasets.marking import MarkStyle, draw_styled, mark
from perception.scenes.markers import draw_markers

GREY = torch.full((320, 320, 3), 128, dtype=torch.uint8)
RED_AND_WHITE = ((255, 0, 0), (255, 255, 255))
POINTS = np.array([[0.3, 0.4], [0.7, 0.6]], np.float32)


def drawn(style: MarkStyle, points: np.ndarray = POINTS) -> np.ndarray:
    canvas = Image.fromarray(GREY.numpy().copy())
    draw_styled(canvas, points, style)
    return (np.array(canvas) != 128).any(-1)  # (320, 320)


def test_without_a_style_markers_are_those_of_rendered_scenes():
    assert torch.equal(mark(GREY, POINTS), draw_markers(GREY, POINTS))


def test_every_random_style_marks_all_points_and_nothing_far_from_them():
    rng = np.random.default_rng(0)
    for _ in range(60):
        style = MarkStyle.draw(rng)
        changed = drawn(style)
        rows, columns = changed.nonzero()
        away = np.stack([np.hypot(columns + 0.5 - 320 * x, rows + 0.5 - 320 * y) for x, y in POINTS], 1)
        reach = 320 * (style.radius + 2.6 * style.letter) + 8
        assert away.min(1).max() < reach
        assert (away < reach).any(0).all()


def test_a_quarter_of_the_styles_are_those_of_published_sets():
    rng = np.random.default_rng(1)
    styles = [MarkStyle.draw(rng) for _ in range(400)]
    published = [s for s in styles if (s.shape, s.color, s.letter_color, s.behind) == ("ring", *RED_AND_WHITE, "box")]
    assert 80 <= len(published) <= 120
    assert min(s.letter * 336 for s in published) < 8 < max(s.letter * 336 for s in published)
    assert min(s.radius * 336 for s in published) < 5 and max(s.radius * 336 for s in published) > 10


def test_published_marks_are_red_rings_with_white_letters_on_black():
    for seed in range(20):
        colors = mark(GREY, POINTS, np.random.default_rng(seed), published=True).reshape(-1, 3).unique(dim=0).tolist()
        assert [255, 0, 0] in colors and [10, 10, 10] in colors
        assert max(min(color) for color in colors) > 190  # a thin letter is not quite white


@pytest.mark.parametrize("shape", ["ring", "disc", "dot", "square"])
def test_the_shape_is_centred_on_the_point_and_the_letter_beside_it(shape):
    style = MarkStyle(shape, 0.03, (235, 30, 30), 0.05, (250, 250, 250), "above", "box", "")
    canvas = Image.fromarray(GREY.numpy().copy())
    draw_styled(canvas, POINTS[:1], style)
    pixels = np.array(canvas).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 90)
    rows, columns = red.nonzero()
    assert abs(columns.mean() + 0.5 - 96) < 1.5 and abs(rows.mean() + 0.5 - 128) < 1.5
    black = (pixels < 30).all(-1).nonzero()
    assert black[0].max() < 128 - 0.03 * 320  # the box of the letter ends above the shape


def test_letters_differ():
    style = MarkStyle("none", 0.03, (235, 30, 30), 0.06, (250, 250, 250), "inside", "nothing", "")
    first = drawn(style, np.array([[0.5, 0.5], [0.1, 0.1]]))[120:200, 120:200]
    second = drawn(style, np.array([[0.1, 0.1], [0.5, 0.5]]))[120:200, 120:200]
    assert first.any() and second.any() and (first != second).sum() > 20
