from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_vqvae import TINY
from torch import Tensor

from vqvae import VQVAE
from vqvae.normalisation import depth_ranges, depth_to_nearness, nearness_to_depth, resize_masked

CONFIGS = {
    "relative_inverse": TINY,
    "relative": replace(TINY, normalisation="relative"),
    "metric": replace(TINY, normalisation="metric", min_depth=1.0, max_depth=10.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_depth_comes_back_from_nearness(name: str, depth: Tensor) -> None:
    config = CONFIGS[name]
    ranges = depth_ranges(depth, torch.ones_like(depth, dtype=torch.bool), config)
    nearness = depth_to_nearness(depth, ranges, config)
    assert 0 <= float(nearness.min()) and float(nearness.max()) <= 1
    assert bool((nearness[depth == depth.min()] >= nearness.max() - 1e-6).all()), "the nearest is the largest"
    torch.testing.assert_close(nearness_to_depth(nearness, ranges, config), depth)


def test_relative_nearness_does_not_know_the_unit(tiny: VQVAE, depth: Tensor) -> None:
    torch.testing.assert_close(tiny.normalise(1000 * depth).values, tiny.normalise(depth).values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hole", [float("nan"), float("inf"), 0.0, -1.0])
def test_what_lies_in_a_hole_does_not_matter(tiny: VQVAE, depth: Tensor, hole: float) -> None:
    mask = torch.ones_like(depth, dtype=torch.bool)
    mask[:, 4:9, 10:15] = False
    spoiled = torch.where(mask, depth, hole)
    by_mask, by_value = tiny.normalise(depth, mask), tiny.normalise(spoiled)
    assert by_mask.values.equal(by_value.values) and by_mask.mask.equal(by_value.mask)
    assert by_mask.depth_range.equal(by_value.depth_range)
    assert tiny.encode(depth, mask).equal(tiny.encode(spoiled))


@pytest.mark.parametrize("size", [(8, 8), (10, 12), (33, 47), (20, 24)])
def test_holes_do_not_bleed_when_maps_are_resized(size: tuple[int, int]) -> None:
    values = torch.full((1, 20, 24), 0.7)
    mask = torch.rand(1, 20, 24, generator=torch.Generator().manual_seed(0)) < 0.6
    resized, new_mask = resize_masked(torch.where(mask, values, torch.nan), mask, size)
    assert resized.shape == (1, *size)
    torch.testing.assert_close(resized[new_mask], torch.full_like(resized[new_mask], 0.7))
    assert bool((resized[~new_mask] == 0).all())


@pytest.mark.parametrize("size", [(480, 640), (2160, 3840)])
def test_a_single_measured_pixel_is_not_lost(size: tuple[int, int]) -> None:
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        mask = torch.zeros(1, *size, dtype=torch.bool)
        y, x = (int(torch.randint(side, (), generator=rng)) for side in size)
        mask[0, y, x] = True
        resized, new_mask = resize_masked(torch.full((1, *size), 0.3), mask, (80, 80))
        assert new_mask[0, 80 * y // size[0], 80 * x // size[1]] and new_mask.sum() <= 9
        torch.testing.assert_close(resized[new_mask], torch.full((int(new_mask.sum()),), 0.3))


def test_metric_depth_may_begin_at_zero() -> None:
    config = replace(TINY, normalisation="metric", min_depth=0.0, max_depth=10.0)
    ranges = depth_ranges(torch.ones(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool), config)
    assert nearness_to_depth(torch.full((1, 2, 2), 0.25), ranges, config).unique().tolist() == [7.5]
    with pytest.raises(ValueError, match="depth_range must hold 0 < near <= far"):
        nearness_to_depth(torch.full((1, 2, 2), 0.25), ranges, TINY)


def test_a_flat_map_is_half_near(tiny: VQVAE) -> None:
    normalised = tiny.normalise(torch.full((1, 8, 8), 3.0))
    assert bool((normalised.values == 0).all())
    decoded = tiny.decode(tiny.encode(torch.full((1, 8, 8), 3.0)), normalised.depth_range)
    torch.testing.assert_close(decoded, torch.full((1, 16, 16), 3.0))


def test_input_that_cannot_be_is_refused(tiny: VQVAE, depth: Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, H, W\), got shape \(20, 24\)"):
        tiny.encode(depth[0])
    with pytest.raises(ValueError, match=r"mask must have depth's shape \(4, 20, 24\), got \(4, 20, 23\)"):
        tiny.encode(depth, torch.ones(4, 20, 23))
    depth[2] = torch.nan
    with pytest.raises(ValueError, match=r"no valid pixel in map\(s\) \[2\]"):
        tiny.encode(depth)
    with pytest.raises(ValueError, match="at least one pixel"):
        tiny.encode(torch.zeros(0, 8, 8))


@pytest.mark.parametrize("kind", ["relative_inverse", "relative"])
@pytest.mark.parametrize("value", [1e-3, 1e4])
def test_a_wild_pixel_is_clamped_and_a_clean_map_keeps_its_ends(kind: str, value: float) -> None:
    config = replace(TINY, normalisation=kind)
    depth = torch.linspace(5, 6, 60 * 80).view(1, 60, 80)
    valid = torch.ones_like(depth, dtype=torch.bool)
    assert depth_ranges(depth, valid, config).tolist() == [[5, 6]]
    depth[0, 30, 40] = value
    found = depth_ranges(depth, valid, config)
    torch.testing.assert_close(found, torch.tensor([[5.0, 6.0]]), atol=0.01, rtol=0)
    nearness = depth_to_nearness(depth, found, config)
    assert nearness[0, 30, 40] == (1 if value < 1 else 0)
    plain = depth_ranges(depth, valid, replace(config, range_percentile=0.0))
    assert plain.tolist() == [[depth.min(), depth.max()]]


@pytest.mark.parametrize(("far", "clamped"), [(4.0, True), (4.9, True), (5.2, False), (40.0, False)])
def test_a_far_reading_is_wild_only_where_the_rest_spans_less_than_one_to_five(
    tiny: VQVAE, far: float, clamped: bool
) -> None:
    """As docs/depth_tokenizer.md says."""
    depth = torch.linspace(1, far, 40 * 40).view(1, 40, 40)
    depth[0, 20, 20] = 1e9
    ends = tiny.normalise(depth).depth_range[0]
    assert (ends[1] < 2 * far) == clamped
    assert (1 - 1 / far) / float(1 / ends[0] - 1 / ends[1]) >= 0.8, "the rest keeps four fifths of the range"
    near = depth.clone()
    near[0, 20, 20] = 0.01
    assert tiny.normalise(near).depth_range[0, 0] > 0.9


def test_a_near_object_is_not_wild() -> None:
    depth = torch.full((1, 60, 80), 6.0)
    depth[0, 20:28, 30:38] = 0.3  # 64 of 4,800 pixels
    assert depth_ranges(depth, torch.ones_like(depth, dtype=torch.bool), TINY)[0].tolist() == pytest.approx([0.3, 6])


def test_percentiles_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"range_percentile must lie in \[0, 50\), got 50"):
        replace(TINY, range_percentile=50)
    with pytest.raises(ValueError, match=r"range_percentile \(1.0\) goes with ranges per map"):
        replace(TINY, normalisation="metric", min_depth=1.0, max_depth=10.0, range_percentile=1.0)


def test_one_wild_pixel_changes_no_code_but_those_around_it() -> None:
    torch.manual_seed(0)
    model = VQVAE(replace(TINY, image_size=64, downsample=8)).eval()
    depth = 2 + torch.rand(1, 64, 64).cumsum(2) / 16  # 2 to 4 metres
    spoiled = depth.clone()
    spoiled[0, 36, 20] = 0.05
    torch.testing.assert_close(
        model.normalise(spoiled).depth_range, model.normalise(depth).depth_range, atol=0.02, rtol=0
    )
    changed = (model.normalise(spoiled).nearness - model.normalise(depth).nearness).abs()
    changed[0, 36, 20] = 0
    assert float(changed.max()) < 0.01


@pytest.mark.parametrize("share", [0.001, 0.2])
def test_zeros_of_inverse_maps_are_farthest_and_few_of_them_do_not_stretch_the_range(share: float) -> None:
    """A network's 0 becomes an inverse depth of a thousandth of the largest; here one pixel in 1,000, or the sky."""
    inverse = torch.linspace(0.5, 1, 100 * 100).view(1, 100, 100)
    zeros = torch.zeros(100, 100, dtype=torch.bool).flatten()
    zeros[-int(share * 10_000) :] = True  # the ends of the nearest rows
    depth = torch.where(zeros.view(1, 100, 100), 1000.0, 1 / inverse)
    valid = torch.ones_like(depth, dtype=torch.bool)
    ranges = depth_ranges(depth, valid, TINY)
    nearness = depth_to_nearness(depth, ranges, TINY)
    assert bool((nearness.flatten()[zeros] == 0).all())
    rest = nearness.flatten()[~zeros]
    assert bool((rest.diff() >= 0).all()), "the rest stays in order"
    assert float(rest[-1]) == pytest.approx(1, abs=0.001)
    assert float(rest[0]) == pytest.approx(0 if share < 0.01 else (0.5 - 0.001) / (0.9 - 0.001), abs=0.01)
