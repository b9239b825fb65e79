"""Loading pretrained models by folder or hub name, with errors that name the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError


def load_pretrained(name: str, read: Callable[[str], Any]) -> Any:
    """What `read` (a `from_pretrained`) returns for a folder or hub name. Raises ValueError naming it if that fails."""
    try:
        return read(name)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"{name} cannot be loaded ({first}); give the folder of a saved model, or a hub name and a connection"
        ) from error
