"""Depth questions from images with depth maps, whatever layout they come in."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare

from perception import chains
from perception.answers import POINT_LETTERS
from perception.datasets.depth.code_files import DepthCodes
from perception.datasets.depth.files import DepthFormat
from perception.datasets.depth.pairs import find_pairs, read_pairs
from perception.datasets.depth.questions import (
    FULL_SIZE,
    MIN_PIXELS,
    DepthRules,
    LetterDeck,
    PointChooser,
    min_spacing,
    read_depth_pairs,
    relative_depth,
)
from perception.datasets.records import RecordSet
from perception.scenes.markers import MIN_GAP, disc_radius, draw_markers
from vqvae import VQVAE, VQVAEConfig


@pytest.fixture(scope="module")
def model() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(image_size=16, downsample=8, codebook_size=8, codebook_dim=4, channels=8)).eval()


def steps(seed: int, height: int = 90, width: int = 120) -> np.ndarray:
    """A wall of 3 x 4 flat tiles, each at a depth of its own between 1 and 5 m."""
    rng = np.random.default_rng(seed)
    tiles = 1 / np.linspace(1, 0.2, 12)[rng.permutation(12)].reshape(3, 4)
    return np.kron(tiles, np.ones((height // 3, width // 4))).astype(np.float32)


def save_pair(root: Path, name: str, depth: np.ndarray, scale: int = 2) -> None:
    """depth/NAME.png in millimetres, and images/NAME.jpg at `scale` times its resolution."""
    for kind in ("depth", "images"):
        (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(root / "depth" / f"{name}.png")
    size = (depth.shape[1] * scale, depth.shape[0] * scale)
    Image.new("RGB", size, (90, 120, 150)).save(root / "images" / f"{name}.jpg")


def records_of(root: Path, model: VQVAE, **rules: int) -> RecordSet:
    images = root / "images"
    codes = root / "codes.parquet"
    return read_depth_pairs(root / "depth", images, codes, model, 100, DepthFormat(), DepthRules(**rules))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ade")
    for seed in range(12):
        depth = steps(seed)
        depth[:25, :40] = 0  # a hole
        save_pair(root, f"{'train' if seed % 2 else 'test'}/{seed}", depth)
    return root


@pytest.fixture(scope="module")
def made(folder: Path, model: VQVAE) -> RecordSet:
    return records_of(folder, model, questions_per_image=20)


@pytest.mark.slow
def test_every_task_is_made_and_right_by_the_depth_map(folder: Path, made: RecordSet) -> None:
    tasks = Counter(record.example.task for record in made.records)
    assert tasks[chains.DIRECT_DEPTH] == tasks[chains.ATOMIC_POINTS] == 12 * 20
    assert tasks[chains.ATOMIC_DEPTH] == 24 and tasks[chains.CHAIN_DEPTH] > 0
    for record in made.records:
        if record.example.task != chains.DIRECT_DEPTH:
            continue
        name = record.image.path.relative_to(folder / "images").with_suffix(".png")
        depth = np.asarray(Image.open(folder / "depth" / name)) / 1000
        at = [depth[int(y * 90), int(x * 120)] for x, y in record.marks]
        assert min(at) > 0 and record.example.answer == POINT_LETTERS[int(np.argmin(at))]
        near = relative_depth(torch.from_numpy(depth).float()).numpy()
        values = np.sort([near[int(y * 90), int(x * 120)] for x, y in record.marks])
        assert np.diff(values).min() >= MIN_GAP
        pixels = np.array(record.marks) * (240, 180)
        apart = np.linalg.norm(pixels[:, None] - pixels[None], axis=-1)[np.triu_indices(len(pixels), 1)]
        assert apart.min() >= min_spacing(180, 240) - 0.01
        assert 2 <= len(at) <= 5


@pytest.mark.slow
def test_letters_are_right_equally_often(made: RecordSet) -> None:
    """Exactly, but for the last hand of each deck; and no chi-square test finds a difference."""
    for task in (chains.DIRECT_DEPTH, chains.CHAIN_DEPTH):
        for count in range(2, 6):
            found = [r.example.answer for r in made.records if r.example.task == task and len(r.marks) == count]
            times = [found.count(letter) for letter in POINT_LETTERS[:count]]
            decks = 2 if task == chains.DIRECT_DEPTH else 1
            assert found and max(times) - min(times) <= decks
            assert sum(times) == len(found) and chisquare(times).pvalue > 0.9 - 0.9 * (sum(times) < 20)


def test_a_deck_deals_every_letter_before_any_again() -> None:
    deck = LetterDeck(np.random.default_rng(0))
    drawn = [deck.draw("key", 4) for _ in range(400)]
    assert all(sorted(drawn[i : i + 4]) == [0, 1, 2, 3] for i in range(0, 400, 4))
    assert len({tuple(drawn[i : i + 4]) for i in range(0, 400, 4)}) > 10


def test_chains_agree_with_their_own_map(made: RecordSet, model: VQVAE) -> None:
    found = [r for r in made.records if r.example.task == chains.CHAIN_DEPTH]
    for record in found:
        depth, *rest = record.example.target
        letters, places, said = rest[0:-1:2], rest[1::2], rest[2::2]
        assert len(depth.codes) == 4 and [len(place.codes) for place in places] == [2] * len(record.marks)
        readings = [int(text.split(",")[0]) for text in said]
        assert [text.split()[-1] for text in letters] == list(POINT_LETTERS[: len(readings)])
        assert record.example.answer == POINT_LETTERS[int(np.argmax(readings))]
        assert said[-1].endswith(f"so {record.example.answer}.")
        assert record.tokenizer == model.fingerprint()


@pytest.mark.slow
def test_questions_depend_on_the_seed_alone(folder: Path, made: RecordSet, model: VQVAE, tmp_path: Path) -> None:
    assert records_of(folder, model, questions_per_image=20) == made
    assert records_of(folder, model, questions_per_image=20, seed=1) != made
    made.write(tmp_path / "made.jsonl")
    assert RecordSet.read(tmp_path / "made.jsonl") == made


def test_markers_keep_their_distance_on_images_large_and_small() -> None:
    assert min_spacing(1000, 1500) >= MIN_PIXELS and min_spacing(FULL_SIZE, FULL_SIZE) >= MIN_PIXELS
    assert min_spacing(80, 80) < MIN_PIXELS and min_spacing(80, 80) > 2 * disc_radius(80, 80)


def test_holes_and_edges_have_no_markers() -> None:
    depth = torch.from_numpy(steps(0))
    depth[:, :60] = torch.nan
    depth[50:] = 0
    chooser = PointChooser(depth, (180, 240))
    assert len(chooser.points) and chooser.points[:, 0].min() > 0.5 + 2 / 120 and chooser.points[:, 1].max() < 48 / 90
    rng = np.random.default_rng(0)
    assert PointChooser(torch.ones(90, 120), (180, 240)).draw(2, rng) is None
    assert PointChooser(torch.full((90, 120), torch.nan), (180, 240)).draw(2, rng) is None


def test_a_map_without_room_is_drawn_and_named(tmp_path: Path, model: VQVAE) -> None:
    save_pair(tmp_path, "flat", np.full((90, 120), 2, np.float32))
    made = records_of(tmp_path, model)
    assert [record.example.task for record in made.records] == [chains.ATOMIC_DEPTH]
    assert made.skipped == ("flat.png, map 0: no room for two points, so nothing but its map is drawn",)


def test_codes_are_made_anew_where_a_depth_file_was_replaced(
    tmp_path: Path, model: VQVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pair(tmp_path, "a", steps(0))
    save_pair(tmp_path, "b", steps(1))
    first = records_of(tmp_path, model)
    written = (tmp_path / "codes.parquet").stat().st_mtime_ns
    assert records_of(tmp_path, model) == first and (tmp_path / "codes.parquet").stat().st_mtime_ns == written
    assert not capsys.readouterr().err
    save_pair(tmp_path, "a", steps(2))
    second = records_of(tmp_path, model)
    assert second != first and "depth were replaced, added or removed since" in " ".join(
        capsys.readouterr().err.split()
    )
    save_pair(tmp_path / "fresh", "a", steps(2))
    save_pair(tmp_path / "fresh", "b", steps(1))
    fresh = records_of(tmp_path / "fresh", model)
    assert [record.example for record in second.records] == [record.example for record in fresh.records]
    save_pair(tmp_path, "c", steps(3))
    assert len({record.image for record in records_of(tmp_path, model).records}) == 3
    codes = DepthCodes.read(tmp_path / "codes.parquet")
    replace(codes, sources=None).write(tmp_path / "codes.parquet")  # of an older version, or joined from shards
    save_pair(tmp_path, "c", steps(4))
    assert records_of(tmp_path, model) and DepthCodes.read(tmp_path / "codes.parquet").sources is None


def test_markers_are_drawn_on_images_of_any_shape() -> None:
    for height, width in ((90, 300), (300, 90)):
        drawn = draw_markers(torch.full((height, width, 3), 200, dtype=torch.uint8), np.array([[0.5, 0.5]]))
        rows, columns = (drawn == 20).all(-1).nonzero().unbind(1)
        size = 2 * disc_radius(height, width)
        assert size - 2 <= int(rows.max() - rows.min()) + 1 <= size + 2
        assert size - 2 <= int(columns.max() - columns.min()) + 1 <= size + 2


def test_nyu_holds_images_and_depth_in_one_file(tmp_path: Path, model: VQVAE) -> None:
    h5py = pytest.importorskip("h5py")
    depth = np.stack([steps(0), steps(1)])  # (N, H, W)
    image = np.zeros((2, 90, 120, 3), np.uint8)
    image[1, 10, 20] = (1, 2, 3)
    with h5py.File(tmp_path / "nyu.mat", "w") as file:  # MATLAB's columns first
        file["depths"], file["images"] = depth.transpose(0, 2, 1), image.transpose(0, 3, 2, 1)
        file["labels"] = np.zeros((2, 120, 90), np.uint16)
    made = read_depth_pairs(tmp_path / "nyu.mat", None, tmp_path / "codes.parquet", model, 100)
    assert {str(record.image)[-9:] for record in made.records} == {"nyu.mat:0", "nyu.mat:1"}
    second = made.records[-1].image
    assert second.size() == (90, 120) and second.load().getpixel((20, 10)) == (1, 2, 3)
    with h5py.File(tmp_path / "frame.h5", "w") as file:  # one frame a file, rows first
        file["depth"], file["rgb"] = depth[1], image[1].transpose(2, 0, 1)
    ((pair, read),) = read_pairs(find_pairs(tmp_path / "frame.h5"))
    assert pair.image.load().getpixel((20, 10)) == (1, 2, 3) and read.shape == (90, 120)


def test_bad_pairs_are_named(tmp_path: Path, model: VQVAE) -> None:
    save_pair(tmp_path, "a", steps(0))
    save_pair(tmp_path, "b_depth", steps(0))
    (tmp_path / "images" / "b_depth.jpg").rename(tmp_path / "images" / "b_rgb.jpg")
    assert [pair.image.path.name for pair in find_pairs(tmp_path / "depth", tmp_path / "images")] == [
        "a.jpg",
        "b_rgb.jpg",
    ]
    (tmp_path / "images" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 depth maps .* the first is a\.png; put .*a\.jpg there"):
        find_pairs(tmp_path / "depth", tmp_path / "images")
    Image.new("RGB", (100, 180)).save(tmp_path / "images" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is 120 x 90 and its image .* 100 x 180 pixels; a depth map must"):
        records_of(tmp_path, model)
    (tmp_path / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"images/a\.png cannot be read as an image"):
        records_of(tmp_path, model)
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.jpg")
    with pytest.raises(ValueError, match="go by one name"):
        find_pairs(tmp_path / "depth", tmp_path / "images")
    with pytest.raises(ValueError, match="holds depth alone; name the folder of its image"):
        find_pairs(tmp_path / "depth")
    with pytest.raises(ValueError, match="questions_per_image must be at least 1, got 0"):
        DepthRules(questions_per_image=0)


def test_maps_that_cannot_be_used_are_named_and_the_others_are_read(tmp_path: Path, model: VQVAE) -> None:
    for name in ("a", "empty", "alone", "wide", "many"):
        save_pair(tmp_path, name, steps(0))
    depth = tmp_path / "depth"
    for name, values in (("empty", np.zeros((90, 120))), ("wide", steps(0, 60)), ("many", np.stack([steps(0)] * 2))):
        (depth / f"{name}.png").unlink()
        np.save(depth / f"{name}.npy", values.astype(np.float32))
    (tmp_path / "images" / "alone.jpg").unlink()
    codes, images = tmp_path / "codes.parquet", tmp_path / "images"
    for _ in range(2):  # the second time, the codes are read
        made = read_depth_pairs(depth, images, codes, model, 100, skip_bad=True)
        assert {record.source for record in made.records} == {"a.png, map 0"}
        wanted = (
            "alone.png has no image",
            "empty.npy: holds no valid",
            "many.npy holds several",
            "wide.npy is 120 x 60",
        )
        assert len(made.skipped) == 4
        assert all(sum(said in line for line in made.skipped) == 1 for said in wanted), made.skipped
    (images / "a.jpg").rename(images / "other.jpg")
    for name in ("empty", "wide", "many"):
        (images / f"{name}.jpg").unlink()
    with pytest.raises(ValueError, match="5 of 5 depth maps .* have no image"):
        read_depth_pairs(depth, images, codes, model, 100, skip_bad=True)


def test_codes_are_made_anew_where_the_numbers_are_declared_otherwise(
    tmp_path: Path, model: VQVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "depth").mkdir()
    save_pair(tmp_path, "a", steps(0))
    (tmp_path / "depth" / "a.png").unlink()
    np.save(tmp_path / "depth" / "a_disparity.npy", (1 / steps(0)).astype(np.float32))

    def nearest(meant: DepthFormat) -> set[bool]:
        """Whether the right answer is the nearest point, over all questions."""
        codes, images = tmp_path / "codes.parquet", tmp_path / "images"
        made = read_depth_pairs(tmp_path / "depth", images, codes, model, 100, meant)
        right = set()
        for record in (one for one in made.records if one.example.task == chains.DIRECT_DEPTH):
            near = [1 / steps(0)[int(90 * y), int(120 * x)] for x, y in record.marks]
            right.add(POINT_LETTERS[int(np.argmax(near))] == record.example.answer)
        return right

    assert nearest(DepthFormat()) == {False}
    said = capsys.readouterr().err
    assert "a_disparity.npy is read as depth" in said and "declare meaning 'inverse'" in said
    assert nearest(DepthFormat("inverse")) == {True}
    assert "or are read otherwise now; it is made anew" in capsys.readouterr().err
    assert nearest(DepthFormat("inverse")) == {True} and not capsys.readouterr().err
