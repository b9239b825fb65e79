"""A folder with an adapter alone: LoRA, the rows of the perception tokens and the projector, for a base kept elsewhere.

The weights are peft's own files. Beside them lie the vocabulary, the depth tokenizer, and perception_adapter.json,
which names the base and holds a digest of it, so that an adapter is not put onto another base.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from perception.model.folder import (
    INDEX,
    WEIGHTS,
    check_files,
    check_safetensors,
    find_folder,
    is_small,
    read_json,
    read_model,
    read_processor,
    without_bars,
)
from perception.model.shipped import shipped_name
from perception.vocabulary.names import FILE_NAME, PerceptionVocabulary
from vqvae.files import write_whole

ADAPTER_FILE = "perception_adapter.json"
_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SAMPLE = 4096
"""Bytes of each end of a tensor that `weights_digest` reads"""
_REMEDY = "fetch the adapter anew, or write it again with --save adapter"


@dataclass(frozen=True)
class AdapterBase:
    """The base that an adapter belongs to, as perception_adapter.json holds it."""

    base: str
    """Folder, hub name, or bare name of what ships"""
    base_digest: str
    """`base_digest` of its folder"""
    taught_questions: list[str] | None = None
    """`PerceptionModel.taught`, where the adapter teaches some kinds of questions alone"""
    trained_on: str = ""
    """`PerceptionModel.trained_on`"""
    taught_things: list[str] | None = None
    """`PerceptionModel.taught_things`"""
    weighs_ends: bool = False
    """`SpanGrammar.weighs_ends`"""

    def save(self, folder: Path) -> None:
        write_whole(folder / ADAPTER_FILE, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> AdapterBase:
        """Read the file of an adapter's folder. Raises ValueError where it is missing, broken or has other keys."""
        path = folder / ADAPTER_FILE
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: {folder} is an adapter of peft without perception tokens, or was copied in part; "
                f"{_REMEDY}"
            )
        values, known = read_json(path), {field.name for field in fields(cls)}
        since = {"trained_on", "taught_things", "weighs_ends"}  # older files lack them
        if values.keys() | since != known or not isinstance(values["base"], str):
            raise ValueError(f"{path} must hold the keys {sorted(known)}, got {sorted(values)}; {_REMEDY}")
        return cls(**values)


