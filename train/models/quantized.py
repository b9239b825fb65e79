"""QLoRA: the language model's frozen linear layers in 4 bits (NF4, bitsandbytes), LoRA on top in float32.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314. Embeddings, output layer, projector
and vision tower keep bfloat16: rows are added to the first two, and the others are small.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.models.parts import language_linears


def check_quantizing() -> None:
    """Raise ValueError where weights cannot be quantised: without an NVIDIA GPU or bitsandbytes."""
    if not torch.cuda.is_available():
        raise ValueError("base_precision nf4 needs an NVIDIA GPU, and none is found; take base_precision bf16")
    if find_spec("bitsandbytes") is None:
        raise ValueError("base_precision nf4 needs bitsandbytes; pip install bitsandbytes, or take base_precision bf16")


def nf4_settings(folder: Path) -> Any:
    """Return the settings with which transformers quantises the language model of a folder as it loads it."""
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    adapted = set(language_linears(model))
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[name for name in linears if name not in adapted],
    )
