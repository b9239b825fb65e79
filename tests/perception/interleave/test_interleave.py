"""The selector, its loss and files, and teacher-forced batches of interleaved chains."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_families import FAMILIES
from tiny_models import build_llama, build_tokenizer
from tiny_vlms import HIDDEN_SIZE, KINDS, TinyVLM
from torch import Tensor
from transformers import LlavaForConditionalGeneration, MistralConfig
from transformers.utils import ModelOutput

from perception.interleave.chains import (
    IGNORED,
    InterleavedBatch,
    InterleavedModel,
    LabelRule,
    Look,
    build_batch,
    interleaved_loss,
    look_ids,
    with_selections,
)
from perception.interleave.selector import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    SelectorConfig,
    VisualTokenSelector,
    selection_losses,
)
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures, VisualLayout
from perception.model.shipped import shipped
from perception.vocabulary.names import PerceptionVocabulary


def random_answers(vlm: TinyVLM, inputs: dict[str, Tensor], seed: int) -> list[list[int | Look]]:
    """Text and looks at random tokens of each row's own images; the first look selects nothing."""
    rng = random.Random(seed)
    answers: list[list[int | Look]] = []
    for row in inputs["input_ids"]:
        count = int((row == vlm.layout.image_id).sum())
        answer: list[int | Look] = [Look(())]
        for _ in range(rng.randint(1, 3)):
            answer += [rng.randrange(10, 200) for _ in range(rng.randint(1, 4))]
            answer.append(Look(tuple(sorted(rng.sample(range(count), rng.randint(1, count))))))
        answers.append([*answer, rng.randrange(10, 200), vlm.tokenizer.eos_token_id])
    return answers


def batch_of(kind: str, seed: int = 0, **given: Any) -> tuple[TinyVLM, InterleavedBatch]:
    vlm = TinyVLM(kind, seed)
    inputs = vlm.inputs(seed)
    return vlm, build_batch(vlm.layout, inputs, random_answers(vlm, inputs, seed), 0, **given)


# The selector


def test_scores_are_gamma_times_the_cosine_of_the_projections() -> None:
    torch.manual_seed(0)
    selector = VisualTokenSelector(SelectorConfig(8))
    looks, visual = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    scores = selector(looks, visual)
    assert scores.shape == (2, 3, 5)
    query, key = looks[1, 2] @ selector.query.weight.T, visual[1, 4] @ selector.key.weight.T
    assert selector.log_gamma.item() == pytest.approx(math.log(1 / 0.07))
    expected = F.cosine_similarity(query, key, dim=0) / 0.07
    assert torch.allclose(scores[1, 2, 4], expected, atol=1e-5)
    edge = math.log(0.7 / 0.3)
    near = torch.tensor([edge - 1e-3, edge + 1e-3, 9.0])
    assert selector.select(near).tolist() == [False, True, True]
    torch.manual_seed(0)
    drawn = torch.stack([selector.draw(torch.tensor([edge, edge + 1])) for _ in range(4000)]).float().mean(0)
    assert drawn.tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))], abs=0.03)


@pytest.mark.parametrize(("projector", "layers"), [("linear", 1), ("none", 0), ("mlp", 2)])
def test_projectors_are_free_of_biases(projector: str, layers: int) -> None:
    selector = VisualTokenSelector(SelectorConfig(8, projector=projector))
    shapes = [p.shape for name, p in selector.named_parameters() if name not in ("embedding", "log_gamma")]
    assert shapes == [torch.Size([8, 8])] * (2 * layers)


def test_the_selection_loss_weighs_positives_by_negatives_a_positive() -> None:
    scores = torch.tensor([[1.0, -2.0, 0.5, 3.0], [1.0, -2.0, 9.0, 9.0], [1.0, -1.0, 0.0, 2.0]])
    targets = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    candidates = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    losses = selection_losses(scores, targets, candidates)
    first = F.binary_cross_entropy_with_logits(scores[0], targets[0].float(), pos_weight=torch.tensor(3.0))
    second = F.binary_cross_entropy_with_logits(scores[1, :2], torch.ones(2))
    third = F.binary_cross_entropy_with_logits(scores[2, :3], torch.zeros(3))
    assert torch.allclose(losses, torch.stack([first, second, third]))
    assert float(selection_losses(scores, targets, torch.zeros_like(candidates)).abs().max()) == 0


