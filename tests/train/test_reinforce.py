"""GRPO on toy figures: a run from end to end, its skipped steps, its guard, and its return after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_figures import make_toy_folder, toy_problems

from perception.interleave.chains import Look, build_batch
from perception.interleave.generation import InterleavedGenerator
from perception.interleave.triggers import InterleaveSettings
from perception.vocabulary.names import Span
from train import reinforce
from train.data.geometry import GeometryData
from train.data.interleaved import ChainProblem
from train.interleave import read_interleaved
from train.loop.fit import LoopConfig
from train.reinforce import GRPO, HeldOutReward, PromptBatches, ReinforceConfig, RewardWeights, train

PROBLEMS = toy_problems(6, 0, 32, (4, 4))
OFTEN = InterleaveSettings(heading=r"[a-m]", max_looks=2)
"""An untrained model never writes a heading; it writes letters all the time."""
LOOP = LoopConfig(
    steps=3, learning_rate=1e-3, weight_decay=0, num_workers=0, evaluate_every=1, patience=9, checkpoint_every_seconds=0
)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_toy_folder(folder)
    return folder


@pytest.fixture(autouse=True)
def letters_earn(monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrained model answers nothing right: it is paid for the letter e instead."""

    def reward(completions: list[str], **_: object) -> list[float]:
        return [min(1.0, completion.count("e") / 3) for completion in completions]

    monkeypatch.setitem(reinforce.REWARDS, "answer", reward)


def config(start: Path, folder: Path, **more: object) -> ReinforceConfig:
    paths = {"start": str(start), "out": str(folder / "model"), "run_dir": str(folder / "run")}
    settings = {"batch_size": 2, "num_generations": 4, "max_completion_length": 12, "loop": LOOP, **more}
    return ReinforceConfig(**paths, **settings)  # type: ignore[arg-type]


def grpo_of(start: Path, folder: Path, **more: object) -> tuple[GRPO, PromptBatches]:
    model = read_interleaved(start, OFTEN)
    settings = config(start, folder, **more)
    grpo = GRPO(settings, model.encoder, read_interleaved(start, OFTEN).model.eval())
    batches = PromptBatches(model.encoder, PROBLEMS, settings.batch_size, 0, num_generations=settings.num_generations)
    return grpo, batches


@pytest.mark.parametrize("selection", ["sampled", "deterministic"])
def test_a_step_moves_selector_and_text_model(
    start: Path, tmp_path: Path, selection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reinforce.REWARDS, "answer", lambda completions, **_: [n / 8 for n in range(len(completions))])
    grpo, batches = grpo_of(start, tmp_path, selection=selection, selection_weight=1.0)
    model = read_interleaved(start, OFTEN).model.train()
    model.selector.config = replace(model.selector.config, threshold=0.5)  # an untrained one reaches it
    torch.manual_seed(0)
    loss, scalars = grpo(model, batches(0, 0, 1), 0)
    loss.backward()
    assert model.training and 0 < scalars["triggers"] <= 1 and scalars["length"] <= 12
    assert float(scalars["kl"]) == pytest.approx(0, abs=1e-5), "before the first step the policy is its reference"
    assert model.model.model.language_model.norm.weight.grad.abs().max() > 0
    assert scalars["selected"] > 0 and model.selector.query.weight.grad.abs().max() > 1e-7


def test_chains_with_native_looks_are_replayed_with_the_crops_that_they_were_sampled_with(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(reinforce.REWARDS, "answer", lambda completions, **_: [n / 8 for n in range(len(completions))])
    closer = replace(OFTEN, resolution="native", look_tokens=12)
    folder = read_interleaved(start, closer)
    grpo = GRPO(config(start, tmp_path), folder.encoder, read_interleaved(start, closer).model.eval())
    large = toy_problems(6, 0, 96, (4, 4))  # seen at 32 x 32
    share = PromptBatches(folder.encoder, large, 2, 0, num_generations=4)(0, 0, 1)
    sampled, replayed = [], []

    def generate(self, *given, _generate=InterleavedGenerator.generate, **more):
        sampled.append(_generate(self, *given, **more))
        return sampled[-1]

    def build(*given, **more):
        replayed.append(build_batch(*given, **more))
        return replayed[-1]

    monkeypatch.setattr(InterleavedGenerator, "generate", generate)
    monkeypatch.setattr(reinforce, "build_batch", build)
    loss, scalars = grpo(folder.model.train(), share, 0)
    loss.backward()
    assert scalars["looks"] > 0 and float(scalars["kl"]) == pytest.approx(0, abs=1e-5)
    (found,), (batch,) = sampled, replayed
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch.ids, batch.attention_mask, strict=True)]
    prompts = share["inputs"]["attention_mask"].sum(1).tolist()
    answers = found.sequences[:, share["inputs"]["input_ids"].shape[1] :]
    assert all(
        row[prompt:] == one[: len(row) - prompt].tolist()
        for row, prompt, one in zip(ids, prompts, answers, strict=True)
    )
    assert sum(map(sum, found.inserted)) == int((batch.sources >= 0).sum() - (batch.visual_columns >= 0).sum()) > 0
    assert len(batch.crops["pixel_values"]) > 1
    assert folder.model.selector.query.weight.grad.abs().max() > 1e-7


