"""What the numbers in depth files mean: channels, pages, nested arrays, holes, scales, and nearness whose 0 is far."""

from __future__ import annotations

import errno
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from perception.cli import app
from perception.datasets.depth.code_files import DepthCodes, join_files
from perception.datasets.depth.files import PRESETS, DepthFormat, read_depth
from perception.datasets.depth.jobs import FORMATS, detokenize, tokenize
from perception.datasets.depth.pairs import find_pairs, read_pairs
from perception.datasets.depth.questions import relative_depth
from vqvae import VQVAE, VQVAEConfig
from vqvae.normalisation import depth_ranges

DEPTH = np.linspace(1, 4, 12 * 20, dtype=np.float32).reshape(12, 20)
NEAR = np.linspace(0, 255, 12 * 20).round().astype(np.uint8).reshape(12, 20)


@pytest.fixture(scope="module")
def model() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)).eval()


def only(path: Path, meant: DepthFormat = DepthFormat()) -> torch.Tensor:  # noqa: B008
    ((suffix, depth),) = read_depth(path, meant)
    assert suffix == ""
    return depth


def tifffile_write(path: Path, array: np.ndarray) -> Path:
    pytest.importorskip("tifffile").imwrite(path, array)
    return path


# Channels


@pytest.mark.parametrize(
    "array",
    [
        DEPTH[..., None],
        DEPTH[None],
        np.repeat(DEPTH[..., None], 3, -1),
        np.repeat(DEPTH[..., None], 4, -1),
        np.repeat(DEPTH[None], 3, 0),
        DEPTH[None, None],
        DEPTH[None, ..., None],
        np.repeat(DEPTH[None, ..., None], 3, -1),
        np.where(DEPTH > 2, DEPTH, np.nan)[..., None].repeat(3, -1),
    ],
)
def test_equal_channels_are_one_map(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", array)
    expected = torch.from_numpy(DEPTH)
    found = only(tmp_path / "d.npy")
    known = found.isfinite()
    assert found.shape == (12, 20) and bool(known[DEPTH > 2].all()) and torch.equal(found[known], expected[known])


def test_several_maps_with_a_channel_each_are_several(tmp_path: Path) -> None:
    maps = np.stack([DEPTH, 2 * DEPTH])
    for shaped in (maps, maps[..., None], maps[:, None], maps[..., None].repeat(3, -1)):
        np.save(tmp_path / "d.npy", shaped)
        found = dict(read_depth(tmp_path / "d.npy"))
        assert list(found) == [":0", ":1"] and torch.equal(found[":1"], torch.from_numpy(2 * DEPTH))


def test_channels_that_differ_are_refused(tmp_path: Path) -> None:
    colours = np.stack([DEPTH, DEPTH + 1, DEPTH], -1)
    for array in (colours, colours[..., :2], colours[None], colours[None, None], np.moveaxis(colours, -1, 0)[None]):
        np.save(tmp_path / "d.npy", array)
        with pytest.raises(
            ValueError, match=r"d\.npy holds float32 of shape .*; depth must be numbers|channels differ"
        ):
            list(read_depth(tmp_path / "d.npy"))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_in_any_mode_is_one_map_of_nearness(mode: str, tmp_path: Path) -> None:
    """What depth networks' own scripts write: 8-bit grey, alone or in colours."""
    Image.fromarray(NEAR).convert(mode).save(tmp_path / "n.png")
    expected = only_nearness(NEAR)
    torch.testing.assert_close(relative_depth(only(tmp_path / "n.png", DepthFormat("inverse"))), expected)
    with pytest.raises(ValueError, match=rf"n\.png is a picture of mode {mode}; its 8 bits .*: save depth as 16-bit"):
        only(tmp_path / "n.png")


def only_nearness(values: np.ndarray) -> torch.Tensor:
    """Nearness in [0, 1] of grey values, the least lifted to a thousandth of the largest."""
    lifted = torch.from_numpy(values.astype(np.float32)).clamp_min(0.001 * values.max())
    return (lifted - lifted.min()) / (lifted.max() - lifted.min())


def test_pictures_that_hold_no_depth_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_mandelbrot((20, 12), (-2, -1, 1, 1), 20).convert("1").save(tmp_path / "mask.png")
    colours = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "photo.png")
    Image.fromarray(colours).quantize(8).save(tmp_path / "palette.png")
    for name, said in (
        ("mask", "black and white alone"),
        ("photo", "mode RGB .* differ"),
        ("palette", "mode P .* dif"),
    ):
        with pytest.raises(ValueError, match=rf"{name}\.png is a picture of .*{said}"):
            only(tmp_path / f"{name}.png", DepthFormat("inverse"))
    cv2 = pytest.importorskip("cv2")
    cv2.imwrite(str(tmp_path / "deep.png"), np.repeat((DEPTH * 1000).astype(np.uint16)[..., None], 3, -1))
    with pytest.raises(
        ValueError, match=r"deep\.png .* 16 bits per channel, of which 8 would be read; save one channel"
    ):
        only(tmp_path / "deep.png", DepthFormat("inverse"))