def is_adapter(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() or (folder / ADAPTER_FILE).is_file()


def base_digest(folder: Path) -> str:
    """Digest of a model's weights, without a draft network or a selector beside them."""
    return weights_digest(weights_files(folder))


def weights_files(folder: Path) -> list[Path]:
    """Files of a model's own weights; of an adapter's, in the folder of an adapter."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file():
        return [whole]
    if index.is_file():
        return [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    return sorted(folder.glob("*.safetensors"))


def weights_digest(files: Iterable[Path]) -> str:
    """Digest of weights by names, types, shapes and the two ends of each tensor; quick for any size.

    How the tensors are spread over files does not matter.
    """
    lines = sorted(line for path in files for line in _tensor_lines(path))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tensor_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                sample = hashlib.sha256()
                for start in (begin, max(begin, end - _SAMPLE)):
                    file.seek(8 + length + start)
                    sample.update(file.read(min(end - start, _SAMPLE)))
                yield f"{name} {tensor['dtype']} {tensor['shape']} {sample.hexdigest()}"


def write_adapter(model: Any, vocabulary: PerceptionVocabulary, base: str, folder: Path) -> None:
    """Write an adapter's weights, its vocabulary and the digest of its base into a folder.

    Args:
        model: a model of peft (`get_peft_model`).
        vocabulary: bound to its tokenizer.
        base: folder or hub name that the adapter is loaded onto.
        folder: an existing folder.
    """
    base_folder, settings = find_folder(base), model.peft_config["default"]
    base = shipped_name(base_folder) or base
    settings.base_model_name_or_path = base
    # Rows of the perception tokens are in the adapter already: peft would look the base up to decide on the tables.
    model.save_pretrained(folder, save_embedding_layers=False)
    vocabulary.save(folder)
    questions, things = (getattr(model.config, f"taught_{name}", None) or None for name in ("questions", "things"))
    trained_on = getattr(model.config, "trained_on", None) or ""
    weighs_ends = bool(getattr(model.config, "weighs_ends", False))
    AdapterBase(base, base_digest(base_folder), questions, trained_on, things, weighs_ends).save(folder)


def check_adapter(folder: Path) -> AdapterBase:
    """Return the base that an adapter names. Raises ValueError naming a file that is missing, cut short or broken."""
    about = AdapterBase.load(folder)
    missing = [name for name in (_CONFIG, _ADAPTER_WEIGHTS, FILE_NAME) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} is not a whole adapter: {', '.join(missing)} missing; {_REMEDY}")
    read_json(folder / _CONFIG)
    check_safetensors(folder / _ADAPTER_WEIGHTS)
    return about


def read_adapter(folder: Path, dtype: Any, base: str | Path | None = None) -> tuple[Any, Any, PerceptionVocabulary]:
    """Load an adapter onto its base: the model with the adapter merged, its processor and its vocabulary.

    Args:
        base: folder or hub name of the base; None for the one that the adapter names.

    Raises:
        ValueError: where a file is missing or broken, the base is missing or another one, or the vocabulary does not
            fit the base's tokenizer.
    """
    about = check_adapter(folder)
    vocabulary = PerceptionVocabulary.load(folder)
    base_folder = _find_base(folder, about.base if base is None else base)
    check_files(base_folder, has_vocabulary=False)
    if base_digest(base_folder) != about.base_digest:
        raise ValueError(
            f"{folder} is an adapter for {about.base}, and {base_folder} has other weights than that base had; give "
            "the base it was trained on: from_pretrained(adapter, base=FOLDER)"
        )
    processor, model = read_processor(base_folder), read_model(base_folder, dtype)
    _extend(folder, vocabulary, model, processor.tokenizer)
    model.config.taught_questions = about.taught_questions
    model.config.taught_things = about.taught_things
    model.config.trained_on = about.trained_on
    model.config.weighs_ends = about.weighs_ends
    return _merge(folder, model), processor, vocabulary


def _find_base(folder: Path, base: str | Path) -> Path:
    try:
        return find_folder(base)
    except ValueError as error:
        raise ValueError(
            f"{folder} is an adapter for {base}, which was not found ({error}); give its folder: "
            "from_pretrained(adapter, base=FOLDER)"
        ) from error


def _extend(folder: Path, vocabulary: PerceptionVocabulary, model: Any, tokenizer: Any) -> None:
    """Give base and tokenizer the tokens of an adapter's vocabulary, with the same ids."""
    file = folder / FILE_NAME
    try:
        bound = replace(vocabulary, ids={}).extend(model, tokenizer)
    except ValueError as error:
        raise ValueError(f"{file} does not fit the base: {error}") from error
    moved = next((name for name in vocabulary.tokens if bound.ids[name] != vocabulary.ids[name]), None)
    if moved is not None:
        raise ValueError(
            f"{file} does not fit the base: {moved} is id {vocabulary.ids[moved]} there and {bound.ids[moved]} in the "
            "base's tokenizer; use the tokenizer that the adapter was trained with"
        )


def _merge(folder: Path, model: Any) -> Any:
    """Load peft's files onto a model and merge them, strictly: no tensor is missing, left over or of another shape."""
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise ValueError(f"{folder} is an adapter, which peft loads; pip install peft") from error
    from safetensors import safe_open

    path, types = folder / _ADAPTER_WEIGHTS, {name: parameter.dtype for name, parameter in model.named_parameters()}
    try:
        with without_bars() if is_small(folder) else nullcontext():
            adapted = PeftModel.from_pretrained(model, folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} does not fit {_CONFIG} and the base ({said}); {_REMEDY}") from error
    with safe_open(path, framework="pt") as file:
        found = set(file.keys())
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    if found != wanted:
        raise ValueError(
            f"{path} does not match {_CONFIG}: {len(wanted - found)} tensors missing, {len(found - wanted)} unknown; "
            f"{_REMEDY}"
        )
    merged = adapted.merge_and_unload()
    for name, parameter in merged.named_parameters():  # the adapter's are in float32
        parameter.data = parameter.data.to(types[name])
    return merged
