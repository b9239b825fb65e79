"""Saving of finished models: standard transformers folders plus the files that perception tokens need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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


class Precision(NamedTuple):
    """How precise the weights of a folder are."""

    stored: torch.dtype = torch.float16
    """of the weights in the files"""
    declared: str | None = None
    """name of what the config asks stock transformers to load them in; None: what the saved model has in memory"""


HALF = Precision()


def save_perception_model(
    model: Any,
    processor: Any,
    vocabulary: PerceptionVocabulary,
    out: Path,
    record: Mapping[str, Any] | None = None,
    precision: Precision = HALF,
    depth_tokenizer: Path | None = None,
    write_more: Callable[[Path], None] | None = None,
    mask_tokenizer: Path | None = None,
) -> None:
    """Write a standard transformers folder atomically. A README.md of your own that is already in it is kept.

    Args:
        model: a plain transformers model (`train.models.adapters.merged`).
        out: the folder to write.
        record: training record for training.json; None writes no such file.
        precision: of the weights; `precision_of` a base gives the base's own.
        depth_tokenizer: folder whose config and weights are copied into `out/depth_tokenizer`.
        write_more: called with the folder, to write further files into it.
        mask_tokenizer: likewise copied into `out/mask_tokenizer`.
    """

    tokenizers = {"depth_tokenizer": depth_tokenizer, "mask_tokenizer": mask_tokenizer}
    decode_plainly(model)
    know_end(model, processor.tokenizer)
    keep_spans_in_replies(model, processor)

    def write(folder: Path) -> None:
        save_as(model, folder, precision)
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
    save_as(model, folder, HALF)


def save_as(model: Any, folder: Path, precision: Precision) -> None:
    """Write a copy of a model in a precision; the model itself does not change. Tied weights are written once."""
    cast: dict[int, Tensor] = {}
    state = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in cast:
            cast[id(value)] = value.detach().to(precision.stored) if value.is_floating_point() else value.detach()
        state[name] = cast[id(value)]
    with without_bars():
        model.save_pretrained(folder, state_dict=state)
    if precision.declared is not None:
        config = folder / CONFIG_NAME
        config.write_text(json.dumps(_declare(json.loads(config.read_text()), precision.declared), indent=2) + "\n")


def _declare(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config that names `dtype` wherever it, or a config inside it, names one."""
    inner = {name: _declare(value, dtype) if isinstance(value, dict) else value for name, value in config.items()}
    return inner | ({"dtype": dtype} if "dtype" in inner else {})


def precision_of(folder: Path) -> Precision:
    """Return the precision of a model's folder; where its config names none, its weights' is declared."""
    config, stored = json.loads((folder / CONFIG_NAME).read_text()), _stored(folder)
    named = config.get("dtype") or config.get("torch_dtype") or str(stored).removeprefix("torch.")
    return Precision(stored, str(named))


def _stored(folder: Path) -> torch.dtype:
    """Precision of a model's weights; a selector's or drafts' may lie beside them."""
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                dtype = file.get_slice(name).get_dtype()
                if dtype in _DTYPES:
                    return _DTYPES[dtype]
    return torch.float32
