"""What the base model reads: true, plain, never a count, never a comparison of depth, never a perception token."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from perception.answers import POINT_LETTERS
from perception.evaluation.scenes import HELD_OUT_SEED
from perception.scenes.captions import Conversation, conversation, lookups, markers_only, place
from perception.scenes.scene import Scene
from perception.scenes.store import SceneStore
from perception.scenes.styles import COLORS, SHAPES
from perception.vocabulary.names import PerceptionVocabulary
from train.aurora import AuroraConfig
from train.base import (
    BaseBatches,
    BaseConfig,
    StageSteps,
    collate,
    encode_turns,
    name_cells,
    scene_of,
    text_corpus,
)
from train.models.losses import IGNORE
from train.models.tiny import NUM_IMAGE_TOKENS, train_text_tokenizer
from train.quickstart import QuickstartConfig
from train.tower import TowerConfig, cell_of, dense_targets

_THING = rf"(({'|'.join(COLORS)}) )?({'|'.join(SHAPES)}|object)"
_LETTER = f"[{POINT_LETTERS}]"
QUESTIONS = re.compile(
    rf"Describe the image\.|Where are the {_THING}s\?|What is at \d+ \d+\?|Is there a {_THING}\?"
    rf"|Which points are marked\?|Where is {_LETTER}\?|What is {_LETTER} on\?"
)
"""All that is ever asked."""
_BOX = rf"({_THING} )?\d+ \d+ \d+ \d+"
ANSWERS = re.compile(
    rf"({_BOX})(, {_BOX})*\.|nothing\.|{_THING}\.|yes\.|no\.|({_LETTER} )?\d+ \d+(, {_LETTER} \d+ \d+)*\."
)
"""All that is ever answered: no lone number, no lone letter."""
TOKEN = re.compile(r"<[A-Z]+(_\w+)?>")
STAGES = StageSteps(one_marker=1, few_markers=1, lookups=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SceneStore:
    return SceneStore.build(tmp_path_factory.mktemp("scenes") / "store", range(32), workers=1)


@pytest.fixture(scope="module")
def tokenizer(store):
    return train_text_tokenizer(text_corpus(store, size=32), 640)


@pytest.fixture(scope="module")
def talks(store) -> list[tuple[Scene, Conversation]]:
    """Every kind of talk about every scene, mirrored or not, with the scene."""
    rng = np.random.default_rng(0)
    made = []
    for index in list(store) * 2:
        scene = scene_of(store, index, rng)
        for talk in (conversation(scene, rng), lookups(scene, rng), markers_only(scene, rng, 1 + index % 5)):
            if talk is not None:
                made.append((scene, talk))
    return made


def test_nothing_counts_compares_depth_or_names_a_token(talks):
    turns = [turn for _, talk in talks for turn in talk.turns]
    assert len(turns) > 500
    assert [question for question, _ in turns if not QUESTIONS.fullmatch(question)] == []
    assert [answer for _, answer in turns if not ANSWERS.fullmatch(answer)] == []


def test_the_tokenizer_s_text_names_no_perception_token(store, tokenizer):
    assert [line for line in text_corpus(store, size=32) if TOKEN.search(line)] == []
    assert not set(PerceptionVocabulary().tokens) & set(tokenizer.get_vocab())
    assert all(len(tokenizer.encode(f" {n}", add_special_tokens=False)) == 1 for n in range(100))


def test_answers_are_true(talks):
    """Places of markers and what stands at a place, checked against the scene itself."""
    seen = 0
    for scene, talk in talks:
        for question, answer in talk.turns:
            if letter := re.fullmatch(rf"Where is ({_LETTER})\?", question):
                x, y = talk.points_xy[POINT_LETTERS.index(letter[1])]
                assert answer == f"{place(x)} {place(y)}."
                seen += 1
            elif question == "Describe the image.":
                assert answer.count(",") + 1 == len(scene.objects) or answer == "nothing."
            elif there := re.fullmatch(r"Is there a (\w+) (\w+)\?", question):
                kinds = {(o.color, o.shape) for o in scene.objects}
                assert answer == ("yes." if (there[1], there[2]) in kinds else "no.")
                seen += 1
    assert seen > 100


def test_only_answers_are_supervised(tokenizer):
    turns = (("Where is A?", "12 34."), ("Is there a red cube <image></s>?", "no."))
    ids, labels = encode_turns(tokenizer, turns)
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == NUM_IMAGE_TOKENS
    assert all(label in (IGNORE, token) for token, label in zip(ids, labels, strict=True))
    supervised = tokenizer.decode([label for label in labels if label != IGNORE])
    assert supervised == " 12 34.</s> no.</s>"
    text = tokenizer.decode([i for i in ids if i != tokenizer.convert_tokens_to_ids("<image>")])
    assert (
        text == "<s>USER: \nWhere is A? ASSISTANT: 12 34.</s>USER: Is there a red cube <image></s>? ASSISTANT: no.</s>"
    )


def test_rows_are_padded_on_the_right():
    batch = collate([([1, 2, 3], [IGNORE, 2, 3]), ([4], [4])], pad_id=0)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORE, 2, 3], [4, IGNORE, IGNORE]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_cells_are_named_after_what_they_hold(store):
    rng = np.random.default_rng(0)
    for index in store:
        scene = Scene.from_store(store, index)
        covers = dense_targets(scene, None)["covers"]
        centres = {cell_of(*item.center_xy) for item in scene.objects}
        named = name_cells(scene, None, rng)
        assert sum(word == "nothing" for word in named.values()) <= 10
        for cell, word in named.items():
            kinds = covers[cell].nonzero()[0]
            if cell in centres:
                assert 0 <= int(word) <= 99
            elif word == "nothing":
                assert len(kinds) == 0
            else:
                assert word in {COLORS[k // len(SHAPES)] for k in kinds} | {SHAPES[k % len(SHAPES)] for k in kinds}


@pytest.mark.parametrize("step", range(4))
def test_batches_are_functions_of_the_step_in_every_stage(store, tokenizer, step):
    batches = BaseBatches(store, tokenizer, 4, 0, STAGES)
    one, again, other = batches(step, 0, 1), batches(step, 0, 1), batches(step, 1, 2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["pixel_values"], other["pixel_values"])
    assert len(one["input_ids"]) == (4 if step < 3 else 2)
    image = one["input_ids"] == tokenizer.convert_tokens_to_ids("<image>")
    assert (image.sum(1) == NUM_IMAGE_TOKENS).all()
    named = one["labels"][image] != IGNORE  # words at visual tokens
    answered = (one["labels"] != IGNORE) & (one["labels"] == one["input_ids"])
    assert named.any() and (answered.sum(1) > 0).all()


def test_no_training_takes_held_out_scenes():
    aurora = AuroraConfig().data.scenes
    last = max(BaseConfig().num_scenes, TowerConfig().num_scenes, QuickstartConfig().num_scenes)
    assert max(last, aurora.first_seed + aurora.count) < HELD_OUT_SEED
