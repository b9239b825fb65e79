"""Strict reading and atomic writing of a folder of weights: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vqvae.files import write_whole

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class CheckpointError(ValueError):
    """Error for a tokenizer's folder with a file that is missing, truncated, or does not match its config."""


class _Config(Protocol):
    """A dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Any: ...


Config = TypeVar("Config", bound=_Config)


def read_config(path: Path, config_class: type[Config]) -> Config:
    """Read the config in a JSON file; raises CheckpointError naming the file."""
    try:
        values: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; its folder must hold {CONFIG_NAME} and {WEIGHTS_NAME}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no readable JSON ({error}); save the tokenizer or fetch it anew") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold an object of config keys, got {type(values).__name__}")
    try:
        config: Config = config_class.from_dict(values)
        return config
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def read_weights(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        CheckpointError: for a file that is missing or broken, or names, shapes or dtypes other than `expected`.
    """
    try:
        found = load_file(path)
    except FileNotFoundError:
        pickled = sorted(p.name for p in path.parent.glob("*") if p.suffix in _PICKLES)
        hint = f" ({', '.join(pickled)} beside it is pickled and never read)" if pickled else ""
        raise CheckpointError(f"{path} is missing{hint}; save the tokenizer or fetch it anew") from None
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"{path} is a pickle (of torch.save, say), which can run code and is never read; write it anew by "
                "save_pretrained, where the tokenizer was made"
            ) from None
        raise CheckpointError(f"{path} is cut short or no safetensors file ({error}); fetch it anew") from None
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"{path} does not match {CONFIG_NAME}: missing tensors {missing}, unexpected tensors {unexpected}; "
            "both files must come from one save_pretrained"
        )
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {tuple(found[name].shape)}, {CONFIG_NAME} asks for "
                f"{tuple(tensor.shape)}; both files must come from one save_pretrained"
            )
    return {name: found[name].to(tensor.dtype) for name, tensor in expected.items()}


def _is_pickle(path: Path) -> bool:
    """True if a file begins like a pickle or an archive of torch.save. Nothing in it is interpreted."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"\x80", b"PK\x03\x04"))


def write_checkpoint(folder: Path, config: _Config, tensors: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """Write both files so that a reader sees the old or the new version of each, never half of one.

    With `dtype` (e.g. torch.float16) floating-point weights are rounded to it on disk.
    """

    def stored(x: Tensor) -> Tensor:
        x = x.detach().cpu().contiguous()
        return x.to(dtype) if dtype is not None and x.is_floating_point() else x

    # Written by us rather than by safetensors, whose files only their owner may read.
    weights = save({name: stored(x) for name, x in tensors.items()}, metadata={"format": "pt"})
    write_whole(folder / WEIGHTS_NAME, weights)
    write_whole(folder / CONFIG_NAME, json.dumps(asdict(config), indent=2) + "\n")
