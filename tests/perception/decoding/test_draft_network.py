"""A draft network decides how fast answers come, and never what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_perception import GRID, build_perception

from perception.decoding.decoder import DecodingTrace, SpanDecoder
from perception.decoding.draft_network import FILE_NAME, DraftNetwork, DraftNetworkConfig, prompt_states
from perception.model.perception_model import PerceptionModel, Prompt

QUESTIONS = ("How many red cubes are there?", "Which point is closest, A or B?")


def build_network(model: PerceptionModel, seed: int = 0) -> DraftNetwork:
    torch.manual_seed(seed)
    text = model.model.config.get_text_config()
    return DraftNetwork(DraftNetworkConfig(text.hidden_size, text.vocab_size, GRID, length=12, width=8)).eval()


def opening_depth(seed: int, network: DraftNetwork | None = None) -> PerceptionModel:
    """A random model whose first id is the START of a depth map."""
    model = build_perception(seed)
    start = model.vocabulary.start_id("depth")
    if network is None:
        network = build_network(model, seed)
    with torch.no_grad():
        model.model.lm_head.weight[start] *= 0
        prompt = model.inputs(prompts(seed)[:1])
        hidden = model.model.base_model(**prompt).last_hidden_state[0, -1]
        model.model.lm_head.weight[start] = 3 * hidden
    model.decoder = SpanDecoder(model.model, model.grammar, draft_network=network)
    return model


def prompts(seed: int) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [Prompt(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8), question) for question in QUESTIONS]


@pytest.mark.parametrize("seed", range(4))
def test_ids_are_those_of_one_at_a_time(seed):
    """Random networks guess rubbish: text inside maps, maps that end too early or never."""
    model = opening_depth(seed)
    batch = prompts(seed)
    plain = model.generate_ids(batch, max_new_tokens=30, fast=False)
    assert plain[0][0] == model.vocabulary.start_id("depth")
    assert model.generate_ids(batch, max_new_tokens=30) == plain
    assert [model.generate_ids([prompt], max_new_tokens=30)[0] for prompt in batch] == plain


def test_a_network_that_knows_saves_forwards():
    model = opening_depth(0)
    prompt = prompts(0)[:1]
    plain = model.generate_ids(prompt, max_new_tokens=12, fast=False)[0]
    forwards = []
    for known in (False, True):
        network = model.decoder.draft_network
        assert network is not None
        if known:
            network.draft = lambda states: [plain for _ in states]  # type: ignore[method-assign]
        trace = DecodingTrace()
        model.decoder.decode(model.inputs(prompt), [()], 12, [model.processor.tokenizer.eos_token_id], trace=trace)
        forwards.append(trace.forwards)
    assert forwards[1] <= 3 and forwards[1] <= forwards[0]


def test_one_sweep_lets_the_draft_stand():
    """The map is the network's, whatever the model would have drawn; one forward for it, and the text behind it."""
    model = opening_depth(0)
    prompt, network = prompts(0)[:1], model.decoder.draft_network
    assert network is not None
    codes = model.vocabulary.code_ids("depth")
    drawn = [codes[n % len(codes)] for n in range(model.vocabulary.depth_length)]
    start, end = model.vocabulary.start_id("depth"), model.vocabulary.end_id("depth")
    network.draft = lambda states: [[start, *drawn, end] for _ in states]  # type: ignore[method-assign]
    trace = DecodingTrace()
    stop = [model.processor.tokenizer.eos_token_id]
    (ids,) = model.decoder.decode(model.inputs(prompt), [()], len(drawn) + 2, stop, trace=trace, sweeps=1) or []
    assert ids == [start, *drawn, end] and trace.forwards == 2
    exact = model.generate_ids(prompt, len(drawn) + 2)[0]
    assert ids != exact


def test_a_network_of_another_version_is_refused(tmp_path):
    model = opening_depth(1)
    network = model.decoder.draft_network
    assert network is not None
    del network.marks
    network.save(tmp_path)
    with pytest.raises(ValueError, match="(?s)another version.*train.drafts"):
        DraftNetwork.load(tmp_path)


def test_saved_and_loaded_with_the_model(tmp_path):
    model = opening_depth(1)
    model.save_pretrained(tmp_path)
    network = PerceptionModel.from_pretrained(tmp_path).decoder.draft_network
    own = model.decoder.draft_network
    assert network is not None and own is not None and network.config == own.config
    for name, value in network.state_dict().items():
        assert torch.equal(value, own.state_dict()[name].half().float())


def test_networks_that_do_not_fit_are_refused(tmp_path):
    model = build_perception(0)
    text = model.model.config.get_text_config()
    other = DraftNetwork(DraftNetworkConfig(text.hidden_size + 1, text.vocab_size, GRID, length=12, width=8))
    with pytest.raises(ValueError, match="made for"):
        SpanDecoder(model.model, model.grammar, draft_network=other)
    with pytest.raises(ValueError, match="must hold a whole span"):
        DraftNetworkConfig(8, 8, GRID, length=5)
    assert DraftNetwork.load(tmp_path) is None
    save_file({"a": torch.zeros(1)}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="no sizes"):
        DraftNetwork.load(tmp_path)


def test_states_of_prompts():
    """A square number of image tokens, the same in every row, and the last; any other prompt has none."""
    hidden = torch.randn(2, 7, 3)
    ids = torch.tensor([[0, 9, 9, 9, 9, 1, 2], [9, 9, 9, 9, 1, 1, 2]])
    states = prompt_states(hidden, ids, 9)
    assert states is not None
    assert torch.equal(states[0], hidden[0, [1, 2, 3, 4, 6]]) and torch.equal(states[1], hidden[1, [0, 1, 2, 3, 6]])
    assert prompt_states(hidden, ids, 8) is None
    assert prompt_states(hidden, torch.where(ids == 1, 9, ids), 9) is None
