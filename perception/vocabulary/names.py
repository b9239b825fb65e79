"""`PerceptionVocabulary`: the names and ids of all perception tokens, and their place in a tokenizer and a model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from perception.vocabulary.continuation import encode_continuation
from perception.vocabulary.extension import (
    CONFIG_KEY,
    INITS,
    add_tokens,
    count_rows,
    embedding_layers,
    find_mismatch,
    write_rows,
)
from perception.vocabulary.recognition import recognised_settings
from perception.vocabulary.spans import (
    BOX_OF_MASK,
    MODALITIES,
    Role,
    Span,
    SpanError,
    check_length,
    code_family,
    read_spans,
    swap_axes,
)
from vqvae.files import write_whole

__all__ = ["FILE_NAME", "MODALITIES", "NAMINGS", "PerceptionVocabulary", "Span", "SpanError"]

FILE_NAME = "perception_vocabulary.json"
NAMINGS = {"default": "LOC", "aurora": "PIXEL", "paligemma": "loc"}
"""Word for a location in token names. AURORA's data resizes images to 336 x 336: num_locations=336. PaliGemma writes
four digits, and a box as y1 x1 y2 x2 without START and END."""
INTERLEAVE = "<INTERLEAVE>"
_WORDS = {"depth": "DEPTH", "boxes": "BOX", "points": "POINT", "masks": "MASK"}
_USUAL = ("depth", "boxes", "points")
"""Modalities of a vocabulary that says nothing of them"""
_LOOKS_LIKE_OURS = re.compile(r"<(?:(?:DEPTH|LOC|PIXEL|MASK)_\d+|(?:DEPTH|BOX|POINT|MASK)_(?:START|END)|INTERLEAVE)>")


@dataclass(frozen=True)
class PerceptionVocabulary:
    """All perception tokens by name, and by id after `extend`, `bind` or `load`.

    Codes are integers of a codebook (depth, masks) or bins of [0, 1] (locations); ids are the language model's.
    """

    depth_codes: int = 128
    """Size K of the depth codebook"""
    depth_grid: tuple[int, int] = (10, 10)
    """Height and width of a depth map in codes"""
    num_locations: int = 100
    """Bins of [0, 1], shared by x and y, boxes and points"""
    naming: str = "default"
    """"default" (<LOC_n>), "aurora" (<PIXEL_n>) or "paligemma" (<loc0000>)"""
    modalities: tuple[str, ...] = _USUAL
    """Those that it has tokens for; some may be absent from a vocabulary that was recognised. Masks are among
    them if mask_codes is given"""
    mask_codes: int | None = None
    """Size of the mask codebook; None for a vocabulary without masks"""
    mask_length: int = 16
    """Number of codes of a mask, its box not counted"""
    ids: dict[str, int] = field(default_factory=dict, hash=False, repr=False)
    """Id of each name; empty before the vocabulary is bound to a tokenizer"""

    def __post_init__(self) -> None:
        if self.naming not in NAMINGS:
            raise ValueError(f"naming must be one of {tuple(NAMINGS)}, got {self.naming!r}")
        object.__setattr__(self, "depth_grid", tuple(self.depth_grid))
        if "masks" in self.modalities and self.mask_codes is None:
            raise ValueError("modalities name masks, so mask_codes, the size of their codebook, must be given")
        given = tuple(m for m in self.modalities if m != "masks")
        object.__setattr__(self, "modalities", given if self.mask_codes is None else (*given, "masks"))
        if not self.modalities or tuple(m for m in MODALITIES if m in self.modalities) != self.modalities:
            raise ValueError(f"modalities must be some of {MODALITIES}, in this order, got {self.modalities}")
        if self.bare_boxes and self.modalities != ("boxes",):
            raise ValueError(f'naming "paligemma" has boxes alone, got modalities {self.modalities}')
        if self.mask_codes is not None and "boxes" not in self.modalities:
            raise ValueError(f"masks must have boxes, and the vocabulary has {given} alone; leave mask_codes out")
        of_masks = [self.mask_length] if self.mask_codes is None else [self.mask_codes, self.mask_length]
        sizes = [self.depth_codes, self.num_locations, *self.depth_grid, *of_masks]
        if len(self.depth_grid) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(
                "depth_codes, num_locations, both sides of depth_grid (height, width), mask_codes and mask_length must "
                f"be integers above 0, got {self.depth_codes}, {self.num_locations}, {self.depth_grid}, "
                f"{self.mask_codes}, {self.mask_length}"
            )
        if self.ids and self.ids.keys() != set(self.tokens):
            missing, unknown = set(self.tokens) - self.ids.keys(), self.ids.keys() - set(self.tokens)
            raise ValueError(
                f"ids must name exactly this vocabulary's tokens; missing {sorted(missing)[:3]}, unknown "
                f"{sorted(unknown)[:3]}; let extend() or bind() give them"
            )
        if len(set(self.ids.values())) < len(self.ids) or not all(type(i) is int and i >= 0 for i in self.ids.values()):
            raise ValueError("ids must be different integers from 0; let extend() or bind() give them")

    # Names

    @property
    def depth_length(self) -> int:
        """Number of codes of a depth map."""
        return self.depth_grid[0] * self.depth_grid[1]

    @property
    def lengths(self) -> dict[str, int]:
        """Number of codes of a span, by modality, where it is fixed."""
        return {"depth": self.depth_length, "masks": BOX_OF_MASK + self.mask_length}

    @property
    def has_usual(self) -> bool:
        """True unless depth, boxes or points are absent."""
        return set(_USUAL) <= set(self.modalities)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the ids, in JSON's types; modalities only where some are absent, masks only where present."""
        left_out = {"ids"} | ({"modalities"} if self.has_usual else set())
        left_out |= {"mask_codes", "mask_length"} if self.mask_codes is None else set()
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    @property
    def bare_boxes(self) -> bool:
        """True if boxes are groups of four locations, y1 x1 y2 x2, without START and END."""
        return self.naming == "paligemma"

    @property
    def marked(self) -> tuple[str, ...]:
        """Modalities whose spans have START and END."""
        return () if self.bare_boxes else self.modalities

    @cached_property
    def name_roles(self) -> dict[str, Role]:
        """Role of each token by name, in the order of `tokens`."""
        roles = {}
        for modality in self.marked:
            roles[self.start_name(modality)] = Role("start", modality)
            roles[self.end_name(modality)] = Role("end", modality)
        roles |= {name: Role("code", "depth", n) for n, name in enumerate(self.code_names("depth"))}
        roles |= {name: Role("code", "location", n) for n, name in enumerate(self.code_names("boxes"))}
        roles |= {name: Role("code", "mask", n) for n, name in enumerate(self.code_names("masks"))}
        return roles | ({INTERLEAVE: Role("interleave")} if self.has_usual else {})

    @cached_property
    def tokens(self) -> list[str]:
        """All names, in the order in which they are added."""
        return list(self.name_roles)

    def start_name(self, modality: str) -> str:
        return f"<{self._word(modality)}_START>"

    def end_name(self, modality: str) -> str:
        return f"<{self._word(modality)}_END>"

    def code_names(self, modality: str) -> list[str]:
        """Names of codes 0, 1, ...; none where the vocabulary has neither the modality nor another with its codes."""
        family = code_family(modality)
        if all(code_family(present) != family for present in self.modalities):
            return []
        if family == "location" and self.bare_boxes:
            return [f"<loc{n:04d}>" for n in range(self.num_locations)]
        word = NAMINGS[self.naming] if family == "location" else self._word(modality)
        return [f"<{word}_{n}>" for n in range(self.num_codes(modality))]

    def num_codes(self, modality: str) -> int:
        """Number of different codes of a modality; 0 for masks in a vocabulary without them."""
        return {"depth": self.depth_codes, "masks": self.mask_codes or 0}.get(modality, self.num_locations)

    @staticmethod
    def _word(modality: str) -> str:
        if modality not in _WORDS:
            raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")
        return _WORDS[modality]

    # Ids

    @property
    def is_bound(self) -> bool:
        return bool(self.ids)

    def _check_bound(self) -> None:
        if not self.is_bound:
            raise ValueError("the vocabulary has no ids yet; use what extend(model, tokenizer) or load(folder) returns")

    @cached_property
    def id_roles(self) -> dict[int, Role]:
        return {self.token_id(name): role for name, role in self.name_roles.items()}

    def token_id(self, name: str) -> int:
        """Id of a token. Raises ValueError for an unknown name, or before the vocabulary is bound."""
        self._check_bound()
        if name not in self.ids:
            raise ValueError(
                f"{name!r} is not a token of this vocabulary; it has {self.tokens[0]} ... {self.tokens[-1]}"
            )
        return self.ids[name]

    def start_id(self, modality: str) -> int:
        return self.token_id(self.start_name(modality))

    def end_id(self, modality: str) -> int:
        return self.token_id(self.end_name(modality))

    def code_ids(self, modality: str) -> list[int]:
        """Ids of codes 0, 1, ... of a modality; boxes and points have the same."""
        return [self.token_id(name) for name in self.code_names(modality)]

    @property
    def interleave_id(self) -> int:
        return self.token_id(INTERLEAVE)

    # Spans

    def check_span(self, span: Span) -> None:
        """Raise SpanError where the span's length or a code does not fit this vocabulary."""
        if span.modality not in self.modalities:
            raise SpanError(f"the vocabulary has no tokens for {span.modality}, only for {', '.join(self.modalities)}")
        check_length(span.modality, len(span.codes), self.lengths)
        for modality, codes in zip(("boxes", span.modality), span.split, strict=True):
            size = self.num_codes(modality)
            if codes and not 0 <= min(codes) <= max(codes) < size:
                raise SpanError(
                    f"{code_family(modality)} codes must lie in 0..{size - 1}, got {min(codes)}..{max(codes)}; they "
                    "are integers of the codebook or bins, not ids"
                )

    def span_names(self, span: Span) -> list[str]:
        """Names of START, the codes, END; of the codes alone where boxes are bare. Raises SpanError as `check_span`."""
        self.check_span(span)
        names = self.code_names(span.modality)
        if self.bare_boxes:
            return [names[code] for code in swap_axes(span.codes)]
        (box, own), locations = span.split, self.code_names("boxes")
        codes = [*(locations[code] for code in box), *(names[code] for code in own)]
        return [self.start_name(span.modality), *codes, self.end_name(span.modality)]

    def span_ids(self, span: Span) -> list[int]:
        """Ids of START, the codes, END. Raises SpanError as `check_span`."""
        return [self.token_id(name) for name in self.span_names(span)]

    def span_text(self, span: Span) -> str:
        """Names of START, the codes, END, without spaces. Raises SpanError as `check_span`."""
        return "".join(self.span_names(span))

    def parse(self, ids: Iterable[int]) -> list[int | Span]:
        """Join every span of ids (L,) into a `Span`; ids of text stay.

        Raises:
            SpanError: for a span that is truncated or of the wrong length, or a code outside any span.
        """
        plain = ids.tolist() if isinstance(ids, Tensor) else [int(i) for i in ids]
        return read_spans(plain, self.id_roles, self.lengths, self.bare_boxes)

    def parse_text(self, text: str) -> list[str | Span]:
        """Split text that holds tokens by name into pieces of text and spans. `<INTERLEAVE>` is a piece of its own.

        Text that a user typed can look the same: only trust spans of a model's own output, and prefer `parse`.
        """
        pieces = [piece for piece in self._name_pattern.split(text) if piece]
        return read_spans(pieces, self.name_roles, self.lengths, self.bare_boxes)

    @cached_property
    def _name_pattern(self) -> re.Pattern[str]:
        return re.compile("(" + "|".join(map(re.escape, self.tokens)) + ")")

    def encode_plain(self, tokenizer: Any, text: str, alone: bool = False) -> list[int]:
        """Encode text so that names of perception tokens in it stay plain text. No BOS or EOS is added.

        All text written by users must be encoded here. Names of other special tokens stay plain text, too.

        Args:
            alone: keeps the space that SentencePiece's tokenizers put before a text. Left out, the text is taken to go
                on behind other text, where there is none.

        Raises:
            ValueError: where the tokenizer makes a perception token nevertheless.
        """
        ids: list[int] = (
            tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
            if alone
            else encode_continuation(tokenizer, text)
        )
        leaked = [i for i in ids if i in self.id_roles]
        if leaked:
            raise ValueError(
                f"the tokenizer made perception tokens of plain text: {tokenizer.convert_ids_to_tokens(leaked)[:3]}; "
                "they must be added with special_tokens=True, as extend() does: extend the original tokenizer instead"
            )
        return ids

    # Models and files

    @classmethod
    def recognise(cls, tokenizer: Any, depth_grid: tuple[int, int] = (10, 10)) -> PerceptionVocabulary:
        """Return the vocabulary, with its ids, of a published model whose tokenizer has perception tokens already.

        Known are AURORA's and MolmoAct's depth tokens (<DEPTH_n>), PaliGemma's locations (<loc0000>, boxes alone), and
        the tokens of this package. Model and ids stay as they are. The tokens become special in the tokenizer, so that
        users' text can be kept from becoming them.

        Args:
            depth_grid: height and width of a depth map in codes, which tokenizers do not say. Masks are taken to have
                16 codes.

        Raises:
            ValueError: where none of these tokens is there, or some are missing among them.
        """
        found = cls(depth_grid=depth_grid, **recognised_settings(set(tokenizer.get_vocab())))
        add_tokens(tokenizer, found.tokens)
        bound = found.bind(tokenizer)
        problem = find_mismatch(bound.ids, bound.settings, None, tokenizer)
        if problem:
            raise ValueError(f"the tokenizer's perception tokens cannot be used: {problem}")
        return bound

    def bind(self, tokenizer: Any) -> PerceptionVocabulary:
        """Return this vocabulary with the ids of a tokenizer that has its tokens already; changes no model.

        Raises:
            ValueError: where the tokenizer lacks a token.
        """
        known = tokenizer.get_vocab()
        missing = [name for name in self.tokens if name not in known]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {len(missing)} of {len(self.tokens)} perception tokens, e.g. {missing[:3]}; load "
                "the tokenizer that was saved with this vocabulary, or extend(model, tokenizer) first"
            )
        return replace(self, ids={name: known[name] for name in self.tokens})

    def extend(
        self,
        model: Any,
        tokenizer: Any,
        init: str = "mean",
        codebook: Tensor | None = None,
        descriptions: Mapping[str, str] | None = None,
        pad_to_multiple_of: int | None = None,
    ) -> PerceptionVocabulary:
        """Add all tokens to a tokenizer and their rows to a model; returns this vocabulary with the ids.

        Works on any causal or image-text-to-text model of transformers, with tied or untied embeddings. Spare rows of
        padded embeddings are used first, no row is dropped, and old rows do not change. A second call changes nothing.
        A model that was extended with this vocabulary without masks gets the tokens of masks beside its own.

        Args:
            model: its config keeps the vocabulary's settings as `perception_vocabulary`.
            tokenizer: gets the tokens as special tokens, so that `encode_plain` can keep users' text apart.
            init: values of the new rows, in input and output embeddings.
                "mean": the mean of the old rows.
                "description": the mean of the rows of a plain text, given in `descriptions` or, for <LOC_34>, " 34";
                other tokens as in "mean".
                "codebook": depth codes from `codebook`; other tokens as in "description".
            codebook: (K, D) vectors of the depth codes. A fixed random projection maps them to the rows' width, so that
                codes that are close in the VQVAE are close in the language model. They get the old rows' spread.
            descriptions: plain text by token name, for "description" and "codebook".
            pad_to_multiple_of: the number of rows is rounded up to a multiple of this, where rows are added.

        Raises:
            ValueError: for a model or tokenizer that was extended with another vocabulary, a model whose input and
                output tables differ in rows, or a bad argument.
        """
        self._check_init(init, codebook)
        wanted = self._descriptions(descriptions) if init != "mean" else {}
        self._check_extendable(model, tokenizer)
        before, rows = tokenizer.get_vocab(), count_rows(model)
        missing = [name for name in self.tokens if name not in before]
        if not missing and max(self.bind(tokenizer).ids.values()) < rows:
            return self._extended_before(model, tokenizer)
        bound = self._add_tokens(tokenizer)
        # With an extended tokenizer and a fresh model all rows of ours are new, even those inside its padding.
        new_ids = [bound.ids[name] for name in (missing or self.tokens)]
        old_ids = sorted(i for name, i in before.items() if i < rows and name not in bound.ids)
        described = {bound.ids[name]: bound.encode_plain(tokenizer, text) for name, text in wanted.items()}
        write_rows(model, old_ids, new_ids, described, codebook, bound.code_ids("depth"), pad_to_multiple_of)
        setattr(model.config, CONFIG_KEY, bound.settings)
        bound.check(model, tokenizer)
        return bound

    def _check_init(self, init: str, codebook: Tensor | None) -> None:
        if init not in INITS:
            raise ValueError(f"init must be one of {INITS}, got {init!r}")
        if (init == "codebook") != (codebook is not None):
            raise ValueError("init='codebook' and codebook= go together; pass codebook=vqvae.codebook, or another init")
        if codebook is not None and (codebook.ndim != 2 or codebook.shape[0] != self.depth_codes):
            raise ValueError(
                f"codebook must be (depth_codes, D) = ({self.depth_codes}, D), got {tuple(codebook.shape)}; use the "
                "VQVAE whose codes the vocabulary names"
            )

    def _descriptions(self, given: Mapping[str, str] | None) -> dict[str, str]:
        """Plain text by token name: those given, and the number of each location."""
        unknown = set(given or ()) - set(self.tokens)
        if unknown:
            raise ValueError(f"descriptions must be by token name, got {sorted(unknown)[:3]}; see vocabulary.tokens")
        return {name: f" {n}" for n, name in enumerate(self.code_names("boxes"))} | dict(given or {})

    @property
    def without_masks(self) -> PerceptionVocabulary:
        """This vocabulary without masks and ids, which a model may have had before it learns masks."""
        others = tuple(modality for modality in self.modalities if modality != "masks")
        return replace(self, modalities=others, mask_codes=None, ids={})

    def _check_extendable(self, model: Any, tokenizer: Any) -> None:
        """Raise ValueError where model or tokenizer hold another vocabulary; this one without masks is none."""
        if not hasattr(tokenizer, "get_vocab"):
            raise ValueError(f"extend takes a tokenizer, got {type(tokenizer).__name__}; give processor.tokenizer")
        rows = [layer.weight.shape[0] for layer in embedding_layers(model)]
        if len(set(rows)) > 1:
            raise ValueError(
                f"the model's input table has {rows[0]} rows and its output layer {rows[1]}, so that new tokens would "
                "overwrite rows in use; such models (Llama 3.2 Vision) are not supported, extend one with equal tables"
            )
        remedy = "start from the original model and tokenizer, or use the vocabulary they were extended with"
        settings = getattr(model.config, CONFIG_KEY, None)
        held = self if settings == self.settings else self.without_masks
        if settings is not None and settings != held.settings:
            raise ValueError(f"the model was extended with {settings}, got {self.settings}; {remedy}")
        foreign = self.foreign_tokens(tokenizer)
        if foreign:
            raise ValueError(f"the tokenizer has perception tokens of another vocabulary, e.g. {foreign[:3]}; {remedy}")
        known = tokenizer.get_vocab()
        if settings is not None and any(name not in known for name in held.tokens):
            raise ValueError(
                "the model was extended with this vocabulary and the tokenizer was not, so its rows would be written "
                "anew; load the tokenizer that was saved with the model, or start from the original model"
            )
        for modality in ("depth", "boxes", "masks"):
            present = [name in known for name in self.code_names(modality)]
            if any(present) and not all(present):
                raise ValueError(
                    f"the tokenizer has {sum(present)} of the {len(present)} codes of {modality}; {remedy}"
                )

    def _extended_before(self, model: Any, tokenizer: Any) -> PerceptionVocabulary:
        """This vocabulary with its ids, for a tokenizer and a model that have its tokens and rows already."""
        bound = self.bind(tokenizer)
        if getattr(model.config, CONFIG_KEY, None) is None:
            raise ValueError(
                "tokenizer and model have the tokens and their rows, but the model's config does not say that extend() "
                "made them; keep the rows with bind(tokenizer), or write them anew with the original tokenizer"
            )
        bound.check(model, tokenizer)
        return bound

    def _add_tokens(self, tokenizer: Any) -> PerceptionVocabulary:
        """Add the missing tokens to a tokenizer and make the others special; returns this vocabulary with the ids."""
        add_tokens(tokenizer, self.tokens)
        bound = self.bind(tokenizer)
        problem = find_mismatch(bound.ids, bound.settings, None, tokenizer)
        if problem:
            raise ValueError(
                f"the tokenizer cannot hold perception tokens: {problem}; use a fast tokenizer of transformers"
            )
        return bound

    def foreign_tokens(self, tokenizer: Any) -> list[str]:
        """Perception tokens of other vocabularies in a tokenizer."""
        ours = set(self.tokens)
        return [name for name in tokenizer.get_added_vocab() if name not in ours and _LOOKS_LIKE_OURS.fullmatch(name)]

    def check(self, model: Any, tokenizer: Any, folder: str | Path | None = None) -> None:
        """Raise ValueError where tokenizer or model do not fit this vocabulary.

        They fit if each name is one id, the same as here; `encode_plain` reads no text as a token; input and output
        embeddings have the rows; and the model's config names no other vocabulary.

        Args:
            model: or None to check the tokenizer alone.
            tokenizer: the one that is used with the model.
            folder: named in errors.
        """
        self._check_bound()
        problem = find_mismatch(self.ids, self.settings, model, tokenizer)
        if problem:
            file = Path(folder) / FILE_NAME if folder else Path(FILE_NAME)
            raise ValueError(
                f"{file} does not match the model's folder: {problem}; use model, tokenizer and {FILE_NAME} that were "
                "saved together"
            )

    def save(self, folder: str | Path) -> Path:
        """Write perception_vocabulary.json into a model's folder, atomically, and return its path."""
        if not self.is_bound:
            raise ValueError("a vocabulary without ids cannot be saved; save what extend(model, tokenizer) returns")
        path = Path(folder) / FILE_NAME
        write_whole(path, json.dumps(self.settings | {"ids": self.ids}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> PerceptionVocabulary:
        """Load the vocabulary of a model's folder.

        Raises:
            ValueError: for a file that is missing, cut short, has missing or unknown keys, or ids that do not fit its
                tokens.
        """
        path = Path(folder) / FILE_NAME
        remedy = "save the vocabulary again: vocabulary.save(folder), with what extend(model, tokenizer) returned"
        if not path.is_file():
            raise ValueError(f"{path} is missing: the folder holds no model with perception tokens; {remedy}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not whole JSON ({error}); {remedy}") from error
        expected = {f.name for f in fields(cls)}
        if not isinstance(values, dict) or values.keys() | {"modalities", "mask_codes", "mask_length"} != expected:
            got = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise ValueError(f"{path} must hold exactly the keys {sorted(expected)}, got {got}; {remedy}")
        if not values["ids"]:
            raise ValueError(f"{path} holds no ids; {remedy}")
        try:
            return cls(**values)
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no valid vocabulary: {error}; {remedy}") from error
