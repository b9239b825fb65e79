"""The parts of a vision-language model of transformers, whatever its family calls them."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

_PROJECTORS = ("multi_modal_projector", "connector", "merger", "deepstack_merger_list")
_LANGUAGE = ("language_model", "text_model")


def vision_tower(model: Any) -> nn.Module:
    """The module that sees the image. Raises ValueError where the model has none."""
    tower = model.get_encoder(modality="image")
    if not isinstance(tower, nn.Module) or tower is model or tower is model.base_model:
        raise ValueError(f"{type(model).__name__} has no vision tower; give an image-text-to-text model")
    return tower


def projector_names(model: Any) -> list[str]:
    """Names of the modules between vision and language; Qwen-VL has them inside its tower, Qwen3-VL several of them."""
    names = []
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _PROJECTORS:
            several = isinstance(module, nn.ModuleList)  # which peft cannot train whole
            names += [f"{name}.{n}" for n in range(len(module))] if several else [name]
    return names


def tower_parameters(model: Any) -> list[nn.Parameter]:
    """Of the vision tower, projectors left out."""
    projectors = {id(p) for name in projector_names(model) for p in model.get_submodule(name).parameters()}
    return [p for p in vision_tower(model).parameters() if id(p) not in projectors]


def keep_still(frozen: nn.Module) -> None:
    """Keeps a module that does not train in evaluation mode, whatever mode the model around it is put into: batch norms
    would go on averaging, dropout go on dropping."""
    frozen.eval()
    frozen.train = partial(_stay, frozen)  # type: ignore[method-assign]


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def language_linears(model: Any) -> list[str]:
    """Names of the linear layers of the language model, the output layer left out: what LoRA adapts."""
    path = next((n for n, _ in model.named_modules() if n.rpartition(".")[2] in _LANGUAGE), None)
    if path is None:
        raise ValueError(f"{type(model).__name__} has no {' or '.join(_LANGUAGE)}; train it whole (lora.rank 0)")
    inside = model.get_submodule(path)
    return [f"{path}.{name}" for name, module in inside.named_modules() if isinstance(module, nn.Linear)]


def embedding_names(model: Any) -> list[str]:
    """Names of the input and the output embedding; one where they share their weight."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [first] if last is None or last.weight is first.weight else [first, last]
    return [name for name, module in model.named_modules() if any(module is table for table in tables)]
