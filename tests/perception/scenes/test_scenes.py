"""Scenes: deterministic, exact, and described as they look."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from perception.answers import POINT_LETTERS
from perception.scenes import COLORS, SHAPES, get_style, render_scenes
from perception.scenes.export import export_parquet
from perception.scenes.markers import (
    MIN_GAP,
    MIN_SPACING,
    choose_markers,
    draw_markers,
    marker_nearness,
    nearness,
)
from perception.scenes.questions import count_question, depth_question, select
from perception.scenes.render import MIN_VISIBLE_AREA, MIN_VISIBLE_SHARE
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore


@pytest.fixture(scope="module")
def batch():
    return render_scenes(range(24), image_size=80)


@pytest.fixture(scope="module")
def scenes(batch):
    return [Scene.from_batch(batch, i) for i in range(24)]


def test_a_scene_depends_on_its_seed_and_style_alone(batch):
    alone = render_scenes([7], image_size=80)
    assert torch.equal(alone.images[0], batch.images[7])
    assert torch.equal(alone.depth[0], batch.depth[7])
    assert alone.objects[0] == batch.objects[7]
    assert not torch.equal(render_scenes([8], image_size=80).images[0], batch.images[7])
    assert not torch.equal(render_scenes([7], "shifted", 80).images[0], batch.images[7])


def test_depth_is_exact_for_a_pixel_on_the_floor(batch):
    """The lowest row of an empty scene sees the floor, whose depth follows from the camera alone."""
    from perception.scenes.sampling import sample_scenes

    parameters = sample_scenes(range(24))
    empty = [i for i, objects in enumerate(batch.objects) if not objects]
    assert empty
    for i in empty:
        up = -(2 * 79.5 / 80 - 1) * torch.tan(parameters.field_of_view[i] / 2)
        pitch = parameters.camera_pitch[i]
        expected = parameters.camera_height[i] / (torch.sin(pitch) - up * torch.cos(pitch))
        assert torch.allclose(batch.depth[i, 79], expected, rtol=1e-4)


def test_boxes_are_tight_and_every_object_is_visible_enough(batch):
    for ids, objects in zip(batch.object_ids, batch.objects, strict=True):
        assert int(ids.max()) == len(objects) <= 15
        for number, item in enumerate(objects, start=1):
            rows, columns = (ids == number).nonzero(as_tuple=True)
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert item.box_xyxy == pytest.approx([float(v) / 80 for v in tight])
            assert len(rows) >= MIN_VISIBLE_AREA * 80 * 80 and item.visible_share >= MIN_VISIBLE_SHARE
            assert item.color in COLORS and item.shape in SHAPES


def test_objects_stand_in_row_major_order(batch, scenes):
    for objects in [*batch.objects, *(s.flipped().objects for s in scenes)]:
        corners = [(o.box_xyxy[1], o.box_xyxy[0]) for o in objects]
        assert corners == sorted(corners)


def test_mirroring_twice_is_the_identity(scenes):
    for scene in scenes:
        twice = scene.flipped().flipped()
        assert torch.equal(twice.image, scene.image) and torch.equal(twice.object_ids, scene.object_ids)
        assert [o.color for o in twice.objects] == [o.color for o in scene.objects]


def test_zooming_out_moves_things_and_their_boxes_alike(scenes):
    """Where the things are on the canvas, their pixels are: the parts in the boxes are the smaller originals."""
    scene = max(scenes, key=lambda scene: len(scene.objects))
    marked = replace(scene, image=(scene.object_ids > 0)[..., None].expand(-1, -1, 3).to(torch.uint8) * 255)
    for scale, place in (((0.5, 0.5), (0.0, 0.0)), ((0.6, 0.8), (1.0, 0.5)), ((1.0, 1.0), (0.3, 0.7))):
        small = marked.zoomed_out(scale, place)
        assert small.image.shape == scene.image.shape and small.image.dtype == torch.uint8
        assert [(o.color, o.shape) for o in small.objects] == [(o.color, o.shape) for o in scene.objects]
        left, top = ((1 - s) * p for s, p in zip(scale, place, strict=True))
        for item, old in zip(small.objects, scene.objects, strict=True):
            x1, y1, x2, y2 = old.box_xyxy
            expected = (left + scale[0] * x1, top + scale[1] * y1, left + scale[0] * x2, top + scale[1] * y2)
            assert item.box_xyxy == pytest.approx(expected, abs=1e-6)
        shares = [box_share(s, o.box_xyxy) for s in (marked, small) for o in s.objects]
        assert shares[: len(scene.objects)] == pytest.approx(shares[len(scene.objects) :], abs=0.12)
    assert torch.equal(scene.zoomed_out((1.0, 1.0), (0.0, 0.0)).image, scene.image)


def box_share(scene: Scene, box_xyxy: tuple[float, ...]) -> float:
    """Share of white in a box, edges left out."""
    x1, y1, x2, y2 = (round(80 * value) for value in box_xyxy)
    return float(scene.image[y1:y2, x1:x2].float().mean()) / 255


def test_colours_look_like_their_names(scenes):
    """The mean colour of an object's pixels is nearest to its own name's among well-separated names."""
    palette = torch.tensor(get_style("standard").palette)
    chosen = {name: palette[COLORS.index(name)] for name in ("red", "green", "blue", "yellow")}
    right, total = 0, 0
    for scene in scenes:
        for number, item in enumerate(scene.objects, start=1):
            if item.color in chosen:
                mean = scene.image[scene.object_ids == number].float().mean(0)
                mean = mean / mean.norm()
                closest = max(chosen, key=lambda name: float(mean @ (chosen[name] / chosen[name].norm())))
                right, total = right + (closest == item.color), total + 1
    assert total > 20 and right / total > 0.95


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_markers_keep_their_rules(scenes, count):
    made = 0
    for scene in scenes:
        points = choose_markers(scene, count, np.random.default_rng(count))
        if points is None:
            continue
        made += 1
        near = marker_nearness(scene.depth, points)
        for i in range(count):
            for j in range(i):
                assert abs(near[i] - near[j]) >= MIN_GAP - 1e-6
                assert np.hypot(*(points[i] - points[j])) >= MIN_SPACING - 1e-6
        assert not torch.equal(draw_markers(scene.image, points), scene.image)
    assert made >= 8


@pytest.mark.slow
@pytest.mark.parametrize("style", ["standard", "shifted"])
@pytest.mark.parametrize("count", [2, 5])
def test_in_half_of_the_sets_the_nearest_marker_is_not_the_lowest(style, count):
    """Else "the lowest in the image" answers most questions, and no depth is judged."""
    batch = render_scenes(range(700, 748), style)
    rng, hard = np.random.default_rng(0), []
    for scene in [Scene.from_batch(batch, i) for i in range(48)] * 2:
        points = choose_markers(scene, count, rng)
        if points is not None:
            hard.append(marker_nearness(scene.depth, points).argmax() != points[:, 1].argmax())
    assert 0.33 < np.mean(hard) < 0.6


def test_answers_are_true(scenes):
    rng = np.random.default_rng(0)
    letters = []
    for scene in scenes * 4:
        question = count_question(scene, rng)
        things = question.things.split()
        color = things[0] if things[0] in COLORS else None
        shape = things[-1][:-1] if things[-1][:-1] in SHAPES else None
        assert question.answer == len(select(scene, color, shape)) == len(question.boxes_xyxy)
        depth = depth_question(scene, rng)
        if depth is not None:
            assert depth.answer == POINT_LETTERS[int(marker_nearness(scene.depth, depth.points_xy).argmax())]
            letters.append(depth.answer)
    assert {"A", "B"} <= set(letters)


def test_nearness_runs_from_far_to_near(batch):
    near = nearness(batch.depth)
    assert near.amin() == 0 and near.amax() == 1
    assert near.flatten(1).argmax(1).equal(batch.depth.flatten(1).argmin(1))


def test_a_store_gives_back_the_scenes_and_goes_on_after_a_stop(tmp_path, monkeypatch):
    import perception.scenes.store as module

    monkeypatch.setattr(module, "SHARD", 4)
    calls = []
    render = module._render_shard

    def stop_at_the_second(*arguments):
        calls.append(arguments[-1])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return render(*arguments)

    monkeypatch.setattr(module, "_render_shard", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        SceneStore.build(tmp_path / "s", range(8), image_size=32, workers=1)
    with pytest.raises(ValueError, match="not a finished store"):
        SceneStore.open(tmp_path / "s")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    store = SceneStore.build(tmp_path / "s", range(8), image_size=32, workers=1)
    assert torch.get_num_threads() == 2  # building must not slow down the training that comes after it
    torch.set_num_threads(threads)
    assert calls == [0, 1, 1]
    expected = render_scenes(range(8), image_size=32)
    assert np.array_equal(store.images, expected.images.numpy())
    assert np.allclose(store.depth, expected.depth.numpy(), rtol=1e-3)
    assert [[o.box_xyxy for o in row] for row in store.objects] == [
        [pytest.approx(o.box_xyxy, abs=1e-5) for o in row] for row in expected.objects
    ]
    with pytest.raises(ValueError, match="seeds was .* and is"):
        SceneStore.build(tmp_path / "s", range(9), image_size=32, workers=1)


def test_parquet_export_reads_back(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    paths = export_parquet(tmp_path, range(5), "shifted", image_size=32, rows_per_file=3)
    assert len(paths) == 2
    rows = [row for path in paths for row in pq.read_table(path).to_pylist()]
    expected = render_scenes(range(5), "shifted", 32)
    assert [r["seed"] for r in rows] == list(range(5))
    assert np.allclose(np.array(rows[2]["depth"]).reshape(32, 32), expected.depth[2].numpy(), rtol=1e-3)
    assert len(rows[3]["objects"]) == len(expected.objects[3])


def test_bad_arguments_say_what_is_wrong():
    with pytest.raises(ValueError, match="known styles: standard, shifted"):
        render_scenes([0], "night")
    with pytest.raises(ValueError, match="non-negative"):
        render_scenes([-1])
    with pytest.raises(ValueError, match="at least 16"):
        render_scenes([0], image_size=8)