def test_transparent_pixels_are_holes(tmp_path: Path) -> None:
    alpha = np.full_like(NEAR, 255)
    alpha[:3] = 0
    Image.fromarray(np.dstack([NEAR, NEAR, NEAR, alpha])).save(tmp_path / "n.png")
    found = only(tmp_path / "n.png", DepthFormat("inverse"))
    assert torch.equal(found.isnan(), torch.from_numpy(alpha == 0))


# Zeros, holes and scales


@pytest.mark.parametrize("kind", ["png8", "png16", "npy", "pfm"])
def test_zeros_of_relative_nearness_are_the_farthest(kind: str, tmp_path: Path) -> None:
    near = np.linspace(60, 255, 12 * 20).reshape(12, 20)
    near[:3] = 0  # sky
    path = tmp_path / f"n.{kind.rstrip('0123456789')}"
    if kind.startswith("png"):
        Image.fromarray(near.round().astype(np.uint8 if kind == "png8" else np.uint16)).save(path)
    elif kind == "npy":
        np.save(path, near.astype(np.float32))
    else:
        path.write_bytes(b"Pf\n20 12\n-1\n" + near[::-1].astype("<f4").tobytes())
    found = only(path, DepthFormat("inverse"))
    relative = relative_depth(found)
    assert bool(found.isfinite().all()) and bool((relative[:3] == 0).all()) and float(relative[3:].min()) > 0.2
    np.testing.assert_allclose(relative[3:], near[3:] / 255, atol=3e-3)
    holed = only(path, DepthFormat("inverse", invalid=0))
    assert bool(holed[:3].isnan().all()) and bool(holed[3:].isfinite().all())
    measured = only(path, DepthFormat("inverse", scale=100.0))
    assert bool(measured[:3].isnan().all()), "of measured disparity 0 says that nothing was found"
    np.testing.assert_allclose(measured[3:], 100 / near[3:].round(0 if "png" in kind else 9), rtol=1e-5)


def test_a_wild_pixel_of_relative_nearness_does_not_flatten_the_map(tmp_path: Path, model: VQVAE) -> None:
    near = np.linspace(0.05, 1, 48, dtype=np.float32)[:, None].repeat(64, 1)
    for name, value in (("clean", near[0, 0]), ("wild", 1e4)):
        near[0, 0] = value
        np.save(tmp_path / f"{name}.npy", near)
        assert len(only(tmp_path / f"{name}.npy", DepthFormat("inverse"))[:, 1:].unique()) == 48
        codes = tokenize(tmp_path / f"{name}.npy", tmp_path / "c.npy", model, DepthFormat("inverse"))
        assert codes.ranges[0].tolist() == pytest.approx([1, 20], rel=1e-4)


def test_a_few_pixels_before_nothing_but_zeros_are_the_map(tmp_path: Path) -> None:
    near = np.zeros((40, 50), np.float32)
    near[20, 20] = 4
    np.save(tmp_path / "n.npy", near)
    found = only(tmp_path / "n.npy", DepthFormat("inverse"))
    assert found[20, 20] == 0.25 and found[0, 0] == pytest.approx(250)


