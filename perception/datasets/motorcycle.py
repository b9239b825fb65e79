"""A measured depth map that needs no download: the Middlebury stereo motorcycle, as scikit-image ships it.

Scharstein et al., High-resolution stereo datasets with subpixel-accurate ground truth, GCPR 2014.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The calibration that scikit-image documents for its copy, which is a quarter of the benchmark's resolution.
FOCAL_LENGTH = 994.978
"""pixels"""
BASELINE = 0.193001
"""metres"""
PRINCIPAL_POINT_SHIFT = 31.086
"""pixels between the two cameras' principal points; the disparity of a point infinitely far is minus this"""


def motorcycle_depth() -> Tensor | None:
    """Ground-truth depth (500, 741) in metres, NaN where the scanner saw nothing; None where scikit-image is absent."""
    try:
        from skimage.data import stereo_motorcycle
    except ImportError:
        return None
    _, _, disparity = stereo_motorcycle()  # (500, 741) pixels, not finite in holes
    disparity = torch.as_tensor(disparity, dtype=torch.float32)
    depth = FOCAL_LENGTH * BASELINE / (disparity + PRINCIPAL_POINT_SHIFT)
    return torch.where(disparity.isfinite(), depth, torch.nan)
