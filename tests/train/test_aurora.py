"""AURORA training on a world of toys: the real recipe from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_world import make_world
from transformers import AutoModelForImageTextToText

import train.batches
from perception.chains import TASKS
from perception.evaluation.comparison import compare
from perception.evaluation.report import comparison_html, example_figures, write_report
from perception.evaluation.scenes import scene_items
from perception.model import PerceptionModel
from train.aurora import AuroraConfig, LoraSettings, task_loss, train
from train.curriculum import CurriculumConfig
from train.loop import LoopConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def order_is_kept(monkeypatch):
    """An untrained tokenizer loses the order of every map; take the readings as they come."""
    monkeypatch.setattr(train.batches, "_ATTEMPTS", 200)
    order = np.random.default_rng(0)
    monkeypatch.setattr(train.batches.TaskMaker, "readings", lambda self, codes, points: order.permutation(len(points)))


def config_for(world: dict[str, str], out: Path, **changes) -> AuroraConfig:
    loop = LoopConfig(steps=3, learning_rate=1e-3, weight_decay=0.0, warmup_steps=1, num_workers=0)
    curriculum = CurriculumConfig(schedule="constant", atomic_end=0.4)
    settings = {"run_dir": str(out / "run"), "out": str(out / "model"), "num_scenes": 48, "batch_size": 12}
    return AuroraConfig(loop=loop, curriculum=curriculum, **world, **(settings | changes))


def captured_batches(world, out, monkeypatch, **changes):
    """The batches and the model that `train` hands to `fit`."""
    taken = {}

    def take(model, batches, loss, config, run_dir, **rest):
        taken.update(model=model, batches=batches, groups=rest["param_groups"])

    monkeypatch.setattr("train.aurora.fit", take)
    train.aurora.train(config_for(world, out, **changes))
    return taken


def test_training_writes_a_stock_folder_that_answers(world, tmp_path):
    result = train.aurora.train(config_for(world, tmp_path))
    assert np.isfinite(result.final_loss)
    folder = tmp_path / "model"
    model = PerceptionModel.from_pretrained(folder)
    stock = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(stock.lm_head.weight, model.model.lm_head.weight)
    image = Image.new("RGB", (64, 48), "red")
    answer = model.ask(image, "How many red cubes are there?", mode="chain", max_new_tokens=40)
    assert all(len(s.codes) == 4 for s in answer.spans if s.modality == "depth")
    text = "How many <DEPTH_START><LOC_3> <image> are there?"
    assert model.ask(image, text, max_new_tokens=8) == model.ask(image, text, max_new_tokens=8)
    assert not set(model.inputs([train.aurora_prompt(image, text)])["input_ids"][0].tolist()) & set(
        model.vocabulary.ids.values()
    ) if hasattr(train, "aurora_prompt") else True


def test_batches_are_functions_of_the_step_and_hold_every_task(world, tmp_path, monkeypatch):
    batches = captured_batches(world, tmp_path, monkeypatch)["batches"]
    first, again = batches(0, 0, 1), batches(0, 0, 1)
    for part, same in zip(first, again, strict=True):
        assert all(torch.equal(part[k], same[k]) for k in part)
    assert not torch.equal(first[0]["pixel_values"], batches(1, 0, 1)[0]["pixel_values"])
    tasks = {TASKS[t] for step in range(12) for part in batches(step, 0, 1) for t in part["task"].tolist()}
    assert tasks == set(TASKS)


def test_the_baseline_sees_direct_tasks_only(world, tmp_path, monkeypatch):
    batches = captured_batches(world, tmp_path, monkeypatch, arm="direct")["batches"]
    tasks = {TASKS[t] for step in range(4) for part in batches(step, 0, 1) for t in part["task"].tolist()}
    assert tasks == {"direct_count", "direct_depth"}


def test_a_batch_in_halves_has_the_loss_of_the_batch_in_one(world, tmp_path, monkeypatch):
    taken = captured_batches(world, tmp_path, monkeypatch)
    model, parts = taken["model"].eval(), taken["batches"](0, 0, 1)
    width = max(p["input_ids"].shape[1] for p in parts)
    padding = {"input_ids": 0, "labels": -100, "attention_mask": 0, "weights": 0.0}
    whole = {}
    for name in parts[0]:
        rows = [p[name] for p in parts]
        if name in padding:
            rows = [torch.nn.functional.pad(r, (0, width - r.shape[1]), value=padding[name]) for r in rows]
        whole[name] = torch.cat(rows)
    with torch.no_grad():
        assert torch.allclose(task_loss(model, parts, 0)[0], task_loss(model, [whole], 0)[0], rtol=1e-5)


def test_only_new_rows_move_where_asked(world, tmp_path):
    out = tmp_path / "rows"
    train.aurora.train(config_for(world, out, train_rows="new"))
    before = load_file(Path(world["base"]) / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    name = next(n for n in before if n.endswith("embed_tokens.weight"))
    old = before[name].shape[0]
    assert torch.equal(after[name][:old], before[name])
    fresh = PerceptionModel.from_pretrained(out / "model")
    assert after[name].shape[0] == old + len(fresh.vocabulary.tokens)
    projector = next(n for n in before if "projector" in n and n.endswith("weight"))
    assert not torch.equal(after[projector], before[projector])


def test_lora_merges_into_a_stock_folder(world, tmp_path):
    pytest.importorskip("peft")
    config = config_for(world, tmp_path, lora=LoraSettings(rank=4, alpha=8), tower_lr_ratio=0.0, train_rows="new")
    train.aurora.train(config)
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    before = load_file(Path(world["base"]) / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert not any("lora" in name for name in after)
    moved = [n for n in before if n.endswith("q_proj.weight") and "language_model" in n]
    assert moved and all(not torch.equal(after[n], before[n]) for n in moved)
    tower = [n for n in before if "vision_tower" in n and before[n].is_floating_point()]
    assert tower and all(torch.equal(after[n], before[n]) for n in tower)
    assert model.vocabulary.is_bound


def test_comparison_and_report(world, tmp_path):
    train.aurora.train(config_for(world, tmp_path))
    model = PerceptionModel.from_pretrained(tmp_path / "model")
    items = scene_items("standard", 3, 1)
    comparison, chain, direct = compare("standard", items, model, model)
    json.dumps(comparison.to_json())
    assert comparison.accuracy["counting"]["chain"].count == 3
    assert set(comparison.interventions["counting"]) == {"own", "oracle", "other image", "shuffled", "random"}
    figures = example_figures(model, items, chain, direct, each=1)
    page = write_report(tmp_path / "r.html", "t", "i", [comparison_html(comparison), figures]).read_text()
    assert page.count("<figure>") == len(figures) == 5 and "counting" in page


def test_bad_settings_name_the_known_ones(world, tmp_path):
    with pytest.raises(ValueError, match="known arms: aurora, direct"):
        config_for(world, tmp_path, arm="both")
    with pytest.raises(ValueError, match="'all' or 'new'"):
        config_for(world, tmp_path, train_rows="some")
