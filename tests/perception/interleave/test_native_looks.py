"""Looks at native resolution: what is cut out, and that all properties of looks hold, for every class of model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_interleave import random_answers
from test_interleave_generation import (
    GENERATED,
    HEADINGS,
    NEW,
    assert_teacher_forced,
    close,
    recompute,
    without_last_look,
    write,
    written,
)
from tiny_vlms import IMAGE_SIZE, KINDS, TinyVLM
from torch import Tensor

from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import SpanLogitsProcessor
from perception.interleave.chains import LabelRule, Look, build_batch, interleaved_loss, with_selections
from perception.interleave.generation import InterleavedGenerator
from perception.interleave.native import Crop, CropSizes, NativeImages, SeenImage
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.spans import Span

SETTINGS = tuple(replace(one, resolution="native", look_tokens=12) for one in (HEADINGS, GENERATED))
SQUARE = CropSizes(token=4, grid=(4, 4))


def seen(width: int = 64, height: int = 64, grid: tuple[int, int] = (4, 4)) -> SeenImage:
    return SeenImage(Image.new("RGB", (width, height)), grid, (0.0, 0.0, float(width), float(height)))


def cells_of(*places: tuple[int, int], grid: tuple[int, int] = (4, 4)) -> Any:
    cells = np.zeros(grid, dtype=bool)
    cells[tuple(np.array(places).T)] = True
    return cells


def problem(kind: str, seed: int, images: tuple[int, ...] = (1, 2, 1)) -> tuple[TinyVLM, Any, dict[str, Tensor]]:
    """A model, the original images of a batch, and its prompts."""
    vlm = TinyVLM(kind, seed)
    pictures = vlm.pictures(seed, images)
    return vlm, pictures, vlm.prompts(pictures, seed)


# What is cut out


def test_a_cell_is_cut_out_at_the_resolution_of_the_original() -> None:
    (cut,) = seen().cuts(cells_of((1, 2)), SQUARE, 64)
    # A cell is 16 x 16 pixels of the original, which is all that a tower of 16 x 16 pixels reads.
    assert cut.crop == Crop((32.0, 16.0, 48.0, 32.0), (4, 4)) and cut.native
    assert cut.tokens == list(range(16))
    (cut,) = seen(128, 128, (16, 16)).cuts(cells_of((0, 5), grid=(16, 16)), SQUARE, 64)
    # A cell of 8 x 8 pixels is padded to 16 x 16, and moved into the image at its edge.
    assert cut.crop == Crop((36.0, 0.0, 52.0, 16.0), (4, 4))
    assert cut.tokens == list(range(12)), "half a cell, 4 pixels, around the cell's 8 x 8, but not the last row"


def test_print_on_the_border_of_a_selected_cell_is_brought_in() -> None:
    image = seen(512, 512, (8, 8))  # a cell has 64 x 64 pixels
    for sizes in (CropSizes(16, (8, 8)), CropSizes(16, None, 1, 1024)):
        (cut,) = image.cuts(cells_of((3, 4), grid=(8, 8)), sizes, 64)
        assert cut.crop == Crop((224.0, 160.0, 352.0, 288.0), (8, 8)) and cut.native
        assert cut.tokens == list(range(64)), "32 pixels more on each side than the cell itself"
    (narrow,) = image.cuts(cells_of((3, 4), grid=(8, 8)), CropSizes(16, None, 1, 1024), 40)
    assert narrow.crop == Crop((240.0, 176.0, 336.0, 272.0), (6, 6)) and narrow.native, "the margin shrinks first"
    (alone,) = image.cuts(cells_of((3, 4), grid=(8, 8)), CropSizes(16, None, 1, 1024), 16)
    assert alone.crop == Crop((256.0, 192.0, 320.0, 256.0), (4, 4)) and alone.native


def test_only_tokens_over_selected_cells_and_a_margin_are_inserted() -> None:
    rng, sizes = np.random.default_rng(0), (SQUARE, CropSizes(8, None, 4, 256))
    for number in range(200):
        width, height, rows, columns = (int(n) for n in (*rng.integers(40, 300, 2), *rng.integers(2, 9, 2)))
        image, cells = seen(width, height, (rows, columns)), rng.random((rows, columns)) < 0.2
        if not cells.any():
            continue
        budget = int(rng.integers(4, 40))
        cuts = image.cuts(cells, sizes[number % 2], budget)
        assert sum(len(cut.tokens) for cut in cuts) <= budget
        for cut in cuts:
            x1, y1, x2, y2 = cut.crop.window
            assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
            covered = np.zeros_like(cells)
            for token in cut.tokens:
                row, column = divmod(token, cut.crop.grid[1])
                # The token's edges in cells
                left, right = ((x1 + (column + n) / cut.crop.grid[1] * (x2 - x1)) / width * columns for n in (0, 1))
                top, bottom = ((y1 + (row + n) / cut.crop.grid[0] * (y2 - y1)) / height * rows for n in (0, 1))
                own = np.argwhere(cells) + 0.5  # (n, 2), centres of the selected cells
                middle = np.array([(top + bottom) / 2, (left + right) / 2])
                near = (np.abs(own - middle) <= 1 + 1e-6).all(1)  # half a cell, and half a cell around it
                held = ((own >= (top - 1e-6, left - 1e-6)) & (own <= (bottom + 1e-6, right + 1e-6))).all(1)
                assert near.any() or held.any()
                covered[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
            if len(cuts) == 1 and len(cut.tokens) < budget:
                assert covered[cells].all(), "nothing that was selected is left out"


def test_parts_far_apart_are_cut_out_by_themselves() -> None:
    cuts = seen(256, 256, (16, 16)).cuts(cells_of((1, 1), (2, 2), (12, 13), grid=(16, 16)), CropSizes(8, (8, 8)), 64)
    assert [cut.native for cut in cuts] == [True, True]
    near = seen(256, 256, (16, 16)).cuts(cells_of((1, 1), (1, 3), grid=(16, 16)), CropSizes(8, (8, 8)), 64)
    assert len(near) == 1 and len(near[0].tokens) == 32


def test_the_budget_scales_a_crop_down_and_everything_is_still_seen() -> None:
    image, everything = seen(), np.ones((4, 4), dtype=bool)
    (whole,) = image.cuts(everything, SQUARE, 16)
    assert whole.crop.window == (0.0, 0.0, 64.0, 64.0) and whole.tokens == list(range(16)) and not whole.native
    (thinned,) = image.cuts(everything, SQUARE, 5)
    assert len(thinned.tokens) == 5 and thinned.tokens[0] == 0 and thinned.tokens[-1] == 15
    (small,) = image.cuts(cells_of((1, 1)), SQUARE, 6)
    assert 1 <= len(small.tokens) <= 6
    assert small.crop.window[2] - small.crop.window[0] > 16


def test_a_processor_that_crops_the_middle_is_followed() -> None:
    vlm = TinyVLM("llava")
    picture = Image.new("RGB", (96, 48))
    images = vlm.native([[picture]], vlm.prompts([[picture]]))
    assert images.images[0].window == (24.0, 0.0, 72.0, 48.0)
    crops = images.new_crops()
    crops.numbers(0, (0,))
    assert next(iter(crops._starts))[1].window[:2] == (24.0, 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_inserted_tokens_are_those_of_the_crop_alone(kind: str) -> None:
    """Cut by hand, read by the image processor and encoded by the model as any image."""
    vlm, pictures, inputs = problem(kind, 0)
    native = vlm.native(pictures, inputs)
    batch = build_batch(vlm.layout, inputs, [[1, 2], [1, Look((0,)), 2], [1, 2]], 0, native=native)
    size, seen_image = native.sizes, native.images[1]
    (cut,) = seen_image.cuts(cells_of((0, 0), grid=seen_image.grid), size, 12)
    shape = (cut.crop.grid[1] * size.token, cut.crop.grid[0] * size.token)
    by_hand = pictures[1][0].resize(shape, Image.Resampling.BICUBIC, cut.crop.window)
    with torch.no_grad():
        alone = VisualFeatures.encode(vlm.hf, vlm.prompts([[by_hand]]))
        both = VisualFeatures.encode(vlm.hf, batch.images).and_then(VisualFeatures.encode(vlm.hf, batch.crops))
    first = int((batch.visual_columns >= 0).sum())
    numbers = [source - first for source in batch.sources[1].tolist() if source >= first]
    assert numbers == cut.tokens and len(numbers) > 0
    for ours, theirs in zip((both.tokens, *both.deepstack), (alone.tokens, *alone.deepstack), strict=True):
        assert torch.allclose(ours[first:], theirs, atol=1e-4)


# The properties of looks


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.trigger)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_batches_write_what_full_recomputation_writes(kind: str, settings: InterleaveSettings) -> None:
    brought = 0
    for seed in range(2):
        vlm, pictures, inputs = problem(kind, seed)
        result = write(vlm, settings, inputs, native=vlm.native(pictures, inputs))
        for row, answer in enumerate(result.answers):
            own = [pictures[row]]
            alone = vlm.row(inputs, row)
            images = vlm.native(own, alone)
            assert answer == without_last_look(recompute(vlm, settings, alone, images), vlm, settings)
            assert write(vlm, settings, alone, native=images).answers[0] == answer
        uncached = write(vlm, settings, inputs, native=vlm.native(pictures, inputs), use_cache=False)
        assert uncached.answers == result.answers and uncached.inserted == result.inserted
        brought += sum(sum(row) for row in result.inserted)
    assert brought > 4, "the test has no looks to speak of"


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.trigger)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_scores_of_every_step_are_the_teacher_forced_ones(kind: str, settings: InterleaveSettings) -> None:
    vlm, pictures, inputs = problem(kind, 3)
    native = vlm.native(pictures, inputs)
    given = {"return_dict_in_generate": True, "output_logits": True, "do_sample": True, "native": native}
    torch.manual_seed(3)
    result = write(vlm, settings, inputs, **given)
    rule = LabelRule(interleave=settings.trigger == "generated", next_token=True)
    batch = build_batch(vlm.layout, inputs, result.answers, 0, rule, native)
    with torch.no_grad():
        output = vlm.model(batch)
    assert_teacher_forced(vlm, settings, result, output)
    for row, looks in enumerate(result.look_scores):
        for n, scores in enumerate(looks):
            assert close(scores, output.scores[row, n, : len(scores)])
    inserted = (result.sequences[:, inputs["input_ids"].shape[1] :] == vlm.layout.image_id).sum(1)
    assert inserted.tolist() == [sum(row) for row in result.inserted]


def every_other(scores: Tensor, row: int, look: int) -> Tensor:
    """A selection of two tokens by each look of an even number, of none by the others."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(2).indices] = look % 2 == 0
    return chosen


