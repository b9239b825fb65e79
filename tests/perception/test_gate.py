"""The gate before the drawing: what it reads, decides, saves, refuses, and what "auto" does with and without."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_perception import build_perception

from perception.model.gate import FILE_NAME, NUM_PLAIN, Setting, ThinkingGate, gate_features, signature
from perception.model.perception_model import PerceptionModel, Prompt
from train.gate import CHAIN, DIRECT, choose, setting_at, train_gate

COUNT, DEPTH, OTHER = "How many red cubes are there?", "Which point is closest, A or B?", "What is this?"


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def flat_gate(model: PerceptionModel, price: float = 0.0) -> ThinkingGate:
    """Expects drawing to help depth questions and to hurt counting ones."""
    size = NUM_PLAIN + model.model.config.get_text_config().hidden_size
    weight = torch.zeros(3, size)
    weight[1, 6] = 4.0  # 1 for depth questions
    zeros = torch.zeros(size)
    return ThinkingGate(weight, torch.tensor([0.0, -2.0, 3.0]), zeros, zeros + 1, signature(model.model), price)


def test_features_do_not_depend_on_the_batch_and_tell_questions_apart():
    model = build_perception(1)
    prompts = [
        Prompt(noise(i), q, k) for i, (q, k) in enumerate(((COUNT, "count"), (DEPTH, "depth"), (DEPTH, "depth")))
    ]
    together = gate_features(model, prompts)
    assert together.shape == (3, NUM_PLAIN + 16) and bool(torch.isfinite(together).all())
    alone = torch.cat([gate_features(model, [prompt]) for prompt in prompts])
    assert torch.allclose(together, alone, atol=1e-4)
    assert together[:, 6].tolist() == [0, 1, 1] and together[:, 7].tolist() == [0, 2, 2]
    seen = [replace(prompt, image=model.look(prompt.image)) for prompt in prompts]
    assert torch.allclose(gate_features(model, seen), together, atol=1e-4)


def test_auto_draws_what_the_gate_finds_worth_it_and_answers_as_that_mode():
    model = build_perception(1)
    model.gate = flat_gate(model)
    images, questions = [noise(i) for i in range(3)], [COUNT, DEPTH, OTHER]
    answers = model.ask_many(images, questions, "auto", 40)
    assert [answer.mode for answer in answers] == ["direct", "chain", "direct"]
    for image, question, answer in zip(images, questions, answers, strict=True):
        assert model.ask(image, question, answer.mode, 40) == answer == model.ask(image, question, "auto", 40)
    for price, mode in ((-100, "chain"), (100, "direct")):
        model.gate = model.gate.at(price)
        assert [a.mode for a in model.ask_many(images, questions, "auto", 40)] == [mode, mode, "direct"]


def test_auto_without_a_gate_draws_wherever_a_chain_fits():
    model = build_perception(1)
    assert model.gate is None
    answers = model.ask_many(noise(), [COUNT, DEPTH, OTHER], "auto", 40)
    assert [answer.mode for answer in answers] == ["chain", "chain", "direct"]


def test_a_gate_is_saved_and_read_with_its_model(tmp_path):
    model = build_perception(1)
    model.gate = replace(
        flat_gate(model, 0.25), settings=(Setting(-100.0, 1.0, 70.0, 0.8), Setting(0.25, 0.5, 40.0, 0.7))
    )
    model.save_pretrained(tmp_path)
    again = PerceptionModel.from_pretrained(tmp_path)
    assert again.gate is not None and again.gate.settings == model.gate.settings and again.gate.price == 0.25
    assert all(torch.equal(getattr(again.gate, n), getattr(model.gate, n)) for n in ("weight", "bias", "mean", "scale"))
    assert PerceptionModel.from_pretrained(tmp_path, dtype=torch.bfloat16).gate is not None  # the same weights, rounded
    assert sorted(p.name for p in tmp_path.iterdir() if "gate" in p.name) == [FILE_NAME]


def test_a_model_that_was_trained_on_leaves_its_gate_behind(tmp_path):
    model = build_perception(1)
    model.gate = flat_gate(model)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.05)
    model.save_pretrained(tmp_path)
    assert PerceptionModel.from_pretrained(tmp_path).gate is None


def test_other_weights_and_other_files_are_refused(tmp_path):
    model = build_perception(1)
    with pytest.raises(ValueError, match="trained for other weights.*train.gate"):
        flat_gate(model).check(build_perception(2).model)
    small = replace(flat_gate(model), weight=torch.zeros(3, 4), mean=torch.zeros(4), scale=torch.ones(4))
    with pytest.raises(ValueError, match="reads -4 hidden values, the model has 16"):
        small.check(model.model)
    model.gate = flat_gate(model)
    model.save_pretrained(tmp_path / "whole")
    for name, damage, said in (
        ("short", lambda t: t.pop("bias"), "bias missing or unknown"),
        ("more", lambda t: t.update(more=torch.zeros(1)), "more missing or unknown"),
        ("sizes", lambda t: t.update(bias=torch.zeros(5)), "bias of a gate must be finite and"),
        ("nan", lambda t: t["mean"].fill_(float("nan")), "mean of a gate must be finite"),
    ):
        folder = tmp_path / name
        shutil.copytree(tmp_path / "whole", folder)
        tensors = load_file(folder / FILE_NAME)
        damage(tensors)
        save_file(tensors, folder / FILE_NAME, metadata={"gate": '{"price": 0, "settings": []}'})
        with pytest.raises(ValueError, match=f"{FILE_NAME} is no gate.*{said}.*train.gate"):
            PerceptionModel.from_pretrained(folder)
    save_file(load_file(tmp_path / "whole" / FILE_NAME), tmp_path / "whole" / FILE_NAME)
    with pytest.raises(ValueError, match="is no gate .its settings missing"):
        PerceptionModel.from_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / FILE_NAME).write_bytes(b"cut")
    with pytest.raises(ValueError, match=f"{FILE_NAME} is half written"):
        PerceptionModel.from_pretrained(tmp_path / "whole")


def test_prices_and_budgets():
    gate = replace(
        flat_gate(build_perception(1)),
        settings=(Setting(-100.0, 1.0, 70.0, 0.8), Setting(0.1, 0.6, 50.0, 0.82), Setting(100.0, 0.0, 3.0, 0.5)),
    )
    assert [gate.for_budget(tokens).price for tokens in (100, 60, 49, 3)] == [0.1, 0.1, 100.0, 100.0]
    with pytest.raises(ValueError, match="no price keeps to 2 tokens.*takes 3.0"):
        gate.for_budget(2)
    with pytest.raises(ValueError, match=r"price must lie in \[-100, 100\].*got 101"):
        gate.at(101)


def made_answers(count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Drawing is always right and takes 20 tokens; the direct answer is right where feature 0 is above 0."""
    features = torch.randn(count, NUM_PLAIN + 16, generator=torch.Generator().manual_seed(seed))
    right = torch.stack([features[:, 0] > 0, torch.ones(count, dtype=torch.bool)], 1)
    return {"features": features, "right": right, "tokens": torch.tensor([[3, 20]]).expand(count, 2)}


