"""The training loop on a tiny model: what is killed goes on bit for bit, and what is broken says so."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import socket
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from train.loop.checkpoints import ResumeError, _load_optimizer
from train.loop.fit import FitResult, LoopConfig, _DataParallel, fit, learning_rate_at
from train.loop.optimizer import build_optimizer
from train.loop.progress import RunLog
from vqvae.files import DiskFull

# Imports what is slow to import once for all the processes below (AdamW imports torch._dynamo).
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["accelerate.utils", "safetensors.torch", "torch._dynamo", "torch.utils.tensorboard"])
CONFIG = LoopConfig(steps=12, learning_rate=1e-2, warmup_steps=2, num_workers=0, log_every=4)


class TinyModel(nn.Module):
    """Dropout and a moving-average buffer: both must survive a resume."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.register_buffer("average", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:  # (B, 4) -> (B, 1)
        if self.training:
            self.average.lerp_(x.detach().mean(0), 0.1)
        return self.layers(x + 0.1 * self.average)


def tiny_model(dropout: float = 0.2) -> TinyModel:
    torch.manual_seed(0)
    return TinyModel(dropout)


def make_batch(step: int, shard: int, num_shards: int, size: int = 6) -> tuple[Tensor, Tensor]:
    """Shard of the 12 rows of a step, so that two shards of 6 are one of 12."""
    x = torch.randn(12, 4, generator=torch.Generator().manual_seed(step))
    x = x.chunk(num_shards)[shard]
    return x, x.sum(1, keepdim=True)


def squared_error(
    model: nn.Module, batch: tuple[Tensor, Tensor], step: int
) -> tuple[Tensor, dict[str, Tensor | float]]:
    loss = (model(batch[0]) - batch[1]).square().mean()
    return loss, {"error": loss, "constant": 0.5}


def run(folder: Path, config: LoopConfig = CONFIG, **kwargs: object) -> tuple[FitResult, dict[str, Tensor]]:
    model = tiny_model()
    result = fit(model, make_batch, squared_error, config, folder, **kwargs)  # type: ignore[arg-type]
    return result, model.state_dict()


class Stop(Exception):
    """Stands for a run that ends early."""


def join(processes: list) -> None:
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def stop_at(step: int):
    def batch(at: int, shard: int, num_shards: int) -> tuple[Tensor, Tensor]:
        if at == step:
            raise Stop
        return make_batch(at, shard, num_shards)

    return batch


def run_partly(folder: Path, stop: int, config: LoopConfig = CONFIG) -> None:
    """A run with a checkpoint after every step that ends before step `stop`."""
    with pytest.raises(Stop):
        fit(tiny_model(), stop_at(stop), squared_error, replace(config, checkpoint_every_seconds=0), folder)


