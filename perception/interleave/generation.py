"""Chains that look again at visual tokens as they are written, by transformers' `generate` and a key-value cache.

A look costs two forwards: [t, I], whose last hidden state chooses visual tokens, then [vision-start, chosen tokens,
vision-end]. As I precedes what it brings in, nothing is fed twice and nothing is cropped. Rows of a batch look at
different times: those that do not are padded, and the padding is taken out of the cache at once, so that the cache has
as many slots as the longest row has tokens.

Logits processors, stopping criteria and max_new_tokens see the *text*: the prompt and what the model has written,
without the tokens that were put in. All rows have written equally much at any time, so a row's text is the same alone
and in a batch.
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
from perception.interleave.chains import InterleavedModel, Look, look_ids
from perception.interleave.context import InterleavedContext
from perception.interleave.selector import VisualTokenSelector
from perception.interleave.triggers import HEADINGS, HeadingTrigger, InterleaveSettings
from perception.interleave.visual_tokens import VisualFeatures, check_images, gather_columns, unwrapped

Choose = Callable[[Tensor, int, int], Tensor]
"""(scores (N,) of a row's visual tokens, row, number of the look from 0) -> (N,) bool, what the look selects."""


@dataclass(frozen=True)
class InterleavedGeneration:
    """What `InterleavedGenerator.generate` gives."""

    sequences: Tensor
    """(B, T + n): prompts as they were given, then answers with all that was put in, padded on the right"""
    answers: list[list[int | Look]]
    """The same answers, as `build_batch` takes them: text up to and with the end of sequence, and looks"""
    look_scores: list[list[Tensor]]
    """Of each look of each row, (N,) scores of the row's visual tokens"""
    peak_slots: int
    """The most slots the cache ever had: tokens of the longest row that was fed"""
    output: Any
    """What `generate` returned: `sequences`, or GenerateDecoderOnlyOutput with scores and logits by written token"""


class RowDraws:
    """Draws tokens and selections. A row draws the same alone, in any batch, and on any process or device."""

    def __init__(self, seeds: Sequence[int], selector: VisualTokenSelector):
        """
        Args:
            seeds: of the rows.
            selector: says how likely a visual token is drawn.
        """
        self._selector = selector
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def tokens(self, scores: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """An id (r,) of each row, drawn with probabilities softmax(scores), scores (r, V).

        Args:
            rows: which they are; None for all of them.
        """
        generators = self._generators if rows is None else [self._generators[row] for row in rows]
        uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators])  # (r,) in [0, 1)
        sums = scores.double().softmax(-1).cumsum(-1)  # (B, V)
        # The first id whose sum is above the draw: never one of probability 0. Scaled, as sums may end short of 1.
        return torch.searchsorted(sums, uniform.to(sums)[:, None] * sums[:, -1:], right=True)[:, 0]

    def select(self, scores: Tensor, row: int, look: int) -> Tensor:
        """Of a row's visual tokens (N,), as `VisualTokenSelector.draw` has it: a `Choose`."""
        return self._selector.draw(scores, self._generators[row])


