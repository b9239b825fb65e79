"""Which weights of a model train: all, or LoRA's and the projector; of the embeddings all rows, or the new ones."""

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
    """LoRA on the text model's linears; rank 0 trains everything instead."""

    rank: int = 0
    alpha: int = 256


def check_rows(train_rows: str) -> None:
    """Raises ValueError for an unknown choice."""
    if train_rows not in TRAIN_ROWS:
        raise ValueError(f"train_rows must be 'all' or 'new', got {train_rows!r}")


def adapt(model: Any, vocabulary: PerceptionVocabulary, lora: LoraSettings, train_rows: str) -> Any:
    """The model with LoRA where asked, its projector trained whole; of the embeddings all rows train, or the new ones.

    Old rows that do not train stay bit for bit the same, as long as the optimiser does not decay the tables.
    """
    if lora.rank == 0:
        if train_rows == "new":
            _train_new_rows(model, sorted(vocabulary.ids.values()))
        return model
    from peft import LoraConfig, get_peft_model

    kept, rows = projector_names(model), {}
    if train_rows == "new":
        # Given as a mere list, peft would train the rows of the input embedding alone.
        new = sorted(vocabulary.ids.values())
        rows = {"trainable_token_indices": {name: new for name in embedding_names(model)}}
    else:
        kept += embedding_names(model)
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=language_linears(model), modules_to_save=kept, **rows
    )
    return get_peft_model(model, config)


def align_only(model: Any) -> None:
    """Lets nothing but the projector train. Raises ValueError where the model has none."""
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
    """The plain model of transformers, LoRA and trained rows put into its weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