def assert_same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def _recorded_run(folder: str, pause: float) -> None:
    """A run in a process of its own that notes its batches, and its result where it gets that far."""

    def batch(step: int, shard: int, num_shards: int) -> tuple[Tensor, Tensor]:
        with open(Path(folder) / "batches.txt", "a") as file:
            file.write(f"{step}\n")
        time.sleep(pause)
        return make_batch(step, shard, num_shards)

    config = replace(CONFIG, checkpoint_every_seconds=0.05, num_workers=1, prefetch=1)
    result = fit(tiny_model(), batch, squared_error, config, Path(folder) / "run")
    (Path(folder) / "result.json").write_text(json.dumps([result.final_loss, result.resumed_from]))


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL in the middle, then the same again: the same batches, the same bits."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    process = PROCESSES.Process(target=_recorded_run, args=(str(killed), 0.2))
    process.start()
    deadline = time.monotonic() + 60
    while not list(killed.glob("run/checkpoint-*/state.json")):
        assert process.is_alive() and time.monotonic() < deadline, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (killed / "result.json").exists()
    (killed / "batches.txt").unlink()
    again = [PROCESSES.Process(target=_recorded_run, args=(str(folder), 0.0)) for folder in (killed, whole)]
    join(again)
    resumed_loss, resumed_from = json.loads((killed / "result.json").read_text())
    whole_loss, started_from = json.loads((whole / "result.json").read_text())
    assert resumed_from > 0 and started_from is None
    assert resumed_loss == whole_loss  # bit for bit
    batches = [(folder / "batches.txt").read_text().split() for folder in (killed, whole)]
    assert batches[0] == batches[1][resumed_from:] and len(batches[1]) == CONFIG.steps
    steps = [json.loads(line)["step"] for line in (killed / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == CONFIG.steps


def test_weights_buffers_and_moments_come_back(tmp_path: Path) -> None:
    run_partly(tmp_path / "a", stop=7)
    resumed, state = run(tmp_path / "a")
    whole, expected = run(tmp_path / "b")
    assert resumed.resumed_from == 7 and whole.resumed_from is None
    assert resumed.final_loss == whole.final_loss
    assert_same_state(state, expected)
    assert sorted(p.name for p in (tmp_path / "a").glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-7"]


def test_moments_and_counts_of_steps_come_back_on_the_device_of_their_weights() -> None:
    """The fused AdamW of a GPU reads the counts there. No GPU here: "meta" stands for another device."""
    model = nn.Linear(4, 4, bias=False).to("meta")
    optimizer = torch.optim.AdamW(model.parameters())
    _load_optimizer(model, optimizer, {"weight/step": torch.tensor(3.0), "weight/exp_avg": torch.zeros(4, 4)})
    assert {slot: value.device.type for slot, value in optimizer.state[model.weight].items()} == {
        "step": "meta",
        "exp_avg": "meta",
    }


def test_a_finished_run_is_loaded_and_not_repeated(tmp_path: Path) -> None:
    _, expected = run(tmp_path)
    model = TinyModel()
    result = fit(model, stop_at(0), squared_error, CONFIG, tmp_path)
    assert result.resumed_from == CONFIG.steps and math.isfinite(result.final_loss)
    assert_same_state(model.state_dict(), expected)


def test_half_written_checkpoints_are_named_and_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_partly(tmp_path, stop=5)
    (tmp_path / "checkpoint-5" / "state.json").unlink()
    for left in (".checkpoint-6.partial", ".best.safetensors.0123abcd.partial"):  # as a killed process leaves them
        (tmp_path / left).mkdir()
    result, state = run(tmp_path)
    said = capsys.readouterr().out.replace("\n", "")
    assert result.resumed_from == 4
    assert "checkpoint-5 is half written" in said and ".checkpoint-6.partial is half written" in said
    assert not list(tmp_path.glob(".*.partial")), "each would take the room of a checkpoint for good"
    assert_same_state(state, run(tmp_path / "whole")[1])


def test_a_full_disk_keeps_no_part_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_partly(tmp_path, stop=5)

    def fails(tensors: object, path: Path) -> None:
        path.write_bytes(b"what there was room for")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.loop.checkpoints.save_file", fails)
    with pytest.raises(DiskFull, match="checkpoint-12 could not be written: the disk is full"):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    monkeypatch.undo()
    assert run(tmp_path)[0].resumed_from == 5


def test_a_full_disk_at_the_start_keeps_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_partly(tmp_path, stop=9)
    log = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(log + '{"step": 9, "lo')
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        write(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFull, match="log.jsonl could not be written"):
        RunLog(tmp_path, 8)
    assert (tmp_path / "log.jsonl").read_text().startswith(log)
    monkeypatch.undo()
    RunLog(tmp_path, 8).close()
    assert (tmp_path / "log.jsonl").read_text() == log


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_damaged_files_are_named_with_the_remedy(tmp_path: Path, name: str) -> None:
    run_partly(tmp_path, stop=3)
    path = tmp_path / "checkpoint-3" / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ResumeError, match=rf"checkpoint-3/{name} is damaged.*delete .*checkpoint-3 to go on"):
        run(tmp_path)


def test_unreadable_state_is_named(tmp_path: Path) -> None:
    run_partly(tmp_path, stop=3)
    (tmp_path / "checkpoint-3" / "state.json").write_text('{"step": 3')
    with pytest.raises(ResumeError, match=r"checkpoint-3/state.json cannot be read"):
        run(tmp_path)


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    run_partly(tmp_path, stop=3)
    with pytest.raises(ResumeError, match=r"loop.learning_rate: 0.01 there, 0.5 now"):
        run(tmp_path, replace(CONFIG, learning_rate=0.5))
    with pytest.raises(ResumeError, match=r"batch_size: None there, 64 now"):
        run(tmp_path, fingerprint={"batch_size": 64})
    result, _ = run(tmp_path, replace(CONFIG, log_every=1, keep_checkpoints=1))  # what cannot change the outcome may
    assert result.resumed_from == 3


def test_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    model = nn.Sequential(nn.Linear(4, 1))
    with pytest.raises(ResumeError, match=r"model.safetensors does not fit this model"):
        fit(model, make_batch, squared_error, CONFIG, tmp_path)


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    def tied() -> nn.Sequential:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        return model

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return (model(batch[0]) - batch[1]).square().mean(), {}

    first = tied()
    fit(first, make_batch, loss, CONFIG, tmp_path)
    second = tied()
    fit(second, make_batch, loss, CONFIG, tmp_path)
    assert torch.equal(first[1].weight, second[0].weight) and second[0].weight is second[1].weight


def test_accumulation_equals_batch(tmp_path: Path) -> None:
    def trained(folder: Path, parts: int) -> Tensor:
        model = nn.Linear(4, 1)
        with torch.no_grad():
            nn.init.constant_(model.weight, 0.1), nn.init.zeros_(model.bias)
        config = replace(CONFIG, gradient_accumulation=parts)
        fit(model, make_batch, squared_error, config, folder)
        return model.weight.detach()

    whole, parts = trained(tmp_path / "1", 1), trained(tmp_path / "3", 3)
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


def test_batches_count_by_their_weight_and_their_parts_are_forwarded_one_by_one(tmp_path: Path) -> None:
    """A step of 12 rows in one batch, and as two batches of 2 and 10 rows, the second in two parts."""

    def uneven(step: int, shard: int, num_shards: int) -> object:
        x, y = make_batch(step, 0, 1)
        cuts = [0, 2] if shard == 0 else [2, 9, 12]
        return [(x[a:b], y[a:b]) for a, b in itertools.pairwise(cuts)]

    def rows(batch: tuple[Tensor, Tensor]) -> Tensor:
        return torch.tensor(float(len(batch[0])))

    weights, losses = [], []
    for batches, parts in ((make_batch, 1), (uneven, 2)):
        model = tiny_model(dropout=0.0)
        model.forward = model.layers.forward  # type: ignore[method-assign]  # the average knows no weights
        config = replace(CONFIG, gradient_accumulation=parts)
        folder, several = tmp_path / str(parts), parts > 1
        result = fit(model, batches, squared_error, config, folder, in_parts=several, weight=rows)  # type: ignore[arg-type]
        weights.append(model.layers[0].weight.detach()), losses.append(result.final_loss)
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-5, atol=1e-6)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_frozen_weights_are_not_written_but_must_be_the_same(tmp_path: Path) -> None:
    def frozen(scale: float) -> TinyModel:
        model = tiny_model()
        model.layers[0].requires_grad_(False)
        model.layers[0].weight.mul_(scale)
        return model

    fit(frozen(1.0), make_batch, squared_error, CONFIG, tmp_path)
    held = load_file(tmp_path / f"checkpoint-{CONFIG.steps}" / "model.safetensors")
    assert held.keys() == {"average", "layers.2.weight", "layers.2.bias"}
    assert fit(frozen(1.0), stop_at(0), squared_error, CONFIG, tmp_path).resumed_from == CONFIG.steps
    with pytest.raises(ResumeError, match="frozen_weights"):
        fit(frozen(2.0), make_batch, squared_error, CONFIG, tmp_path)


def test_other_recipes_refuse_to_be_sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="this recipe trains data-parallel and was launched with FSDP"):
        run(tmp_path)


