from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perception.datasets.depth.files import DepthFormat
from perception.datasets.depth.tables import read_depth_table
from perception.datasets.store import Part
from perception.scenes.export import export_parquet
from perception.scenes.render import render_scenes
from perception.scenes.store import SceneStore
from train.data.depth import DepthStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five usable maps of three kinds of files and sizes, and five files that cannot be used."""
    maps = tmp_path / "maps"
    (maps / "deep").mkdir(parents=True)
    np.save(maps / "a.npy", np.full((20, 30), 2.0))
    np.save(
        maps / "deep" / "b.npy", np.stack([np.full((16, 16), 3.0), np.full((16, 16), np.nan), np.full((16, 16), 4.0)])
    )
    Image.fromarray(np.full((12, 10), 5000, np.uint16)).save(maps / "c.png")
    holed = np.full((32, 32), 6.0)
    holed[:, 16:] = 0
    np.save(maps / "d.npy", holed)
    np.save(maps / "x-words.npy", np.array(["a", "b"]))
    (maps / "x-cut.npy").write_bytes((maps / "a.npy").read_bytes()[:200])
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(maps / "x-colour.png")
    (maps / "x-empty.pfm").write_bytes(b"")
    return maps


def test_maps_of_all_kinds_are_read_and_what_cannot_be_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DepthStore.build(tmp_path / "store", folder, DepthFormat(), image_size=16)
    assert store.names == ("a.npy", "c.png", "d.npy", "deep/b.npy:0", "deep/b.npy:2")
    assert store.depth.shape == (5, 16, 16) and store.depth.dtype == np.float32
    assert [float(np.nanmean(m)) for m in store.depth] == pytest.approx([2, 5, 6, 3, 4])
    assert np.isnan(store.depth[2, :, 9:]).all() and not np.isnan(store.depth[2, :, :8]).any()
    assert set(store.skipped) == {"deep/b.npy:1", "x-colour.png", "x-cut.npy", "x-empty.pfm", "x-words.npy"}
    said = capsys.readouterr().err
    assert "left out: x-colour.png" in said and "5 depth maps of 8 file(s); left out: 5" in said
    again = DepthStore.build(tmp_path / "store", folder, DepthFormat(), image_size=16)
    assert again.names == store.names and again.skipped == store.skipped and not capsys.readouterr().err
    assert not (tmp_path / "store" / "parts").exists()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's, of the TIFF
def test_a_cut_picture_is_left_out_of_a_folder_and_of_a_table(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    noise = np.random.default_rng(0).integers(1000, 9000, (60, 80), dtype=np.uint16)
    for kind in ("files", "tables"):
        (tmp_path / kind).mkdir()
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "TIFF", compression="tiff_lzw")
    cut = buffer.getvalue()[:6000]  # Pillow raises IndexError
    (tmp_path / "files" / "cut.tif").write_bytes(cut)
    np.save(tmp_path / "files" / "good.npy", noise)
    parquet.write_table(
        pa.table({"depth": [cut, buffer.getvalue()], "name": ["cut", "good"]}), tmp_path / "tables" / "t.parquet"
    )
    for kind, good, bad in (("files", "good.npy", "cut.tif"), ("tables", "t.parquet:good", "t.parquet:cut")):
        store = DepthStore.build(tmp_path / f"store of {kind}", tmp_path / kind, DepthFormat(), 16)
        assert store.names == (good,) and set(store.skipped) == {bad}


def test_a_build_that_was_killed_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.data import depth as depth_store

    monkeypatch.setattr(depth_store, "FILES_PER_PART", 2)
    whole = DepthStore.build(tmp_path / "whole", folder, DepthFormat(), 16)
    read, done = depth_store._read_part, list[int]()

    def die_at_third(*arguments: Any) -> Part:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments[-1])
        return read(*arguments)

    def count(*arguments: Any) -> Part:
        done.append(arguments[-1])
        return read(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(depth_store, "_read_part", die_at_third)
        with pytest.raises(KeyboardInterrupt):
            DepthStore.build(tmp_path / "killed", folder, DepthFormat(), 16)
    with monkeypatch.context() as patch:
        patch.setattr(depth_store, "_read_part", count)
        resumed = DepthStore.build(tmp_path / "killed", folder, DepthFormat(), 16)
    assert len(done) == len(set(done)) == 4, "no part is read twice"
    assert resumed.names == whole.names and np.array_equal(resumed.depth, whole.depth, equal_nan=True)


def test_replaced_files_are_read_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = DepthStore.build(tmp_path / "store", folder, DepthFormat(), 16)
    capsys.readouterr()
    np.save(folder / "a.npy", np.full((20, 30), 7.0))  # of the same size
    again = DepthStore.build(tmp_path / "store", folder, DepthFormat(), 16)
    assert [float(one.depth[0].mean()) for one in (again, store)] == pytest.approx([7, 2]), (
        "the old map is whole where it is open"
    )
    assert (
        f"files were replaced since {tmp_path / 'store'} was made of them; it is made anew" in capsys.readouterr().err
    )
    with pytest.raises(ValueError, match="scale was None and is 2.0"):  # and nothing of it is removed
        np.save(folder / "a.npy", np.full((20, 30), 8.0))
        DepthStore.build(tmp_path / "store", folder, DepthFormat(scale=2.0), 16)
    assert float(DepthStore.build(tmp_path / "store", folder, DepthFormat(), 16).depth[0].mean()) == pytest.approx(8)
    # In an unfinished store
    from train.data import depth as depth_store

    monkeypatch.setattr(depth_store, "FILES_PER_PART", 2)
    read = depth_store._read_part

    def die(*arguments: Any) -> Part:
        if arguments[-1] == 1:
            raise KeyboardInterrupt
        return read(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(depth_store, "_read_part", die)
        DepthStore.build(tmp_path / "killed", folder, DepthFormat(), 16)
    np.save(folder / "a.npy", np.full((20, 30), 9.0))
    assert float(DepthStore.build(tmp_path / "killed", folder, DepthFormat(), 16).depth[0].mean()) == pytest.approx(9)


def test_a_source_without_usable_maps_is_an_error(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no depth file"):
        DepthStore.build(tmp_path / "store", empty, DepthFormat(), 16)
    with pytest.raises(ValueError, match="does not exist"):
        DepthStore.build(tmp_path / "store", tmp_path / "none", DepthFormat(), 16)
    (empty / "x.png").write_bytes((folder / "x-colour.png").read_bytes())
    with pytest.raises(ValueError, match=r"no usable depth map; 1 could not be used:\s+x.png: .*8 bits"):
        DepthStore.build(tmp_path / "store", empty, DepthFormat(), 16)
    np.save(empty / "good.npy", np.full((8, 8), 1.0))
    assert len(DepthStore.build(tmp_path / "store", empty, DepthFormat(), 16)) == 1, "mended, it goes on"


def test_a_store_of_other_maps_is_refused(folder: Path, tmp_path: Path) -> None:
    DepthStore.build(tmp_path / "store", folder, DepthFormat(), 16)
    with pytest.raises(ValueError, match=r"was begun with other settings: scale was None and is 2.0"):
        DepthStore.build(tmp_path / "store", folder, DepthFormat(scale=2.0), 16)
    SceneStore.build(tmp_path / "scenes", range(2), image_size=16, workers=1)
    with pytest.raises(ValueError, match="kind was 'scenes' and is 'depth maps'"):
        DepthStore.build(tmp_path / "scenes", folder, DepthFormat(), 16)


def test_exported_scenes_are_read_back(tmp_path: Path) -> None:
    export_parquet(tmp_path / "tables", range(5), image_size=24, rows_per_file=3)
    store = DepthStore.build(tmp_path / "store", tmp_path / "tables", DepthFormat(), image_size=24)
    assert len(store) == 5 and store.names[0] == "standard-24-000000000-000000002.parquet:0"
    torch.testing.assert_close(
        torch.from_numpy(np.array(store.depth)), render_scenes(range(5), "standard", 24).depth, rtol=1e-3, atol=0
    )


def test_tables_hold_numbers_rows_or_pictures_and_bad_rows_are_told(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    picture = io.BytesIO()
    Image.fromarray(np.full((4, 6), 2500, np.uint16)).save(picture, "PNG")
    image = {"bytes": picture.getvalue(), "path": None}
    flat = pa.table(
        {"depth": [[1.0] * 6, [1.0] * 5, None], "height": [2, 2, 2], "width": [3, 3, 3], "name": ["a", "b", "c"]}
    )
    parquet.write_table(flat, tmp_path / "flat.parquet")
    rows = dict(read_depth_table(tmp_path / "flat.parquet", DepthFormat()))
    assert rows["a"].shape == (2, 3)  # type: ignore[union-attr]
    assert "5 values of depth, with height 2 and width 3" in str(rows["b"]) and "no depth" in str(rows["c"])
    parquet.write_table(pa.table({"depth": [[[2.0, 4.0], [8.0, 0.0]]]}), tmp_path / "rows.parquet")
    ((name, depth),) = read_depth_table(tmp_path / "rows.parquet", DepthFormat(meaning="inverse", scale=8.0))
    assert name == ":0" and depth[:, 0].tolist() == [4.0, 1.0] and bool(depth[1, 1].isnan())  # type: ignore[index]
    parquet.write_table(
        pa.table({"depth_map": [image, {"bytes": b"no picture", "path": None}]}), tmp_path / "im.parquet"
    )
    good, bad = read_depth_table(tmp_path / "im.parquet", DepthFormat(key="depth_map"))
    assert good[1].shape == (4, 6) and float(good[1][0, 0]) == 2.5  # type: ignore[union-attr, index]
    assert isinstance(bad[1], ValueError)
    with pytest.raises(
        ValueError, match=r"im.parquet cannot be read.*no column 'depth' but depth_map; choose one by its key"
    ):
        list(read_depth_table(tmp_path / "im.parquet", DepthFormat()))
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "flat.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match="cut.parquet cannot be read as a table of depth maps"):
        list(read_depth_table(tmp_path / "cut.parquet", DepthFormat()))


def test_one_map_with_channels_is_one_row_and_the_folder_goes_on_after_a_giant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    ramp = np.linspace(1, 4, 600, dtype=np.float32).reshape(20, 30)
    np.save(maps / "a.npy", ramp[..., None])
    np.save(maps / "b.npy", ramp[..., None].repeat(3, -1))
    Image.fromarray(np.full((30, 30), 5000, np.uint16)).save(maps / "giant.png")
    np.save(maps / "z.npy", ramp)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    store = DepthStore.build(tmp_path / "store", maps, DepthFormat(), 16)
    assert store.names == ("a.npy", "b.npy", "z.npy") and set(store.skipped) == {"giant.png"}
    assert np.array_equal(store.depth[0], store.depth[2]) and np.array_equal(store.depth[1], store.depth[2])
    assert "left out: giant.png: " in (said := capsys.readouterr().err) and "Traceback" not in said


def test_a_wild_pixel_spoils_no_map(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    ramp = np.linspace(1, 4, 6000, dtype=np.float32).reshape(60, 100)
    np.save(maps / "clean.npy", ramp)
    ramp[30, 50] = 0.001
    np.save(maps / "wild.npy", ramp)
    store = DepthStore.build(tmp_path / "store", maps, DepthFormat(), 16)
    np.testing.assert_allclose(store.depth[1], store.depth[0], rtol=0.05)
    by_hand = DepthStore.build(tmp_path / "by-hand", maps, DepthFormat(), 16, range_percentile=0.0)
    assert by_hand.depth[1].min() < 0.5, "min-max was asked for"
    np.testing.assert_array_equal(by_hand.depth[0], store.depth[0])


def test_tables_hold_maps_with_channels_and_relative_zeros(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture = io.BytesIO()
    Image.fromarray(np.array([[0, 51], [102, 255]], np.uint8)).convert("RGB").save(picture, "PNG")
    parquet.write_table(pa.table({"depth": [picture.getvalue()]}), tmp_path / "grey.parquet")
    ((_, depth),) = read_depth_table(tmp_path / "grey.parquet", DepthFormat("inverse"))
    assert isinstance(depth, torch.Tensor) and depth.flatten().tolist() == pytest.approx(
        [1000 / 255, 1 / 51, 1 / 102, 1 / 255]
    )
    rows = np.linspace(1, 4, 6, dtype=np.float32).reshape(2, 3, 1)
    parquet.write_table(pa.table({"depth": [rows.tolist()]}), tmp_path / "rows.parquet")
    ((_, depth),) = read_depth_table(tmp_path / "rows.parquet", DepthFormat())
    assert isinstance(depth, torch.Tensor) and torch.equal(depth, torch.from_numpy(rows[..., 0]))


def test_tables_of_whole_numbers_take_presets(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    whole, part = [[1000, 65535], [2000, 3000]], [[1.0, None], [2.0, 3.0]]
    for name, rows in (("whole", whole), ("part", part)):
        parquet.write_table(pa.table({"depth": [rows]}), tmp_path / f"{name}.parquet")
    ((_, depth),) = read_depth_table(tmp_path / "whole.parquet", DepthFormat(preset="7-scenes"))
    assert isinstance(depth, torch.Tensor) and depth.nan_to_num(-1).flatten().tolist() == pytest.approx([1, -1, 2, 3])
    ((_, depth),) = read_depth_table(tmp_path / "whole.parquet", DepthFormat())
    assert isinstance(depth, torch.Tensor) and depth.flatten().tolist() == [1000, 65535, 2000, 3000]
    ((_, depth),) = read_depth_table(tmp_path / "part.parquet", DepthFormat(preset="7-scenes"))
    assert isinstance(depth, torch.Tensor) and depth.nan_to_num(-1).flatten().tolist() == [1, -1, 2, 3]
