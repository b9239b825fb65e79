"""The parts of models by family: the projector is no part of the vision tower, wherever a family keeps it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import save_family
from torch import nn

from perception.model.folder import find_folder, read_model
from train.interleave import interleaved_groups
from train.models.parts import projector_names, tower_parameters, vision_tower


class WithSelector(nn.Module):
    """Stands for a model that selects visual tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.selector = model, nn.Linear(2, 2)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl"])
@pytest.mark.parametrize("ratio", [0.0, 0.1])
def test_a_projector_trains_with_the_rest_and_the_tower_at_its_own_rate(
    tmp_path: Path, family: str, ratio: float
) -> None:
    """Qwen-VL has its projector, the merger, inside the tower."""
    model: Any = WithSelector(read_model(save_family(family, tmp_path / "base"), torch.float32))
    groups = interleaved_groups(model, ratio, selector_lr_ratio=0.5)
    rates = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    projector = [p for name in projector_names(model.model) for p in model.model.get_submodule(name).parameters()]
    assert projector and all(p.requires_grad and rates[id(p)] == 1.0 for p in projector)
    tower = tower_parameters(model.model)
    assert tower and all(p.requires_grad == (ratio > 0) and rates.get(id(p), 0.0) == ratio for p in tower)
    assert {rates[id(p)] for p in model.selector.parameters()} == {0.5}
    model.train()
    assert vision_tower(model.model).training == (ratio > 0), "a frozen tower stays in evaluation mode"


def test_the_backbone_of_a_tower_for_photographs_never_trains() -> None:
    """Loading sets every parameter to train, and a backbone without its batch norms does not train well."""
    model = read_model(find_folder("models/photo-tiny"), torch.float32)
    groups = interleaved_groups(WithSelector(model), 0.1, selector_lr_ratio=0.5)
    tower, rates = vision_tower(model), {id(p): g.get("lr_scale", 1.0) for g in groups for p in g["params"]}
    assert not any(p.requires_grad or id(p) in rates for p in tower.backbone.parameters())
    assert {rates[id(p)] for p in tower_parameters(model)} == {0.1}
    assert {id(p) for p in tower_parameters(model)} == {id(p) for p in tower.parameters() if p.requires_grad}
