"""`VisualTokenSelector`: selects the visual tokens that a look brings into the chain (MINT-CoT, arXiv 2506.05331).

A step of the chain has an interleave token. Its last hidden state and those of the prompt's visual tokens are projected
and compared, and the visual tokens whose score reaches a threshold are inserted into the chain, so that a region of any
shape can be looked at again. Departures from the paper: gamma is stored as its logarithm, so that it stays above 0, and
scores are computed in the selector's precision, not the model's.

See also `perception.interleave.visual_tokens` (differences between models of transformers),
`perception.interleave.chains` (teacher-forced batches, forward and loss), `perception.interleave.triggers` (where a
chain looks) and `perception.interleave.generation`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from vqvae.checkpoint import CheckpointError, read_weights
from vqvae.files import write_whole

CONFIG_FILE = "interleave_config.json"
WEIGHTS_FILE = "interleave.safetensors"


def _mlp(size: int) -> nn.Module:
    return nn.Sequential(nn.Linear(size, size, bias=False), nn.GELU(), nn.Linear(size, size, bias=False))


PROJECTORS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda size: nn.Linear(size, size, bias=False),
    "none": lambda size: nn.Identity(),
    "mlp": _mlp,
}
"""The paper's projector, and the two of its ablation"""


@dataclass(frozen=True)
class SelectorConfig:
    """Configuration of a `VisualTokenSelector`."""

    hidden_size: int
    """Width of the text model"""
    projector: str = "linear"
    """One of PROJECTORS"""
    threshold: float = 0.7
    """A visual token is selected where sigmoid(score) reaches this"""
    temperature: float = 0.07
    """1 / gamma at the start; gamma is learned"""

    def __post_init__(self) -> None:
        if type(self.hidden_size) is not int or self.hidden_size < 1:
            raise ValueError(
                f"hidden_size must be an integer above 0, got {self.hidden_size!r}; the text model's width"
            )
        if self.projector not in PROJECTORS:
            raise ValueError(f"projector must be one of {tuple(PROJECTORS)}, got {self.projector!r}")
        if not 0 < self.threshold < 1 or not self.temperature > 0:
            raise ValueError(
                f"threshold must lie in (0, 1) and temperature above 0, got {self.threshold} and {self.temperature}"
            )


