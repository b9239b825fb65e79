"""`PerceptionModel`: a vision-language model that draws depth maps and boxes as tokens on the way to its answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from perception.chains import Answer, ChatPrompt, choose_mode, prompt_for, read_ids
from perception.decoding.decoder import SpanDecoder
from perception.decoding.draft_network import DraftNetwork
from perception.decoding.drafts import DraftBook
from perception.decoding.sampling import Sampling
from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import SpanLogitsProcessor
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.model.image_inputs import (
    accepted_inputs,
    batch_images,
    batch_types,
    pad_rows,
    placeholder_ids,
    token_types,
)
from perception.model.seen_images import SeenFeatures, SeenImage, tag
from perception.vocabulary.names import PerceptionVocabulary

if TYPE_CHECKING:
    from vqvae import VQVAE

ImageLike = Any
"""A path, a PIL image, a (H, W, 3) uint8 array or tensor, or what `PerceptionModel.look` gave for one of them."""


def load_image(image: ImageLike) -> Image.Image:
    """An RGB PIL image from a path, a PIL image, or a (H, W, 3) uint8 array or tensor.

    Raises:
        ValueError: naming the file that is missing, is no image, or is corrupt; or the shape that was given.
    """
    if isinstance(image, SeenImage):
        return image.image
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
    array = image.cpu().numpy() if isinstance(image, Tensor) else image
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or len(shape) != 3 or shape[2] != 3 or 0 in shape or str(dtype) != "uint8":
        got = type(array).__name__ if shape is None else f"{tuple(shape)} {dtype}"
        raise ValueError(f"an image array must be (H, W, 3) uint8, got {got}; scale to 0..255 and move colours last")
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

    def __init__(
        self,
        model: Any,
        processor: Any,
        vocabulary: PerceptionVocabulary,
        depth_tokenizer: VQVAE | None = None,
        draft_network: DraftNetwork | None = None,
    ):
        """`draft_network` speeds up decoding and changes no answer. Raises ValueError where the parts do not match."""
        vocabulary.check(model, processor.tokenizer)
        _check_depth_tokenizer(depth_tokenizer, vocabulary)
        self.model = model.eval()
        self.processor = processor
        self.vocabulary = vocabulary
        self.depth_tokenizer = depth_tokenizer
        self.prompt = ChatPrompt.from_processor(processor)
        self._accepted = accepted_inputs(model)
        tokenizer = processor.tokenizer
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.stop_ids = _stop_ids(model, tokenizer)
        self.grammar = SpanGrammar(
            vocabulary,
            eos_id=processor.tokenizer.eos_token_id,
            vocab_size=len(processor.tokenizer),
            banned_ids=placeholder_ids(model.config),  # an image token without its image is no text
        )
        self.decoder = SpanDecoder(model, self.grammar, draft_network=draft_network)
        self.drafts = DraftBook()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
    ) -> PerceptionModel:
        """Loads a folder written by `save_pretrained` or by `train.aurora`, or a hub name.

        Raises:
            ValueError: naming the file that is missing, half written, or does not match its weights.
        """
        from vqvae import VQVAE

        folder = find_folder(path)
        check_files(folder)
        vocabulary = PerceptionVocabulary.load(folder)
        processor, model = read_processor(folder), read_model(folder, dtype)
        vocabulary.check(model, processor.tokenizer, folder)
        depth = folder / "depth_tokenizer"
        depth_tokenizer = VQVAE.from_pretrained(depth).eval() if depth.exists() else None
        return cls(model.to(device), processor, vocabulary, depth_tokenizer, DraftNetwork.load(folder))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a stock transformers folder with the vocabulary and the depth tokenizer beside it."""
        self.model.save_pretrained(path)
        self.processor.save_pretrained(path)
        if self.depth_tokenizer is not None:
            self.depth_tokenizer.save_pretrained(Path(path) / "depth_tokenizer")
        if self.decoder.draft_network is not None:
            self.decoder.draft_network.save(path)
        self.vocabulary.save(path)

    def compile(self, **settings: Any) -> None:
        """Has the decoding of answers compiled, for processes that go on for hours.

        Sizes that are met for the first time cost seconds each (docs/fast_decoding.md).

        For language models of Llama's, Mistral's and Qwen2's classes with nothing changed; a warning tells of others.
        It takes a C++ compiler on a CPU. Answers are the same up to the rounding of their scores.

        Args:
            settings: of `torch.compile`; dynamic=True unless they say otherwise.
        """
        self.decoder.compile(**settings)

    def ask(self, image: ImageLike, question: str, mode: str = "auto", max_new_tokens: int = 256) -> Answer:
        """Answers one question about one image.

        Args:
            image: a path, a PIL image, a (H, W, 3) uint8 array, or what `look` gave.
            question: plain text; names of perception tokens inside it stay plain text.
            mode: "chain" draws perception first, "direct" answers at once, "auto" draws first where a
                chain fits the question (it counts or asks for depth) and answers directly elsewhere.
            max_new_tokens: room for the whole answer; a depth map takes its grid and two tokens.

        Raises:
            ValueError: for a bad image, an empty question, an unknown mode, or a chain that fits no question.
        """
        return self.ask_many([image], [question], mode, max_new_tokens)[0]

    def ask_many(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: Sequence[str],
        modes: str | Sequence[str] = "auto",
        max_new_tokens: int = 256,
        batch_size: int = 32,
    ) -> list[Answer]:
        """Answers several questions, those of `ask` one by one; kinds and modes may be mixed within a batch.

        Args:
            images: one for all questions, or a list or tuple of one a question; the same object given again is looked
                at once.
            modes: one for all questions, or one a question.

        Raises:
            ValueError: as `ask` does, before anything is answered where a question or a mode is at fault; for numbers
                of images or modes that are not the questions'.
        """
        count = len(questions)
        per_question = list(images) if isinstance(images, list | tuple) else [images] * count
        asked_modes = [modes] * count if isinstance(modes, str) else list(modes)
        for name, values in (("images", per_question), ("modes", asked_modes)):
            if len(values) != count:
                raise ValueError(f"{name} must be one, or one a question: got {len(values)} for {count} questions")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        chosen = [choose_mode(question, mode) for question, mode in zip(questions, asked_modes, strict=True)]
        answers: list[Answer] = []
        seen: dict[int, Any] = {}
        for start in range(0, count, batch_size):
            rows = range(start, min(start + batch_size, count))
            seen = {id(per_question[i]): seen.get(id(per_question[i])) for i in rows}
            for i in rows:
                if seen[id(per_question[i])] is None:
                    seen[id(per_question[i])] = self.look(per_question[i])
            prompts = [Prompt(seen[id(per_question[i])], *prompt_for(questions[i], chosen[i])) for i in rows]
            found = self.answer(prompts, max_new_tokens)
            answers += [replace(answer, mode=chosen[i]) for i, answer in zip(rows, found, strict=True)]
        return answers

    def look(self, image: ImageLike) -> SeenImage:
        """An image that is prepared once and whose visual features are computed once, for several questions: it stands
        wherever an image may, and the answers are the same.

        Raises:
            ValueError: for a bad image.
        """
        if isinstance(image, SeenImage) and image.owner is self.model:
            return image
        SeenFeatures.install(self.model)
        loaded = load_image(image)
        head, extra = self.prompt.head_ids(self.processor, loaded)
        return SeenImage(loaded, head, {n: v for n, v in extra.items() if n in self._accepted}, self.model)

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Left-padded ids (B, T), their mask, and the image tensors of a batch of prompts."""
        tokenizer = self.processor.tokenizer
        rows, extras, types, seen = [], [], [], list[SeenImage]()
        for prompt in prompts:
            image = prompt.image
            if not (isinstance(image, SeenImage) and image.owner is self.model):
                head, extra = self.prompt.head_ids(self.processor, load_image(image))
                kept = {name: value for name, value in extra.items() if name in self._accepted}
            else:
                head, kept = image.head, image.extra
                seen.append(image)
            asked = head + self.prompt.tail_ids(tokenizer, self.vocabulary, prompt.question)
            rows.append(asked + list(prompt.forced))
            extras.append(kept)
            types.append(token_types(kept, len(asked), len(prompt.forced)))
        texts = {
            "input_ids": pad_rows(rows, self.pad_id, left=True),
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, left=True),
        }
        inputs = texts | batch_types(types, left=True) | batch_images(extras)
        device, dtype = self.model.device, self.model.dtype
        inputs = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
        if "pixel_values" in inputs and len(seen) == len(prompts):
            inputs["pixel_values"] = inputs["pixel_values"].view_as(inputs["pixel_values"])  # may be a seen image's own
            tag(inputs["pixel_values"], seen)
        return inputs

    @torch.no_grad()
    def generate_ids(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int = 256,
        fast: bool = True,
        sweeps: int | None = None,
        **kwargs: Any,
    ) -> list[list[int]]:
        """Generated ids of each prompt, forced ids included, the end of sequence and padding left off.

        Decoding is greedy under the span grammar, several tokens a forward (`perception.decoding.decoder`).

        Args:
            prompts: a batch.
            max_new_tokens: of an answer, behind its forced ids.
            sweeps: settles a depth map after so many forwards, confirmed or not: faster, and no longer the same ids.
            fast: False leaves all to transformers' `generate`, one token a forward; the ids are the same.
            kwargs: do_sample, temperature, top_k, top_p; or any other setting of `generate`, which is then what runs.
        """
        inputs = self.inputs(prompts)
        if fast and not set(kwargs) - {"do_sample", "temperature", "top_k", "top_p"}:
            drafts = [self.drafts.look_up(p.question, p.kind)[len(p.forced) :] for p in prompts]
            sampling = Sampling(**kwargs)
            rows = self.decoder.decode(inputs, drafts, max_new_tokens, self.stop_ids, sampling, sweeps=sweeps)
            if rows is not None:
                for prompt, row in zip(prompts, rows, strict=True):
                    self.drafts.remember(prompt.question, prompt.kind, [*prompt.forced, *row])
                return [list(p.forced) + self._without_end(row) for p, row in zip(prompts, rows, strict=True)]
        width = inputs["input_ids"].shape[1]
        processor = SpanLogitsProcessor(self.grammar, max_length=width + max_new_tokens)
        settings = {"do_sample": False, "max_new_tokens": max_new_tokens} | kwargs
        settings = {"eos_token_id": list(self.stop_ids), "pad_token_id": self.pad_id} | settings
        out = self.model.generate(**inputs, logits_processor=[processor], **settings)
        return [
            list(p.forced) + self._without_end(row) for p, row in zip(prompts, out[:, width:].tolist(), strict=True)
        ]

    def stream_ids(self, prompt: Prompt, max_new_tokens: int = 256) -> Iterator[list[int]]:
        """The ids of one answer so far, forced ids included, after each forward; the last are those of `generate_ids`.

        Whoever stops asking stops the decoding. A model that cannot decode several tokens a forward gives all at once.
        """
        inputs, forced = self.inputs([prompt]), list(prompt.forced)
        draft = self.drafts.look_up(prompt.question, prompt.kind)[len(forced) :]
        ids: list[int] | None = None
        for (ids,) in self.decoder.stream(inputs, [draft], max_new_tokens, [self.processor.tokenizer.eos_token_id]):
            yield forced + self._without_end(ids)
        if ids is None:
            yield self.generate_ids([prompt], max_new_tokens, fast=False)[0]
        else:
            self.drafts.remember(prompt.question, prompt.kind, [*forced, *ids])

    def _without_end(self, ids: list[int]) -> list[int]:
        stop = {*self.stop_ids, self.pad_id}
        return ids[: next((i for i, token in enumerate(ids) if token in stop), len(ids))]

    def answer(self, prompts: Sequence[Prompt], max_new_tokens: int = 256, **kwargs: Any) -> list[Answer]:
        """Answers of a batch of prompts; see `generate_ids`."""
        rows = self.generate_ids(prompts, max_new_tokens, **kwargs)
        tokenizer = self.processor.tokenizer
        return [
            read_ids(tokenizer, self.vocabulary, ids, prompt.kind) for ids, prompt in zip(rows, prompts, strict=True)
        ]


def _stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """What ends an answer: the tokenizer's end of sequence, which training writes, and those of the model's own."""
    own = model.generation_config.eos_token_id if model.can_generate() else None
    others = own if isinstance(own, list) else [own]
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *others) if i is not None))


def _check_depth_tokenizer(tokenizer: VQVAE | None, vocabulary: PerceptionVocabulary) -> None:
    if tokenizer is None:
        return
    made = (tokenizer.config.codebook_size, (tokenizer.config.grid_size,) * 2)
    named = (vocabulary.depth_codes, tuple(vocabulary.depth_grid))
    if made != named:
        raise ValueError(
            f"the depth tokenizer makes {made[0]} codes on a grid of {made[1]}, the vocabulary names {named[0]} on "
            f"{named[1]}; use the depth_tokenizer folder that was saved with the model"
        )
