"""What ships, on the device at hand: the GPU where there is one (`python -m pytest -m gpu`), else the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from perception.chains import prompt_for
from perception.decoding.decoder import DecodingTrace
from perception.evaluation.scenes import scene_items
from perception.interleave.generation import InterleavedGenerator
from perception.model.devices import find_device
from perception.model.perception_model import PerceptionModel, Prompt
from perception.model.shipped import shipped
from perception.scenes.render import render_scenes
from train.data.geometry import GeometryData, draw_problems
from train.interleave import read_interleaved
from vqvae import VQVAE

pytestmark = pytest.mark.gpu
DEVICE = find_device()
on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="counts the GPU's memory")
NEW = 160


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU float32 convolutions use 10 bits of the mantissa by default, which moves codes at the edge of two."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def prompts(count: int) -> list[Prompt]:
    """Depth and counting questions, taking turns."""
    depth, counting = scene_items("shifted", 0, count, 97_000_000)[:count], scene_items("shifted", count, 0, 97_000_000)
    items = [item for pair in zip(depth, counting, strict=True) for item in pair][:count]
    return [Prompt(i.image, prompt_for(i.question, "chain")[0], i.kind) for i in items]


@pytest.mark.parametrize("name", ["depth-scenes-100", "depth-scenes-100-nested"])
def test_codes_are_the_cpu_s(name: str) -> None:
    depth = render_scenes(range(97_000_000, 97_000_016), "shifted", 96).depth
    here, there = (VQVAE.from_pretrained(shipped(name)).eval().to(device) for device in (torch.device("cpu"), DEVICE))
    codes = here.encode(depth)
    same = (there.encode(depth.to(DEVICE)).cpu() == codes).float().mean()
    assert same >= 0.999, "a cell between two codes may fall on either side"
    torch.testing.assert_close(there.decode(codes.to(DEVICE)).cpu(), here.decode(codes), rtol=0, atol=1e-3)


def last_logits(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Logits (B, V) behind the prompts, in float32 on the CPU."""
    model = PerceptionModel.from_pretrained(shipped("aurora-tiny"), device, dtype)
    with torch.inference_mode():
        return model.model(**model.inputs(prompts(4))).logits[:, -1].float().cpu()


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 0.01), (torch.float16, 0.2), (torch.bfloat16, 1.0)])
def test_logits_in_every_precision_are_near_the_cpu_s(dtype: torch.dtype, near: float) -> None:
    torch.testing.assert_close(
        last_logits(DEVICE, dtype), last_logits(torch.device("cpu"), torch.float32), rtol=0, atol=near
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fast_decoding_writes_the_ids_of_plain_decoding_under_the_grammar(dtype: torch.dtype) -> None:
    model, asked = PerceptionModel.from_pretrained(shipped("aurora-tiny"), DEVICE, dtype), prompts(2)
    fast = model.generate_ids(asked, NEW)
    assert fast == model.generate_ids(asked, NEW, fast=False)
    vocabulary, (of_depth, of_count) = model.vocabulary, fast
    cells = of_depth[1 : 1 + vocabulary.depth_length]
    assert of_depth[0] == vocabulary.start_id("depth") and set(cells) <= set(vocabulary.code_ids("depth"))
    assert of_depth[1 + len(cells)] == vocabulary.end_id("depth")
    assert of_count.count(vocabulary.start_id("boxes")) == of_count.count(vocabulary.end_id("boxes")) == 1


def test_interleaved_cached_generation_is_the_recomputed_one() -> None:
    folder = read_interleaved(shipped("geometry-tiny"))
    folder.model.to(DEVICE).eval()
    problems = list(draw_problems(GeometryData(split="test", count=2, seed=5)))
    inputs = {name: value.to(DEVICE) for name, value in folder.encoder.inputs(problems).items()}
    generator = InterleavedGenerator(folder.model, folder.settings, folder.processor.tokenizer)
    cached, anew = (
        generator.generate(inputs, max_new_tokens=80, do_sample=False, use_cache=use_cache).answers
        for use_cache in (True, False)
    )
    assert cached == anew and all(cached)


@on_a_gpu
def test_fast_decoding_takes_at_most_a_fifth_more_memory_than_plain_decoding() -> None:
    """1.13 times on an H200: 153.8 MB, 135.7 MB with plain decoding."""
    model, asked = PerceptionModel.from_pretrained(shipped("aurora-tiny"), DEVICE), prompts(16)
    peaks = []
    for fast in (False, True):
        torch.cuda.reset_peak_memory_stats()
        model.generate_ids(asked, NEW, fast=fast)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] <= 1.2 * peaks[0]


def test_several_tokens_are_confirmed_per_forward_pass() -> None:
    model, asked, trace = PerceptionModel.from_pretrained(shipped("aurora-tiny"), DEVICE), prompts(1), DecodingTrace()
    model.decoder.decode(model.inputs(asked), [[]], NEW, model.stop_ids, trace=trace)
    assert trace.confirmed > 2 * trace.forwards
