"""The tower for photographs: order of its tokens, frozen backbone, saving, errors."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("timm")
from transformers import AutoModel

from perception.model.cell_tower import (
    CellTower,
    CellTowerConfig,
    features,
    register,
    without_batch_norms,
)


@pytest.fixture(scope="module")
def tower() -> CellTower:
    torch.manual_seed(0)
    return CellTower(CellTowerConfig(image_size=128, widths=(16, 16, 24))).eval()


def test_tokens_are_the_cells_row_by_row(tower):
    with torch.no_grad():
        kept = tower.places.clone()
        tower.places[0, 0] += 1000 * torch.arange(4)[:, None] + 100 * torch.arange(4)  # by row and column
        tokens = tower(torch.zeros(1, 3, 128, 128)).last_hidden_state
        tower.places.copy_(kept)
        plain = tower(torch.zeros(1, 3, 128, 128)).last_hidden_state
    expected = torch.tensor([1000.0 * row + 100 * column for row in range(4) for column in range(4)])
    assert tokens.shape == (1, 16, 24) and torch.allclose((tokens - plain)[0, :, 0], expected, atol=1e-2)


def test_features_put_in_the_place_of_pooled_ones_belong_to_the_output(tower):
    """As LLaVA does; prepared images join the outputs of several by their fields."""
    with torch.no_grad():
        output = tower(torch.zeros(1, 3, 128, 128))
    output.pooler_output = [torch.ones(16, 32)]
    assert output["pooler_output"][0].shape == (16, 32) and set(output) >= {"last_hidden_state", "hidden_states"}


def test_folding_batch_norms_changes_no_feature():
    torch.manual_seed(0)
    network = features("tf_efficientnet_lite2").train()
    network(torch.randn(2, 3, 64, 64))  # averages that are not 0 and 1
    network.eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = network(x)
        after = without_batch_norms(network)(x)
    assert not any("running_mean" in name for name in network.state_dict())
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max()))


def test_only_the_neck_trains(tower):
    tower.train()
    tower(torch.randn(2, 3, 128, 128)).last_hidden_state.sum().backward()
    tower.eval()
    assert all(p.grad is None for p in tower.backbone.parameters())
    assert all(p.grad is not None for p in tower.levels.parameters())


def test_a_saved_tower_is_read_by_the_auto_class(tower, tmp_path):
    register()
    tower.save_pretrained(tmp_path / "tower")
    again = AutoModel.from_pretrained(tmp_path / "tower")
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(again(x).last_hidden_state, tower(x).last_hidden_state)


def test_sizes_that_are_no_cells_are_refused():
    with pytest.raises(ValueError, match=r"multiple of 32, the side of a cell, got 100"):
        CellTowerConfig(image_size=100)
