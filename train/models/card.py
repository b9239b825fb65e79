"""The card (README.md) of a trained model or adapter, written from its run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from perception.model.adapter import is_adapter
from perception.model.folder import find_folder
from perception.model.shipped import shipped_name
from train.data.records import SourcesConfig

CARD = "README.md"
MARK = "<!-- written by train.finetune, and anew by its next run; delete this line to keep your changes -->"
_LABELS = {
    "steps": "training steps",
    "samples_a_step": "rows per step",
    "scenes": "rendered scenes",
    "records": "records",
    "skipped": "records left out",
    "minutes": "minutes of training",
    "final_loss": "loss at the end, on training data",
}


_SPLITS = ("ImageSets", "Main")
"""Folders of a data set in VOC's layout where the lists of its split lie"""
_SOURCES = {
    "own": "own questions",
    "dataset": "data set",
    "records": "records",
    "aurora": "AURORA's files",
    "counts": "boxes of things",
    "depth": "depth maps",
    "prepared": "images with labels of teacher models",
}
"""What the files of each field of `SourcesConfig` are"""


def describe_data(config: SourcesConfig) -> list[str]:
    """Return one line per source of data, with the names of its files and without the folders that these lie in."""
    lines = [f"{config.scenes.count} rendered scenes"] if config.scenes.count else []
    if config.photos.folder:
        lines.append(f"photographs with depth maps and boxes of teacher models: {_public(config.photos.folder)}")
    for field in fields(config):
        value = getattr(config, field.name)
        if value and isinstance(value, tuple):
            lines.append(f"{_SOURCES[field.name]}: {', '.join(_public(name) for name in value)}")
    return lines


def _public(name: str) -> str:
    """Return a hub name as it is, and of a path its last part alone; a list of a VOC split is named after its set."""
    is_hub_name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) and not Path(name).suffix and not Path(name).exists()
    if is_hub_name:
        return name
    path = Path(name)
    return f"{path.parts[-4]}/{path.name}" if path.parts[-3:-1] == _SPLITS and len(path.parts) > 3 else path.name


def write_card(folder: Path, base: str, data: list[str], record: Mapping[str, Any]) -> None:
    """Write the README.md of a folder that holds a model or an adapter.

    Args:
        base: folder or hub name of the model that was trained.
        data: what `describe_data` returns.
        record: the training record; what it holds under "evaluation" is shown as held-out figures.
    """
    from huggingface_hub import ModelCardData

    adapter, licence = is_adapter(folder), base_licence(base)
    known = shipped_name(find_folder(base)) or (base if not Path(base).exists() else None)
    about = ModelCardData(
        license=licence,
        base_model=known if known and "/" in known else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["perception-tokens", *(["lora"] if adapter else [])],
    )
    rows = [f"| {label} | {record[key]} |" for key, label in _LABELS.items() if record.get(key) is not None]
    held_out = [f"| {name} | {value} |" for name, value in (record.get("evaluation") or {}).items()]
    measured = (
        ["| held-out data | |", "|---|---|", *held_out] if held_out else ["Nothing was measured on held-out data."]
    )
    name = known or Path(base).name
    what = f"An adapter for {name}" if adapter else f"{name}, fine-tuned"
    lines = [
        f"---\n{about.to_yaml()}\n---",
        MARK,
        "# A model with perception tokens",
        f"{what} to draw depth maps, boxes and points as tokens before it answers.",
        "```python\nfrom perception import PerceptionModel\n\n"
        'model = PerceptionModel.from_pretrained("NAME")  # this folder, or its name on the hub\n'
        'print(model.ask("photo.jpg", "How many cups are there?").value)\n```',
        "## Training data",
        "\n".join(f"- {line}" for line in data),
        "## Figures",
        "\n".join(["| run | |", "|---|---|", *rows]),
        "\n".join(measured),
        "## Limits",
        "The model answers what its training data ask, in their words, on images like theirs. A map or a box that it "
        "draws is its own guess, and what it says need not follow from it. A depth map holds no scale.",
        "## Licence",
        f"The base's card states {licence}, which holds for what is derived from it; the training data have their own."
        if licence
        else "The base's card states no licence. Find it out before you share this, and those of the training data.",
    ]
    (folder / CARD).write_text("\n\n".join(lines) + "\n")


def base_licence(base: str) -> str | None:
    """Return the licence in the head of a base's card; None where it states none."""
    from huggingface_hub import ModelCard

    path = find_folder(base) / CARD
    if not path.is_file():
        return None
    try:
        stated = ModelCard.load(path).data
    except ValueError:  # a head that is not YAML
        return None
    licence = stated.get("license_name") or stated.license
    return str(licence) if licence else None


def is_written(path: Path) -> bool:
    """True for a card that `write_card` wrote and nobody made their own."""
    return MARK in path.read_text(encoding="utf-8", errors="replace")
