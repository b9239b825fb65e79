"""Depth teachers: models of transformers and diffusers, stereo pairs, and existing depth maps."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perception.datasets.depth.files import read_depth
from perception.datasets.depth.measured import Stereo, match_stereo
from perception.datasets.depth.pairs import find_pairs
from perception.datasets.images import ImageFile
from perception.datasets.pretrained import load_pretrained

DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"
MARIGOLD = "prs-eth/marigold-depth-v1-1"
_FARTHEST = 0.01
"""Offset of relative nearness, so that its inverse is finite; min-max normalisation removes it"""
_RELATIVE_PAIR = Stereo(1.0, 1.0)

DepthTeacher = Callable[[Sequence[Path], Sequence[Image.Image]], list[Tensor]]
"""(files, their images in RGB) -> depth (H, W) per image: larger is farther, in any unit; holes are NaN or at most 0.
Raises ValueError naming a file that it cannot label."""


def from_nearness(nearness: Tensor) -> Tensor:
    """Depth (H, W) whose inverse is `nearness` (H, W) up to an affine change.

    A tokenizer with "relative_inverse" normalisation keeps no more than that, so the codes are those of the nearness.
    """
    low, high = nearness.min(), nearness.max()
    return 1 / ((nearness - low) / (high - low).clamp_min(1e-12) + _FARTHEST)


class DepthEstimator:
    """A depth estimator of transformers: Depth Anything, DPT, ZoeDepth, Depth Pro.

    Models predict relative nearness, or depth in metres if their config has `depth_estimation_type` "metric".
    """

    def __init__(self, model: str, device: str = "cpu"):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.processor = load_pretrained(model, AutoImageProcessor.from_pretrained)
        self.model = load_pretrained(model, AutoModelForDepthEstimation.from_pretrained).to(device).eval()
        self.device = device
        self.is_metric = getattr(self.model.config, "depth_estimation_type", "relative") == "metric"

    @torch.no_grad()
    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(image.size, []).append(number)
        for (
            width,
            height,
        ), numbers in by_size.items():  # processors that keep proportions cannot stack sizes
            inputs = self.processor(images=[images[n] for n in numbers], return_tensors="pt").to(self.device)
            sizes = [(height, width)] * len(numbers)
            results = self.processor.post_process_depth_estimation(self.model(**inputs), target_sizes=sizes)
            for number, result in zip(numbers, results, strict=True):
                predicted = result["predicted_depth"].float().cpu()  # (H, W)
                found[number] = predicted if self.is_metric else from_nearness(predicted)
        return [found[number] for number in range(len(images))]


class Marigold:
    """Marigold of diffusers, which predicts depth up to an affine change: nearness = 1 - depth.

    The noise of each image is seeded by its file name, so that a label does not depend on the rest of the batch.
    """

    def __init__(self, model: str, steps: int = 4, device: str = "cpu"):
        try:
            from diffusers import MarigoldDepthPipeline
        except ImportError as error:
            raise ValueError("marigold needs diffusers: pip install 'perception-tokens[train]'") from error
        self.pipeline = load_pretrained(model, MarigoldDepthPipeline.from_pretrained).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.steps, self.device = steps, device

    @torch.no_grad()
    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        found = []
        for file, image in zip(files, images, strict=True):
            noise = torch.Generator(self.device).manual_seed(zlib.crc32(file.name.encode()))
            steps = {"num_inference_steps": self.steps, "generator": noise}
            depth = self.pipeline(image, output_type="pt", **steps).prediction  # (1, 1, H, W)
            found.append(from_nearness(1 - depth[0, 0].float().cpu()))
        return found


class StereoPairs:
    """Depth from rectified stereo pairs: left images, and right images under the same names in another folder."""

    def __init__(self, images: Path, right: Path):
        if not right.is_dir():
            raise ValueError(f"{right} is not a folder; give the folder of the right images")
        try:
            import cv2  # noqa: F401
        except ImportError as error:
            raise ValueError("stereo needs OpenCV: pip install 'perception-tokens[stereo]'") from error
        self.images, self.right = images, right

    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        return [self._depth(file, image) for file, image in zip(files, images, strict=True)]

    def _depth(self, file: Path, image: Image.Image) -> Tensor:
        other = self.right / file.relative_to(self.images)
        partner = ImageFile(other).load()
        if partner.size != image.size:
            raise ValueError(f"{other} has {partner.size} pixels and {file} has {image.size}; rectify them as a pair")
        most = max(16, 16 * round(image.width / 5 / 16))  # a fifth of the width; the matcher wants a multiple of 16
        disparity = match_stereo(np.asarray(image), np.asarray(partner), most)
        return _RELATIVE_PAIR.depth(torch.from_numpy(np.ascontiguousarray(disparity)))


class DepthFolder:
    """Existing depth maps, matched to the images by `find_pairs`."""

    def __init__(self, images: Path, depth: Path):
        self.folder = depth
        self.maps = {pair.image.path: pair.depth for pair in find_pairs(depth, images)}

    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        return [self._depth(file) for file in files]

    def _depth(self, file: Path) -> Tensor:
        if file not in self.maps:
            raise ValueError(f"{file} has no depth map beneath {self.folder}; put one there under the same name")
        maps = list(read_depth(self.maps[file]))
        if len(maps) != 1:
            raise ValueError(f"{self.maps[file]} holds {len(maps)} maps for one image, {file}; write one map per file")
        return maps[0][1]
