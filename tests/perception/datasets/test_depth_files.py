"""Depth maps from every kind of file, to codes in every kind of file, and back."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from perception.cli import app
from perception.datasets.depth.code_files import DepthCodes, join_files
from perception.datasets.depth.files import DepthFormat, depth_files, read_depth
from perception.datasets.depth.jobs import detokenize, tokenize
from perception.datasets.depth.tables import table_files
from vqvae import VQVAE, VQVAEConfig

DEPTH = np.linspace(1, 4, 12 * 20, dtype=np.float32).reshape(12, 20)
ENDINGS = ("npy", "npz", "png", "tif", "pfm", "exr", "h5", "mat")


def write(path: Path, depth: np.ndarray) -> Path:
    """Depth in metres by the ending's own custom."""
    if path.suffix == ".npy":
        np.save(path, depth)
    elif path.suffix == ".npz":
        np.savez(path, rgb=np.zeros(3), depth=depth)
    elif path.suffix in (".png", ".tif"):
        Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(path)
    elif path.suffix == ".pfm":
        path.write_bytes(b"Pf\n%d %d\n-1.0\n" % depth.shape[::-1] + depth[::-1].astype("<f4").tobytes())
    elif path.suffix == ".exr":
        openexr = pytest.importorskip("OpenEXR")
        header = {"compression": openexr.ZIP_COMPRESSION, "type": openexr.scanlineimage}
        openexr.File(header, {"Z": np.ascontiguousarray(depth)}).write(str(path))
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["depths"] = depth.T if path.suffix == ".mat" else depth
    return path


def model_of(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)).eval()


@pytest.fixture(scope="module")
def model() -> VQVAE:
    return model_of()


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_kind_of_file_holds_the_same_depth(ending: str, tmp_path: Path) -> None:
    ((suffix, depth),) = read_depth(write(tmp_path / f"d.{ending}", DEPTH))
    assert suffix == "" and depth.dtype == torch.float32
    torch.testing.assert_close(depth, torch.from_numpy(DEPTH), atol=5.1e-4, rtol=0)


def test_many_maps_in_one_file_disparity_and_units(tmp_path: Path) -> None:
    file = write(tmp_path / "d.npy", np.stack([DEPTH, 2 * DEPTH]))
    assert [suffix for suffix, _ in read_depth(file)] == [":0", ":1"]
    disparity = np.where(DEPTH > 2, 10 / DEPTH, 0)
    ((_, depth),) = read_depth(write(tmp_path / "e.npy", disparity), DepthFormat("inverse", scale=10.0))
    assert torch.equal(depth.isnan(), torch.from_numpy(DEPTH <= 2))
    torch.testing.assert_close(depth[depth.isfinite()], torch.from_numpy(DEPTH[DEPTH > 2]))


def test_grey_pictures_of_eight_bits_hold_nearness_alone(tmp_path: Path) -> None:
    """As Depth Anything writes its maps: 255 is nearest, and 0 the farthest, lifted so that it has an inverse."""
    file = tmp_path / "relative.png"
    Image.fromarray(np.array([[0, 51, 255]], np.uint8)).save(file)
    ((_, depth),) = read_depth(file, DepthFormat("inverse"))
    assert depth[0].tolist() == pytest.approx([1000 / 255, 1 / 51, 1 / 255])
    with pytest.raises(ValueError, match=r"relative\.png is a picture of mode L; .* meaning 'inverse' reads"):
        list(read_depth(file))


def broken(path: Path) -> Path:
    path.write_bytes(write(path, DEPTH).read_bytes()[:60])
    return path


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, of the TIFF
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_cut_short_is_named(ending: str, tmp_path: Path) -> None:
    file = broken(tmp_path / f"d.{ending}")
    with pytest.raises(ValueError, match=rf"d\.{ending} cannot be read as depth .*fetch or write it again"):
        list(read_depth(file))


