"""The tokenizer's recipe on other data, several processes, other precisions, with averages and early stops."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  (imported once for all processes below)

from train.data.depth_augmentation import training_batch
from train.loop.command_line import parse_config
from train.loop.fit import LoopConfig, fit
from train.tokenizer import TokenizerConfig, tokenizer_loss, train
from train.views.tokenizer import codebook_picture, evaluate_tokenizer
from vqvae import VQVAE, VQVAEConfig

TINY = VQVAEConfig(image_size=16, downsample=4, codebook_size=16, codebook_dim=4, channels=32, num_res_blocks=1)
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["accelerate.utils", "safetensors.torch", "torch._dynamo", "torch.utils.tensorboard"])


def slopes(count: int, seed: int, holes: bool = False) -> Tensor:
    """(count, 16, 16) metres: tilted planes with a nearer box each"""
    generator = torch.Generator().manual_seed(seed)
    tilt = torch.rand((count, 2, 1, 1), generator=generator)
    axis = torch.linspace(0, 1, 16)
    depth = 3 + 2 * tilt[:, 0] * axis[:, None] + 2 * tilt[:, 1] * axis
    corner = torch.randint(0, 9, (count, 2), generator=generator).tolist()
    for one, (y, x) in zip(depth, corner, strict=True):
        one[y : y + 6, x : x + 6] = 1.5
        if holes:
            one[:, :x] = torch.nan
    return depth


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 maps, half of them with holes, and a file that is none."""
    folder = tmp_path_factory.mktemp("maps")
    for index, depth in enumerate(torch.cat([slopes(12, 1), slopes(12, 2, holes=True)])):
        np.save(folder / f"{index:02d}.npy", depth.numpy())
    (folder / "broken.npy").write_bytes(b"not depth")
    return folder


def config_on(maps: Path, out: Path, **loop: object) -> TokenizerConfig:
    settings = {"steps": 6, "learning_rate": 1e-3, "num_workers": 0} | loop
    return TokenizerConfig(
        run_dir=str(out / "run"),
        out=str(out / "finished"),
        store=str(out / "store"),
        data=str(maps),
        num_held_out=4,
        batch_size=8,
        model=TINY,
        loop=LoopConfig(**settings),  # type: ignore[arg-type]
    )


