"""Held-out data of a fine-tuning: kept apart from the records or read from files, with loss, answers and a page."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import send_to_device
from torch import Tensor, nn

from perception.chains import TASKS
from perception.datasets.images import ImageFile, pictures_of
from perception.datasets.records import Record, RecordSet, bad_row
from perception.evaluation.held_out import answer_examples, figures, held_out_picture, write_held_out_page
from perception.model.perception_model import PerceptionModel
from train.data.records import SourcesConfig, row_of
from train.data.rows import RowEncoder
from train.loop.evaluation import Evaluation
from train.models.losses import row_losses, target_logits
from vqvae import VQVAE

PAGE = "held_out.html"
_TRACKED = 4
"""Pictures that go to the trackers"""


@dataclass(frozen=True)
class EvaluationConfig:
    """Held-out data, evaluated every loop.evaluate_every steps (by default ten times) and after the last step."""

    share: float = 0.0
    """share of the images of the records that are held out, with all of their questions; 0: none"""
    most: int = 512
    """number of held-out records at most that the loss is measured on"""
    asked: int = 64
    """number of these, of each task as many, that the model answers: accuracy of counts and points, F1 of boxes, order
    of maps; 0: none"""
    pictures: int = 12
    """number of answers in run_dir/held_out.html, with what the model draws; 0: no page"""
    data: SourcesConfig = field(default_factory=SourcesConfig)
    """held-out files, beside or instead of the share"""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"evaluation.share must be at least 0 and below 1, got {self.share}")
        if self.most < 1:
            raise ValueError(f"evaluation.most must be at least 1, got {self.most}")
        for name in ("asked", "pictures"):
            if getattr(self, name) < 0:
                raise ValueError(f"evaluation.{name} must not be negative, got {getattr(self, name)}")
        if self.data.photos.folder:
            raise ValueError("evaluation.data takes records, not photographs; leave evaluation.data.photos out")
        if self.data.scenes.count:
            raise ValueError(
                "evaluation.data takes records, not scenes; write held-out scenes with `python -m "
                "train.data.scene_records --first_seed 50000000` and give evaluation.data.records"
            )

    @property
    def wanted(self) -> bool:
        return bool(self.share or self.data.any_records)


def split(records: Sequence[Record], share: float) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Return the records to train on and those held out, by image: none is in both. Text alone is trained on.

    The held-out images are those whose names have the smallest hash values, so they stay held out as data are added.
    Two paths of one file, and two files of one content, are one image.

    Raises:
        ValueError: if there is no image for one of the parts.
    """
    files = pictures_of(image for record in records for image in record.all_images)
    shown = [{files[image] for image in record.all_images} for record in records]
    images = sorted({file: image for image, file in files.items()}.values(), key=_order)
    count = max(1, round(share * len(images))) if share else 0
    if share and count >= len(images):
        raise ValueError(
            f"evaluation.share {share} of {len(images)} image{'s' * (len(images) != 1)} leaves none to train on; give "
            "more images, a smaller share, or held-out files (evaluation.data)"
        )
    held = {files[image] for image in images[:count]}
    while more := {file for seen in shown if held & seen for file in seen} - held:
        held |= more  # images that a conversation shows beside a held-out one
    kept, apart = list[Record](), list[Record]()
    for record, seen in zip(records, shown, strict=True):
        (apart if held & seen else kept).append(record)
    if share and not kept:
        raise ValueError("evaluation.share leaves no record to train on, since conversations share images; give files")
    return tuple(kept), tuple(apart)


def unseen(held: RecordSet, trained: Iterable[ImageFile], skip_bad: bool) -> RecordSet:
    """Return the records of held-out files that show no image that is trained on.

    Args:
        skip_bad: name the others in `skipped`, and leave them out.

    Raises:
        ValueError: naming the first of the others; with `skip_bad`, if no record is left.
    """
    trained, kept, skipped = [*trained], list[Record](), list[str]()
    files = pictures_of([*trained, *(image for record in held.records for image in record.all_images)])
    seen_files = {files[image] for image in trained}
    for record in held.records:
        with bad_row(skipped if skip_bad else None):
            if seen := [image for image in record.all_images if files[image] in seen_files]:
                raise ValueError(f"{record.source}: {seen[0]} is trained on, too; hold out other images")
            kept.append(record)
    if skipped and not kept:
        raise ValueError(
            f"all images of evaluation.data are trained on, too; the first: {skipped[0]} (for a YAML file of YOLO, "
            "give evaluation.data.counts_split val)"
        )
    return RecordSet(tuple(kept), (*held.skipped, *skipped))


