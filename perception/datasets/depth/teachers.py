"""Depth teachers: models of transformers and diffusers, stereo pairs, and existing depth maps."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perception.datasets.depth.files import DepthFormat, Meaning, read_depth, to_depth
from perception.datasets.depth.measured import Stereo, match_stereo
from perception.datasets.depth.pairs import DepthPair, check_proportions, find_pairs
from perception.datasets.images import ImageFile
from perception.datasets.pretrained import load_pretrained

DEPTH_ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"
MARIGOLD = "prs-eth/marigold-depth-v1-1"
_FARTHEST = 0.01
"""Offset of relative nearness, so that its inverse is finite; min-max normalisation removes it"""
_RELATIVE_PAIR = Stereo(1.0, 1.0)
_LEAST_WIDTH = 3
"""Pixels; OpenCV's matcher fails below"""
METRIC_TYPES = ("depth_pro", "glpn", "tipsv2_dpt", "zoedepth")
"""Model types of transformers that predict depth in metres"""

DepthTeacher = Callable[[Sequence[Path], Sequence[Image.Image]], list[Tensor]]
"""(files, their images in RGB) -> depth (H, W) per image: larger is farther, in any unit; holes are NaN or at most 0.
Raises ValueError naming a file that it cannot label."""


def from_nearness(nearness: Tensor) -> Tensor:
    """Depth (H, W) whose inverse is `nearness` (H, W) up to an affine change.

    A tokenizer with "relative_inverse" normalisation keeps no more than that, so the codes are those of the nearness.
    NaN and infinite values are holes.
    """
    valid = nearness.isfinite()
    low, high = (float(end) for end in nearness[valid].aminmax()) if bool(valid.any()) else (0.0, 0.0)
    return torch.where(valid, 1 / ((nearness - low) / max(high - low, 1e-12) + _FARTHEST), torch.nan)


class DepthEstimator:
    """A depth estimator of transformers: Depth Anything, DPT, ZoeDepth, Depth Pro.

    Models predict depth in metres if their config has `depth_estimation_type` "metric" or is of a class that predicts
    nothing else (`METRIC_TYPES`), or else relative nearness. `meaning` overrules that: for a DPT trained on NYU, say.
    """

    def __init__(self, model: str, device: str = "cpu", meaning: Meaning | None = None, scale: float | None = None):
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        self.processor = load_pretrained(model, AutoImageProcessor.from_pretrained)
        self.model = load_pretrained(model, AutoModelForDepthEstimation.from_pretrained).to(device).eval()
        self.device = device
        config = self.model.config
        is_metric = getattr(config, "depth_estimation_type", "") == "metric" or config.model_type in METRIC_TYPES
        self.meant = DepthFormat(meaning or ("depth" if is_metric else "inverse"), scale)

    @torch.no_grad()
    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        by_size: dict[tuple[int, int], list[int]] = {}
        for number, image in enumerate(images):
            by_size.setdefault(image.size, []).append(number)
        for (width, height), numbers in by_size.items():  # processors that keep proportions cannot stack sizes
            try:
                inputs = self.processor(images=[images[n] for n in numbers], return_tensors="pt").to(self.device)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"{files[numbers[0]]} has {width} x {height} pixels, which the depth model's processor cannot "
                    f"resize ({error})"
                ) from error
            sizes = [(height, width)] * len(numbers)
            post_process = self.processor.post_process_depth_estimation
            wanted = {"target_sizes": sizes}
            if "source_sizes" in inspect.signature(post_process).parameters:  # ZoeDepth's, which removes its padding
                wanted["source_sizes"] = sizes
            results = post_process(self.model(**inputs), **wanted)
            for number, result in zip(numbers, results, strict=True):
                predicted = result["predicted_depth"].float().cpu()  # (H, W)
                found[number] = self._depth(predicted)
        return [found[number] for number in range(len(images))]

    def _depth(self, predicted: Tensor) -> Tensor:
        if self.meant.meaning == "inverse" and self.meant.scale is None:
            return from_nearness(predicted)
        return to_depth(predicted.numpy(), 1.0, self.meant)


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
        if image.width < _LEAST_WIDTH:
            raise ValueError(f"{file} has {image.width} x {image.height} pixels, too few to match it with {other}")
        disparity = match_stereo(np.asarray(image), np.asarray(partner), most)
        return _RELATIVE_PAIR.depth(torch.from_numpy(np.ascontiguousarray(disparity)))


class DepthFolder:
    """Existing depth maps, matched to the images by `find_pairs`; `meant` says what their numbers are.

    Raises:
        ValueError: as `find_pairs` does if no map has an image, or if an image has two maps.
    """

    def __init__(self, images: Path, depth: Path, meant: DepthFormat = DepthFormat()):  # noqa: B008
        self.folder, self.meant, self.pairs = depth, meant, dict[Path, DepthPair]()
        for pair in find_pairs(depth, images, skipped=[]):  # maps of images that lie elsewhere do no harm
            other = self.pairs.setdefault(pair.image.path, pair)
            if other is not pair:
                raise ValueError(f"{other.depth} and {pair.depth} are maps of one image, {pair.image}; keep one")

    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Tensor]:
        return [self._depth(file) for file in files]

    def _depth(self, file: Path) -> Tensor:
        if file not in self.pairs:
            raise ValueError(f"{file} has no depth map beneath {self.folder}; put one there under the same name")
        pair = self.pairs[file]
        maps = [depth for _, depth in read_depth(pair.depth, self.meant)]
        if len(maps) != 1:
            raise ValueError(f"{pair.depth} holds {len(maps)} maps for one image, {file}; write one map per file")
        check_proportions(pair, maps[0])
        return maps[0]
