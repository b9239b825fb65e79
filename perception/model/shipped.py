"""Folders of the weights that ship with the package, in a checkout or in an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDERS = {
    "depth-scenes-100": "tokenizers",
    "depth-scenes-100-nested": "tokenizers",
    "tiny-base": "models",
    "perception-tiny": "models",
    "aurora-tiny": "models",
    "geometry-base": "models",
    "geometry-tiny": "models",
}
"""Folder of the checkout that holds each shipped artefact, by name"""


def shipped(name: str) -> Path:
    """Return the folder of a shipped tokenizer or model.

    Raises:
        ValueError: for an unknown name, or an artefact that this installation lacks.
    """
    if name not in FOLDERS:
        raise ValueError(f"nothing called {name!r} is shipped; known names: {', '.join(FOLDERS)}")
    places = [_PACKAGE.parent / FOLDERS[name] / name, _PACKAGE / f"_{FOLDERS[name]}" / name]
    for place in places:
        if (place / "config.json").exists():
            return place
    raise ValueError(
        f"{name} does not ship with this installation; name a folder with --model (make quickstart leaves one in "
        "runs/quickstart/aurora/model), or train it with train/"
    )
