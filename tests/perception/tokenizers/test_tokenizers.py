"""Values to codes and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perception.tokenizers import TOKENIZERS, BoxTokenizer, DepthTokenizer, PointTokenizer
from perception.tokenizers.depth import color_table
from perception.tokenizers.points import letter
from perception.vocabulary.names import MODALITIES, SpanError
from vqvae import VQVAE, VQVAEConfig


@pytest.fixture(scope="module")
def depth_tokenizer() -> DepthTokenizer:
    torch.manual_seed(0)
    return DepthTokenizer(
        VQVAE(VQVAEConfig(image_size=16, downsample=4, codebook_size=8, channels=16, num_res_blocks=1))
    )


def random_boxes(seed: int, count: int) -> np.ndarray:
    corners = np.random.default_rng(seed).random((count, 2, 2))
    return np.sort(corners, axis=1).reshape(count, 4)


def test_one_tokenizer_a_modality() -> None:
    assert tuple(TOKENIZERS) == MODALITIES
    for modality, tokenizer in TOKENIZERS.items():
        assert tokenizer.modality == modality
        assert all(hasattr(tokenizer, name) for name in ("encode", "decode", "to_text", "from_text", "draw"))


def test_masked_pixels_of_numpy_are_holes_and_any_array_is_taken(depth_tokenizer: DepthTokenizer) -> None:
    depth = np.random.default_rng(0).uniform(1, 9, (24, 24))
    hidden = np.zeros(depth.shape, dtype=bool)
    hidden[5:12, 3:20] = True
    expected = depth_tokenizer.encode(np.where(hidden, np.nan, depth))
    assert expected != depth_tokenizer.encode(depth)
    assert depth_tokenizer.encode(np.ma.array(np.where(hidden, 1e9, depth), mask=hidden)) == expected
    whole = (1000 * depth).astype(">u2")
    wanted = depth_tokenizer.encode(whole.astype(float))
    assert depth_tokenizer.encode(whole) == depth_tokenizer.encode(np.flip(np.flip(whole))) == wanted
    assert depth_tokenizer.encode(Image.fromarray(whole.astype(np.uint16))) == wanted
    assert depth_tokenizer.encode(whole.tolist()) == depth_tokenizer.encode(torch.tensor(whole.tolist())) == wanted


def test_a_grid_of_nested_codes_is_the_map_of_its_sequence() -> None:
    torch.manual_seed(0)
    config = VQVAEConfig(image_size=16, downsample=4, codebook_size=8, channels=16, num_res_blocks=1, nested=True)
    tokenizer = DepthTokenizer(VQVAE(config))
    grid = torch.randint(8, (4, 4))
    sequence = tokenizer.vqvae.to_sequence(grid[None])[0]
    np.testing.assert_array_equal(tokenizer.decode(grid), tokenizer.decode(sequence))
    assert np.abs(tokenizer.decode(grid.flatten()) - tokenizer.decode(grid)).max() > 1e-3


# Boxes and points


@pytest.mark.parametrize(("num_locations", "naming"), [(100, "default"), (336, "aurora"), (7, "default")])
def test_boxes_come_back_within_half_a_bin(num_locations: int, naming: str) -> None:
    tokenizer = BoxTokenizer(num_locations, naming)
    for seed in range(50):
        boxes = random_boxes(seed, seed % 16)
        codes = tokenizer.encode(boxes)
        decoded = tokenizer.decode(tokenizer.from_text(tokenizer.to_text(codes)))
        assert decoded.shape == boxes.shape
        bins = np.asarray(codes).reshape(-1, 4)
        places = [((b[1] + b[3]) * 10 // (2 * num_locations), b[0] + b[2]) for b in bins]
        assert places == sorted(places)  # row by row of the centres, then from left to right
        for box in boxes:  # each has its own among the decoded
            assert np.abs(decoded - box).max(1).min() <= 0.5 / num_locations + 1e-9
        assert tokenizer.encode(decoded) == codes == tokenizer.encode(boxes[::-1])


def test_points_come_back_in_their_order() -> None:
    tokenizer = PointTokenizer(50)
    points = np.random.default_rng(0).random((9, 2))
    codes = tokenizer.encode(torch.from_numpy(points))
    assert tokenizer.from_text(tokenizer.to_text(codes)) == codes
    assert np.abs(tokenizer.decode(codes) - points).max() <= 0.5 / 50 + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_of_a_model_are_taken_as_arrays_are(dtype: torch.dtype) -> None:
    image, boxes = Image.new("RGB", (40, 30)), torch.tensor([[0.25, 0.5, 0.75, 1.0]], dtype=dtype, requires_grad=True)
    for tokenizer, value in ((BoxTokenizer(), boxes), (PointTokenizer(), boxes[:, :2])):
        assert tokenizer.encode(value) == tokenizer.encode(value.tolist())
        assert tokenizer.draw(value, image).tobytes() == tokenizer.draw(value.tolist(), image).tobytes()
    assert DepthTokenizer.draw(boxes).tobytes() == DepthTokenizer.draw(boxes.tolist()).tobytes()


def test_edges_of_the_image() -> None:
    assert BoxTokenizer(10).encode([[0, 0, 1, 1]]) == [0, 0, 9, 9]
    assert BoxTokenizer(10).encode([[0.1, 0.2, 0.2, 0.3]]) == [1, 2, 2, 3]
    assert BoxTokenizer().encode([]) == BoxTokenizer().encode(torch.zeros(0, 4)) == []
    assert BoxTokenizer().decode([]).shape == (0, 4) and PointTokenizer().decode([]).shape == (0, 2)
    assert BoxTokenizer().to_text([]) == "<BOX_START><BOX_END>"


def test_texts() -> None:
    assert BoxTokenizer().to_text([1, 2, 3, 4]) == "<BOX_START><LOC_1><LOC_2><LOC_3><LOC_4><BOX_END>"
    assert PointTokenizer(336, "aurora").to_text([1, 335]) == "<POINT_START><PIXEL_1><PIXEL_335><POINT_END>"


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[10, 20, 30, 40]], r"lie in \[0, 1\], got 10..40; divide pixel boxes by \(width, height, width, height\)"),
        ([[-0.1, 0, 1, 1]], "lie in"),
        ([[0.5, 0, 0.4, 1]], "x2 >= x1"),
        ([[0, 0.5, 1, 0.4]], "y2 >= y1"),
        ([[0, 0, 1]], r"\(n, 4\).*shape \(1, 3\)"),
        ([0, 0, 1, 1], r"shape \(4,\)"),
        ([[0, 0, float("nan"), 1]], "finite"),
    ],
)
def test_bad_boxes(boxes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BoxTokenizer().encode(boxes)
    with pytest.raises(ValueError, match=message):
        BoxTokenizer().draw(boxes, Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(
    "codes", [[1, 2, 3], [1, 2, 3, 100], [-1, 2, 3, 4], [5, 2, 3, 4], [1, 5, 3, 4], [0.5, 1, 2, 3]]
)
def test_bad_codes(codes: Any) -> None:
    with pytest.raises(ValueError, match="codes of boxes must"):
        BoxTokenizer().decode(codes)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<BOX_START>",
        "<BOX_START><LOC_1><BOX_END>",
        " <BOX_START><BOX_END>",
        "<BOX_START><BOX_END><BOX_START><BOX_END>",
        "<POINT_START><POINT_END>",
        "<BOX_START><LOC_1><LOC_2><LOC_3><LOC_100><BOX_END>",
        "<BOX_START><LOC_1><LOC_2><LOC_3><LOC_04><BOX_END>",
        "<BOX_START><PIXEL_1><PIXEL_2><PIXEL_3><PIXEL_4><BOX_END>",
        "<box_start><BOX_END>",
    ],
)
def test_strict_text(text: str) -> None:
    with pytest.raises(SpanError):
        BoxTokenizer().from_text(text)


def test_letters() -> None:
    assert [letter(i) for i in (0, 1, 25, 26, 51, 52, 701, 702)] == ["A", "B", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


def test_drawings_mark_a_copy() -> None:
    image = Image.new("RGB", (64, 48), "white")
    boxed = BoxTokenizer().draw([[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]], image)
    assert boxed.size == image.size and boxed.getpixel((32, 35)) == boxed.getpixel((16, 30)) != (255, 255, 255)
    assert boxed.getpixel((32, 24)) == (255, 255, 255)
    pointed = PointTokenizer().draw([[0.5, 0.5], [1, 1]], image)
    assert pointed.getpixel((32, 24)) != (255, 255, 255)
    assert set(image.tobytes()) == {255}
    assert BoxTokenizer().draw([], image).tobytes() == image.tobytes()


# Depth


def test_depth_round_trip(depth_tokenizer: DepthTokenizer) -> None:
    depth = np.random.default_rng(0).random((20, 30)) + 1
    depth[3, 4] = np.nan
    codes = depth_tokenizer.encode(depth)
    assert len(codes) == depth_tokenizer.num_codes == 16 and all(type(c) is int and 0 <= c < 8 for c in codes)
    assert depth_tokenizer.encode(torch.from_numpy(depth)) == codes
    assert depth_tokenizer.encode(depth, np.ones_like(depth, dtype=bool)) == codes
    text = depth_tokenizer.to_text(codes)
    assert text.startswith("<DEPTH_START><DEPTH_") and " " not in text
    assert depth_tokenizer.from_text(text) == codes
    nearness = depth_tokenizer.decode(codes)
    assert nearness.shape == (16, 16) and nearness.min() >= 0 and nearness.max() <= 1
    assert depth_tokenizer.decode(codes, size=(20, 30)).shape == (20, 30)


def test_soft_decoding_is_hard_for_one_hot_and_differentiable(depth_tokenizer: DepthTokenizer) -> None:
    codes = depth_tokenizer.encode(np.random.default_rng(1).random((16, 16)) + 1)
    one_hot = torch.nn.functional.one_hot(torch.tensor(codes), 8).float()
    torch.testing.assert_close(depth_tokenizer.decode_soft(one_hot), torch.from_numpy(depth_tokenizer.decode(codes)))
    logits = torch.randn(16, 8, requires_grad=True)
    depth_tokenizer.decode_soft(logits.softmax(-1)).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_bad_depth(depth_tokenizer: DepthTokenizer) -> None:
    for depth in (np.full((4, 4), np.nan), np.zeros((4, 4))):
        with pytest.raises(ValueError, match="no valid pixel"):
            depth_tokenizer.encode(depth)
    with pytest.raises(ValueError, match=r"one map \(H, W\), got shape \(2, 4, 4\)"):
        depth_tokenizer.encode(np.ones((2, 4, 4)))
    with pytest.raises(ValueError, match="mask must have depth's shape"):
        depth_tokenizer.encode(np.ones((4, 4)), np.ones((4, 5)))
    with pytest.raises(ValueError, match="no valid pixel"):
        depth_tokenizer.encode(np.ones((4, 4)), np.zeros((4, 4)))
    for codes in ([0] * 15, [8] * 16, [0.5] * 16, []):
        with pytest.raises(ValueError, match="codes must"):
            depth_tokenizer.decode(codes)
    with pytest.raises(SpanError, match="exactly 16"):
        depth_tokenizer.from_text("<DEPTH_START><DEPTH_1><DEPTH_END>")


def test_colours_rise_evenly_in_lightness() -> None:
    table = color_table()
    assert table.shape == (256, 3) and table.dtype == np.uint8
    linear = (table / 255 + 0.055) ** 2.4 / 1.055**2.4
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1e-3).all() and luminance[-1] > 10 * luminance[0]
    lightness = 116 * np.cbrt(luminance) - 16  # CIE L*
    steps = np.diff(lightness[::16])
    assert steps.min() > 0.5 * steps.mean() and steps.max() < 1.6 * steps.mean()


def test_depth_drawing() -> None:
    nearness = np.array([[0, 1.0], [np.nan, 0.5]])
    picture = DepthTokenizer.draw(nearness)
    assert picture.size == (2, 2)
    assert picture.getpixel((0, 0)) == tuple(color_table()[0]) and picture.getpixel((1, 0)) == tuple(color_table()[255])
    assert picture.getpixel((0, 1)) == (128, 128, 128)
    assert DepthTokenizer.draw(torch.tensor(nearness), Image.new("RGB", (30, 20))).size == (30, 20)
    for bad in (np.ones((2, 2)) * 3, np.zeros(4), np.zeros((0, 4))):
        with pytest.raises(ValueError, match="nearness must"):
            DepthTokenizer.draw(bad)
