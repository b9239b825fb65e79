"""Generation of interleaved chains with transformers' `generate` and a key-value cache.

A look costs two forward passes: [t, I], where the last hidden state of the interleave token I selects visual tokens,
then [vision-start, inserted tokens, vision-end]. As I precedes what it brings in, no token is fed twice and the cache
is never cropped. Rows of a batch look at different times: the others are padded, and the padding is removed from the
cache at once, so that the cache has as many slots as the longest row has tokens.

Looks at native resolution insert tokens of crops. The crops that rows take in one step are encoded in one call of the
vision encoder, and a crop that was encoded before is used again.

Logits processors, stopping criteria and max_new_tokens see the *text*: the prompt and what the model has written,
without the inserted tokens. All rows have written equally many tokens at any time, so that a row's text is the same
alone and in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from perception.decoding.cache_slots import cache_given, cache_key
from perception.grammar.processor import mask_scores
from perception.interleave.chains import InterleavedModel, Look, TakenAlong, inserted_sources, look_ids
from perception.interleave.context import InterleavedContext
from perception.interleave.native import NativeImages
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.triggers import BOXES, HEADINGS, NATIVE, HeadingTrigger, InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures, check_images, gather_columns, unwrapped
from perception.tokenizers.boxes import BoxTokenizer
from perception.vocabulary.names import PerceptionVocabulary
from perception.vocabulary.spans import Span

Choose = Callable[[Tensor, int, int], Tensor]
"""(scores (N,) of a row's visual tokens, row, number of the look from 0) -> (N,) bool, the selected tokens"""


@dataclass(frozen=True)
class InterleavedGeneration:
    """Output of `InterleavedGenerator.generate`."""

    sequences: Tensor
    """(B, T + n): prompts as given, then answers with the inserted tokens, padded on the right"""
    answers: list[list[int | Look]]
    """The same answers in the form of `build_batch`: text with the end of sequence, and looks"""
    look_scores: list[list[Tensor]]
    """Scores of the visual tokens, (N,), per row and per look"""
    inserted: list[list[int]]
    """Number of visual tokens inserted, per row and per look"""
    peak_slots: int
    """Largest number of slots of the cache, which is the number of tokens of the longest row"""
    output: Any
    """Output of `generate`: `sequences`, or GenerateDecoderOnlyOutput with scores and logits per written token"""


class RowDraws:
    """Draws tokens and selections with one seed per row, the same alone, in any batch, and on any process or device."""

    def __init__(self, seeds: Sequence[int], selector: VisualTokenSelector):
        self._selector = selector
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def tokens(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Draw one id per row, (r,), with probabilities softmax(scores), scores (r, V).

        Args:
            rows: numbers of the rows; None for all.
        """
        generators = self._generators if rows is None else [self._generators[row] for row in rows]
        uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators])  # (r,) in [0, 1)
        sums = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        # The first id whose sum exceeds the draw never has probability 0. Scaled, as rounded sums may not reach 1.
        return torch.searchsorted(sums, uniform.to(sums)[:, None] * sums[:, -1:], right=True)[:, 0]

    def select(self, scores: Tensor, row: int, look: int) -> Tensor:
        """Draw the selected ones of a row's visual tokens, (N,), with `VisualTokenSelector.draw`; a `Choose`."""
        return self._selector.draw(scores, self._generators[row])


class InterleavedGenerator:
    """Generates interleaved chains with one model: greedy or sampled, in batches, with any number of images per row.

    >>> generator = InterleavedGenerator(model, tokenizer=processor.tokenizer)
    >>> result = generator.generate(inputs, max_new_tokens=256)

    Or, without answers, scores and a streamer (which `generate` does not pass to callables),
    `hf_model.generate(**inputs, custom_generate=generator, max_new_tokens=256)`.
    """

    def __init__(
        self,
        model: InterleavedModel,
        settings: InterleaveSettings | None = None,
        tokenizer: Any = None,
        choose: Choose | None = None,
        draws: RowDraws | None = None,
        vocabulary: PerceptionVocabulary | None = None,
    ):
        """
        Args:
            model: with its selector and layout.
            settings: say when a row looks; at headings by default.
            tokenizer: needed for headings.
            choose: selects the visual tokens of a look (see `Choose`); None for the selector's threshold.
            draws: with do_sample, draws the tokens in place of torch's global random numbers.
            vocabulary: needed for looks at drawn boxes.
        """
        self.model, self.draws, self.vocabulary = model, draws, vocabulary
        self.settings = settings or InterleaveSettings()
        if self.settings.trigger == HEADINGS and tokenizer is None:
            raise ValueError("trigger 'headings' needs the text: pass tokenizer=, or use trigger 'generated'")
        if self.settings.region == BOXES and vocabulary is None:
            raise ValueError("looks at drawn boxes need the vocabulary that they are written in: pass vocabulary=")
        self.heading = HeadingTrigger(tokenizer, self.settings) if self.settings.trigger == HEADINGS else None
        self.choose = choose or (lambda scores, row, look: self.model.selector.select(scores))

    def generate(
        self,
        inputs: Mapping[str, Any],
        streamer: Any = None,
        features: VisualFeatures | None = None,
        native: NativeImages | None = None,
        **settings: Any,
    ) -> InterleavedGeneration:
        """Generate the answers to a batch of prompts.

        Args:
            inputs: the processor's outputs, padded on the left.
            streamer: gets the prompt and then the tokens that the model writes, without inserted ones.
            features: of all rows' images, if they are encoded already; inputs then hold no pixel_values.
            native: the original images, where looks have native resolution.
            settings: of transformers' `generate`. max_new_tokens counts the tokens that the model writes; beams are not
                supported; use_cache=False computes everything again for every token.

        Raises:
            ValueError: where images and placeholders do not match, prompts are padded on the right, or a setting is not
                supported.
        """
        core = unwrapped(self.model.model)
        inputs = dict(inputs)
        if native is not None and len(native) != len(inputs["input_ids"]):
            raise ValueError(
                f"{len(inputs['input_ids'])} prompts and original images of {len(native)}; give each row's"
            )
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise ValueError("prompts must be padded on the left, so that each ends where its answer begins")
        check_images(core, self.model.layout, inputs)
        if hasattr(core.base_model, "get_rope_index") and "mm_token_type_ids" not in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.layout.image_id).int()
        runs: list[_Run] = []

        def decode(model: Any, input_ids: Tensor, **given: Any) -> Any:
            runs.append(_Run(self, input_ids, streamer=streamer, features=features, native=native, **given))
            return runs[0].run()

        output = core.generate(**inputs, streamer=streamer, custom_generate=decode, **settings)
        run = runs[0]
        slots = run.context.peak_slots
        return InterleavedGeneration(run.sequences(), run.answers, run.look_scores, run.inserted, slots, output)

    @torch.no_grad()
    def __call__(self, model: Any, input_ids: Tensor, **given: Any) -> Any:
        """Decode for `generate(custom_generate=generator)` of the same model."""
        return _Run(self, input_ids, **given).run()


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        generator: InterleavedGenerator,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        features: VisualFeatures | None = None,
        native: NativeImages | None = None,
        **model_kwargs: Any,
    ):
        resolution = generator.settings.resolution
        if (native is None) == (resolution == NATIVE):
            raise ValueError(
                f"the model's looks have {resolution} resolution, and generate got {'no' if native is None else 'the'} "
                "original images; pass native=NativeImages(..) for native resolution, and nothing for seen"
            )
        self.native, self.crops = native, None if native is None else native.new_crops()
        self.answers_per_row = 1 if native is None else len(input_ids) // max(1, len(native))
        _check(generation_config, model_kwargs)
        self.generator, self.model = generator, generator.model
        self.processors, self.criteria, self.config = logits_processor, stopping_criteria, generation_config
        self.streamer = streamer
        self.prompt = self.text = input_ids  # (B, T), (B, T + written)
        count = len(input_ids)
        self.answers: list[list[int | Look]] = [[] for _ in range(count)]
        self.written: list[list[int]] = [[] for _ in range(count)]
        self.look_scores: list[list[Tensor]] = [[] for _ in range(count)]
        self.inserted: list[list[int]] = [[] for _ in range(count)]
        self.along = [TakenAlong(generator.settings.take_along) for _ in range(count)]
        self.open = [True] * count
        self.alive = list(range(count))  # rows in the context, in its order
        self.context = InterleavedContext(self.model, input_ids, model_kwargs, features)
        self.scores: list[Tensor] = []
        self.logits: list[Tensor] = []
        pad = generation_config._pad_token_tensor
        self.pad_id = 0 if pad is None else int(pad)
        self._banned: Tensor | None = None

    def run(self) -> Any:
        hidden = self.context.read_prompt()  # (B, T, H)
        # Projected once: a prompt's hidden states do not change.
        self.keys = self.model.selector.keys(gather_columns(hidden, self.context.visual_columns))  # (B, M, H)
        newest = self._read_on(hidden[:, -1], None)  # (B, H)
        if self._may_part():
            self._write_apart(newest)
        else:
            self._write_abreast(newest)
        if self.streamer is not None:
            self.streamer.end()
        if not self.config.return_dict_in_generate:
            return self.sequences()
        return GenerateDecoderOnlyOutput(
            sequences=self.sequences(),
            scores=tuple(self.scores) if self.config.output_scores else None,
            logits=tuple(self.logits) if self.config.output_logits else None,
            **{cache_key(): self.context.cache},
        )

    def _write_abreast(self, newest: Tensor) -> None:
        """Write one token per row and step: while a row reads what its look brings in, the other rows wait.

        Args:
            newest: (B, H), last hidden states of the prompts.
        """
        while True:
            tokens = self._write(newest)
            if not any(self.open):
                return
            newest = self._read_on(self._let_go(newest), tokens)

    # Rows that need not wait

    def _may_part(self) -> bool:
        """True if no processor, criterion or streamer needs all rows to have written equally many tokens."""
        plain = not self.processors and type(self.criteria) is StoppingCriteriaList
        known = all(type(one) in (MaxLengthCriteria, EosTokenCriteria) for one in self.criteria)
        apart = self.streamer is None and not self.config.return_dict_in_generate and self.context.cache is not None
        return plain and known and apart

    def _write_apart(self, newest: Tensor) -> None:
        """Write with the same result as `_write_abreast`, but no row waits for the looks of another.

        The number of forward passes is that of the row with most tokens and looks.

        Args:
            newest: (B, H), last hidden states of the prompts.
        """
        ends = {int(i) for one in self.criteria if isinstance(one, EosTokenCriteria) for i in one.eos_token_id}
        most = min(one.max_length for one in self.criteria if isinstance(one, MaxLengthCriteria))
        room = most - self.prompt.shape[1]  # tokens that a row may write
        brought: dict[int, tuple[list[int], list[int]]] = {}  # ids and sources that a row reads next
        while True:
            for row, token in self._next_tokens(newest, [row not in brought for row in self.alive]).items():
                self.answers[row].append(token)
                self.written[row].append(token)
                self.open[row] = token not in ends and len(self.written[row]) < room
            if not any(self.open):
                return
            newest = self._feed_apart(self._let_go(newest), brought)

    def _next_tokens(self, newest: Tensor, ready: Sequence[bool]) -> dict[int, int]:
        """Next token of each ready row, by row, from hidden states (b, H) of the rows in the context."""
        rows = [row for row, one in zip(self.alive, ready, strict=True) if one]
        if not rows:
            return {}
        logits = self.model.model.get_output_embeddings()(newest[torch.tensor(ready)]).float()  # (r, V)
        scores = logits.masked_fill(self._bans(logits, rows), -torch.inf)
        if not self.config.do_sample:
            tokens = scores.argmax(-1)
        elif self.generator.draws is None:
            tokens = torch.multinomial(scores.softmax(-1), 1)[:, 0]
        else:
            tokens = self.generator.draws.tokens(scores, rows)
        return dict(zip(rows, tokens.tolist(), strict=True))

    def _feed_apart(self, newest: Tensor, brought: dict[int, tuple[list[int], list[int]]]) -> Tensor:
        """Run one forward pass over what looks brought in, the other rows' newest tokens, and due interleave tokens.

        Args:
            brought: ids and sources that rows read now; replaced by those that this pass's looks bring in.
        """
        placed = [self.model.layout.interleave_id] if self.generator.heading is not None else []
        looking = {place for place, row in enumerate(self.alive) if row not in brought and self._is_due(row)}
        ids = [
            brought[row][0] if row in brought else self.written[row][-1:] + (placed if place in looking else [])
            for place, row in enumerate(self.alive)
        ]
        sources = None
        if brought:
            sources = [brought[r][1] if r in brought else [-1] * len(i) for r, i in zip(self.alive, ids, strict=True)]
        newest = self.context.feed(ids, newest, sources)
        brought.clear()
        if looking:
            scores = self.model.selector.match(newest[:, None], self.keys)[:, 0]  # (b, M)
            found = self._bring({self.alive[place]: scores[place] for place in sorted(looking)})
            brought |= {row: tokens for row, tokens in found.items() if tokens[0]}
        return newest

    # Rows abreast

    def _write(self, newest: Tensor) -> list[int]:
        """Next token of every row, (B,), from hidden states (b, H) of the rows in the context."""
        head = self.model.model.get_output_embeddings()
        logits = head(newest).float()  # (b, V)
        if len(self.alive) < len(self.open):
            spread = logits.new_zeros(len(self.open), logits.shape[1])  # (B, V)
            spread[self.alive] = logits
            logits = spread
        banned = self._bans(logits)  # (B, V)
        logits = logits.masked_fill(banned, -torch.inf)
        # Masked again after the processors, as one that forces ids must not bring a banned one back.
        scores = mask_scores(self.processors(self.text, logits), ~banned)
        if self.config.return_dict_in_generate:
            self.scores += [scores] if self.config.output_scores else []
            self.logits += [logits] if self.config.output_logits else []
        if self.config.do_sample:
            draws = self.generator.draws
            tokens = torch.multinomial(scores.softmax(-1), 1)[:, 0] if draws is None else draws.tokens(scores)
        else:
            tokens = scores.argmax(-1)
        tokens = torch.where(torch.tensor(self.open, device=tokens.device), tokens, self.pad_id)
        self.text = torch.cat([self.text, tokens[:, None]], 1)
        if self.streamer is not None:
            self.streamer.put(tokens.cpu())
        stops = self.criteria(self.text, tuple(self.scores) or None).tolist()
        written: list[int] = tokens.tolist()
        for row, token in enumerate(written):
            if self.open[row]:
                self.answers[row].append(token)
                self.written[row].append(token)
                self.open[row] = not stops[row]
        return written

    def _bans(self, logits: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Mask (B, V) of ids that a row must not write, or (r, V) for some rows."""
        layout, most = self.model.layout, self.generator.settings.max_looks
        if self._banned is None:
            self._banned = torch.zeros(len(self.open), logits.shape[1], dtype=torch.bool, device=logits.device)
            self._banned[:, [i for i in layout.reserved if i < logits.shape[1]]] = True
        if layout.interleave_id < logits.shape[1]:
            full = [self.generator.heading is not None or len(scores) == most for scores in self.look_scores]
            self._banned[:, layout.interleave_id] = torch.tensor(full, device=logits.device)
        return self._banned if rows is None else self._banned[list(rows)]

    def _let_go(self, newest: Tensor) -> Tensor:
        """Drop finished rows from the context, unless the cache is returned; gives the kept rows' states (b, H)."""
        kept = [place for place, row in enumerate(self.alive) if self.open[row]]
        if len(kept) == len(self.alive) or self.config.return_dict_in_generate:
            return newest
        self.alive = [self.alive[place] for place in kept]
        self.context.keep(kept)
        places = torch.tensor(kept, device=newest.device)
        self.keys = self.keys[places]
        return newest[places]

    def _read_on(self, newest: Tensor, tokens: list[int] | None) -> Tensor:
        """Feed the written tokens, make the looks that are due, and feed what they bring in.

        Args:
            newest: (b, H), hidden states of the rows in the context.
            tokens: B written tokens; None before the first.

        Returns:
            Last hidden states (b, H) after that.
        """
        due = [self.open[row] and self._is_due(row) for row in self.alive]
        placed = [self.model.layout.interleave_id] if self.generator.heading is not None else []
        fed: list[list[int]] = []
        for row, looks in zip(self.alive, due, strict=True):
            written = [tokens[row]] if tokens is not None and self.open[row] else []
            fed.append(written + (placed if looks else []))
        newest = self.context.feed(fed, newest)
        if not any(due):
            return newest
        scores = self.model.selector.match(newest[:, None], self.keys)[:, 0]  # (b, M)
        found = self._bring({row: scores[place] for place, row in enumerate(self.alive) if due[place]})
        brought = [found.get(row, ([], [])) for row in self.alive]
        return self.context.feed([ids for ids, _ in brought], newest, [sources for _, sources in brought])

    def _is_due(self, row: int) -> bool:
        heading, most = self.generator.heading, self.generator.settings.max_looks
        if most is not None and len(self.look_scores[row]) >= most:
            return False
        if heading is None:
            return self.written[row][-1:] == [self.model.layout.interleave_id]
        return heading.fires(self.written[row])

    def _bring(self, scores: Mapping[int, Tensor]) -> dict[int, tuple[list[int], list[int]]]:
        """Ids and sources that looks insert after the interleave token, by row, from scores (M,) by row."""
        found = {row: self._look(row, own) for row, own in scores.items()}
        if self.crops is not None and (crops := self.crops.take()):
            self.context.add(crops)
        return found

    def _look(self, row: int, scores: Tensor) -> tuple[list[int], list[int]]:
        """Ids and sources that a row's look inserts after the interleave token, by scores (M,)."""
        layout, own = self.model.layout, self.context.visual_sources[row]
        scores = scores[: len(own)]
        if self.generator.settings.region == BOXES:
            chosen = self._over_drawn_boxes(row, scores)
        else:
            chosen = self.generator.choose(scores, row, len(self.look_scores[row]))
        if chosen.shape != scores.shape or chosen.dtype != torch.bool:
            raise ValueError(
                f"choose must return ({len(own)},) bool, one per visual token of the row; got {tuple(chosen.shape)} "
                f"{chosen.dtype}"
            )
        look = Look(tuple(chosen.nonzero()[:, 0].tolist()))
        self.look_scores[row].append(scores)
        if self.generator.heading is None:
            self.answers[row].pop()  # the look replaces the token
        self.answers[row].append(look)
        of_row = row // self.answers_per_row
        sources = self.along[row](inserted_sources(look, of_row, own, self.crops, self.context.prompt_tokens))
        self.inserted[row].append(len(sources))
        ids, rest = look_ids(len(sources), layout)[1:], iter(sources)
        return ids, [next(rest) if i == layout.image_id else -1 for i in ids]

    def _over_drawn_boxes(self, row: int, scores: Tensor) -> Tensor:
        """Mask (N,) of the row's visual tokens over the last boxes that it wrote; of none where they are malformed."""
        vocabulary, chosen = self.generator.vocabulary, torch.zeros_like(scores, dtype=torch.bool)
        assert vocabulary is not None and self.native is not None
        try:
            parts = vocabulary.parse(self.written[row])
            spans = [part for part in parts if isinstance(part, Span) and part.modality == "boxes"]
            boxes = BoxTokenizer(vocabulary.num_locations).decode(spans[-1].codes if spans else ())
        except ValueError:  # nothing keeps a model without the grammar of spans from writing half a box
            return chosen
        chosen[list(self.native.tokens_of(row // self.answers_per_row, boxes))] = True
        return chosen

    def sequences(self) -> Tensor:
        """(B, T + n): prompts, then answers with the inserted tokens, padded on the right."""
        rows = []
        for answer, inserted in zip(self.answers, self.inserted, strict=True):
            row, counts = list[int](), iter(inserted)
            for part in answer:
                row += look_ids(next(counts), self.model.layout) if isinstance(part, Look) else [part]
            rows.append(row)
        longest = max(len(row) for row in rows)
        padded = [row + [self.pad_id] * (longest - len(row)) for row in rows]
        return torch.cat([self.prompt, torch.tensor(padded, device=self.prompt.device).view(len(rows), longest)], 1)


def _check(config: Any, model_kwargs: Mapping[str, Any]) -> None:
    if config.num_beams > 1:
        raise ValueError(f"interleaved generation is greedy or sampled, got num_beams={config.num_beams}; use 1")
    if model_kwargs.get("inputs_embeds") is not None:
        raise ValueError("interleaved generation needs input_ids to find the visual tokens, got inputs_embeds")
    cache = cache_given(model_kwargs)
    if cache is not None and cache.get_seq_length():
        raise ValueError(
            f"the given cache holds {cache.get_seq_length()} tokens, whose visual tokens cannot be scored; pass the "
            "whole prompt and no cache"
        )