class VisualTokenSelector(nn.Module):
    """The interleave token's embedding, two projectors and a learned gamma: all weights of interleaved reasoning.

    `scores = gamma * cosine(query(interleave hidden state), key(visual hidden state))`.
    """

    def __init__(self, config: SelectorConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Parameter(torch.zeros(config.hidden_size))
        """Input of the text model at an interleave token, in place of the token's row in the embeddings"""
        self.query = PROJECTORS[config.projector](config.hidden_size)
        self.key = PROJECTORS[config.projector](config.hidden_size)
        self.log_gamma = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    @classmethod
    def for_model(cls, model: Any, interleave_id: int | None = None, **settings: Any) -> VisualTokenSelector:
        """Make a new selector for an image-text-to-text model of transformers.

        Args:
            interleave_id: id whose input embedding the selector's embedding starts from; None for the mean of all.
            settings: fields of `SelectorConfig` other than hidden_size.
        """
        weight = model.get_input_embeddings().weight.detach()  # (V, H)
        selector = cls(SelectorConfig(weight.shape[1], **settings)).to(weight.device)
        start = weight.float().mean(0) if interleave_id is None else weight[interleave_id]
        selector.embedding.data.copy_(start)
        return selector

    def keys(self, visual_hidden: Tensor) -> Tensor:
        """Unit keys (..., M, H) for visual tokens' last hidden states (..., M, H)."""
        return F.normalize(self.key(visual_hidden.to(self.log_gamma.dtype)), dim=-1)

    def match(self, interleave_hidden: Tensor, keys: Tensor) -> Tensor:
        """Scores (B, S, M) for looks' last hidden states (B, S, H) and `keys` (B, M, H)."""
        queries = F.normalize(self.query(interleave_hidden.to(keys.dtype)), dim=-1)  # (B, S, H)
        return self.log_gamma.exp() * queries @ keys.transpose(-1, -2)

    def forward(self, interleave_hidden: Tensor, visual_hidden: Tensor) -> Tensor:
        """Scores (B, S, M) for hidden states of looks (B, S, H) and of visual tokens (B, M, H)."""
        return self.match(interleave_hidden, self.keys(visual_hidden))

    def select(self, scores: Tensor) -> Tensor:
        """Mask (...) of the selected visual tokens, by their scores (...)."""
        return scores.sigmoid() >= self.config.threshold

    @property
    def offset(self) -> float:
        """The lowest score that is selected: the logit of the threshold."""
        return math.log(self.config.threshold / (1 - self.config.threshold))

    def draw(self, scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Select each visual token (...) with probability sigmoid(score - offset).

        Such selections have a policy gradient; the likeliest is what `select` returns.
        """
        uniform = torch.rand(scores.shape, generator=generator)  # on the CPU, so that a seed means the same everywhere
        return uniform.to(scores.device) < (scores - self.offset).sigmoid()

    # Files

    def save(self, folder: str | Path) -> None:
        """Write interleave_config.json and interleave.safetensors beside the model, each atomically."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(Path(folder) / WEIGHTS_FILE, save(tensors, metadata={"format": "pt"}))
        write_whole(Path(folder) / CONFIG_FILE, json.dumps(asdict(self.config), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, model: Any = None) -> VisualTokenSelector:
        """Load the selector of a model's folder, in evaluation mode and float32.

        Args:
            model: if given, its width is checked.

        Raises:
            CheckpointError: a ValueError, for a file that is missing, cut short or mismatched, missing or unknown keys
                or tensors, or a model of another width.
        """
        path = Path(folder) / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is missing: the folder holds no model that reasons over visual tokens; train one, or save the "
                "selector beside the model: selector.save(folder)"
            ) from None
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"{path} is not whole JSON ({error}); copy the folder again") from None
        expected = {f.name for f in fields(SelectorConfig)}
        if not isinstance(values, dict) or values.keys() != expected:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise CheckpointError(f"{path} must hold exactly the keys {sorted(expected)}, got {got}; save it again")
        try:
            selector = cls(SelectorConfig(**values))
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        width = selector.config.hidden_size
        if model is not None and model.get_input_embeddings().weight.shape[1] != width:
            raise CheckpointError(
                f"{path} is made for a text model {width} wide, the model is "
                f"{model.get_input_embeddings().weight.shape[1]}; load the selector that was saved with the model"
            )
        selector.load_state_dict(read_weights(Path(folder) / WEIGHTS_FILE, selector.state_dict()), strict=True)
        return selector.eval()


def selection_losses(scores: Tensor, targets: Tensor, candidates: Tensor) -> Tensor:
    """Binary cross-entropy per look (...), with selected tokens weighted by the look's negatives / positives.

    A look that selects nothing or everything is not weighted. The loss is a mean over tokens; callers take the
    mean over looks, which may span several batches.

    Args:
        scores: (..., M).
        targets: (..., M) bool, the tokens that should be selected.
        candidates: (..., M) bool, the tokens of the row itself; a look without any has loss 0.
    """
    positives = (targets & candidates).sum(-1).to(scores.dtype)  # (...)
    negatives = (~targets & candidates).sum(-1).to(scores.dtype)
    mixed = (positives > 0) & (negatives > 0)
    weight = torch.where(mixed, negatives / positives.clamp_min(1), 1)  # (...)
    losses = F.binary_cross_entropy_with_logits(scores, targets.to(scores.dtype), reduction="none")  # (..., M)
    losses = torch.where(targets, losses * weight[..., None], losses)
    return (losses * candidates).sum(-1) / candidates.sum(-1).clamp_min(1)