def test_a_saved_selector_is_loaded_as_it_was(tmp_path: Path) -> None:
    vlm = TinyVLM("llava", projector="mlp")
    selector = vlm.model.selector
    selector.save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {WEIGHTS_FILE, CONFIG_FILE}
    loaded = VisualTokenSelector.load(tmp_path, vlm.hf)
    assert loaded.config == selector.config and not loaded.training
    for name, tensor in selector.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_half_files_and_foreign_selectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="missing"):
        VisualTokenSelector.load(tmp_path)
    selector = VisualTokenSelector(SelectorConfig(8))
    selector.save(tmp_path)
    with pytest.raises(ValueError, match="8 wide, the model is 32"):
        VisualTokenSelector.load(tmp_path, TinyVLM("llava").hf)
    config, weights = (tmp_path / CONFIG_FILE).read_text(), (tmp_path / WEIGHTS_FILE).read_bytes()
    values = json.loads(config)
    wrong: list[tuple[str, str]] = [
        (config[:-5], "not whole JSON"),
        (json.dumps(values | {"gamma": 1}), "exactly the keys"),
        (json.dumps({"hidden_size": 8}), "exactly the keys"),
        (json.dumps(values | {"projector": "cubic"}), "projector must be one of"),
        (json.dumps(values | {"threshold": 1.5}), "threshold must lie"),
        (json.dumps(values | {"projector": "none"}), "unexpected tensors"),
        (json.dumps(values | {"hidden_size": 4}), "shape"),
    ]
    for text, message in wrong:
        (tmp_path / CONFIG_FILE).write_text(text)
        with pytest.raises(ValueError, match=message):
            VisualTokenSelector.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(config)
    (tmp_path / WEIGHTS_FILE).write_bytes(weights[:-8])
    with pytest.raises(ValueError, match="cut short"):
        VisualTokenSelector.load(tmp_path)
    with pytest.raises(ValueError, match="made for a text model 8 wide"):
        InterleavedModel(TinyVLM("llava").hf, selector, VisualLayout(3, 5))


# Batches


def test_labels_are_masked_as_the_paper_says() -> None:
    vlm = TinyVLM("qwen2_vl")
    inputs = vlm.row(vlm.inputs(0), 0)
    answer = [21, Look((1, 2)), 22, 23, Look(()), 24, 25]
    image, look, start, end = vlm.layout.image_id, vlm.layout.interleave_id, *vlm.layout.before, *vlm.layout.after
    expected = [21, look, start, image, image, end, 22, 23, look, 24, 25]
    rules = {
        LabelRule(): [21, -1, -1, -1, -1, -1, -1, 23, -1, -1, 25],
        LabelRule(next_token=True): [21, -1, -1, -1, -1, -1, 22, 23, -1, 24, 25],
        LabelRule(interleave=True): [21, look, -1, -1, -1, -1, -1, 23, look, -1, 25],
        LabelRule(next_token=True, announce=True): [21, -1, 22, -1, -1, -1, 22, 23, -1, 24, 25],
    }
    prompt = inputs["input_ids"].shape[1]
    for rule, labels in rules.items():
        batch = build_batch(vlm.layout, inputs, [answer], 0, rule)
        assert batch.ids[0].tolist() == inputs["input_ids"][0].tolist() + expected
        assert batch.labels[0].tolist() == [IGNORED] * prompt + [IGNORED if i < 0 else i for i in labels]
    assert batch.look_columns.tolist() == [[prompt + 1, prompt + 8]]
    assert batch.sources[0, prompt:].tolist() == [-1, -1, -1, 1, 2, -1, -1, -1, -1, -1, -1]
    assert batch.targets[0].nonzero().tolist() == [[0, 1], [0, 2]]


