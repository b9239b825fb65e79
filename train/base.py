"""Train the tiny base on the language of scenes (`python -m train.base`): stage 1 of the tiny base.

The model is a LLaVA with the tower of `train.tower` and a small Llama. It trains on captions and plain questions about
rendered scenes and learns colours, shapes, places (as plain numbers) and lettered markers. Counting, comparing depth
and perception tokens are not part of this stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SwinModel

from perception.answers import POINT_LETTERS
from perception.scenes.captions import Conversation, conversation, lookups, markers_only, place_text
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.scenes.styles import COLORS, SHAPES
from train.data.augmentation import normalise_pixels, photometric, to_pixels
from train.loop.command_line import fingerprint, parse_config
from train.loop.fit import LoopConfig, fit
from train.loop.optimizer import parameter_groups
from train.models.attention import use_plain_attention
from train.models.losses import IGNORE
from train.models.saving import save_half
from train.models.tiny import (
    NUM_IMAGE_TOKENS,
    TinySize,
    build_model,
    build_processor,
    start_layers,
    start_numbers,
    train_text_tokenizer,
)
from train.tower import cell_of, dense_targets

_MAX_MISSES = 1000
TASK_WORDS = [
    "How many objects are there? Draw their boxes first. There are many things, so count the points.",
    "Which point is closest to the camera, A, B, C, D or E? Draw the depth map first. A 1, B 2, so A.",
    "Draw the boxes of the red cubes. Draw the marked points. Which of these is the farthest, and which is near?",
]
"""Sentences with the words of fine-tuning. The base does not train on them; its tokenizer does, so that these words
are not split into many tokens."""


@dataclass(frozen=True)
class StageSteps:
    """Number of steps of each stage in which the base learns to look; the rest of the run trains on the whole mixture.

    A model that trains on the whole mixture from the start learns the language of captions but not where to look, and
    answers the same for every image. One marker, a few markers, then short questions about single places teach it to
    attend.
    """

    one_marker: int = 200
    few_markers: int = 400
    lookups: int = 300


@dataclass(frozen=True)
class BaseConfig:
    """Configuration of the base model's training."""

    run_dir: str = "runs/base"
    out: str = "runs/base/model"
    """folder of the finished model, in half precision"""
    tower: str = "runs/tower/tower"
    store: str = "runs/scenes/standard"
    num_scenes: int = 40_000
    batch_size: int = 16
    """rows per batch in the first stages, where rows are short; the last stage uses half as many"""
    tower_lr_ratio: float = 0.0
    """ratio of the tower's learning rate to that of the rest; 0 freezes the tower"""
    stages: StageSteps = field(default_factory=lambda: StageSteps())
    size: TinySize = field(default_factory=TinySize)
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            steps=7000,
            learning_rate=1e-3,
            weight_decay=0.01,
            warmup_steps=20,
            schedule="wsd",
            min_lr_ratio=0.05,
            decay_share=0.3,
            precision="bf16",
        )
    )


def scene_of(store: SceneStore, index: int, rng: np.random.Generator) -> Scene:
    """Return scene `index`, mirrored with probability 0.5."""
    scene = Scene.from_store(store, index)
    return scene.flipped() if rng.random() < 0.5 else scene


def text_corpus(store: SceneStore, size: int = 4000) -> list[str]:
    """Return the training text of the tokenizer: conversations and the numbers 0 to 99."""
    rng = np.random.default_rng(0)
    lines = [" " + " ".join(str(n) for n in range(100)) + "." for _ in range(400)]
    for index in range(min(size, len(store))):
        for question, answer in conversation(scene_of(store, index, rng), rng).turns:
            lines.append(f"USER: {question} ASSISTANT: {answer}")
    return lines + TASK_WORDS * 50


