"""Choice of the weights that train: all of them, or LoRA and the projector, with all or only new embedding rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perception.vocabulary.names import PerceptionVocabulary
from train.models.parts import embedding_names, language_linears, projector_names

TRAIN_ROWS = ("all", "new")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the linear layers of the text model; rank 0 trains the whole model instead."""

    rank: int = 0
    alpha: int = 256


def check_rows(train_rows: str) -> None:
    """Raise ValueError if `train_rows` is unknown."""
    if train_rows not in TRAIN_ROWS:
        raise ValueError(f"train_rows must be 'all' or 'new', got {train_rows!r}")


def adapt(model: Any, vocabulary: PerceptionVocabulary, lora: LoraSettings, train_rows: str) -> Any:
    """Add LoRA to the model if `lora.rank` is not 0, and train all embedding rows or only the new ones.

    With LoRA the projector trains in full. Rows that do not train stay bit-equal if their weight decay is 0.
    """
    if lora.rank == 0:
        if train_rows == "new":
            _train_new_rows(model, sorted(vocabulary.ids.values()))
        return model
    from peft import LoraConfig, get_peft_model

    kept, rows = projector_names(model), {}
    if train_rows == "new":
        # With a plain list instead of a dict, peft trains the rows of the input embedding only.
        new = sorted(vocabulary.ids.values())
        rows = {"trainable_token_indices": {name: new for name in embedding_names(model)}}
    else:
        kept += embedding_names(model)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=language_linears(model), modules_to_save=kept, **rows
    )
    return get_peft_model(model, config)


def align_only(model: Any) -> None:
    """Freeze all parameters except the projector's. Raises ValueError if the model has no projector."""
    names = projector_names(model)
    if not names:
        raise ValueError(f"{type(model).__name__} has no projector to align; leave only_projector out")
    model.requires_grad_(False)
    for name in names:
        model.get_submodule(name).requires_grad_(True)


def _train_new_rows(model: Any, ids: list[int]) -> None:
    new = torch.tensor(ids)

    def only_new_rows(grad: Tensor) -> Tensor:
        kept = torch.zeros_like(grad)
        kept[new] = grad[new]
        return kept

    for name in embedding_names(model):
        model.get_submodule(name).weight.register_hook(only_new_rows)


def merged(model: Any) -> Any:
    """Return the plain transformers model, with LoRA and trained rows merged into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