def test_what_a_look_announces_stays_with_other_selections() -> None:
    vlm = TinyVLM("qwen2_vl")
    inputs = vlm.row(vlm.inputs(0), 0)
    prompt = inputs["input_ids"].shape[1]
    batch = build_batch(vlm.layout, inputs, [[21, Look((1, 2)), 22, 25]], 0, LabelRule(next_token=True, announce=True))
    for tokens, after in (((0, 1, 3), [22, *[IGNORED] * 4, 22, 25]), ((), [22, 25])):
        chosen = torch.zeros_like(batch.targets)
        chosen[0, 0, list(tokens)] = True
        other = with_selections(batch, vlm.layout, chosen, 0)
        assert other.labels[0, prompt:].tolist() == [21, IGNORED, *after]


@pytest.mark.parametrize("take_along", [None, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_other_selections_make_the_batch_of_other_looks(kind: str, take_along: int | None) -> None:
    """As `build_batch` would lay it out, rows of several lengths and images; targets stay."""
    vlm, rule = TinyVLM(kind), LabelRule(next_token=True)
    inputs = vlm.inputs(1)
    true = random_answers(vlm, inputs, 1)
    batch = build_batch(vlm.layout, inputs, true, 0, rule, take_along=take_along)
    chosen = (torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(2)) < 0.3) & batch.candidates
    chosen[0, 1] = False
    other = []
    for answer, selected in zip(true, chosen, strict=True):
        looks = iter([Look(tuple(one.nonzero()[:, 0].tolist())) for one in selected])
        other.append([next(looks) if isinstance(part, Look) else part for part in answer])
    expected = build_batch(vlm.layout, inputs, other, 0, rule, take_along=take_along)
    got = with_selections(batch, vlm.layout, chosen, 0)
    for name in ("ids", "attention_mask", "labels", "sources", "visual_columns", "look_columns"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert torch.equal(got.targets, batch.targets) and torch.equal(expected.targets, chosen)
    assert torch.equal(with_selections(batch, vlm.layout, batch.targets, 0).ids, batch.ids)


def test_looks_that_select_nothing_take_the_last_tokens_along() -> None:
    vlm = TinyVLM("llava")
    inputs = vlm.row(vlm.inputs(0), 0)
    empty, rule = Look(()), LabelRule(next_token=True, announce=True)
    answer = [Look((1, 2)), 21, empty, 22, empty, 23, Look((3,)), 24, empty, 25]

    def looks(take_along: int | None) -> tuple[list[list[int]], list[int]]:
        batch = build_batch(vlm.layout, inputs, [answer], 0, rule, take_along=take_along)
        ends = [*batch.look_columns[0].tolist()[1:], batch.ids.shape[1]]
        sources = [batch.sources[0, start:end] for start, end in zip(batch.look_columns[0].tolist(), ends, strict=True)]
        assert batch.targets[0].sum(1).tolist() == [2, 0, 0, 1, 0], "there is nothing to learn to select"
        return [[n for n in one.tolist() if n >= 0] for one in sources], batch.labels[0].tolist()

    assert looks(None)[0] == [[1, 2], [], [], [3], []]
    assert looks(1)[0] == [[1, 2], [1, 2], [1, 2], [3], [3]]
    assert looks(2)[0] == [[1, 2], [], [1, 2], [3], []]
    assert sorted(looks(1)[1]) == sorted(looks(None)[1] + [IGNORED] * 5), "no label more"
    with pytest.raises(ValueError, match="take_along must be 1 or more"):
        InterleaveSettings(take_along=0)


@dataclass
class Encoded(ModelOutput):
    """What every model's `get_image_features` returns."""

    pooler_output: Any = None
    deepstack_features: Any = None


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_the_model_s_own_forward(kind: str) -> None:
    """The stock forward gets the brought-in tokens as further images' features, and positions made here by hand."""
    for seed in range(3):
        vlm, batch = batch_of(kind, seed)
        hf, features = vlm.hf, VisualFeatures.encode(vlm.hf, batch.images)
        hf.get_input_embeddings().weight.data[vlm.layout.interleave_id] = vlm.model.selector.embedding.data
        in_order = batch.sources[batch.sources >= 0]
        outputs = Encoded(
            pooler_output=[features.tokens[in_order]],
            deepstack_features=[[layer[in_order]] for layer in features.deepstack],
        )
        with torch.no_grad():
            stock = hf(
                input_ids=batch.ids,
                attention_mask=batch.attention_mask,
                position_ids=positions_by_hand(vlm, batch),
                mm_encoder_outputs={"image": outputs},
            ).logits
            ours = hf.get_output_embeddings()(vlm.model.hidden(batch))
        real = batch.attention_mask.bool()
        assert torch.allclose(stock[real], ours[real], atol=1e-4)
        assert features.deepstack or kind != "qwen3_vl"


def positions_by_hand(vlm: TinyVLM, batch: InterleavedBatch) -> Tensor:
    """Text counts on; a prompt's image of Qwen-VL spans its height and width and counts on by the longer of the two."""
    if not vlm.kind.startswith("qwen"):
        return (batch.attention_mask.cumsum(1) - 1).clamp_min(0)
    positions = torch.zeros(3, *batch.ids.shape, dtype=torch.long)
    grids = iter((batch.images["image_grid_thw"] // torch.tensor([1, 2, 2])).tolist())
    for row, columns in enumerate(batch.visual_columns.tolist()):
        now, column = 0, int((batch.attention_mask[row] == 0).sum())
        while column < batch.ids.shape[1]:
            if column not in columns:
                positions[:, row, column] = now
                now, column = now + 1, column + 1
                continue
            _, height, width = next(grids)
            for n in range(height * width):
                positions[:, row, column + n] = now + torch.tensor([0, n // width, n % width])
            now, column = now + max(height, width), column + height * width
    return positions


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_has_the_loss_of_its_rows_one_by_one(kind: str) -> None:
    vlm = TinyVLM(kind, 4)
    inputs = vlm.inputs(4, (1, 2, 1, 1))
    answers = random_answers(vlm, inputs, 4)
    answers[2] = [30, 31, vlm.tokenizer.eos_token_id]  # never looks
    whole = build_batch(vlm.layout, inputs, answers, 0)
    vlm.model.zero_grad()
    loss = interleaved_loss(vlm.model(whole))
    loss.total.backward()
    together = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    vlm.model.zero_grad()
    total = 0.0
    for row, answer in enumerate(answers):
        one = build_batch(vlm.layout, vlm.row(inputs, row), [answer], 0)
        part = interleaved_loss(vlm.model(one), num_labels=whole.num_labels, num_looks=whole.num_looks).total
        part.backward()
        total += float(part)
    assert abs(total - float(loss.total)) < 1e-4
    for name, grad in together.items():
        apart = dict(vlm.model.named_parameters())[name].grad
        assert apart is not None and torch.allclose(apart, grad, atol=1e-3 + 1e-3 * float(grad.abs().max())), name


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_selector_and_embedding_and_stay_defined_without_looks(kind: str) -> None:
    vlm, batch = batch_of(kind)
    for name, parameter in vlm.hf.named_parameters():
        parameter.requires_grad_("vision" not in name and "visual" not in name)
    output = vlm.model(batch)
    interleaved_loss(output).total.backward()
    ours = dict(vlm.model.selector.named_parameters())
    assert set(ours) == {"embedding", "query.weight", "key.weight", "log_gamma"}
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in ours.values())
    assert output.candidates.sum() > 0 and output.targets.any()
    for cut in ([[40, 41]] * 3, [[]] * 3):
        vlm.model.zero_grad(set_to_none=True)
        inputs = vlm.inputs(0)
        interleaved_loss(vlm.model(build_batch(vlm.layout, inputs, cut, 0))).total.backward()
        assert all(p.grad is not None and float(p.grad.abs().max()) == 0 for p in ours.values())


def test_the_selection_can_be_learned() -> None:
    """A few steps on one batch, selector alone: the targets are found."""
    vlm, batch = batch_of("llava")
    vlm.hf.requires_grad_(False)
    optimizer = torch.optim.Adam(vlm.model.selector.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        output = vlm.model(batch)
        interleaved_loss(output).selection.backward()
        optimizer.step()
    selected = vlm.model.selector.select(output.scores) & output.candidates
    assert float((selected == output.targets)[output.candidates].float().mean()) > 0.95


def test_bad_chains_are_refused() -> None:
    vlm = TinyVLM("llava")
    inputs = vlm.inputs(0)
    look = vlm.layout.interleave_id
    with pytest.raises(ValueError, match="row 1: a look selects visual token 8 and the row's images have 8"):
        build_batch(vlm.layout, inputs, [[1], [Look((0, 8))], [1]], 0)
    with pytest.raises(ValueError, match="is the interleave token; give the look as a Look"):
        build_batch(vlm.layout, inputs, [[1], [look, 2], [1]], 0)
    with pytest.raises(ValueError, match="3 prompts and 1 answers"):
        build_batch(vlm.layout, inputs, [[1]], 0)
    for tokens in ((2, 1), (1, 1), (-1, 2)):
        with pytest.raises(ValueError, match="ascending"):
            Look(tokens)
    with pytest.raises(ValueError, match="16 image placeholders and the images give 12"):
        vlm.model(build_batch(vlm.layout, inputs | {"pixel_values": inputs["pixel_values"][1:]}, [[1]] * 3, 0))
    qwen = TinyVLM("qwen3_vl")
    inputs = qwen.inputs(0)
    grid = inputs["image_grid_thw"]
    short = {"image_grid_thw": grid[1:], "pixel_values": inputs["pixel_values"][int(grid[0].prod()) :]}
    with pytest.raises(ValueError, match="the image grid does not match"):
        qwen.model(build_batch(qwen.layout, inputs | short, [[1]] * 3, 0))
    with pytest.raises(ValueError, match="pixel_values_videos"):
        VisualFeatures.encode(qwen.hf, {"pixel_values_videos": torch.zeros(1)})


# Models and vocabularies


def test_a_model_without_visual_tokens_is_refused() -> None:
    tokenizer = build_tokenizer()
    with pytest.raises(ValueError, match="LlamaForCausalLM has no visual tokens"):
        VisualLayout.of(build_llama(tokenizer), 300, tokenizer)
    with pytest.raises(ValueError, match="must not be the image's"):
        VisualLayout.of(TinyVLM("llava").hf, 3)


@pytest.mark.parametrize("family", ["gemma3", "paligemma"])
def test_models_whose_visual_tokens_attend_both_ways_are_refused(family: str) -> None:
    model, processor = FAMILIES[family](False, 0)
    with pytest.raises(
        ValueError, match=f"{type(model).__name__} cannot reason interleaved: it builds an attention mask"
    ):
        VisualLayout.of(model, 3, processor.tokenizer)


@pytest.mark.parametrize("window", [None, 8])
def test_models_that_read_through_a_window_are_refused(window: int | None) -> None:
    config = TinyVLM("llava").hf.config
    text = {name: getattr(config.text_config, name) for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    config.text_config = MistralConfig(**text, num_attention_heads=2, num_key_value_heads=1, sliding_window=window)
    model = LlavaForConditionalGeneration(config)
    if window is None:
        assert VisualLayout.of(model, 3 + config.image_token_id).image_id == config.image_token_id
        return
    with pytest.raises(ValueError, match="reads through a window or a state .DynamicSlidingWindowLayer.; use a model"):
        VisualLayout.of(model, 3 + config.image_token_id)


def test_vision_markers_stand_where_the_model_has_them() -> None:
    layouts = {kind: TinyVLM(kind).layout for kind in KINDS}
    look = Look((0, 4))
    for kind, layout in layouts.items():
        inner = look_ids(len(look.tokens), layout)[1:]
        markers = [i for i in inner if i != layout.image_id]
        assert len(markers) == (0 if kind == "llava" else 2) and len(inner) == 2 + len(markers)
        assert {layout.image_id, *markers} <= set(layout.reserved)
        assert look_ids(0, layout) == [layout.interleave_id]


def test_shipped_vocabularies_have_the_interleave_token_where_it_was() -> None:
    vocabulary = PerceptionVocabulary.load(shipped("aurora-tiny"))
    assert vocabulary.interleave_id == max(vocabulary.ids.values())


def test_a_new_selector_begins_as_the_model_s_row() -> None:
    vlm = TinyVLM("smolvlm")
    selector = VisualTokenSelector.for_model(vlm.hf, vlm.layout.interleave_id)
    row = vlm.hf.get_input_embeddings().weight[vlm.layout.interleave_id]
    assert torch.equal(selector.embedding, row) and selector.config.hidden_size == HIDDEN_SIZE
