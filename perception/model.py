"""`PerceptionModel`: a vision-language model that draws depth maps and boxes as tokens on the way to its answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from perception.chains import Answer, ChatPrompt, prompt_for, read_ids
from perception.grammar import SpanGrammar, SpanLogitsProcessor
from perception.vocabulary import PerceptionVocabulary

ImageLike = Any
"""A path, a PIL image, or a (H, W, 3) uint8 array or tensor."""

_FILES = ("config.json", "model.safetensors", "perception_vocabulary.json")


def load_image(image: ImageLike) -> Image.Image:
    """An RGB PIL image from a path, a PIL image, or a (H, W, 3) uint8 array or tensor.

    Raises:
        ValueError: naming the file that is missing, is no image, or is corrupt; or the shape that was given.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        if not path.is_file():
            raise ValueError(f"{path} does not exist or is not a file; give the path of an image")
        try:
            with Image.open(path) as opened:
                return opened.convert("RGB")
        except UnidentifiedImageError:
            raise ValueError(f"{path} is not an image in a known format; give a PNG or JPEG file") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is a corrupt image ({error}); save it anew or give another") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} is too large an image ({error}); scale it down") from error
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    array = image.numpy() if isinstance(image, Tensor) else image
    if getattr(array, "ndim", 0) != 3 or array.shape[2] != 3 or str(array.dtype) != "uint8":
        raise ValueError(
            f"an image array must be (H, W, 3) uint8, got {getattr(array, 'shape', type(array).__name__)} "
            f"{getattr(array, 'dtype', '')}"
        )
    return Image.fromarray(array)


@dataclass(frozen=True)
class Prompt:
    """One row of a batch: an image, the question as it is put, its kind, and ids the answer must begin with."""

    image: ImageLike
    question: str
    kind: str | None = None
    forced: tuple[int, ...] = ()


class PerceptionModel:
    """A transformers image-text-to-text model, its processor, its perception vocabulary and its depth tokenizer."""

    def __init__(self, model: Any, processor: Any, vocabulary: PerceptionVocabulary, depth_tokenizer: Any = None):
        vocabulary.check(model, processor.tokenizer)
        self.model = model.eval()
        self.processor = processor
        self.vocabulary = vocabulary
        self.depth_tokenizer = depth_tokenizer
        self.prompt = ChatPrompt.from_processor(processor)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu", dtype: Any = torch.float32):
        """Loads a folder written by `save_pretrained` or by `train.aurora`, or a hub name.

        Raises:
            ValueError: naming the file that is missing, half written, or does not match its weights.
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from vqvae import VQVAE

        folder = Path(path)
        if folder.exists():
            _check_folder(folder)
        elif str(path).startswith((".", "/")) or str(path).count("/") != 1:
            raise ValueError(f"{path} does not exist; give the folder of a trained model or a hub name")
        else:
            from huggingface_hub import snapshot_download

            folder = Path(snapshot_download(str(path)))
        vocabulary = PerceptionVocabulary.load(folder)
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).to(device)
        depth = folder / "depth_tokenizer"
        return cls(model, processor, vocabulary, VQVAE.from_pretrained(depth).eval() if depth.exists() else None)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a stock transformers folder with the vocabulary and the depth tokenizer beside it."""
        self.model.save_pretrained(path)
        self.processor.save_pretrained(path)
        if self.depth_tokenizer is not None:
            self.depth_tokenizer.save_pretrained(Path(path) / "depth_tokenizer")
        self.vocabulary.save(path)

    def ask(self, image: ImageLike, question: str, mode: str = "auto", max_new_tokens: int = 256) -> Answer:
        """Answers one question about one image.

        Args:
            image: a path, a PIL image, or a (H, W, 3) uint8 array.
            question: plain text; names of perception tokens inside it stay plain text.
            mode: "chain" draws perception first, "direct" answers at once, "auto" draws where the question calls for it.
            max_new_tokens: room for the whole answer; a depth map takes its grid and two tokens.

        Raises:
            ValueError: for a bad image, an empty question, an unknown mode, or a chain that fits no question.
        """
        text, kind = prompt_for(question, mode)
        return self.answer([Prompt(image, text, kind)], max_new_tokens=max_new_tokens)[0]

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Left-padded ids (B, T), their mask, and the image tensors of a batch of prompts."""
        tokenizer = self.processor.tokenizer
        rows, extras = [], []
        for prompt in prompts:
            head, extra = self.prompt.head_ids(self.processor, load_image(prompt.image))
            tail = self.prompt.tail_ids(tokenizer, self.vocabulary, prompt.question)
            rows.append(head + tail + list(prompt.forced))
            extras.append(extra)
        longest, pad = max(len(r) for r in rows), tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(r)) + r for r in rows])
        mask = torch.tensor([[0] * (longest - len(r)) + [1] * len(r) for r in rows])
        images = {name: torch.cat([e[name] for e in extras]) for name in extras[0]}
        device = self.model.device
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device)} | {
            k: v.to(device, self.model.dtype) if v.is_floating_point() else v.to(device) for k, v in images.items()
        }

    @torch.no_grad()
    def generate_ids(self, prompts: Sequence[Prompt], max_new_tokens: int = 256, **kwargs: Any) -> list[list[int]]:
        """Generated ids of each prompt, forced ids included, the end of sequence and padding left off.

        Decoding is greedy under the span grammar; `kwargs` go to `generate`.
        """
        inputs = self.inputs(prompts)
        width = inputs["input_ids"].shape[1]
        tokenizer = self.processor.tokenizer
        grammar = SpanGrammar(self.vocabulary, eos_id=tokenizer.eos_token_id)
        processor = SpanLogitsProcessor(grammar, max_length=width + max_new_tokens)
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens} | kwargs
        out = self.model.generate(**inputs, logits_processor=[processor], **settings)
        stop = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        answers = []
        for prompt, row in zip(prompts, out[:, width:].tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in stop), len(row))
            answers.append(list(prompt.forced) + row[:end])
        return answers

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int = 256, **kwargs: Any) -> list[Answer]:
        """Answers of a batch of prompts; see `generate_ids`."""
        rows = self.generate_ids(prompts, max_new_tokens, **kwargs)
        tokenizer = self.processor.tokenizer
        return [
            read_ids(tokenizer, self.vocabulary, ids, prompt.kind) for ids, prompt in zip(rows, prompts, strict=True)
        ]


def _check_folder(folder: Path) -> None:
    missing = [name for name in _FILES if not (folder / name).exists()]
    if "model.safetensors" in missing and (folder / "model.safetensors.index.json").exists():
        missing.remove("model.safetensors")
    if missing:
        raise ValueError(
            f"{folder} is not a finished perception model: {', '.join(missing)} missing; "
            "train one with `python -m train.aurora` or copy the whole folder anew"
        )
    _check_safetensors(folder)


def _check_safetensors(folder: Path) -> None:
    """Refuses files that were cut short: the header states where the last tensor ends."""
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little") if len(start) == 8 else -1
            text = file.read(length) if 0 < length < size else b""
        try:
            header = json.loads(text)
            end = 8 + length + max((v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"), default=0)
        except (ValueError, KeyError):
            end = -1
        if end != size:
            raise ValueError(f"{path} is half written or corrupt ({size} bytes); copy it anew or train again")
