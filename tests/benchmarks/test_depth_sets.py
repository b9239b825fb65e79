"""What depth tokenizers are measured on, and by what."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import missing_depth
from benchmarks.depth_sets import DepthSet, figures, measured_set, scene_set, true_nearness
from perception.datasets.depth.measured import MeasuredMap
from perception.scenes.markers import MIN_GAP, MIN_SPACING
from vqvae import VQVAE, VQVAEConfig


@pytest.fixture(scope="module")
def ramp() -> MeasuredMap:
    depth = torch.linspace(1, 5, 90).expand(60, 90).clone()
    depth[:, 40:50] = torch.nan
    return MeasuredMap("ramp", depth, ground_truth=True)


def test_points_of_measured_maps_are_apart_and_out_of_holes(ramp: MeasuredMap) -> None:
    points = measured_set([ramp]).points
    near, _ = true_nearness(ramp.depth[None])
    for number, (sets,) in points.items():
        (places,) = sets
        assert len(places) > 20 and places.shape[1:] == (number, 2)
        columns, rows = (places[..., 0] * 90).long(), (places[..., 1] * 60).long()
        assert bool(ramp.depth[rows, columns].isfinite().all())
        gaps = near[0, rows, columns].sort(1).values.diff(dim=1)
        assert float(gaps.min()) >= MIN_GAP - 1e-6
        apart = (places[:, :, None] - places[:, None]).norm(dim=-1) + 9 * torch.eye(number)
        assert float(apart.min()) >= MIN_SPACING - 1e-6


def test_a_perfect_reconstruction_has_no_error_and_a_mirrored_one_no_order(ramp: MeasuredMap) -> None:
    chosen = measured_set([ramp])
    codes = torch.arange(4).view(1, 2, 2)
    perfect: Any = figures(lambda depth: (true_nearness(depth)[0], codes), chosen, 8)
    assert perfect["abs_rel"]["mean"] < 1e-6 and perfect["delta1"]["mean"] == 1 and perfect["boundary_f1"]["mean"] == 1
    assert all(perfect[f"order_{number}"]["mean"] == 1 for number in (2, 3, 4, 5))
    assert perfect["codebook_usage"] == 0.5 and perfect["maps"] == 1
    mirrored: Any = figures(lambda depth: (1 - true_nearness(depth)[0], codes), chosen, 8)
    assert all(mirrored[f"order_{number}"]["mean"] == 0 for number in (2, 3, 4, 5))


def test_scenes_without_room_have_no_points() -> None:
    chosen: DepthSet = scene_set("standard", 6, 48)
    assert chosen.depth[0].shape == (6, 48, 48)
    assert all(len(sets[0]) == 6 for sets in chosen.points.values())
    assert all(len(places) in (0, 1) for sets in chosen.points.values() for places in sets[0])


def test_half_of_the_pixels_are_missing_in_every_pattern() -> None:
    for name, mask in missing_depth.missing_masks(20, 60).items():
        share = float(1 - mask.float().mean())
        assert abs(share - 0.5) < 0.02, name


def test_a_map_with_nothing_missing_keeps_its_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(image_size=16, downsample=4, codebook_size=16, channels=32, num_res_blocks=1)).eval()
    whole = torch.ones(3, 20, 20, dtype=torch.bool)
    monkeypatch.setattr(missing_depth, "missing_masks", lambda count, size: {"nothing": whole})
    found: Any = missing_depth.missing_figures(model, 1 + torch.rand(3, 20, 20))
    assert found["nothing"]["same_codes"]["mean"] == 1 and found["nothing"]["from_whole_l1_255"]["mean"] == 0
    assert found["nothing"]["abs_rel"] == found["whole"]["abs_rel"]
