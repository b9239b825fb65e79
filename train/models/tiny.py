"""The tiny model from nothing: a stock LLaVA with a Swin tower and a small Llama, its tokenizer and its processor.

The tower is a Swin transformer of transformers, not a timm one: `TimmWrapper` hands out feature maps as (B, C, H, W),
which LLaVA's projector (a linear layer over the last axis) cannot read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
    """A byte-level BPE over `corpus`: any text round-trips; words and numbers of the corpus are single tokens."""
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


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Any image is squashed to 80 x 80 and scaled to [-1, 1]."""
    image_processor = SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, vision: SwinConfig, size: TinySize
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA with tied embeddings that sees an image as 100 tokens."""
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


# How an untrained tiny model begins, and why. With transformers' defaults (std 0.02 everywhere) its answers hardly
# depended on the image after some 2,600 steps of 16 rows on the whole mixture; begun like this, on the first stage of
# `train.base`, it found a single marker within 200 steps of 32. (Seen while developing; the two were not run side by
# side, and no benchmark repeats it.)
#
#   text layers         std 0.05    0.02 is made for widths near 1,000; at 192 every layer is next to nothing
#   ... q_proj, k_proj  std 0.10    attention that starts uniform over a hundred visual tokens sees their mean alone
#   projector, layer 1  1/sqrt(D)   on centred, unit features: most of the tower's output is the same in every cell
#   projector, layer 2  1/sqrt(D)   so that visual tokens differ as much as words do
#   embeddings          std 0.02    numbers on a smooth curve (`start_numbers`)


@torch.no_grad()
def start_layers(model: LlavaForConditionalGeneration, pixels: Tensor) -> None:
    """Scales the text layers, and fits the projector to the features of `pixels` (B, 3, 80, 80), as tabled above."""
    for name, weight in model.model.language_model.layers.named_parameters():
        if weight.ndim == 2:
            weight.mul_(5.0 if name.split(".")[-2] in ("q_proj", "k_proj") else 2.5)
    features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-1].flatten(0, 1)  # (B * N, D)
    mean, spread = features.mean(0), (features - features.mean(0)).std()
    first, second = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    first.weight.normal_(0, first.in_features**-0.5).div_(spread)
    first.bias.copy_(-first.weight @ mean)
    second.weight.normal_(0, second.in_features**-0.5)
    second.bias.zero_()


@torch.no_grad()
def start_numbers(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Puts the embeddings of " 0" .. " 99" on a smooth curve: the Fourier code of the place each names.

    As independent random rows every number has to be learned on its own, and neighbours know nothing of each other.
    Large language models end up with such a code for numbers; a small one that reads places all day may begin with it.
    """
    weight = model.get_input_embeddings().weight
    ids = [tokenizer.encode(f" {n}", add_special_tokens=False)[0] for n in range(100)]
    code = torch.from_numpy(fourier_code((np.arange(100)[:, None] + 0.5) / 100))  # (100, 16)
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(weight.shape[1], code.shape[1], generator=generator))[0]  # (D, 16) orthonormal
    rows = weight[ids]
    spread = (weight - weight.mean(0)).norm(dim=1).mean()
    weight[ids] = rows.mean(0) + (code @ axes.T) * (spread / code.norm(dim=1).mean())
