"""Teachers of depth: models of transformers and diffusers, stereo pairs, and maps that are there already."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perception.datasets.depth.files import read_depth
from perception.datasets.depth.measured import Stereo, match_stereo
from perception.datasets.depth.pairs import find_pairs
from perception.datasets.images import ImageFile

DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"
MARIGOLD = "prs-eth/marigold-depth-v1-1"
_FARTHEST = 0.01
"""Nearness of the farthest point where only the order and proportions of nearness are known; min-max takes it out"""
_RELATIVE_PAIR = Stereo(1.0, 1.0)


def from_nearness(nearness: Tensor) -> Tensor:
    """Depth (H, W) whose inverse is `nearness` (H, W) up to an affine change, which is all that a tokenizer of
    "relative_inverse" normalisation keeps: it has the codes of the nearness itself."""
    low, high = nearness.min(), nearness.max()
    return 1 / ((nearness - low) / (high - low).clamp_min(1e-12) + _FARTHEST)


def load(name: str, read: Callable[[str], Any]) -> Any:
    """What `read` makes of a model's folder or hub name. Raises ValueError naming it where it cannot be read."""
    try:
        return read(name)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"{name} cannot be loaded ({first}); give the folder of a saved model, or a hub name and a connection"
        ) from error


class DepthEstimator:
    """Any depth estimator of transformers: Depth Anything, DPT, ZoeDepth, Depth Pro.

    What a relative one predicts is nearness; a config of `depth_estimation_type` "metric" says metres.
    """

    def __init__(self, model: str, device: str = "cpu"):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.processor = load(model, AutoImageProcessor.from_pretrained)
        self.model = load(model, AutoModelForDepthEstimation.from_pretrained).to(device).eval()
        self.device = device
        self.is_metric = getattr(self.model.config, "depth_estimation_type", "relative") == "metric"

    @torch.no_grad()
    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(image.size, []).append(number)
        for (width, height), numbers in by_size.items():  # processors that keep proportions cannot stack others
            inputs = self.processor(images=[images[n] for n in numbers], return_tensors="pt").to(self.device)
            sizes = [(height, width)] * len(numbers)
            results = self.processor.post_process_depth_estimation(self.model(**inputs), target_sizes=sizes)
            for number, result in zip(numbers, results, strict=True):
                predicted = result["predicted_depth"].float().cpu()  # (H, W)
                found[number] = predicted if self.is_metric else from_nearness(predicted)
        return [found[number] for number in range(len(images))]


class Marigold:
    """Marigold of diffusers. Its depth is known up to an affine change, near 0, far 1; nearness is taken as 1 less it.

    Every image is denoised from noise of its own, by its name, so that a label does not hang on its neighbours.
    """

    def __init__(self, model: str, steps: int = 4, device: str = "cpu"):
        try:
            from diffusers import MarigoldDepthPipeline
        except ImportError as error:
            raise ValueError("marigold needs diffusers: pip install 'perception-tokens[train]'") from error
        self.pipeline = load(model, MarigoldDepthPipeline.from_pretrained).to(device)
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
    """Rectified pairs: the images are the left ones, the right ones lie under the same names in another folder."""

    def __init__(self, images: Path, right: Path):
        if not right.is_dir():
            raise ValueError(f"{right} is not a folder; give the one of the right images")
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
            raise ValueError(f"{other} is of {partner.size} pixels and {file} of {image.size}; rectify them as a pair")
        most = max(16, 16 * round(image.width / 5 / 16))  # of the matcher, in multiples of 16: a fifth of the width
        disparity = match_stereo(np.asarray(image), np.asarray(partner), most)
        return _RELATIVE_PAIR.depth(torch.from_numpy(np.ascontiguousarray(disparity)))


class DepthFolder:
    """Maps that are there already, found as `find_pairs` does."""

    def __init__(self, images: Path, depth: Path):
        self.folder = depth
        self.maps = {pair.image.path: pair.depth for pair in find_pairs(depth, images)}

    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        return [self._depth(file) for file in files]

    def _depth(self, file: Path) -> Tensor:
        if file not in self.maps:
            raise ValueError(f"{file} has no depth map beneath {self.folder}; put one there under its name")
        maps = list(read_depth(self.maps[file]))
        if len(maps) != 1:
            raise ValueError(f"{self.maps[file]} holds {len(maps)} maps for the one image {file}; write one a file")
        return maps[0][1]
