"""Label images with teachers, tokenise their depth, and keep the rows in parquet files (`python -m train.prepare`).

| column | content |
|---|---|
| name | path of the image, relative to the labelled folder |
| image | bytes of the image's file; null unless embedded |
| width, height | pixels |
| codes | depth codes, row by row or coarse to fine; null without a depth teacher |
| near, far | depth at nearness 1 and 0, in the teacher's unit |
| map_width, map_height, map | nearness at up to `MAP_SIZE` pixels per side, row by row: 0 in holes, else 1 (far) .. 65535 (near) |
| boxes | x1, y1, x2, y2 in [0, 1] per box; null without a box teacher |
| labels, scores | class and score per box |
"""  # noqa: E501

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from perception.datasets.depth.jobs import encode_maps
from perception.datasets.depth.questions import relative_depth
from perception.datasets.depth.teachers import DepthTeacher
from perception.datasets.images import ImageFile
from perception.datasets.labelling.box_teachers import BoxTeacher, Detections
from vqvae import VQVAE
from vqvae.files import write_whole
from vqvae.normalisation import resize_masked

MAP_SIZE = 96
"""Pixels of the longer side of the small maps that depth questions are made from"""
_LEVELS = 65534
_FARTHEST = 0.01  # offset of nearness, so that its inverse is finite; min-max normalisation removes it


@dataclass(frozen=True)
class LabelledImage:
    """An image and its labels."""

    name: str
    size: tuple[int, int]
    """(height, width) in pixels"""
    codes: tuple[int, ...] | None = None
    depth_range: tuple[float, float] | None = None
    """depth at nearness 1 and 0, in the teacher's unit"""
    nearness: NDArray[np.uint16] | None = None
    """(h, w), as the column `map`"""
    detections: Detections | None = None
    image: bytes | None = None

    def depth(self) -> Tensor:
        """Depth (h, w) whose inverse is the small map's nearness up to an affine change; NaN in holes."""
        assert self.nearness is not None
        levels = torch.from_numpy(self.nearness.astype(np.float32))
        return torch.where(levels > 0, 1 / ((levels - 1) / _LEVELS + _FARTHEST), torch.nan)


@dataclass(frozen=True)
class Unlabelled:
    """An image that could not be labelled."""

    name: str
    reason: str


@dataclass(frozen=True)
class Labeller:
    """Labels images with a depth teacher, a box teacher, or both."""

    root: Path
    """Folder that image names are relative to"""
    depth: DepthTeacher | None
    vqvae: VQVAE | None
    """Tokenizer of the depth maps; needed with a depth teacher"""
    boxes: BoxTeacher | None
    batch_size: int = 8
    embed: bool = False
    """True if rows hold the bytes of the images"""

    def __call__(self, names: Sequence[str]) -> list[LabelledImage | Unlabelled]:
        """Label images and return them in order; an image that fails does not affect the others."""
        found: list[LabelledImage | Unlabelled] = []
        for start in range(0, len(names), self.batch_size):
            batch = names[start : start + self.batch_size]
            loaded: dict[str, Image.Image] = {}
            failed: dict[str, Unlabelled] = {}
            for name in batch:
                try:
                    loaded[name] = ImageFile(self.root / name).load()
                except ValueError as error:
                    failed[name] = Unlabelled(name, str(error))
            labelled = {row.name: row for row in self._label(loaded)}
            found += [failed[name] if name in failed else labelled[name] for name in batch]
        return found

    def _label(self, images: Mapping[str, Image.Image]) -> list[LabelledImage | Unlabelled]:
        if not images:
            return []
        try:
            return list(self._rows(images))
        except ValueError as error:
            if len(images) == 1:
                return [Unlabelled(next(iter(images)), str(error))]
            return [row for name, image in images.items() for row in self._label({name: image})]

    def _rows(self, images: Mapping[str, Image.Image]) -> list[LabelledImage]:
        names, pictures = list(images), list(images.values())
        files = [self.root / name for name in names]
        rows: dict[str, dict[str, Any]] = {
            name: {"name": name, "size": (i.height, i.width)} for name, i in images.items()
        }
        if self.depth is not None:
            assert self.vqvae is not None, "depth needs a tokenizer"
            depths = self.depth(files, pictures)
            codes = encode_maps(iter(zip(names, depths, strict=True)), self.vqvae, self.batch_size)
            for n, (name, depth) in enumerate(zip(names, depths, strict=True)):
                near, far = codes.ranges[n].tolist()
                rows[name] |= {
                    "codes": tuple(codes.codes[n].tolist()),
                    "depth_range": (near, far),
                    "nearness": small_map(depth),
                }
        if self.boxes is not None:
            for name, detections in zip(names, self.boxes(files, pictures), strict=True):
                rows[name]["detections"] = detections
        if self.embed:
            for name, file in zip(names, files, strict=True):
                rows[name]["image"] = file.read_bytes()
        return [LabelledImage(**row) for row in rows.values()]