def test_negative_disparity_is_a_hole(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([[-1.0, 0.0], [10.0, np.inf]], np.float32))
    found = only(tmp_path / "d.npy", DepthFormat("inverse"))
    assert found[0, 0].isnan() and found[0, 1] == pytest.approx(100.0) and found[1, 0] == pytest.approx(0.1)
    assert not bool(found[1, 1] > 0)


def test_an_invalid_value_and_a_largest_depth_are_holes(tmp_path: Path) -> None:
    stored = np.array([[0, 1500, 65535], [2000, 12000, 65534]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "d.png")
    found = only(tmp_path / "d.png", DepthFormat(invalid=65535))
    assert bool(found[0, 2].isnan()) and found[1, 2] == pytest.approx(65.534)
    found = only(tmp_path / "d.png", DepthFormat(max_depth=10.0))
    assert found.isnan().tolist() == [[False, False, True], [False, True, True]]
    np.save(tmp_path / "d.npy", np.array([[-1, 1e10], [2.0, 3.0]], np.float32))
    assert only(tmp_path / "d.npy", DepthFormat(invalid=1e10)).isnan().tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("preset", "metres"), [("tum", 1.0), ("icl-nuim", 1.0), ("kitti", 19.53125), ("nyu", 5.0), ("scannet", 5.0)]
)
def test_presets_give_the_scale_of_known_sets(preset: str, metres: float, tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 5000, np.uint16)).save(tmp_path / "d.png")
    assert float(only(tmp_path / "d.png", DepthFormat(preset=preset))[0, 0]) == pytest.approx(metres)
    np.save(tmp_path / "d.npy", np.full((2, 2), 3.5, np.float32))
    assert float(only(tmp_path / "d.npy", DepthFormat(preset=preset))[0, 0]) == 3.5, "float files are in metres"


@pytest.mark.parametrize("kind", ["uint16", "int32", "uint32", "int64"])
def test_pictures_of_whole_numbers_are_millimetres_and_take_presets(kind: str, tmp_path: Path) -> None:
    path = tifffile_write(tmp_path / "d.tif", (DEPTH * 1000).round().astype(kind))
    torch.testing.assert_close(only(path), torch.from_numpy(DEPTH), atol=6e-4, rtol=0)
    torch.testing.assert_close(only(path, DepthFormat(preset="tum")), torch.from_numpy(DEPTH / 5), atol=6e-4, rtol=0)
    np.save(tmp_path / "d.npy", (DEPTH * 1000).round().astype(kind))
    found = only(tmp_path / "d.npy", DepthFormat(preset="tum"))
    torch.testing.assert_close(found, torch.from_numpy(DEPTH / 5), atol=6e-4, rtol=0)


def test_a_preset_that_does_not_go_for_floats_is_no_secret(
    tmp_path: Path, model: VQVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "d.npy", DEPTH * 256)
    codes = tokenize(tmp_path / "d.npy", tmp_path / "c.npy", model, DepthFormat(preset="kitti"))
    said = " ".join(capsys.readouterr().err.split())
    assert codes.ranges[0].tolist() == [256, 1024]
    assert (
        "d.npy holds floats, which are taken for metres: preset 'kitti' is for whole numbers; if they are not" in said
    )
    np.save(tmp_path / "d.npy", (DEPTH * 256).astype(np.uint16))
    codes = tokenize(tmp_path / "d.npy", tmp_path / "c.npy", model, DepthFormat(preset="kitti"))
    assert codes.ranges[0].tolist() == [1, 4] and "note:" not in capsys.readouterr().err


def test_presets_know_holes_and_refuse_what_contradicts_them(tmp_path: Path) -> None:
    Image.fromarray(np.array([[65535, 2000]], np.uint16)).save(tmp_path / "d.png")
    found = only(tmp_path / "d.png", DepthFormat(preset="7-scenes"))
    assert bool(found[0, 0].isnan()) and float(found[0, 1]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="unknown preset 'nuy'; known: nyu, scannet"):
        DepthFormat(preset="nuy")
    for more in ({"scale": 2.0}, {"meaning": "inverse"}):
        with pytest.raises(ValueError, match="preset 'tum' gives a scale of depth"):
            DepthFormat(preset="tum", **more)
    with pytest.raises(ValueError, match="max_depth must be above 0, got -1"):
        DepthFormat(max_depth=-1)
    documented = DepthFormat.__doc__ and Path("perception/datasets/depth/files.py").read_text()
    assert documented and all(name in documented for name in PRESETS)


