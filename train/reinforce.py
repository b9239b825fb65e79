"""Trains interleaved reasoning with GRPO (`python -m train.reinforce`), MINT-CoT's third stage.

Rollouts and loss run in the project's own loop: on-policy, one optimiser step per batch of rollouts. trl's GRPOTrainer
does not fit: its `rollout_func` may write any chain, but its loss sees only `input_ids` and pixel values, so it can
neither insert embeddings nor add the log-probability of a selection.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perception.interleave.chains import InterleavedModel, LabelRule, Look, build_batch
from perception.interleave.generation import InterleavedGenerator, RowDraws
from perception.interleave.triggers import GENERATED, InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures, images_of, repeat_rows
from train.data.geometry import GeometryData, read_problems
from train.data.interleaved import ChainBatches, ChainEncoder, ChainProblem
from train.data.published_chains import PublishedData
from train.interleave import (
    FREE,
    digest_of,
    interleaved_groups,
    published_split,
    read_interleaved,
    write_checkpoint,
)
from train.loop.checkpoints import RunState
from train.loop.command_line import command_line, fingerprint, parse_config
from train.loop.evaluation import Evaluation
from train.loop.fit import FitResult, LoopConfig, fit
from train.rl.answers import accuracy, answer_problems, answer_text
from train.rl.policy import (
    SAMPLED,
    Selection,
    chain_log_probs,
    equal_groups,
    group_advantages,
    policy_loss,
    reference_kl,
)
from train.rl.rewards import PERCEPTION_REWARDS, REWARDS, TRUTHS

_LEAST_ENTROPY = 1e-3
"""Nats per token. A policy below it has collapsed to one chain per problem: its groups are equal and teach nothing, so
an evaluation that finds it counts as no improvement"""


@dataclass(frozen=True)
class RewardWeights:
    """Weight of each reward term; 0 leaves the term out."""

    answer: float = 1.0
    """the final answer is right"""
    format: float = 0.1
    """steps are numbered and one answer follows them"""
    box_iou: float = 0.0
    """overlap of drawn and true boxes; problems need the truth boxes_xyxy"""
    depth_order: float = 0.0
    """order of the depth readings of points; problems need the truth depth_order"""
    count: float = 0.0
    """the count is right; problems need the truth count"""

    @property
    def used(self) -> dict[str, float]:
        return {name: weight for name, weight in vars(self).items() if weight}


@dataclass(frozen=True)
class ReinforceConfig:
    """Trains a model with GRPO. Names follow trl's GRPOConfig."""

    start: str = "runs/geometry/interleaved/model"
    """folder of the model to start from"""
    out: str = "runs/geometry/reinforced/model"
    """folder of the model that did best on held-out problems"""
    run_dir: str = "runs/geometry/reinforced"
    """folder for checkpoints and logs"""
    export: str = ""
    """name of a checkpoint in run_dir, such as checkpoint-500, or best: write it as a model to out, and train nothing.
    The other settings must be those of the run"""
    data: GeometryData = field(default_factory=GeometryData)
    """drawn geometry problems to train on"""
    num_held_out: int = 200
    """further problems, drawn with the next seed, that decide when to stop; benchmarks measure on others"""
    published: PublishedData = field(default_factory=PublishedData)
    """solved problems of your own; if given, the drawn problems are not used"""
    batch_size: int = 8
    """problems per optimiser step, over all devices"""
    num_generations: int = 4
    """chains sampled per problem"""
    max_completion_length: int = 120
    """tokens per chain at most"""
    temperature: float = 1.0
    """sampling temperature of the chains"""
    beta: float = 0.02
    """weight of the KL divergence from the start model"""
    selection: Selection = SAMPLED
    """how a look selects visual tokens. sampled: drawn, a true policy gradient. deterministic: by the threshold, as in
    the paper"""
    selection_weight: float | None = None
    """weight of the looks' log-probabilities; none: 1 for sampled, the paper's 0.02 for deterministic"""
    rewards: RewardWeights = field(default_factory=RewardWeights)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=300,
            learning_rate=2e-5,
            weight_decay=0.0,
            warmup_steps=10,
            schedule="constant",
            precision="bf16",
            evaluate_every=50,
            patience=3,
            num_workers=0,
            find_unused_parameters=True,
        )
    )

    def __post_init__(self) -> None:
        if not self.rewards.used:
            raise ValueError(f"all reward weights are 0, so nothing can be learned; set one of {self.rewards}")
        if self.num_generations < 2:
            raise ValueError(f"num_generations must be at least 2 to compare chains, got {self.num_generations}")

    @property
    def weight_of_looks(self) -> float:
        if self.selection_weight is not None:
            return self.selection_weight
        return 1.0 if self.selection == SAMPLED else 0.02


