"""Chains of perception are reinforced with what they perceive, and stay a model that draws and answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from perception.evaluation.scenes import scene_items
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped
from train.loop.command_line import parse_config
from train.reinforce_scenes import SceneReinforceConfig, problem_of, train


def test_problems_carry_the_truths_of_their_scenes():
    items = scene_items("shifted", 2, 1, 70_000_000)
    counting, depth = problem_of(items[0]), problem_of(items[-1])
    assert counting.truths["count"] == items[0].answer == len(counting.truths["boxes_xyxy"])
    assert counting.question.endswith("Draw their boxes first.") and depth.question.endswith(
        "Draw the depth map first."
    )
    order = depth.truths["depth_order"]
    assert order[0] == depth.answer and sorted(order) == list("ABCDE")
    nearness = dict(zip("ABCDE", items[-1].nearness, strict=True))
    assert np.all(np.diff([nearness[letter] for letter in order]) <= 0)


def test_without_rewards_of_perception_the_answer_alone_is_paid():
    paid = SceneReinforceConfig(task="counting").rewards.used, SceneReinforceConfig(task="depth").rewards.used
    assert paid == ({"count": 1.0, "box_iou": 0.5}, {"answer": 1.0, "depth_order": 0.5})
    assert parse_config(SceneReinforceConfig, ["--reward_perception", "false"]).rewards.used == {"count": 1.0}
    assert SceneReinforceConfig(task="depth", reward_perception=False).rewards.used == {"answer": 1.0}


@pytest.mark.parametrize("task", ["counting", "depth"])
def test_the_shipped_model_is_reinforced(task: str, tmp_path: Path):
    """Two steps: it is paid from the start, it moves, and what is saved draws and answers."""
    config = SceneReinforceConfig(
        out=str(tmp_path / "model"), run_dir=str(tmp_path), task=task, questions=8, held_out=4, batch_size=2
    )
    loop = replace(config.loop, steps=2, warmup_steps=1, evaluate_every=2, precision="fp32")
    torch.manual_seed(0)
    train(replace(config, loop=loop))
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rewards = {name: value for row in logged for name, value in row.get("losses", {}).items() if "reward_" in name}
    wanted = {"reward_count", "reward_box_iou"} if task == "counting" else {"reward_answer", "reward_depth_order"}
    assert {name for name, value in rewards.items() if value > 0.1} == wanted
    before, after = (load_file(folder / "model.safetensors") for folder in (shipped("aurora-tiny"), tmp_path / "model"))
    assert any(not torch.equal(before[name].float(), after[name].float()) for name in after.keys() & before)
    model, item = PerceptionModel.from_pretrained(tmp_path / "model"), scene_items("shifted", 1, 1, 1)[-1]
    question = "How many objects are there?" if task == "counting" else item.question
    answer = model.ask(item.image, question, mode="chain")
    assert answer.value is not None and next(span.modality for span in answer.spans) in ("boxes", "depth")
