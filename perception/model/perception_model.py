"""`PerceptionModel`: a vision-language model that draws depth maps and boxes as tokens before it answers."""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from perception.answers import POINT_LETTERS, asked_thing, asks_for_farthest, letters_in, names_points
from perception.chains import (
    Answer,
    ChainRoom,
    ChatPrompt,
    asks_to_draw,
    check_question,
    choose_mode,
    is_depth_chain,
    kind_of_question,
    prompt_for,
    read_ids,
)
from perception.decoding.decoder import SpanDecoder
from perception.decoding.draft_network import DraftNetwork
from perception.decoding.drafts import DraftBook
from perception.decoding.map_reader import Due, DueIds, MapReader
from perception.decoding.output_layer import use_float32_logits
from perception.decoding.sampling import Sampling
from perception.grammar.automaton import SpanGrammar
from perception.grammar.processor import GrammarMasks, SpanLogitsProcessor, mask_scores
from perception.model.adapter import is_adapter, read_adapter
from perception.model.devices import find_device
from perception.model.folder import check_files, find_folder, read_model, read_processor
from perception.model.image_inputs import (
    accepted_inputs,
    batch_images,
    batch_types,
    pad_rows,
    placeholder_ids,
    token_types,
)
from perception.model.images import ImageLike, load_image
from perception.model.prepared_images import CachedFeatures, PreparedImage, mark_pixels
from perception.model.replies import decode_plainly, keep_spans_in_replies, know_end
from perception.model.wording import TAUGHT, depth_words, taught_thing, taught_words
from perception.scenes.markers import lettered
from perception.scenes.questions import letters_text
from perception.tokenizers.masks import MaskTokenizer
from perception.tokenizers.points import PointTokenizer
from perception.vocabulary.names import PerceptionVocabulary

if TYPE_CHECKING:
    from vqvae import VQVAE

Read = Literal["decoded", "model"]
Places = tuple[tuple[float, float], ...]
"""(x, y) of each point, in [0, 1] of the image's width and height"""
_APART = 0.01
"""Smallest distance of two points, as a share of the image's side"""
_MARKED_SIDE = 448
"""Side, in pixels, of the picture that markers are drawn on for a model that reads images of any size"""


@dataclass(frozen=True)
class Prompt:
    """One row of a batch."""

    image: ImageLike
    question: str
    """As it is put to the model, with the request to draw where there is one"""
    kind: str | None = None
    """"count" or "depth", which says how the final answer is read; None for other questions"""
    forced: tuple[int, ...] = ()
    """Ids that the answer must begin with"""
    points: Places = ()
    """Places of the points A, B, .. that the image shows, where they are known. In a chain whose map the package reads,
    the package writes them"""


