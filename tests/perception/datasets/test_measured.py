from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perception.datasets.depth.measured import ALOE, SAMPLES_VARIABLE, Stereo, aloe_depth, indoor_maps, match_stereo


def test_disparity_becomes_depth_by_the_calibration() -> None:
    stereo = Stereo(focal_length=100, baseline=0.5, offset=10)
    depth = stereo.depth(torch.tensor([[40.0, 0.0, torch.nan, -10.0, -20.0]]))
    assert depth[0, :2].tolist() == [1.0, 5.0]
    assert depth[0, 2:].isnan().all()  # unmeasured, infinitely far, and behind the camera


def test_aloe_is_read_from_opencv_samples_and_its_black_pixels_are_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = np.array([[0, 50], [100, 211]], dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "aloeGT.png")
    monkeypatch.setenv(SAMPLES_VARIABLE, str(tmp_path))
    depth = aloe_depth()
    assert depth is not None and bool(depth[0, 0].isnan())
    expected = ALOE.focal_length * ALOE.baseline / (torch.tensor([50.0, 100.0, 211.0]) + ALOE.offset)
    torch.testing.assert_close(depth.flatten()[1:], expected)


def test_matching_finds_a_shifted_square_and_leaves_out_what_one_camera_alone_sees() -> None:
    pytest.importorskip("cv2")
    rng = np.random.default_rng(0)
    background = rng.integers(0, 255, (120, 300), dtype=np.uint8)
    square = rng.integers(0, 255, (50, 80), dtype=np.uint8)
    left, right = background[:, 20:270].copy(), background[:, 24:274].copy()  # the wall: 4 pixels
    left[30:80, 100:180] = square
    right[30:80, 80:160] = square  # the square: 20 pixels
    disparity = match_stereo(left, right, max_disparity=32)
    assert np.nanmedian(disparity[40:70, 115:170]) == pytest.approx(20, abs=0.3)
    assert np.nanmedian(disparity[90:, 30:]) == pytest.approx(4, abs=0.3)
    hidden = disparity[35:75, 86:98]  # behind the square, for the right camera
    assert np.isnan(hidden).mean() > 0.5


def test_indoor_maps_are_rooms_with_holes() -> None:
    maps = indoor_maps()
    if not maps:
        pytest.skip("stereodemo or OpenCV is not installed")
    assert len(maps) == 12 and len({m.name for m in maps}) == 12
    for measured in maps:
        valid = measured.depth.isfinite()
        assert 0.4 < float(valid.float().mean()) < 0.95
        assert 0.5 < float(measured.depth[valid].median()) < 6
