"""Depth maps of frames: unchanged cells keep their codes, changed ones are those of one code a forward."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import build_llava, build_tokenizer
from tiny_perception import CHAT_TEMPLATE
from transformers import LlavaProcessor, SiglipImageProcessor

from perception.chains import ATOMIC_DEPTH_QUESTION
from perception.extras.frames import FrameConfig, FrameDepth, FrameMap, changed_cells
from perception.model.perception_model import PerceptionModel, Prompt
from perception.scenes.frames import CHANGES, render_frames
from perception.scenes.render import render_scenes
from perception.vocabulary.names import PerceptionVocabulary, Span

GRID = (4, 4)
CELLS = 16


def build(seed: int = 0) -> PerceptionModel:
    """A random model whose maps have 4 x 4 codes of 8."""
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer)
    vocabulary = PerceptionVocabulary(8, GRID, 10).extend(model, tokenizer)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.lm_head.weight.normal_()
        model.get_input_embeddings().weight.normal_(std=1.5)  # so that a code depends on those before it
    image_processor = SiglipImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    processor = LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return PerceptionModel(model, processor, vocabulary)


def noise(seed: int = 0, size: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def repainted(frame: np.ndarray, cells: list[tuple[int, int]]) -> np.ndarray:
    after, side = frame.copy(), frame.shape[0] // 4
    for row, column in cells:
        after[row * side : (row + 1) * side, column * side : (column + 1) * side] ^= 255
    return after


def codes_one_by_one(model: PerceptionModel, frame: np.ndarray, kept: np.ndarray, before: tuple[int, ...]) -> tuple:
    """Each code by a forward over all that stands before it, without a cache."""
    codes: list[int] = []
    start, ids = model.vocabulary.start_id("depth"), model.vocabulary.code_ids("depth")
    for n in range(CELLS):
        inputs = model.inputs([Prompt(frame, ATOMIC_DEPTH_QUESTION, None, (start, *(ids[c] for c in codes)))])
        with torch.no_grad():
            best = int(model.model(**inputs).logits[0, -1, ids].argmax())
        codes.append(before[n] if kept.flatten()[n] else best)
    return tuple(codes)


def test_a_first_frame_is_decoded_as_ever():
    model = build(1)
    made = FrameDepth(model)(noise())
    start = model.vocabulary.start_id("depth")
    (answer,) = model.answer([Prompt(noise(), ATOMIC_DEPTH_QUESTION, None, (start,))], CELLS + 1)
    assert answer.spans == (Span("depth", made.codes),)
    assert made == FrameMap(made.codes, CELLS, None)


def test_codes_are_read_by_their_ids_which_need_not_be_in_order():
    """A tokenizer that had some of the names already gives them other places."""
    model = build(1)
    first = FrameDepth(model)(noise())
    ids, turned = dict(model.vocabulary.ids), {}
    for code in range(8):
        turned[f"<DEPTH_{code}>"] = ids[f"<DEPTH_{(3 * code + 1) % 8}>"]
    model.vocabulary = replace(model.vocabulary, ids=ids | turned)
    again = FrameDepth(model)(noise())
    assert tuple((3 * code + 1) % 8 for code in again.codes) == first.codes
    network = SimpleNamespace(draft=lambda states: [[0, *ids.values(), 0]])
    model.decoder.draft_network = network
    drafted = [dict((i, c) for c, i in enumerate(model.vocabulary.code_ids("depth"))).get(i, 0) for i in ids.values()]
    reader = FrameDepth(model)
    inputs = model.inputs([Prompt(noise(), ATOMIC_DEPTH_QUESTION, None, (model.vocabulary.start_id("depth"),))])
    found = reader._drafted(inputs["input_ids"], torch.zeros(1, inputs["input_ids"].shape[1], 8))
    assert found is not None and found[0].tolist() == drafted[:CELLS]


def test_an_unchanged_frame_costs_nothing_and_has_the_same_map():
    model = build(1)
    reader = FrameDepth(model)
    first = reader(noise())
    model.model.forward = None  # nothing may run
    assert reader(noise().copy()) == FrameMap(first.codes, 0, 0)


@pytest.mark.parametrize("window", [1, 3, 32])
@pytest.mark.parametrize("cells", [[(0, 0)], [(1, 2), (3, 3)], [(0, 1), (0, 2), (2, 0), (3, 1)]])
def test_changed_cells_alone_are_predicted_and_are_those_of_one_a_forward(window, cells):
    for seed in range(3):
        model = build(seed)
        reader = FrameDepth(model, FrameConfig(0.02, 0, window))
        first, after = reader(noise(seed)), repainted(noise(seed), cells)
        second = reader(after)
        kept = np.ones(GRID, dtype=bool)
        for cell in cells:
            kept[cell] = False
        assert second.decoded == len(cells) and 1 <= second.forwards <= 1 + CELLS
        assert second.codes == codes_one_by_one(model, after, kept, first.codes)
        assert all(second.codes[n] == first.codes[n] for n in np.flatnonzero(kept))


def test_a_threshold_of_0_is_decoding_frame_by_frame():
    model = build(2)
    reader, frames = FrameDepth(model, FrameConfig(threshold=0)), [noise(0), noise(0), repainted(noise(0), [(1, 1)])]
    assert [reader(frame) for frame in frames] == [FrameDepth(model)(frame) for frame in frames]


def test_with_nothing_kept_the_cells_are_those_of_plain_decoding():
    model, frame = build(3), noise(5)
    reader = FrameDepth(model, FrameConfig(0.02, 0, 5))
    (made,) = reader._partly([frame], torch.zeros(1, CELLS, dtype=torch.bool), torch.zeros(1, CELLS, dtype=torch.long))
    assert made.codes == FrameDepth(model)(frame).codes


def test_a_batch_of_sequences_is_each_alone():
    model = build(1)
    steps = [
        [noise(0), noise(1, 48), noise(2)],
        [repainted(noise(0), [(1, 1)]), repainted(noise(1, 48), [(0, 3), (2, 2)]), noise(2)],
        [repainted(noise(0), [(1, 1), (3, 2)]), noise(7, 48), repainted(noise(2), [(2, 1)])],
    ]
    config = FrameConfig(0.02, 0)
    together, alone = FrameDepth(model, config), [FrameDepth(model, config) for _ in range(3)]
    for frames in steps:
        made = together.batch(frames)
        expected = [reader(frame) for reader, frame in zip(alone, frames, strict=True)]
        assert [m.codes for m in made] == [m.codes for m in expected]
        assert [m.decoded for m in made] == [m.decoded for m in expected]


def test_bad_frames_are_refused_and_nothing_is_forgotten():
    model = build(1)
    reader = FrameDepth(model, FrameConfig(0.02, 0))
    first = reader(noise())
    with pytest.raises(
        ValueError, match=r"of one size, got \(height, width\) \(32, 32\), then \(48, 48\); resize.*reset"
    ):
        reader(noise(0, 48))
    with pytest.raises(ValueError, match="1 sequences need as many frames, got 2; reset"):
        reader.batch([noise(), noise()])
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8"):
        reader(noise()[..., 0])
    assert reader(noise()) == FrameMap(first.codes, 0, 0)
    reader.reset()
    assert reader(noise(0, 48)).decoded == CELLS


@pytest.mark.parametrize(("values", "said"), [((2.0, 1, 8), "threshold must lie"), ((0.1, -1, 8), "margin must be 0")])
def test_bad_settings(values, said):
    with pytest.raises(ValueError, match=said):
        FrameConfig(*values)


def test_a_cache_that_cannot_be_cropped_predicts_all_anew(monkeypatch, caplog):
    model = build(1)
    reader = FrameDepth(model, FrameConfig(0.02, 0))
    reader(noise())
    monkeypatch.setattr("perception.extras.frames.why_not", lambda model, cache: "its cache slides")
    after = repainted(noise(), [(1, 1)])
    for _ in range(2):
        assert reader(after).codes == FrameDepth(model)(after).codes
        after = repainted(after, [(2, 2)])
    assert [r.message for r in caplog.records].count("decoding every cell of every frame: its cache slides") == 1


def test_changed_cells_and_their_margin():
    before = noise()
    after = repainted(before, [(1, 1)])
    assert np.argwhere(changed_cells(before, after, GRID, 0.02, 0)).tolist() == [[1, 1]]
    assert changed_cells(before, after, GRID, 0.02, 1).sum() == 9
    assert changed_cells(before, before, GRID, 0.0, 0).all() and not changed_cells(before, before, GRID, 1e-6, 2).any()
    faint = before.copy()
    faint[:8, :8] = np.where(faint[:8, :8] < 128, faint[:8, :8] + 10, faint[:8, :8] - 10)
    assert (
        not changed_cells(before, faint, GRID, 0.05, 0).any() and changed_cells(before, faint, GRID, 0.03, 0).sum() == 1
    )


# Frames


def test_frames_begin_with_the_scene_and_change_by_one_object():
    seen = set()
    for seed in range(8):
        batch, happened = render_frames(seed, 5)
        first = render_scenes([seed])
        assert torch.equal(batch.images[0], first.images[0]) and torch.equal(batch.depth[0], first.depth[0])
        assert happened[0] == "first" and len(happened) == 5 == len(batch.images)
        for n in range(1, 5):
            same = torch.equal(batch.images[n], batch.images[n - 1]) and torch.equal(batch.depth[n], batch.depth[n - 1])
            if happened[n] == "none":
                assert same
            seen.add(happened[n])
        again, _ = render_frames(seed, 5)
        assert torch.equal(again.images, batch.images)
    assert seen == set(CHANGES)


def test_bad_frames_of_scenes():
    with pytest.raises(ValueError, match="count must be at least 1 and changes out of"):
        render_frames(0, 0)
    with pytest.raises(ValueError, match="changes out of .*got 3 and .'fly',"):
        render_frames(0, 3, changes=("fly",))
