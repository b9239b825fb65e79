"""Saving of finished models: standard transformers folders plus the files that perception tokens need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from perception.model.adapter import write_adapter
from perception.model.folder import without_bars
from perception.model.replies import decode_plainly, keep_spans_in_replies, know_end
from perception.vocabulary.names import PerceptionVocabulary
from train.models.card import CARD, is_written
from vqvae.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from vqvae.files import write_whole

TRAINING_FILE = "training.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_perception_model(
    model: Any,
    processor: Any,
    vocabulary: PerceptionVocabulary,
    out: Path,
    record: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float16,
    depth_tokenizer: Path | None = None,
    write_more: Callable[[Path], None] | None = None,
    mask_tokenizer: Path | None = None,
    declared: str | None = None,
) -> None:
    """Write a standard transformers folder atomically. A README.md of your own that is already in it is kept.

    Args:
        model: a plain transformers model (`train.models.adapters.merged`).
        out: the folder to write.
        record: training record for training.json; None writes no such file.
        dtype: precision of the weights in the file.
        depth_tokenizer: folder whose config and weights are copied into `out/depth_tokenizer`.
        write_more: called with the folder, to write further files into it.
        mask_tokenizer: likewise copied into `out/mask_tokenizer`.
        declared: precision that the config names for loading (`declared_dtype`); None: the one that the model has.
    """

    tokenizers = {"depth_tokenizer": depth_tokenizer, "mask_tokenizer": mask_tokenizer}
    decode_plainly(model)
    know_end(model, processor.tokenizer)
    keep_spans_in_replies(model, processor)

    def write(folder: Path) -> None:
        save_as(model, folder, dtype, declared)
        processor.save_pretrained(folder)
        vocabulary.save(folder)
        _write_beside(folder, out, record, tokenizers, write_more)

    write_whole(out, write)


def save_adapter(
    model: Any,
    vocabulary: PerceptionVocabulary,
    base: str,
    out: Path,
    record: Mapping[str, Any],
    depth_tokenizer: Path | None,
    write_more: Callable[[Path], None],
    mask_tokenizer: Path | None = None,
) -> None:
    """Write a folder with an adapter alone atomically. A README.md of your own that is already in it is kept.

    Args:
        model: a model of peft (`train.models.adapters.adapt`).
        base: folder or hub name of the model that it adapts.

    The other arguments are those of `save_perception_model`.
    """

    tokenizers = {"depth_tokenizer": depth_tokenizer, "mask_tokenizer": mask_tokenizer}

    def write(folder: Path) -> None:
        folder.mkdir()
        write_adapter(model, vocabulary, base, folder)
        _write_beside(folder, out, record, tokenizers, write_more)

    write_whole(out, write)


def _write_beside(
    folder: Path,
    out: Path,
    record: Mapping[str, Any] | None,
    tokenizers: Mapping[str, Path | None],
    write_more: Callable[[Path], None] | None,
) -> None:
    """Write what lies beside the weights of a model or an adapter."""
    for kind, tokenizer in tokenizers.items():
        if tokenizer is not None:
            (folder / kind).mkdir()
            for name in (CONFIG_NAME, WEIGHTS_NAME):
                shutil.copyfile(tokenizer / name, folder / kind / name)
    if write_more is not None:
        write_more(folder)
    if record is not None:
        (folder / TRAINING_FILE).write_text(json.dumps(dict(record), indent=1) + "\n")
    if (out / CARD).exists() and not is_written(out / CARD):
        shutil.copyfile(out / CARD, folder / CARD)


def save_half(model: Any, folder: Path) -> None:
    """Write a float16 copy of a model; the model itself does not change."""
    save_as(model, folder, torch.float16)


def save_as(model: Any, folder: Path, dtype: torch.dtype, declared: str | None = None) -> None:
    """Write a copy of a model in precision `dtype`; the model itself does not change. Tied weights are written once.

    Args:
        declared: as in `save_perception_model`.
    """
    cast: dict[int, Tensor] = {}
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in cast:
            cast[id(value)] = value.detach().to(dtype) if value.is_floating_point() else value.detach()
        state[name] = cast[id(value)]
    with without_bars():
        model.save_pretrained(folder, state_dict=state)
    if declared is not None:
        config = folder / CONFIG_NAME
        config.write_text(json.dumps(_declare(json.loads(config.read_text()), declared), indent=2) + "\n")


def _declare(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config that names `dtype` wherever it, or a config inside it, names one."""
    inner = {name: _declare(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return inner | ({"dtype": dtype} if "dtype" in inner else {})


def declared_dtype(folder: Path) -> str:
    """Return the precision that a model's config names for loading; that of its weights if it names none."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    return str(config.get("dtype") or config.get("torch_dtype") or str(stored_dtype(folder)).removeprefix("torch."))


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the precision of the weights in a model's folder."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                dtype = file.get_slice(name).get_dtype()
                if dtype in _DTYPES:
                    return _DTYPES[dtype]
    return torch.float32
