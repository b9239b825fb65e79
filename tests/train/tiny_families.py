"""Every family of vision-language models, random and tiny: its own classes, its own processor, its own special tokens.

The shapes are the families': packed patches (Qwen), patches of several resolutions (LLaVA-OneVision), several images a
picture (Idefics3, InternVL), bidirectional prefixes (Gemma3, PaliGemma).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HIDDEN = 32
SIDE = 32  # pixels of an image as the towers see it
TEXT = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "max_position_embeddings": 2048}
TOWER = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWER |= {"image_size": SIDE, "patch_size": 8}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
WORDS = "USER: How many red cubes are there? Draw their boxes first. ASSISTANT: 12 34 56 A B C D, so A."


def text_tokenizer(special: dict[str, str], bos: str | None, eos: str) -> hf.PreTrainedTokenizerFast:
    """A byte-level BPE with the family's special tokens, by the names that its processor asks for."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    names = list(dict.fromkeys(["<pad>", *([bos] if bos else []), eos, *special.values()]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=names, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([WORDS] * 8, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        pad_token="<pad>",
        extra_special_tokens=special,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def chat(image: str, begin: str = "", user: str = "USER: ", after: str = " ASSISTANT:") -> str:
    """A chat template in the form the families have them."""
    part = f"{{% if part['type'] == 'image' %}}{image}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
    parts = f"{{% for part in message['content'] %}}{part}{{% endfor %}}"
    return f"{begin}{{% for message in messages %}}{user}{parts}{{% endfor %}}{after}"


IM_CHAT = {"user": "<|im_start|>user\n", "after": "<|im_end|>\n<|im_start|>assistant\n"}
IM_TOKENS = {"im_start_token": "<|im_start|>", "im_end_token": "<|im_end|>"}


def _text_settings(tokenizer: Any, tied: bool, spare_rows: int) -> dict[str, Any]:
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return TEXT | ids | {"vocab_size": len(tokenizer) + spare_rows, "tie_word_embeddings": tied}


def _ready(model: Any, tokenizer: Any) -> Any:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def build_llava(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    tokenizer = text_tokenizer({"image_token": "<image>"}, "<s>", "</s>")
    images = hf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor = hf.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat("<image>\n"),
    )
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**TOWER, projection_dim=HIDDEN),
        text_config=hf.LlamaConfig(**_text_settings(tokenizer, tied, spare_rows)),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-2,
        image_seq_length=16,
        tie_word_embeddings=tied,
    )
    return _ready(hf.LlavaForConditionalGeneration(config), tokenizer), processor


def build_onevision(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    special = {"image_token": "<image>", "video_token": "<video>", **IM_TOKENS}
    tokenizer = text_tokenizer(special, None, "<|im_end|>")
    pinpoints = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=pinpoints, **HALF
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": SIDE, "width": SIDE}, **HALF),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=chat("<image>\n", **IM_CHAT),
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Qwen2Config(**_text_settings(tokenizer, tied, spare_rows)),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=tied,
    )
    return _ready(hf.LlavaOnevisionForConditionalGeneration(config), tokenizer), processor


QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    **IM_TOKENS,
}