# Kinds of files


def test_every_page_is_a_map(tmp_path: Path) -> None:
    pages = [Image.fromarray(DEPTH), Image.fromarray(2 * DEPTH)]
    pages[0].save(tmp_path / "d.tif", save_all=True, append_images=pages[1:])
    found = dict(read_depth(tmp_path / "d.tif"))
    assert list(found) == [":0", ":1"] and torch.equal(found[":1"], torch.from_numpy(2 * DEPTH))
    pages[0].save(tmp_path / "d.tif", save_all=True, append_images=[pages[0].resize((10, 6))])
    with pytest.raises(ValueError, match=r"d\.tif has 2 pages that differ in size or kind \(20 x 12 .*10 x 6"):
        list(read_depth(tmp_path / "d.tif"))


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_floats_of_any_width_in_tiff(kind: str, tmp_path: Path) -> None:
    found = only(tifffile_write(tmp_path / "d.tif", DEPTH.astype(kind)))
    torch.testing.assert_close(found, torch.from_numpy(DEPTH), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", [">u2", "<u2"])
def test_tiff_of_both_byte_orders_is_millimetres(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "d.tif"
    order = kind[0]
    pytest.importorskip("tifffile").imwrite(path, (DEPTH * 1000).round().astype(kind), byteorder=order)
    torch.testing.assert_close(only(path), torch.from_numpy(DEPTH), atol=6e-4, rtol=0)


def test_netpbm_of_sixteen_bits_keeps_its_numbers(tmp_path: Path) -> None:
    stored = (DEPTH * 1000).round().astype(">u2")
    head = b"P5 # by a depth camera\n# width and height\n20 12\n4095\n"  # Pillow would stretch 4095 to 65535
    (tmp_path / "d.pgm").write_bytes(head + stored.tobytes())
    torch.testing.assert_close(only(tmp_path / "d.pgm"), torch.from_numpy(DEPTH), atol=6e-4, rtol=0)
    words = " ".join(map(str, stored.ravel().tolist()))
    (tmp_path / "d.pgm").write_text(f"P2\n20 12\n65535\n{words}\n")
    torch.testing.assert_close(only(tmp_path / "d.pgm"), torch.from_numpy(DEPTH), atol=6e-4, rtol=0)
    (tmp_path / "d.pgm").write_bytes(b"P5\n20 12\n255\n" + NEAR.tobytes())
    expected = only_nearness(NEAR)
    torch.testing.assert_close(relative_depth(only(tmp_path / "d.pgm", DepthFormat("inverse"))), expected)
    with pytest.raises(ValueError, match=r"d\.pgm is a picture of 256 greys, too few for depth"):
        only(tmp_path / "d.pgm")
    (tmp_path / "d.pgm").write_bytes(head + stored.tobytes()[:-2])
    with pytest.raises(ValueError, match=r"d\.pgm cannot be read as depth \(the header announces 20 x 12 values"):
        only(tmp_path / "d.pgm")


def test_pfm_with_comments_and_in_colour(tmp_path: Path) -> None:
    rows = DEPTH[::-1].astype("<f4")
    (tmp_path / "d.pfm").write_bytes(b"Pf\n# a comment\n20 12 # another\n-1.0\n" + rows.tobytes())
    assert torch.equal(only(tmp_path / "d.pfm"), torch.from_numpy(DEPTH))
    (tmp_path / "d.pfm").write_bytes(b"PF\n20\n12\n1.0\n" + np.repeat(rows[..., None], 3, -1).astype(">f4").tobytes())
    assert torch.equal(only(tmp_path / "d.pfm"), torch.from_numpy(DEPTH))


def test_nested_arrays_are_found_and_named(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file["frame/depth"], file["frame/rgb"], file["frame/other/far"] = DEPTH, np.zeros((12, 20, 3)), 2 * DEPTH
    assert torch.equal(only(tmp_path / "d.h5"), torch.from_numpy(DEPTH))
    for key in ("frame/other/far", "far"):
        assert torch.equal(only(tmp_path / "d.h5", DepthFormat(key=key)), torch.from_numpy(2 * DEPTH))
    with pytest.raises(
        ValueError, match=r"no array called 'z'; it holds frame/depth, frame/other/far, frame/rgb: choose"
    ):
        only(tmp_path / "d.h5", DepthFormat(key="z"))
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["left/depth"], file["right/depth"] = DEPTH, DEPTH
    with pytest.raises(
        ValueError, match=r"several arrays and 2 called depth; it holds left/depth, right/depth: choose"
    ):
        only(tmp_path / "two.h5")


def test_layers_of_exr_are_found_and_colours_refused(tmp_path: Path) -> None:
    openexr = pytest.importorskip("OpenEXR")
    header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}

    def write(**channels: np.ndarray) -> Path:
        named = {name.replace("_", "."): np.ascontiguousarray(values) for name, values in channels.items()}
        openexr.File(header, named).write(str(tmp_path / "d.exr"))
        return tmp_path / "d.exr"

    layers = {"View_Combined_R": DEPTH, "View_Combined_G": 2 * DEPTH, "View_Depth_Z": 3 * DEPTH}
    torch.testing.assert_close(only(write(**layers)), torch.from_numpy(3 * DEPTH))
    torch.testing.assert_close(only(write(R=DEPTH, G=DEPTH, B=DEPTH)), torch.from_numpy(DEPTH))
    with pytest.raises(ValueError, match=r"d\.exr holds colours \(.*\) and no depth"):
        only(write(R=DEPTH, G=2 * DEPTH, B=DEPTH))


def test_old_matlab_files_are_read(tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io")
    io.savemat(tmp_path / "d.mat", {"depth": DEPTH.astype(np.float64), "name": "kitchen"})
    assert torch.equal(only(tmp_path / "d.mat"), torch.from_numpy(DEPTH))
    io.savemat(tmp_path / "d.mat", {"frame": {"depth": np.stack([DEPTH, 2 * DEPTH], -1), "rgb": np.zeros((2, 2))}})
    assert torch.equal(dict(read_depth(tmp_path / "d.mat"))[":1"], torch.from_numpy(2 * DEPTH))
    (tmp_path / "d.mat").write_bytes(b"no matrix at all" * 20)
    with pytest.raises(ValueError, match=r"d\.mat cannot be read as depth"):
        only(tmp_path / "d.mat")


def test_a_picture_too_large_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.full((30, 30), 5000, np.uint16)).save(tmp_path / "d.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"d\.png is too large a picture \(.*900 pixels.*\); scale it down") as caught:
        only(tmp_path / "d.png")
    assert "\n" not in str(caught.value)


def test_a_giant_is_left_out_with_the_other_bad_files(tmp_path: Path, model: VQVAE) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    for name in ("a", "c"):
        np.save(maps / f"{name}.npy", DEPTH)
    Image.fromarray(np.full((2, 2), 5000, np.uint16)).save(maps / "b.png")
    data = (maps / "b.png").read_bytes()
    sides = (14_000).to_bytes(4, "big") * 2
    chunk = b"IHDR" + sides + data[24:29]
    (maps / "b.png").write_bytes(data[:12] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[33:])
    with pytest.raises(
        ValueError, match=r"b\.png is too large a picture \(.*196000000 pixels.*\); scale it down"
    ) as caught:
        tokenize(maps, tmp_path / "codes.npy", model)
    assert "\n" not in str(caught.value)
    model.save_pretrained(tmp_path / "tokenizer")
    words = ["tokenize", str(maps), "-o", str(tmp_path / "codes.npy"), "-t", str(tmp_path / "tokenizer"), "--skip-bad"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0 and DepthCodes.read(tmp_path / "codes.npy").names == ("a.npy", "c.npy")
    (line,) = (tmp_path / "codes.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["map"] == "b.png" and "196000000 pixels" in json.loads(line)["reason"]


def test_one_map_with_a_channel_belongs_to_its_image(tmp_path: Path) -> None:
    for name in ("images", "depth"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (20, 12)).save(tmp_path / "images" / "a.png")
    for array in (DEPTH[None], DEPTH[..., None]):
        np.save(tmp_path / "depth" / "a.npy", array)
        ((pair, depth),) = read_pairs(find_pairs(tmp_path / "depth", tmp_path / "images"))
        assert pair.name_in(tmp_path / "depth") == "a.npy" and torch.equal(depth, torch.from_numpy(DEPTH))


# Jobs and the command line


def test_relative_depth_does_not_become_millimetres(tmp_path: Path, model: VQVAE) -> None:
    Image.fromarray(NEAR.astype(np.uint16) * 128).save(tmp_path / "n.png")
    codes = tokenize(tmp_path / "n.png", tmp_path / "c.npy", model, DepthFormat("inverse"))
    with pytest.raises(ValueError, match=r"does not fit 16-bit millimetres; write tiff, exr or npy, or give the scale"):
        detokenize(codes, tmp_path / "back", model, "png")
    assert not (tmp_path / "back").exists()
    codes = tokenize(tmp_path / "n.png", tmp_path / "c.npy", model, DepthFormat("inverse", scale=5_000.0))
    (written,) = detokenize(codes, tmp_path / "back", model, "png")
    near, far = codes.ranges[0]
    found = only(written)
    assert near == pytest.approx(5_000 / (128 * 255), rel=1e-3)
    assert near - 1e-3 <= float(found.min()) <= float(found.max()) <= far + 1e-3


@pytest.mark.parametrize("ending", ["npy", "parquet", "txt"])
def test_files_of_codes_say_whether_their_ranges_are_in_metres(ending: str, tmp_path: Path, model: VQVAE) -> None:
    """Nearness of 0.05 to 1, as depth networks write it, has a depth of 1 to 20, as if in metres."""
    np.save(tmp_path / "n.npy", np.linspace(0.05, 1, 240, dtype=np.float32).reshape(12, 20))
    np.save(tmp_path / "d.npy", DEPTH)
    files = {name: tmp_path / f"{name}-codes.{ending}" for name in "nd"}
    tokenize(tmp_path / "d.npy", files["d"], model)
    tokenize(tmp_path / "n.npy", files["n"], model, DepthFormat("inverse"))
    relative, metric = (DepthCodes.read(files[name]) for name in "nd")
    assert relative.ranges[0].tolist() == pytest.approx([1, 20]) and metric.is_metric and relative.is_metric is False
    detokenize(metric, tmp_path / "back", model, "png")
    for codes in (relative, join_files([files["d"], files["n"]], tmp_path / f"both.{ending}")):
        with pytest.raises(ValueError, match="relative nearness has no metres, and does not fit 16-bit millimetres"):
            detokenize(codes, tmp_path / "back", model, "png")
        assert len(detokenize(codes, tmp_path / "back", model, "npy")) == len(codes.names)


def test_files_of_codes_from_before_become_millimetres_by_their_range(tmp_path: Path, model: VQVAE) -> None:
    np.save(tmp_path / "n.npy", np.linspace(0.05, 1, 240, dtype=np.float32).reshape(12, 20))
    tokenize(tmp_path / "n.npy", tmp_path / "c.txt", model, DepthFormat("inverse"))
    text = (tmp_path / "c.txt").read_text()
    assert ', "is_metric": false' in text
    (tmp_path / "c.txt").write_text(text.replace(', "is_metric": false', ""))
    (written,) = detokenize(DepthCodes.read(tmp_path / "c.txt"), tmp_path / "back", model, "png")
    assert float(only(written).max()) > 1


def test_maps_come_back_in_metres_or_as_the_inverse_of_relative_nearness(tmp_path: Path, model: VQVAE) -> None:
    Image.fromarray(np.linspace(1000, 9000, 240).reshape(12, 20).astype(np.uint16)).save(tmp_path / "mm.png")
    Image.fromarray(np.linspace(11, 100, 240).reshape(12, 20).astype(np.uint16)).save(tmp_path / "disparity.png")
    for name, meant, least, most in (
        ("mm", DepthFormat(), 1.0, 9.0),
        ("disparity", DepthFormat("inverse"), 1 / 100, 1 / 11),
    ):
        codes = tokenize(tmp_path / f"{name}.png", tmp_path / f"{name}.npy", model, meant)
        (written,) = detokenize(codes, tmp_path / "back", model)
        assert codes.ranges[0].tolist() == pytest.approx([least, most])
        assert least * 0.999 <= np.load(written).min() <= np.load(written).max() <= most * 1.001
    said = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["detokenize", "--help"]).output
    assert "npy, tiff or exr (depth in metres, or 1 / value of relative nearness)" in said


def test_depth_beyond_millimetres_is_written_as_floats(tmp_path: Path, model: VQVAE) -> None:
    np.save(tmp_path / "d.npy", 50 * DEPTH)
    codes = tokenize(tmp_path / "d.npy", tmp_path / "c.npy", model)
    with pytest.raises(ValueError, match=r"d\.npy: depth from 50 to 200 does not fit 16-bit millimetres"):
        detokenize(codes, tmp_path / "back", model, "png")
    (plain,) = detokenize(codes, tmp_path / "back", model, "npy")
    for form in ("tiff", "exr"):
        if form == "exr":
            pytest.importorskip("OpenEXR")
        (written,) = detokenize(codes, tmp_path / "back", model, form)
        assert written.name == f"d.npy{FORMATS[form]}" and torch.equal(only(written), torch.from_numpy(np.load(plain)))


@pytest.mark.parametrize("form", sorted(FORMATS))
def test_a_map_that_cannot_be_flushed_leaves_the_old_one(
    form: str, tmp_path: Path, model: VQVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps are written under another name first: a stop in between leaves whole files only."""
    if form == "exr":
        pytest.importorskip("OpenEXR")
    np.save(tmp_path / "d.npy", DEPTH)
    codes = tokenize(tmp_path / "d.npy", tmp_path / "c.npy", model)
    (written,) = detokenize(codes, tmp_path / "back", model, form)
    before = written.read_bytes()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vqvae.files._flush", full)
    with pytest.raises(OSError, match="could not be written: the disk is full"):
        detokenize(codes, tmp_path / "back", model, form)
    assert written.read_bytes() == before and list((tmp_path / "back").iterdir()) == [written]


def wild(count: int = 1, value: float = 0.05) -> np.ndarray:
    depth = np.linspace(1.5, 6.3, 60 * 80, dtype=np.float32).reshape(60, 80)
    depth[30, 10 : 10 + count] = value
    return depth


@pytest.mark.parametrize(("count", "value"), [(1, 0.05), (5, 0.01), (1, 1e-6)])
def test_wild_pixels_do_not_stretch_the_range(count: int, value: float, tmp_path: Path, model: VQVAE) -> None:
    np.save(tmp_path / "d.npy", wild(count, value))
    np.save(tmp_path / "e.npy", wild(count, 1.6))
    codes = tokenize(tmp_path / "d.npy", tmp_path / "c.parquet", model)
    assert codes.ranges[0].tolist() == pytest.approx([1.5, 6.3], abs=0.02)
    assert codes.range_percentile is None and DepthCodes.read(tmp_path / "c.parquet").range_percentile is None
    clean = tokenize(tmp_path / "e.npy", tmp_path / "e.parquet", model)
    assert clean.ranges[0].tolist() == pytest.approx([1.5, 6.3], abs=1e-6), "a clean map keeps its ends"
    near = relative_depth(torch.from_numpy(wild(count, value)))
    np.testing.assert_allclose(near[0, 0], 1, atol=0.02)


@pytest.mark.parametrize("ending", ["npy", "parquet", "txt"])
def test_the_percentile_is_chosen_and_kept_in_the_codes(ending: str, tmp_path: Path, model: VQVAE) -> None:
    np.save(tmp_path / "d.npy", wild())
    model.save_pretrained(tmp_path / "tokenizer")
    for percentile, near in ((0, 0.05), (2, float(np.percentile(wild(), 2)))):
        out = tmp_path / f"c{percentile}.{ending}"
        command = ["tokenize", tmp_path / "d.npy", "-o", out, "-t", tmp_path / "tokenizer", "--percentile", percentile]
        result = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        codes = DepthCodes.read(out)
        assert codes.range_percentile == percentile and codes.ranges[0, 0] == pytest.approx(near, abs=2e-3)


def test_files_of_codes_from_before_were_min_max(tmp_path: Path, model: VQVAE) -> None:
    np.save(tmp_path / "d.npy", DEPTH)
    tokenize(tmp_path / "d.npy", tmp_path / "c.txt", model)
    text = (tmp_path / "c.txt").read_text()
    assert '"range_percentile": null' in text
    (tmp_path / "c.txt").write_text(text.replace(', "range_percentile": null', ""))
    assert DepthCodes.read(tmp_path / "c.txt").range_percentile == 0


def test_the_command_line_takes_holes_and_scales_and_hints_at_them(tmp_path: Path, model: VQVAE) -> None:
    model.save_pretrained(tmp_path / "tokenizer")
    stored = (DEPTH * 5000).round().astype(np.uint16)  # as the TUM sets are stored
    Image.fromarray(stored).save(tmp_path / "t.png")
    stored[:4] = 65535
    Image.fromarray(stored).save(tmp_path / "h.png")

    def run(name: str, *options: object) -> tuple[list[float], str]:
        command = ["tokenize", tmp_path / name, "-o", tmp_path / "c.npy", "-t", tmp_path / "tokenizer", *options]
        result = CliRunner().invoke(app, [*map(str, command)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return DepthCodes.read(tmp_path / "c.npy").ranges[0].tolist(), result.stderr

    found, said = run("t.png")
    assert found == pytest.approx([5, 20], abs=1e-3)
    assert "t.png reaches 20 m if its numbers are millimetres" in said and "tum" in said and said.count("\n") == 1
    found, said = run("t.png", "--preset", "tum")
    assert found == pytest.approx([1, 4], abs=1e-3) and not said
    _, said = run("h.png")
    assert "h.png holds 65535, the largest 16-bit value, as 65.5 m; if it marks holes, give invalid 65535" in said
    found, said = run("h.png", "--scale", 1 / 5000, "--invalid", 65535)
    assert found == pytest.approx([DEPTH[4, 0], 4], abs=1e-3) and not said
    found, _ = run("t.png", "--preset", "tum", "--max-depth", 3)
    assert found == pytest.approx([1, 3], abs=0.02)


@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_map_without_depth_names_the_settings_that_make_holes(skip_bad: bool, tmp_path: Path, model: VQVAE) -> None:
    np.save(tmp_path / "d.npy", (DEPTH * 1000).astype(np.uint16))  # in millimetres

    def said(meant: DepthFormat, remedy: str = "") -> str:
        with pytest.raises(ValueError, match=r"d\.npy:? holds no valid depth") as caught:
            tokenize(tmp_path / "d.npy", tmp_path / "c.npy", model, meant, skip_bad=skip_bad, remedy=remedy)
        return str(caught.value)

    assert "with --max-depth 10; check that, and --scale, the metres per unit" in said(DepthFormat(max_depth=10.0))
    both = said(DepthFormat(max_depth=10.0, invalid=65535), "mend data.depth_format")
    assert "with max_depth 10 and invalid 65535; check that, and scale," in both and "--" not in both
    np.save(tmp_path / "d.npy", np.zeros((4, 4), np.uint16))
    assert "holds no valid depth (finite and above 0)" in (plain := said(DepthFormat())) and "depth 10" not in plain


def test_a_largest_depth_in_metres_needs_metres(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"max_depth 10 is in metres, and meaning 'inverse' without a scale gives none"
    ):
        DepthFormat("inverse", max_depth=10.0)
    np.save(tmp_path / "d.npy", np.array([[1.0, 20.0]], np.float32))
    found = only(tmp_path / "d.npy", DepthFormat("inverse", scale=100.0, max_depth=10.0))
    assert found.isnan().tolist() == [[True, False]]


def test_a_range_by_percentile_is_numpys() -> None:
    depth = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0)) + 1
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[1, :20] = False
    found = depth_ranges(depth, valid, VQVAEConfig(range_percentile=5.0))
    for row, (values, known) in enumerate(zip(depth, valid, strict=True)):
        expected = np.percentile(values[known].numpy(), [5, 95])
        np.testing.assert_allclose(found[row], expected, atol=2e-3)
