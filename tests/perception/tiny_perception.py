"""A whole `PerceptionModel`, random and as small as they come."""

from __future__ import annotations

import torch
from tiny_models import IMAGE_SIZE, build_llava, build_tokenizer
from transformers import LlavaProcessor, SiglipImageProcessor

from perception.model.perception_model import PerceptionModel
from perception.vocabulary.names import PerceptionVocabulary
from vqvae import VQVAE, VQVAEConfig

NUM_CODES, GRID, NUM_LOCATIONS = 8, (2, 2), 10
CHAT_TEMPLATE = (
    "USER: {% for part in messages[0]['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
)


def build_depth_tokenizer(codebook_size: int = NUM_CODES) -> VQVAE:
    """Random, 2 x 2 codes."""
    torch.manual_seed(0)
    config = VQVAEConfig(image_size=16, downsample=8, codebook_size=codebook_size, codebook_dim=4, channels=8)
    return VQVAE(config).eval()


def build_perception(seed: int = 0) -> PerceptionModel:
    """Random, with 2 x 2 depth codes of 8 and 10 location bins; other seeds give other output layers."""
    tokenizer = build_tokenizer()
    model = build_llava(tokenizer)
    vocabulary = PerceptionVocabulary(NUM_CODES, GRID, NUM_LOCATIONS).extend(model, tokenizer)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.lm_head.weight.normal_()  # rows of their own for the new tokens, so that spans are begun now and then
    processor = LlavaProcessor(
        image_processor=SiglipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    return PerceptionModel(model, processor, vocabulary, build_depth_tokenizer())