def damaged(folder: Path) -> list[str]:
    """Names of cut files whose readers raise IndexError, TypeError and MatReadError."""
    pytest.importorskip("scipy")
    picture = Image.fromarray(np.random.default_rng(0).integers(1000, 9000, (60, 80), dtype=np.uint16))
    picture.save(folder / "one.tif", compression="tiff_lzw")
    picture.save(folder / "pages.tif", compression="tiff_lzw", save_all=True, append_images=[picture, picture])
    for name in ("one.tif", "pages.tif"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "empty.mat").write_bytes(b"")
    return ["empty.mat", "one.tif", "pages.tif"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, of the TIFF
def test_skip_bad_leaves_out_files_whatever_their_readers_raise(tmp_path: Path, model: VQVAE) -> None:
    names = damaged(tmp_path)
    write(tmp_path / "good.npy", DEPTH)
    codes = tokenize(tmp_path, tmp_path / "codes.npy", model, skip_bad=True)
    assert codes.names == ("good.npy",)
    listed = [json.loads(line) for line in (tmp_path / "codes.skipped.jsonl").read_text().splitlines()]
    assert [line["map"] for line in listed] == names
    assert all("cannot be read as depth" in line["reason"] for line in listed)


def test_what_is_no_depth_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    np.savez(tmp_path / "two.npz", a=DEPTH, b=DEPTH)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name, said in (("photo.png", "mode RGB"), ("two.npz", "holds a, b"), ("words.npy", r"<U1 of shape \(1,\)")):
        with pytest.raises(ValueError, match=said):
            list(read_depth(tmp_path / name))
    with pytest.raises(ValueError, match=r"unknown ending '.jpg'; known: .*\.exr"):
        list(read_depth(tmp_path / "a.jpg"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no depth file"):
        depth_files(tmp_path / "empty")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five maps of two sizes in nested folders."""
    source = tmp_path / "maps"
    (source / "b").mkdir(parents=True)
    write(source / "a.png", DEPTH)
    write(source / "b" / "a.png", DEPTH[::-1])
    write(source / "many.npy", np.random.default_rng(0).uniform(1, 5, (3, 9, 7)).astype(np.float32))
    return source


@pytest.mark.parametrize("ending", ["parquet", "npy", "txt"])
def test_codes_survive_their_file_and_decode_to_size_and_unit(
    ending: str, folder: Path, tmp_path: Path, model: VQVAE
) -> None:
    out = tmp_path / f"codes.{ending}"
    made = tokenize(folder, out, model, batch_size=2)
    read = DepthCodes.read(out)
    assert made.names == read.names == ("a.png", "b/a.png", "many.npy:0", "many.npy:1", "many.npy:2")
    assert np.array_equal(made.codes, read.codes) and np.array_equal(made.ranges, read.ranges)
    assert read.codes[0].tolist() == model.encode(torch.from_numpy(np.round(DEPTH, 3))[None]).flatten().tolist()
    written = detokenize(read, tmp_path / "back", model)
    assert [p.relative_to(tmp_path / "back").as_posix() for p in written][1:3] == ["b/a.png.npy", "many.npy-0.npy"]
    first = np.load(written[0])
    assert first.shape == DEPTH.shape and 0.99 <= first.min() <= first.max() <= 4.01
    assert np.load(written[2]).shape == (9, 7)
    pictures = detokenize(read, tmp_path / "back", model, "color")
    assert Image.open(pictures[0]).size == (20, 12)
    ((_, again),) = read_depth(detokenize(read, tmp_path / "back", model, "png")[0])
    np.testing.assert_allclose(again, first, atol=5.1e-4)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that jobs read, in parts of one file each."""
    found: list[str] = []

    def reading(path: Path, meant: DepthFormat) -> Iterator[tuple[str, torch.Tensor]]:
        found.append(path.name)
        return read_depth(path, meant)

    monkeypatch.setattr("perception.datasets.depth.jobs.read_depth", reading)
    monkeypatch.setattr("perception.datasets.depth.jobs.FILES_PER_PART", 1)
    return found


def stopped(folder: Path, out: Path, model: VQVAE, reads: list[str]) -> Path:
    """A job that a bad file, the last of four, has stopped; returns that file."""
    bad = write(folder / "many2.npy", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"many2\.npy holds no valid depth .*--skip-bad"):
        tokenize(folder, out, model)
    assert not out.exists() and len(list(out.parent.glob(f"{out.name}.parts/part-*"))) == 3
    reads.clear()
    return bad


@pytest.mark.parametrize("mended", ["removed", "corrected", "skipped", "by key"])
def test_a_job_stopped_by_a_bad_file_goes_on_where_it_was(
    mended: str, folder: Path, tmp_path: Path, model: VQVAE, reads: list[str]
) -> None:
    out = tmp_path / "codes.npy"
    bad = stopped(folder, out, model, reads)
    count, meant, last = 5, DepthFormat(), [bad.name]
    if mended == "removed":
        bad.unlink()
        last = []
    elif mended == "corrected":
        write(bad, DEPTH)
        count = 6
    elif mended == "by key":
        bad.unlink()
        np.savez(folder / "z.npz", z=DEPTH, other=DEPTH)
        count, meant, last = 6, DepthFormat(key="z"), ["z.npz"]
    codes = tokenize(folder, out, model, meant, skip_bad=mended == "skipped")
    assert len(codes.names) == count and reads == last, "what was finished is not read again"
    assert not out.with_name("codes.npy.parts").exists()
    whole = tokenize(folder, tmp_path / "w.npy", model, meant, skip_bad=True)
    assert codes.names == whole.names and np.array_equal(codes.codes, whole.codes)


def test_other_settings_and_replaced_or_damaged_files_are_made_anew(
    folder: Path, tmp_path: Path, model: VQVAE, reads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "codes.npy"
    stopped(folder, out, model, reads).unlink()
    write(folder / "a.png", DEPTH + 5)  # replaced, at the same size
    part = next(p for p in out.with_name("codes.npy.parts").glob("part-*") if b"many.npy" in p.read_bytes())
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 255
    part.write_bytes(data)
    codes = tokenize(folder, out, model)
    assert sorted(reads) == ["a.png", "many.npy"]
    said = capsys.readouterr().err
    assert f"{part.name} is damaged" in said and "1 finished files were replaced" in said and "a.png" in said
    assert codes.ranges[0, 1] == pytest.approx(9, abs=0.01)
    stopped(folder, tmp_path / "scaled.npy", model, reads).unlink()
    scaled = tokenize(folder, tmp_path / "scaled.npy", model, DepthFormat(scale=0.002))
    assert len(reads) == 3 and scaled.ranges[0, 1] == pytest.approx(18, abs=0.02), "no part of another scale is joined"


def test_bad_files_are_skipped_and_listed(folder: Path, tmp_path: Path, model: VQVAE) -> None:
    (folder / "b" / "cut.png").write_bytes(b"\x89PNG")
    maps = np.stack([DEPTH, np.zeros_like(DEPTH), DEPTH])
    write(folder / "part.npy", maps)
    out = tmp_path / "codes.parquet"
    codes = tokenize(folder, out, model, skip_bad=True)
    assert codes.names[-2:] == ("part.npy:0", "part.npy:2") and len(codes.names) == 7
    listed = [json.loads(line) for line in (tmp_path / "codes.skipped.jsonl").read_text().splitlines()]
    assert [line["map"] for line in listed] == ["b/cut.png", "part.npy:1"]
    assert "cannot be read" in listed[0]["reason"] and "no valid depth" in listed[1]["reason"]
    (folder / "b" / "cut.png").unlink()
    (folder / "part.npy").unlink()
    tokenize(folder, out, model, skip_bad=True)
    assert not (tmp_path / "codes.skipped.jsonl").exists()
    (tmp_path / "bad").mkdir()
    write(tmp_path / "bad" / "a.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="none of the 1 files can be used; the first is a.npy: holds no valid depth"):
        tokenize(tmp_path / "bad", tmp_path / "x.npy", model, skip_bad=True)


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_a_job_does_not_read_what_jobs_wrote_into_its_source(
    ending: str, folder: Path, model: VQVAE, reads: list[str]
) -> None:
    stopped(folder, folder / f"a_codes.{ending}", model, reads).unlink()
    first = tokenize(folder, folder / f"a_codes.{ending}", model)
    other = tokenize(folder, folder / "b" / "codes.npy", model)
    again = tokenize(folder, folder / f"a_codes.{ending}", model)
    assert first.names == other.names == again.names and len(first.names) == 5
    assert table_files(folder) == []
    assert tokenize(folder, folder / "c.npy", model, glob="*.png").names == ("a.png", "b/a.png")


def test_a_numpy_file_and_its_sidecar_are_written_together(
    folder: Path, tmp_path: Path, model: VQVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "codes.npy"
    codes = tokenize(folder, out, model)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    fewer, write_bytes = codes.take([0, 2]), Path.write_bytes

    def fills_up(path: Path, data: bytes) -> int:
        if "codes.npy" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", fills_up)
        with pytest.raises(OSError, match=r"codes\.npy could not be written: the disk is full .*; free space"):
            fewer.write(out)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    fewer.write(tmp_path / "fewer.npy")
    (tmp_path / "fewer.json").replace(tmp_path / "codes.json")  # as after a kill between the two
    with pytest.raises(ValueError, match=r"codes\.json belongs to other codes"):
        DepthCodes.read(out)
    (tmp_path / "mine.json").write_text('{"camera": 1}')
    with pytest.raises(ValueError, match=r"mine\.json is there and belongs to no codes"):
        codes.write(tmp_path / "mine.npy")
    assert (tmp_path / "mine.json").read_text() == '{"camera": 1}'


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o.npy", r"o\.json is there and belongs to no codes; give another name"),
        ("o.parquet", r"o\.parquet needs the package pyarrow: pip install pyarrow; or end it in \.npy"),
        ("o.txt", r"o\.txt is a folder; give the name of a file"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(
    name: str, said: str, folder: Path, tmp_path: Path, model: VQVAE, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(folder, tmp_path / "good.npy", model)
    codes = DepthCodes.read(tmp_path / "good.npy")
    codes.write(tmp_path / "read.parquet")
    reads.clear()
    (tmp_path / "o.json").write_text('{"camera": 1}')
    (tmp_path / "o.txt").mkdir()
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it was not installed
    for work in (
        lambda: tokenize(folder, tmp_path / name, model),
        lambda: join_files([tmp_path / "gone.npy"], tmp_path / name),
        lambda: codes.write(tmp_path / name),
    ):
        with pytest.raises(ValueError, match=said):
            work()
    assert not reads and (tmp_path / "o.json").read_text() == '{"camera": 1}'
    with pytest.raises(ValueError, match=r"read\.parquet needs the package pyarrow: pip install pyarrow"):
        DepthCodes.read(tmp_path / "read.parquet")


def test_ctrl_c_ends_a_job_in_one_line_and_keeps_its_parts(
    folder: Path, tmp_path: Path, model: VQVAE, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "tokenizer")
    arguments = ["tokenize", str(folder), "-o", str(tmp_path / "c.npy"), "-t", str(tmp_path / "tokenizer")]

    def stop(path: Path, meant: DepthFormat) -> Iterator[tuple[str, torch.Tensor]]:
        if path.name == "many.npy":
            raise KeyboardInterrupt
        return read_depth(path, meant)

    with monkeypatch.context() as patch:
        patch.setattr("perception.datasets.depth.jobs.read_depth", stop)
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 130 and len(result.stderr.strip().splitlines()) == 1
    assert "stopped; what is finished is kept, and the same command goes on from there" in result.stderr
    assert CliRunner().invoke(app, arguments).exit_code == 0 and reads == ["many.npy"]


def test_shards_make_up_the_whole(folder: Path, tmp_path: Path, model: VQVAE) -> None:
    whole = tokenize(folder, tmp_path / "w.txt", model)
    shards = [tokenize(folder, tmp_path / f"{i}.txt", model, shard=(i, 2)) for i in range(2)]
    assert sorted(whole.names) == sorted(name for shard in shards for name in shard.names)
    joined = join_files([tmp_path / "1.txt", tmp_path / "0.txt"], tmp_path / "j.parquet")
    assert joined.names == whole.names and np.array_equal(joined.codes, whole.codes)
    assert np.array_equal(DepthCodes.read(tmp_path / "j.parquet").ranges, whole.ranges)
    with pytest.raises(ValueError, match=r"a\.png is in two of the parts"):
        join_files([tmp_path / "0.txt", tmp_path / "0.txt"], tmp_path / "j.txt")
    (tmp_path / "0.txt").rename(tmp_path / "c-00000-of-00003.txt")
    with pytest.raises(ValueError, match="the shard 00001-of-00003 is missing"):
        join_files([tmp_path / "c-00000-of-00003.txt"], tmp_path / "j.txt")
    for other in ("d-00001-of-00002.txt", "c-00001-of-00004.txt"):
        with pytest.raises(ValueError, match=f"c-00000-of-00002.txt and {other} are shards of different jobs"):
            join_files([tmp_path / "c-00000-of-00002.txt", tmp_path / other], tmp_path / "j.txt")
    with pytest.raises(ValueError, match="make fewer shards"):
        tokenize(folder, tmp_path / "x.txt", model, shard=(7, 8))


def test_codes_of_another_tokenizer_and_broken_files_of_codes_are_refused(
    folder: Path, tmp_path: Path, model: VQVAE
) -> None:
    codes = tokenize(folder, tmp_path / "c.txt", model)
    with pytest.raises(ValueError, match="decode with the one that made them"):
        detokenize(codes, tmp_path / "back", model_of(1))
    assert not (tmp_path / "back").exists()
    with pytest.raises(ValueError, match=r"codes must lie in 0\.\.7, got 0\.\.8"):
        replace(codes, codes=np.where(codes.codes == codes.codes.max(), 8, 0))
    for ending in ("parquet", "npy", "txt"):
        path = tmp_path / f"d.{ending}"
        codes.write(path)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(ValueError, match=rf"d\.{ending} is not a complete file of depth codes"):
            DepthCodes.read(path)
        with pytest.raises(ValueError, match=r"gone.* does not exist; write it with `perception tokenize`"):
            DepthCodes.read(tmp_path / f"gone.{ending}")
    with pytest.raises(ValueError, match="files of codes end in .npy, .parquet, .txt"):
        codes.write(tmp_path / "c.csv")


def test_the_command_line_goes_there_and_back(folder: Path, tmp_path: Path, model: VQVAE) -> None:
    model.save_pretrained(tmp_path / "tokenizer")
    chosen = ["--tokenizer", str(tmp_path / "tokenizer")]

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(app, [*map(str, arguments), *chosen], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "4 maps of 4 codes" in run("tokenize", folder, "--out", tmp_path / "c.npy", "--shard", "0/2")
    assert "1 maps of 4 codes" in run("tokenize", folder, "-o", tmp_path / "c.npy", "--shard", "1/2")
    joined = ["join", *map(str, sorted(tmp_path.glob("c-*.npy"))), "-o", str(tmp_path / "joined.npy")]
    assert "5 maps of 4 codes" in CliRunner().invoke(app, joined, catch_exceptions=False).stdout
    for file in tmp_path.glob("c-00001-of-00002.*"):
        file.unlink()
    made = sorted(path.name for path in tmp_path.glob("c-*"))
    assert made == ["c-00000-of-00002.json", "c-00000-of-00002.npy"]
    said = run("detokenize", tmp_path / "c-00000-of-00002.npy", "--out", tmp_path / "back", "--format", "png")
    assert "maps: " in said and (tmp_path / "back" / "a.png.png").exists()
    with pytest.raises(ValueError, match="--shard must read i/n, such as 0/4, got '1'"):
        CliRunner().invoke(app, ["tokenize", str(folder), "-o", "c.npy", "--shard", "1"], catch_exceptions=False)


def test_a_tokenizer_of_masks_encodes_no_depth(folder: Path, tmp_path: Path) -> None:
    command = ["tokenize", str(folder), "-o", str(tmp_path / "c.npy"), "-t", "masks-scenes-16"]
    with pytest.raises(ValueError, match="is a tokenizer of masks, .* give one of depth, such as depth-scenes-100"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "c.npy").exists()


@pytest.mark.slow
def test_the_command_line_decodes_by_diffusion(folder: Path, tmp_path: Path, model: VQVAE) -> None:
    pytest.importorskip("diffusers")
    from vqvae.diffusion import DiffusionDecoder, DiffusionDecoderConfig

    model.save_pretrained(tmp_path / "tokenizer")
    model = VQVAE.from_pretrained(tmp_path / "tokenizer")
    config = DiffusionDecoderConfig(model.fingerprint(), image_size=32, channels=(16,))
    DiffusionDecoder(model, config).save_pretrained(tmp_path / "diffusion")
    chosen = ["--tokenizer", str(tmp_path / "tokenizer")]

    def run(*arguments: object) -> None:
        result = CliRunner().invoke(app, [*map(str, arguments), *chosen], catch_exceptions=False)
        assert result.exit_code == 0, result.output

    run("tokenize", folder / "a.png", "--out", tmp_path / "c.npy")
    for name, options in {
        "plain": [],
        "first": ["--diffusion", tmp_path / "diffusion", "--steps", 2, "--seed", 3],
        "again": ["--diffusion", tmp_path / "diffusion", "--steps", 2, "--seed", 3],
        "other": ["--diffusion", tmp_path / "diffusion", "--steps", 2, "--seed", 4],
    }.items():
        run("detokenize", tmp_path / "c.npy", "--out", tmp_path / name, *options)
    plain, first, again, other = (
        np.load(tmp_path / name / "a.png.npy") for name in ("plain", "first", "again", "other")
    )
    assert plain.shape == first.shape and np.array_equal(first, again)
    assert not np.array_equal(first, plain) and not np.array_equal(first, other)
