"""Masks from end to end: the recipe of the tokenizer, and a model that learns to draw the masks of things."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_families import save_family
from tiny_world import make_world

from perception.chains import ATOMIC_BOXES, ATOMIC_MASKS, Example
from perception.datasets.images import ImageFile
from perception.datasets.records import Record, RecordSet
from perception.evaluation.held_out import answer_examples, figures, held_out_picture
from perception.model.perception_model import PerceptionModel
from perception.scenes.scene import Scene
from perception.tokenizers.masks import MaskTokenizer
from perception.vocabulary.names import PerceptionVocabulary, Span
from train import finetune, mask_tokenizer
from train.aurora import AuroraConfig
from train.data.curriculum import CurriculumConfig, task_shares
from train.data.records import SourcesConfig
from train.data.scenes import ScenesConfig, TaskMaker
from train.finetune import FinetuneConfig
from train.loop.checkpoints import ResumeError
from train.loop.fit import LoopConfig
from train.loop.progress import read_log
from train.mask_tokenizer import FIRST_SEED, MaskBatches, MaskTokenizerConfig, crops_of, held_out_scenes
from vqvae import VQVAE, VQVAEConfig

SHIPPED = "tokenizers/masks-scenes-16"
TINY = VQVAEConfig(
    image_size=16, downsample=4, codebook_size=8, codebook_dim=4, channels=16, num_res_blocks=1,
    normalisation="metric", min_depth=1.0, max_depth=2.0,
)  # fmt: skip


# The tokenizer


def test_a_short_training_gives_a_tokenizer_of_masks(tmp_path: Path) -> None:
    config = MaskTokenizerConfig(
        run_dir=str(tmp_path / "run"), out=str(tmp_path / "finished"), store=str(tmp_path / "scenes"), num_scenes=8,
        num_held_out=2, batch_size=8, model=TINY, loop=LoopConfig(steps=30, learning_rate=3e-3, num_workers=0),
    )  # fmt: skip
    result = mask_tokenizer.train(config)
    tokenizer = MaskTokenizer.from_pretrained(config.out)
    assert result.steps == 30 and tokenizer.vocabulary.mask_codes == 8 and tokenizer.num_codes == 4 + 16
    with pytest.raises(ValueError, match="tokenizer of masks has 'metric' normalisation"):
        replace(config, model=VQVAEConfig())
    with pytest.raises(ValueError, match=r"num_scenes \(0\).*at least 1"):
        replace(config, num_scenes=0)


def test_held_out_masks_that_decide_when_training_ends_cannot_change(tmp_path: Path) -> None:
    config = MaskTokenizerConfig(
        run_dir=str(tmp_path / "run"), out=str(tmp_path / "finished"), store=str(tmp_path / "scenes"), num_scenes=8,
        num_held_out=2, batch_size=8, model=TINY,
        loop=LoopConfig(steps=2, evaluate_every=1, num_workers=0),
    )  # fmt: skip
    mask_tokenizer.train(config)
    with pytest.raises(ResumeError, match="num_held_out"):
        mask_tokenizer.train(replace(config, num_held_out=3))


def test_crops_are_the_visible_pixels_of_every_object() -> None:
    scenes = held_out_scenes(range(FIRST_SEED, FIRST_SEED + 3))
    crops = crops_of(scenes, 64)
    assert crops.shape == (sum(len(scene.objects) for scene in scenes), 64, 64) and crops.dtype == torch.uint8
    sides = [crops[:, 0], crops[:, -1], crops[:, :, 0], crops[:, :, -1]]
    assert all(bool((side.amax(1) > 127).all()) for side in sides)  # tight boxes: each side is touched
    batches = MaskBatches(crops, 16, seed=0)
    depth = batches(3, 0, 1)["depth"]
    assert depth.shape == (16, 64, 64) and float(depth.min()) >= 1 and float(depth.max()) <= 2
    assert depth.equal(batches(3, 0, 1)["depth"]) and not depth.equal(batches(4, 0, 1)["depth"])


# The task


def test_no_recipe_draws_masks_unless_it_is_told_to() -> None:
    assert task_shares(CurriculumConfig(), 0.5)[ATOMIC_MASKS] == 0
    half = CurriculumConfig(masks_share=0.5)
    shares = task_shares(half, 0.0)
    assert shares[ATOMIC_MASKS] == shares[ATOMIC_BOXES] == 0.25 and sum(shares.values()) == pytest.approx(1)
    assert AuroraConfig().mask_tokenizer == ""
    old = finetune.deciding(AuroraConfig())
    assert not any("mask" in name or "weak_boxes" in name for name in old)  # old runs can be resumed
    with pytest.raises(ValueError, match="curriculum.masks_share needs the mask tokenizer; set mask_tokenizer"):
        AuroraConfig(curriculum=half)


def examples(maker: TaskMaker, scene: Scene) -> list[Example]:
    """Different questions for masks of a scene."""
    rng = np.random.default_rng(0)
    made = [found for _ in range(12) if (found := maker.mask_example(scene, rng))]
    return list({example.question: example for example in made}.values())


def test_examples_ask_for_the_masks_of_things_in_reading_order() -> None:
    scenes = held_out_scenes(range(FIRST_SEED, FIRST_SEED + 4))
    tokenizer = MaskTokenizer.from_pretrained(SHIPPED)
    maker = TaskMaker(PerceptionVocabulary(mask_codes=128), VQVAE(TINY), masks=tokenizer)
    numbers = set()
    for scene, example in [(one, example) for one in scenes for example in examples(maker, one)]:
        numbers.add(len(example.target))
        plural = "s" if len(example.target) > 1 else ""
        things = example.question.removeprefix(f"Draw the mask{plural} of the ").removesuffix(".")
        shape = things.split()[-1].removesuffix("s")
        color = things.split()[0] if len(things.split()) > 1 else None
        wanted = [
            n
            for n, item in enumerate(scene.objects, start=1)
            if shape in (item.shape, "object") and color in (None, item.color)
        ]
        assert len(wanted) == len(example.target) and things.endswith(f"{shape}{plural}")
        given = {span.codes for span in example.target if isinstance(span, Span)}
        assert given == {tuple(tokenizer.encode(scene.mask_of(n))) for n in wanted}
        rows = [(span.codes[1] + span.codes[3]) * 10 // 200 for span in example.target if isinstance(span, Span)]
        assert rows == sorted(rows)
    assert numbers == {1, 2, 3}


def test_scenes_train_masks_and_the_model_keeps_its_tokenizer(tmp_path: Path) -> None:
    """Two steps, every row of masks; what is written has the vocabulary and the tokenizer."""
    world = make_world(tmp_path / "world")
    config = AuroraConfig(
        run_dir=str(tmp_path / "run"), out=str(tmp_path / "model"), batch_size=2, length_groups=1,
        base=world["base"], depth_tokenizer=world["depth_tokenizer"], mask_tokenizer=SHIPPED,
        data=SourcesConfig(scenes=ScenesConfig(count=2, store=world["store"])),
        curriculum=CurriculumConfig(schedule="constant", atomic_end=1.0, depth_share=0.0, masks_share=1.0),
        loop=LoopConfig(steps=2, learning_rate=1e-3, log_every=1, num_workers=0, find_unused_parameters=True),
    )  # fmt: skip
    finetune.train(config)
    assert {"atomic_masks"} == set(read_log(tmp_path / "run")[-1]["losses"]) - {"padding"}
    model = PerceptionModel.from_pretrained(config.out)
    assert model.vocabulary.mask_codes == 128 and model.mask_tokenizer is not None
    assert model.mask_tokenizer.fingerprint() == VQVAE.from_pretrained(SHIPPED).fingerprint()
    model.save_pretrained(tmp_path / "again")
    assert PerceptionModel.from_pretrained(tmp_path / "again").mask_tokenizer is not None
    with pytest.raises(ValueError, match="makes 16 of 8 codes, the vocabulary names 16 of 128"):
        PerceptionModel(model.model, model.processor, model.vocabulary, mask_tokenizer=VQVAE(TINY))


@pytest.mark.slow
def test_a_tiny_model_learns_to_draw_masks(tmp_path: Path) -> None:
    """It learns the masks of the things of one image by their names, from records, and is asked for them."""
    save_family("llava", tmp_path / "base")
    (scene,) = held_out_scenes([FIRST_SEED])
    image = Image.fromarray(scene.image.numpy())
    image.save(tmp_path / "scene.png")
    maker = TaskMaker(PerceptionVocabulary(mask_codes=128), VQVAE(TINY), masks=MaskTokenizer.from_pretrained(SHIPPED))
    asked = examples(maker, scene)[:4]
    records = [Record(ImageFile(tmp_path / "scene.png"), example, "scene") for example in asked]
    RecordSet(tuple(records)).write(tmp_path / "records.jsonl")
    config = FinetuneConfig(
        base=str(tmp_path / "base"), out=str(tmp_path / "model"), run_dir=str(tmp_path / "run"), length_groups=1,
        depth_tokenizer="", depth_codes=8, depth_side=2, mask_tokenizer=SHIPPED, batch_size=4,
        data=SourcesConfig(records=(str(tmp_path / "records.jsonl"),)),
        curriculum=CurriculumConfig(schedule="constant", atomic_end=1.0),
        loop=LoopConfig(
            steps=120, learning_rate=1e-2, weight_decay=0.0, warmup_steps=5, num_workers=0, find_unused_parameters=True
        ),
    )  # fmt: skip
    finetune.train(config)
    model = PerceptionModel.from_pretrained(config.out)
    answered = answer_examples(model, [(image, example) for example in asked])
    assert figures(answered, 100, mask_vqvae=model.mask_tokenizer)["masks_iou"] > 0.8
    silent = [replace(one, answer=replace(one.answer, spans=())) for one in answered]
    assert figures(silent, 100, mask_vqvae=model.mask_tokenizer)["masks_iou"] == 0
    assert "masks_iou" not in figures(answered, 100)
    drawn = held_out_picture(model, answered[0]).image
    model.mask_tokenizer = None  # masks that nothing can decode are left out
    assert held_out_picture(model, answered[0]).image.width < drawn.width
