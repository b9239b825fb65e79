"""Strict reading of a perception model's folder: its files are complete and match, or an error names the one at fault.

By default transformers fills missing tensors with random numbers and only prints a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from perception.model.shipped import find_shipped
from perception.vocabulary.names import FILE_NAME

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_FILES = ("config.json", WEIGHTS, "tokenizer.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_REMEDY = "copy the whole folder anew, or train again"
_SMALL = 500_000_000
"""Size in bytes of weights that load too fast for a progress bar"""


def find_folder(name: str | Path) -> Path:
    """Return the folder of that name, of what ships under it, or of the hub's model, downloaded if it is not cached.

    Raises:
        ValueError: where there is neither.
    """
    if Path(name).exists():
        return Path(name)
    found = find_shipped(name)
    if found is not None:
        return found
    from huggingface_hub import snapshot_download

    if str(name).startswith((".", "/")) or str(name).count("/") != 1:
        raise ValueError(
            f"{name} does not exist; give the folder of a model, the name of one that ships, or a hub name"
        )
    try:
        return Path(snapshot_download(str(name)))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is not a local folder and could not be fetched from the hub ({type(error).__name__}); give the "
            "folder of a model, or try again with a connection"
        ) from error


def check_files(folder: Path, has_vocabulary: bool = True) -> None:
    """Raise ValueError naming a file that is missing from a model's folder, or cut short.

    Args:
        has_vocabulary: True for a perception model, False for a base model without perception tokens.
    """
    needed = (*_FILES, FILE_NAME) if has_vocabulary else _FILES
    present = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in needed if name not in present and not (name == WEIGHTS and INDEX in present)]
    if not present.intersection(_PROCESSORS):
        missing.append(_PROCESSORS[0])
    if missing and "adapter_config.json" in present:
        raise ValueError(
            f"{folder} is an adapter, and a whole model is needed here; write one: "
            f"PerceptionModel.from_pretrained({str(folder)!r}).save_pretrained(FOLDER)"
        )
    if missing and any(name.startswith("optimizer") for name in present):
        raise ValueError(
            f"{folder} is a checkpoint of a training run, not a model; write it as one with the run's own command "
            f"(python -m train.finetune ..., train.interleave, train.reinforce) and --export {folder.name} --out FOLDER"
        )
    if missing:
        what, recipe = ("perception", "train.aurora") if has_vocabulary else ("base", "train.base")
        raise ValueError(
            f"{folder} is not a finished {what} model: {', '.join(missing)} missing; "
            f"train one with `python -m {recipe}` or copy the whole folder anew"
        )
    contents = {path.name: read_json(path) for path in sorted(folder.glob("*.json"))}
    for name in sorted(set(contents.get(INDEX, {}).get("weight_map", {}).values())):
        if name not in present:
            raise ValueError(f"{folder / name} is missing and {INDEX} lists it; {_REMEDY}")
    for path in sorted(folder.glob("*.safetensors")):
        check_safetensors(path)


def read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is half written or no JSON ({error}); {_REMEDY}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(values).__name__}; {_REMEDY}")
    return values


def check_safetensors(path: Path) -> None:
    """Refuse a file that was cut short, by its header, which says where the last tensor ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else -1
        text = file.read(length) if 0 < length < size else b""
    try:
        header = json.loads(text)
        end = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, AttributeError):
        end = -1
    if end != size:
        raise ValueError(f"{path} is half written or corrupt ({size} bytes); {_REMEDY}")


def read_model(folder: Path, dtype: Any, quantization: Any = None) -> Any:
    """Load the transformers model of a folder.

    Args:
        quantization: transformers' settings of quantisation, or None.

    Raises:
        ValueError: where the config names no known model, or quantised weights, or the weights do not fit it.
    """
    from transformers import AutoModelForImageTextToText

    from perception.model.cell_tower import register

    register()
    if stored := read_json(folder / "config.json").get("quantization_config"):
        raise ValueError(
            f"{folder} holds quantised weights ({stored.get('quant_method')}), to which no tokens are added and no "
            "LoRA is merged; give the model that they were made of (train.finetune can keep it in 4 bits: "
            "base_precision nf4)"
        )
    try:
        # Sizes that differ are reported below, with the rest.
        with without_bars() if is_small(folder) else nullcontext():
            model, found = AutoModelForImageTextToText.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                quantization_config=quantization,
            )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder / 'config.json'} gives no model ({_first_line(error)}); {_REMEDY}") from error
    sized = [f"{name} {tuple(got)} for {tuple(expected)}" for name, got, expected in found["mismatched_keys"]]
    problems = {"lacks": found["missing_keys"], "has unknown": found["unexpected_keys"], "has": sized}
    said = [f"{word} {_some(names)}" for word, names in problems.items() if names]
    if said:
        raise ValueError(f"{folder / WEIGHTS} does not fit config.json: it {'; it '.join(said)}; {_REMEDY}")
    for module in model.modules():
        for name in getattr(module, "frozen_parts", ()):  # loading sets every parameter to train
            module.get_submodule(name).requires_grad_(False)
    return model


def is_small(folder: Path) -> bool:
    """True if a folder's weights load too fast for a progress bar."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) < _SMALL


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the progress bars of transformers inside the block."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def read_processor(folder: Path) -> Any:
    """Load the transformers processor of a folder, made to show whole images (`show_whole`). Raises ValueError where it
    cannot be built."""
    from transformers import AutoProcessor

    from perception.model.cell_tower import register

    register()  # without it transformers warns that it does not know the tower
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except Exception as error:  # Hugging Face's tokenizers raise no narrower class
        raise ValueError(
            f"{folder} gives no processor: tokenizer.json, tokenizer_config.json or {_PROCESSORS[0]} is wrong "
            f"({_first_line(error)}); {_REMEDY}"
        ) from error
    if not hasattr(processor, "tokenizer"):
        raise ValueError(f"{folder} has no processor of images and text, got a {type(processor).__name__}; {_REMEDY}")
    show_whole(processor.image_processor)
    return processor


def show_whole(image_processor: Any) -> None:
    """Let an image processor that cuts out an image's middle square, as LLaVA-1.5's does, squeeze the image into it.

    Boxes, points and maps are of the whole image: a model must not be taught, or asked, about what it cannot see.
    """
    if getattr(image_processor, "do_center_crop", False):
        image_processor.size = type(image_processor.size)(**dict(image_processor.crop_size))
        image_processor.do_center_crop = False


def _some(names: Any) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (f" and {len(listed) - 3} more" if len(listed) > 3 else "")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
