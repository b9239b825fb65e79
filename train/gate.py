"""The gate of a finished model, which decides where drawing is worth its tokens: `python -m train.gate --model FOLDER`.

The frozen model answers counting and depth questions on scenes of the standard look, each directly and by drawing
first. The readings of the gate (`perception.model.gate`) learn which of the two was right and how long the drawn one
was.
Their weight decay and the price are chosen on questions set apart. About six minutes on one core for 3,200 questions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from perception.chains import prompt_for, read_ids
from perception.evaluation.scenes import Item, scene_items
from perception.model.gate import Setting, ThinkingGate, gate_features, signature
from perception.model.perception_model import PerceptionModel, Prompt
from train.loop.command_line import parse_config

DIRECT, CHAIN = 0, 1
_DECAYS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


@dataclass(frozen=True)
class GateConfig:
    """Configuration of the gate's training."""

    model: str = "models/aurora-tiny"
    """folder of the model"""
    run_dir: str = "runs/gate"
    """keeps the model's answers, so that a second training need not ask again"""
    out: str = ""
    """folder that gets the gate; empty: the model's own"""
    first_seed: int = 20_000_000
    num_count: int = 1600
    """counting questions"""
    num_depth: int = 400
    """depth questions for each of 2 to 5 points"""
    held_out: float = 0.3
    """share of the questions that choose weight decay and price"""
    give_up: float = 0.5
    """points of accuracy below always drawing that the price may cost"""
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.num_count, self.num_depth, self.batch_size) < 1:
            raise ValueError("num_count, num_depth and batch_size must be at least 1")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")


def answer_both(model: PerceptionModel, items: Sequence[Item], batch_size: int = 32) -> dict[str, Tensor]:
    """Both answers to every question: features (N, F), right (N, 2) and tokens (N, 2), of the direct answer and of the
    drawn one, and depth (N,), 1 for depth questions."""
    features: list[Tensor] = []
    scored: list[tuple[list[bool], list[int]]] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        right, tokens = [], []
        for mode in ("direct", "chain"):
            prompts = [Prompt(i.image, prompt_for(i.question, mode)[0], i.kind) for i in batch]
            rows = model.generate_ids(prompts)
            read = [
                read_ids(model.processor.tokenizer, model.vocabulary, ids, item.kind)
                for ids, item in zip(rows, batch, strict=True)
            ]
            right.append([answer.value == item.answer for answer, item in zip(read, batch, strict=True)])
            tokens.append([len(ids) + 1 for ids in rows])  # the end of sequence is one too
            if mode == "direct":
                features.append(gate_features(model, prompts))
        scored += [([a, b], [n, m]) for a, b, n, m in zip(*right, *tokens, strict=True)]
    return {
        "features": torch.cat(features),
        "right": torch.tensor([r for r, _ in scored]),
        "tokens": torch.tensor([t for _, t in scored]),
        "depth": torch.tensor([item.kind == "depth" for item in items]),
    }


def fit(answers: dict[str, Tensor], own: Tensor, decay: float) -> ThinkingGate:
    """The readings that best tell what became of answers, under a weight decay. `own`: the model's signature."""
    features, right = answers["features"], answers["right"]
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-3)
    scaled = ((features - mean) / scale).clamp(-8, 8)  # (N, F)
    length = answers["tokens"][:, CHAIN].float().log()  # (N,)
    weight = torch.zeros(3, features.shape[1], requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        out = scaled @ weight.T + bias  # (N, 3)
        loss = F.binary_cross_entropy_with_logits(out[:, :2], right.float()) + F.mse_loss(out[:, 2], length)
        loss = loss + decay * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return ThinkingGate(weight.detach(), bias.detach(), mean, scale, own)


def log_loss(gate: ThinkingGate, answers: dict[str, Tensor]) -> float:
    chances, _ = gate.read(answers["features"])
    return float(F.binary_cross_entropy(chances.clamp(1e-6, 1 - 1e-6), answers["right"].float()))


def setting_at(gate: ThinkingGate, price: float, answers: dict[str, Tensor]) -> Setting:
    """What a price costs and brings on questions whose both answers are known."""
    drawn = torch.tensor(gate.at(price).draws(answers["features"]))  # (N,)
    correct = torch.where(drawn, answers["right"][:, CHAIN], answers["right"][:, DIRECT])
    spent = torch.where(drawn, answers["tokens"][:, CHAIN], answers["tokens"][:, DIRECT])
    return Setting(price, *(float(value.float().mean()) for value in (drawn, spent, correct)))


def choose(
    gate: ThinkingGate, answers: dict[str, Tensor], give_up: float = 0.0, count: int = 101
) -> tuple[float, tuple[Setting, ...]]:
    """The price with the fewest tokens that costs at most `give_up` points against always drawing, and all settings."""
    ladder = gate.worth(answers["features"]).quantile(torch.linspace(0, 1, count)).tolist()
    settings = tuple(setting_at(gate, price, answers) for price in sorted({-100.0, 0.0, 100.0, *ladder}))
    enough = settings[0].accuracy - give_up / 100 - 1e-9
    good = [setting for setting in settings if setting.accuracy >= enough]
    return min(good, key=lambda setting: setting.tokens).price, settings


def answers_of(model: PerceptionModel, config: GateConfig) -> dict[str, Tensor]:
    """Both answers to the training's questions; kept in run_dir, and read from there where they are this model's."""
    kept = Path(config.run_dir) / f"answers-{config.first_seed}-{config.num_count}-{config.num_depth}.safetensors"
    own = signature(model.model)
    if kept.exists():
        read = load_file(kept)
        if torch.equal(read.pop("signature"), own):
            return read
    items = scene_items("standard", config.num_count, config.num_depth, config.first_seed)
    answers = answer_both(model, items, config.batch_size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_name(f".{kept.name}.{os.getpid()}")
    save_file({**answers, "signature": own}, unfinished)
    os.replace(unfinished, kept)
    return answers


def train_gate(
    answers: dict[str, Tensor], own: Tensor, held_out: float, give_up: float = 0.0, seed: int = 0
) -> ThinkingGate:
    """A gate with its settings, of answers as `answer_both` gives them."""
    count = len(answers["features"])
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    size = round(held_out * count)
    apart, known = ({name: value[rows] for name, value in answers.items()} for rows in (order[:size], order[size:]))
    gate = min((fit(known, own, decay) for decay in _DECAYS), key=lambda g: log_loss(g, apart))
    price, settings = choose(gate, apart, give_up)
    return replace(gate, price=price, settings=settings)


def main(argv: list[str] | None = None) -> None:
    config = parse_config(GateConfig, argv)
    model = PerceptionModel.from_pretrained(config.model)
    answers = answers_of(model, config)
    gate = train_gate(answers, signature(model.model), config.held_out, config.give_up, config.seed)
    gate.save(config.out or config.model)
    chosen = min(gate.settings, key=lambda setting: abs(setting.price - gate.price))
    print(
        f"price {gate.price:.3f}: draws {100 * chosen.drawn:.0f} % of the questions set apart, "
        f"{chosen.tokens:.1f} tokens an answer, {100 * chosen.accuracy:.1f} % right; "
        f"always drawing {100 * gate.settings[0].accuracy:.1f} % with {gate.settings[0].tokens:.1f} tokens; "
        f"written to {config.out or config.model}"
    )


if __name__ == "__main__":
    main()
