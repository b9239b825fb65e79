"""Photographs with labels of teacher models: scenes, cuts, questions and errors."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_folder import HEIGHT, WIDTH, make_photos
from PIL import Image

from perception.datasets.photo_questions import photo_count_question, photo_depth_question
from perception.datasets.photographs import Photographs, Window
from perception.evaluation.photos import kind_items
from perception.scenes.markers import nearness
from train.data.photos import PhotosConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Photographs:
    return Photographs(make_photos(tmp_path_factory.mktemp("photos") / "set"))


def test_a_part_has_the_images_that_the_split_names(photos):
    assert len(photos) == 9 and len(Photographs(photos.folder, "test")) == 3
    assert photos.kinds == ("car", "dog", "person")


def test_depth_is_the_inverse_of_the_teachers_nearness(photos):
    scene = photos.scene(0, 64)
    near = nearness(scene.depth[None])[0]
    expected = torch.arange(8).repeat_interleave(10)[None] / 7
    assert (near - expected)[:, 5::10].abs().max() < 0.01
    assert scene.image.shape == (64, 64, 3) and scene.image.dtype == torch.uint8


def test_boxes_are_of_the_square_image_in_row_major_order_and_weak_ones_are_unsure(photos):
    scene = photos.scene(2, 64)
    assert [item.shape for item in scene.objects] == ["person", "car", "car", "car"]
    assert np.allclose(scene.objects[1].box_xyxy, [8 / WIDTH, 30 / HEIGHT, 28 / WIDTH, 50 / HEIGHT])
    assert scene.unsure == {"dog"}


def test_weak_boxes_are_things_or_nothing_where_they_are_learned_from(photos, tmp_path):
    folder = shutil.copytree(photos.folder, tmp_path / "set")
    lines = [json.loads(line) for line in (folder / "boxes.jsonl").read_text().splitlines()]
    for line in lines:
        line["boxes"] += [[30, 2, 50, 20, "person", 0.3], [85, 40, 95, 60, "person", 0.29]]
    (folder / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    strict, weak = Photographs(folder).scene(0, 64), Photographs(folder, weak_boxes=True).scene(0, 64)
    assert strict.unsure == {"dog", "person"} and [item.shape for item in strict.objects] == ["person", "car"]
    assert not weak.unsure and [item.shape for item in weak.objects] == ["person", "person", "car"]
    cut = Photographs(folder, weak_boxes=True).scene(0, 96, Window(0.25, 0.25, 1.0, 1.0))
    assert "car" in cut.unsure, "a thing that a cut halves stays unsure"
    assert PhotosConfig(str(folder), weak_boxes=True).build().scene(0, 64).unsure == set()


def test_two_questions_in_five_are_about_absent_kinds_where_weak_boxes_are_learned_from(photos):
    weak, rng = Photographs(photos.folder, weak_boxes=True), np.random.default_rng(0)
    scene = weak.scene(0, 0)  # its dog is too weak to count
    asked = [photo_count_question(weak, scene, rng) for _ in range(400)]
    assert {q.answer for q in asked if q.things == "dogs"} == {0}
    assert 0.33 < np.mean([q.things == "dogs" for q in asked]) < 0.47


def test_the_mirror_image_has_mirrored_boxes_depth_and_pixels(photos):
    scene, mirrored = photos.scene(0, 96), photos.scene(0, 96, mirrored=True)
    (car,), (other,) = ([item for item in one.objects if item.shape == "car"] for one in (scene, mirrored))
    x1, y1, x2, y2 = car.box_xyxy
    assert np.allclose(other.box_xyxy, [1 - x2, y1, 1 - x1, y2])
    assert torch.equal(mirrored.image, scene.image.flip(1))
    assert torch.allclose(mirrored.depth, scene.depth.flip(1), atol=1e-4)


def test_a_cut_moves_boxes_with_the_pixels_and_makes_a_kind_that_it_halves_unsure(photos):
    window = Window(0.25, 0.25, 1.0, 1.0)  # the first car, from 8/96 to 28/96, is nearly all outside
    scene = photos.scene(2, 96, window)
    cars = [item.box_xyxy for item in scene.objects if item.shape == "car"]
    assert len(cars) == 2 and "car" in scene.unsure
    x1, y1, x2, y2 = (round(96 * value) for value in cars[0])
    middle = scene.image[y1 + 3 : y2 - 3, x1 + 3 : x2 - 3].float().mean((0, 1))
    assert middle[0] > 190 and middle[1] < 70


def test_a_count_is_of_sure_things_alone(photos):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(60):
        index = int(rng.integers(len(photos)))
        scene = photos.scene(index, 64)
        asked = photo_count_question(photos, scene, rng)
        assert "dogs" not in asked.text
        number = int(photos.labels[index]["image"][:5])
        assert asked.answer == {"cars": 1 + number % 3, "people": 1}[asked.things]
        assert len(asked.boxes_xyxy) == asked.answer
        seen.add(asked.things)
    assert seen == {"cars", "people"}


def test_the_nearest_point_is_the_teachers(photos):
    rng, asked = np.random.default_rng(0), 0
    for index in range(len(photos)):
        q = photo_depth_question(photos.scene(index, 320), rng, 4)
        if q is not None:
            asked += 1
            assert "ABCD".index(q.answer) == int(q.points_xy[:, 0].argmax())  # nearness grows to the right
    assert asked


def test_random_windows_lie_inside_the_image():
    rng = np.random.default_rng(0)
    for _ in range(50):
        w = Window.draw(rng)
        assert 0 <= w.x1 < w.x2 <= 1 and 0 <= w.y1 < w.y2 <= 1 and w.x2 - w.x1 >= 0.54


def test_a_folder_without_labels_and_an_unknown_part_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match=r"has no images; docs/data.md"):
        Photographs(tmp_path)
    with pytest.raises(ValueError, match=r"split.csv names no image of the part 'val'"):
        Photographs(photos.folder, "val")


def line_with(**changes: object) -> Callable[[Path], object]:
    """Appends another line to boxes.jsonl, for an image of the test part, whose files are not looked at."""
    label = {"image": "00003.jpg", "width": 96, "height": 64, "boxes": []} | changes

    def write(folder: Path) -> None:
        with (folder / "boxes.jsonl").open("a") as file:
            file.write(json.dumps({name: value for name, value in label.items() if value is not None}) + "\n")

    return write


def add_to_split(line: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        file = folder / "split.csv"
        file.write_text(file.read_text().rstrip("\n") + f"\n{line}\n")

    return spoil


def save_map(array: np.ndarray) -> Callable[[Path], object]:
    return lambda folder: Image.fromarray(array).save(folder / "depth" / "00001.png")


DEEP = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 42


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "images" / "00001.jpg").unlink(), "line 2: image .*00001.jpg does not exist"),
        (lambda folder: (folder / "depth" / "00001.png").unlink(), "line 2: its depth map .*00001.png does not exist"),
        (save_map(DEEP), "line 2: its depth map .*00001.png must be an 8-bit grey PNG of inverse depth; scale"),
        (save_map(np.stack([DEEP // 256] * 3, -1).astype(np.uint8)), "00001.png must be an 8-bit grey PNG"),
        (lambda folder: (folder / "depth" / "00001.png").write_bytes(b""), "00001.png must be an 8-bit grey PNG"),
        (lambda folder: (folder / "split.csv").write_text("name,part\n"), "columns image and split, got name, part"),
        (lambda folder: (folder / "split.csv").write_text(""), "columns image and split, got none"),
        (lambda folder: (folder / "boxes.jsonl").write_text('{"image": '), "boxes.jsonl, line 1 is not complete JSON"),
        (line_with(boxes=[[1, 1, 9, 9, "cup"]]), "line 13 must hold image, width, .* got .*'cup'"),
        (line_with(boxes=[[1, 1, 9, 9, "cup", None]]), "line 13 must hold"),
        (line_with(boxes=[[1, 1, 9, float("nan"), "cup", 0.9]]), "line 13 must hold"),
        (line_with(boxes=[[9, 1, 1, 9, "cup", 0.9]]), "line 13 must hold"),
        (line_with(boxes=None), "line 13 must hold"),
        (line_with(width=0), "line 13 must hold"),
        (line_with(image=3), "line 13 must hold"),
        (line_with(image="00001.jpg"), "line 13 is about '00001.jpg', as a line before it is"),
        (add_to_split("00099.jpg,train"), "no line for 1 of the images of the part 'train' .* '00099.jpg'; add one"),
    ],
)
def test_a_file_or_line_of_another_form_is_named_at_once(
    tmp_path: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(make_photos(tmp_path / "set"))
    with pytest.raises(ValueError, match=said) as error:
        Photographs(tmp_path / "set")
    assert "\n" not in str(error.value)


def test_a_damaged_map_is_named(tmp_path: Path) -> None:
    file = make_photos(tmp_path / "set") / "depth" / "00001.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=re.escape(f"{file} is a corrupt image")):
        Photographs(tmp_path / "set").nearness(1)


def test_a_byte_order_mark_is_no_part_of_the_split(tmp_path: Path) -> None:
    file = make_photos(tmp_path / "set") / "split.csv"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert len(Photographs(tmp_path / "set")) == 9


def test_blanks_around_the_values_of_the_split_are_no_part_of_them(tmp_path: Path) -> None:
    file = make_photos(tmp_path / "set") / "split.csv"
    file.write_text(file.read_text().replace(",train", ", train "))
    assert len(Photographs(tmp_path / "set")) == 9


def test_every_sure_thing_of_a_photograph_is_asked_about(photos):
    asked = [(item.question, item.answer) for item in kind_items(photos, 32)][:4]
    assert asked == [
        ("How many cars are there?", 1),
        ("How many people are there?", 1),
        ("How many cars are there?", 2),
        ("How many people are there?", 1),
    ]


def test_every_photograph_is_asked_about_one_kind_that_is_surely_absent(photos, tmp_path):
    folder = shutil.copytree(photos.folder, tmp_path / "set")
    first, *others = [json.loads(line) for line in (folder / "boxes.jsonl").read_text().splitlines()]
    first["boxes"] = [box for box in first["boxes"] if box[4] == "dog"]
    (folder / "boxes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [first, *others]))
    asked = [(item.question, item.answer) for item in kind_items(Photographs(folder), 32)]
    assert asked[0][0] in ("How many cars are there?", "How many people are there?") and asked[0][1] == 0
    assert all(answer > 0 for _, answer in asked[1:]), "where a dog may or may not be, it is not asked about"