def test_a_warm_up_is_a_number_of_steps_or_a_share_of_them() -> None:
    rates = [[learning_rate_at(LoopConfig(steps=50, warmup_steps=w), s) for s in range(50)] for w in (5, 0.1)]
    assert rates[0] == rates[1] and LoopConfig(steps=4, warmup_steps=0.03).num_warmup_steps == 0


def _distributed_run(rank: int, world: int, port: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    model = tiny_model(dropout=0.0)
    model.average.requires_grad_(False)
    model.eval()
    model.train = lambda mode=True: model  # type: ignore[assignment, method-assign]  # the average is not synced here
    result = fit(model, make_batch, squared_error, replace(CONFIG, steps=6), folder)
    assert result.shards == world, "the processes did not find each other"
    if world > 1:
        group = torch.distributed.distributed_c10d._get_default_group()
        waits = group._get_backend(torch.device("cpu")).options._timeout
        assert waits >= timedelta(hours=1), "the main process may evaluate and save for longer than NCCL's 10 minutes"
    if result.is_main:
        torch.save({"weights": model.state_dict(), "loss": result.final_loss}, f"{folder}-{world}.pt")


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    results = []
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = (world, port, str(tmp_path / f"run{world}"))
        join([PROCESSES.Process(target=_distributed_run, args=(rank, *arguments)) for rank in range(world)])
        results.append(torch.load(f"{arguments[2]}-{world}.pt", weights_only=True))
    one, two = results
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-5, atol=1e-6)


