"""Tiny random vision-language models of every class that interleaved reasoning supports, and prompts for them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny_models import build_tokenizer
from torch import Tensor

from perception.interleave.chains import InterleavedModel
from perception.interleave.native import NativeImages
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.visual_tokens import VisualLayout
from perception.vocabulary.names import PerceptionVocabulary

KINDS = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm")
HIDDEN_SIZE, PATCH, IMAGE_SIZE = 32, 4, 16
GRIDS = ((4, 4), (4, 8), (8, 4))
"""Patches of Qwen-VL's images, height and width; merged two by two"""
_MARKERS = {
    "llava": (),
    "qwen": ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>"),
    "idefics": ("<fake_token_around_image>", "<global-img>"),
}
_TEXT = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "initializer_range": 0.35,
}
_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


class TinyVLM:
    """A random model of a class, its selector, tokenizer and vocabulary, and how its prompts are made."""

    def __init__(self, kind: str, seed: int = 0, projector: str = "linear"):
        self.kind = kind
        self.tokenizer = build_tokenizer()
        family = "qwen" if kind.startswith("qwen") else "llava" if kind == "llava" else "idefics"
        self.tokenizer.add_tokens(list(_MARKERS[family]), special_tokens=True)
        torch.manual_seed(seed)
        self.hf = _build(kind, self.tokenizer).eval()
        vocabulary = PerceptionVocabulary(depth_codes=4, depth_grid=(2, 2), num_locations=6)
        self.vocabulary = vocabulary.extend(self.hf, self.tokenizer)
        self.hf.generation_config.eos_token_id = self.tokenizer.eos_token_id
        self.hf.generation_config.pad_token_id = self.tokenizer.pad_token_id
        self.layout = VisualLayout.of(self.hf, self.vocabulary.interleave_id, self.tokenizer)
        selector = VisualTokenSelector.for_model(self.hf, projector=projector)
        torch.nn.init.normal_(selector.embedding)
        self.boost(self.vocabulary.interleave_id)
        self.model = InterleavedModel(self.hf, selector, self.layout).eval()

    def boost(self, token: int, scale: float = 1.2) -> None:
        """Lets the model write a token often, and at places that depend on what it has read."""
        torch.nn.init.normal_(self.hf.get_output_embeddings().weight.data[token], std=scale)

    def inputs(self, seed: int, images: tuple[int, ...] = (1, 2, 1)) -> dict[str, Tensor]:
        """Left-padded prompts, a row with so many images of random sizes each."""
        rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        rows, pixels, grids = [], [], []
        for count in images:
            row = self.tokenizer.encode("USER: " + rng.choice(["How many", "red cubes", "?"]), add_special_tokens=False)
            for _ in range(count):
                grid = rng.choice(GRIDS)
                visual = [self.layout.image_id] * (grid[0] * grid[1] // 4 if self.kind.startswith("qwen") else 4)
                row += [*self.layout.before, *visual, *self.layout.after]
                row += self.tokenizer.encode("and" * rng.randrange(3), add_special_tokens=False)
                grids.append((1, *grid))
                if self.kind.startswith("qwen"):
                    pixels.append(torch.randn(grid[0] * grid[1], 3 * 2 * PATCH**2, generator=generator))
                else:
                    pixels.append(torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=generator))
            rows.append(row + self.tokenizer.encode(" ASSISTANT:", add_special_tokens=False))
        longest = max(len(row) for row in rows)
        made = {
            "input_ids": torch.tensor([[self.tokenizer.pad_token_id] * (longest - len(r)) + r for r in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
        }
        return made | self._images(pixels, grids, images)

    @property
    def image_processor(self) -> Any:
        """One that gives at most 16 visual tokens per image."""
        if self.kind.startswith("qwen"):
            limits = {"shortest_edge": (2 * PATCH) ** 2 * 4, "longest_edge": (2 * PATCH) ** 2 * 16}
            return transformers.Qwen2VLImageProcessor(size=limits, patch_size=PATCH, merge_size=2)
        if self.kind == "llava":
            edge = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
            return transformers.CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=edge)
        name = "Idefics3" if self.kind == "idefics3" else "SmolVLM"
        edge = {"longest_edge": IMAGE_SIZE}
        return getattr(transformers, f"{name}ImageProcessor")(size=edge, max_image_size=edge, do_image_splitting=False)

    def pictures(self, seed: int, images: tuple[int, ...] = (1, 2, 1)) -> list[list[Image.Image]]:
        """Images of random sizes, larger than the model sees them, so many per row."""
        rng = np.random.default_rng(seed)
        return [
            [Image.fromarray(rng.integers(0, 256, (*rng.integers(36, 80, 2), 3), np.uint8)) for _ in range(count)]
            for count in images
        ]

    def prompts(self, pictures: list[list[Image.Image]], seed: int = 0) -> dict[str, Tensor]:
        """Left-padded prompts about images, as the image processor makes them."""
        rng, flat = random.Random(seed), [picture for row in pictures for picture in row]
        views = [row for row in pictures if row] if self.kind in ("idefics3", "smolvlm") else flat
        made = dict(self.image_processor(images=views, return_tensors="pt"))
        sizes = (
            [int(one) // 4 for one in made["image_grid_thw"].prod(1)] if "image_grid_thw" in made else [4] * len(flat)
        )
        rows, counts = [], iter(sizes)
        for row in pictures:
            ids = self.tokenizer.encode("USER: " + rng.choice(["How many", "red cubes", "?"]), add_special_tokens=False)
            for _ in row:
                ids += [*self.layout.before, *[self.layout.image_id] * next(counts), *self.layout.after]
            rows.append(ids + self.tokenizer.encode(" ASSISTANT:", add_special_tokens=False))
        longest = max(len(row) for row in rows)
        return {
            "input_ids": torch.tensor([[self.tokenizer.pad_token_id] * (longest - len(r)) + r for r in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows]),
            **{name: value for name, value in made.items() if isinstance(value, Tensor)},
        }

    def native(self, pictures: list[list[Image.Image]], inputs: dict[str, Tensor], budget: int = 12) -> NativeImages:
        return NativeImages(self.image_processor, pictures, inputs, self.layout.image_id, budget)

    def _images(self, pixels: list[Tensor], grids: list[Any], counts: tuple[int, ...]) -> dict[str, Tensor]:
        if self.kind.startswith("qwen"):
            return {"pixel_values": torch.cat(pixels), "image_grid_thw": torch.tensor(grids)}
        if self.kind == "llava":
            return {"pixel_values": torch.stack(pixels)}
        padded = torch.zeros(len(counts), max(counts), 3, IMAGE_SIZE, IMAGE_SIZE)
        rest = iter(pixels)
        for row, count in enumerate(counts):
            for n in range(count):
                padded[row, n] = next(rest)
        return {"pixel_values": padded}

    def row(self, inputs: dict[str, Tensor], row: int) -> dict[str, Tensor]:
        """One row of `inputs` alone, without its padding."""
        real = inputs["attention_mask"][row].bool()
        one = {name: inputs[name][row : row + 1, real] for name in ("input_ids", "attention_mask")}
        markers = inputs["input_ids"] == self.layout.image_id
        if self.kind.startswith("qwen"):
            tokens = (inputs["image_grid_thw"].prod(1) // 4).cumsum(0)
            before, own = int(markers[:row].sum()), int(markers[row].sum())
            mine = (tokens > before) & (tokens <= before + own)
            patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist())
            chosen = torch.cat([p for p, m in zip(patches, mine.tolist(), strict=True) if m])
            return one | {"pixel_values": chosen, "image_grid_thw": inputs["image_grid_thw"][mine]}
        if self.kind == "llava":
            first, own = int(markers[:row].sum()) // 4, int(markers[row].sum()) // 4
            return one | {"pixel_values": inputs["pixel_values"][first : first + own]}
        return one | {"pixel_values": inputs["pixel_values"][row : row + 1, : int(markers[row].sum()) // 4]}


def _build(kind: str, tokenizer: Any) -> Any:
    ids = tokenizer.get_vocab()
    text = _TEXT | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if kind == "llava":
        tower = transformers.CLIPVisionConfig(**_TOWER, image_size=IMAGE_SIZE, patch_size=8, projection_dim=16)
        config = transformers.LlavaConfig(
            vision_config=tower,
            text_config=transformers.LlamaConfig(**text),
            image_token_id=ids["<image>"],
            vision_feature_layer=-1,
            tie_word_embeddings=False,
        )
        return transformers.LlavaForConditionalGeneration(config)
    if kind in ("idefics3", "smolvlm"):
        name = "Idefics3" if kind == "idefics3" else "SmolVLM"
        config = getattr(transformers, f"{name}Config")(
            vision_config=_TOWER | {"image_size": IMAGE_SIZE, "patch_size": PATCH, "initializer_range": 0.3},
            text_config=transformers.LlamaConfig(**text),
            image_token_id=ids["<image>"],
            scale_factor=2,
            tie_word_embeddings=False,
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)
    return _build_qwen(kind, text, ids)


def _build_qwen(kind: str, text: dict[str, Any], ids: dict[str, int]) -> Any:
    shared = {"depth": 2, "num_heads": 2, "patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2}
    own: dict[str, dict[str, Any]] = {
        "qwen2_vl": {"embed_dim": 16, "hidden_size": HIDDEN_SIZE, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "hidden_size": 16,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 32,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        "qwen3_vl": {
            "hidden_size": 16,
            "out_hidden_size": HIDDEN_SIZE,
            "intermediate_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    }
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[kind]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    config = getattr(transformers, f"{name}Config")(
        text_config=text | {"rope_parameters": rope},
        vision_config=shared | own[kind] | {"initializer_range": 0.3},
        image_token_id=ids["<image>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)
