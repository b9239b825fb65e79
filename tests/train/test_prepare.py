"""Images labelled by teachers: what each says, shards that are killed, and training on what came out."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import save_family
from tiny_teachers import save_depth_anything, save_grounding_dino, save_marigold, save_owlv2, save_zoedepth

from perception.datasets.depth.questions import relative_depth
from perception.datasets.depth.teachers import (
    METRIC_TYPES,
    DepthEstimator,
    DepthFolder,
    Marigold,
    StereoPairs,
    from_nearness,
)
from perception.datasets.images import ImageFile
from perception.datasets.labelling.box_teachers import Detections, OpenVocabulary, Ssd, kept
from perception.datasets.labelling.jobs import find_images, prepare_folder, read_prepared
from perception.datasets.labelling.labeller import LabelledImage, Labeller, Unlabelled, read_rows, small_map, write_rows
from perception.datasets.labelling.teachers import TeachersConfig, depth_teacher
from perception.datasets.shards import records
from perception.model.shipped import shipped
from perception.vocabulary.names import PerceptionVocabulary
from train.data.records import SourcesConfig, read_records
from train.finetune import main as finetune
from train.prepare import PrepareConfig, labeller, main, prepare
from vqvae import VQVAE

pytest.importorskip("diffusers")
SIZES = ((48, 64), (48, 64), (40, 56))  # height, width


def pictures(folder: Path, count: int) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        pixels = np.random.default_rng(n).integers(0, 256, (*SIZES[n % 3], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:03d}.png")
    return sorted(path.name for path in folder.iterdir())


def load(folder: Path, names: list[str]) -> tuple[list[Path], list[Image.Image]]:
    files = [folder / name for name in names]
    return files, [ImageFile(file).load() for file in files]


def slopes(files, images):
    """A teacher of depth: a plane that falls to the left, another for every image."""
    return [
        1 + (1 + int(file.stem)) * torch.linspace(0, 1, image.width).expand(image.height, image.width)
        for file, image in zip(files, images, strict=True)
    ]


def halves(files, images):
    """A detector: two cups, side by side, and a chair around both."""
    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]])
    return [Detections(boxes, ("cup", "cup", "chair"), np.ones(3)) for _ in files]


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return VQVAE.from_pretrained(shipped("depth-scenes-100")).eval()


# Teachers


def test_depth_models_see_any_sizes_and_say_the_same_one_by_one(tmp_path: Path) -> None:
    files, images = load(tmp_path / "images", pictures(tmp_path / "images", 4))
    relative = DepthEstimator(str(save_depth_anything(tmp_path / "relative")))
    metric = DepthEstimator(str(save_depth_anything(tmp_path / "metric", metric=True)))
    marigold = Marigold(str(save_marigold(tmp_path / "marigold")), steps=2)
    for teacher in (relative, metric, marigold):
        together = teacher(files, images)
        assert [tuple(depth.shape) for depth in together] == [image.size[::-1] for image in images]
        assert all(bool((depth > 0).all() and depth.isfinite().all()) for depth in together)
        for n in range(4):
            alone = teacher(files[n : n + 1], images[n : n + 1])[0]
            torch.testing.assert_close(alone, together[n], rtol=1e-3, atol=1e-4)
    assert metric.meant.meaning == "depth" and relative.meant.meaning == "inverse"


def test_metric_models_are_known_by_their_type_and_any_model_can_be_told(tmp_path: Path) -> None:
    """ZoeDepth's config does not say that it predicts metres, and its processor wants the sizes of the images."""
    files, images = load(tmp_path / "images", pictures(tmp_path / "images", 3))
    folder = str(save_zoedepth(tmp_path / "zoe"))
    metres = DepthEstimator(folder)
    found = metres(files, images)
    assert metres.meant.meaning == "depth" and [tuple(d.shape) for d in found] == [i.size[::-1] for i in images]
    assert all(0 < float(depth.min()) <= float(depth.max()) <= 10 for depth in found)
    in_feet = DepthEstimator(folder, scale=1 / 0.3048)(files, images)
    torch.testing.assert_close(in_feet[0], found[0] / 0.3048)
    anything = str(save_depth_anything(tmp_path / "relative"))
    as_depth = DepthEstimator(anything, meaning="depth")(files[:1], images[:1])[0]
    as_nearness = DepthEstimator(anything)(files[:1], images[:1])[0]
    torch.testing.assert_close(from_nearness(as_depth), as_nearness)
    disparity = DepthEstimator(anything, meaning="inverse", scale=2.0)(files[:1], images[:1])[0]
    torch.testing.assert_close(disparity[as_depth > 0], 2 / as_depth[as_depth > 0])
    dot = Image.new("RGB", (1, 1))
    with pytest.raises(ValueError, match=r"dot.png has 1 x 1 pixels, which the depth model's processor cannot resize"):
        metres([*files, Path("dot.png")], [*images, dot])


