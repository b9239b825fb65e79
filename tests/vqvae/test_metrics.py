from __future__ import annotations

import math

import pytest
import torch

from vqvae.metrics import depth_errors, nearest_is_right, order_is_right, values_at


def test_errors_of_a_known_map() -> None:
    target = torch.tensor([[[1.0, 2.0], [4.0, 8.0]]])
    predicted = torch.tensor([[[1.0, 2.0], [6.0, 16.0]]])
    errors = depth_errors(predicted, target)
    assert errors.delta1.item() == 0.5 and errors.delta2.item() == 0.75 and errors.delta3.item() == 0.75
    assert errors.abs_rel.item() == pytest.approx((0.5 + 1.0) / 4)
    assert errors.rmse.item() == pytest.approx(math.sqrt((4 + 64) / 4))
    logs = torch.tensor([0, 0, math.log(1.5), math.log(2)], dtype=torch.float64)
    assert errors.silog.item() == pytest.approx(100 * logs.std(correction=0).item())


def test_a_wrong_scale_costs_no_silog() -> None:
    target = torch.rand(2, 5, 5) + 1
    errors = depth_errors(3 * target, target)
    assert float(errors.silog.max()) < 1e-3 and float(errors.delta1.max()) == 0
    assert set(errors.means()) == {"delta1", "delta2", "delta3", "abs_rel", "rmse", "silog"}


def test_holes_do_not_count() -> None:
    target = torch.tensor([[[1.0, float("nan")], [0.0, 2.0]]])
    mask = torch.tensor([[[True, True], [True, False]]])
    errors = depth_errors(torch.tensor([[[1.0, 9.0], [9.0, 9.0]]]), target, mask)
    assert errors.delta1.item() == 1 and errors.rmse.item() == 0
    with pytest.raises(ValueError, match="no valid target pixel"):
        depth_errors(torch.ones(1, 2, 2), target, ~mask & False)
    with pytest.raises(ValueError, match="positive"):
        depth_errors(torch.zeros(1, 2, 2), target, mask)
    with pytest.raises(ValueError, match="alike"):
        depth_errors(torch.zeros(1, 2, 3), target)


def test_order_and_nearest_at_points() -> None:
    target = torch.tensor([[[0.1, 0.5], [0.7, 0.9]]])
    points = torch.tensor([[[0.2, 0.2], [0.8, 0.2], [0.8, 0.8]]])  # 0.1, 0.5, 0.9
    torch.testing.assert_close(values_at(target, points), torch.tensor([[0.1, 0.5, 0.9]]))
    assert order_is_right(target, target, points).item()
    swapped = torch.tensor([[[0.6, 0.5], [0.7, 0.9]]])
    assert not order_is_right(swapped, target, points).item() and nearest_is_right(swapped, target, points).item()
    tied = torch.tensor([[[0.5, 0.5], [0.7, 0.9]]])
    assert not order_is_right(tied, target, points).item()
    with pytest.raises(ValueError, match="divide pixel coordinates"):
        values_at(target, 10 * points)
