"""A gate in front of the drawing: which questions are worth the tokens of a chain of perception.

One forward over a question in its direct form, without a token of an answer, tells how sure the model is of the first
id that it would say. Of that, the kind of the question, how many points it names and the last hidden state, logistic
readings estimate the chance that the direct answer is right and the chance that a drawn one would be, and a linear one
how many tokens drawing takes. The chain is drawn where what it is expected to add to the accuracy, for each hundred of
its tokens, is above a price. `train.gate` trains a gate; a model's folder keeps it in `thinking_gate.safetensors`.
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

from perception.grammar.processor import GrammarMasks, mask_scores

if TYPE_CHECKING:
    from perception.model.perception_model import PerceptionModel, Prompt

FILE_NAME = "thinking_gate.safetensors"
NUM_PLAIN = 8
"""Features of a question besides the hidden state"""
_TENSORS = ("weight", "bias", "mean", "scale", "signature")
_SAMPLED = 512  # weights of a model that make its signature
_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-6  # by which a signature may differ: a model read in half precision is the same
_LETTER = re.compile(r"\b[A-E]\b")
_REMEDY = "train one with `python -m train.gate --model FOLDER`, or remove the file to draw wherever a chain fits"


@dataclass(frozen=True)
class Setting:
    """What a price costs and brings, on the validation questions of the training."""

    price: float
    drawn: float
    """share of questions"""
    tokens: float
    """mean of an answer"""
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
    """Three readings of a question's features, and a price on their outcome."""

    weight: Tensor
    """(3, F): the direct answer is right (logit), a drawn one would be (logit), tokens of the drawn one (logarithm)"""
    bias: Tensor
    """(3,)"""
    mean: Tensor
    """(F,) of the features"""
    scale: Tensor
    """(F,)"""
    signature: Tensor
    """of the model that it was trained for"""
    price: float = 0.0
    """accuracy in [-1, 1] that a hundred tokens must be expected to add; from -100, always draw, to 100, never"""
    settings: tuple[Setting, ...] = ()
    """prices to choose from, rising"""

    def __post_init__(self) -> None:
        size = self.mean.shape
        shapes = {"weight": (3, *size), "bias": (3,), "mean": size, "scale": size, "signature": (_SAMPLED,)}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value.shape != shape or not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} of a gate must be finite and {tuple(shape)}, got {tuple(value.shape)}")
        if not -100 <= self.price <= 100:
            raise ValueError(f"price must lie in [-100, 100], accuracy for a hundred tokens; got {self.price}")

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of features (B, F): chances (B, 2) that the direct and the drawn answer are right; tokens (B,) of drawing."""
        scaled = ((features - self.mean) / self.scale).clamp(-8, 8)
        out = scaled @ self.weight.T + self.bias  # (B, 3)
        return torch.sigmoid(out[:, :2]), out[:, 2].clamp(0, 12).exp()

    def worth(self, features: Tensor) -> Tensor:
        """(B,) in [-100, 100] of features (B, F): accuracy that drawing is expected to add, for each hundred tokens."""
        chances, tokens = self.read(features)
        return 100 * (chances[:, 1] - chances[:, 0]) / tokens

    def draws(self, features: Tensor) -> list[bool]:
        """Which of the questions with these features (B, F) are worth a chain."""
        drawn: list[bool] = (self.worth(features) > self.price).tolist()
        return drawn

    def at(self, price: float) -> ThinkingGate:
        """The gate at another price. Raises ValueError outside of [-100, 100]."""
        return replace(self, price=float(price))

    def for_budget(self, tokens: float) -> ThinkingGate:
        """The gate at the price that was most accurate within so many tokens an answer, on questions like those of its
        training.

        Raises:
            ValueError: where no setting keeps to it.
        """
        within = [setting for setting in self.settings if setting.tokens <= tokens]
        if not within:
            least = min((setting.tokens for setting in self.settings), default=float("nan"))
            raise ValueError(f"no price keeps to {tokens} tokens an answer; answering directly takes {least:.1f}")
        return self.at(max(within, key=lambda setting: (setting.accuracy, -setting.tokens)).price)

    def check(self, model: Any) -> None:
        """Raises ValueError where the gate was trained for other weights."""
        hidden = model.config.get_text_config().hidden_size
        if len(self.mean) != NUM_PLAIN + hidden:
            raise ValueError(
                f"the gate reads {len(self.mean) - NUM_PLAIN} hidden values, the model has {hidden}; {_REMEDY}"
            )
        if apart := self.apart(model):
            raise ValueError(f"the gate was trained for other weights: {apart} of {_SAMPLED} differ; {_REMEDY}")

    def apart(self, model: Any) -> int:
        """How many of the weights that make a model's signature are others; 0 for the model it was trained for."""
        close = torch.isclose(signature(model), self.signature, rtol=_RELATIVE, atol=_ABSOLUTE)
        return int((~close).sum())

    def save(self, folder: str | Path) -> None:
        """Writes the gate beside the model, whole or not at all."""
        path = Path(folder) / FILE_NAME
        kept = {"price": self.price, "settings": [asdict(setting) for setting in self.settings]}
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
            return cls(**tensors, price=float(kept["price"]), settings=settings)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no gate ({error}); {_REMEDY}") from error


@torch.no_grad()
def gate_features(model: PerceptionModel, prompts: Sequence[Prompt]) -> Tensor:
    """Features (B, 8 + D) of questions in their direct form, by one forward."""
    inputs = model.inputs(prompts)
    out = model.model(**inputs, output_hidden_states=True, logits_to_keep=1)
    logits = out.logits[:, -1].float()  # (B, V)
    allowed = GrammarMasks(model.grammar).after(inputs["input_ids"], logits.shape[-1])[:, 0]  # (B, V)
    sure = _sureness(mask_scores(logits, allowed).log_softmax(-1))  # (B, 3)
    depth = torch.tensor([[float(prompt.kind == "depth")] for prompt in prompts], device=sure.device)  # (B, 1)
    points = torch.tensor([[len(set(_LETTER.findall(p.question)))] for p in prompts], device=sure.device)
    hidden = out.hidden_states[-1][:, -1].float()  # (B, D)
    # how sure it is means one thing for letters and another for numbers
    plain = torch.cat([sure * depth, sure * (1 - depth), depth, depth * points], 1)  # (B, 8)
    return torch.cat([plain, F.layer_norm(hidden, hidden.shape[-1:])], 1).cpu()


def _sureness(log_odds: Tensor) -> Tensor:
    """(B, 3) of log-probabilities (B, V): the first id's odds against all others and margin over the next, entropy."""
    best, second = log_odds.topk(2).values.clamp_min(-30).unbind(-1)  # (B,) each
    odds = best - torch.log1p(-best.exp().clamp_max(1 - 1e-7))
    entropy = -(log_odds.exp() * log_odds.clamp_min(-30)).sum(-1)
    return torch.stack([odds, best - second, entropy], -1)