@pytest.mark.parametrize("resolution", ["seen", "native"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.trigger)
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_taken_along_as_they_are(kind: str, settings: InterleaveSettings, resolution: str) -> None:
    """Batched as single, cached as computed anew, generated as teacher-forced; no crop is encoded for it."""
    settings, native = replace(settings, take_along=1, resolution=resolution), resolution == "native"
    pairs: list[tuple[int, int]] = []
    for seed in range(5, 12):
        vlm, pictures, inputs = problem(kind, seed)

        def given(vlm: TinyVLM, rows: Any, prompts: dict[str, Tensor]) -> NativeImages | None:
            return vlm.native(rows, prompts) if native else None

        def solve(vlm: TinyVLM, rows: Any, prompts: dict[str, Tensor], **more: Any) -> Any:
            writer = InterleavedGenerator(vlm.model, settings, vlm.tokenizer, every_other)
            return writer.generate(prompts, native=given(vlm, rows, prompts), max_new_tokens=NEW, **more)

        result = solve(vlm, pictures, inputs, do_sample=False)
        found = [pair for row in result.inserted for pair in zip(row[::2], row[1::2], strict=False)]
        if not found:  # no row of this model looks twice
            continue
        pairs += found
        for row, answer in enumerate(result.answers):
            assert solve(vlm, [pictures[row]], vlm.row(inputs, row), do_sample=False).answers[0] == answer
        assert solve(vlm, pictures, inputs, do_sample=False, use_cache=False).answers == result.answers
        told = solve(vlm, pictures, inputs, do_sample=False, return_dict_in_generate=True, output_logits=True)
        rule = LabelRule(interleave=settings.trigger == "generated", next_token=True)
        images = given(vlm, pictures, inputs)
        batch, without = (
            build_batch(vlm.layout, inputs, told.answers, 0, rule, images, after)
            for after in (settings.take_along, None)
        )
        shapes = [{name: value.shape for name, value in one.crops.items()} for one in (batch, without)]
        assert shapes[0] == shapes[1]
        with torch.no_grad():
            output = vlm.model(batch)
        assert_teacher_forced(vlm, settings, told, output)
        break
    assert pairs and all(first == second > 0 for first, second in pairs), pairs


@pytest.mark.parametrize("kind", KINDS)
def test_one_batch_has_the_loss_and_gradients_of_its_rows_one_by_one(kind: str) -> None:
    vlm, pictures, inputs = problem(kind, 4)
    answers = random_answers(vlm, inputs, 4)
    whole = build_batch(vlm.layout, inputs, answers, 0, native=vlm.native(pictures, inputs))
    assert whole.crops
    loss = interleaved_loss(vlm.model(whole)).total
    loss.backward()
    together = {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}
    vlm.model.zero_grad()
    total = 0.0
    for row, answer in enumerate(answers):
        alone = vlm.row(inputs, row)
        one = build_batch(vlm.layout, alone, [answer], 0, native=vlm.native([pictures[row]], alone))
        part = interleaved_loss(vlm.model(one), num_labels=whole.num_labels, num_looks=whole.num_looks).total
        part.backward()
        total += float(part)
    assert abs(total - float(loss)) < 1e-4
    for name, grad in together.items():
        apart = dict(vlm.model.named_parameters())[name].grad
        assert apart is not None and torch.allclose(apart, grad, atol=1e-3 + 1e-3 * float(grad.abs().max())), name


@pytest.mark.parametrize("kind", ("llava", "qwen3_vl", "smolvlm"))
def test_other_selections_make_the_batch_of_other_looks(kind: str) -> None:
    vlm, pictures, inputs = problem(kind, 1)
    native, rule = vlm.native(pictures, inputs), LabelRule(next_token=True)
    true = random_answers(vlm, inputs, 1)
    batch = build_batch(vlm.layout, inputs, true, 0, rule, native)
    chosen = (torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(2)) < 0.3) & batch.candidates
    chosen[0, 1] = False
    other = []
    for answer, selected in zip(true, chosen, strict=True):
        looks = iter([Look(tuple(one.nonzero()[:, 0].tolist())) for one in selected])
        other.append([next(looks) if isinstance(part, Look) else part for part in answer])
    expected = build_batch(vlm.layout, inputs, other, 0, rule, native)
    got = with_selections(batch, vlm.layout, chosen, 0)
    for name in ("ids", "attention_mask", "labels", "sources", "visual_columns", "look_columns"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
    assert torch.equal(got.targets, batch.targets)
    assert torch.equal(got.crops["pixel_values"], expected.crops["pixel_values"])


@pytest.mark.parametrize("kind", ("llava", "qwen2_5_vl", "idefics3"))
def test_rows_look_at_their_own_images_only(kind: str) -> None:
    vlm, pictures, _ = problem(kind, 0, (1, 2))

    def answers(images: Any) -> Any:
        made = vlm.prompts(images)
        choose = lambda scores, row, look: torch.ones_like(scores, dtype=torch.bool)  # noqa: E731
        looking = InterleavedGenerator(vlm.model, SETTINGS[0], vlm.tokenizer, choose)
        return looking.generate(made, native=vlm.native(images, made), max_new_tokens=NEW, do_sample=False).answers

    before = answers(pictures)
    changed = np.array(pictures[1][1])
    changed[: len(changed) // 2] = 255 - changed[: len(changed) // 2]
    after = answers([pictures[0], [pictures[1][0], Image.fromarray(changed)]])
    assert after[0] == before[0] and after[1] != before[1]


def test_crops_of_a_batch_are_encoded_together_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = TinyVLM("llava", 1)
    picture = vlm.pictures(1, (1,))[0][0]
    pictures = [[picture], [picture], vlm.pictures(2, (1,))[0]]
    inputs = vlm.prompts(pictures, 1)
    calls: list[int] = []
    encode = vlm.hf.base_model.get_image_features

    def counted(pixel_values: Tensor, **given: Any) -> Any:
        calls.append(len(pixel_values))
        return encode(pixel_values, **given)

    monkeypatch.setattr(vlm.hf.base_model, "get_image_features", counted)
    always = InterleaveSettings(heading=r"^|\w", max_looks=3, resolution="native", look_tokens=12)

    def first(scores: Tensor, row: int, look: int) -> Tensor:
        return torch.arange(len(scores)) == look // 2  # the second look is at what the first one was at

    looking = InterleavedGenerator(vlm.model, always, vlm.tokenizer, first)
    native = vlm.native(pictures, inputs)
    result = looking.generate(inputs, native=native, max_new_tokens=NEW, do_sample=False)
    assert [len(row) for row in result.inserted] == [3, 3, 3]
    # The prompts' three images; the first crop of two different images; no crop at the second look; one more each.
    assert calls[0] == 3 and sum(calls[1:]) == 4 and calls[1] == 2
    calls.clear()
    build = build_batch(vlm.layout, inputs, result.answers, 0, native=native)
    vlm.model(build)
    assert calls == [3, 4]


@pytest.mark.parametrize("kind", ("llava", "qwen2_vl", "smolvlm"))
def test_several_answers_a_prompt_look_at_their_prompt_s_image(kind: str) -> None:
    vlm, pictures, inputs = problem(kind, 2, (2, 1))
    native = vlm.native(pictures, inputs)
    torch.manual_seed(0)
    drawing = InterleavedGenerator(
        vlm.model, SETTINGS[0], vlm.tokenizer, lambda scores, row, look: vlm.model.selector.draw(scores)
    )
    given = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": NEW}
    result = drawing.generate(inputs, native=native, do_sample=True, num_return_sequences=2, **given)
    assert len(result.answers) == 4
    for n, answer in enumerate(result.answers):
        alone = vlm.row(inputs, n // 2)
        own = vlm.native([pictures[n // 2]], alone)
        batch = build_batch(vlm.layout, alone, [answer], 0, LabelRule(next_token=True), own)
        with torch.no_grad():
            output = vlm.model(batch)
        generated = torch.stack(result.output.logits, 1)[n, : len(output.logits)]
        allowed = generated > -torch.inf
        assert close(generated[allowed], output.logits[allowed])


# Zooming to drawn boxes

ZOOM = InterleaveSettings(heading="<BOX_END>", max_looks=4, resolution="native", look_tokens=12, region="boxes")


def test_a_look_zooms_to_the_boxes_that_were_just_drawn() -> None:
    looks = 0
    for seed in range(4):
        vlm, pictures, inputs = problem("llava", seed, (1, 1))
        vlm.boost(vlm.vocabulary.start_id("boxes"), 3.0)
        eos = vlm.tokenizer.eos_token_id
        grammar = SpanGrammar(vlm.vocabulary, eos_id=eos, banned_ids=(vlm.layout.image_id,), max_boxes=1)
        processor = SpanLogitsProcessor(grammar, max_length=inputs["input_ids"].shape[1] + 30)
        native = vlm.native(pictures, inputs)
        looking = InterleavedGenerator(vlm.model, ZOOM, vlm.tokenizer, vocabulary=vlm.vocabulary)
        torch.manual_seed(seed)
        given = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 30, "do_sample": True}
        result = looking.generate(inputs, native=native, logits_processor=[processor], **given)
        for row, answer in enumerate(result.answers):
            text = list[int]()
            for part in answer:
                if isinstance(part, Look):
                    (*_, span) = (one for one in vlm.vocabulary.parse(text) if isinstance(one, Span))
                    assert text[-1] == vlm.vocabulary.end_id("boxes")
                    boxes = BoxTokenizer(vlm.vocabulary.num_locations).decode(span.codes)
                    assert part.tokens == native.tokens_of(row, boxes) and bool(part.tokens) == bool(span.codes)
                    looks += len(part.tokens)
                else:
                    text.append(part)
        batch = build_batch(vlm.layout, inputs, result.answers, 0, LabelRule(next_token=True), native)
        with torch.no_grad():
            output = vlm.model(batch)
        steps = torch.stack(result.output.logits, 1)
        counts = [len(written(answer, vlm, HEADINGS)) for answer in result.answers]
        generated = torch.cat([steps[row, :count] for row, count in enumerate(counts)])
        allowed = generated > -torch.inf
        assert close(generated[allowed], output.logits[allowed])
    assert looks > 3


def test_boxes_are_of_the_whole_image_where_the_processor_crops_it() -> None:
    vlm = TinyVLM("llava")
    pictures = [[Image.new("RGB", (96, 48))], [Image.new("RGB", (48, 48))], []]
    native = vlm.native(pictures, vlm.prompts(pictures))
    # The left half of the middle square of the wide image; all of the left half of the square one.
    assert native.tokens_of(0, np.array([[0.25, 0.0, 0.5, 1.0]])) == (0, 2)
    assert native.tokens_of(1, np.array([[0.0, 0.0, 0.5, 1.0]])) == (0, 2)
    assert native.tokens_of(1, np.zeros((0, 4))) == ()
    with pytest.raises(ValueError, match="row 2 has 0 images"):
        native.tokens_of(2, np.array([[0.0, 0.0, 0.5, 1.0]]))


def test_half_a_box_shows_nothing_and_what_cannot_be_zoomed_is_refused() -> None:
    vlm, pictures, inputs = problem("llava", 0, (1,))
    with pytest.raises(ValueError, match="pass vocabulary="):
        InterleavedGenerator(vlm.model, ZOOM, vlm.tokenizer)
    with pytest.raises(ValueError, match="boxes with resolution 'native' only"):
        InterleaveSettings(region="boxes")
    always = replace(ZOOM, heading="^")  # looks before anything is drawn
    looking = InterleavedGenerator(vlm.model, always, vlm.tokenizer, vocabulary=vlm.vocabulary)
    found = looking.generate(inputs, native=vlm.native(pictures, inputs), max_new_tokens=2, do_sample=False)
    assert found.inserted == [[0]]


# Bad input


def test_what_would_look_at_a_wrong_region_is_refused() -> None:
    vlm, pictures, inputs = problem("llava", 0)
    with pytest.raises(ValueError, match="native resolution, and generate got no original images"):
        write(vlm, SETTINGS[0], inputs)
    with pytest.raises(ValueError, match="seen resolution, and generate got the original images"):
        write(vlm, HEADINGS, inputs, native=vlm.native(pictures, inputs))
    with pytest.raises(ValueError, match="3 prompts and original images of 2"):
        vlm.native(pictures[:2], inputs)
    other = [[Image.new("RGB", (40, 40))], *pictures[1:]]
    with pytest.raises(ValueError, match="an image was changed after the question"):
        vlm.native(other, inputs)
    with pytest.raises(ValueError, match="budget of 0"):
        vlm.native(pictures, inputs, 0)
    with pytest.raises(ValueError, match="resolution must be one of"):
        InterleaveSettings(resolution="high")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no pixel_values"):
        vlm.native(pictures, {"input_ids": inputs["input_ids"]})
    build = {name: value[:2] if name != "pixel_values" else value[:3] for name, value in inputs.items()}
    with pytest.raises(ValueError, match="2 prompts and original images of 3"):
        build_batch(vlm.layout, build, [[1], [1]], 0, native=vlm.native(pictures, inputs))


def test_an_image_changed_behind_the_question_is_not_looked_at() -> None:
    vlm, pictures, inputs = problem("llava", 0)
    native = vlm.native(pictures, inputs)
    pictures[0][0].paste((0, 0, 0), (0, 0, 80, 80))
    before = native.images[0].image
    assert np.array(before).max() > 0, "looks cut from a copy"
    with pytest.raises(ValueError, match="an image was changed after the question"):
        vlm.native(pictures, inputs)


def test_models_that_read_an_image_in_tiles_say_so() -> None:
    vlm, pictures, inputs = problem("smolvlm", 0, (1,))
    tiled = inputs | {"pixel_values": inputs["pixel_values"].expand(1, 5, -1, -1, -1)}
    with pytest.raises(ValueError, match=r"reads an image in tiles.*do_image_splitting=False"):
        vlm.native(pictures, tiled)
    llava, pictures, inputs = problem("llava", 0, (1,))
    with pytest.raises(ValueError, match="reads an image in tiles"):
        llava.native(pictures, inputs | {"image_sizes": torch.tensor([[40, 40]])})


def test_an_image_seen_whole_is_said_to_have_nothing_new() -> None:
    vlm = TinyVLM("llava")
    small = [[Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (90, 20, 200))]]
    inputs = vlm.prompts(small)
    with pytest.warns(UserWarning, match="bring in nothing new"):
        native = vlm.native(small, inputs)
    batch = build_batch(vlm.layout, inputs, [[1, Look((0, 1, 2, 3)), 2]], 0, native=native)
    with torch.no_grad():
        first, again = (VisualFeatures.encode(vlm.hf, images).tokens for images in (batch.images, batch.crops))
    assert torch.allclose(first, again, atol=1e-5)


def test_an_empty_selection_brings_nothing_and_a_full_one_the_budget() -> None:
    vlm, pictures, inputs = problem("qwen2_vl", 0, (1,))
    native = vlm.native(pictures, inputs, 10)
    count = int((inputs["input_ids"] == vlm.layout.image_id).sum())
    batch = build_batch(vlm.layout, inputs, [[1, Look(()), 2]], 0, native=native)
    assert not batch.crops and int((batch.sources >= 0).sum()) == count
    full = build_batch(vlm.layout, inputs, [[1, Look(tuple(range(count))), 2]], 0, native=native)
    assert 1 <= int((full.sources >= count).sum()) <= 10


def test_rows_without_an_image_look_at_nothing() -> None:
    vlm, pictures, inputs = problem("llava", 0, (0, 1))
    result = write(
        vlm, SETTINGS[0], inputs, native=NativeImages(vlm.image_processor, pictures, inputs, vlm.layout.image_id)
    )
    assert sum(result.inserted[0]) == 0
