"""Folders of the weights that ship with the package, in a checkout or in an installed wheel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_KINDS = ("tokenizers", "models")


def shipped(name: str) -> Path:
    """Return the folder of a shipped tokenizer or model, by its bare name.

    Raises:
        ValueError: for a name that does not ship with this installation.
    """
    folders = {folder.name: folder for folder in _folders()}
    if name not in folders:
        raise ValueError(
            f"nothing called {name!r} ships with this installation; it has: {', '.join(folders) or 'nothing'}. Name a "
            "folder (make quickstart leaves a model in runs/quickstart/aurora/model), or train one with train/"
        )
    return folders[name]


def find_shipped(name: str | Path) -> Path | None:
    """Return the folder of what ships under a bare name, or under its place in a checkout such as models/aurora-tiny.

    None for anything else, and where a file or folder of that name lies in the working directory.
    """
    kind, _, bare = str(name).rpartition("/")
    if Path(name).exists() or kind not in ("", *_KINDS):
        return None
    return next((f for f in _folders() if f.name == bare and (not kind or f.parent.name.endswith(kind))), None)


def shipped_name(folder: Path) -> str | None:
    """Return the bare name of a shipped folder; None for any other."""
    return next((f.name for f in _folders() if f.resolve() == folder.resolve()), None)


def _folders() -> Iterator[Path]:
    """All shipped folders: of the checkout around the package, or inside an installed package."""
    is_checkout = (_PACKAGE.parent / "pyproject.toml").is_file()
    for kind in _KINDS:
        place = _PACKAGE.parent / kind if is_checkout else _PACKAGE / f"_{kind}"
        yield from sorted(config.parent for config in place.glob("*/config.json"))