@dataclass(frozen=True)
class PromptBatches(ChainBatches):
    """Prompts of a step. Each is repeated `num_generations` times, its images are kept once, and each chain has its own
    seed, so that what a chain draws does not depend on how problems are split over devices."""

    num_generations: int = 4

    def __call__(self, step: int, shard: int, num_shards: int) -> Mapping[str, Any]:
        problems, times = self.shares(step, shard, num_shards), self.num_generations
        columns: dict[str, list[Any]] = {"answer": [problem.answer for problem in problems for _ in range(times)]}
        for name in problems[0].truths:
            if all(name in problem.truths for problem in problems):
                columns[name] = [problem.truths[name] for problem in problems for _ in range(times)]
        once = self.encoder.inputs(problems)
        native = self.encoder.native(problems, once)
        inputs = {name: once[name].repeat_interleave(times, 0) for name in ("input_ids", "attention_mask")}
        if "image_grid_thw" in once:  # positions of Qwen-VL's tokens; nothing else is needed beside encoded images
            grids = once["image_grid_thw"].split([len(problem.images) for problem in problems])
            inputs["image_grid_thw"] = torch.cat([own.repeat(times, 1) for own in grids])
        places = range(shard, self.batch_size, num_shards)  # of the problems among those of the step
        return {
            "inputs": inputs,
            "images": images_of(once),
            "native": None if native is None else native.repeated(times),
            "columns": columns,
            "seeds": [_seed(self.seed, step, place, n) for place in places for n in range(times)],
        }


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@dataclass
class GRPO:
    """Loss of a step: samples chains, rewards them, and weights their log-probabilities by their advantages."""

    config: ReinforceConfig
    encoder: ChainEncoder
    reference: InterleavedModel
    entropy: float = math.inf
    """Entropy of the newest rollouts, in nats per token"""

    @property
    def banned(self) -> tuple[int, ...]:
        layout, generated = self.encoder.layout, self.encoder.settings.trigger == GENERATED
        return layout.reserved if generated else (*layout.reserved, layout.interleave_id)

    def features(self, model: InterleavedModel, share: Mapping[str, Any]) -> VisualFeatures:
        """Features of every chain's images; an image is encoded once for all chains of its problem."""
        found = VisualFeatures.encode(model.model, share["images"])
        ids, times = share["inputs"]["input_ids"], self.config.num_generations
        return repeat_rows(found, ids, self.encoder.layout.image_id, times)

    def rollouts(self, model: InterleavedModel, share: Mapping[str, Any]) -> list[list[int | Look]]:
        """One sampled answer per prompt."""
        draws, tokenizer = RowDraws(share["seeds"], model.selector), self.encoder.processor.tokenizer
        choose = draws.select if self.config.selection == SAMPLED else None
        generator = InterleavedGenerator(model, self.encoder.settings, tokenizer, choose, draws)
        was_training = model.training
        model.eval()
        with torch.no_grad():
            found = generator.generate(
                share["inputs"],
                features=self.features(model, share),
                native=share["native"],
                max_new_tokens=self.config.max_completion_length,
                do_sample=True,
                temperature=self.config.temperature,
                top_k=0,  # all tokens may be drawn, as all are trained
            )
        model.train(was_training)
        return found.answers

    def reward(self, answers: Sequence[Sequence[int | Look]], columns: Mapping[str, Any]) -> dict[str, Tensor]:
        """Rewards (B,) by name. `columns` holds one list per truth, by name."""
        found = {}
        for name in self.config.rewards.used:
            perceives = name in PERCEPTION_REWARDS
            texts = [answer_text(self.encoder.processor.tokenizer, answer, perceives) for answer in answers]
            found[name] = torch.tensor(REWARDS[name](texts, vocabulary=self.encoder.vocabulary, **columns))
        return found

    def __call__(self, model: InterleavedModel, share: Mapping[str, Any], step: int) -> tuple[Tensor, dict[str, Any]]:
        config, inputs = self.config, share["inputs"]
        answers = self.rollouts(model, share)
        parts = self.reward(answers, share["columns"])
        total = torch.stack([weight * parts[name] for name, weight in config.rewards.used.items()]).sum(0)  # (B,)
        device = inputs["input_ids"].device
        advantages = group_advantages(total, config.num_generations).to(device)
        interleave = self.encoder.settings.trigger == GENERATED
        pad_id = self.encoder.processor.tokenizer.pad_token_id
        on_cpu = {k: v.cpu() for k, v in inputs.items()}
        rule = LabelRule(interleave, next_token=True)
        more = (rule, share["native"], self.encoder.settings.take_along)
        batch = build_batch(self.encoder.layout, on_cpu, answers, pad_id, *more)
        batch = batch.to(device)
        layout, most = self.encoder.layout, self.encoder.settings.max_looks
        offset = model.selector.offset if config.selection == SAMPLED else 0.0
        how = (batch, self.banned, config.temperature, offset, layout.interleave_id, most)
        chain = chain_log_probs(model(batch, self.features(model, share)), *how)
        with torch.no_grad():
            reference = self.reference.to(device)
            before = chain_log_probs(reference(batch, self.features(reference, share)), *how)
        norm = config.max_completion_length
        equal = equal_groups(total, config.num_generations).to(device)
        # A group with nothing to compare is left out, divergence and all, whatever groups share its device; its
        # gradients, zeros, are still there for the other devices.
        compared = (~equal).repeat_interleave(config.num_generations)  # (B,)
        kls = reference_kl(chain, before, norm)  # (B,)
        kl = kls.detach().mean()
        loss = policy_loss(chain, advantages, norm, config.selection, config.weight_of_looks)
        loss = loss + config.beta * (kls * compared).mean()
        lengths = chain.written.sum(1).float()
        looks = [sum(isinstance(part, Look) for part in answer) for answer in answers]
        self.entropy = float((chain.entropy.sum() / chain.written.sum().clamp_min(1)).detach())
        scalars = {
            "reward": total.mean(),
            **{f"reward_{name}": value.mean() for name, value in parts.items()},
            "kl": kl,
            "length": lengths.mean(),
            "entropy": self.entropy,
            "triggers": sum(count > 0 for count in looks) / len(looks),
            "looks": sum(looks) / len(looks),
            "selected": float((chain.chosen & chain.candidates).sum()) / max(1, sum(looks)),
            "equal_groups": equal.float().mean(),
        }
        return loss, scalars


