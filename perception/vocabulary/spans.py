"""Spans (START, codes, END), and reading them out of a sequence of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Literal, NamedTuple, TypeVar

MODALITIES = ("depth", "boxes", "points", "masks")
GROUP_SIZES = {"boxes": 4, "points": 2}
"""Locations per box (x1 y1 x2 y2) and per point (x y). Depth maps and masks have a fixed number of codes instead."""
BOX_OF_MASK = 4
"""Locations x1 y1 x2 y2 that a mask span begins with; codes of the mask inside this box follow (PaliGemma's form)"""

Item = TypeVar("Item")


class SpanError(ValueError):
    """Raised for a span that is cut short or of the wrong length, and for codes outside any span."""


@dataclass(frozen=True)
class Span:
    """Codes of a depth map, flat location bins of boxes or points, or the bins of a box and then its mask's codes."""

    modality: str
    """One of MODALITIES"""
    codes: tuple[int, ...]
    """Integers from 0, not ids of the language model"""

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"modality must be one of {MODALITIES}, got {self.modality!r}")
        try:
            object.__setattr__(self, "codes", tuple(index(code) for code in self.codes))
        except TypeError as error:
            raise ValueError(f"codes must be integers, got {self.codes!r:.80}") from error

    @property
    def split(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The box that a mask's codes begin with, which no other span has, and the modality's own codes."""
        place = BOX_OF_MASK if self.modality == "masks" else 0
        return self.codes[:place], self.codes[place:]


class Role(NamedTuple):
    """The role of a perception token in a span."""

    kind: Literal["start", "end", "code", "interleave"]
    family: str = ""
    """The modality of a start or an end; "depth", "location" (of boxes and points) or "mask" for a code"""
    code: int = -1


_FAMILIES = {"depth": "depth", "boxes": "location", "points": "location", "masks": "mask"}


def code_family(modality: str, place: int = BOX_OF_MASK) -> str:
    """Family of a modality's codes; of a mask's first `BOX_OF_MASK` places it is the locations'.

    Raises:
        ValueError: for an unknown modality.
    """
    if modality not in _FAMILIES:
        raise ValueError(f"modality must be one of {MODALITIES}, got {modality!r}")
    return "location" if modality == "masks" and place < BOX_OF_MASK else _FAMILIES[modality]


def check_length(modality: str, count: int, lengths: Mapping[str, int]) -> None:
    """Raise SpanError where `count` codes do not make a whole span.

    Args:
        lengths: number of codes of a span, by modality, where it is fixed.
    """
    if modality in lengths:
        if count != lengths[modality]:
            what = "codes, those of its box included" if modality == "masks" else "codes"
            raise SpanError(f"a {modality} span must hold exactly {lengths[modality]} {what}, got {count}")
    elif count % GROUP_SIZES[modality]:
        raise SpanError(
            f"a {modality} span must hold a multiple of {GROUP_SIZES[modality]} locations, got {count} locations"
        )


def swap_axes(codes: Iterable[int]) -> tuple[int, ...]:
    """Return flat codes with the two of each pair in the other order: x y from y x, and back."""
    flat = tuple(codes)
    return tuple(code for pair in zip(flat[1::2], flat[::2], strict=True) for code in pair)


def read_spans(
    items: Iterable[Item], roles: Mapping[Item, Role], lengths: Mapping[str, int], bare_boxes: bool = False
) -> list[Item | Span]:
    """Join every START, codes, END of `items` into a `Span`; items without a role stay as they are.

    Args:
        lengths: as of `check_length`.
        bare_boxes: True if every four locations, y1 x1 y2 x2, are a box without START and END.

    Raises:
        SpanError: for a span that is truncated or of the wrong length, or a code or END outside any span.
    """
    remedy = "decode with SpanLogitsProcessor and enough room for the span to get well-formed answers"
    read: list[Item | Span] = []
    modality: str | None = None
    codes: list[int] = []
    for position, item in enumerate(items):
        role = roles.get(item)
        if modality is None:
            if role is None or role.kind == "interleave":
                read.append(item)
            elif bare_boxes:
                modality, codes = "boxes", [role.code]
            elif role.kind == "start":
                modality, codes = role.family, []
            else:
                raise SpanError(
                    f"stray {role.kind} of {role.family} at position {position}, outside any span; {remedy}"
                )
        elif role == Role("end", modality):
            check_length(modality, len(codes), lengths)
            read.append(Span(modality, tuple(codes)))
            modality = None
        elif role is not None and role.kind == "code" and role.family == code_family(modality, len(codes)):
            codes.append(role.code)
            if bare_boxes and len(codes) == GROUP_SIZES["boxes"]:
                read.append(Span(modality, swap_axes(codes)))
                modality = None
        else:
            found = "text" if role is None else f"{role.kind} {role.family}".strip()
            raise SpanError(
                f"expected a {code_family(modality, len(codes))} code or the end of the {modality} span at position "
                f"{position}, got {found}; {remedy}"
            )
    if modality is not None:
        raise SpanError(f"the {modality} span is cut short after {len(codes)} codes; {remedy}")
    return read
