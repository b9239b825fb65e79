"""GRPO shared out: two processes, or two batches of one, take the steps that one process takes with all rows."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_figures import make_toy_folder, toy_problems

from perception.interleave.chains import InterleavedModel, Look
from perception.interleave.generation import RowDraws
from perception.interleave.selector import SelectorConfig, VisualTokenSelector
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures
from train import reinforce
from train.interleave import read_interleaved
from train.loop.evaluation import Evaluation
from train.loop.fit import LoopConfig
from train.reinforce import GRPO, HeldOutReward, PromptBatches, ReinforceConfig, RewardWeights, train

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["train.reinforce", "accelerate.utils", "torch.utils.tensorboard"])
PROBLEMS = [replace(p, truths={"place": n}, answer=str(n)) for n, p in enumerate(toy_problems(4, 0, 32, (4, 4)))]
OFTEN = InterleaveSettings(heading=r"[a-m]", max_looks=2)
LOOP = LoopConfig(
    steps=3,
    learning_rate=1e-3,
    weight_decay=0,
    num_workers=0,
    evaluate_every=1,
    patience=9,
    log_every=1,
    checkpoint_every_seconds=0,
    find_unused_parameters=True,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_toy_folder(folder)
    return folder


def letters(completions: list[str], place: list[int], **_: object) -> list[float]:
    """Pays for the letter e; chains of odd problems, all of the second process's, earn alike."""
    return [0.5 if n % 2 else min(1.0, c.count("e") / 3) for c, n in zip(completions, place, strict=True)]


def config(start: Path, folder: Path, **loop: object) -> ReinforceConfig:
    return ReinforceConfig(
        start=str(start),
        out=str(folder / "model"),
        run_dir=str(folder / "run"),
        batch_size=4,
        num_generations=4,
        max_completion_length=10,
        beta=0.5,
        rewards=RewardWeights(format=0),
        loop=replace(LOOP, **loop),  # type: ignore[arg-type]
    )


class Stopped(Exception):
    """Stands for a run that is killed."""


