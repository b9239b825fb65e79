from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vqvae.metrics import boundary_f1, depth_errors, nearest_is_right, order_is_right, slope_error, values_at


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


def _step_map(column: int, size: int = 12, near: float = 1.0, far: float = 2.0) -> Tensor:
    """(1, S, S): near left of a column, far from it on."""
    depth = torch.full((1, size, size), near)
    depth[:, :, column:] = far
    return depth


def test_boundaries_are_right_only_where_they_lie() -> None:
    truth = _step_map(6)
    assert boundary_f1(truth, truth).item() == 1
    assert boundary_f1(3 * truth, truth).item() == 1  # scale does not matter
    assert boundary_f1(_step_map(7), truth).item() == 0  # one pixel beside it
    assert boundary_f1(_step_map(6, near=2, far=1), truth).item() == 0  # the other side in front
    assert boundary_f1(torch.ones_like(truth), truth).item() == 0


def test_a_blurred_boundary_is_missed_and_a_weak_one_found_at_low_thresholds_only() -> None:
    truth = _step_map(6)
    ramp = torch.linspace(1, 2, 12).expand(1, 12, 12)
    assert boundary_f1(ramp, truth).item() < 0.2
    weak = _step_map(6, far=1.12)
    assert 0 < boundary_f1(weak, truth).item() < 0.5


def test_boundaries_in_holes_and_in_flat_maps_count_for_nothing() -> None:
    truth = torch.cat([_step_map(6), _step_map(6), torch.ones(2, 12, 12)])
    guess = torch.cat([_step_map(6), _step_map(6), torch.ones(1, 12, 12), _step_map(3)])
    guess[1, :4] = 7
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[1, :5] = False
    assert boundary_f1(guess, truth, mask).tolist() == [1, 1, 1, 0]


def test_slope_error_is_of_differences_alone() -> None:
    truth = torch.rand(2, 9, 7)
    assert slope_error(truth + 0.3, truth).max() < 1e-6
    stepped = truth.clone()
    stepped[:, :, 4:] += 0.5  # one column of 9 x 6 + 8 x 7 = 110 pairs
    assert torch.allclose(slope_error(stepped, truth), torch.full((2,), 0.5 * 9 / 110, dtype=torch.double), atol=1e-6)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[:, :, 4] = False
    assert slope_error(stepped, truth, mask).max() < 1e-6