def test_the_types_of_metric_models_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as NAMES

    assert {"depth_pro", "zoedepth", "glpn"} <= set(METRIC_TYPES) <= set(NAMES)


def test_a_relative_model_s_nearness_is_what_the_tokenizer_keeps(tmp_path: Path, vqvae: VQVAE) -> None:
    near = torch.rand(30, 40).cumsum(1)
    near = (near - near.min()) / (near.max() - near.min())
    depth = from_nearness(3 * near - 7)
    torch.testing.assert_close(relative_depth(depth), near, atol=1e-4, rtol=0)
    assert bool((from_nearness(torch.ones(4, 5)) > 0).all()), "a flat map is a flat map"
    wild = near.clone()
    wild[0, 0], wild[1, 1], wild[2, 2] = torch.nan, torch.inf, -torch.inf
    with_holes = from_nearness(3 * wild - 7)
    assert int(with_holes.isnan().sum()) == 3 and bool(from_nearness(torch.full((4, 5), torch.nan)).isnan().all())
    torch.testing.assert_close(with_holes[3:], depth[3:], rtol=1e-3, atol=0)
    found = vqvae.normalise(depth[None]).nearness
    expected = vqvae.normalise((1 / (near + 1))[None]).nearness
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("save", [save_owlv2, save_grounding_dino])
def test_detectors_find_named_classes_inside_the_image(tmp_path: Path, save) -> None:
    files, images = load(tmp_path / "images", pictures(tmp_path / "images", 3))
    classes = ("cup", "red chair")
    model = str(save(tmp_path / "model"))
    everything = OpenVocabulary(model, classes, 0.0, 1.0)(files, images)
    sure = OpenVocabulary(model, classes, 0.5, 0.5)(files, images)
    for found, few in zip(everything, sure, strict=True):
        assert set(found.labels) <= set(classes) and len(found.labels) == len(found.boxes_xyxy) > 0
        assert bool((found.boxes_xyxy >= 0).all() and (found.boxes_xyxy <= 1).all())
        assert bool((found.boxes_xyxy[:, 2:] > found.boxes_xyxy[:, :2]).all())
        assert len(few.labels) <= len(found.labels) and bool((few.scores >= 0.5).all())


def test_grounding_dino_s_spelling_is_that_of_a_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, images = load(tmp_path / "images", pictures(tmp_path / "images", 1))
    folder = str(save_grounding_dino(tmp_path / "model"))
    teacher = OpenVocabulary(folder, ("T-shirt", "red cup"), 0.0, 1.0)
    tokenizer = teacher.processor.tokenizer
    phrases = [tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("t-shirt", "cup")]
    assert phrases == ["t - shirt", "cup"]
    boxes = torch.tensor([[0.0, 0, 20, 20], [20, 20, 40, 40]])
    said = [{"text_labels": phrases, "boxes": boxes, "scores": torch.tensor([0.9, 0.8])}]
    monkeypatch.setattr(teacher.processor, "post_process_grounded_object_detection", lambda *_, **__: said)
    assert teacher(files, images)[0].labels == ("T-shirt", "red cup")
    with pytest.raises(ValueError, match=r"does not know the words of class 'red zebra'; name it in plain English"):
        OpenVocabulary(folder, ("cup", "red zebra"), 0.3, 0.5)
    many = [" ".join(["red"] * count + ["cup"]) for count in range(25)]
    with pytest.raises(ValueError, match=r"25 classes are 352 tokens, and .*model reads 256; give fewer classes"):
        OpenVocabulary(folder, many, 0.3, 0.5)


