"""A tokenizer that goes on from a finished one, with maps of photographs in its batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_folder import make_photos
from PIL import Image

from perception.scenes.store import SceneStore
from train.data.depth import PHOTO_SIZE, photo_maps
from train.data.depth_augmentation import lay_over, photo_batch, random_parts
from train.loop.checkpoints import ResumeError
from train.loop.fit import LoopConfig
from train.tokenizer import DepthBatches, TokenizerConfig, begun, train
from vqvae import VQVAE, VQVAEConfig

TINY = VQVAEConfig(image_size=16, downsample=4, codebook_size=16, codebook_dim=4, channels=32, num_res_blocks=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine photographs to train on, and three of the part val, whose maps are black and so recognised."""
    photos = make_photos(tmp_path_factory.mktemp("photos") / "set")
    split = photos / "split.csv"
    split.write_text(split.read_text().replace("test", "val"))
    for number in (3, 7, 11):
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(photos / "depth" / f"{number:05d}.png")
    return photos


def tiny_config(run: Path, photos: Path, **settings: object) -> TokenizerConfig:
    config = TokenizerConfig(
        run_dir=str(run / "run"),
        out=str(run / "finished"),
        store=str(run / "scenes"),
        photos=str(photos),
        num_scenes=8,
        num_held_out=4,
        batch_size=10,
        model=TINY,
        loop=LoopConfig(steps=2, learning_rate=1e-3, warmup_steps=1),
    )
    return replace(config, **settings)  # type: ignore[arg-type]


def test_maps_of_photographs_are_of_one_part(folder: Path) -> None:
    maps, held_out = photo_maps(folder), photo_maps(folder, "val")
    assert maps.shape == (9, PHOTO_SIZE, PHOTO_SIZE) and held_out.shape == (3, PHOTO_SIZE, PHOTO_SIZE)
    assert held_out.max() == 0
    assert (maps[:, :, 0] == 0).all() and (maps[:, :, -1] == 252).all()


def test_a_batch_holds_its_share_of_photographs(folder: Path, tmp_path: Path) -> None:
    store = SceneStore.build(tmp_path, range(8), image_size=16, workers=1)
    maps = photo_maps(folder)
    batches = DepthBatches(store, 10, seed=0, photos=maps, num_photos=4)
    batch, again = batches(5, 0, 1), batches(5, 0, 1)
    assert all(batch[name].equal(again[name]) for name in ("depth", "mask"))
    assert batch["depth"].shape == batch["mask"].shape == (10, 16, 16)
    assert bool((batch["depth"] > 0).all()) and bool(batch["depth"].isfinite().all())
    alone = DepthBatches(store, 6, seed=0)(5, 0, 1)
    assert batch["depth"][:6].equal(alone["depth"]), "scenes are what a smaller batch has"
    inverse = 1 / batch["depth"][6]  # the first photograph is a plain part: nearer in one direction, rows alike
    assert float(inverse.std(0).max()) < 1e-3 < float(inverse.std(1).min())


def test_parts_of_maps_are_large_and_inside() -> None:
    ramp = torch.linspace(0, 1, 64).expand(50, 64, 64)
    parts = random_parts(ramp, 16, torch.Generator().manual_seed(0))
    assert parts.shape == (50, 16, 16) and 0 <= float(parts.min()) and float(parts.max()) <= 1
    seen = parts[:, 0, -1] - parts[:, 0, 0]
    assert 0.4 < float(seen.min()) < 0.55 and float(seen.max()) <= 1


def test_what_is_laid_over_has_sharp_edges_and_leaves_the_rest() -> None:
    below = torch.full((40, 16, 16), 0.25)
    above = torch.zeros(40, 16, 16)
    above[:, 4:9, 4:9] = 1.0
    laid = lay_over(below, above, torch.Generator().manual_seed(0))
    inside = above > 0
    assert bool((laid[~inside] == 0.25).all())
    things = laid[:, 4:9, 4:9].flatten(1)
    assert bool((things == things[:, :1]).all()) and float((things[:, 0] - 0.25).abs().median()) > 0.2


def test_photo_batches_hold_maps_that_can_be_encoded() -> None:
    depth, mask = photo_batch(torch.rand(7, 24, 24), 16, torch.Generator().manual_seed(1))
    assert depth.shape == mask.shape == (7, 16, 16) and mask.dtype == torch.bool
    assert bool((depth > 0).all()) and bool(depth.isfinite().all()) and bool(mask.flatten(1).any(1).all())


def test_training_goes_on_from_a_finished_tokenizer(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    VQVAE(TINY).save_pretrained(tmp_path / "start")
    config = tiny_config(tmp_path, folder, start=str(tmp_path / "start"))
    first = VQVAE.from_pretrained(tmp_path / "start").state_dict()
    assert all(value.equal(first[name]) for name, value in begun(config).state_dict().items())
    train(config)
    ended = VQVAE.from_pretrained(config.out).state_dict()
    weight = "decoder.head.weight"
    assert 0 < float((ended[weight] - first[weight]).abs().max()) < 0.01, "two steps from where it started"
    with pytest.raises(ResumeError, match="photos_share"):
        train(replace(config, photos_share=0.2))


def test_another_size_than_the_start_s_and_a_missing_part_are_refused_before_training(
    folder: Path, tmp_path: Path
) -> None:
    VQVAE(TINY).save_pretrained(tmp_path / "start")
    other = tiny_config(tmp_path, folder, start=str(tmp_path / "start"), model=replace(TINY, channels=64))
    with pytest.raises(ValueError, match=r"has channels 32 instead of 64; set model to the same"):
        train(other)
    photos = make_photos(tmp_path / "photos", 4)
    with pytest.raises(ValueError, match="no image of the part 'val'"):
        train(tiny_config(tmp_path, photos))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="photos_share must lie between 0 and 1, got 1"):
        tiny_config(tmp_path, folder, photos_share=1.0)
