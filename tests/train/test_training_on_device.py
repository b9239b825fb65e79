"""Training on the device at hand: the GPU where there is one (`python -m pytest -m gpu`), else the CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from test_families import CASES, Run
from tiny_families import FAMILIES
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from perception.model.devices import find_device
from train.loop.scalars import to_floats
from train.models.adapters import checkpoint_activations

pytestmark = pytest.mark.gpu
DEVICE = find_device()
FLASH = "flash_attention_2"


def gradients(run: Run, batch: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    """Loss of a batch under bfloat16 autocast, and the gradients that it gives."""
    run.model.zero_grad()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = run.losses(run.model, batch).sum() / batch["weights"].sum()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_of_each_family_lowers_its_loss_with_and_without_checkpointing(family: str, tmp_path: Path) -> None:
    if family == "smolvlm":
        pytest.importorskip("num2words", reason="SmolVLM's processor needs num2words")
    run = Run(family, CASES["untied-padded-lora"], tmp_path)
    run.model.to(DEVICE).train()
    batch = {name: value.to(DEVICE) for name, value in run.batch().items()}
    before, kept = gradients(run, batch)
    checkpoint_activations(run.model)
    again, recomputed = gradients(run, batch)
    assert again == pytest.approx(before, rel=1e-3) and recomputed.keys() == kept.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(
            recomputed[name], gradient, rtol=0.05, atol=0.02 * float(gradient.abs().max()) + 1e-7
        )
    trained = [p for p in run.model.parameters() if p.requires_grad]
    torch.optim.AdamW(trained, lr=3e-3, fused=True).step()
    after, _ = gradients(run, batch)
    assert after < before


def llama(attention: str, dtype: torch.dtype, **changes: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(**settings | changes)
    config._attn_implementation = attention
    return LlamaForCausalLM(config).to(DEVICE, dtype)


@pytest.mark.parametrize("attention", ["sdpa", FLASH])
def test_attention_is_the_written_out_one(attention: str) -> None:
    if attention == FLASH and (DEVICE.type != "cuda" or importlib.util.find_spec("flash_attn") is None):
        pytest.skip("needs a GPU and flash-attn")
    dtype = torch.bfloat16 if attention == FLASH else torch.float32
    ids = torch.randint(64, (3, 17), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    eager, other = (
        llama(name, dtype)(ids, attention_mask=mask).logits[mask.bool()].float() for name in ("eager", attention)
    )
    near = 0.05 if attention == FLASH else 1e-4
    torch.testing.assert_close(other, eager, rtol=near, atol=near)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="counts the GPU's memory")
def test_checkpointing_lowers_the_memory_of_activations() -> None:
    """The peak of a step beyond what is there before it: of eight layers, one at a time is held in full."""
    ids, peaks = torch.randint(64, (16, 512), device=DEVICE), []
    for checkpointing in (False, True):
        model = llama("sdpa", torch.float32, num_hidden_layers=8).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        for _ in range(2):  # the first step allocates the gradients and the libraries' work space
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model(ids, labels=ids).loss.backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 0.5 * peaks[0]


def test_scalars_may_lie_on_several_devices() -> None:
    """Rewards are made on the CPU, losses on the device."""
    scalars = {"loss": torch.tensor(1.5, device=DEVICE), "reward": torch.tensor(0.25), "rows": 3}
    assert to_floats(scalars) == {"loss": 1.5, "reward": 0.25, "rows": 3.0}
