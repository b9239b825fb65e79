"""A model for photographs whose tower was trained for two steps, from random weights instead of ImageNet's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perception.model.cell_tower import CellTower, CellTowerConfig
from train import photo_tower


def join_tiny_tower(photos: Path, folder: Path) -> Path:
    """Return the folder of `models/perception-tiny` with a small tower for photographs."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_tower, "pretrained_tower", lambda config: CellTower(config))
        patch.setattr(photo_tower, "CellTowerConfig", lambda: CellTowerConfig(widths=(16, 16, 32)))
        arguments = ["--photos", str(photos), "--run_dir", str(folder), "--batch_size", "2"]
        arguments += ["--scenes", "64", "--projector_steps", "20"]
        photo_tower.main([*arguments, "--loop.steps", "2", "--loop.warmup_steps", "1", "--loop.precision", "fp32"])
    return folder / "model"