def test_doubtful_flat_and_doubled_boxes_are_left_out() -> None:
    boxes = [
        [0.1, 0.1, 0.5, 0.5],
        [0.1, 0.1, 0.5, 0.51],  # the first again
        [0.1, 0.1, 0.5, 0.5],  # of another class
        [0.2, 0.2, 0.2, 0.9],  # no width
        [1.2, 0.0, 1.4, 0.5],  # outside
        [-0.2, 0.6, 0.3, 1.4],  # over the edge
        [0.6, 0.6, 0.9, 0.9],  # doubtful
        [np.nan, 0.6, 0.9, 0.9],
    ]
    labels = ["cup", "cup", "mug", "cup", "cup", "cup", "cup", "mug"]
    found = kept(boxes, labels, [0.9, 0.8, 0.7, 0.9, 0.9, 0.6, 0.1, 0.9], 0.3, 0.5)
    assert found.labels == ("cup", "mug", "cup")
    np.testing.assert_allclose(found.boxes_xyxy, [boxes[0], boxes[2], [0, 0.6, 0.3, 1]])
    empty = kept([], [], [], 0.3, 0.5)
    assert empty.boxes_xyxy.shape == (0, 4) and empty.labels == ()


def test_stereo_finds_which_half_is_nearer(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    texture = np.random.default_rng(0).integers(0, 256, (80, 200, 3), dtype=np.uint8)
    right = texture.copy()
    right[:, :100] = np.roll(texture, -4, 1)[:, :100]
    right[:, 100:192] = np.roll(texture, -12, 1)[:, 100:192]  # the right half is moved further: nearer
    for name, pixels in (("left", texture), ("right", right)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    files, images = load(tmp_path / "left", ["a.png"])
    depth = StereoPairs(tmp_path / "left", tmp_path / "right")(files, images)[0]
    assert float(depth[:, 20:80].nanmedian()) == pytest.approx(1 / 4, rel=0.1)
    assert float(depth[:, 130:180].nanmedian()) == pytest.approx(1 / 12, rel=0.1)
    with pytest.raises(ValueError, match=r"a.png has 2 x 80 pixels, too few to match it with"):
        Image.fromarray(texture[:, :2]).save(tmp_path / "right" / "a.png")
        StereoPairs(tmp_path / "left", tmp_path / "right")(files, [images[0].crop((0, 0, 2, 80))])
    (tmp_path / "right" / "a.png").unlink()
    with pytest.raises(ValueError, match=r"right/a.png does not exist"):
        StereoPairs(tmp_path / "left", tmp_path / "right")(files, images)


def test_maps_that_are_there_are_taken(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images", 2)
    (tmp_path / "depth").mkdir()
    depth = 1 + np.random.default_rng(0).random((24, 32)).astype(np.float32)
    np.save(tmp_path / "depth" / "000_depth.npy", depth)
    files, images = load(tmp_path / "images", names)
    teacher = DepthFolder(tmp_path / "images", tmp_path / "depth")
    assert torch.equal(teacher(files[:1], images[:1])[0], torch.from_numpy(depth))
    with pytest.raises(ValueError, match=r"001.png has no depth map beneath .*depth"):
        teacher(files, images)
    np.save(tmp_path / "depth" / "777.npy", depth)  # of an image that is not labelled
    assert len(DepthFolder(tmp_path / "images", tmp_path / "depth").pairs) == 1
    np.save(tmp_path / "depth" / "000.npy", depth)
    with pytest.raises(ValueError, match=r"000.npy and .*000_depth.npy are maps of one image, .*000.png; keep one"):
        DepthFolder(tmp_path / "images", tmp_path / "depth")


def test_a_folder_of_disparity_is_a_teacher_and_another_aspect_is_refused(tmp_path: Path) -> None:
    names = pictures(tmp_path / "images", 2)
    (tmp_path / "depth").mkdir()
    disparity = 1 + np.random.default_rng(0).integers(0, 200, (24, 32)).astype(np.uint16)
    disparity[0], disparity[1] = 0, 65535
    Image.fromarray(disparity).save(tmp_path / "depth" / "000.png")
    np.save(tmp_path / "depth" / "001.npy", np.ones((24, 24), np.float32))
    files, images = load(tmp_path / "images", names)
    config = TeachersConfig(
        depth="folder", depth_folder=str(tmp_path / "depth"), meaning="inverse", scale=100.0, invalid=65535
    )
    teacher = depth_teacher(config, tmp_path / "images")
    assert teacher is not None
    depth = teacher(files[:1], images[:1])[0]
    assert bool(depth[:2].isnan().all())
    np.testing.assert_allclose(depth[2:], 100 / disparity[2:], rtol=1e-6)
    config = TeachersConfig(depth="folder", depth_folder=str(tmp_path / "depth"), max_depth=0.005, scale=1e-4)
    depth = depth_teacher(config, tmp_path / "images")(files[:1], images[:1])[0]  # type: ignore[misc]
    assert torch.equal(depth[2:].isnan(), torch.from_numpy(disparity[2:] > 50))
    with pytest.raises(
        ValueError, match=r"001\.npy is 24 x 24 and its image .*001\.png 64 x 48 pixels; a depth map must"
    ):
        teacher(files[1:], images[1:])
    made = Labeller(tmp_path / "images", teacher, VQVAE.from_pretrained(shipped("depth-scenes-100")), None)(names)
    assert isinstance(made[0], LabelledImage) and isinstance(made[1], Unlabelled) and "24 x 24" in made[1].reason


def test_the_bundled_detector_sees_a_cat() -> None:
    data = pytest.importorskip("skimage.data")
    try:
        teacher = Ssd((), 0.5, 0.5)
    except ValueError as error:
        pytest.skip(str(error))
    found = teacher([Path("chelsea.png")], [Image.fromarray(data.chelsea())])[0]
    assert found.labels == ("cat",)
    with pytest.raises(ValueError, match="COCO has no class unicorn; it has airplane, apple"):
        Ssd(("unicorn",), 0.5, 0.5)


def test_teachers_that_cannot_be_are_named(tmp_path: Path) -> None:
    for given, message in [
        ({"depth": "none"}, "depth and boxes are both none"),
        ({"depth": "stereo"}, "needs depth_folder"),
        ({"boxes": "open-vocabulary"}, "needs classes to look for"),
        ({"score": 1.5}, r"score must lie in \[0, 1\]"),
        (
            {"depth": "marigold", "meaning": "depth"},
            r"meaning \(depth\) goes with depth teacher depth-anything or folder",
        ),
        ({"invalid": 0}, r"invalid \(0\) goes with depth teacher folder, not depth-anything"),
        ({"scale": -1.0}, "scale must be above 0, got -1.0"),
        ({"classes": ("cup",)}, r"classes \(\('cup',\)\) goes with boxes teacher open-vocabulary or ssd, not none"),
        ({"depth_folder": "maps"}, r"depth_folder \(maps\) goes with depth teacher stereo or folder, not"),
        ({"boxes": "ssd", "boxes_model": "m"}, r"boxes_model \(m\) goes with boxes teacher open-vocabulary, not ssd"),
        ({"boxes": "ssd", "classes": ("cup, red chair",)}, "got 'cup, red chair'; write them apart"),
        ({"boxes": "open-vocabulary", "classes": ("cup", " ")}, "names without commas and full stops"),
    ]:
        with pytest.raises(ValueError, match=message):
            TeachersConfig(**given)
    with pytest.raises(ValueError, match=r"nowhere cannot be loaded .*give the folder of a saved model"):
        DepthEstimator(str(tmp_path / "nowhere"))
    weights = save_depth_anything(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"cut cannot be loaded .*give the folder of a saved model"):
        DepthEstimator(str(tmp_path / "cut"))


# Rows


def test_cached_codes_are_those_made_online(tmp_path: Path, vqvae: VQVAE) -> None:
    names = pictures(tmp_path / "images", 7)
    rows = Labeller(tmp_path / "images", slopes, vqvae, halves, batch_size=3, embed=True)(names)
    write_rows(rows, tmp_path / "a.parquet", {"tokenizer": "t"})
    read, header = read_rows(tmp_path / "a.parquet")
    assert header == {"tokenizer": "t"} and [row.name for row in read] == names
    for row, (file, image) in zip(read, zip(*load(tmp_path / "images", names), strict=True), strict=True):
        depth = slopes([file], [image])[0]
        assert row.codes == tuple(vqvae.to_sequence(vqvae.encode(depth[None]))[0].tolist())
        assert row.size == tuple(depth.shape) and row.depth_range == pytest.approx((1, float(depth.max())))
        # 1 / depth, told apart to one in 65,534, at 64 pixels as the picture has no more
        torch.testing.assert_close(relative_depth(row.depth()), relative_depth(depth), atol=2e-3, rtol=0)
        assert row.image == file.read_bytes()
        assert row.detections is not None and row.detections.labels == ("cup", "cup", "chair")
        np.testing.assert_array_equal(row.detections.boxes_xyxy, halves([file], [image])[0].boxes_xyxy)


def test_holes_stay_holes_and_large_maps_get_small() -> None:
    depth = torch.linspace(1, 9, 300).expand(200, 300).clone()
    depth[:, :100] = torch.nan
    found = small_map(depth)
    assert found.shape == (64, 96) and bool((found[:, :31] == 0).all()) and bool((found[:, 33:] > 0).all())
    again = LabelledImage("a", (200, 300), nearness=found).depth()
    assert bool(again[:, :31].isnan().all()) and bool((again[0, 33:].diff() > 0).all())


def test_one_bad_image_takes_no_other_with_it(tmp_path: Path, vqvae: VQVAE) -> None:
    names = pictures(tmp_path / "images", 5)
    (tmp_path / "images" / "001.png").write_bytes(b"no picture")

    def moody(files, images):
        if any(file.stem == "003" for file in files):
            raise ValueError("003 is too dark")
        return slopes(files, images)

    rows = Labeller(tmp_path / "images", moody, vqvae, None, batch_size=8)(names)
    assert [row.name for row in rows] == names
    bad = {row.name: row.reason for row in rows if isinstance(row, Unlabelled)}
    assert set(bad) == {"001.png", "003.png"} and bad["003.png"] == "003 is too dark" and "001.png" in bad["001.png"]


def test_a_full_disk_keeps_what_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, depth_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyarrow import parquet

    pictures(tmp_path / "images", 6)
    command = command_for(tmp_path / "images", tmp_path / "out", depth_model)
    write = parquet.write_table

    def fills_up(table, where):
        Path(where).write_bytes(b"half a")
        if "00001" in Path(where).name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(table, where)

    monkeypatch.setattr(parquet, "write_table", fills_up)
    assert main(command) == 1
    assert "shard-00001.parquet could not be written (No space left on device)" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "out" / "shard-00000.parquet")[0]) == 2
    assert not list((tmp_path / "out").glob(".*.partial"))
    monkeypatch.undo()
    assert main(command) == 0 and sum(record["images"] for record in records(tmp_path / "out")) == 6


# Shards


@pytest.fixture(scope="module")
def depth_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_depth_anything(tmp_path_factory.mktemp("teacher") / "model")


def command_for(images: Path, out: Path, model: Path, shard_size: int = 2) -> list[str]:
    teachers = ["--teachers.depth_model", str(model), "--shard_size", str(shard_size), "--batch_size", "2"]
    return ["--images", str(images), "--out", str(out), *teachers]


def all_rows(out: Path) -> list[tuple[object, ...]]:
    rows = [row for file in sorted(out.glob("shard-*.parquet")) for row in read_rows(file)[0]]
    return [(row.name, row.size, row.codes, row.depth_range) for row in rows]


def test_what_was_killed_goes_on_without_loss_or_repeats(tmp_path: Path, depth_model: Path) -> None:
    names = pictures(tmp_path / "images", 60)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = command_for(tmp_path / "images", killed, depth_model)
    process = subprocess.Popen([sys.executable, "-m", "train.prepare", *arguments], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(killed.glob("shard-*.record.json"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 3 <= len(list(killed.glob("shard-*.record.json"))) < 30
    sorted(killed.glob("shard-*.record.json"))[-1].unlink()  # as after a kill between rows and record
    for out in (killed, whole):
        assert main(command_for(tmp_path / "images", out, depth_model)) == 0
    assert all_rows(killed) == all_rows(whole) and [row[0] for row in all_rows(whole)] == names
    assert not list(killed.rglob("*.partial"))


def test_ray_makes_the_same_rows(tmp_path: Path, depth_model: Path) -> None:
    pytest.importorskip("ray")
    pictures(tmp_path / "images", 9)
    (tmp_path / "images" / "004.png").write_bytes(b"no picture")
    local, spread = tmp_path / "local", tmp_path / "spread"
    assert main(command_for(tmp_path / "images", local, depth_model)) == 0
    assert main([*command_for(tmp_path / "images", spread, depth_model), "--engine", "ray", "--workers", "2"]) == 0
    assert all_rows(spread) == all_rows(local) and len(all_rows(local)) == 8
    skipped = [(out / "skipped.jsonl").read_text() for out in (local, spread)]
    assert skipped[0] == skipped[1] and json.loads(skipped[0])["image"] == "004.png"


def test_other_settings_images_or_runs_are_refused(
    tmp_path: Path, depth_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "images", 3)
    command = command_for(tmp_path / "images", tmp_path / "out", depth_model)
    assert main(command) == 0
    assert "3 images labelled, 0 skipped; 3 depth maps, 0 boxes" in capsys.readouterr().out
    assert main([*command, "--embed_images", "true"]) == 1
    assert "embed_images was False and is True" in capsys.readouterr().err
    pictures(tmp_path / "images", 4)
    assert main(command) == 0 and "4 images labelled, 0 skipped" in capsys.readouterr().out
    assert main([*command[:3], str(tmp_path / "images"), *command[4:]]) == 1
    assert "is the folder of the images; give another folder for the labels" in capsys.readouterr().err
    assert main(command_for(tmp_path / "none", tmp_path / "other", depth_model)) == 1
    assert "is not a folder" in capsys.readouterr().err
    config = PrepareConfig(
        str(tmp_path / "images"), str(tmp_path / "out"), TeachersConfig(depth_model=str(depth_model))
    )
    assert labeller(config).vqvae is not None
    with pytest.raises(ValueError, match="was begun with other settings"):
        prepare(config)


def test_images_that_changed_are_labelled_and_others_are_not(
    tmp_path: Path, vqvae: VQVAE, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out, seen = tmp_path / "images", tmp_path / "images" / "labelled", list[str]()
    pictures(images, 7)
    (images / "._000.png").write_bytes(b"no picture")
    (images / "005.png").write_bytes(b"no picture")

    def watched(files, opened):
        seen.extend(file.name for file in files)
        return slopes(files, opened)

    def label(**more):
        seen.clear()
        made = Labeller(images, watched, vqvae, None, batch_size=1)
        return prepare_folder(images, out, lambda: made, {}, shard_size=2, **more)

    assert (label().images, label().skipped) == (6, 1)
    (out / "labels.png").write_bytes((images / "001.png").read_bytes())  # what a job wrote is not labelled
    (images / "004.png").unlink()
    (images / "005.png").unlink()  # the bad file and its neighbour are taken away
    Image.new("RGB", (20, 20)).save(images / "002.png")
    (images / "107.png").write_bytes((images / "001.png").read_bytes())
    shard = out / "shard-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 255
    shard.write_bytes(data)
    report = label()
    assert (report.images, report.skipped) == (6, 0), (out / "skipped.jsonl").read_text()
    assert sorted(seen) == ["000.png", "001.png", "002.png", "107.png"], "003 and 006 are not labelled again"
    said = capsys.readouterr().err
    assert "shard-00000.parquet is not as it was written" in said and "1 images were replaced" in said
    assert sorted(row[0] for row in all_rows(out)) == ["000.png", "001.png", "002.png", "003.png", "006.png", "107.png"]
    assert label().images_of_run == 0 and not seen
    assert label(glob="00[0-2].png").images == 3


def test_skipped_images_are_tried_again_by_a_run_with_nothing_else_to_do(tmp_path: Path, vqvae: VQVAE) -> None:
    pictures(tmp_path / "images", 3)
    dark = {"001"}

    def moody(files, images):
        if any(file.stem in dark for file in files):
            raise ValueError("too dark")
        return slopes(files, images)

    made = Labeller(tmp_path / "images", moody, vqvae, None, batch_size=1)
    reports = []
    for _ in range(3):
        reports.append(prepare_folder(tmp_path / "images", tmp_path / "out", lambda: made, {}, shard_size=2))
        if len(reports) == 2:
            dark.clear()
    assert [(r.images, r.skipped, r.images_of_run) for r in reports] == [(2, 1, 3), (2, 1, 1), (3, 0, 1)]
    assert (tmp_path / "out" / "skipped.jsonl").read_text() == ""


def test_a_run_that_cannot_begin_can_be_corrected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "images", 1)
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth" / "000.npy", np.linspace(1, 2, 48 * 64, dtype=np.float32).reshape(48, 64))
    given = ["--images", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--teachers.depth", "folder"]
    for more, message in (
        (["--teachers.depth_folder", "nowhere"], "nowhere does not exist; give a depth file or a folder of them"),
        (["--depth_tokenizer", "masks-scenes-16"], "this is a tokenizer of masks, and encodes no depth"),
        (["--teachers.device", "abacus"], "device 'abacus' cannot be used here"),
        ([], ""),
    ):
        folder = [] if "nowhere" in more else ["--teachers.depth_folder", str(tmp_path / "depth")]
        assert main([*given, *folder, *more]) == bool(message)
        assert message in capsys.readouterr().err
    assert len(all_rows(tmp_path / "out")) == 1


def test_a_name_that_no_table_can_hold_is_refused_before_labelling(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    (tmp_path / "001.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    with pytest.raises(ValueError, match=r"caf\\udce9.png' beneath .* is a name that is not UTF-8; rename the file"):
        find_images(tmp_path)


def test_labels_that_are_taken_out_are_named_and_leave_no_file(
    tmp_path: Path, vqvae: VQVAE, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    pictures(tmp_path / "images", 3)
    made = Labeller(tmp_path / "images", slopes, vqvae, None)
    for _ in range(2):
        report = prepare_folder(tmp_path / "images", tmp_path / "out", lambda: made, {}, shard_size=1)
        (tmp_path / "images" / "002.png").unlink(missing_ok=True)
    assert report.images == 2 and [row[0] for row in all_rows(tmp_path / "out")] == ["000.png", "001.png"]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 labelled images are gone or do not match glob, and their labels are taken out; the first is 002" in said

    prepare_folder(tmp_path / "images", tmp_path / "both", lambda: made, {})
    (tmp_path / "images" / "001.png").unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(ValueError, match=r"could not be written .*shards are kept"):
        disk.setattr(parquet, "write_table", full)
        prepare_folder(tmp_path / "images", tmp_path / "both", lambda: made, {})
    report = prepare_folder(tmp_path / "images", tmp_path / "both", lambda: made, {})
    assert (report.images, report.images_of_run) == (1, 0)


def test_ctrl_c_ends_labelling_in_one_line(
    tmp_path: Path, depth_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "images", 1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("train.prepare.prepare_folder", stop)
    assert main(command_for(tmp_path / "images", tmp_path / "out", depth_model)) == 130
    said = capsys.readouterr().err
    assert said == "prepare: stopped; finished shards are kept, and the same command goes on from there\n"


# Records


def labelled(folder: Path, vqvae: VQVAE, count: int = 6, **more: object) -> Path:
    """A folder of shards by teachers that know."""
    pictures(folder / "images", count)
    out = folder / "labelled"
    made = Labeller(folder / "images", slopes, vqvae, halves, batch_size=4, **more)  # type: ignore[arg-type]
    prepare_folder(folder / "images", out, lambda: made, {"classes": ["cup", "chair", "spoon"]}, shard_size=4)
    return out


def test_labels_become_questions_with_right_answers(tmp_path: Path, vqvae: VQVAE) -> None:
    found = read_prepared(labelled(tmp_path, vqvae), 100, vqvae)
    tasks = {record.example.task for record in found.records}
    assert {"atomic_depth", "chain_count", "direct_count", "chain_depth", "direct_depth"} <= tasks
    for record in found.records:
        if record.example.task == "direct_count":
            assert (record.example.question, record.example.answer) in {
                ("How many cups are there?", "2"),
            }
        if record.example.task == "direct_depth":  # the plane falls to the left: the leftmost point is nearest
            leftmost = min(range(len(record.marks)), key=lambda n: record.marks[n][0])
            assert record.example.answer == "ABCDE"[leftmost]
    again = read_prepared(tmp_path / "labelled", 100, vqvae)
    assert again == found
    assert found.skipped == ("labelled: no image has a box of spoon, so nothing is asked about that",)
    config = SourcesConfig(prepared=(str(tmp_path / "labelled"),), counts_asked="all", counts_most=1)
    made = read_records(config, PerceptionVocabulary(num_locations=100), vqvae, tmp_path / "run")
    assert {r.example.question for r in made.records if r.example.task == "direct_count"} == {
        "How many chairs are there?"
    }
    assert sum("2 cups, and at most 1 are asked for; raise counts_most" in line for line in made.skipped) == 6


def test_folders_that_cannot_be_read_say_why(tmp_path: Path, vqvae: VQVAE) -> None:
    out = labelled(tmp_path, vqvae)
    with pytest.raises(ValueError, match="give the depth tokenizer that made them"):
        read_prepared(out, 100)
    image = tmp_path / "images" / "002.png"
    image.unlink()
    with pytest.raises(ValueError, match=r"002.png does not exist, and .* holds no images itself"):
        read_prepared(out, 100, vqvae)
    pictures(tmp_path / "images", 3)
    file = out / "shard-00001.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"shard-00001.parquet is not a complete file of labelled images"):
        read_prepared(out, 100, vqvae)
    file.write_bytes((out / "shard-00000.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"shard-00001.parquet: 000.png is there twice"):
        read_prepared(out, 100, vqvae)
    rows, header = read_rows(file)
    write_rows([rows[0], rows[1], rows[1]], out / "shard-00000.parquet", header)
    with pytest.raises(ValueError, match=r"shard-00000.parquet: 001.png is there twice"):
        read_prepared(out, 100, vqvae)
    with pytest.raises(ValueError, match=r"holds no labelled images; make it with python -m train.prepare"):
        read_prepared(tmp_path / "images", 100, vqvae)


def test_embedded_images_need_no_other_folder(tmp_path: Path, vqvae: VQVAE) -> None:
    out = labelled(tmp_path, vqvae, embed=True)
    pixels = np.asarray(ImageFile(tmp_path / "images" / "002.png").load())
    (tmp_path / "images").rename(tmp_path / "gone")
    found = read_prepared(out, 100, vqvae)
    images = {record.image.path.name: record.image for record in found.records}
    np.testing.assert_array_equal(np.asarray(images["002.png"].load()), pixels)


def test_labels_are_of_the_image_that_was_labelled(tmp_path: Path, vqvae: VQVAE) -> None:
    out, images = labelled(tmp_path, vqvae), tmp_path / "images"
    Image.new("RGB", (64, 48)).save(images / "001.png")
    (images / "004.png").unlink()
    with pytest.raises(ValueError, match=r"001.png is another file than was labelled .*run its train.prepare again"):
        read_prepared(out, 100, vqvae)
    config = SourcesConfig(prepared=(str(out),))
    found = read_records(config, PerceptionVocabulary(num_locations=100), vqvae, tmp_path / "run", skip_bad=True)
    assert {record.image.path.name for record in found.records if record.image} == {f"00{n}.png" for n in (0, 2, 3, 5)}
    assert sum("001.png is another file" in line or "004.png does not exist" in line for line in found.skipped) == 2
    images.rename(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"no image of .*labelled can be used; the first: .*000.png does not exist"):
        read_prepared(out, 100, vqvae, skip_bad=True)


def test_a_copy_of_an_embedded_image_follows_it(tmp_path: Path, vqvae: VQVAE) -> None:
    images, gone = tmp_path / "images", tmp_path / "gone"
    pictures(images, 1)
    made = Labeller(images, slopes, vqvae, None, embed=True)
    for red in (0, 200):
        Image.new("RGB", (64, 48), (red, 0, 0)).save(images / "000.png")
        prepare_folder(images, tmp_path / "out", lambda: made, {})
        images.rename(gone)
        image = read_prepared(tmp_path / "out", 100, vqvae).records[0].image
        assert image is not None and image.load().getpixel((0, 0)) == (red, 0, 0)
        gone.rename(images)


def test_a_model_trains_on_labelled_images(tmp_path: Path, vqvae: VQVAE) -> None:
    base = save_family("llava", tmp_path / "base")
    out = labelled(tmp_path, vqvae)
    finetune(
        [
            *("--base", str(base), "--data.prepared", str(out), "--out", str(tmp_path / "model")),
            *("--run_dir", str(tmp_path / "run"), "--depth_tokenizer", str(shipped("depth-scenes-100"))),
            *("--loop.steps", "2", "--batch_size", "2"),
        ]
    )
    assert (tmp_path / "model" / "perception_vocabulary.json").exists()
