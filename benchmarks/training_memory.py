"""Compare the memory plan with a measured run (`python -m benchmarks.training_memory`).

Trains a random Llama of some 30 M parameters for two steps of two forward passes, as `train.finetune` trains: float32
weights, bfloat16 autocast, AdamW, with and without checkpointing. Compares its peak memory (the allocator's on a GPU;
on a CPU the process's, minus what it had before the model) with `train.memory_plan`, whose table is written beside it
into `benchmarks/results/training_memory.json`. Takes under a minute on one core.

With --check it writes nothing and exits 1 if calculated and measured memory differ by more than 15 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.bars import Bar, all_met
from perception.model.devices import find_device
from train.loop.memory import peak_memory, release_memory
from train.loop.provenance import ROOT, provenance
from train.memory_plan import ModelShape, RunPlan, memory_plan, table

RESULT = ROOT / "benchmarks" / "results" / "training_memory.json"
SHAPE = ModelShape(384, 12, 6, 6, 1024, 8192, False)
BATCH_SIZE, TOKENS = 8, 128
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000", "OMP_NUM_THREADS": "1"}
"""Makes glibc return freed tensors to the system at once, so that the peak is what was in use"""
MOST_OFF = 15.0
"""Largest difference, in percent"""


def measured_bytes(plan: RunPlan, shape: ModelShape = SHAPE) -> float:
    """Peak memory of two steps in this process, which on a CPU must not have trained anything before.

    With LoRA the adapters are on every linear layer, and the other weights are bfloat16.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**shape.settings)
    device = find_device().type
    LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1, "vocab_size": 64}))  # imports all
    release_memory()
    before = peak_memory().process
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with torch.device(device):
        model: Any = LlamaForCausalLM(config).train()
    if plan.lora_rank:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model.bfloat16(), LoraConfig(r=plan.lora_rank, target_modules="all-linear"))
    if plan.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], fused=True)
    for forward in range(4):
        ids = torch.randint(0, shape.vocab, (plan.batch_size, plan.tokens), device=device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False, logits_to_keep=plan.target_tokens).logits.float()
        loss = F.cross_entropy(logits.transpose(1, 2), ids[:, -plan.target_tokens :])
        del logits
        loss.backward()
        if (
            forward % 2
        ):  # two forwards a step, as batches in groups of like length have: gradients are there in the second
            optimizer.step()
            optimizer.zero_grad()
    return float(torch.cuda.max_memory_allocated() if device == "cuda" else peak_memory().process - before)


def comparison(plan: RunPlan, shape: ModelShape, measured: float) -> dict[str, Any]:
    """Measured bytes of a run beside the plan's."""
    calculated = memory_plan(shape, plan).total
    return {
        "checkpointing": plan.checkpointing,
        "measured_mb": round(measured / 1e6, 1),
        "calculated_mb": round(calculated / 1e6, 1),
        "calculated_over_measured": round(calculated / measured, 3),
    }


def compare() -> list[dict[str, Any]]:
    """Calculated and measured memory, each run in a process of its own."""
    rows = []
    for checkpointing in (False, True):
        plan = RunPlan(BATCH_SIZE, TOKENS, TOKENS // 2, checkpointing=checkpointing)
        words = [sys.executable, "-m", "benchmarks.training_memory", "--one", str(int(checkpointing))]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | GIVE_BACK)
        rows.append(comparison(plan, SHAPE, float(done.stdout.split()[-1])))
    return rows


def bars(rows: list[dict[str, Any]]) -> list[Bar]:
    return [
        Bar(
            f"agreement {'with' if row['checkpointing'] else 'without'} checkpointing",
            100 - 100 * abs(row["calculated_over_measured"] - 1),
            100 - MOST_OFF,
            "%",
        )
        for row in rows
    ]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="check the targets; write nothing")
    parser.add_argument("--one", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.one is not None:
        print(measured_bytes(RunPlan(BATCH_SIZE, TOKENS, TOKENS // 2, checkpointing=bool(given.one))))
        return 0
    rows = compare()
    found = bars(rows)
    for bar in found:
        print(bar.line())
    if not given.check:
        record = {**provenance(), "parameters": SHAPE.params, "measured": rows, "gigabytes_a_device": table()}
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all_met(found) else 1


if __name__ == "__main__":
    sys.exit(main())
