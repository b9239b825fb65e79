"""Interleaved generation against teacher-forced forwards of the whole chain, for every class of model, in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_vlms import KINDS, TinyVLM
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from perception.decoding.cache_slots import cache_given
from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import SpanLogitsProcessor
from perception.interleave.chains import InterleavedModel, LabelRule, Look, build_batch, look_ids
from perception.interleave.context import InterleavedContext
from perception.interleave.generation import InterleavedGeneration, InterleavedGenerator
from perception.interleave.native import NativeImages
from perception.interleave.triggers import InterleaveSettings
from perception.interleave.visual_tokens import gather_columns

TOLERANCE = 2e-4
"""Of logits and scores in float32; the random models' logits are about 10 in size"""
HEADINGS = InterleaveSettings("headings", heading=r"[a-m]", max_looks=4)
GENERATED = InterleaveSettings("generated", max_looks=4)
SETTINGS = (HEADINGS, GENERATED)
NEW = 14


def generator(vlm: TinyVLM, settings: InterleaveSettings, **given: Any) -> InterleavedGenerator:
    return InterleavedGenerator(vlm.model, settings, vlm.tokenizer, **given)


def write(vlm: TinyVLM, settings: InterleaveSettings, inputs: dict[str, Tensor], **given: Any) -> InterleavedGeneration:
    asked = {"max_new_tokens": NEW, "do_sample": False} | given
    return generator(vlm, settings).generate(inputs, **asked)


def written(answer: list[int | Look], vlm: TinyVLM, settings: InterleaveSettings) -> list[int]:
    """What of an answer the model wrote itself."""
    looks = [vlm.layout.interleave_id] if settings.trigger == "generated" else []
    return [i for part in answer for i in (looks if isinstance(part, Look) else [part])]


def spelled(answer: list[int | Look], vlm: TinyVLM) -> list[int]:
    """Ids of an answer with all that was put in."""
    return [
        i for part in answer for i in (look_ids(len(part.tokens), vlm.layout) if isinstance(part, Look) else [part])
    ]


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=TOLERANCE, rtol=TOLERANCE)


def assert_teacher_forced(vlm: TinyVLM, settings: InterleaveSettings, result: Any, output: Any) -> None:
    """The logits that an answer was generated from are those of a forward pass over it."""
    steps = torch.stack(result.output.logits, 1)  # (B, steps, V)
    counts = [len(written(answer, vlm, settings)) for answer in result.answers]
    generated = torch.cat([steps[row, :count] for row, count in enumerate(counts)])  # (T, V)
    assert generated.shape == output.logits.shape
    allowed = generated > -torch.inf
    assert close(generated[allowed], output.logits[allowed])


@torch.no_grad()
def recompute(
    vlm: TinyVLM, settings: InterleaveSettings, inputs: dict[str, Tensor], native: NativeImages | None = None
) -> list[int | Look]:
    """One row's answer with a forward over the whole chain for each token and each look: no cache, no generate."""
    answer: list[int | Look] = []
    text: list[int] = []
    trigger = generator(vlm, settings).heading

    def read(extra: list[int]) -> tuple[Tensor, Tensor]:
        batch = build_batch(vlm.layout, inputs, [[*answer, *extra]], 0, native=native)
        return vlm.model.hidden(batch), batch.visual_columns

    while True:
        looks = sum(isinstance(part, Look) for part in answer)
        if looks < (settings.max_looks or 0):
            due = text[-1:] == [vlm.layout.interleave_id] if trigger is None else trigger.fires(text)
            if due:
                if trigger is None:
                    answer.pop()
                hidden, columns = read([vlm.layout.interleave_id])
                scores = vlm.model.selector(hidden[:, -1:], gather_columns(hidden, columns))[0, 0]
                answer.append(Look(tuple(vlm.model.selector.select(scores).nonzero()[:, 0].tolist())))
                looks += 1
        if len(text) == NEW or vlm.tokenizer.eos_token_id in text:
            return answer
        logits = vlm.hf.get_output_embeddings()(read([])[0][0, -1])
        logits[list(vlm.layout.reserved)] = -torch.inf
        if trigger is not None or looks == settings.max_looks:
            logits[vlm.layout.interleave_id] = -torch.inf
        text.append(int(logits.argmax()))
        answer.append(text[-1])


