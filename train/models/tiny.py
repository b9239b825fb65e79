"""The untrained tiny model: a standard LLaVA with a Swin tower and a small Llama, its tokenizer and its processor.

The tower is transformers' Swin, not timm's: `TimmWrapper` returns feature maps as (B, C, H, W), which LLaVA's projector
(a linear layer over the last axis) cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SwinConfig,
)

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from train.tower import fourier_code

IMAGE_SIZE = 80
NUM_IMAGE_TOKENS = 100
BOS, EOS, PAD, IMAGE = "<s>", "</s>", "<pad>", "<image>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ ' ASSISTANT:' }}{% else %}"
    "{{ ' ' + (message['content'] if message['content'] is string else message['content'][0]['text']) + eos_token }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class TinySize:
    """Sizes of the text model."""

    hidden_size: int = 192
    num_layers: int = 5
    num_heads: int = 6
    intermediate_size: int = 512
    text_vocab_size: int = 640


def train_text_tokenizer(corpus: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on `corpus`. Any text round-trips; words and numbers of the corpus are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, IMAGE],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, image_size: int = IMAGE_SIZE) -> LlavaProcessor:
    """Build a processor that resizes any image to a square, ignoring its aspect ratio, and scales it to [-1, 1].

    Args:
        image_size: side of the square in pixels; a tenth of it is the side of a visual token.
    """
    image_processor = SiglipImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=image_size // 10,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, vision: SwinConfig, size: TinySize
) -> LlavaForConditionalGeneration:
    """Build an untrained LLaVA with tied embeddings and 100 tokens per image."""
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden_size,
        intermediate_size=size.intermediate_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=NUM_IMAGE_TOKENS,
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


# Initial weights of the tiny model, with reasons. With transformers' defaults (std 0.02 everywhere) its answers hardly
# depended on the image after about 2,600 steps of 16 rows on the whole mixture. With these weights, on the first stage
# of `train.base`, it found a single marker within 200 steps of 32 rows. (Observed during development; the two were not
# compared side by side, and no benchmark repeats it.)
#
#   text layers         std 0.05    0.02 suits widths near 1,000; at width 192 every layer would have almost no effect
#   ... q_proj, k_proj  std 0.10    attention that starts uniform over a hundred visual tokens sees only their mean
#   projector, layer 1  1/sqrt(D)   on centred, unit features: most of the tower's output is the same in every cell
#   projector, layer 2  1/sqrt(D)   makes visual tokens differ as much as words do
#   embeddings          std 0.02    numbers on a smooth curve (`start_numbers`)


@torch.no_grad()
def start_layers(model: LlavaForConditionalGeneration, pixels: Tensor) -> None:
    """Initialize text layers and projector as in the table above; `pixels` (B, 3, 80, 80) give the tower's features."""
    for name, weight in model.model.language_model.layers.named_parameters():
        if weight.ndim == 2:
            weight.mul_(5.0 if name.split(".")[-2] in ("q_proj", "k_proj") else 2.5)
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1].flatten(0, 1)  # (B * N, D)
    start_projector(model.model.multi_modal_projector, features)


@torch.no_grad()
def start_projector(projector: Any, features: Tensor) -> None:
    """Initialize a projector for a tower's `features` (N, D) as in the table above."""
    mean, spread = features.mean(0), (features - features.mean(0)).std()
    first, second = projector.linear_1, projector.linear_2
    first.weight.normal_(0, first.in_features**-0.5).div_(spread)
    first.bias.copy_(-first.weight @ mean)
    second.weight.normal_(0, second.in_features**-0.5)
    second.bias.zero_()


@torch.no_grad()
def start_numbers(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Initialize the embeddings of " 0" .. " 99" on a smooth curve: the Fourier code of the place that each names.

    With independent random rows every number would have to be learned separately, with no similarity between
    neighbours. Large language models learn a similar code for numbers; this small model, which mostly reads places,
    starts with it.
    """
    weight = model.get_input_embeddings().weight
    ids = [tokenizer.encode(f" {n}", add_special_tokens=False)[0] for n in range(100)]
    code = torch.from_numpy(fourier_code((np.arange(100)[:, None] + 0.5) / 100))  # (100, 16)
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(weight.shape[1], code.shape[1], generator=generator))[0]  # (D, 16) orthonormal
    rows = weight[ids]
    spread = (weight - weight.mean(0)).norm(dim=1).mean()
    weight[ids] = rows.mean(0) + (code @ axes.T) * (spread / code.norm(dim=1).mean())
