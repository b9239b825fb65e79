"""Draft networks learn a frozen model's answers, from parts that a killed run keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_perception import build_perception

from perception.decoding.draft_network import DraftNetwork, DraftNetworkConfig
from perception.model.perception_model import PerceptionModel, Prompt
from train import drafts
from train.drafts import IGNORE, DraftsConfig, answers_of, fit, gather, guessed

LENGTH = 12


@pytest.fixture
def folder(tmp_path):
    build_perception(0).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def config(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(drafts, "PART", 8)
    run = tmp_path / "run"
    return DraftsConfig(str(folder), str(run), answers=16, held_out=4, length=LENGTH, width=16, steps=60, batch_size=4)


def test_answers_are_the_model_s_with_what_it_made_of_them(folder):
    model = PerceptionModel.from_pretrained(folder)
    image = torch.randint(256, (20, 30, 3), dtype=torch.uint8)
    prompts = [Prompt(image, question) for question in ("Which is nearest?", "Which point is nearest, A, B or C?")]
    found = answers_of(model, prompts, LENGTH)
    rows = [row[:LENGTH] for row in model.generate_ids(prompts)]
    for ids, row in zip(found["ids"].tolist(), rows, strict=True):
        assert ids[: len(row)] == row and set(ids[len(row) + 1 :]) <= {IGNORE}
    inputs = model.inputs(prompts)
    with torch.no_grad():
        outputs = model.model(**inputs, output_hidden_states=True)
    torch.testing.assert_close(found["states"][:, -1].float(), outputs.hidden_states[-1][:, -1], rtol=1e-2, atol=1e-2)
    first = outputs.logits[:, -1].softmax(-1).topk(found["top_odds"].shape[-1])
    torch.testing.assert_close(found["top_odds"][:, 0].float(), first.values, rtol=1e-2, atol=1e-3)
    assert (found["top_odds"].sum(-1) < 1.001).all()


def test_a_killed_run_goes_on_behind_the_last_part(config, monkeypatch):
    first = gather(config)
    assert len(first["ids"]) == 16 and len(config.parts()) == 2
    kept, lost = config.parts()
    lost.unlink()
    written, write = [], drafts.write_part
    monkeypatch.setattr(drafts, "write_part", lambda config, path: written.append(path) or write(config, path))
    again = gather(config)
    assert written == [lost]
    assert all(torch.equal(again[name], value) for name, value in first.items())
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{kept.name} is not a complete file.*delete it"):
        gather(config)


def test_answers_of_a_model_that_was_trained_again_are_not_taken(config, folder):
    gather(config)
    (folder / "draft_network.safetensors").write_bytes(b"its own product is no reason")
    gather(config)
    build_perception(1).save_pretrained(folder)
    with pytest.raises(ValueError, match="weights was .* and is"):
        gather(config)


def test_a_network_learns_what_is_held_out(config, folder):
    """A model whose answers say the same of every image can be guessed whole."""
    answers = gather(config)
    answers["ids"][:] = torch.arange(40, 40 + LENGTH)
    answers["top_ids"][..., 0], answers["top_odds"][:] = answers["ids"], 0
    answers["top_odds"][..., 0] = 1
    text = PerceptionModel.from_pretrained(folder).model.config.get_text_config()
    grid = PerceptionModel.from_pretrained(folder).vocabulary.depth_grid
    torch.manual_seed(0)
    network = DraftNetwork(DraftNetworkConfig(text.hidden_size, text.vocab_size, grid, LENGTH, 16))
    before = guessed(network, answers["states"].float(), answers["ids"].long())
    assert before < 0.2 and fit(network, answers, replace(config, steps=400), lambda _: None) > 0.9


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="must exceed held_out"):
        DraftsConfig(answers=256)
    with pytest.raises(ValueError, match="processes"):
        DraftsConfig(processes=0)
