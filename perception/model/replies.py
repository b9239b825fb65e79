"""What a folder tells other engines about its model's replies: how to decode them, where they end, what they show."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

from perception.chains import ChatPrompt

_KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "cache_implementation",
    "max_length",
    "max_new_tokens",
)


def decode_plainly(model: Any) -> None:
    """Drop the settings of a model's generation config that choose or change its scores.

    A chat model may come with a penalty of repeated tokens or with sampling. Spans repeat their codes, so a penalty
    would change what is drawn, and reinforcement would train other probabilities than those that tokens were drawn by.
    """
    if model.can_generate():
        own = model.generation_config
        model.generation_config = GenerationConfig(**{name: getattr(own, name, None) for name in _KEPT})


def know_end(model: Any, tokenizer: Any) -> None:
    """Add the tokenizer's end of sequence, which answers are trained to end with, to the model's generation config.

    Engines that read this config alone then stop there, too. The model's own ids are kept.
    """
    if not model.can_generate():
        return
    settings, end = model.generation_config, tokenizer.eos_token_id
    own = settings.eos_token_id
    if own is None:
        settings.eos_token_id = end
    elif end not in (known := [own] if isinstance(own, int) else list(own)):
        settings.eos_token_id = [end, *known]
    if settings.pad_token_id is None:
        settings.pad_token_id = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def keep_spans_in_replies(model: Any, processor: Any) -> None:
    """Let transformers' server write perception tokens in its replies; without a template it leaves special tokens out.

    Qwen's models have a template of their own there, which keeps them and reads tool calls, too.
    """
    tokenizer = processor.tokenizer
    begin = ChatPrompt.from_processor(processor).after.strip()
    if not begin or getattr(tokenizer, "response_template", None) or model.config.model_type.startswith("qwen"):
        return
    content = {"close": [tokenizer.eos_token], "content": "text"}
    tokenizer.response_template = {
        "defaults": {"role": "assistant"}, "start_anchor": begin, "fields": {"content": content}
    }  # fmt: skip