def test_training_finds_where_drawing_changes_the_answer():
    gate = train_gate(made_answers(600), torch.zeros(512), held_out=0.3)
    fresh = made_answers(400, seed=1)
    chosen, always = setting_at(gate, gate.price, fresh), setting_at(gate, -100.0, fresh)
    assert always == Setting(-100.0, 1.0, 20.0, 1.0)
    assert chosen.accuracy > 0.97 and 0.45 < chosen.drawn < 0.65 and chosen.tokens < 14
    chances, tokens = gate.read(fresh["features"])
    assert float((tokens - 20).abs().max()) < 1
    assert float(((chances[:, DIRECT] > 0.5) == fresh["right"][:, DIRECT]).float().mean()) > 0.95
    spent = [setting.tokens for setting in gate.settings]
    assert spent == sorted(spent, reverse=True) and spent[0] == 20 and spent[-1] == 3


def test_a_gate_that_knows_nothing_goes_on_drawing():
    """Where the features tell nothing and drawing is better, the price that is chosen keeps the accuracy."""
    answers = made_answers(400)
    shuffled = answers | {
        "features": answers["features"][torch.randperm(400, generator=torch.Generator().manual_seed(2))]
    }
    gate = train_gate(shuffled, torch.zeros(512), held_out=0.3)
    price, settings = choose(gate, shuffled, give_up=1.0)
    assert settings[0].accuracy == 1.0
    assert setting_at(gate, price, shuffled).accuracy >= 0.99
    assert int(shuffled["right"][:, CHAIN].sum()) == 400