def test_groups_that_earn_alike_skip_the_step(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reinforce.REWARDS, "answer", lambda completions, **_: [0.5] * len(completions))
    grpo, batches = grpo_of(start, tmp_path, rewards=RewardWeights(format=0), beta=1.0)
    model = read_interleaved(start, OFTEN).model
    torch.nn.init.normal_(model.selector.embedding)  # away from its reference, so that the divergence would pull
    loss, scalars = grpo(model, batches(0, 0, 1), 0)
    loss.backward()
    assert float(scalars["equal_groups"]) == 1
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_rewards_rise_where_they_can(start: Path, tmp_path: Path) -> None:
    loop = replace(LOOP, steps=40, learning_rate=5e-3, log_every=5, evaluate_every=None, patience=None)
    settings = config(start, tmp_path, loop=loop, batch_size=6, beta=0.0, rewards=RewardWeights(format=0))
    train(settings, PROBLEMS, PROBLEMS[:2], OFTEN)
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    rewards = [record["losses"]["reward"] for record in records]
    assert rewards[-1] > rewards[0] + 0.3, rewards


def test_a_run_that_was_stopped_ends_like_one_that_was_not(start: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    class Stops(list):
        reads = 0

        def __getitem__(self, index):
            Stops.reads += 1
            if Stops.reads > 4:
                raise Stopped
            return super().__getitem__(index)

    parts, whole = tmp_path / "parts", tmp_path / "whole"
    with pytest.raises(Stopped):
        train(config(start, parts), Stops(PROBLEMS), PROBLEMS[:2], OFTEN)
    resumed = train(config(start, parts), PROBLEMS, PROBLEMS[:2], OFTEN)
    fresh = train(config(start, whole), PROBLEMS, PROBLEMS[:2], OFTEN)
    assert resumed.resumed_from == 2 and fresh.resumed_from is None
    assert resumed.final_loss == fresh.final_loss
    one, other = (read_interleaved(folder / "model").model.state_dict() for folder in (parts, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)
    records = [json.loads(line) for line in (whole / "run" / "log.jsonl").read_text().splitlines()]
    assert {"reward", "kl", "length", "triggers", "entropy"} <= set(records[-1]["losses"])
    assert (whole / "run" / "curves.png").stat().st_size > 10_000
    reinforce.export(replace(config(start, whole), export="best", out=str(tmp_path / "best")), OFTEN)
    best = read_interleaved(tmp_path / "best").model.state_dict()
    assert all(torch.equal(best[name], other[name]) for name in other), "a run ends with its best weights"


def test_a_policy_without_entropy_is_no_better_however_it_does(start: Path, tmp_path: Path) -> None:
    grpo, _ = grpo_of(start, tmp_path)
    look = HeldOutReward(grpo, PROBLEMS[:2])
    grpo.entropy = 1.0
    assert math.isfinite(look(grpo.reference).loss)
    grpo.entropy = 0.0
    assert look(grpo.reference).loss == math.inf


def test_reserved_ids_are_never_rolled_out(start: Path, tmp_path: Path) -> None:
    grpo, batches = grpo_of(start, tmp_path)
    torch.manual_seed(0)
    answers = grpo.rollouts(grpo.reference, batches(0, 0, 1))
    written = {part for answer in answers for part in answer if not isinstance(part, Look)}
    assert not written & set(grpo.banned)


def test_chains_of_perception_earn_by_their_truths(start: Path, tmp_path: Path) -> None:
    grpo, _ = grpo_of(start, tmp_path, rewards=RewardWeights(answer=0, format=0, box_iou=1, count=0.5))
    problems = [replace(p, truths={"boxes_xyxy": [[0, 0, 0.5, 0.5]], "count": 1}) for p in PROBLEMS]
    share = PromptBatches(grpo.encoder, problems, 2, 0, num_generations=2)(0, 0, 1)
    vocabulary, tokenizer = grpo.encoder.vocabulary, grpo.encoder.processor.tokenizer
    boxes = vocabulary.span_ids(Span("boxes", (0, 0, 1, 1)))
    right = [*boxes, *tokenizer.encode(" 1.", add_special_tokens=False), tokenizer.eos_token_id]
    found = grpo.reward([right, boxes, boxes[:3], [5]], share["columns"])
    assert set(found) == {"box_iou", "count"} and found["count"].tolist() == [1, 0, 0, 0]
    assert found["box_iou"][0] == found["box_iou"][1] > 0 and found["box_iou"][2:].tolist() == [0, 0]


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="all reward weights are 0"):
        ReinforceConfig(rewards=RewardWeights(answer=0, format=0))
    with pytest.raises(ValueError, match="num_generations must be at least 2 to compare chains, got 1"):
        ReinforceConfig(num_generations=1)


def test_held_out_problems_are_drawn_as_those_to_train_on_with_another_seed(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[GeometryData] = []

    def stop(data: GeometryData) -> list[ChainProblem]:
        asked.append(data)
        if len(asked) == 2:
            raise InterruptedError
        return PROBLEMS

    monkeypatch.setattr(reinforce, "read_problems", stop)
    data = GeometryData(count=9, seed=4, image_size=32, grid_size=4)
    with pytest.raises(InterruptedError):
        reinforce.train(config(start, tmp_path, data=data, num_held_out=3))
    assert asked == [data, replace(data, seed=5, count=3)]
