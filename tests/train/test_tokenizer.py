from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from perception.scenes.store import SceneStore
from train.data.depth_augmentation import training_batch, visible_patches
from train.loop.checkpoints import ResumeError
from train.loop.fit import LoopConfig
from train.tokenizer import DepthBatches, TokenizerConfig, train
from vqvae import VQVAE, VQVAEConfig

TINY = VQVAEConfig(image_size=16, downsample=4, codebook_size=16, codebook_dim=4, channels=32, num_res_blocks=1)


def tiny_config(folder: Path, steps: int) -> TokenizerConfig:
    return TokenizerConfig(
        run_dir=str(folder / "run"),
        out=str(folder / "finished"),
        store=str(folder / "scenes"),
        num_scenes=8,
        num_held_out=4,
        batch_size=8,
        model=TINY,
        loop=LoopConfig(steps=steps, learning_rate=1e-3, warmup_steps=2),
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SceneStore:
    return SceneStore.build(tmp_path_factory.mktemp("scenes"), range(8), image_size=16, workers=1)


def test_made_up_batches_are_valid_and_repeat(store: SceneStore) -> None:
    scenes = torch.from_numpy(store.depth[:8].astype(np.float32))
    first = training_batch(scenes, torch.Generator().manual_seed(3))
    again = training_batch(scenes, torch.Generator().manual_seed(3))
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    depth, mask = first
    assert depth.shape == mask.shape == (8, 16, 16) and mask.dtype == torch.bool
    assert bool((depth > 0).all()) and bool(depth.isfinite().all())
    assert bool(mask.flatten(1).any(1).all()), "no map is empty"
    assert not bool(mask.all()), "holes are cut"
    # The plain half is the scenes as they are, or mirrored.
    torch.testing.assert_close(depth[:4].flatten(1).sort().values, scenes[:4].flatten(1).sort().values)


def test_metric_maps_keep_their_depths_and_get_holes() -> None:
    scenes = 1 + torch.rand((8, 16, 16), generator=torch.Generator().manual_seed(0)) * 9
    depth, mask = training_batch(scenes, torch.Generator().manual_seed(3), metric=True)
    torch.testing.assert_close(depth.flatten(1).sort().values, scenes.flatten(1).sort().values)
    assert bool(mask[:4].all()) and not bool(mask[4:].all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_small_batches_hold_a_map_of_the_data(count: int) -> None:
    scenes = 1 + torch.rand((count, 16, 16), generator=torch.Generator().manual_seed(0)) * 9
    depth, mask = training_batch(scenes, torch.Generator().manual_seed(3))
    assert len(depth) == len(mask) == count
    torch.testing.assert_close(depth[0].flatten().sort().values, scenes[0].flatten().sort().values)


def test_photographs_have_no_metric_depth(tmp_path: Path) -> None:
    model = replace(TINY, normalisation="metric", min_depth=1.0, max_depth=10.0)
    with pytest.raises(ValueError, match="maps of photographs have no unit"):
        replace(tiny_config(tmp_path, steps=3), model=model, photos="photos")


def test_a_batch_is_a_function_of_step_and_rank(store: SceneStore) -> None:
    batches = DepthBatches(store, 8, seed=0)
    again = DepthBatches(store, 8, seed=0)
    assert batches(5, 0, 2)["depth"].equal(again(5, 0, 2)["depth"])
    assert not batches(5, 0, 2)["depth"].equal(batches(5, 1, 2)["depth"])
    assert not batches(5, 0, 2)["depth"].equal(batches(6, 0, 2)["depth"])


def test_hidden_patches_are_of_the_share_asked_for_and_stay_targets(store: SceneStore) -> None:
    shown = visible_patches(400, 45, 0.5, 0.4, torch.Generator().manual_seed(0)).float().mean((1, 2))  # (N,)
    masked = shown < 1
    assert 0.4 < float(masked.float().mean()) < 0.6
    torch.testing.assert_close(shown[masked], torch.full_like(shown[masked], 0.6))
    batch = DepthBatches(store, 8, seed=0, masked_maps=1.0)(0, 0, 1)
    plain = DepthBatches(store, 8, seed=0)(0, 0, 1)
    assert set(plain) == {"depth", "mask"} and set(batch) == {"depth", "mask", "visible"}
    assert batch["depth"].equal(plain["depth"]) and batch["mask"].equal(plain["mask"])
    assert bool((batch["mask"] & ~batch["visible"]).any(2).any(1).all()), "what is hidden still counts for the loss"


def test_training_on_hidden_patches_runs_and_is_another_run(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=3)
    train(replace(config, masked_maps=0.5))
    with pytest.raises(ResumeError, match="masked_maps"):
        train(config)
    with pytest.raises(ValueError, match=r"masked_maps \(1.5\)"):
        replace(config, masked_maps=1.5)


def test_a_training_ends_in_a_tokenizer_that_loads(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, steps=4)
    train(config)
    tokenizer = VQVAE.from_pretrained(config.out)
    assert tokenizer.config == TINY
    assert tokenizer.encode(torch.rand(2, 20, 20) + 1).shape == (2, 4, 4)


def test_sizes_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        replace(TokenizerConfig(), batch_size=0)


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every_step = {"num_workers": 0, "checkpoint_every_seconds": 0.0}
    whole = tiny_config(tmp_path / "whole", steps=6)
    train(replace(whole, loop=replace(whole.loop, **every_step)))
    killed = tiny_config(tmp_path / "killed", steps=6)
    killed = replace(killed, loop=replace(killed.loop, **every_step))
    make_batch = DepthBatches.__call__

    def die_at_step_4(self: DepthBatches, step: int, rank: int, world: int) -> dict[str, torch.Tensor]:
        if step == 4:
            raise KeyboardInterrupt
        return make_batch(self, step, rank, world)

    with monkeypatch.context() as patch:
        patch.setattr(DepthBatches, "__call__", die_at_step_4)
        with pytest.raises(KeyboardInterrupt):
            train(killed)
    assert train(killed).resumed_from == 4
    first, second = (VQVAE.from_pretrained(config.out).state_dict() for config in (whole, killed))
    assert all(first[name].equal(second[name]) for name in first)
