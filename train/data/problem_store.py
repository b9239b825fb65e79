"""Problems on disk: drawn once, read by every training. A folder is whole or is not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.data.interleaved import ChainProblem, ChainStep, Mark

_IMAGES, _ROWS = "images.npy", "rows.jsonl"


class ProblemStore(Sequence[ChainProblem]):
    """The problems of a folder that `save_problems` wrote; images (N, H, W, 3) uint8 stay on disk until asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._images = np.load(self.folder / _IMAGES, mmap_mode="r")
        self._rows = (self.folder / _ROWS).read_text(encoding="utf-8").splitlines()
        if len(self._rows) != len(self._images):
            raise ValueError(
                f"{self.folder} holds {len(self._images)} images and {len(self._rows)} problems; delete it and draw "
                "anew"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        row = json.loads(self._rows[index])
        row["steps"] = tuple(ChainStep(step["text"], tuple(step["tokens"])) for step in row["steps"])
        for name in ("marks", "signs"):
            row[name] = tuple(Mark(mark["text"], tuple(mark["place_xy"])) for mark in row.get(name, ()))
        return ChainProblem(image=torch.from_numpy(np.array(self._images[index])), **row)


def save_problems(problems: Iterable[ChainProblem], folder: str | Path) -> ProblemStore:
    """Writes problems whose images are all of one size, (H, W, 3) uint8 arrays or tensors."""
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    images = []
    with (draft / _ROWS).open("w", encoding="utf-8") as file:
        for problem in problems:
            images.append(np.asarray(problem.image, dtype=np.uint8))
            row = {name: value for name, value in vars(problem).items() if name != "image"}
            row |= {name: [asdict(item) for item in row[name]] for name in ("steps", "marks", "signs")}
            file.write(json.dumps(row) + "\n")
    np.save(draft / _IMAGES, np.stack(images))
    shutil.rmtree(folder, ignore_errors=True)
    draft.replace(folder)
    return ProblemStore(folder)
