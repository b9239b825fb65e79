"""Choice of the weights that train: all of them, or LoRA and the projector, with all or only new embedding rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from perception.vocabulary.names import PerceptionVocabulary
from train.models.parts import embedding_names, language_linears, projector_names, tower_linears


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on linear layers, as peft has it; rank 0 trains the whole model instead."""

    rank: int = 0
    alpha: int = 256
    """updates are scaled by alpha / rank"""
    dropout: float = 0.0
    """share of the inputs of LoRA that are dropped in training"""
    targets: tuple[str, ...] = ()
    """names of the linear layers that are adapted, or their ends, such as q_proj v_proj; none: all of the language
    model"""
    tower: bool = False
    """adapt the linear layers of the vision tower, too"""
    ranks: tuple[str, ...] = ()
    """other ranks by pattern, such as 'layers.[0-7].*=8': a regular expression that the end of a layer's name matches,
    behind a dot, and a rank. Their alpha / rank is that of the others"""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank must not be negative, got {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be at least 0 and below 1, got {self.dropout}")
        unused = [name for name in ("dropout", "targets", "tower", "ranks") if getattr(self, name)]
        if unused and not self.rank:
            raise ValueError(f"lora.{unused[0]} needs LoRA, and lora.rank is 0; set lora.rank")
        self.rank_pattern  # noqa: B018  (checks the texts)

    @property
    def rank_pattern(self) -> dict[str, int]:
        """peft's `rank_pattern`. Raises ValueError if one of `ranks` is not PATTERN=RANK."""
        found = {}
        for text in self.ranks:
            pattern, _, rank = text.rpartition("=")
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"lora.ranks: {pattern!r} is not a regular expression ({error})") from None
            if not pattern or not rank.isdecimal() or int(rank) < 1:
                raise ValueError(f"lora.ranks must be PATTERN=RANK with a rank of at least 1, got {text!r}")
            found[pattern] = int(rank)
        return found


def adapt(model: Any, vocabulary: PerceptionVocabulary, lora: LoraSettings, train_rows: str) -> Any:
    """Add LoRA to the model if `lora.rank` is not 0, and train all embedding rows or only the new ones.

    With LoRA the projector trains in full. Rows that do not train stay bit-equal if their weight decay is 0. Tied
    embeddings stay tied.

    Raises:
        ValueError: if a target or pattern of `lora` matches no layer, or the installed peft unties the embeddings.
    """
    if lora.rank == 0:
        if train_rows == "new":
            _train_new_rows(model, sorted(vocabulary.ids.values()))
        return model
    from peft import LoraConfig, get_peft_model

    kept, tables, rows = projector_names(model), embedding_names(model), dict[str, Any]()
    tied = len(tables) == 1 and model.get_output_embeddings() is not None
    if train_rows == "new":
        # With a plain list instead of a dict, peft trains the rows of the input embedding only.
        new = sorted(vocabulary.ids.values())
        rows = {"trainable_token_indices": {name: new for name in tables}}
    else:
        kept += tables
        rows = {"ensure_weight_tying": tied}  # else peft trains a copy of the input embedding alone
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_adapted_layers(model, lora),
        rank_pattern=lora.rank_pattern,
        alpha_pattern={pattern: lora.alpha * rank / lora.rank for pattern, rank in lora.rank_pattern.items()},
        modules_to_save=kept,
        **rows,
    )
    adapted = get_peft_model(model, config)
    if train_rows == "all" and tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        raise ValueError("the installed peft unties the embeddings, so that output rows would not train; update peft")
    return adapted


def _adapted_layers(model: Any, lora: LoraSettings) -> list[str]:
    """Return the names of the layers that LoRA adapts. Raises ValueError for a target or pattern without a layer."""
    names = language_linears(model) + (tower_linears(model) if lora.tower else [])
    for target in lora.targets:
        if not any(_ends_with(name, target) for name in names):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
            raise ValueError(f"lora.targets: no linear layer has the name {target!r}; their names end in {known}")
    if lora.targets:
        names = [name for name in names if any(_ends_with(name, target) for target in lora.targets)]
    for pattern in lora.rank_pattern:
        if not any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            raise ValueError(f"lora.ranks: {pattern!r} matches the end of no adapted layer, such as {names[0]}")
    return names


def _ends_with(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def align_only(model: Any) -> None:
    """Freeze all parameters except the projector's. Raises ValueError if the model has no projector."""
    names = projector_names(model)
    if not names:
        raise ValueError(f"{type(model).__name__} has no projector to align; leave only_projector out")
    model.requires_grad_(False)
    for name in names:
        model.get_submodule(name).requires_grad_(True)


def train_in_float32(model: Any) -> None:
    """Keep the weights that train in float32, in a model whose other weights have a lower precision.

    In bfloat16 an update of less than about 1/500 of its weight is lost. The language model is given embeddings in its
    own precision, so that activations keep their size.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    frozen = next((p.dtype for p in model.parameters() if p.is_floating_point() and not p.requires_grad), torch.float32)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    projectors = [inner.get_submodule(name) for name in projector_names(inner)]
    inside = [m for m in projectors if any(p.requires_grad for p in m.parameters())]
    last = inner.get_output_embeddings()
    # Where only new rows train, peft casts them to the table's precision.
    whole = [last] if last is not None and last.weight.dtype == torch.float32 else []
    for module in (*inside, *whole):
        module.register_forward_pre_hook(_take_float32)
    # Visual features meet the embeddings in the precision that transformers takes for the model's, its first weight's.
    for module in (*inside, inner.get_input_embeddings()):
        module.register_forward_hook(partial(_return_as, inner.base_model.dtype))
    inner.get_decoder().register_forward_pre_hook(partial(_embed_as, frozen), with_kwargs=True)


def _take_float32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _return_as(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(dtype)


def _embed_as(
    dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    embeds = named.get("inputs_embeds")
    return inputs, named if embeds is None else named | {"inputs_embeds": embeds.to(dtype)}


def checkpoint_activations(model: Any) -> None:
    """Recompute the activations of each layer in the backward pass instead of keeping them.

    transformers also makes the outputs of all embeddings require a gradient, those of a frozen vision tower too, which
    keeps the graph of the whole tower. Checkpoints that are not reentrant do not need this, so it is undone.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    enable = getattr(inner, "activation_checkpointing_enable", None) or inner.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    inner.disable_input_require_grads()


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
