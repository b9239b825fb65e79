"""The tower's dense targets, its batches and its loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import SwinModel

from perception.model.folder import find_folder, read_model
from perception.scenes.markers import MIN_SPACING, choose_markers
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.scenes.styles import COLORS, SHAPES
from train.tower import (
    GRID,
    NUM_KINDS,
    DenseTower,
    TowerBatches,
    cell_of,
    dense_fields,
    dense_loss,
    dense_targets,
    fourier_code,
    main,
    scatter_markers,
    tower_config,
)

CELL = 80 // GRID


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SceneStore:
    return SceneStore.build(tmp_path_factory.mktemp("scenes") / "store", range(16), workers=1)


@pytest.fixture(scope="module")
def scenes(store) -> list[Scene]:
    return [Scene.from_store(store, index) for index in store]


@pytest.fixture(scope="module")
def tower() -> DenseTower:
    torch.manual_seed(0)
    config = tower_config(embed_dim=8, depths=(1, 1), num_heads=(1, 1))
    return DenseTower(SwinModel(config, add_pooling_layer=False), dense_fields(NUM_KINDS))


def places_of(code: np.ndarray) -> np.ndarray:
    """What a Fourier code (n * 16,) stands for: the first cosine of each value is that of half a turn."""
    return np.arccos(np.clip(code.reshape(-1, 16)[:, 0], -1, 1)) / np.pi


def kind(color: str, shape: str) -> int:
    return COLORS.index(color) * len(SHAPES) + SHAPES.index(shape)


def test_fourier_codes_are_distinct_and_smooth():
    values = np.linspace(0, 1, 101)
    codes = fourier_code(values[:, None])
    assert codes.shape == (101, 16) and np.abs(places_of(codes) - values).max() < 1e-3
    distances = np.linalg.norm(codes[:, None] - codes[None], axis=-1)
    near, far = distances[np.arange(100), np.arange(1, 101)], distances[0, 50:]
    assert near.min() > 0.1 and near.max() < far.min()


def test_covers_are_the_kinds_whose_pixels_a_cell_holds(scenes):
    for scene in scenes:
        covers = dense_targets(scene, None)["covers"].reshape(GRID, GRID, -1)
        for row in range(GRID):
            for column in range(GRID):
                pixels = scene.object_ids[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
                shares = [(pixels == n).float().mean() for n in range(1, len(scene.objects) + 1)]
                expected = {kind(o.color, o.shape) for o, s in zip(scene.objects, shares, strict=True) if s >= 0.12}
                assert set(covers[row, column].nonzero()[0].tolist()) == expected


def test_every_object_and_marker_is_in_the_cell_of_its_centre(scenes):
    rng = np.random.default_rng(0)
    marked = 0
    for scene in scenes:
        points = choose_markers(scene, 4, rng)
        targets = dense_targets(scene, points)
        last = {cell_of(*item.center_xy): item for item in scene.objects}  # of two in one cell the last has the box
        for item in scene.objects:
            assert targets["centres"][cell_of(*item.center_xy), kind(item.color, item.shape)] == 1
        for cell, item in last.items():
            assert np.allclose(places_of(targets["box"][cell]), item.box_xyxy, atol=2e-3)
        assert (targets["centres"].sum(1) > 0).sum() == len(last)
        if points is not None:
            marked += 1
            for number, point in enumerate(points):
                assert targets["letters"][cell_of(*point), number] == 1
                assert np.allclose(places_of(targets["point"][cell_of(*point)]), point, atol=2e-3)
            assert targets["letters"].sum() == 4
    assert marked > 0


def test_every_cell_says_where_it_is(scenes):
    place = dense_targets(scenes[0], None)["place"]
    for cell in range(GRID * GRID):
        x, y = places_of(place[cell])
        assert cell_of(x, y) == cell and (x * GRID) % 1 == pytest.approx(0.5, abs=0.02)


def test_scattered_markers_are_pixel_centres_apart_from_each_other():
    rng = np.random.default_rng(0)
    for count in (1, 2, 5):
        for _ in range(20):
            points = scatter_markers(count, 80, rng)
            assert points.shape == (count, 2) and np.allclose((points * 80) % 1, 0.5, atol=1e-4)
            gaps = np.linalg.norm(points[:, None] - points[None], axis=-1)[np.triu_indices(count, 1)]
            assert (gaps >= MIN_SPACING - 1e-6).all() and points.min() > 0.07 and points.max() < 0.93


def test_batches_are_functions_of_the_step_and_hold_no_depth(store):
    batches = TowerBatches(store, 4, seed=0)
    first, again, next_one = batches(3, 0, 1), batches(3, 0, 1), batches(4, 0, 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["seen"], next_one["seen"])
    assert not torch.equal(first["seen"], batches(3, 1, 2)["seen"])
    assert first["seen"].shape == (4, 3, 80, 80)
    assert first["seen"].min() >= -1 and first["seen"].max() <= 1
    assert set(first) == {"seen", "covers", "centres", "letters", "box", "point", "place"}


def test_the_loss_falls_to_nothing_at_the_targets_and_trains_every_weight(store, tower):
    batch = TowerBatches(store, 2, seed=0)(0, 0, 1)

    class Perfect(torch.nn.Module):
        def forward(self, seen):
            hot = ("covers", "centres", "letters")
            return {k: 40 * (v - 0.5) if k in hot else v for k, v in batch.items() if k != "seen"}

    assert float(dense_loss(Perfect(), batch, 0)[0]) < 1e-3
    loss, parts = dense_loss(tower, batch, 0)
    assert torch.isfinite(loss) and parts.keys() == {"covers", "centres", "letters", "box", "point", "place"}
    loss.backward()
    still = [n for n, p in tower.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())]
    assert still == []


def test_the_tower_of_a_model_learns_depth_codes_and_the_rest_of_the_model_stays(store, tmp_path):
    folder = tmp_path / "run"
    shared = ["--run_dir", str(folder), "--store", str(store.folder), "--num_scenes", "16", "--batch_size", "2"]
    main(["--base", "models/perception-tiny", *shared, "--loop.steps", "2", "--loop.warmup_steps", "0"])
    before, after = (
        read_model(find_folder(name), torch.float32).state_dict()
        for name in ("models/perception-tiny", folder / "model")
    )
    moved = {name for name, weight in after.items() if not torch.allclose(weight, before[name], atol=1e-4)}
    assert moved and all("vision_tower" in name for name in moved)
    assert '"depth":' in (folder / "log.jsonl").read_text(), "the loss of the depth codes is logged"


def test_depth_codes_of_a_batch_are_those_of_its_images(store):
    codes = np.arange(2 * 16 * 100).reshape(2, 16, 100)
    batch = TowerBatches(store, 8, 0, codes)(0, 0, 1)
    assert batch["depth"].shape == (8, 100)
    half, index = np.divmod(batch["depth"][:, 0].numpy() // 100, 16)
    for row, (mirrored, number) in enumerate(zip(half, index, strict=True)):
        scene = Scene.from_store(store, int(number))
        scene = scene.flipped() if mirrored else scene
        assert np.allclose(batch["covers"][row], dense_targets(scene, None)["covers"])