def run(start: Path, folder: Path, rank: int = 0, stop: int | None = None, **loop: object) -> dict[str, object]:
    """A run, and who did what in it: also in `folder`/who-RANK.json. Raises Stopped at step `stop`."""
    folder.mkdir(exist_ok=True)
    who: dict[str, object] = {"looks": 0, "models": []}

    class InOrder(PromptBatches):
        """Every step has problems 0, 1, 2, 3: shard 1 of two has the odd ones."""

        def rows(self, step: int) -> list[int]:
            if step == stop:
                raise Stopped
            return list(range(self.batch_size))

    class Counted(HeldOutReward):
        def __call__(self, model: InterleavedModel) -> Evaluation:
            who["looks"] += 1  # type: ignore[operator]
            return super().__call__(model)

    rolled_out = GRPO.rollouts

    def rollouts(self, model, share):
        who["models"].append(type(model).__name__)  # type: ignore[attr-defined]
        return rolled_out(self, model, share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(reinforce.REWARDS, "answer", letters)
        patch.setattr(reinforce, "PromptBatches", InOrder)
        patch.setattr(reinforce, "HeldOutReward", Counted)
        patch.setattr(GRPO, "rollouts", rollouts)
        try:
            result = train(config(start, folder, **loop), PROBLEMS, PROBLEMS[:2], OFTEN)
            who |= {"shards": result.shards, "resumed": result.resumed_from}
        except Stopped:
            pass
    (folder / f"who-{rank}.json").write_text(json.dumps(who))
    return who


def _process(rank: int, port: int, start: str, folder: str, stop: int | None) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    run(Path(start), Path(folder), rank, stop)


def two_processes(start: Path, folder: Path, stop: int | None = None) -> list[dict[str, object]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [(rank, port, str(start), str(folder), stop) for rank in range(2)]
    processes = [PROCESSES.Process(target=_process, args=given) for given in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    return [json.loads((folder / f"who-{rank}.json").read_text()) for rank in range(2)]


def assert_same_run(start: Path, one: Path, other: Path) -> None:
    first, second = (load_file(folder / "run" / "checkpoint-3" / "model.safetensors") for folder in (one, other))
    began = read_interleaved(start).model.state_dict()
    moved = max(float((first[name] - began[name]).abs().max()) for name in first)
    apart = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert apart < moved / 20, (apart, moved)
    logs = [
        [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        for folder in (one, other)
    ]
    steps = [[record for record in log if "losses" in record] for log in logs]
    assert len(steps[0]) == len(steps[1]) == 3
    for a, b in zip(*steps, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
        for name in ("reward", "length", "looks", "kl", "equal_groups"):
            assert a["losses"][name] == pytest.approx(b["losses"][name], abs=1e-4), name


def test_two_processes_take_the_steps_of_one(start: Path, tmp_path: Path) -> None:
    """One of them has nothing to compare in any step; the run is stopped in between and goes on."""
    alone = run(start, tmp_path / "one")
    before = two_processes(start, tmp_path / "two", stop=2)
    after = two_processes(start, tmp_path / "two")
    assert alone["shards"] == 1 and [who["shards"] for who in after] == [2, 2], "the processes did not meet"
    assert [who["resumed"] for who in after] == [2, 2]
    assert [who["looks"] for who in before + after] == [2, 0, 1, 0], "the main process alone looks at held-out data"
    assert {name for who in before + after for name in who["models"]} == {"InterleavedModel"}, "not DDP's wrapper"  # type: ignore[attr-defined]
    assert_same_run(start, tmp_path / "one", tmp_path / "two")
    assert read_interleaved(tmp_path / "two" / "model").settings == OFTEN


def test_two_batches_of_a_step_are_one(start: Path, tmp_path: Path) -> None:
    run(start, tmp_path / "whole")
    assert run(start, tmp_path / "parts", gradient_accumulation=2)["shards"] == 2
    assert_same_run(start, tmp_path / "whole", tmp_path / "parts")


def test_shards_share_images_and_draws_of_a_step(start: Path) -> None:
    encoder = read_interleaved(start, OFTEN).encoder
    batches = PromptBatches(encoder, PROBLEMS, 4, seed=1, num_generations=3)
    whole, shards = batches(5, 0, 1), [batches(5, shard, 2) for shard in range(2)]
    assert len(whole["images"]["pixel_values"]) == 4 and len(whole["inputs"]["input_ids"]) == 12
    assert len(set(whole["seeds"])) == 12 and whole["seeds"] != batches(6, 0, 1)["seeds"]
    for place in range(4):
        shard, start_at = shards[place % 2], place // 2 * 3
        assert shard["seeds"][start_at : start_at + 3] == whole["seeds"][place * 3 : place * 3 + 3]


def test_images_encoded_once_are_those_of_every_chain(start: Path) -> None:
    folder = read_interleaved(start, OFTEN)
    grpo = GRPO(ReinforceConfig(num_generations=3), folder.encoder, folder.model)
    share = PromptBatches(folder.encoder, PROBLEMS, 2, seed=1, num_generations=3)(0, 0, 1)
    batches = PromptBatches(folder.encoder, PROBLEMS, 2, seed=1)
    each = [problem for problem in batches.shares(0, 0, 1) for _ in range(3)]
    wanted = VisualFeatures.encode(folder.model.model, folder.encoder.inputs(each)).tokens
    torch.testing.assert_close(grpo.features(folder.model, share).tokens, wanted)
    assert not torch.allclose(wanted[: len(wanted) // 2], wanted[len(wanted) // 2 :])


def test_rows_draw_with_the_probabilities_they_are_given() -> None:
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    draws = RowDraws([3], VisualTokenSelector(SelectorConfig(4, threshold=0.5)))
    found = torch.bincount(torch.cat([draws.tokens(scores) for _ in range(5000)]), minlength=4) / 5000
    torch.testing.assert_close(found, scores[0].softmax(-1), atol=0.02, rtol=0)
    assert found[2] == 0
    looks = torch.stack([draws.select(scores[0], 0, 0) for _ in range(5000)]).float().mean(0)
    torch.testing.assert_close(looks, scores[0].sigmoid(), atol=0.02, rtol=0)


def test_a_row_draws_the_same_alone_and_in_a_batch(start: Path, tmp_path: Path) -> None:
    folder = read_interleaved(start, OFTEN)
    settings = replace(config(start, tmp_path), temperature=1.0)
    grpo = GRPO(settings, folder.encoder, folder.model)
    batches = PromptBatches(folder.encoder, PROBLEMS, 4, 0, num_generations=4)
    whole = grpo.rollouts(folder.model, batches(0, 0, 1))
    halves = [grpo.rollouts(folder.model, batches(0, shard, 2)) for shard in range(2)]
    merged = [halves[place % 2][place // 2 * 4 + n] for place in range(4) for n in range(4)]
    assert whole == merged
    assert any(isinstance(part, Look) for answer in whole for part in answer)
    assert len({str(answer) for answer in whole}) > 12, "chains of a problem differ"
