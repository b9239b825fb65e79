"""The loader of pictures: whatever a file holds becomes one upright RGB picture, or is refused by name."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from perception.datasets.depth.files import DepthFormat, read_depth
from perception.datasets.images import ImageFile
from perception.datasets.own import read_questions
from perception.model import images
from perception.model.images import DamagedImage, ImageError, UnknownFormat, decode_image, image_size, load_image
from perception.tokenizers import BoxTokenizer, DepthTokenizer, PointTokenizer

WHITE = (255, 255, 255)
STORED_FROM_UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera stores an upright picture under each EXIF orientation"""


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once per process is said again in each test."""
    monkeypatch.setattr(images, "_said", set())


def upright() -> Image.Image:
    """48 x 32 pixels, with another colour in each quarter."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:, :24], pixels[16:, 24:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 128
    return Image.fromarray(pixels)


def turned(path: Path, orientation: int, **settings: object) -> Path:
    """The upright picture as a camera writes it."""
    turn, exif = STORED_FROM_UPRIGHT[orientation], Image.Exif()
    exif[0x0112] = orientation
    image = upright() if turn is None else upright().transpose(turn)
    image.save(path, exif=exif, **settings)
    return path


def off(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of two pictures, 0 to 255."""
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).mean())


# Orientation


@pytest.mark.parametrize("orientation", STORED_FROM_UPRIGHT)
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_photos_are_turned_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    path = turned(tmp_path / f"photo.{ending}", orientation)
    image = load_image(path)
    assert off(image, upright()) < 8
    assert image_size(path) == ImageFile(path).size() == (32, 48)
    with Image.open(path) as opened:
        assert off(load_image(opened), upright()) < 8, "a picture that PIL opened is the same"
    with Image.open(path) as opened:
        assert off(load_image(opened.convert("RGB")), upright()) < 8
    assert off(decode_image(io.BytesIO(path.read_bytes())), upright()) < 8
    assert off(load_image(image), image) == 0, "it is not turned twice"


def test_boxes_refer_to_the_upright_picture(tmp_path: Path) -> None:
    turned(tmp_path / "photo.jpg", 6, quality=95)
    row = 'image,question,answer,boxes\nphoto.jpg,How many blocks are there?,1,"[[24, 0, {}, 16]]"\n'
    (tmp_path / "q.csv").write_text(row.format(48))  # outside of the picture as it is stored, 32 x 48
    (chain,) = (r for r in read_questions(tmp_path / "q.csv", 100).records if r.example.task == "chain_count")
    (span,) = (part for part in chain.example.target if not isinstance(part, str))
    x1, y1, x2, y2 = BoxTokenizer(100).decode(span.codes)[0] * [48, 32, 48, 32]
    cut = np.asarray(chain.image.load())[round(y1) + 2 : round(y2) - 2, round(x1) + 2 : round(x2) - 2]
    assert np.abs(cut.astype(int) - (0, 255, 0)).mean() < 12, "the green quarter"
    (tmp_path / "q.csv").write_text(row.format(49))
    with pytest.raises(ValueError, match="not inside the image of 48 x 32 pixels"):
        read_questions(tmp_path / "q.csv", 100)


def test_what_is_drawn_lies_on_the_upright_picture(tmp_path: Path) -> None:
    with Image.open(turned(tmp_path / "photo.png", 8)) as opened:
        assert BoxTokenizer().draw([[0.1, 0.1, 0.9, 0.9]], opened).size == (48, 32)
        assert PointTokenizer().draw([[0.5, 0.5]], opened).size == (48, 32)
        assert DepthTokenizer.draw(np.zeros((4, 4)), opened).size == (48, 32)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's
def test_exif_data_that_cannot_be_read_turn_nothing(tmp_path: Path) -> None:
    upright().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 9
    upright().save(tmp_path / "b.jpg", exif=exif, quality=95)
    for name in ("a.jpg", "b.jpg"):
        assert off(load_image(tmp_path / name), upright()) < 8 and image_size(tmp_path / name) == (32, 48)


# Grey of more than 8 bits


def deep_grey(path: Path, kind: str) -> Path:
    """A ramp from 3000 to 50000 (in floating point 0.3 to 5.0), which leaves out both ends of every type."""
    ramp = np.linspace(3000, 50000, 100).round().reshape(5, 20)
    if kind == "float":
        Image.fromarray((ramp / 10000).astype(np.float32)).save(path.with_suffix(".tif"))
        return path.with_suffix(".tif")
    if kind == "big-endian":
        path = path.with_suffix(".tif")
        Image.frombytes("I;16B", (20, 5), ramp.astype(">u2").tobytes()).save(path)
        return path
    if kind == "32 bits":
        path = path.with_suffix(".tif")
        Image.fromarray(ramp.astype(np.int32) - 10000).save(path)  # some are below 0
        return path
    Image.fromarray(ramp.astype(np.uint16)).save(path)
    return path


@pytest.mark.parametrize("kind", ["16 bits", "big-endian", "32 bits", "float"])
def test_deep_grey_is_scaled_by_its_range_and_said_once(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = deep_grey(tmp_path / "grey.png", kind)
    with Image.open(path) as opened:
        assert opened.mode in images._DEEP_MODES
    with caplog.at_level(logging.WARNING):
        pixels = np.asarray(load_image(path))
        load_image(path)
    expected = np.linspace(0, 255, 100).round().reshape(5, 20)
    assert pixels.shape == (5, 20, 3) and np.abs(pixels - expected[..., None]).max() <= 1
    (said,) = caplog.messages
    assert path.name in said and "to 0..255" in said


def test_flat_and_broken_values_of_floating_point() -> None:
    flat = Image.fromarray(np.full((2, 3), 7.0, np.float32))
    assert np.asarray(load_image(flat)).max() == 0
    values = np.array([[np.nan, 0.0], [1.0, np.inf]], np.float32)
    assert np.asarray(load_image(Image.fromarray(values)))[..., 0].tolist() == [[0, 0], [255, 0]]
    with pytest.raises(ValueError, match="holds no finite value"):
        load_image(Image.fromarray(np.full((2, 2), np.nan, np.float32)))


# Colours of more than 8 bits


def deep_png(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, C) uint16."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colours_are_scaled_by_their_type(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 8, channels)).astype(np.uint16)
    pixels[..., 1 if channels == 2 else 3 :] = 65535  # opaque
    (tmp_path / "deep.png").write_bytes(deep_png(pixels))
    shown = np.asarray(load_image(tmp_path / "deep.png")).astype(float)
    assert np.abs(shown - pixels[..., : 1 if channels == 2 else 3] / 257).max() < 1
    twelve_bits = pixels >> 4
    said = r"deep\.png has 16 bits per channel and uses only the lowest of them; scale it"
    for alpha in (65535, 4095) if channels != 3 else (0,):
        twelve_bits[..., 1 if channels == 2 else 3 :] = alpha
        (tmp_path / "deep.png").write_bytes(deep_png(twelve_bits))
        with pytest.raises(ValueError, match=said):
            load_image(tmp_path / "deep.png")


@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_colours_in_tiff(tmp_path: Path, order: Literal["<", ">"]) -> None:
    tifffile = pytest.importorskip("tifffile")
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 8, 3)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", pixels, photometric="rgb", byteorder=order)
    assert np.abs(np.asarray(load_image(tmp_path / "deep.tif")) - pixels / 257).max() < 1
    planes = pixels.transpose(2, 0, 1)  # of which PIL would read every other byte
    tifffile.imwrite(tmp_path / "deep.tif", planes, photometric="rgb", planarconfig="separate", byteorder=order)
    with pytest.raises(
        ValueError, match=r"deep\.tif is a TIFF of 16 bits and one plane per channel, which is not read"
    ):
        load_image(tmp_path / "deep.tif")
    planes = planes[:1].repeat(3, 0)
    tifffile.imwrite(tmp_path / "deep.tif", planes, photometric="rgb", planarconfig="separate", byteorder=order)
    with pytest.raises(ValueError, match=r"deep\.tif is a TIFF of 16 bits and one plane per channel"):
        list(read_depth(tmp_path / "deep.tif", DepthFormat("inverse")))


# Transparency and other modes


def see_through(kind: str) -> Image.Image:
    """Two pixels: a red one that is opaque, and a black one that is fully transparent."""
    both = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    both.putpixel((0, 0), (255, 0, 0, 255))
    if kind == "palette":
        image = Image.new("P", (2, 1), 1)
        image.putpalette([255, 0, 0, 0, 0, 0])
        image.putpixel((0, 0), 0)
        image.info["transparency"] = b"\xff\x00"
        return image
    if kind == "palette, one index":
        image = see_through("palette")
        image.info["transparency"] = 1
        return image
    if kind == "one colour":
        image = both.convert("RGB")
        image.info["transparency"] = (0, 0, 0)
        return image
    return both.convert(kind)


@pytest.mark.parametrize("kind", ["RGBA", "RGBa", "palette", "palette, one index", "one colour"])
def test_transparency_is_over_white(tmp_path: Path, kind: str) -> None:
    image = see_through(kind)
    shown = [load_image(image)]
    if kind != "RGBa":
        image.save(tmp_path / "a.png")
        shown.append(load_image(tmp_path / "a.png"))
    for one in shown:
        assert [one.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), WHITE]


def test_half_transparent_grey_and_opaque_pictures(tmp_path: Path) -> None:
    grey = Image.new("LA", (2, 2), (0, 127))
    grey.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (128, 128, 128)
    whole = upright().convert("RGBA")
    assert off(load_image(whole), upright()) == 0


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_shown_as_they_are(mode: str) -> None:
    black_and_white = Image.new("RGB", (8, 4), "white")
    black_and_white.paste("black", (0, 0, 4, 4))
    assert off(load_image(black_and_white.convert(mode)), black_and_white) < 2


def test_a_colour_space_that_cannot_be_read(tmp_path: Path) -> None:
    Image.new("LAB", (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif is in the colour space LAB.*save it in RGB"):
        load_image(tmp_path / "a.tif")


# Frames


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_used_and_said_once(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [upright(), Image.new("RGB", (48, 32), "white")]
    path = tmp_path / f"moving.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING):
        assert off(load_image(path), upright()) < 8
        load_image(path)
    (said,) = caplog.messages
    assert path.name in said and "the first one" in said


def test_photos_with_a_preview_are_one_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    upright().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[upright().reduce(2)])
    Image.new("RGB", (4, 4)).save(tmp_path / "b.gif")
    with caplog.at_level(logging.WARNING):
        assert off(load_image(tmp_path / "a.jpg"), upright()) < 8
        load_image(tmp_path / "b.gif")
    assert not caplog.messages


# Refused


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_files_that_are_cut_short(tmp_path: Path, ending: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    path = tmp_path / f"cut.{ending}"
    noise.save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=rf"cut.{ending} is (a corrupt image .*save it anew|not an image)"):
            load_image(path)
        with pytest.raises(ImageError):
            decode_image(path)


def test_a_picture_that_pil_has_opened_and_cannot_decode(tmp_path: Path) -> None:
    Image.effect_noise((60, 40), 50).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-200])
    with Image.open(tmp_path / "cut.jpg") as opened, pytest.raises(ValueError, match="cut.jpg is a corrupt image"):
        load_image(opened)


def test_a_web_page_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("<!doctype html><html>404</html>")
    with pytest.raises(ValueError, match=r"photo.jpg is not an image in a known format; give a PNG or JPEG"):
        load_image(tmp_path / "photo.jpg")
    with pytest.raises(UnknownFormat):
        decode_image(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match=r"photo.jpg cannot be read as an image: it is not an image"):
        image_size(tmp_path / "photo.jpg")
    with pytest.raises(DamagedImage):
        decode_image(io.BytesIO(b"P6 9 9 255 few"))


def test_pictures_that_are_too_long_and_thin(tmp_path: Path) -> None:
    for number, size in enumerate([(3000, 4), (4, 3000), (201, 1)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size).save(path)
        for read in (load_image, image_size):
            with pytest.raises(ValueError, match=rf"{number}.png .*{size[0]} x {size[1]} pixels.*at most 200 times"):
                read(path)
        with pytest.raises(ValueError, match="at most 200 times"):
            load_image(np.zeros((size[1], size[0], 3), np.uint8))
    for size in [(200, 1), (3000, 15), (1, 1)]:
        assert load_image(Image.new("RGB", size)).size == size
    with pytest.raises(ValueError, match="the image has no pixels"):
        load_image(Image.new("RGB", (0, 5)))


def test_pictures_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (load_image, image_size):
        with pytest.raises(ValueError, match=r"a.png .*too large an image .*scale it down"):
            read(tmp_path / "a.png")