def small_map(depth: Tensor) -> NDArray[np.uint16]:
    """Nearness (h, w) of depth (H, W) in `_LEVELS` steps, at most `MAP_SIZE` pixels per side; 0 in holes."""
    near = relative_depth(depth)
    scale = min(1.0, MAP_SIZE / max(near.shape))
    size = (max(1, round(near.shape[0] * scale)), max(1, round(near.shape[1] * scale)))
    values, valid = resize_masked(near[None], near.isfinite()[None], size)
    levels = 1 + (values[0].clamp(0, 1) * _LEVELS).round()
    return torch.where(valid[0], levels, 0).numpy().astype(np.uint16)


# Files


def write_rows(rows: Sequence[LabelledImage], file: Path, header: Mapping[str, Any]) -> None:
    """Write rows to a parquet file, whole or not at all.

    Args:
        header: JSON values that all rows share.

    Raises:
        ValueError: naming the file, if it cannot be written, for example because the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pylist([_columns(row) for row in rows], _schema(pa))
    table = table.replace_schema_metadata({"perception": json.dumps(dict(header))})
    try:
        write_whole(file, lambda path: parquet.write_table(table, path))
    except OSError as error:
        raise ValueError(
            f"{file} could not be written ({error.strerror or error}); finished shards are kept. Free disk space and "
            "run the same command again"
        ) from error


def read_rows(file: Path) -> tuple[list[LabelledImage], dict[str, Any]]:
    """The rows of a file and the header that they share. Raises ValueError naming a file that is missing or damaged."""
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        header = json.loads((table.schema.metadata or {})[b"perception"])
        return [_row(values) for values in table.to_pylist()], dict(header)
    except FileNotFoundError:
        raise ValueError(f"{file} does not exist; make it with python -m train.prepare") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a complete file of labelled images ({error}); delete it and its record, and run "
            "python -m train.prepare again"
        ) from error


def _schema(pa: Any) -> Any:
    numbers = {"width": pa.int32(), "height": pa.int32(), "codes": pa.list_(pa.int32())}
    numbers |= {"near": pa.float64(), "far": pa.float64(), "map_width": pa.int32(), "map_height": pa.int32()}
    numbers |= {"map": pa.list_(pa.uint16()), "boxes": pa.list_(pa.list_(pa.float64(), 4))}
    found = {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float64())}
    return pa.schema({"name": pa.string(), "image": pa.binary(), **numbers, **found})


def _columns(row: LabelledImage) -> dict[str, Any]:
    values: dict[str, Any] = {"name": row.name, "image": row.image, "height": row.size[0], "width": row.size[1]}
    if row.codes is not None and row.depth_range is not None and row.nearness is not None:
        height, width = row.nearness.shape
        values |= {"codes": row.codes, "near": row.depth_range[0], "far": row.depth_range[1]}
        values |= {"map_width": width, "map_height": height, "map": row.nearness.ravel()}
    if (found := row.detections) is not None:
        values |= {"boxes": found.boxes_xyxy.tolist(), "labels": found.labels, "scores": found.scores.tolist()}
    return values


def _row(values: Mapping[str, Any]) -> LabelledImage:
    codes = depth_range = nearness = detections = None
    if values["codes"] is not None:
        codes, depth_range = tuple(values["codes"]), (values["near"], values["far"])
        nearness = np.array(values["map"], np.uint16).reshape(values["map_height"], values["map_width"])
    if values["boxes"] is not None:
        boxes = np.array(values["boxes"], np.float64).reshape(-1, 4)
        detections = Detections(boxes, tuple(values["labels"]), np.array(values["scores"], np.float64))
    size = (values["height"], values["width"])
    return LabelledImage(values["name"], size, codes, depth_range, nearness, detections, values["image"])