def test_frozen_parameters_stay_and_the_others_move(tmp_path: Path) -> None:
    model = tiny_model()
    model.layers[0].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, make_batch, squared_error, CONFIG, tmp_path)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("layers.0."), name


def test_groups_scale_the_rate_and_must_cover_the_model(tmp_path: Path) -> None:
    model = tiny_model()
    first, last = list(model.layers[0].parameters()), list(model.layers[2].parameters())
    optimizer = build_optimizer(model, CONFIG, [{"params": first, "lr_scale": 0.1}, {"params": last}])
    assert sorted((g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups) == [
        (0.1, 0.0),
        (0.1, CONFIG.weight_decay),
        (1.0, 0.0),
        (1.0, CONFIG.weight_decay),
    ]
    with pytest.raises(ValueError, match=r"leave out 2 trainable parameters \(layers.2.bias, layers.2.weight"):
        build_optimizer(model, CONFIG, [{"params": first}])
    with pytest.raises(ValueError, match=r"layers\.0\.weight of param_groups is in two groups"):
        build_optimizer(model, CONFIG, [{"params": first}, {"params": first + last}])
    with pytest.raises(ValueError, match=r"unknown keys \['lr'\].*known: params, lr_scale, weight_decay"):
        build_optimizer(model, CONFIG, [{"params": first + last, "lr": 0.1}])


def test_a_loss_that_is_not_a_number_stops_before_the_weights_are_touched(tmp_path: Path) -> None:
    def breaks(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        loss, scalars = squared_error(model, batch, step)
        return loss * (math.nan if step == 5 else 1.0), scalars

    model = tiny_model()
    config = replace(CONFIG, checkpoint_every_seconds=0)
    with pytest.raises(FloatingPointError, match=r"step 5: loss nan.*checkpoint-5 is kept"):
        fit(model, make_batch, breaks, config, tmp_path)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert run(tmp_path)[0].resumed_from == 5


def test_records_are_logged_and_handed_on(tmp_path: Path) -> None:
    records: list[dict] = []
    result, _ = run(tmp_path, on_log=records.append)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == records
    assert [r["step"] for r in records] == [4, 8, 12]
    assert records[0]["losses"]["constant"] == 0.5 and records[0]["losses"]["error"] == records[0]["loss"]
    assert 0 <= result.data_wait_share <= 1 and result.seconds > 0


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant", "exponential"])
def test_the_learning_rate_is_a_function_of_the_step(schedule: str) -> None:
    config = LoopConfig(steps=100, learning_rate=1.0, warmup_steps=10, schedule=schedule, min_lr_ratio=0.1)
    rates = [learning_rate_at(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0.1, abs=0.05))


def test_sums_of_a_step_do_not_depend_on_the_order_of_threads(tmp_path: Path) -> None:
    """Indexed sums of this size are spread over threads, whose additions come in any order by default."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(8, 4))

        def forward(self, index: Tensor) -> Tensor:  # (N,) -> (N, 4)
            return self.table[index]

    def make(step: int, shard: int, num_shards: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        return torch.randint(8, (50_000,), generator=generator), torch.randn(50_000, 4, generator=generator)

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return (model(batch[0]) - batch[1]).square().sum(), {}

    threads, results = torch.get_num_threads(), []
    torch.set_num_threads(2)
    for number in range(3):
        model = Table()
        fit(model, make, loss, replace(CONFIG, grad_clip=0), tmp_path / str(number))
        results.append(model.table.detach())
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert not torch.are_deterministic_algorithms_enabled(), "the caller's setting is left as it was"


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_is_autocast_where_the_device_computes_in_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    native: bool,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr("train.loop.fit.computes_bf16", lambda device: native)
    seen: list[torch.dtype] = []

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        out = model(batch[0])
        seen.append(out.dtype)
        return (out.float() - batch[1]).square().mean(), {}

    model = tiny_model()
    fit(model, make_batch, loss, replace(CONFIG, precision="bf16", steps=2), tmp_path)
    assert set(seen) == {dtype} and {p.dtype for p in model.parameters()} == {torch.float32}
    assert ("float32 instead of bf16" in capsys.readouterr().out) != native


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match=r"warmup_steps \(20\) must not exceed steps \(10\)"):
        LoopConfig(steps=10, warmup_steps=20)
    with pytest.raises(ValueError, match="schedule exponential with min_lr_ratio 0 has no learning rate"):
        LoopConfig(schedule="exponential", min_lr_ratio=0.0)


def test_data_that_changed_are_refused_and_older_checkpoints_resume(tmp_path: Path) -> None:
    """A checkpoint that was made before the digest of the data was kept is not held against it."""
    fit(tiny_model(), make_batch, squared_error, CONFIG, tmp_path / "old", fingerprint={"a": 1})
    newer = {"a": 1, "data_digest": "x"}
    again = fit(tiny_model(), stop_at(0), squared_error, CONFIG, tmp_path / "old", fingerprint=newer)
    assert again.resumed_from == CONFIG.steps
    fit(tiny_model(), make_batch, squared_error, CONFIG, tmp_path / "new", fingerprint={"data_digest": "x"})
    with pytest.raises(ResumeError, match="data_digest: 'x' there, 'y' now"):
        fit(tiny_model(), stop_at(0), squared_error, CONFIG, tmp_path / "new", fingerprint={"data_digest": "y"})


def test_two_processes_start_without_warnings() -> None:
    """DDP gets the switch for its buffers under the name that the installed torch asks for."""
    kwargs = _DataParallel(find_unused_parameters=True).to_kwargs()
    assert kwargs["find_unused_parameters"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=1, rank=0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = torch.nn.parallel.DistributedDataParallel(tiny_model(), **kwargs)
        assert not wrapped.broadcast_buffers
    finally:
        torch.distributed.destroy_process_group()
