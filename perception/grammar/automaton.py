"""The grammar of spans, as an automaton over the language model's ids.

Outside a span any text may follow, or the START of a modality. Inside a span only its codes and its END may, so that a
span is always well-formed. `perception.grammar.processor.SpanLogitsProcessor` applies the grammar in transformers'
`generate`; `SpanGrammar.to_regex`, `to_ebnf` and `to_lark` write it down for other engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from perception.grammar import export
from perception.vocabulary.names import PerceptionVocabulary
from perception.vocabulary.spans import BOX_OF_MASK, GROUP_SIZES, MODALITIES, SpanError, code_family


def bounded(modality: str | None, count: int) -> bool:
    """Whether the code after `count` codes is the second side of a box, of boxes or of a mask, which bounds it."""
    return count % 4 >= 2 and (modality == "boxes" or (modality == "masks" and count < BOX_OF_MASK))


@dataclass(frozen=True)
class GrammarState:
    """State after a sequence of ids: outside any span (modality None), or inside one with these codes so far."""

    modality: str | None = None
    codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class SpanLimits:
    """What one answer may draw, spans that it was begun with included, and the text that must follow its last span."""

    most: Mapping[str, int]
    """Largest number of spans, by modality; any number of those that are left out"""
    reserve: int = 0
    """Tokens of the limit of an answer that spans leave free"""
    silent_ids: frozenset[int] = frozenset()
    """Ids that readers skip, the ends of an answer among them: banned behind a span until text can be read there"""
    blank_ids: frozenset[int] = frozenset()
    """Ids of text without a letter or digit, such as spaces: allowed behind a span, but nothing to read"""


@dataclass(frozen=True)
class SpanGrammar:
    """The rules that say which id may follow which.

    A boxes span holds groups of four locations (x1 y1 x2 y2), a points span groups of two, and END follows whole groups
    only. A depth span holds exactly `vocabulary.depth_length` codes. A mask span holds one box and then exactly
    `vocabulary.mask_length` codes, so that a mask always has its box.
    """

    vocabulary: PerceptionVocabulary
    """Bound to its tokenizer"""
    eos_id: int | None = None
    """Ends an answer in `accepts`; during generation it counts as text, which may not stand inside a span"""
    allow: tuple[str, ...] = MODALITIES
    """Modalities whose spans may be started, where the vocabulary has them; a span that the prompt starts is always
    finished"""
    interleave: bool = False
    """Whether <INTERLEAVE> may stand outside spans"""
    max_boxes: int | None = None
    """Largest number of boxes in a span; None for any number"""
    max_points: int | None = None
    """Largest number of points in a span; None for any number"""
    ordered_boxes: bool = True
    """Whether x2 >= x1 and y2 >= y1 are enforced"""
    vocab_size: int | None = None
    """len(tokenizer): padding rows beyond it are never chosen; None for the end of the perception tokens and eos_id"""
    banned_ids: tuple[int, ...] = ()
    """Ids that must not occur in an answer, such as the image token's"""
    weighs_ends: bool = False
    """Whether greedy decoding ends a list of boxes or points only where that is likelier than all locations in its
    place together. These share the probability of one more box, so that END alone can be the best id where there
    probably is one. It changes nothing about what is well-formed"""

    def __post_init__(self) -> None:
        for name in ("allow", "banned_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = set(self.allow) - set(MODALITIES)
        if unknown:
            raise ValueError(f"allow must hold modalities of {MODALITIES}, got {sorted(unknown)}")
        object.__setattr__(self, "allow", tuple(m for m in self.allow if m in self.vocabulary.modalities))
        if not self.vocabulary.is_bound:
            raise ValueError(
                "the vocabulary has no ids yet; pass what extend(model, tokenizer) or load(folder) returns"
            )
        for name in ("max_boxes", "max_points"):
            most = getattr(self, name)
            if most is not None and most < 0:
                raise ValueError(f"{name} must be 0 or more, or None for any number; got {most}")
        ours = set(self.vocabulary.ids.values())
        if self.eos_id in ours or ours & set(self.banned_ids):
            raise ValueError("eos_id and banned_ids must not be ids of perception tokens; use allow= to ban modalities")
        if self.eos_id is not None and not 0 <= self.eos_id < (self.vocab_size or self.eos_id + 1):
            raise ValueError(f"eos_id ({self.eos_id}) must be an id of the {self.vocab_size} of vocab_size")
        if self.vocab_size is not None and self.vocab_size <= max(ours):
            raise ValueError(
                f"vocab_size ({self.vocab_size}) must exceed perception ids, up to {max(ours)}; pass len(tokenizer)"
            )

    @property
    def num_ids(self) -> int:
        """Number of ids that are not padding."""
        known = (*self.vocabulary.ids.values(), -1 if self.eos_id is None else self.eos_id)
        return self.vocab_size if self.vocab_size is not None else max(known) + 1

    def most_codes(self, modality: str) -> int | None:
        """Largest number of codes in a span; None for any number."""
        if modality in self.vocabulary.lengths:
            return self.vocabulary.lengths[modality]
        most = self._limits[modality]
        return None if most is None else most * GROUP_SIZES[modality]

    @property
    def _limits(self) -> dict[str, int | None]:
        """Largest number of maps, boxes, points or masks in a span, by modality."""
        return {"depth": 1, "boxes": self.max_boxes, "points": self.max_points, "masks": 1}

    def shortest(self, modality: str) -> int:
        """Number of tokens of the shortest span, START and END included."""
        if self.vocabulary.bare_boxes:
            return GROUP_SIZES["boxes"]
        return 2 + self.vocabulary.lengths.get(modality, 0)

    # The automaton, one id at a time. GrammarMasks does the same for batches.

    def allows(self, state: GrammarState, token: int, remaining: int | None = None) -> bool:
        """Whether an id may come next.

        Args:
            state: of the sequence so far.
            token: the id.
            remaining: number of tokens that may still be written, `token` included; None for no limit. A span is only
                started where it can end within the limit, and an open span is ended in time.
        """
        token = int(token)  # a tensor's element hashes by identity
        role = self.vocabulary.id_roles.get(token)
        if state.modality is None:
            if role is None:
                return 0 <= token < self.num_ids and token not in self.banned_ids
            if role.kind == "start":
                return role.family in self.allow and (remaining is None or remaining >= self.shortest(role.family))
            if role.kind == "code" and self.bare_boxes:
                return remaining is None or remaining >= self.shortest("boxes")
            return role.kind == "interleave" and self.interleave
        if role is None:
            return False
        if role.kind == "code" and role.family == code_family(state.modality, len(state.codes)):
            return self._takes_code(state, role.code, remaining)
        return role.kind == "end" and role.family == state.modality and self._may_end(state)

    @property
    def bare_boxes(self) -> bool:
        """True if boxes without START and END may be written."""
        return self.vocabulary.bare_boxes and "boxes" in self.allow

    def _may_end(self, state: GrammarState) -> bool:
        if state.modality in self.vocabulary.lengths:
            return len(state.codes) >= self.vocabulary.lengths[state.modality]
        return len(state.codes) % GROUP_SIZES[str(state.modality)] == 0

    def _takes_code(self, state: GrammarState, code: int, remaining: int | None) -> bool:
        count, most = len(state.codes), self.most_codes(str(state.modality))
        if self.ordered_boxes and bounded(state.modality, count) and code < state.codes[-2]:
            return False  # x2 stands two after x1, y2 two after y1
        if state.modality in self.vocabulary.lengths:
            return most is not None and count < most
        size = GROUP_SIZES[str(state.modality)]
        if count % size == 0 and not self.vocabulary.bare_boxes:
            return (most is None or count < most) and (remaining is None or remaining > size)
        return True

    def advance(self, state: GrammarState, token: int) -> GrammarState:
        """The state after one more id. Raises SpanError where it may not come next."""
        token = int(token)
        if not self.allows(state, token):
            raise SpanError(f"id {token} may not follow {len(state.codes)} codes of {state.modality or 'no span'}")
        role = self.vocabulary.id_roles.get(token)
        if role is None or role.kind in ("end", "interleave"):
            return GrammarState()
        if role.kind == "start":
            return GrammarState(role.family)
        if self.vocabulary.bare_boxes:
            codes = (*state.codes, role.code)
            return GrammarState("boxes", codes) if len(codes) < GROUP_SIZES["boxes"] else GrammarState()
        return GrammarState(state.modality, (*state.codes, role.code))

    def run(self, ids: Iterable[int] | Tensor) -> GrammarState:
        """The state after `ids` (L,). Raises SpanError for the first id that may not follow."""
        state = GrammarState()
        for token in ids.tolist() if isinstance(ids, Tensor) else ids:
            state = self.advance(state, token)
        return state

    def accepts(self, ids: Sequence[int] | Tensor) -> bool:
        """Whether `ids` (L,), up to the first EOS, are a whole answer: nothing out of place and no span left open."""
        whole = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if self.eos_id in whole:
            whole = whole[: whole.index(self.eos_id)]
        try:
            return self.run(whole).modality is None
        except SpanError:
            return False

    # For other engines

    def to_regex(self) -> str:
        """A regular expression (Python's `re`) that fullmatches exactly the well-formed answers.

        It reads tokens by name, as `tokenizer.decode(ids, skip_special_tokens=False)` writes them, without EOS. It uses
        lookahead, which engines built on finite automata lack; use `to_ebnf` for those. Names of `banned_ids`, which a
        grammar does not know, are text to it: ban these ids in the engine.

        Raises:
            ValueError: for a vocabulary that lacks depth, boxes or points; use `to_lark` for those.
        """
        self._check_named()
        return export.regex(self.vocabulary, self._exported, self.interleave, self.ordered_boxes)

    def to_ebnf(self) -> str:
        """The grammar in GBNF, llama.cpp's EBNF, which vLLM's guided decoding (xgrammar) reads as well.

        Three differences from the automaton: the sides of a box are not ordered, which would take one rule per pair of
        bins; text may not contain "<" before one of D, B, L, P, I, "<" (with masks also M) or at the end, as GBNF
        cannot express "anything but these names"; and `banned_ids`, whose names a grammar does not know, are text: ban
        them in the engine, or use `to_lark`. The engine must match added tokens by their text.

        Raises:
            ValueError: as `to_regex`.
        """
        self._check_named()
        return export.ebnf(self.vocabulary, self._exported, self.interleave)

    def to_lark(self, limits: SpanLimits | None = None) -> str:
        """The grammar over ids, for llguidance and the engines that use it (vLLM, SGLang, llama.cpp).

        It allows the same ids as `SpanLogitsProcessor` at every step: names that are spelt in letters are text, and
        banned ids stay banned. Two exceptions: with more than 128 locations the sides of a box are not ordered; and a
        grammar knows no probabilities, so that lists end as if `weighs_ends` were off.

        Args:
            limits: of one prompt's answer: spans that it may not draw are left out, and text must follow its last span.
                Larger numbers of spans are not counted.
        """
        no_text = {*self.vocabulary.ids.values(), *self.banned_ids, self.eos_id}
        text = [i for i in range(self.num_ids) if i not in no_text]
        if limits is None:
            return export.lark(self.vocabulary, self._exported, self.interleave, self.ordered_boxes, text)
        drawn = {name: most for name, most in self._exported.items() if limits.most.get(name) != 0}
        blank = [i for i in text if i in limits.blank_ids]
        told = [i for i in text if i not in limits.blank_ids | limits.silent_ids]
        return export.lark(self.vocabulary, drawn, self.interleave, self.ordered_boxes, text, (blank, told))

    def _check_named(self) -> None:
        if not self.vocabulary.has_usual:
            raise ValueError(
                f"a grammar by names needs depth, boxes and points, and the vocabulary has {self.vocabulary.modalities}"
                "; write it over ids: to_lark()"
            )

    @property
    def _exported(self) -> dict[str, int | None]:
        """Largest number of things in a span, by allowed modality."""
        return {modality: self._limits[modality] for modality in self.allow}