def without_last_look(answer: list[int | Look], vlm: TinyVLM, settings: InterleaveSettings) -> list[int | Look]:
    """Generation ends with the last token written, before a look would follow it."""
    if isinstance(answer[-1], Look):
        return answer[:-1] + ([vlm.layout.interleave_id] if settings.trigger == "generated" else [])
    return answer


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.trigger)
@pytest.mark.parametrize("kind", KINDS)
def test_cached_batches_write_what_full_recomputation_writes(kind: str, settings: InterleaveSettings) -> None:
    selected = []
    for seed in range(3):
        vlm = TinyVLM(kind, seed)
        inputs = vlm.inputs(seed)
        result = write(vlm, settings, inputs)
        for row, answer in enumerate(result.answers):
            expected = recompute(vlm, settings, vlm.row(inputs, row))
            assert answer == without_last_look(expected, vlm, settings)
            alone = write(vlm, settings, vlm.row(inputs, row))
            assert alone.answers[0] == answer
            selected += [len(part.tokens) for part in answer if isinstance(part, Look)]
        assert write(vlm, settings, inputs, use_cache=False).answers == result.answers
    assert len(selected) >= 5 and sum(selected) > 0, "the test has no looks to speak of"


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.trigger)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_scores_of_every_step_are_the_teacher_forced_ones(kind: str, settings: InterleaveSettings) -> None:
    for seed in range(3, 6):
        vlm = TinyVLM(kind, seed)
        inputs = vlm.inputs(seed)
        given = {"return_dict_in_generate": True, "output_logits": True, "do_sample": True}
        torch.manual_seed(seed)
        result = write(vlm, settings, inputs, **given)
        rule = LabelRule(interleave=settings.trigger == "generated", next_token=True)
        batch = build_batch(vlm.layout, inputs, result.answers, 0, rule)
        with torch.no_grad():
            output = vlm.model(batch)
        assert_teacher_forced(vlm, settings, result, output)
        for row, looks in enumerate(result.look_scores):
            for n, scores in enumerate(looks):
                assert close(scores, output.scores[row, n, : len(scores)])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_look_hold_up_no_other(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many forwards as the row with most tokens and looks needs, whenever the rows look, and the same answers as
    where all rows wait (which a returned output asks for)."""
    feeds: list[int] = []
    feed = InterleavedContext.feed

    def counted(self: InterleavedContext, ids: Any, *rest: Any) -> Any:
        feeds.append(len(ids))
        return feed(self, ids, *rest)

    looks = 0
    for seed in range(3):
        vlm = TinyVLM(kind, seed)
        inputs = vlm.inputs(seed)
        abreast = write(vlm, HEADINGS, inputs, return_dict_in_generate=True).answers
        with monkeypatch.context() as patch:
            patch.setattr(InterleavedContext, "feed", counted)
            feeds.clear()
            assert write(vlm, HEADINGS, inputs).answers == abreast
        parts = [[isinstance(part, Look) for part in answer] for answer in abreast]
        brought = [sum(isinstance(p, Look) and bool(p.tokens) for p in answer) for answer in abreast]
        needed = max(row.count(False) - 1 + more for row, more in zip(parts, brought, strict=True))
        assert needed <= len(feeds) <= needed + 1, "a look behind the prompt itself is fed before the first token"
        looks += sum(brought)
    assert looks >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_each_token_of_the_longest_row_once(kind: str) -> None:
    vlm = TinyVLM(kind)
    inputs = vlm.inputs(0)
    result = write(vlm, HEADINGS, inputs, return_dict_in_generate=True)
    prompts = inputs["attention_mask"].sum(1).tolist()
    lengths = []
    for prompt, answer in zip(prompts, result.answers, strict=True):
        lengths.append(prompt + len(spelled(answer, vlm)) - 1)  # the last token is written and never read
    assert result.peak_slots == cache_given(result.output).get_seq_length() == max(lengths)
    assert write(vlm, HEADINGS, inputs).peak_slots <= max(lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_keys_and_values_are_those_of_one_forward(kind: str) -> None:
    vlm = TinyVLM(kind, 1)
    inputs = vlm.row(vlm.inputs(1), 1)
    often = InterleaveSettings("headings", heading=r"^|\w", max_looks=4)
    halves = generator(vlm, often, choose=lambda scores, row, look: scores > scores.median())
    result = halves.generate(inputs, return_dict_in_generate=True, max_new_tokens=NEW, do_sample=False)
    cache = cache_given(result.output)
    full: dict[int, Tensor] = {}
    hooks = []
    for n, layer in enumerate(vlm.hf.get_decoder().layers):
        projection = layer.self_attn.v_proj
        hooks.append(projection.register_forward_hook(lambda m, i, out, n=n: full.__setitem__(n, out.detach())))
    with torch.no_grad():
        vlm.model.hidden(build_batch(vlm.layout, inputs, result.answers, 0))
    for hook in hooks:
        hook.remove()
    assert any(isinstance(part, Look) and part.tokens for part in result.answers[0])
    for n, layer in enumerate(cache.layers):
        cached = layer.values.transpose(1, 2).flatten(2)  # (1, slots, heads * width)
        assert close(cached, full[n][:, :-1])


@pytest.mark.parametrize("kind", KINDS)
def test_without_looks_it_is_plain_generate_and_plain_generate_stays_what_it_was(kind: str) -> None:
    vlm = TinyVLM(kind)
    inputs = vlm.inputs(0)
    plain_inputs = dict(inputs)
    if kind.startswith("qwen"):
        plain_inputs["mm_token_type_ids"] = (inputs["input_ids"] == vlm.layout.image_id).int()
    reserved = [*vlm.layout.reserved, vlm.layout.interleave_id]
    plain = {"max_new_tokens": NEW, "do_sample": False, "suppress_tokens": reserved}
    before = vlm.hf.generate(**plain_inputs, **plain)
    never = InterleaveSettings("headings", max_looks=0)
    assert torch.equal(write(vlm, never, inputs).sequences, before)
    write(vlm, HEADINGS, vlm.inputs(1, (2, 1)))
    assert torch.equal(vlm.hf.generate(**plain_inputs, **plain), before)


@pytest.mark.parametrize("kind", ("llava", "qwen3_vl", "smolvlm"))
def test_rows_look_at_their_own_images_only(kind: str) -> None:
    vlm = TinyVLM(kind)
    inputs = vlm.inputs(0, (1, 2))
    own = [int((row == vlm.layout.image_id).sum()) for row in inputs["input_ids"]]
    everything = generator(vlm, HEADINGS, choose=lambda scores, row, look: torch.ones_like(scores, dtype=torch.bool))
    result = everything.generate(inputs, max_new_tokens=NEW, do_sample=False)
    for row, answer in enumerate(result.answers):
        assert {part.tokens for part in answer if isinstance(part, Look)} <= {tuple(range(own[row]))}
        assert all(len(scores) == own[row] for scores in result.look_scores[row])
    other = {name: value.clone() for name, value in inputs.items()}
    if kind == "qwen3_vl":
        other["pixel_values"][-16:] += 1  # some of the last row's last image
    else:
        other["pixel_values"][-1] += 1
    changed = everything.generate(other, max_new_tokens=NEW, do_sample=False)
    assert changed.answers[0] == result.answers[0] and changed.answers[1] != result.answers[1]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.trigger)
def test_reserved_ids_are_never_written(settings: InterleaveSettings) -> None:
    class Force(LogitsProcessor):
        """Lets nothing but reserved ids through."""

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            forced = torch.full_like(scores, -torch.inf)
            forced[:, list(vlm.layout.reserved)] = 5.0
            return forced

    vlm = TinyVLM("qwen2_vl")
    for token in vlm.layout.reserved:
        vlm.boost(token, 3.0)
    reserved = set(vlm.layout.reserved) | ({vlm.layout.interleave_id} if settings is HEADINGS else set())
    assert {vlm.layout.image_id, *vlm.layout.before, *vlm.layout.after} <= reserved
    for processors in ([], [Force()]):
        result = write(vlm, settings, vlm.inputs(0), do_sample=True, top_k=1, logits_processor=processors)
        for answer in result.answers:
            assert reserved.isdisjoint(part for part in answer if not isinstance(part, Look))


def test_a_streamer_gets_what_is_written_and_a_stock_call_works() -> None:
    class Keep:
        def __init__(self) -> None:
            self.ids: list[int] = []
            self.ended = False

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    vlm = TinyVLM("llava")
    inputs = vlm.row(vlm.inputs(0), 1)
    streamer = Keep()
    result = write(vlm, HEADINGS, inputs, streamer=streamer)
    assert streamer.ended
    text = [part for part in result.answers[0] if not isinstance(part, Look)]
    assert streamer.ids == inputs["input_ids"][0].tolist() + text and len(text) < len(result.answers[0])
    stock = vlm.hf.generate(**inputs, custom_generate=generator(vlm, HEADINGS), max_new_tokens=NEW, do_sample=False)
    assert torch.equal(stock, result.sequences)


def test_the_end_of_sequence_criteria_and_limits_are_kept() -> None:
    class SeesText(StoppingCriteria):
        """Stops behind 5 tokens; looks at the text as `generate` would show it."""

        def __call__(self, input_ids: Tensor, scores: Any, **given: Any) -> Tensor:
            seen.append(input_ids)
            return torch.full((len(input_ids),), input_ids.shape[1] >= width + 5)

    vlm = TinyVLM("qwen2_5_vl")
    inputs, eos = vlm.inputs(0), vlm.tokenizer.eos_token_id
    width = inputs["input_ids"].shape[1]
    seen: list[Tensor] = []
    result = write(vlm, HEADINGS, inputs, stopping_criteria=[SeesText()])
    assert [len(written(answer, vlm, HEADINGS)) for answer in result.answers] == [5, 5, 5]
    assert [text.shape[1] - width for text in seen] == [1, 2, 3, 4, 5]
    vlm.boost(eos)
    ended = 0
    for seed in range(4):
        inputs = vlm.inputs(seed)
        torch.manual_seed(seed)
        result = write(vlm, HEADINGS, inputs, do_sample=True, max_new_tokens=30)
        for row, answer in enumerate(result.answers):
            text = written(answer, vlm, HEADINGS)
            ended += text[-1] == eos
            assert text.index(eos) == len(text) - 1 if eos in text else len(text) == 30
            sequence = [
                i
                for part in answer
                for i in (look_ids(len(part.tokens), vlm.layout) if isinstance(part, Look) else [part])
            ]
            rest = result.sequences[row, inputs["input_ids"].shape[1] :].tolist()
            assert rest == sequence + [vlm.tokenizer.pad_token_id] * (len(rest) - len(sequence))
    assert ended >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_several_answers_a_prompt_are_sampled_with_their_own_images(kind: str) -> None:
    vlm = TinyVLM(kind, 2)
    inputs = vlm.inputs(2, (2, 1))
    torch.manual_seed(0)
    drawing = generator(vlm, HEADINGS, choose=lambda scores, row, look: vlm.model.selector.draw(scores))
    given = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": NEW}
    result = drawing.generate(inputs, do_sample=True, num_return_sequences=2, **given)
    assert len(result.answers) == 4 and result.answers[0] != result.answers[1]
    for n, answer in enumerate(result.answers):
        batch = build_batch(vlm.layout, vlm.row(inputs, n // 2), [answer], 0, LabelRule(next_token=True))
        with torch.no_grad():
            output = vlm.model(batch)
        generated = torch.stack(result.output.logits, 1)[n, : len(output.logits)]
        allowed = generated > -torch.inf
        assert close(generated[allowed], output.logits[allowed])


def test_perception_spans_and_looks_stand_in_one_chain() -> None:
    looks = spans = 0
    for seed in range(4):
        vlm = TinyVLM("llava", seed)
        names = vlm.vocabulary
        for token in [names.start_id(m) for m in ("depth", "boxes", "points")]:
            vlm.boost(token)
        eos = vlm.tokenizer.eos_token_id
        grammar = SpanGrammar(names, eos_id=eos, interleave=True, banned_ids=(vlm.layout.image_id,))
        inputs = vlm.inputs(seed)
        processor = SpanLogitsProcessor(grammar, max_length=inputs["input_ids"].shape[1] + 40)
        torch.manual_seed(seed)
        result = write(
            vlm, GENERATED, inputs, logits_processor=[processor], do_sample=True, temperature=2.0, max_new_tokens=40
        )
        for answer in result.answers:
            text = written(answer, vlm, GENERATED)
            assert grammar.accepts(text)
            looks += sum(isinstance(part, Look) for part in answer)
            spans += sum(not isinstance(part, int) for part in names.parse(text))
    assert looks > 3 and spans > 3


def test_headings_place_looks_where_the_trigger_says() -> None:
    vlm = TinyVLM("llava")
    settings = InterleaveSettings("headings", heading=r"^|\n|Step \d+:", max_looks=None)
    trigger = generator(vlm, settings).heading
    assert trigger is not None
    ids = vlm.tokenizer.encode("Find A.\nStep 1: so\n\nStep 12: B", add_special_tokens=False)
    places = [n for n in range(len(ids) + 1) if trigger.fires(ids[:n])]
    before = [vlm.tokenizer.decode(ids[:place]) for place in places]
    lines, headings = "Find A.\nStep 1: so\n\nStep 12: B", ("Step 1:", "Step 12:")
    assert before == [
        *("", "Find A.\n", "Find A.\nStep 1:", "Find A.\nStep 1: so\n", "Find A.\nStep 1: so\n\n"),
        lines[: lines.index(headings[1]) + len(headings[1])],
    ]
    result = write(vlm, settings, vlm.inputs(0), do_sample=True, max_new_tokens=40)
    for answer in result.answers:
        text = [part for part in answer if not isinstance(part, Look)]
        before = [n for n, part in enumerate(answer) if isinstance(part, Look)]
        fired = [n for n in range(len(text) + 1) if trigger.fires(text[:n])]
        assert before and fired[: len(before)] == [n - k for k, n in enumerate(before)]
        assert set(fired[len(before) :]) <= {len(text)}, "an answer that is full looks no more"


def test_what_cannot_be_is_refused() -> None:
    vlm = TinyVLM("qwen2_vl")
    inputs = vlm.inputs(0)
    with pytest.raises(ValueError, match="num_beams=2"):
        write(vlm, HEADINGS, inputs, num_beams=2)
    mask = inputs["attention_mask"].clone()
    mask[0, -1] = 0
    with pytest.raises(ValueError, match="padded on the left"):
        write(vlm, HEADINGS, inputs | {"attention_mask": mask})
    with pytest.raises(ValueError, match="dynamic cache"):
        write(vlm, HEADINGS, inputs, cache_implementation="static")
    with pytest.raises(ValueError, match="the image grid does not match"):
        grid, pixels = inputs["image_grid_thw"], inputs["pixel_values"]
        write(vlm, HEADINGS, inputs | {"image_grid_thw": grid[:-1], "pixel_values": pixels[: -int(grid[-1].prod())]})
    with pytest.raises(ValueError, match="patches and pixel_values holds"):
        write(vlm, HEADINGS, inputs | {"pixel_values": inputs["pixel_values"][:-4]})
    other = TinyVLM("llava")
    inputs = other.inputs(0)
    with pytest.raises(ValueError, match="16 image placeholders and the images give 12"):
        write(other, HEADINGS, inputs | {"pixel_values": inputs["pixel_values"][:-1]})
    with pytest.raises(ValueError, match="choose must return"):
        generator(other, HEADINGS, choose=lambda scores, row, look: scores).generate(inputs, max_new_tokens=NEW)
    with pytest.raises(ValueError, match="tokenizer="):
        InterleavedGenerator(other.model)
    with pytest.raises(ValueError, match="trigger must be one of"):
        InterleaveSettings("sometimes")
    with pytest.raises(ValueError, match="regular expression"):
        InterleaveSettings(heading="(")


def test_rows_without_an_image_look_at_nothing() -> None:
    vlm = TinyVLM("llava")
    inputs = vlm.inputs(0, (0, 1))
    result = write(vlm, HEADINGS, inputs)
    assert [part.tokens for part in result.answers[0] if isinstance(part, Look)] == [()] * len(result.look_scores[0])
    assert isinstance(vlm.model, InterleavedModel)
