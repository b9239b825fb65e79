"""Tiny random models and tokenizers, built in memory, one layer each."""

from __future__ import annotations

import json

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
)

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN_SIZE = 16
IMAGE_SIZE = 16
NUM_IMAGE_TOKENS = 4


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of about 290 tokens: any text round-trips."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["How many red cubes are there? 12 34 56 USER: ASSISTANT:"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_sentencepiece(legacy: bool) -> LlamaTokenizer:
    """LLaVA-1.5's kind of tokenizer: a space before every text (before the first alone unless legacy), and bytes."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=special, show_progress=False)
    said = "How many red cubes are there? Draw their boxes first. USER: ASSISTANT: 3. 57, so A. B C D 12 46 89 0"
    backend.train_from_iterator([said] * 4, trainer)
    learned = json.loads(backend.to_str())["model"]
    names = [*learned["vocab"], *(f"<0x{byte:02X}>" for byte in range(256))]
    return LlamaTokenizer(
        vocab={name: number for number, name in enumerate(names)},
        merges=[tuple(pair) for pair in learned["merges"]],
        pad_token="<pad>",
        legacy=legacy,
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def build_sentencepiece_processor(legacy: bool, chat_template: str) -> LlavaProcessor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=SiglipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer=build_sentencepiece(legacy),
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=chat_template,
    )


def _llama_config(tokenizer: PreTrainedTokenizerFast, tied: bool, spare_rows: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer) + spare_rows,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_llama(tokenizer: PreTrainedTokenizerFast, tied: bool = False, spare_rows: int = 0) -> LlamaForCausalLM:
    """A random Llama; `spare_rows` embedding rows beyond the tokenizer, as padded vocabularies have them."""
    torch.manual_seed(0)
    return LlamaForCausalLM(_llama_config(tokenizer, tied, spare_rows)).eval()


def build_llava(
    tokenizer: PreTrainedTokenizerFast, tied: bool = False, spare_rows: int = 0
) -> LlavaForConditionalGeneration:
    """A random LLaVA that sees a (3, 16, 16) image as 4 tokens."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=HIDDEN_SIZE,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=8,
        projection_dim=HIDDEN_SIZE,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=_llama_config(tokenizer, tied, spare_rows),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_IMAGE_TOKENS,
        tie_word_embeddings=tied,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def image_inputs(tokenizer: PreTrainedTokenizerFast, questions: list[str], begun: str = "") -> dict[str, torch.Tensor]:
    """Left-padded inputs of the tiny LLaVA, a random image a question; `begun` begins the last one's answer."""
    texts = ["USER: " + "<image>" * NUM_IMAGE_TOKENS + question + " ASSISTANT:" for question in questions]
    texts[-1] += begun
    inputs = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(len(texts), 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "pixel_values": pixels}
