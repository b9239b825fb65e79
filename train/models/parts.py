"""Parts of transformers' vision-language models, found under the names of each model family."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

_PROJECTORS = ("multi_modal_projector", "mm_projector", "connector", "merger", "deepstack_merger_list", "aligner")
_LANGUAGE = ("language_model", "text_model")


def vision_tower(model: Any) -> nn.Module:
    """Return the image encoder. Raises ValueError if the model has none."""
    tower = model.get_encoder(modality="image")
    if not isinstance(tower, nn.Module) or tower is model or tower is model.base_model:
        raise ValueError(f"{type(model).__name__} has no vision tower; give an image-text-to-text model")
    return tower


def projector_names(model: Any) -> list[str]:
    """Return the names of the projectors from vision to language.

    Qwen-VL has its projector inside the tower, and Qwen3-VL has several.
    """
    names = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _PROJECTORS:
            several = isinstance(module, nn.ModuleList)  # peft cannot train a ModuleList as one module
            names += [f"{name}.{n}" for n in range(len(module))] if several else [name]
    return names


def tower_parameters(model: Any) -> list[nn.Parameter]:
    """Return the parameters of the vision tower that may train.

    Those of projectors are left out, and those of parts that the tower keeps frozen, such as `CellTower`'s backbone.
    """
    tower = vision_tower(model)
    others = [model.get_submodule(name) for name in projector_names(model)]
    others += [tower.get_submodule(name) for name in getattr(tower, "frozen_parts", ())]
    left_out = {id(p) for part in others for p in part.parameters()}
    return [p for p in tower.parameters() if id(p) not in left_out]


def keep_still(frozen: nn.Module) -> None:
    """Keep a frozen module in evaluation mode even if the model around it is set to train.

    In training mode its batch norms would still update their averages, and its dropout would still be active.
    """
    frozen.eval()
    frozen.train = partial(_stay, frozen)  # type: ignore[method-assign]


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def language_linears(model: Any) -> list[str]:
    """Return the names of the language model's linear layers that LoRA adapts, without the output layer."""
    path = next((n for n, _ in model.named_modules() if n.rpartition(".")[2] in _LANGUAGE), None)
    if path is None:
        raise ValueError(f"{type(model).__name__} has no {' or '.join(_LANGUAGE)}; train it whole (lora.rank 0)")
    inside = model.get_submodule(path)
    return [f"{path}.{name}" for name, module in inside.named_modules() if isinstance(module, nn.Linear)]


def tower_linears(model: Any) -> list[str]:
    """Return the names of the vision tower's linear layers, without those of projectors."""
    tower, projectors = set(vision_tower(model).modules()), projector_names(model)
    inside = {id(module) for name in projectors for module in model.get_submodule(name).modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module in tower and id(module) not in inside
    ]


def embedding_names(model: Any) -> list[str]:
    """Return the names of the input and output embeddings; only one name if they share their weight."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [first] if last is None or last.weight is first.weight else [first, last]
    return [name for name, module in model.named_modules() if any(module is table for table in tables)]
