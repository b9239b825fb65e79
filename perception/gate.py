"""A gate in front of the drawing: which questions are worth the tokens of a chain of perception.

Every question is first answered directly, a few tokens. Two logistic readings of what the model was like while it did
so (how sure of its answer it was, the kind of question, how many points it names, its last hidden state) estimate the
chance that the direct answer is right and the chance that a drawn one would be. Where the second exceeds the first by
more than a threshold the chain is drawn. The threshold is in accuracy: 0.1 draws where drawing is expected to
add 10 points. `train.gate` trains one; a model's folder keeps it in `thinking_gate.safetensors`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from perception.span_processor import GrammarMasks, mask_scores

if TYPE_CHECKING:
    from perception.model import PerceptionModel, Prompt

FILE_NAME = "thinking_gate.safetensors"
NUM_PLAIN = 10
"""Features of a question besides the hidden state"""
_TENSORS = ("weight", "bias", "mean", "scale", "signature")
_SAMPLED = 512  # weights of a model that make its signature
_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-6  # by which a signature may differ: a model read in half precision is the same
_LETTER = re.compile(r"\b[A-E]\b")
_REMEDY = "train one with `python -m train.gate --model FOLDER`, or remove the file to draw wherever a chain fits"


@dataclass(frozen=True)
class Setting:
    """What a threshold costs and brings, on the validation questions of the training."""

    threshold: float
    drawn: float
    """share of questions"""
    tokens: float
    """mean of an answer, the direct one that is looked at included"""
    accuracy: float


def signature(model: Any) -> Tensor:
    """512 weights, taken evenly from all floating-point parameters of a model: (512,) float32."""
    parameters = [p.detach().flatten() for p in model.parameters() if p.is_floating_point()]
    total = sum(len(p) for p in parameters)
    places = torch.linspace(0, total - 1, _SAMPLED, dtype=torch.float64).round().long()
    taken, start = [], 0
    for values in parameters:
        own = places[(places >= start) & (places < start + len(values))] - start
        taken.append(values[own.to(values.device)].float().cpu())
        start += len(values)
    return torch.cat(taken)


@dataclass(frozen=True)
class ThinkingGate:
    """Two logistic readings, of the direct and of the drawn answer, and a threshold on their difference."""

    weight: Tensor
    """(2, F): direct, chain"""
    bias: Tensor
    """(2,)"""
    mean: Tensor
    """(F,) of the features"""
    scale: Tensor
    """(F,)"""
    signature: Tensor
    """of the model that it was trained for"""
    threshold: float = 0.0
    settings: tuple[Setting, ...] = ()
    """thresholds to choose from, rising"""

    def __post_init__(self) -> None:
        size = self.mean.shape
        shapes = {"weight": (2, *size), "bias": (2,), "mean": size, "scale": size, "signature": (_SAMPLED,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} of a gate must be finite and {tuple(shape)}, got {tuple(value.shape)}")

    def chances(self, features: Tensor) -> Tensor:
        """(B, 2) in [0, 1] of features (B, F): that the direct answer is right, that a drawn one would be."""
        scaled = ((features - self.mean) / self.scale).clamp(-8, 8)
        return torch.sigmoid(scaled @ self.weight.T + self.bias)

    def gains(self, features: Tensor) -> Tensor:
        """(B,) in [-1, 1] of features (B, F): what drawing is expected to add to the accuracy."""
        chances = self.chances(features)
        return chances[:, 1] - chances[:, 0]

    def at(self, threshold: float) -> ThinkingGate:
        """The gate with another threshold: -1 always draws, 1 never. Raises ValueError outside of that."""
        if not -1 <= threshold <= 1:
            raise ValueError(
                f"threshold must lie in [-1, 1], the gain in accuracy that is worth a chain; got {threshold}"
            )
        return replace(self, threshold=float(threshold))

    def for_budget(self, tokens: float) -> ThinkingGate:
        """The gate at the setting that was most accurate within so many tokens an answer, on questions like those of
        its training.

        Raises:
            ValueError: where no setting keeps to it.
        """
        within = [setting for setting in self.settings if setting.tokens <= tokens]
        if not within:
            least = min((setting.tokens for setting in self.settings), default=float("nan"))
            raise ValueError(
                f"no threshold keeps to {tokens} tokens an answer; the least is {least:.1f}, mode='direct'"
            )
        return self.at(max(within, key=lambda setting: (setting.accuracy, -setting.tokens)).threshold)

    def check(self, model: Any) -> None:
        """Raises ValueError where the gate was trained for other weights."""
        hidden = model.config.get_text_config().hidden_size
        if len(self.mean) != NUM_PLAIN + hidden:
            raise ValueError(
                f"the gate reads {len(self.mean) - NUM_PLAIN} hidden values, the model has {hidden}; {_REMEDY}"
            )
        own = signature(model)
        if not torch.allclose(own, self.signature, rtol=_RELATIVE, atol=_ABSOLUTE):
            apart = int((~torch.isclose(own, self.signature, rtol=_RELATIVE, atol=_ABSOLUTE)).sum())
            raise ValueError(f"the gate was trained for other weights: {apart} of {_SAMPLED} differ; {_REMEDY}")

    def save(self, folder: str | Path) -> None:
        """Writes the gate beside the model, whole or not at all."""
        path = Path(folder) / FILE_NAME
        kept = {"threshold": self.threshold, "settings": [asdict(setting) for setting in self.settings]}
        unfinished = path.with_name(f".{FILE_NAME}.{os.getpid()}")
        tensors = {name: getattr(self, name).float().contiguous() for name in _TENSORS}
        save_file(tensors, unfinished, metadata={"gate": json.dumps(kept)})
        os.replace(unfinished, path)

    @classmethod
    def load(cls, folder: str | Path) -> ThinkingGate | None:
        """The gate that lies in a model's folder; None where there is none.

        Raises:
            ValueError: naming the file, where it is not one of ours.
        """
        path = Path(folder) / FILE_NAME
        if not path.exists():
            return None
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            if "gate" not in metadata or names != set(_TENSORS):
                wrong = ", ".join(sorted(names ^ set(_TENSORS))) or "its settings"
                raise ValueError(f"{path} is no gate ({wrong} missing or unknown); {_REMEDY}")
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        try:
            kept = json.loads(metadata["gate"])
            settings = tuple(Setting(**setting) for setting in kept["settings"])
            return cls(**tensors, threshold=float(kept["threshold"]), settings=settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no gate ({error}); {_REMEDY}") from error


@torch.no_grad()
def gate_features(model: PerceptionModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> Tensor:
    """Features (B, 10 + D) of questions that were answered directly, by one forward over prompts and answers.

    Args:
        prompts: of mode "direct", nothing forced.
        answers: the ids of each direct answer.
    """
    full = [replace(prompt, forced=tuple(ids)) for prompt, ids in zip(prompts, answers, strict=True)]
    inputs = model.inputs(full)
    out = model.model(**inputs, output_hidden_states=True)
    ids, masks = inputs["input_ids"], GrammarMasks(model.grammar)
    rows = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        begin = ids.shape[1] - len(answer) - 1  # the last id of the question
        hidden = out.hidden_states[-1][row, begin].float()  # (D,)
        logits = out.logits[row, begin : begin + max(1, len(answer))].float()  # (n, V)
        allowed = masks.after(ids[row : row + 1, : begin + len(logits)], logits.shape[-1], len(logits))[0]  # (n, V)
        sure = _sureness(mask_scores(logits, allowed).log_softmax(-1), answer)
        rows.append(torch.cat([_plain(sure, prompt), F.layer_norm(hidden, hidden.shape)]))
    return torch.stack(rows).cpu()


def _sureness(log_odds: Tensor, answer: Sequence[int]) -> Tensor:
    """(4,) of log-probabilities (n, V): of the answer, the first id's odds against all others and margin over the
    second, and its entropy."""
    chosen = torch.tensor(list(answer), device=log_odds.device)
    whole = log_odds[: len(answer)].gather(1, chosen[:, None]).sum() if len(answer) else log_odds.new_zeros(())
    best, second = log_odds[0].topk(2).values.clamp_min(-30)
    probabilities = log_odds[0].exp()
    entropy = -(probabilities * log_odds[0].clamp_min(-30)).sum()
    odds = best - torch.log1p(-best.exp()).clamp_min(-30)
    return torch.stack([whole.clamp_min(-30), odds, best - second, entropy])


def _plain(sure: Tensor, prompt: Prompt) -> Tensor:
    """(10,): how sure the answer was, for either kind of question apart, the kind, and how many points it names."""
    depth = float(prompt.kind == "depth")
    points = len(set(_LETTER.findall(prompt.question)))
    rest = torch.tensor([depth, depth * points], device=sure.device)
    return torch.cat([sure * depth, sure * (1 - depth), rest])
