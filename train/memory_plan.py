"""Estimates the memory per device for fine-tuning (`python -m train.memory_plan`).

Prints a table for 3B, 7B and 13B models, trained in full or with LoRA, on one device or sharded over eight. The figures
are calculated from the shapes: weights, gradients, AdamW's two averages, the bfloat16 copies that autocast keeps,
activations for the backward pass, and logits. The vision tower is frozen, so it keeps no activations. Not included:
fragmentation of the allocator (allow 10 %) and buffers of the communication library.
`python -m benchmarks.training_memory` compares the estimate with a measured run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from train.loop.command_line import parse_config

GB = 1e9


@dataclass(frozen=True)
class ModelShape:
    """Shape of a language model like Llama or Qwen, with a vision tower."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool
    tower_params: int = 0

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.hidden // self.heads

    @property
    def layer_params(self) -> int:
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def table_params(self) -> int:
        """Parameters of the input and output embeddings."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def params(self) -> int:
        return self.layers * self.layer_params + self.table_params + self.hidden + self.tower_params

    @property
    def settings(self) -> dict[str, Any]:
        """The shape of the language model in the words of transformers' configs (LlamaConfig, Qwen2Config, ...)."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied,
        }

    def lora_params(self, rank: int) -> int:
        """Parameters of adapters on every linear layer."""
        widths = 2 * (self.hidden + self.hidden) + 2 * (self.hidden + self.kv_width)
        return self.layers * rank * (widths + 3 * (self.hidden + self.intermediate))


SHAPES = {
    "3B (Qwen2.5-VL)": ModelShape(2048, 36, 16, 2, 11008, 151936, True, 670_000_000),
    "7B (LLaVA-1.5)": ModelShape(4096, 32, 32, 32, 11008, 32064, False, 304_000_000),
    "13B (LLaVA-1.5)": ModelShape(5120, 40, 40, 40, 13824, 32064, False, 304_000_000),
}


@dataclass(frozen=True)
class RunPlan:
    """How a model is trained."""

    batch_size: int = 8
    """Rows per forward pass"""
    tokens: int = 800
    """Tokens per row"""
    target_tokens: int = 220
    """Tokens per row from the first that is learned on; only these have logits"""
    lora_rank: int = 0
    """0: the whole language model is trained, in float32 under autocast; else its weights are bfloat16 and frozen"""
    checkpointing: bool = False
    devices: int = 1
    """Devices that weights, gradients and averages are sharded over"""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes per device."""

    weights: float
    copies: float
    """bfloat16 copies of weights made by autocast; if sharded, the layers that are gathered at a time"""
    state: float
    """gradients and AdamW's averages of the trained parameters"""
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.copies + self.state + self.activations + self.logits


def layer_bytes(shape: ModelShape, plan: RunPlan) -> int:
    """Bytes per token that a layer keeps for its backward pass.

    Exact for transformers' Llama and Qwen2 with torch's own attention and bfloat16 autocast, without LoRA.

    Inputs of matrices and attention are kept in bfloat16; with float32 weights both norms keep float32.
    """
    norms = 30 if plan.lora_rank == 0 else 20
    kept = norms * shape.hidden + 4 * shape.kv_width + 8 * shape.intermediate + 4 * shape.heads + 8
    adapters = 7 * 2 * plan.lora_rank
    return kept + adapters


def memory_plan(shape: ModelShape, plan: RunPlan) -> MemoryPlan:
    """Peak memory per device: at the end of a forward pass, while the gradients of an earlier one are kept."""
    whole = plan.lora_rank == 0
    width = 4 if whole else 2
    trained = shape.params - shape.tower_params if whole else shape.lora_params(plan.lora_rank)
    tokens, layer = plan.batch_size * plan.tokens, layer_bytes(shape, plan)
    kept = (shape.layers * shape.hidden * width + layer) if plan.checkpointing else shape.layers * layer
    sharded = plan.devices > 1
    gathered = 2 * 2 * shape.layer_params + 2 * shape.table_params  # this layer, the next, and the embeddings
    copies = gathered if sharded else (2 * (shape.params - shape.tower_params) if whole else 0)
    return MemoryPlan(
        weights=width * shape.params / plan.devices,
        copies=copies,
        state=12 * trained / plan.devices + (0 if whole else 4 * trained / plan.devices),  # adapters are float32
        activations=tokens * kept,
        logits=plan.batch_size * plan.target_tokens * shape.vocab * 12,  # float32: logits, their softmax, its gradient
    )


PLANS = {
    "whole, 1 device": RunPlan(checkpointing=True),
    "whole, 8 devices": RunPlan(checkpointing=True, devices=8),
    "LoRA 128, 1 device": RunPlan(lora_rank=128, checkpointing=True),
    "LoRA 128, 8 devices": RunPlan(lora_rank=128, checkpointing=True, devices=8),
}


@dataclass(frozen=True)
class TableConfig:
    """Estimates the memory per device for fine-tuning."""

    batch_size: int = 8
    """rows per forward pass and device: batch_size divided by length_groups of train.finetune"""
    tokens: int = 800
    """tokens per row; an image of LLaVA-1.5 has 576, a depth map 102"""


def table(batch_size: int = 8, tokens: int = 800) -> dict[str, dict[str, float]]:
    """Gigabytes per device, by model and plan."""
    changed = {
        name: RunPlan(batch_size, tokens, min(220, tokens), plan.lora_rank, plan.checkpointing, plan.devices)
        for name, plan in PLANS.items()
    }
    return {
        model: {name: round(memory_plan(shape, plan).total / GB, 1) for name, plan in changed.items()}
        for model, shape in SHAPES.items()
    }


def main(argv: list[str] | None = None) -> None:
    config = parse_config(TableConfig, argv)
    found = table(config.batch_size, config.tokens)
    shown = Table(title=f"GB per device, {config.batch_size} rows of {config.tokens} tokens, activations checkpointed")
    for column in ("model", *PLANS):
        shown.add_column(column, justify="left" if column == "model" else "right")
    for model, row in found.items():
        shown.add_row(model, *(f"{value:.1f}" for value in row.values()))
    Console().print(shown)


if __name__ == "__main__":
    main()
