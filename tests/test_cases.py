"""Small files that once failed, in the folder shared/cases beside or above the project; skipped where absent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_perception import build_perception
from typer.testing import CliRunner

from perception import cli
from perception.chains import DIRECT_COUNT
from perception.datasets.depth.files import DepthFormat, read_depth
from perception.datasets.depth.jobs import detokenize, tokenize
from perception.datasets.depth.questions import relative_depth
from perception.datasets.own import read_questions
from perception.datasets.records import RecordSet
from perception.evaluation.published_sets import read_published_set
from perception.model import images
from perception.model.images import image_size, load_image
from perception.model.shipped import shipped
from perception.tokenizers import BoxTokenizer
from perception.vocabulary.names import Span
from vqvae import VQVAE
from vqvae.metrics import depth_errors

PROJECT = Path(__file__).resolve().parents[1]
CASES = next((f for p in PROJECT.parents[:3] if (f := p / "shared" / "cases").is_dir()), PROJECT / "shared" / "cases")
INVERSE = DepthFormat("inverse")
SKY = slice(0, 12)
"""Rows of the sky in maps that have one"""
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")


@pytest.fixture(scope="module")
def model() -> VQVAE:
    return VQVAE.from_pretrained(shipped("depth-scenes-100"))


def case(name: str) -> Path:
    if not (CASES / name).is_file():
        pytest.skip(f"{CASES / name} is not there")
    return CASES / name


def pixels(name: str) -> np.ndarray:
    """What the loader makes of a photograph, (H, W, 3)."""
    return np.asarray(load_image(case(name))).astype(int)


# Depth files


def only(name: str, meant: DepthFormat = DepthFormat()) -> torch.Tensor:  # noqa: B008
    ((suffix, depth),) = read_depth(case(name), meant)
    assert suffix == ""
    return depth


@pytest.mark.parametrize("name", ["depth_hw1.npy", "depth_hw3.npy"])
def test_channels_are_no_maps(name: str) -> None:
    assert torch.equal(only(name), torch.from_numpy(np.load(case(name))[..., 0]))


def test_pages_are_maps() -> None:
    found = dict(read_depth(case("two_pages.tif")))
    assert list(found) == [":0", ":1"] and all(depth.shape == (60, 80) for depth in found.values())


@pytest.mark.parametrize("name", ["inverse_zero_is_sky.png", "inverse_grey_in_rgb.png", "disparity16.png"])
def test_the_sky_is_far(name: str, model: VQVAE) -> None:
    depth = only(name, INVERSE)
    nearness = relative_depth(depth)
    assert (
        bool(depth.isfinite().all()) and bool((nearness[SKY] == 0).all()) and float(nearness[SKY.stop :].min()) > 0.03
    )
    decoded = model.decode(model.encode(depth[None]), size=(60, 80))[0]
    assert float(decoded[SKY][:-2].max()) < 0.05, "the codes hold the sky as the farthest"


def test_a_saturated_value_is_a_hole_where_it_is_said() -> None:
    name = "depth_mm_65535_invalid.png"
    assert float(only(name).max()) == pytest.approx(65.535)
    for meant in (DepthFormat(invalid=65535), DepthFormat(max_depth=10.0)):
        depth = only(name, meant)
        assert float(depth[depth.isfinite()].max()) == pytest.approx(6.299) and 0 < int(depth.isnan().sum()) < 480


def test_one_wild_pixel_does_little_harm(tmp_path: Path, model: VQVAE) -> None:
    """delta1 was 0.29 with min-max; without the pixel it is 0.99."""
    depth = torch.from_numpy(np.load(case("depth_one_near_pixel.npy")))
    codes = tokenize(case("depth_one_near_pixel.npy"), tmp_path / "codes.npy", model)
    assert codes.ranges[0].tolist() == pytest.approx([1.5, 6.3], abs=1e-3)
    (written,) = detokenize(codes, tmp_path, model)
    mask = depth > 1
    errors = depth_errors(torch.from_numpy(np.load(written))[None], depth[None], mask[None])
    assert float(errors.delta1) > 0.98


def test_disparity_becomes_metres_with_a_scale_and_no_millimetres_without(tmp_path: Path, model: VQVAE) -> None:
    file = case("disparity16.png")
    codes = tokenize(file, tmp_path / "relative.npy", model, INVERSE)
    with pytest.raises(ValueError, match="does not fit 16-bit millimetres"):
        detokenize(codes, tmp_path, model, "png")
    codes = tokenize(file, tmp_path / "metric.npy", model, DepthFormat("inverse", scale=50_000.0))
    (written,) = detokenize(codes, tmp_path, model, "png")
    ((_, metres),) = read_depth(written)
    assert 50_000 / 32640 - 0.01 < float(metres.min()) < 3 and 20 < float(metres.max()) < 50_000 / 1536 + 0.01


# Photographs, all of the same picture


@pytest.mark.parametrize(("name", "most"), [("exif6.jpg", 4), ("cmyk.jpg", 4), ("two_frames.gif", 0)])
def test_photographs_are_the_upright_picture(name: str, most: float) -> None:
    shown, real = pixels(f"photo_{name}"), pixels("photo_upright.png")
    assert shown.shape == real.shape == (*image_size(case(f"photo_{name}")), 3)
    assert np.abs(shown - real).mean() <= most


@pytest.mark.parametrize(("name", "said"), [("grey16.png", "19200..46600"), ("float.tif", "0.317647..0.854902")])
def test_deep_grey_is_scaled_by_its_range(name: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    grey = np.asarray(load_image(case("photo_upright.png")).convert("L")).astype(float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_said", set())
        shown = pixels(f"photo_{name}")
    assert (shown.min(), shown.max()) == (0, 255) and (shown == shown[..., :1]).all()
    assert np.corrcoef(shown[..., 0].ravel(), grey.ravel())[0, 1] > 0.999
    assert f"photo_{name} is grey with more than 8 bits and was scaled from {said} to 0..255" in caplog.text


def test_transparent_pixels_are_white() -> None:
    with Image.open(case("photo_alpha.png")) as opened:
        clear = np.asarray(opened)[..., 3] == 0
    shown, real = pixels("photo_alpha.png"), pixels("photo_upright.png")
    assert clear.any() and (shown[clear] == 255).all() and np.array_equal(shown[~clear], real[~clear])


def test_several_frames_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_said", set())
        load_image(case("photo_two_frames.gif"))
    assert "photo_two_frames.gif has several frames or pages; of such images the first one is used" in caplog.text


# Questions


@pytest.mark.parametrize(
    ("name", "between", "tasks"),
    [
        ("own_questions_bom.csv", " ", 3),
        ("own_questions_semicolons.csv", " ", 3),
        ("question_u2028.jsonl", "\u2028", 2),
    ],
)
def test_tables_of_questions_are_read_and_kept(name: str, between: str, tasks: int, tmp_path: Path) -> None:
    found = read_questions(case(name), 100)
    direct, chain = found.records[:2]
    assert not found.skipped and len(found.records) == tasks
    assert (direct.example.task, direct.example.answer) == (DIRECT_COUNT, "1")
    assert direct.example.question == f"How many{between}boxes are there?"
    assert direct.image.path == case("photo_upright.png")
    (span,) = (part for part in chain.example.target if isinstance(part, Span))
    assert np.abs(BoxTokenizer(100).decode(span.codes) * [120, 80, 120, 80] - [[10, 40, 40, 75]]).max() < 1
    found.write(tmp_path / "records.jsonl")
    assert RecordSet.read(tmp_path / "records.jsonl") == found


# HardBLINK


def test_hardblink_is_read_in_its_authors_folder() -> None:
    case("hardblink/questions/blink_3pointscenter_questions.jsonl")
    items = read_published_set("hardblink", CASES / "hardblink")
    found = [(item.group, item.image.path.relative_to(CASES / "hardblink" / "images").as_posix()) for item in items]
    assert found == [(f"depth-{points}", f"blink{points}pointscenter/{n}.png") for points in (3, 4) for n in (0, 1)]
    assert [item.truth for item in items] == ["A", "B"] * 2
    assert [item.options for item in items] == [tuple("ABC")] * 2 + [tuple("ABCD")] * 2
    assert len({item.image.load().tobytes() for item in items}) == 4, "each set has its own pictures"


def test_hardblink_is_answered(tmp_path: Path) -> None:
    case("hardblink/questions/blink_3pointscenter_questions.jsonl")
    build_perception().save_pretrained(tmp_path / "model")
    words = ["evaluate", "hardblink", "--data", str(CASES / "hardblink"), "-m", str(tmp_path / "model")]
    words += ["--mode", "direct", "--max-new-tokens", "4", "--device", "cpu", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(cli.app, words, catch_exceptions=False)
    assert result.exit_code == 0 and all(group in result.stdout for group in ("depth-3", "depth-4", "all"))
    assert len((tmp_path / "out" / "hardblink-direct.jsonl").read_text().split("\n")) == 4 + 1
    assert (tmp_path / "out" / "hardblink-direct.html").read_text().count("<figure>") == 4
