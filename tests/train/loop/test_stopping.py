"""Ctrl-C ends a run with a checkpoint and one line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from train.loop.fit import LoopConfig, fit
from train.loop.stopping import Stopped

CONFIG = LoopConfig(steps=8, num_workers=0, log_every=4)


def batch(step: int, shard: int, num_shards: int) -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(step))


def loss(model: nn.Module, x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
    return model(x).square().mean(), {}


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_its_step_and_ends_like_a_whole_one(tmp_path: Path, number: signal.Signals) -> None:
    def interrupted(model: nn.Module, x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == 4:
            os.kill(os.getpid(), number)  # in the middle of the fifth step
        return loss(model, x, step)

    whole, model = tiny(), tiny()
    fit(whole, batch, loss, CONFIG, tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(
        Stopped, match=r"stopped after 5 of 8 steps; .*checkpoint-5 is kept, and the same command goes on"
    ):
        fit(model, batch, interrupted, CONFIG, tmp_path / "run")
    assert signal.getsignal(number) == before
    model = tiny()
    result = fit(model, batch, loss, CONFIG, tmp_path / "run")
    assert result.resumed_from == 5 and result.steps == 8
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("Stopped('stopped after 5 of 8 steps')", "stopped after 5 of 8 steps\n"),
        ("KeyboardInterrupt", "stopped; the same command goes on from what was saved\n"),
        (
            "DiskFull(Path('a'))",
            "error: a could not be written: the disk is full (No space left on device); free space, "
            "then run this again\n",
        ),
        ("ValueError('steps must be at least 1, got 0')", "error: steps must be at least 1, got 0\n"),
    ],
)
def test_a_program_ends_in_one_line(tmp_path: Path, raised: str, said: str) -> None:
    code = f"""
        from pathlib import Path
        from vqvae.files import DiskFull
        from train.loop.stopping import Stopped, end_in_one_line
        end_in_one_line()
        raise {raised}
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.stderr == said and done.returncode != 0


def test_ctrl_c_reaches_all_processes_and_ends_in_one_line(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        import torch
        from train.loop.fit import LoopConfig, fit
        from train.loop.stopping import end_in_one_line

        def loss(model, x, step):
            if step == 3:
                os.killpg(0, signal.SIGINT)  # as a terminal does: to the worker that makes batches, too
            return model(x).square().mean(), {}

        end_in_one_line()
        batch = lambda step, shard, num_shards: torch.ones(4, 3)
        fit(torch.nn.Linear(3, 3), batch, loss, LoopConfig(steps=500, num_workers=1, prefetch=1), sys.argv[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, start_new_session=True)
    assert done.stderr.count("\n") == 1 and "stopped after 4 of 500 steps" in done.stderr, done.stderr
    assert (tmp_path / "checkpoint-4" / "state.json").exists() and done.returncode != 0


def test_processes_that_notice_ctrl_c_at_different_steps_stop_together(tmp_path: Path) -> None:
    """The main process says when, and has its checkpoint; the other would leave it alone in the next step."""
    code = """
        import os, signal, sys
        import torch
        from train.loop.fit import LoopConfig, fit
        from train.loop.stopping import end_in_one_line

        steps = 0

        def after_step():
            global steps
            steps += 1
            if steps == (5 if os.environ["RANK"] == "0" else 4):
                os.kill(os.getpid(), signal.SIGINT)

        end_in_one_line()
        torch.set_num_threads(1)
        batch = lambda step, shard, num_shards: torch.ones(4, 3)
        loss = lambda model, x, step: (model(x).square().mean(), {})
        config = LoopConfig(steps=500, num_workers=0, trackers=())
        fit(torch.nn.Linear(3, 3), batch, loss, config, sys.argv[1], after_step=after_step)
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    both = [
        subprocess.Popen(
            command, env=os.environ | world | {"RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert "stopped after 5 of 500 steps" in said[0] and "Error" not in said[0] + said[1], said
    assert (tmp_path / "checkpoint-5" / "state.json").exists()
