"""The gate of a finished model, which decides where drawing is worth its tokens: `python -m train.gate --model FOLDER`.

The frozen model answers counting and depth questions on scenes of the standard look, each directly and by drawing
first. Two logistic readings of the direct answer (`perception.gate`) learn which of the two was right. Their weight
decay and the threshold are chosen on questions set apart. About six minutes on one core for 3,200 questions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from perception.chains import prompt_for, read_ids
from perception.evaluation.scenes import Item, scene_items
from perception.gate import Setting, ThinkingGate, gate_features, signature
from perception.model import PerceptionModel, Prompt
from train.config import parse_config

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
    """share of the questions that choose weight decay and threshold"""
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
                features.append(gate_features(model, prompts, rows))
        scored += [([a, b], [n, m]) for a, b, n, m in zip(*right, *tokens, strict=True)]
    return {
        "features": torch.cat(features),
        "right": torch.tensor([r for r, _ in scored]),
        "tokens": torch.tensor([t for _, t in scored]),
        "depth": torch.tensor([item.kind == "depth" for item in items]),
    }


def fit(features: Tensor, right: Tensor, own: Tensor, decay: float) -> ThinkingGate:
    """The two readings of features (N, F) that best tell right (N, 2), under a weight decay. `own`: the model's
    signature."""
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-3)
    scaled = ((features - mean) / scale).clamp(-8, 8)
    weight = torch.zeros(2, features.shape[1], requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            F.binary_cross_entropy_with_logits(scaled @ weight.T + bias, right.float()) + decay * weight.square().sum()
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return ThinkingGate(weight.detach(), bias.detach(), mean, scale, own)


def log_loss(gate: ThinkingGate, features: Tensor, right: Tensor) -> float:
    return float(F.binary_cross_entropy(gate.chances(features).clamp(1e-6, 1 - 1e-6), right.float()))


def setting_at(gains: Tensor, threshold: float, right: Tensor, tokens: Tensor) -> Setting:
    """What a threshold costs and brings on questions whose both answers are known: right and tokens (N, 2)."""
    drawn = gains > threshold  # (N,)
    correct = torch.where(drawn, right[:, CHAIN], right[:, DIRECT]).float().mean()
    spent = (tokens[:, DIRECT] + drawn * tokens[:, CHAIN]).float().mean()
    return Setting(threshold, float(drawn.float().mean()), float(spent), float(correct))


def choose(gains: Tensor, right: Tensor, tokens: Tensor, count: int = 21) -> tuple[Setting, tuple[Setting, ...]]:
    """The cheapest setting that is no less accurate than always drawing, and all of which it was chosen."""
    thresholds = sorted({-1.0, 0.0, 1.0, *gains.quantile(torch.linspace(0, 1, count)).clamp(-1, 1).tolist()})
    settings = tuple(setting_at(gains, threshold, right, tokens) for threshold in thresholds)
    enough = float(right[:, CHAIN].float().mean())
    good = [setting for setting in settings if setting.accuracy >= enough - 1e-9]
    return min(good, key=lambda setting: setting.tokens), settings


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


def train_gate(answers: dict[str, Tensor], own: Tensor, held_out: float, seed: int = 0) -> ThinkingGate:
    """A gate with its settings, of answers as `answer_both` gives them."""
    features, right, tokens = answers["features"], answers["right"], answers["tokens"]
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    apart, known = order.split([round(held_out * len(order)), len(order) - round(held_out * len(order))])
    gates = [fit(features[known], right[known], own, decay) for decay in _DECAYS]
    gate = min(gates, key=lambda g: log_loss(g, features[apart], right[apart]))
    chosen, settings = choose(gate.gains(features[apart]), right[apart], tokens[apart])
    return ThinkingGate(gate.weight, gate.bias, gate.mean, gate.scale, own, chosen.threshold, settings)


def main(argv: list[str] | None = None) -> None:
    config = parse_config(GateConfig, argv)
    model = PerceptionModel.from_pretrained(config.model)
    answers = answers_of(model, config)
    gate = train_gate(answers, signature(model.model), config.held_out, config.seed)
    gate.save(config.out or config.model)
    chosen = min(gate.settings, key=lambda setting: abs(setting.threshold - gate.threshold))
    print(
        f"threshold {gate.threshold:.3f}: draws {100 * chosen.drawn:.0f} % of the questions set apart, "
        f"{chosen.tokens:.1f} tokens an answer, {100 * chosen.accuracy:.1f} % right; "
        f"always drawing {100 * gate.settings[0].accuracy:.1f} %; written to {config.out or config.model}"
    )


if __name__ == "__main__":
    main()
