"""Measured depth maps that come with installable packages, so that no data set has to be downloaded.

| name | package | measured by |
|---|---|---|
| motorcycle | `pip install scikit-image` | structured light (Scharstein et al., GCPR 2014) |
| aloe | Debian's `opencv-doc`, or OpenCV's own `samples/data` | structured light (Scharstein and Pal, CVPR 2007) |
| 12 indoor | `pip install --no-deps stereodemo` and `opencv-python-headless` | stereo matching, by `match_stereo` |

The indoor maps come from stereo *matching*: like those of a depth camera, they have holes and errors and are not ground
truth.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SAMPLES_VARIABLE = "OPENCV_SAMPLES_DATA_PATH"
"""OpenCV's own environment variable for the folder of its sample data"""
_DEBIAN_SAMPLES = Path("/usr/share/doc/opencv-doc/examples/data")


@dataclass(frozen=True)
class Stereo:
    """The calibration of a rectified pair."""

    focal_length: float
    """pixels"""
    baseline: float
    """metres"""
    offset: float = 0.0
    """pixels between the principal points; a point infinitely far away has disparity -offset"""

    def depth(self, disparity: Tensor) -> Tensor:
        """Convert disparity (H, W) in pixels to depth (H, W) in metres; NaN where the disparity is invalid."""
        shifted = disparity.float() + self.offset
        valid = disparity.isfinite() & (shifted > 0)
        return torch.where(valid, self.focal_length * self.baseline / shifted, torch.nan)


# As documented by scikit-image for its copy, which has a quarter of the benchmark's resolution.
MOTORCYCLE = Stereo(994.978, 0.193001, 31.086)
# Middlebury 2006, full size: all scenes share a rig, the offset is this scene's.
ALOE = Stereo(3740, 0.160, 270)
_UNKNOWN_ALOE = 0
"""Grey value of pixels without a measurement"""
_LEAST_DISPARITY = 3.0
"""Pixels; at this disparity, an error of half a pixel is a sixth of the depth"""


@dataclass(frozen=True)
class MeasuredMap:
    """A measured depth map."""

    name: str
    depth: Tensor
    """(H, W) metres, NaN in holes"""
    ground_truth: bool
    """True for structured light, False for stereo matching"""


def motorcycle_depth() -> Tensor | None:
    """Depth (500, 741) in metres, NaN where the scanner saw nothing; None if scikit-image is not installed."""
    try:
        from skimage.data import stereo_motorcycle
    except ImportError:
        return None
    _, _, disparity = stereo_motorcycle()  # (500, 741) pixels, not finite in holes
    return MOTORCYCLE.depth(torch.as_tensor(disparity, dtype=torch.float32))


def aloe_depth() -> Tensor | None:
    """Depth (1110, 1282) in metres, NaN where unknown; None if OpenCV's sample data are not installed."""
    folders = [Path(os.environ[SAMPLES_VARIABLE])] if SAMPLES_VARIABLE in os.environ else []
    for folder in [*folders, _DEBIAN_SAMPLES]:
        file = folder / "aloeGT.png"
        if file.is_file():
            grey = torch.from_numpy(np.asarray(Image.open(file), dtype=np.float32))
            return ALOE.depth(torch.where(grey == _UNKNOWN_ALOE, torch.nan, grey))
    return None


def match_stereo(left: np.ndarray, right: np.ndarray, max_disparity: int = 128) -> np.ndarray:
    """Disparity (H, W) in pixels of a rectified pair of images (H, W) or (H, W, 3) uint8.

    OpenCV's semi-global block matching (Hirschmueller 2008) runs from left to right and from right to left; pixels
    where the two disagree are NaN.

    Raises:
        ImportError: if OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("stereo matching needs OpenCV: pip install opencv-python-headless") from error
    channels = 1 if left.ndim == 2 else left.shape[2]
    block = 5
    matcher = cv2.StereoSGBM.create(
        minDisparity=0,
        numDisparities=max_disparity,
        blockSize=block,
        P1=8 * channels * block**2,
        P2=32 * channels * block**2,
        uniquenessRatio=5,
        speckleWindowSize=100,
        speckleRange=2,
        mode=cv2.STEREO_SGBM_MODE_HH,
    )

    def disparity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        # The matcher skips the first max_disparity columns, so a border of that width is added.
        pads = ((0, 0), (max_disparity, 0)) + ((0, 0),) * (one.ndim - 2)
        found = matcher.compute(np.pad(one, pads, mode="edge"), np.pad(other, pads, mode="edge"))
        return found[:, max_disparity:].astype(np.float32) / 16  # (H, W), negative where nothing fits

    forth = disparity(left, right)
    back = disparity(right[:, ::-1], left[:, ::-1])[:, ::-1]  # for the pixels of the right image
    columns = np.arange(left.shape[1])[None] - np.round(forth).astype(int)
    seen = np.take_along_axis(back, columns.clip(0, left.shape[1] - 1), 1)
    agrees = (forth > 0) & (columns >= 0) & (np.abs(seen - forth) <= 1)
    return np.where(agrees, forth, np.nan).astype(np.float32)


def indoor_maps() -> list[MeasuredMap]:
    """Matched depth of the 12 stereo pairs in stereodemo; empty if stereodemo or OpenCV is not installed."""
    package = importlib.util.find_spec("stereodemo")
    if package is None or package.origin is None or importlib.util.find_spec("cv2") is None:
        return []
    folder = Path(package.origin).parent / "datasets" / "oak-d"
    calibration = json.loads((folder / "stereodemo_calibration.json").read_text())
    stereo = Stereo(calibration["fx"], calibration["baseline_meters"], calibration["cx1"] - calibration["cx0"])
    maps = []
    for left_file in sorted(folder.glob("*_left.png")):
        name = left_file.name.removesuffix("_left.png")
        left, right = (
            np.asarray(Image.open(folder / f"{name}_{side}.png").convert("RGB")) for side in ("left", "right")
        )
        disparity = match_stereo(left, right)
        disparity[disparity < _LEAST_DISPARITY] = np.nan
        height, width = disparity.shape
        x0, y0, x1, y1 = calibration["left_image_rect_normalized"]  # the part that both cameras see
        rows, columns = slice(round(y0 * height), round(y1 * height)), slice(round(x0 * width), round(x1 * width))
        depth = stereo.depth(torch.from_numpy(disparity[rows, columns].copy()))
        maps.append(MeasuredMap(name, depth, ground_truth=False))
    return maps


def measured_maps() -> list[MeasuredMap]:
    """All measured maps whose packages are installed, ground truth first."""
    scanned = {"motorcycle": motorcycle_depth(), "aloe": aloe_depth()}
    found = [MeasuredMap(name, depth, ground_truth=True) for name, depth in scanned.items() if depth is not None]
    return found + indoor_maps()