def collate(rows: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Pad rows on the right; return input ids, labels and attention mask, each (B, longest)."""
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORE)
    for row, (ids, targets) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(targets)] = torch.tensor(targets)
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def encode_turns(tokenizer: PreTrainedTokenizerFast, turns: tuple[tuple[str, str], ...]) -> tuple[list[int], list[int]]:
    """Return ids and labels of a conversation in the chat template; only answers and their end tokens have labels."""
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    ids, labels = [tokenizer.bos_token_id], [IGNORE]
    for number, (question, answer) in enumerate(turns):
        if number == 0:
            head = tokenizer.encode("USER: ", add_special_tokens=False) + [image_id] * NUM_IMAGE_TOKENS
            head += tokenizer.encode("\n", add_special_tokens=False)
        else:
            head = tokenizer.encode("USER: ", add_special_tokens=False)
        head += tokenizer.encode(question, add_special_tokens=False, split_special_tokens=True)
        head += tokenizer.encode(" ASSISTANT:", add_special_tokens=False)
        tail = [*tokenizer.encode(f" {answer}", add_special_tokens=False), tokenizer.eos_token_id]
        ids += head + tail
        labels += [IGNORE] * len(head) + tail
    return ids, labels


def name_cells(scene: Scene, points: np.ndarray | None, rng: np.random.Generator) -> dict[int, str]:
    """Return the words that the language model should predict *at* visual tokens, by cell.

    The word of a marker's cell or of an object's central cell is a number: the x of the marker or of the box's left
    side, alternating by cell with the y of the marker or of the box's top. Other cells of objects get the object's
    colour, alternating by cell with its shape, and ten empty cells get "nothing". These words can be learned without
    attention; after that, an answer only needs attention to the right cell.
    """
    targets = dense_targets(scene, points)
    named: dict[int, str] = {}
    for cell, kind in zip(*np.nonzero(targets["covers"]), strict=True):
        named[int(cell)] = COLORS[kind // len(SHAPES)] if (cell // 10 + cell) % 2 else SHAPES[kind % len(SHAPES)]
    empty = np.flatnonzero(targets["covers"].sum(1) == 0)
    named |= {int(cell): "nothing" for cell in rng.permutation(empty)[:10]}
    for item in scene.objects:
        cell = cell_of(*item.center_xy)
        named[cell] = place_text([item.box_xyxy[(cell // 10 + cell) % 2]])
    return named | name_markers(points)


def name_markers(points: np.ndarray | None) -> dict[int, str]:
    """Return the words of the markers' cells; see `name_cells`."""
    cells = {cell_of(*point): point for point in (points if points is not None else ())}
    return {cell: place_text([point[(cell // 10 + cell) % 2]]) for cell, point in cells.items()}


@dataclass(frozen=True)
class BaseBatches:
    """Batches of a run; each is a pure function of the step, the rank and the seed."""

    store: SceneStore
    tokenizer: PreTrainedTokenizerFast
    batch_size: int
    seed: int
    stages: StageSteps

    def _row(self, step: int, rng: np.random.Generator) -> tuple[Conversation, dict[int, str]] | None:
        """Return a conversation of the step's stage and the words of its cells, or None if the scene does not suit."""
        scene = scene_of(self.store, int(rng.integers(len(self.store))), rng)
        talk: Conversation | None
        markers_end = self.stages.one_marker + self.stages.few_markers
        if step < markers_end:
            talk = markers_only(scene, rng, 1 if step < self.stages.one_marker else 3)
            return None if talk is None else (talk, name_markers(talk.points_xy))
        early = step < markers_end + self.stages.lookups
        share = rng.random()
        if early and share < 0.5:
            talk = markers_only(scene, rng, int(rng.integers(1, len(POINT_LETTERS) + 1)))
        else:
            talk = lookups(scene, rng) if early or share < 0.25 else conversation(scene, rng)
        return None if talk is None else (talk, name_cells(scene, talk.points_xy, rng))

    def __call__(self, step: int, rank: int, world: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, rank))
        whole = step >= self.stages.one_marker + self.stages.few_markers + self.stages.lookups
        images: list[Tensor] = []
        rows: list[tuple[list[int], list[int]]] = []
        wanted, misses = max(1, self.batch_size // 2) if whole else self.batch_size, 0
        while len(rows) < wanted:
            made = self._row(step, rng)
            if made is None:
                misses += 1
                if misses > _MAX_MISSES:
                    raise ValueError(f"{misses} scenes of {self.store.folder} had no room for markers; render others")
                continue
            talk, named = made
            images.append(talk.image)
            ids, labels = encode_turns(self.tokenizer, talk.turns)
            first = ids.index(self.tokenizer.convert_tokens_to_ids("<image>"))
            for cell, word in named.items():  # logits at a position predict the label of the next one
                labels[first + cell + 1] = self.tokenizer.encode(f" {word}", add_special_tokens=False)[0]
            rows.append((ids, labels))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        pixels = normalise_pixels(photometric(to_pixels(torch.stack(images)), generator))
        return {"pixel_values": pixels, **collate(rows, self.tokenizer.pad_token_id)}


def language_loss(model: nn.Module, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the cross-entropy of the answers and of the words at visual tokens."""
    loss = model(**batch).loss
    return loss, {"text": loss.detach()}


def main(argv: list[str] | None = None) -> None:
    config = parse_config(BaseConfig, argv)
    torch.manual_seed(config.loop.seed)
    store = SceneStore.build(config.store, range(config.num_scenes))
    tokenizer = train_text_tokenizer(text_corpus(store), config.size.text_vocab_size)
    tower = SwinModel.from_pretrained(config.tower, add_pooling_layer=False)
    tower.config.name_or_path = ""  # else the saved config names the folder of the tower
    model = build_model(tokenizer, tower.config, config.size)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    batches = BaseBatches(store, tokenizer, config.batch_size, config.loop.seed, config.stages)
    start_numbers(model, tokenizer)
    start_layers(model, batches(0, 0, 1)["pixel_values"])
    use_plain_attention(model.model.language_model)
    groups = parameter_groups(model, (list(model.model.vision_tower.parameters()), config.tower_lr_ratio))
    result = fit(
        model,
        batches,
        language_loss,
        config.loop,
        Path(config.run_dir),
        param_groups=groups,
        title="base",
        fingerprint=fingerprint(config, free=("run_dir", "out")),
    )
    if result.is_main:
        save_half(model, Path(config.out))
        build_processor(tokenizer).save_pretrained(config.out)


if __name__ == "__main__":
    main()