def _qwen(kind: str, vision: dict[str, Any], text: dict[str, Any], patch: int, tied: bool, spare: int) -> Any:
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL are built alike."""
    tokenizer = text_tokenizer(QWEN_TOKENS, None, "<|im_end|>")
    pixels = {"min_pixels": SIDE * SIDE, "max_pixels": 2 * SIDE * SIDE, "patch_size": patch}
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=hf.Qwen2VLImageProcessor(**pixels),
        tokenizer=tokenizer,
        video_processor=(hf.Qwen3VLVideoProcessor if kind == "Qwen3VL" else hf.Qwen2VLVideoProcessor)(patch_size=patch),
        chat_template=chat("<|vision_start|><|image_pad|><|vision_end|>", **IM_CHAT),
    )
    settings = _text_settings(tokenizer, tied, spare) | text
    config = getattr(hf, f"{kind}Config")(
        vision_config=vision,
        text_config=settings,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
        tie_word_embeddings=tied,
    )
    return _ready(getattr(hf, f"{kind}ForConditionalGeneration")(config), tokenizer), processor


_ROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}


def build_qwen2(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    vision = {"embed_dim": HIDDEN, "hidden_size": HIDDEN, "depth": 2, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    return _qwen("Qwen2VL", vision, {"rope_parameters": _ROPE}, 8, tied, spare_rows)


def build_qwen2_5(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    vision = {"hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "depth": 2, "num_heads": 2, "patch_size": 8}
    vision |= {"intermediate_size": 48, "window_size": 32, "fullatt_block_indexes": [1]}
    return _qwen("Qwen2_5_VL", vision, {"rope_parameters": _ROPE}, 8, tied, spare_rows)


def build_qwen3(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    vision = {"hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "depth": 2, "num_heads": 2, "patch_size": 8}
    vision |= {"intermediate_size": 48, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    return _qwen("Qwen3VL", vision, {"rope_parameters": _ROPE, "head_dim": 16}, 8, tied, spare_rows)


def _idefics(kind: str, tied: bool, spare_rows: int) -> tuple[Any, Any]:
    special = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global": "<global-img>"}
    special |= {"end_of_utterance_token": "<end_of_utterance>"}
    special |= {f"row_{r}_{c}": f"<row_{r}_col_{c}>" for r in (1, 2) for c in (1, 2)}
    tokenizer = text_tokenizer(special, "<|im_start|>", "<end_of_utterance>")
    images = getattr(hf, f"{kind}ImageProcessor")(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}, do_image_splitting=True, **HALF
    )
    more = {"video_processor": hf.SmolVLMVideoProcessor()} if kind == "SmolVLM" else {}
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=images,
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat("<image>", "<|im_start|>", "User:", "<end_of_utterance>\nAssistant:"),
        **more,
    )
    config = getattr(hf, f"{kind}Config")(
        vision_config=TOWER,
        text_config=hf.LlamaConfig(**_text_settings(tokenizer, tied, spare_rows)),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _ready(getattr(hf, f"{kind}ForConditionalGeneration")(config), tokenizer), processor


def build_smolvlm(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    return _idefics("SmolVLM", tied, spare_rows)


def build_idefics3(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    return _idefics("Idefics3", tied, spare_rows)


def build_internvl(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = text_tokenizer(special | {"video_token": "<video>", **IM_TOKENS}, None, "<|im_end|>")
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(
            size={"height": SIDE, "width": SIDE}, crop_to_patches=True, min_patches=1, max_patches=3, **HALF
        ),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size={"height": SIDE, "width": SIDE}, **HALF),
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>\n", **IM_CHAT),
    )
    tower = TOWER | {"image_size": [SIDE, SIDE], "patch_size": [8, 8]}
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower),
        text_config=hf.Qwen2Config(**_text_settings(tokenizer, tied, spare_rows)),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=tied,
    )
    return _ready(hf.InternVLForConditionalGeneration(config), tokenizer), processor


def build_gemma3(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    special = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = text_tokenizer(special | {"turn": "<start_of_turn>", "turn_end": "<end_of_turn>"}, "<bos>", "<eos>")
    processor = hf.Gemma3Processor(
        image_processor=hf.Gemma3ImageProcessor(size={"height": SIDE, "width": SIDE}, **HALF),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chat(
            "<start_of_image>",
            "{{ bos_token }}",
            "<start_of_turn>user\n",
            "<end_of_turn>\n<start_of_turn>model\n",
        ),
    )
    text = _text_settings(tokenizer, tied, spare_rows) | {"head_dim": 16, "query_pre_attn_scalar": 16}
    text |= {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False),
        text_config=hf.Gemma3TextConfig(**text),
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        mm_tokens_per_image=4,
        tie_word_embeddings=tied,
    )
    return _ready(hf.Gemma3ForConditionalGeneration(config), tokenizer), processor


def build_paligemma(tied: bool, spare_rows: int) -> tuple[Any, Any]:
    """As published it has no chat template: an image, the beginning of sequence, the question, a line break."""
    tokenizer = text_tokenizer({"image_token": "<image>"}, "<bos>", "<eos>")
    images = hf.SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, **HALF)
    images.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    text = _text_settings(tokenizer, tied, spare_rows) | {"head_dim": 16}
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**TOWER, vision_use_head=False, projection_dim=HIDDEN),
        text_config=hf.GemmaConfig(**text),
        image_token_id=tokenizer.image_token_id,
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        tie_word_embeddings=tied,
    )
    return _ready(hf.PaliGemmaForConditionalGeneration(config), tokenizer), processor


def build_mllama() -> tuple[Any, Any]:
    """Llama 3.2 Vision, which is not among the families: cross-attention, and eight rows more in the input table."""
    tokenizer = text_tokenizer({"image_token": "<|image|>"}, "<s>", "</s>")
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size={"height": SIDE, "width": SIDE}, max_image_tiles=2, **HALF),
        tokenizer=tokenizer,
        chat_template=chat("<|image|>"),
    )
    vision = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2, "attention_heads": 2}
    vision |= {"num_global_layers": 1, "vision_output_dim": 2 * HIDDEN, "image_size": SIDE, "patch_size": 8}
    vision |= {"max_num_tiles": 2, "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2]]}
    text = _text_settings(tokenizer, False, 0) | {"cross_attention_layers": [1]}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.image_token_id)
    return _ready(hf.MllamaForConditionalGeneration(config), tokenizer), processor


FAMILIES: dict[str, Callable[[bool, int], tuple[Any, Any]]] = {
    "llava": build_llava,
    "llava_onevision": build_onevision,
    "qwen2_vl": build_qwen2,
    "qwen2_5_vl": build_qwen2_5,
    "qwen3_vl": build_qwen3,
    "smolvlm": build_smolvlm,
    "idefics3": build_idefics3,
    "internvl": build_internvl,
    "gemma3": build_gemma3,
    "paligemma": build_paligemma,
}


def save_family(name: str, folder: Path, tied: bool = False, spare_rows: int = 0) -> Path:
    """A base model's folder. Its layers are spread widely, so that random answers differ from each other."""
    torch.manual_seed(0)
    model, processor = FAMILIES[name](tied, spare_rows)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
