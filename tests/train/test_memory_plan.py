"""The memory table: what layers keep is counted on real ones, and the rest is arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from train.memory_plan import SHAPES, ModelShape, RunPlan, layer_bytes, memory_plan, table


def kept_bytes(model: Any, tokens: int) -> int:
    """Of everything that a forward keeps for its backward pass, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=False, logits_to_keep=1)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    return sum(size for place, size in sizes.items() if place not in parameters)


@pytest.mark.parametrize(("kind", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_layers_keep_what_is_calculated(kind: Any, config: Any, checkpointing: bool) -> None:
    kept = {}
    for layers in (1, 3):
        shape = ModelShape(64, layers, 4, 2, 112, 64, False)
        model = kind(config(**shape.settings)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        kept[layers] = kept_bytes(model, 192) - kept_bytes(model, 128)  # without what does not grow with the tokens
    a_layer = (kept[3] - kept[1]) / 64 / 2
    assert a_layer == (4 * shape.hidden if checkpointing else layer_bytes(shape, RunPlan()))


def test_parameters_are_counted() -> None:
    for tied in (True, False):
        shape = ModelShape(64, 2, 4, 2, 112, 96, tied)
        assert sum(p.numel() for p in LlamaForCausalLM(LlamaConfig(**shape.settings)).parameters()) == shape.params
    sizes = [shape.params / 1e9 for shape in SHAPES.values()]
    assert [round(size, 1) for size in sizes] == [3.8, 7.0, 13.3]


def test_more_devices_lora_and_checkpoints_take_less() -> None:
    shape = SHAPES["7B (LLaVA-1.5)"]
    plain = memory_plan(shape, RunPlan()).total
    assert memory_plan(shape, RunPlan(checkpointing=True)).total < plain
    assert memory_plan(shape, RunPlan(devices=8)).total < plain
    assert memory_plan(shape, RunPlan(lora_rank=128)).total < plain
    found = table()
    assert found["13B (LLaVA-1.5)"]["LoRA 128, 1 device"] < 80 < found["7B (LLaVA-1.5)"]["whole, 1 device"]
