"""Masks to spans and back, with the shipped tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perception.scenes.render import render_scenes
from perception.scenes.scene import Scene
from perception.tokenizers.masks import MaskTokenizer, mask_iou, pixel_box, tight_box
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import SpanError
from vqvae import VQVAE, VQVAEConfig


@pytest.fixture(scope="module")
def tokenizer() -> MaskTokenizer:
    return MaskTokenizer.from_pretrained("masks-scenes-16")


def ellipse(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x / width - 0.55) / 0.3) ** 2 + ((y / height - 0.4) / 0.25) ** 2 < 1


def test_masks_of_scenes_come_back(tokenizer: MaskTokenizer) -> None:
    batch = render_scenes(range(70_000_000, 70_000_004))
    scenes = [Scene.from_batch(batch, n) for n in range(4)]
    masks = [scene.mask_of(n) for scene in scenes for n in range(1, len(scene.objects) + 1)]
    decoded = [tokenizer.decode(tokenizer.from_text(tokenizer.to_text(tokenizer.encode(m))), m.shape) for m in masks]
    assert len(masks) > 8 and np.mean([mask_iou(a, b) for a, b in zip(masks, decoded, strict=True)]) >= 0.9
    for mask, other in zip(masks, decoded, strict=True):
        assert np.abs(tight_box(mask) - tight_box(other)).max() <= 2 / 80  # nothing is drawn outside of the box
    boxes = [item.box_xyxy for scene in scenes for item in scene.objects]
    assert np.allclose([tight_box(mask) for mask in masks], boxes)


@pytest.mark.parametrize("size", [(80, 80), (48, 64), (300, 400)])
def test_a_span_is_the_box_and_sixteen_codes_at_any_size(tokenizer: MaskTokenizer, size: tuple[int, int]) -> None:
    mask = ellipse(*size)
    codes = tokenizer.encode(mask)
    assert len(codes) == tokenizer.num_codes == 20 and all(type(code) is int for code in codes)
    assert codes[:4] == [int(100 * side) for side in tight_box(mask)]
    assert tokenizer.encode(torch.from_numpy(mask).int(), tight_box(mask)) == codes
    text = tokenizer.to_text(codes)
    assert text.startswith(f"<MASK_START><LOC_{codes[0]}>") and text.endswith(f"<MASK_{codes[-1]}><MASK_END>")
    decoded = tokenizer.decode(codes, size)
    assert decoded.shape == size and decoded.dtype == bool and mask_iou(mask, decoded) > 0.9
    larger = tokenizer.decode(codes, (2 * size[0], 2 * size[1]))
    assert mask_iou(ellipse(2 * size[0], 2 * size[1]), larger) > 0.85


def test_boxes_tell_every_pixel_below_a_hundred() -> None:
    for side in (16, 80, 99):
        for low in range(side):
            mask = np.zeros((side, side), dtype=bool)
            mask[low:, side - 1 - low :] = True
            bins = (tight_box(mask) * 100).astype(int).clip(max=99)
            assert pixel_box(bins, mask.shape, 100) == (side - 1 - low, low, side, side)
    assert pixel_box(np.array([99, 99, 99, 99]), (80, 80), 100) == (79, 79, 80, 80)  # never without a pixel
    assert pixel_box(np.array([0, 0, 0, 0]), (80, 80), 100) == (0, 0, 1, 1)


def test_things_narrower_than_two_bins_are_not_lost_in_large_images(tokenizer: MaskTokenizer) -> None:
    rng = np.random.default_rng(0)
    found = []
    for height, width in [(1080, 1920), (2160, 3840)] * 10:
        mask = np.zeros((height, width), dtype=bool)
        y, x = int(rng.integers(height - 40)), int(rng.integers(width - 60))
        mask[y : y + int(rng.integers(6, height // 90)), x : x + int(rng.integers(10, width // 90))] = True
        found.append(mask_iou(mask, tokenizer.decode(tokenizer.encode(mask), mask.shape)))
    assert min(found) > 0.4 and np.mean(found) > 0.7


def test_the_box_cuts_the_mask(tokenizer: MaskTokenizer) -> None:
    mask = np.ones((80, 80), dtype=bool)
    decoded = tokenizer.decode(tokenizer.encode(mask, (0.25, 0.5, 0.75, 1.0)), (80, 80))
    assert decoded[40:, 20:60].mean() > 0.95 and decoded.sum() == decoded[40:, 20:60].sum()


@pytest.mark.parametrize(
    ("mask", "box", "message"),
    [
        (np.zeros((8, 8)), None, "the mask is empty; leave things without a visible pixel out"),
        (np.full((8, 8), 255), None, "must be .H, W. of 0 and 1, got shape .8, 8. of int64"),
        (np.ones((1, 8, 8)), None, "got shape .1, 8, 8."),
        (ellipse(8, 8), (0, 0, 8, 8), "divide pixel boxes by"),
        (ellipse(8, 8), (0.5, 0.0, 0.4, 1.0), "x2 >= x1"),
        (ellipse(8, 8), (0, 0, 1), "x1, y1, x2, y2; got shape"),
        (ellipse(8, 8), (0.0, 0.9, 0.05, 1.0), "holds no pixel of the mask; give the mask's own box, or none"),
    ],
)
def test_bad_masks_and_boxes(tokenizer: MaskTokenizer, mask: Any, box: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tokenizer.encode(mask, box)
    assert "\n" not in str(caught.value)


def test_bad_codes(tokenizer: MaskTokenizer) -> None:
    good = tokenizer.encode(ellipse(80, 80))
    for codes, message in (
        (good[:-1], "exactly 20 codes, those of its box included, got 19"),
        ([*good, 0], "got 21"),
        ([*good[:-1], 128], "mask codes must lie in 0..127"),
        ([*good[:3], 100, *good[4:]], "location codes must lie in 0..99"),
        ([good[2], good[1], good[0], *good[3:]], "x2 >= x1 and y2 >= y1"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(codes, (80, 80))
    with pytest.raises(SpanError, match="expected one masks span"):
        tokenizer.from_text(PointTokenizer().to_text([1, 2]))


def test_a_tokenizer_of_depth_is_none_of_masks() -> None:
    with pytest.raises(ValueError, match="this one has 'relative_inverse', None to None; use masks-scenes-16"):
        MaskTokenizer(VQVAE(VQVAEConfig(image_size=16, downsample=4, channels=8, num_res_blocks=0)))


def test_drawings_tint_a_copy(tokenizer: MaskTokenizer) -> None:
    image = Image.new("RGB", (160, 120), "white")
    left, right = np.zeros((60, 80), dtype=bool), np.zeros((60, 80), dtype=bool)
    left[20:, :30], right[20:, 50:] = True, True
    drawn = tokenizer.draw([left, right, np.zeros((60, 80))], image)
    assert drawn.size == image.size and set(image.tobytes()) == {255}
    colors = [drawn.getpixel(place) for place in ((50, 110), (150, 110), (80, 110))]
    assert len(set(colors)) == 3 and colors[2] == (255, 255, 255)
    assert tokenizer.draw([], image).tobytes() == image.tobytes()
    with pytest.raises(ValueError, match="must be .H, W. of 0 and 1"):
        tokenizer.draw([np.full((4, 4), 2)], image)