@dataclass(frozen=True)
class HeldOutReward:
    """Minus the greedy accuracy on held-out problems, as a loss for early stopping; infinite once the policy has
    collapsed."""

    grpo: GRPO
    problems: Sequence[ChainProblem]

    def __call__(self, model: InterleavedModel) -> Evaluation:
        config = self.grpo.config
        right = accuracy(answer_problems(model, self.grpo.encoder, self.problems, config.max_completion_length))
        gone = self.grpo.entropy < _LEAST_ENTROPY
        return Evaluation(math.inf if gone else -right, {"accuracy": right, "entropy": self.grpo.entropy})


def check_truths(rewards: RewardWeights, problems: Sequence[ChainProblem]) -> None:
    """Raises ValueError for a reward that compares with a truth that problems lack."""
    needed = {name: TRUTHS[name] for name in rewards.used if name in TRUTHS}
    # Problems that are read or drawn when they are asked for are all of one kind.
    some = problems if isinstance(problems, list | tuple) else problems[: bool(needed)]
    for number, problem in enumerate(some):
        for name, truth in needed.items():
            if truth not in problem.truths:
                raise ValueError(
                    f"rewards.{name} ({getattr(rewards, name)}) compares chains with the truth {truth}, and problem "
                    f"{number} has {', '.join(problem.truths) or 'none'}; set rewards.{name} to 0, or train on "
                    "problems with that truth, as train.reinforce_scenes does"
                )