class InterleavedGenerator:
    """Writes interleaved chains with one model. Greedy or sampled, any batch, several images a row.

    >>> generator = InterleavedGenerator(model, tokenizer=processor.tokenizer)
    >>> result = generator.generate(inputs, max_new_tokens=256)

    or, without the records and the streamer (which `generate` keeps from callables),
    `hf_model.generate(**inputs, custom_generate=generator, max_new_tokens=256)`.
    """

    def __init__(
        self,
        model: InterleavedModel,
        settings: InterleaveSettings | None = None,
        tokenizer: Any = None,
        choose: Choose | None = None,
        draws: RowDraws | None = None,
    ):
        """
        Args:
            model: with its selector and layout.
            settings: when a row looks; at headings by default.
            tokenizer: reads the headings.
            choose: what a look selects; by the selector's threshold if None. See `Choose`.
            draws: with do_sample, draws the tokens, instead of torch's global random numbers.
        """
        self.model, self.draws = model, draws
        self.settings = settings or InterleaveSettings()
        if self.settings.trigger == HEADINGS and tokenizer is None:
            raise ValueError("trigger 'headings' reads the text: pass tokenizer=, or use trigger 'generated'")
        self.heading = HeadingTrigger(tokenizer, self.settings) if self.settings.trigger == HEADINGS else None
        self.choose = choose or (lambda scores, row, look: self.model.selector.select(scores))

    def generate(
        self,
        inputs: Mapping[str, Any],
        streamer: Any = None,
        features: VisualFeatures | None = None,
        **settings: Any,
    ) -> InterleavedGeneration:
        """Answers of a batch of prompts.

        Args:
            inputs: the processor's, padded on the left.
            streamer: gets the prompt and then what the model writes, not what is put in.
            features: of all rows' images, where they are encoded already; inputs then hold no pixel_values.
            settings: of transformers' `generate`. max_new_tokens counts what the model writes; beams are refused;
                use_cache=False computes all anew for every token.

        Raises:
            ValueError: where images and placeholders do not match, or for a setting that cannot be.
        """
        core = unwrapped(self.model.model)
        inputs = dict(inputs)
        check_images(core, self.model.layout, inputs)
        if hasattr(core.base_model, "get_rope_index") and "mm_token_type_ids" not in inputs:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == self.model.layout.image_id).int()
        runs: list[_Run] = []

        def decode(model: Any, input_ids: Tensor, **given: Any) -> Any:
            runs.append(_Run(self, input_ids, streamer=streamer, features=features, **given))
            return runs[0].run()

        output = core.generate(**inputs, streamer=streamer, custom_generate=decode, **settings)
        run = runs[0]
        return InterleavedGeneration(run.sequences(), run.answers, run.look_scores, run.context.peak_slots, output)

    @torch.no_grad()
    def __call__(self, model: Any, input_ids: Tensor, **given: Any) -> Any:
        """For `generate(custom_generate=generator)` of the same model."""
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
        **model_kwargs: Any,
    ):
        _check(generation_config, model_kwargs)
        self.generator, self.model = generator, generator.model
        self.processors, self.criteria, self.config = logits_processor, stopping_criteria, generation_config
        self.streamer = streamer
        self.prompt = self.text = input_ids  # (B, T), (B, T + written)
        count = len(input_ids)
        self.answers: list[list[int | Look]] = [[] for _ in range(count)]
        self.written: list[list[int]] = [[] for _ in range(count)]
        self.look_scores: list[list[Tensor]] = [[] for _ in range(count)]
        self.open = [True] * count
        self.alive = list(range(count))  # rows that are in the context, in its order
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
        """Every row writes a token a step: what a look brings in is fed while the other rows wait.

        Args:
            newest: (B, H), hidden states behind the prompts.
        """
        while True:
            tokens = self._write(newest)
            if not any(self.open):
                return
            newest = self._read_on(self._let_go(newest), tokens)

    # Rows that need not wait

    def _may_part(self) -> bool:
        """Whether nothing looks at the rows' tokens as one block, so that rows may be at different numbers of them."""
        plain = not self.processors and type(self.criteria) is StoppingCriteriaList
        known = all(type(one) in (MaxLengthCriteria, EosTokenCriteria) for one in self.criteria)
        apart = self.streamer is None and not self.config.return_dict_in_generate and self.context.cache is not None
        return plain and known and apart

    def _write_apart(self, newest: Tensor) -> None:
        """Rows that look read what that brings in while the others write on: as many forwards as the row with most
        tokens and looks needs, whenever the rows look. Each row's tokens are those of `_write_abreast`.

        Args:
            newest: (B, H), hidden states behind the prompts.
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
        """The next token of the rows that are ready, by row; hidden states (b, H) of the rows that are alive."""
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
        """One forward: what looks brought in, the newest token of the others, and the interleave token where one looks.

        Args:
            brought: what rows read; emptied, and filled with what those bring in that look now.
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
            for place in sorted(looking):
                found = self._look(self.alive[place], scores[place])
                brought |= {self.alive[place]: found} if found[0] else {}
        return newest

    # Rows abreast

    def _write(self, newest: Tensor) -> list[int]:
        """The next token, B of them, of every row, behind hidden states (b, H) of the rows that are alive."""
        head = self.model.model.get_output_embeddings()
        logits = head(newest).float()  # (b, V)
        if len(self.alive) < len(self.open):
            spread = logits.new_zeros(len(self.open), logits.shape[1])  # (B, V)
            spread[self.alive] = logits
            logits = spread
        banned = self._bans(logits)  # (B, V)
        logits = logits.masked_fill(banned, -torch.inf)
        # Once more behind the processors: one that forces ids must not bring a banned one back.
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
        """Ids (B, V) that no row, or not this row, may write; of some rows alone, (r, V)."""
        layout, most = self.model.layout, self.generator.settings.max_looks
        if self._banned is None:
            self._banned = torch.zeros(len(self.open), logits.shape[1], dtype=torch.bool, device=logits.device)
            self._banned[:, [i for i in layout.reserved if i < logits.shape[1]]] = True
        if layout.interleave_id < logits.shape[1]:
            full = [self.generator.heading is not None or len(scores) == most for scores in self.look_scores]
            self._banned[:, layout.interleave_id] = torch.tensor(full, device=logits.device)
        return self._banned if rows is None else self._banned[list(rows)]

    def _let_go(self, newest: Tensor) -> Tensor:
        """Takes finished rows out of the context, unless the cache is to be returned; (b, H) of the rows kept."""
        kept = [place for place, row in enumerate(self.alive) if self.open[row]]
        if len(kept) == len(self.alive) or self.config.return_dict_in_generate:
            return newest
        self.alive = [self.alive[place] for place in kept]
        self.context.keep(kept)
        places = torch.tensor(kept, device=newest.device)
        self.keys = self.keys[places]
        return newest[places]

    def _read_on(self, newest: Tensor, tokens: list[int] | None) -> Tensor:
        """Feeds what was written, looks where that is due, and feeds what the looks bring in.

        Args:
            newest: (b, H), hidden states of the rows that are alive.
            tokens: B written tokens; None before the first.

        Returns:
            Hidden states (b, H) behind all that.
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
        brought: list[list[int]] = [[] for _ in self.alive]
        sources: list[list[int]] = [[] for _ in self.alive]
        for place, row in enumerate(self.alive):
            if due[place]:
                brought[place], sources[place] = self._look(row, scores[place])
        return self.context.feed(brought, newest, sources)

    def _is_due(self, row: int) -> bool:
        heading, most = self.generator.heading, self.generator.settings.max_looks
        if most is not None and len(self.look_scores[row]) >= most:
            return False
        if heading is None:
            return self.written[row][-1:] == [self.model.layout.interleave_id]
        return heading.fires(self.written[row])

    def _look(self, row: int, scores: Tensor) -> tuple[list[int], list[int]]:
        """What a row's look puts behind the interleave token: ids and sources. `scores`: (M,)."""
        layout, own = self.model.layout, self.context.visual_sources[row]
        scores = scores[: len(own)]
        chosen = self.generator.choose(scores, row, len(self.look_scores[row]))
        if chosen.shape != scores.shape or chosen.dtype != torch.bool:
            raise ValueError(
                f"choose must return ({len(own)},) bool, one a visual token of the row; got {tuple(chosen.shape)} "
                f"{chosen.dtype}"
            )
        look = Look(tuple(chosen.nonzero()[:, 0].tolist()))
        self.look_scores[row].append(scores)
        if self.generator.heading is None:
            self.answers[row].pop()  # the look stands for the token
        self.answers[row].append(look)
        ids, chosen_sources = look_ids(look, layout)[1:], iter(look.tokens)
        return ids, [own[next(chosen_sources)] if i == layout.image_id else -1 for i in ids]

    def sequences(self) -> Tensor:
        """(B, T + n): prompts, and answers with all that was put in, padded on the right."""
        rows = []
        for answer in self.answers:
            row: list[int] = []
            for part in answer:
                row += look_ids(part, self.model.layout) if isinstance(part, Look) else [part]
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
            f"the cache given holds {cache.get_seq_length()} tokens already, whose visual tokens cannot be scored any "
            "more; pass the whole prompt and no cache"
        )
