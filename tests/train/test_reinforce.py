"""GRPO on toy figures: a run from end to end, its skipped steps, its guard, and its return after a kill."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_families import FAMILIES
from toy_figures import make_toy_folder, toy_problems

from perception.interleave.chains import InterleavedModel, Look, build_batch
from perception.interleave.generation import InterleavedGenerator, RowDraws
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures, VisualLayout
from perception.vocabulary.names import PerceptionVocabulary, Span
from train import reinforce
from train.data.geometry import GeometryData
from train.data.interleaved import ChainEncoder, ChainProblem
from train.interleave import read_interleaved
from train.loop.fit import LoopConfig
from train.reinforce import GRPO, HeldOutReward, PromptBatches, ReinforceConfig, RewardWeights, train
from train.rl.policy import ChainLogProbs, chain_log_probs

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


def test_chains_are_drawn_with_the_probabilities_that_are_trained(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also behind the last look, where generation bans the interleave token, and if the folder sets a penalty."""
    settings = InterleaveSettings(trigger="generated", max_looks=1)
    shutil.copytree(start, tmp_path / "chat")
    chat = json.loads((tmp_path / "chat" / "generation_config.json").read_text())
    (tmp_path / "chat" / "generation_config.json").write_text(json.dumps({**chat, "repetition_penalty": 1.5}))
    folder, reference = (read_interleaved(tmp_path / "chat", settings) for _ in range(2))
    monkeypatch.setitem(reinforce.REWARDS, "answer", lambda completions, **_: [0.5] * len(completions))
    model = folder.model.eval()
    head, often = model.model.get_output_embeddings().weight, folder.vocabulary.interleave_id
    torch.nn.init.normal_(head.data[often], std=1.0, generator=torch.Generator().manual_seed(1))
    grpo = GRPO(config(start, tmp_path), folder.encoder, reference.model.eval())
    share = PromptBatches(folder.encoder, PROBLEMS, 2, 0, num_generations=4)(0, 0, 1)
    drawn, trained, answers = torch.zeros(8), list[ChainLogProbs](), list[list[int | Look]]()

    def tokens(self, scores, rows=None, _tokens=RowDraws.tokens):
        found = _tokens(self, scores, rows)
        assert rows is not None
        drawn[list(rows)] += scores.log_softmax(-1).gather(1, found[:, None])[:, 0]
        return found

    def log_probs(output, batch, *given):
        trained.append(chain_log_probs(output, batch, *given))
        return trained[-1]

    def rollouts(self, *given, _rollouts=GRPO.rollouts):
        answers.extend(_rollouts(self, *given))
        return answers

    monkeypatch.setattr(RowDraws, "tokens", tokens)
    monkeypatch.setattr(reinforce, "chain_log_probs", log_probs)
    monkeypatch.setattr(GRPO, "rollouts", rollouts)
    grpo(model, share, 0)
    written_behind = [len(answer) - 1 - n for answer in answers for n, p in enumerate(answer) if isinstance(p, Look)]
    assert len(written_behind) > 2 and max(written_behind) > 2
    torch.testing.assert_close(trained[0].tokens.sum(1), drawn, atol=1e-3, rtol=0)
    assert trained[0].entropy.isfinite().all()


@pytest.mark.parametrize(("reward", "truth"), [("count", "count"), ("box_iou", "boxes_xyxy"), ("depth_order",) * 2])
def test_rewards_for_truths_that_problems_lack_are_refused(
    start: Path, tmp_path: Path, reward: str, truth: str
) -> None:
    settings = config(start, tmp_path, rewards=RewardWeights(**{reward: 1.0}))
    with pytest.raises(ValueError, match=rf"rewards.{reward} \(1.0\) .* truth {truth}, and problem 0 has none; set"):
        train(settings, PROBLEMS, PROBLEMS[:1], OFTEN)
    some = [replace(PROBLEMS[0], truths={truth: 1, "more": 2}), replace(PROBLEMS[1], truths={"more": 2})]
    with pytest.raises(ValueError, match="problem 1 has more"):
        train(settings, some, PROBLEMS[:1], OFTEN)
    assert not (tmp_path / "run").exists()


def test_problems_need_only_the_truths_that_are_rewarded(start: Path, tmp_path: Path) -> None:
    some = [replace(p, truths={"count": n} | ({"more": 1} if n else {})) for n, p in enumerate(PROBLEMS)]
    reinforce.check_truths(RewardWeights(count=1.0), some)
    grpo, _ = grpo_of(start, tmp_path)
    columns = PromptBatches(grpo.encoder, some, 6, 0, num_generations=2)(0, 0, 1)["columns"]
    assert set(columns) == {"answer", "count"} and sorted(columns["count"]) == sorted([*range(6)] * 2)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "idefics3"])
def test_a_step_processes_each_image_once(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and features of repeated prompts are those of prompts that were each made anew."""
    model, processor = FAMILIES[family](False, 0)
    vocabulary = PerceptionVocabulary(depth_codes=4, depth_grid=(2, 2), num_locations=6)
    layout = VisualLayout.of(model, vocabulary.extend(model, processor.tokenizer).interleave_id, processor.tokenizer)
    encoder = ChainEncoder(processor, vocabulary.bind(processor.tokenizer), layout, OFTEN)
    first, second, third = (p.image.numpy() for p in PROBLEMS[:3])
    problems = [replace(PROBLEMS[0], image=(first, second[:20])), replace(PROBLEMS[1], image=third)]
    wanted = encoder.inputs([p for p in problems for _ in range(3)])
    batches, calls = PromptBatches(encoder, problems, 2, 0, num_generations=3), list[int]()
    monkeypatch.setattr(PromptBatches, "rows", lambda self, step: [0, 1])

    kind = type(processor.image_processor)

    def process(self, images, *given, _process=kind.__call__, **more):
        calls.append(sum(len(one) if isinstance(one, list) else 1 for one in images))
        return _process(self, images, *given, **more)

    monkeypatch.setattr(kind, "__call__", process)
    share = batches(0, 0, 1)
    assert sum(calls) == 3
    for name in share["inputs"]:
        assert torch.equal(share["inputs"][name], wanted[name]), name
    assert {"input_ids", "attention_mask"} <= set(share["inputs"])
    grpo = GRPO(ReinforceConfig(num_generations=3), encoder, None)  # type: ignore[arg-type]
    whole = InterleavedModel(model, VisualTokenSelector.for_model(model), layout)
    found = grpo.features(whole, share)
    torch.testing.assert_close(found.tokens, VisualFeatures.encode(model, wanted).tokens)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ValueError, match="all reward weights are 0"):
        ReinforceConfig(rewards=RewardWeights(answer=0, format=0))
    with pytest.raises(ValueError, match="num_generations must be at least 2 to compare chains, got 1"):
        ReinforceConfig(num_generations=1)


def test_an_evaluation_without_held_out_problems_is_refused(start: Path, tmp_path: Path) -> None:
    """It would find no problem answered right, again and again, and stop the run."""
    with pytest.raises(ValueError, match=r"evaluate_every \(1\) measures on held-out problems, and there are none"):
        train(config(start, tmp_path), PROBLEMS, [], OFTEN)
    never = replace(LOOP, steps=1, evaluate_every=None, patience=None)
    assert train(config(start, tmp_path, loop=never), PROBLEMS, [], OFTEN).steps == 1


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