def _order(image: ImageFile) -> tuple[str, ...]:
    """Hash values of a name and, where images in several folders have one name, of these folders, from the inside."""
    names = (f"{image.path.name}:{image.index}", *reversed(image.path.parts[:-1]))
    return tuple(hashlib.sha256(name.encode()).hexdigest() for name in names)


def chosen(records: Sequence[Record], most: int) -> tuple[Record, ...]:
    """Return at most `most` of the records, in a fixed random order, the tasks by turns as long as each has some."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for n in np.random.default_rng(0).permutation(len(records)):
        by_task[records[n].example.task].append(records[n])
    turns = zip_longest(*(by_task[task] for task in sorted(by_task)))
    return tuple(record for turn in turns for record in turn if record is not None)[:most]


@dataclass(frozen=True)
class HeldOutRecords:
    """Evaluates a model in training on held-out records; an `EvaluateFn` of `train.loop.fit`."""

    records: tuple[Record, ...]
    config: EvaluationConfig
    encoder: RowEncoder
    vqvae: VQVAE | None
    run_dir: Path
    batch_size: int
    groups: int
    mask_vqvae: VQVAE | None = None

    def __call__(self, model: nn.Module) -> Evaluation:
        loss, scalars = self._losses(model)
        rows = map(row_of, chosen(self.records, self.config.asked))
        asked = [(row.image, row.example) for row in rows if row.image is not None]
        if not asked:
            return Evaluation(loss, scalars)
        with _asking(model, self) as perception:
            answered = answer_examples(perception, asked, self.batch_size)
            pictures = [held_out_picture(perception, one) for one in answered[: self.config.pictures]]
        scalars |= figures(answered, self.encoder.vocabulary.num_locations, self.vqvae, self.mask_vqvae)
        images = {f"picture-{n}": np.array(one.image) for n, one in enumerate(pictures[:_TRACKED], 1)}
        page = self.run_dir / PAGE
        return Evaluation(loss, scalars, images, lambda past: write_held_out_page(page, pictures, past))

    def _losses(self, model: nn.Module) -> tuple[float, dict[str, float]]:
        """Return the loss as in training, over all rows, and the loss per task."""
        device = next(model.parameters()).device
        sums: dict[str, float] = defaultdict(float)
        weights: dict[str, float] = defaultdict(float)
        for batch in self._batches():
            batch = send_to_device(batch, device)
            logits, labels, weight = target_logits(model, batch)
            losses = row_losses(logits, labels, weight)  # (B,)
            rows = zip(batch["task"].tolist(), losses.tolist(), weight.sum(1).tolist(), strict=True)
            for task, row_loss, row_weight in rows:
                sums[TASKS[task]] += row_loss
                weights[TASKS[task]] += row_weight
        means = {f"loss/{task}": sums[task] / weights[task] for task in sums if weights[task]}
        return sum(sums.values()) / sum(weights.values()), means

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        records = chosen(self.records, self.config.most)
        for start in range(0, len(records), self.batch_size):
            rows = [row_of(record) for record in records[start : start + self.batch_size]]
            yield from self.encoder.batches(rows, min(self.groups, len(rows)))


@contextmanager
def _asking(model: Any, held_out: HeldOutRecords) -> Iterator[PerceptionModel]:
    """A model in training as one that answers; its output layer is left as it was."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    encoder, own = held_out.encoder, vars(base.get_output_embeddings())
    changed = "forward" in own
    try:
        yield PerceptionModel(
            base, encoder.processor, encoder.vocabulary, held_out.vqvae, mask_tokenizer=held_out.mask_vqvae
        )
    finally:
        if not changed:
            own.pop("forward", None)  # `use_float32_logits` sets it for models in half precision