class PerceptionModel:
    """A transformers image-text-to-text model, its processor, its perception vocabulary and its tokenizers."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        vocabulary: PerceptionVocabulary,
        depth_tokenizer: VQVAE | None = None,
        draft_network: DraftNetwork | None = None,
        mask_tokenizer: VQVAE | None = None,
    ):
        """
        Args:
            model: its generation config loses the settings that change scores (`decode_plainly`).
            draft_network: speeds up decoding and changes no answer.
            mask_tokenizer: decodes the masks of a vocabulary that has some (`perception.tokenizers.masks`).

        Raises:
            ValueError: where the parts do not match.
        """
        vocabulary.check(model, processor.tokenizer)
        _check_depth_tokenizer(depth_tokenizer, vocabulary)
        _check_mask_tokenizer(mask_tokenizer, vocabulary)
        self.model = model.eval()
        use_float32_logits(self.model)
        decode_plainly(self.model)
        self.processor = processor
        self.vocabulary = vocabulary
        self.depth_tokenizer = depth_tokenizer
        self.mask_tokenizer = mask_tokenizer
        self.prompt = ChatPrompt.from_processor(processor)
        self._accepted = accepted_inputs(model)
        tokenizer = processor.tokenizer
        self.pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.stop_ids = _stop_ids(model, tokenizer, self.pad_id)
        self.room = ChainRoom.of(tokenizer, vocabulary, self.stop_ids)
        self.positions = max_positions(model)
        """Most tokens of a prompt and its answer; None: its config sets no limit"""
        self.taught: tuple[str, ...] = tuple(getattr(model.config, "taught_questions", None) or ())
        """Kinds of questions that the model knows alone ("count", "depth", and "farthest" where it compares points both
        ways); empty for a model that knows others"""
        self.taught_things: tuple[str, ...] = tuple(getattr(model.config, "taught_things", None) or ())
        """Names of the things that the model can count; empty for a model that knows others"""
        self.trained_on: str = getattr(model.config, "trained_on", None) or ""
        """What the model was trained on, in one line; empty if its config does not say"""
        self.grammar = SpanGrammar(
            vocabulary,
            eos_id=processor.tokenizer.eos_token_id,
            vocab_size=len(processor.tokenizer),
            banned_ids=placeholder_ids(model.config),  # an image token without its image is no text
            weighs_ends=bool(getattr(model.config, "weighs_ends", False)),
        )
        self._masks = GrammarMasks(self.grammar)
        self.decoder = SpanDecoder(model, self.grammar, draft_network=draft_network)
        self.drafts = DraftBook()
        self._selector_files: tuple[Path, ...] = ()
        reads = depth_tokenizer is not None and {"depth", "points"} <= set(vocabulary.modalities)
        self._map_reader = MapReader(vocabulary, tokenizer, depth_tokenizer) if reads and depth_tokenizer else None

    def under(self, grammar: SpanGrammar) -> PerceptionModel:
        """Return the same weights, decoded under another grammar of the same vocabulary."""
        other = copy.copy(self)
        other.grammar, other._masks, other.drafts = grammar, GrammarMasks(grammar), DraftBook()
        other.decoder = SpanDecoder(self.model, grammar, draft_network=self.decoder.draft_network)
        return other

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        base: str | Path | None = None,
    ) -> PerceptionModel:
        """Load a folder written by `save_pretrained` or by training, a model of the hub, or one that ships.

        An adapter (`train.finetune --save adapter`) is loaded onto its base and merged.

        Args:
            path: folder, hub name, or the name of a shipped model such as "aurora-tiny".
            dtype: of the weights. torch.float16 halves the memory; in torch.bfloat16 the best two ids of a step are
                often too close to tell apart, and answers then differ between batch sizes and ways of decoding.
            base: folder or hub name of an adapter's base, where it is not the one that the adapter names.

        Raises:
            ValueError: naming the file that is missing, half written, or does not match its weights; for an adapter
                of another base or vocabulary; or for a device that is not there.
        """
        from vqvae import VQVAE

        where = find_device(device) if isinstance(device, str) else device
        folder = find_folder(path)
        if is_adapter(folder):
            model, processor, vocabulary = read_adapter(folder, dtype, base)
        elif base is not None:
            raise ValueError(f"base goes with an adapter, and {folder} is a whole model; leave base out")
        else:
            check_files(folder)
            vocabulary = PerceptionVocabulary.load(folder)
            processor, model = read_processor(folder), read_model(folder, dtype)
        vocabulary.check(model, processor.tokenizer, folder)
        depth = folder / "depth_tokenizer"
        depth_tokenizer = VQVAE.from_pretrained(depth).eval() if depth.exists() else None
        masks = folder / "mask_tokenizer"
        mask_tokenizer = VQVAE.from_pretrained(masks).eval() if masks.exists() else None
        drafts = DraftNetwork.load(folder)
        made = cls(model.to(where), processor, vocabulary, depth_tokenizer, drafts, mask_tokenizer)
        made._selector_files = tuple(sorted(folder.glob("interleave*")))
        return made

    def save_pretrained(self, path: str | Path) -> None:
        """Write a stock transformers folder, as training does, and beside it the vocabulary, the tokenizers, the draft
        network and the selector of a model that was loaded with one."""
        know_end(self.model, self.processor.tokenizer)
        keep_spans_in_replies(self.model, self.processor)
        self.model.save_pretrained(path)
        self.processor.save_pretrained(path)
        if self.depth_tokenizer is not None:
            self.depth_tokenizer.save_pretrained(Path(path) / "depth_tokenizer")
        if self.mask_tokenizer is not None:
            self.mask_tokenizer.save_pretrained(Path(path) / "mask_tokenizer")
        if self.decoder.draft_network is not None:
            self.decoder.draft_network.save(path)
        for file in self._selector_files:
            copy = Path(path) / file.name
            if copy.resolve() != file.resolve():
                shutil.copyfile(file, copy)
        self.vocabulary.save(path)

    def compile(self, **settings: Any) -> None:
        """Compile decoding with `torch.compile`, for processes that run for hours.

        Every new size is compiled when it first occurs, which takes seconds (docs/fast_decoding.md). Works for language
        models of Llama's, Mistral's and Qwen2's classes without LoRA or hooks; for others a warning says that nothing
        is compiled. A CPU needs a C++ compiler. Answers are the same up to the rounding of their scores.

        Args:
            settings: of `torch.compile`; dynamic=True by default.
        """
        self.decoder.compile(**settings)

    def ask(
        self,
        image: ImageLike,
        question: str,
        mode: str = "auto",
        max_new_tokens: int | None = None,
        read: Read | None = None,
        points: Sequence[Sequence[float]] | None = None,
    ) -> Answer:
        """Answer one question about one image, with the model's confidence.

        Args:
            image: a path, a PIL image, a (H, W, 3) uint8 array, or what `prepare_image` returned.
            question: plain text; names of perception tokens inside it stay plain text.
            mode: "chain" draws first, "direct" answers directly, "auto" draws first where a chain fits the question (it
                counts or asks for depth) and the vocabulary has what it draws, and answers directly elsewhere.
            max_new_tokens: for the whole answer. Left out, it follows from the grid of the model's depth map, which
                takes one token per cell and two more: 256 for grids of up to 10 x 10, 412 for 16 x 16.
            read: who reads the drawn map at the points of a depth chain. "decoded": the package decodes the map and
                writes the readings, and the model concludes from them. "model": the model writes them. None: "decoded"
                where the model has a depth tokenizer to decode maps with, "model" elsewhere.
            points: two to five places (x, y) in [0, 1] of the image that a question of depth is about. They become the
                points A, B, .. : markers are drawn on the image, a question that names none is asked with their letters
                (`depth_text`), and where the package reads the map it reads it there, so that the model need not find
                the markers.

        Raises:
            ValueError: for a bad image, an empty question, an unknown mode, mode "chain" with a question that no
                chain fits or whose chain the vocabulary has no tokens for, max_new_tokens that a chain does not fit
                into, read="decoded" without a depth tokenizer, or points that are too few, too many, outside the image,
                or not what the question is about.
        """
        places: Places = ()
        if points is not None:
            places, question = check_places(points, question)
            image = self.marked(image, places)
        chosen = choose_mode(question, mode, self.vocabulary.modalities)
        known = places if chosen == "chain" and self.reads_maps(read) else ()
        prompt = Prompt(self.prepare_image(image), *self.put(question, chosen), points=known)
        (ids,) = self.generate_ids([prompt], max_new_tokens, read)
        answer = self.read_back(prompt, ids, max_new_tokens)
        answer = replace(answer, mode=chosen, confidence=self.confidence(prompt, ids))
        return self.judged(answer, question, prompt.kind)

    def ask_many(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: Sequence[str],
        modes: str | Sequence[str] = "auto",
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        read: Read | None = None,
    ) -> list[Answer]:
        """Answer several questions in batches, with the same answers as `ask`; kinds and modes may be mixed.

        In half precision near-ties of two ids may fall otherwise in another batch size.

        Args:
            images: one for all questions, or a list or tuple with one per question; an object that occurs several times
                is prepared once.
            modes: one for all questions, or one per question.
            read: as in `ask`.

        Raises:
            ValueError: as `ask`, for questions and modes before anything is answered; or where the numbers of images or
                modes do not match the number of questions.
        """
        if isinstance(questions, str):
            raise ValueError("questions must be a list of texts, got one text; give [text], or use ask")
        questions = list(questions)
        count = len(questions)
        per_question = list(images) if isinstance(images, list | tuple) else [images] * count
        asked_modes = [modes] * count if isinstance(modes, str) else list(modes)
        for name, values in (("images", per_question), ("modes", asked_modes)):
            if len(values) != count:
                raise ValueError(f"{name} must be one, or one per question: got {len(values)} for {count} questions")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        drawn = self.vocabulary.modalities
        chosen = [choose_mode(question, mode, drawn) for question, mode in zip(questions, asked_modes, strict=True)]
        answers: list[Answer] = []
        prepared: dict[int, PreparedImage] = {}
        for start in range(0, count, batch_size):
            rows = range(start, min(start + batch_size, count))
            batch = {id(per_question[i]): per_question[i] for i in rows}
            # Images of earlier batches are let go.
            prepared = {key: prepared.get(key) or self.prepare_image(image) for key, image in batch.items()}
            prompts = [Prompt(prepared[id(per_question[i])], *self.put(questions[i], chosen[i])) for i in rows]
            found = self.answer(prompts, max_new_tokens, read)
            for i, prompt, answer in zip(rows, prompts, found, strict=True):
                answers.append(self.judged(replace(answer, mode=chosen[i]), questions[i], prompt.kind))
        return answers

    def put(self, question: str, mode: str, points: int = 0) -> tuple[str, str | None]:
        """Return the text that puts a question to this model in a mode, and the question's kind.

        A model that knows some kinds of questions alone (`taught`) is asked in the words that it was taught, where they
        say all that the question does (`perception.model.wording`).

        Args:
            points: number of lettered points in the image, where a question of depth names none.

        Raises:
            ValueError: as `choose_mode`.
        """
        check_question(question)
        known = kind_of_question(question) in self.taught
        words = taught_words(question, self.taught_things, points) if known else None
        return prompt_for(words or question, mode, self.vocabulary.modalities)

    def judged(self, answer: Answer, question: str, kind: str | None) -> Answer:
        """Take back the value of an answer to a question that the model was not taught, or with a letter that the
        question does not name, and warn why; warn, too, where it was not asked in the words that the model was taught.
        """
        said = self._untaught(question, kind)
        if said:
            return replace(answer, value=None, warning=said)
        named = letters_in(question)
        if kind == "depth" and len(named) > 1 and answer.value in set(POINT_LETTERS) - named:
            said = f"the answer was {answer.value}, and the question is about {' and '.join(sorted(named))}"
            answer = replace(answer, value=None)
        said = "; ".join(filter(None, (self._in_other_words(question, kind), said, answer.warning)))
        return replace(answer, warning=said) if said else answer

    def strange(self, question: str, points: int = 0) -> str:
        """Say why a question is none that the model was taught, or is in other words; empty where it is one.

        Args:
            points: as in `put`.
        """
        kind = kind_of_question(question)
        return self._untaught(question, kind, points) or self._in_other_words(question, kind, points)

    def _in_other_words(self, question: str, kind: str | None, points: int = 0) -> str:
        if kind not in self.taught or taught_words(question, self.taught_things, points) is not None:
            return ""
        return f"the model was taught the question {TAUGHT[kind]} alone, and this one says more or other things"

    def _untaught(self, question: str, kind: str | None, points: int = 0) -> str:
        """Return why a question of a kind is not one that the model was taught; empty where it may be one."""
        draws, known = asks_to_draw(question), self.taught_things
        if draws and "masks" not in self.vocabulary.modalities and re.search(r"\bmasks?\b", question, re.IGNORECASE):
            return "the model has no tokens for masks"
        boxed = re.search(r"\bboxes of (?:the )?(.+)", question, re.IGNORECASE) if draws else None
        counted = f"How many {boxed[1]}?" if boxed else question
        thing = asked_thing(counted)
        if (boxed or kind == "count") and known and thing and not taught_thing(counted, known):
            return f"the model was taught to count {len(known)} kinds of things, and none is called {' '.join(thing)!r}"
        if not self.taught or draws:
            return ""
        if kind not in self.taught:
            asked = "this question asks for neither" if kind is None else f"this is a question of {kind}"
            known_kinds = " and ".join(name for name in self.taught if name != "farthest")
            return f"the model was taught questions of {known_kinds} alone, {asked}"
        if kind == "depth" and not (names_points(question) or points):
            return "the model was taught to compare lettered points alone, and this question names none"
        if kind == "depth" and asks_for_farthest(question) and "farthest" not in self.taught:
            return "the model was taught to name the nearest point alone, and this question asks for the farthest"
        return ""

    def marked(self, image: ImageLike, points: Sequence[Sequence[float]]) -> Image.Image:
        """Return an image at the size that the model reads, with lettered markers at points (x, y) in [0, 1]."""
        loaded = load_image(image.image if isinstance(image, PreparedImage) else image)
        side = min((getattr(self.processor.image_processor, "size", None) or {}).get("height") or 0, _MARKED_SIDE)
        side = side or _MARKED_SIDE
        return lettered(loaded.resize((side, side), Image.Resampling.BICUBIC), points)

    def prepare_image(self, image: ImageLike) -> PreparedImage:
        """Prepare an image once for several questions; its visual features are computed at the first question.

        It is accepted wherever an image is, and gives the same answers. Raises ValueError for a bad image.
        """
        if isinstance(image, PreparedImage) and image.owner is self.model:
            return image
        CachedFeatures.install(self.model)
        loaded = load_image(image)
        return PreparedImage(loaded, *self._process(loaded), self.model)

    def _process(self, image: ImageLike) -> tuple[list[int], dict[str, Tensor]]:
        """Ids of the prompt up to the question, and the processor's other outputs that the model takes."""
        head, extra = self.prompt.head_ids(self.processor, load_image(image))
        return head, {name: value for name, value in extra.items() if name in self._accepted}

    def inputs(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Model inputs of a batch of prompts: left-padded ids (B, T), their mask, and the image tensors.

        Raises ValueError for a prompt that leaves the model no position for an answer.
        """
        tokenizer = self.processor.tokenizer
        rows, extras, types, prepared = [], [], [], list[PreparedImage]()
        for prompt in prompts:
            image = prompt.image
            if isinstance(image, PreparedImage) and image.owner is self.model:
                head, kept = image.head, image.extra
                prepared.append(image)
            else:
                head, kept = self._process(image)
            asked = head + self.prompt.tail_ids(tokenizer, self.vocabulary, prompt.question)
            rows.append(asked + list(prompt.forced))
            if self.positions is not None and len(rows[-1]) >= self.positions:
                raise ValueError(
                    f"the prompt takes {len(rows[-1]):,} tokens, {len(head):,} of them before the question, and the "
                    f"model has {self.positions:,} positions; ask in fewer words, or give a smaller image"
                )
            extras.append(kept)
            types.append(token_types(kept, len(asked), len(prompt.forced)))
        texts = {
            "input_ids": pad_rows(rows, self.pad_id, left=True),
            "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, left=True),
        }
        inputs = texts | batch_types(types, left=True) | batch_images(extras)
        device, dtype = self.model.device, self.model.dtype
        inputs = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}
        if "pixel_values" in inputs and len(prepared) == len(prompts):
            pixels = inputs["pixel_values"]  # may be a prepared image's own tensor, which must not be marked
            inputs["pixel_values"] = pixels.view_as(pixels)
            mark_pixels(inputs["pixel_values"], prepared)
        return inputs

    @torch.no_grad()
    def generate_ids(
        self,
        prompts: Sequence[Prompt],
        max_new_tokens: int | None = None,
        read: Read | None = None,
        fast: bool = True,
        sweeps: int | None = None,
        **kwargs: Any,
    ) -> list[list[int]]:
        """Generated ids of each prompt, with forced ids and without the end of sequence and padding.

        Decoding is greedy under the span grammar, several tokens per forward pass (`perception.decoding.decoder`). A
        prompt that asks for a chain draws no more than the chain needs and keeps room for its answer
        (`perception.chains.ChainRoom`).

        Args:
            max_new_tokens: per answer, forced ids not counted; left out as in `ask`.
            read: as in `ask`; it concerns prompts that ask for a depth map before the answer.
            fast: False decodes with transformers' `generate`, one token per forward pass. The ids are the same in
                float32, up to rare ties; in half precision near-ties differ, as between two batch sizes.
            sweeps: accepts a depth map after this many forward passes, verified or not: faster, but approximate.
            kwargs: do_sample, temperature, top_k and top_p, each None for its default; with any other setting of
                `generate`, `generate` decodes. Your logits_processor runs before the grammar, and your eos_token_id
                ends an answer beside the model's own. Settings that the model's own generation config chose scores by
                are dropped (`decode_plainly`).

        Raises:
            ValueError: for max_new_tokens that a chain does not fit into, read="decoded" without a depth tokenizer,
                sweeps where one token at a time is decoded, num_return_sequences, return_dict_in_generate, or
                generation_config.
        """
        if not prompts:
            return []
        if kwargs.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences must be 1, as each prompt gets one answer; repeat the prompts")
        if kwargs.get("return_dict_in_generate"):
            raise ValueError(
                "return_dict_in_generate goes with model.generate, as ids alone are returned; leave it out"
            )
        if "generation_config" in kwargs:
            raise ValueError("generation_config is not read here; give its settings one by one, as do_sample=True")
        most, limits = self._most(prompts, max_new_tokens), [self.room.limits(p.question) for p in prompts]
        quick = {"do_sample", "temperature", "top_k", "top_p"}
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in quick}
        slow = sorted(set(kwargs) - quick)
        if sweeps is not None and (slow or not fast):
            asked = f"{', '.join(slow)} are settings of" if slow else "fast=False asks for"
            raise ValueError(
                f"sweeps settle a map in fast decoding alone, and {asked} `generate`; leave one of them out"
            )
        inputs, dues = self.inputs(prompts), self._dues(prompts, read)
        if fast and not slow:
            drafts = [self.drafts.look_up(p.question, p.kind)[len(p.forced) :] for p in prompts]
            rows = self.decoder.decode(
                inputs, drafts, most, self.stop_ids, Sampling(**kwargs), sweeps=sweeps, dues=dues, limits=limits
            )
            if rows is not None:
                for prompt, row in zip(prompts, rows, strict=True):
                    self.drafts.remember(prompt.question, prompt.kind, [*prompt.forced, *row])
                return [list(p.forced) + self._without_end(row) for p, row in zip(prompts, rows, strict=True)]
            if sweeps is not None:
                raise ValueError(
                    f"sweeps settle a map in fast decoding alone, and {type(self.model).__name__} decodes one token "
                    "at a time; leave sweeps out"
                )
        width = inputs["input_ids"].shape[1]
        greedy = not kwargs.get("do_sample") and kwargs.get("num_beams", 1) == 1
        processor = SpanLogitsProcessor(self.grammar, width + most, limits, greedy)
        settings = {"do_sample": False, "max_new_tokens": most, "pad_token_id": self.pad_id}
        settings |= ({"top_k": 0} if kwargs.get("do_sample") else {}) | kwargs
        end = kwargs.get("eos_token_id")
        ends = [] if end is None else torch.as_tensor(end).flatten().tolist()
        given = {
            "logits_processor": [*(kwargs.get("logits_processor") or ()), processor, DueIds(dues, width)],
            "eos_token_id": [*self.stop_ids, *ends],
        }
        out = self.model.generate(**inputs, **(settings | given))[:, width:].tolist()
        return [list(p.forced) + self._without_end(row, ends) for p, row in zip(prompts, out, strict=True)]

    def stream_ids(
        self, prompt: Prompt, max_new_tokens: int | None = None, read: Read | None = None
    ) -> Iterator[list[int]]:
        """Yield the ids of one answer so far, forced ids included, after each forward pass.

        The last ids are those of `generate_ids`. Decoding stops when the caller stops iterating. A model that cannot
        decode several tokens per forward pass yields once, when the answer is complete. Raises ValueError as
        `generate_ids`.
        """
        most = self._most([prompt], max_new_tokens)
        inputs, forced, limits = self.inputs([prompt]), list(prompt.forced), [self.room.limits(prompt.question)]
        draft = self.drafts.look_up(prompt.question, prompt.kind)[len(forced) :]
        ids: list[int] | None = None
        for (ids,) in self.decoder.stream(
            inputs, [draft], most, self.stop_ids, dues=self._dues([prompt], read), limits=limits
        ):
            yield forced + self._without_end(ids)
        if ids is None:
            yield self.generate_ids([prompt], most, read, fast=False)[0]
        else:
            self.drafts.remember(prompt.question, prompt.kind, [*forced, *ids])

    def _without_end(self, ids: list[int], ends: Sequence[int] = ()) -> list[int]:
        return ids[: next((i for i, token in enumerate(ids) if token in (*self.stop_ids, *ends)), len(ids))]

    def _most(self, prompts: Sequence[Prompt], max_new_tokens: int | None) -> int:
        """Largest number of tokens of an answer, which every chain fits into that is not begun with forced ids."""
        most = self.room.default if max_new_tokens is None else max_new_tokens
        if most < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {most}; leave it out for {self.room.default}")
        for prompt in prompts:
            if not prompt.forced:
                self.room.check(prompt.question, most)
        return most

    def _dues(self, prompts: Sequence[Prompt], read: Read | None) -> list[Due | None]:
        """Return, per prompt, the function that forces readings of the decoded map; None if the model writes them."""
        if read is not None and read not in get_args(Read):
            raise ValueError(f"read must be one of {', '.join(get_args(Read))}, got {read!r}")
        reader = self._map_reader
        if not self.reads_maps(read):
            if any(prompt.points for prompt in prompts):
                raise ValueError(
                    "known points are written where the package reads the map, and here the model reads it; leave "
                    'read="model" or the points out, and add a depth_tokenizer folder where there is none'
                )
            return [None] * len(prompts)
        if reader is None:
            raise ValueError(
                'read="decoded" needs a depth tokenizer to decode maps with, and this model has none; add its '
                'depth_tokenizer folder, or use read="model"'
            )
        encode = PointTokenizer(self.vocabulary.num_locations).encode
        known = [[encode(np.array([place])) for place in p.points] for p in prompts]
        return [
            partial(reader.due, p.forced, places=places) if is_depth_chain(p.question) else None
            for p, places in zip(prompts, known, strict=True)
        ]

    def reads_maps(self, read: Read | None = None) -> bool:
        """True if the package reads the maps of depth chains; `read` as in `ask`."""
        return read == "decoded" or (read is None and self._map_reader is not None)

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int | None = None, read: Read | None = None, **kwargs: Any
    ) -> list[Answer]:
        """Answer a batch of prompts, which may be empty; arguments as in `generate_ids`."""
        rows = self.generate_ids(prompts, max_new_tokens, read, **kwargs)
        return [self.read_back(prompt, ids, max_new_tokens) for ids, prompt in zip(rows, prompts, strict=True)]

    def read_back(self, prompt: Prompt, ids: Sequence[int], max_new_tokens: int | None = None) -> Answer:
        """Read the ids of an answer, as `generate_ids` gave them; warn where its list of boxes filled its room."""
        answer = read_ids(self.processor.tokenizer, self.vocabulary, ids, prompt.kind, prompt.question)
        most = self._most([prompt], max_new_tokens)
        drawn = [span for span in answer.spans if span.modality in self.vocabulary.marked and span.modality == "boxes"]
        if self.room.limits(prompt.question) is None or not drawn:
            return answer
        end = max(n for n, token in enumerate(ids) if token == self.vocabulary.end_id("boxes"))
        if most - (end - len(prompt.forced)) >= len(("x1", "y1", "x2", "y2", "END")) + self.room.conclusion:
            return answer
        said = f"there was no room for more than {len(drawn[-1].codes) // 4} boxes in max_new_tokens={most}"
        return replace(answer, warning="; ".join(filter(None, (said, answer.warning))))

    @torch.no_grad()
    def confidence(self, prompt: Prompt, ids: Sequence[int]) -> float:
        """Probability, from 0 to 1, that the model gives the decisions of its answer.

        Decisions are the text behind the last span, without the reading of a depth map, and, in a list of boxes, after
        each box whether another one follows. Where boxes lie and what a map shows is not counted: a model may hesitate
        between neighbouring bins and be sure of the number. It takes one forward pass over the prompt and the answer.

        Args:
            prompt: as it was answered; its forced ids are not the model's decisions.
            ids: of the answer, as `generate_ids` returns them.
        """
        concluded = [n for n in self._conclusion(prompt, ids) if n >= len(prompt.forced)]
        inputs = self.inputs([replace(prompt, forced=tuple(ids))])
        logits = self.model(**inputs, logits_to_keep=len(ids) + 1).logits[:, :-1]  # (1, n, V)
        written = torch.tensor([list(ids)], dtype=torch.long, device=logits.device)  # (1, n)
        allowed = self._masks.after(written[:, :-1], logits.shape[-1], len(ids))[0]  # (n, V)
        between = list[int]()  # places where a box may follow, or the END of their list
        if "boxes" in self.vocabulary.marked and ids:
            end = self.vocabulary.end_id("boxes")
            between = [n for n in allowed[:, end].nonzero()[:, 0].tolist() if n >= len(prompt.forced)]
        places = [*between, *concluded]
        if not places:
            return 1.0
        scores = mask_scores(logits[0, places].float(), allowed[places]).log_softmax(-1)  # (places, V)
        total = 0.0
        for n, row in zip(places, scores, strict=True):
            if n in between and ids[n] != end:
                total += float(torch.log1p(-row[end].exp()))
            else:
                total += float(row[ids[n]])
        return math.exp(total)

    def _conclusion(self, prompt: Prompt, ids: Sequence[int]) -> range:
        """Places of the text behind the last span of an answer, without the last reading of a depth map."""
        roles, decode = self.vocabulary.id_roles, self.processor.tokenizer.decode
        start = max((n + 1 for n, token in enumerate(ids) if token in roles), default=0)
        if start and is_depth_chain(prompt.question):
            start = next((n + 1 for n in range(start, len(ids)) if "," in decode([ids[n]])), start)
        return range(start, len(ids))


def check_places(points: Sequence[Sequence[float]], question: str) -> tuple[Places, str]:
    """Return points that a question of depth is about, and the question with their letters. One that names none is put
    in the words of `depth_text` where these say as much; else the letters follow its own.

    Args:
        points: (x, y) in [0, 1].

    Raises:
        ValueError: where there are not two to five points, one lies outside the image, two are hardly apart, or the
            question is not one of depth or names other letters.
    """
    check_question(question)
    most, said = len(POINT_LETTERS), question.strip()
    try:
        places = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"points must be two to {most} places (x, y), got {points!r:.80}") from None
    if places.ndim != 2 or places.shape[1] != 2 or not 2 <= len(places) <= most:
        raise ValueError(f"points must be two to {most} places (x, y), got an array of shape {places.shape}")
    if not ((places >= 0) & (places <= 1)).all():
        raise ValueError(
            f"points must lie in [0, 1] of the image's width and height, got {places.tolist()}; divide pixels by these"
        )
    apart = np.abs(places[:, None] - places[None]).max(2) + np.eye(len(places))  # (P, P)
    if apart.min() < _APART:
        raise ValueError(f"two points are less than {_APART} apart, too close to compare: {places.tolist()}")
    letters, named = set(POINT_LETTERS[: len(places)]), letters_in(said)
    if named and named != letters:
        raise ValueError(
            f"the question names the points {', '.join(sorted(named))} and {len(places)} places are given, which are "
            f"{letters_text(len(places))}; name these, or none"
        )
    taught = None if named else depth_words(said, len(places))
    if taught is None and kind_of_question(said) != "depth":
        raise ValueError(f'points go with a question of depth ("Which point is closest?"), got {question!r}')
    if not named:
        said = taught or f"{said.rstrip(' ?.')}, {letters_text(len(places))}?"
    return tuple((float(x), float(y)) for x, y in places), said


def max_positions(model: Any) -> int | None:
    """Return the number of positions that a model was made for; None if its config sets no limit."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is None or not isinstance(rope.get("factor"), int | float):
        return limit
    return max(limit, int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit)))


def _stop_ids(model: Any, tokenizer: Any, pad_id: int) -> tuple[int, ...]:
    """Ids that end an answer: the tokenizer's end of sequence, which training writes, the model's own, and padding."""
    own = model.generation_config.eos_token_id if model.can_generate() else None
    others = own if isinstance(own, list) else [own]
    return tuple(dict.fromkeys(i for i in (tokenizer.eos_token_id, *others, pad_id) if i is not None))


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


def _check_mask_tokenizer(tokenizer: VQVAE | None, vocabulary: PerceptionVocabulary) -> None:
    if tokenizer is None:
        return
    made, named = MaskTokenizer(tokenizer).vocabulary, vocabulary
    if (made.mask_codes, made.mask_length) != (named.mask_codes, named.mask_length):
        raise ValueError(
            f"the mask tokenizer makes {made.mask_length} of {made.mask_codes} codes, the vocabulary names "
            f"{named.mask_length} of {named.mask_codes}; use the mask_tokenizer folder that was saved with the model"
        )