def train(
    config: ReinforceConfig,
    problems: Sequence[ChainProblem] | None = None,
    held_out: Sequence[ChainProblem] | None = None,
    settings: InterleaveSettings | None = None,
) -> FitResult:
    """Runs or resumes GRPO. Writes the model that did best on held-out problems to `config.out`, and a plot beside the
    log.

    Args:
        problems: used instead of those of the config.
        held_out: used instead of those of the config.
        settings: where chains look; None for what the model was trained with.

    Raises:
        ValueError: for a reward that needs a truth which the problems lack, or an evaluation without held-out problems.
    """
    torch.manual_seed(config.loop.seed)
    folder = read_interleaved(config.start, settings)
    if problems is None and config.published.files:
        problems, held_out = published_split(config.published, folder, config.run_dir)
    problems = read_problems(config.data) if problems is None else problems
    if held_out is None:
        held_out = read_problems(replace(config.data, seed=config.data.seed + 1, count=config.num_held_out))
    check_truths(config.rewards, problems)
    if config.loop.evaluate_every and not len(held_out):
        raise ValueError(
            f"evaluate_every ({config.loop.evaluate_every}) measures on held-out problems, and there are none: every "
            "accuracy would be 0, and patience would end the run; hold some out, or set loop.evaluate_every and "
            "loop.patience to none"
        )
    reference = copy.deepcopy(folder.model).eval().requires_grad_(False)
    groups = interleaved_groups(folder.model, tower_lr_ratio=0.0)
    batches = PromptBatches(
        folder.encoder, problems, config.batch_size, config.loop.seed, num_generations=config.num_generations
    )
    grpo = GRPO(config, folder.encoder, reference)
    result = fit(
        folder.model,
        batches,
        grpo,
        config.loop,
        config.run_dir,
        param_groups=groups,
        evaluate=HeldOutReward(grpo, held_out) if config.loop.evaluate_every else None,
        title="reinforce",
        fingerprint=fingerprint(config, FREE) | digest_of(problems),
    )
    if result.is_main:
        record = {"command": command_line("train.reinforce", config), "steps": result.steps}
        replace(folder, model=folder.model.cpu()).save(config.out, record)
        draw_run(Path(config.run_dir))
    return result


def export(config: ReinforceConfig, settings: InterleaveSettings | None = None) -> RunState:
    """Writes a checkpoint of a run as a model; see `train.interleave.write_checkpoint`."""
    folder = read_interleaved(config.start, settings)
    interleaved_groups(folder.model, tower_lr_ratio=0.0)
    return write_checkpoint(config, folder, {"command": command_line("train.reinforce", config)})


def draw_run(run_dir: Path) -> Path | None:
    """Plots reward, KL, length and share of triggers from log.jsonl to curves.png; None if matplotlib is missing."""
    try:
        from train.rl.plot import draw_curves
    except ImportError:
        return None
    return draw_curves(run_dir / "log.jsonl", run_dir / "curves.png")


def main(argv: list[str] | None = None) -> None:
    config = parse_config(ReinforceConfig, argv)
    if config.export:
        print(f"{export(config).step} steps of training; model: {config.out}")
    else:
        print(f"done: {train(config)}")


if __name__ == "__main__":
    main()