def test_a_folder_of_depth_maps_trains_a_tokenizer(
    maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_on(maps, tmp_path, ema_decay=0.9, evaluate_every=2, patience=3)
    train(config)
    said = capsys.readouterr()
    assert "left out: broken.npy" in said.err and "24 depth maps of 25 file(s); left out: 1" in said.err
    assert "held out: " in said.out
    assert VQVAE.from_pretrained(config.out).encode(slopes(2, 5)).shape == (2, 4, 4)
    (board,) = (tmp_path / "run" / "tensorboard").iterdir()
    recorded = board.read_bytes()
    tags = ("held_out/reconstructions", "held_out/codebook", "held_out/codebook_usage", "held_out/loss")
    assert all(tag.encode() in recorded for tag in tags) and b"\x89PNG" in recorded


def test_maps_that_changed_under_a_run_are_refused(maps: Path, tmp_path: Path) -> None:
    shutil.copytree(maps, tmp_path / "maps")
    config = config_on(tmp_path / "maps", tmp_path, steps=2)
    train(config)
    file = min((tmp_path / "maps").glob("*.npy"))
    depth = np.load(file)
    np.save(file, depth)
    assert train(config).resumed_from == 2, "read anew, the maps are the same"
    np.save(file, depth[::-1])
    with pytest.raises(ValueError, match=r"data_digest: '24 maps, \w+' there, '24 maps, \w+' now"):
        train(config)


def test_maps_held_back_are_not_trained_on(maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train import tokenizer

    taken = {}
    monkeypatch.setattr(tokenizer, "fit", lambda model, batches, *rest, **named: taken.update(b=batches) or _ended())
    train(config_on(maps, tmp_path, evaluate_every=2))
    data = tokenizer.TrainingData.open(config_on(maps, tmp_path, evaluate_every=2))
    groups = [set(rows.tolist()) for rows in (data.rows, data.held_out_rows, data.watched_rows)]  # type: ignore[union-attr]
    assert [len(group) for group in groups] == [16, 4, 4] and len(set.union(*groups)) == 24
    assert set(taken["b"].rows.tolist()) == groups[0]
    with pytest.raises(ValueError, match=r"24 usable depth maps, and 40 are to be held out; lower num_held_out"):
        train(replace(config_on(maps, tmp_path), num_held_out=40))


def _ended() -> object:
    from train.loop.fit import FitResult

    return FitResult(0, 0.0, 0.0, 0.0, None, is_main=False)


def test_settings_of_other_data_come_from_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "maps.yaml"
    file.write_text("data: maps\ndata_format: {meaning: inverse, scale: 3.5}\nloop: {patience: null}\n")
    flags = ["--data_format.key", "disparity", "--augment", "false"]
    config = parse_config(TokenizerConfig, ["--config", str(file), *flags])
    assert (config.data_format.meaning, config.data_format.scale, config.data_format.key) == (
        "inverse",
        3.5,
        "disparity",
    )
    assert config.augment is False


def test_holes_of_measured_maps_stay_holes_and_no_map_is_empty() -> None:
    depth = slopes(32, 3, holes=True)
    depth[20] = torch.nan
    depth[20, 0, 0] = 2.0  # hardly anything: most crops would miss it
    for seed in range(5):
        made, mask = training_batch(depth, torch.Generator().manual_seed(seed))
        assert bool(mask.flatten(1).any(1).all()) and bool(made[mask].isfinite().all()) and bool((made[mask] > 0).all())
        holes = (~made[:16].isfinite()).flatten(1).sum(1)
        assert holes.equal((~depth[:16].isfinite()).flatten(1).sum(1)), "the plain half keeps its own"
        assert not bool(mask[:16][~made[:16].isfinite()].any())
    plain, mask = training_batch(depth, torch.Generator().manual_seed(0), augment=False)
    torch.testing.assert_close(plain[mask].sort().values, depth[depth.isfinite()].sort().values)


def two_halves(step: int, shard: int, num_shards: int) -> dict[str, Tensor]:
    """Shard of the 16 maps of a step: the second half has holes, so that shards have other numbers of valid pixels."""
    depth = torch.cat([slopes(8, 2 * step), slopes(8, 2 * step + 1, holes=True)])
    return {"depth": depth.chunk(num_shards)[shard]}


def _train_on_rank(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = VQVAE(replace(TINY, dead_threshold=0.3))  # so that codes are revived too
    config = LoopConfig(steps=4, learning_rate=1e-3, num_workers=0, evaluate_every=2, ema_decay=0.9)
    result = fit(
        model,
        two_halves,
        tokenizer_loss,
        config,
        folder,
        evaluate=lambda model: evaluate_tokenizer(model, slopes(4, 99)),
    )
    assert result.shards == world, "the processes did not find each other"
    torch.save({"state": model.state_dict(), "loss": result.final_loss}, f"{folder}-{world}-{rank}.pt")


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (world, port, str(tmp_path / "run") + str(world))
        processes = [PROCESSES.Process(target=_train_on_rank, args=(rank, *arguments)) for rank in range(world)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(240)
        assert [process.exitcode for process in processes] == [0] * world
    one = torch.load(tmp_path / "run1-1-0.pt", weights_only=True)
    first, second = (torch.load(tmp_path / f"run2-2-{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in first["state"].items():
        assert value.equal(second["state"][name]), f"{name} differs between the ranks"
        torch.testing.assert_close(value, one["state"][name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert first["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_accumulated_batches_equal_one(tmp_path: Path) -> None:
    """Once the codebook has started, which the first batch alone does."""

    def without_holes(step: int, shard: int, num_shards: int) -> dict[str, Tensor]:
        return {"depth": slopes(16, step).chunk(num_shards)[shard]}

    torch.manual_seed(0)
    started = VQVAE(replace(TINY, dead_threshold=1e-6)).train()
    started(slopes(16, 1000))
    states = []
    for parts in (1, 4):
        model = VQVAE(started.config)
        model.load_state_dict(started.state_dict())
        model.quantizer.deferred = parts > 1
        config = LoopConfig(steps=4, learning_rate=1e-3, num_workers=0, gradient_accumulation=parts)
        fit(model, without_holes, tokenizer_loss, config, tmp_path / str(parts), after_step=model.quantizer.settle)
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bf16_trains_the_tokenizer(maps: Path, tmp_path: Path) -> None:
    config = config_on(maps, tmp_path, precision="bf16", steps=3)
    train(config)
    assert VQVAE.from_pretrained(config.out).codebook.isfinite().all()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_tokenizer_trains_like_one_that_is_not(tmp_path: Path) -> None:
    def trained(folder: Path, compiled: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = VQVAE(replace(TINY, num_res_blocks=0))  # less to compile
        config = LoopConfig(steps=2, learning_rate=1e-3, num_workers=0, compile=compiled)
        fit(model, two_halves, tokenizer_loss, config, folder)
        return model.state_dict()

    plain, compiled = trained(tmp_path / "plain", False), trained(tmp_path / "compiled", True)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


def test_an_evaluation_has_figures_and_pictures() -> None:
    torch.manual_seed(0)
    found = evaluate_tokenizer(VQVAE(TINY).eval(), slopes(5, 0, holes=True))
    assert {"l1", "l2", "gradient", "commitment", "codebook_usage", "perplexity"} == set(found.scalars)
    assert found.loss > 0 and 0 < found.scalars["codebook_usage"] <= 1
    assert found.images["reconstructions"].shape == (160, 400, 3) and found.images["codebook"].dtype == np.uint8
    half = codebook_picture(torch.tensor([3] * 4 + [0] * 4))
    dark = (half < 200).all(-1)  # (H, W)
    assert dark[:, :250].any() and not dark[:, 260:].any(), "unused codes leave white"
