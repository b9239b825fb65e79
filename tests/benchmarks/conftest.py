"""What the comparisons on photographs and on cells start from."""

from __future__ import annotations

from pathlib import Path

import pytest
from photo_folder import make_photos


@pytest.fixture(scope="session")
def photo_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of drawn photographs, and the folder of a model with a tower for photographs."""
    pytest.importorskip("timm")
    from photo_world import join_tiny_tower

    folder = tmp_path_factory.mktemp("photo_base")
    data = make_photos(folder / "set")
    return data, join_tiny_tower(data, folder / "tower")
