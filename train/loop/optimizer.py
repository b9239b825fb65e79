"""The optimiser of a training run and its learning rate, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from train.loop.config import LoopConfig


def learning_rate_at(config: LoopConfig, step: int) -> float:
    """Return the learning rate of a step in 0 .. steps - 1."""
    warmup = config.num_warmup_steps
    if step < warmup:
        return config.peak_rate * (step + 1) / warmup
    low = config.min_lr_ratio
    if config.schedule == "cosine":
        done = (step - warmup) / max(1, config.steps - warmup)
        ratio = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "wsd":
        decay_steps = max(1, round(config.decay_share * config.steps))
        ratio = low + (1 - low) * min(1.0, (config.steps - step) / decay_steps)
    elif config.schedule == "exponential":
        ratio = low ** ((step - warmup) / max(1, config.steps - warmup))
    else:
        ratio = 1.0
    return config.peak_rate * ratio


def build_optimizer(
    model: nn.Module, config: LoopConfig, param_groups: Sequence[Mapping[str, Any]] | None = None
) -> torch.optim.AdamW:
    """Build AdamW over the parameters that require a gradient; matrices decay, vectors do not.

    Args:
        param_groups: dicts of "params" and, optionally, "lr_scale" (default 1.0) and "weight_decay" (default: the
            config's). Together they must hold every parameter of `model` that requires a gradient. None: one group.

    Raises:
        ValueError: if a key is unknown, or a parameter is not the model's, is left out, or is in two groups.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    left = {id(p) for p in model.parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = []
    for group in param_groups or [{"params": list(model.parameters())}]:
        if unknown := set(group) - {"params", "lr_scale", "weight_decay"}:
            raise ValueError(f"unknown keys {sorted(unknown)} in param_groups; known: params, lr_scale, weight_decay")
        trained = [p for p in group["params"] if p.requires_grad]
        for parameter in trained:
            if id(parameter) not in left:
                name = names.get(id(parameter), f"of shape {tuple(parameter.shape)}")
                raise ValueError(f"parameter {name} of param_groups is in two groups or not the model's")
            left.remove(id(parameter))
        scale, decay = group.get("lr_scale", 1.0), group.get("weight_decay", config.weight_decay)
        matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
        groups += [{"params": matrices, "lr_scale": scale, "weight_decay": decay}] if matrices else []
        groups += [{"params": vectors, "lr_scale": scale, "weight_decay": 0.0}] if vectors else []
    if left:
        missed = ", ".join(sorted(names[key] for key in left)[:5])
        raise ValueError(f"param_groups leave out {len(left)} trainable parameters ({missed}, ...); freeze or add them")
    if not groups:
        raise ValueError("nothing to train: no parameter of the model requires a gradient")
    return torch.optim.AdamW(groups, lr=config.peak_rate, betas=config.betas, fused=True)


def parameter_groups(
    model: nn.Module,
    *scaled: tuple[Collection[nn.Parameter], float],
    undecayed: Collection[nn.Parameter] = (),
) -> list[dict[str, Any]]:
    """Group the trained parameters of `model` for `build_optimizer`.

    Args:
        scaled: pairs of parameters (such as the vision tower's) and the ratio of their learning rate to that of the
            rest. Ratio 0 freezes them here; any other ratio sets them to train.
        undecayed: parameters without weight decay, such as embedding tables whose old rows must not change.
    """
    for parameters, ratio in scaled:
        for parameter in parameters:
            parameter.requires_grad_(ratio > 0)
    apart = {id(p) for parameters, _ in scaled for p in parameters}
    fixed = {id(p) for p in undecayed}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in apart]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if id(p) not in fixed]},
        {"params": [p for p in rest if id(p) in fixed], "weight_decay": 0.0},
        *({"params": list(parameters), "lr_scale": ratio} for parameters, ratio in scaled if ratio),
    ]
    return [group for group in groups if group["params"]]
