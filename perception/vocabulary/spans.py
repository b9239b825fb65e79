"""Spans (START, codes, END), and reading them out of a sequence of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

MODALITIES = ("depth", "boxes", "points")
GROUP_SIZES = {"boxes": 4, "points": 2}
"""Locations per box (x1 y1 x2 y2) and per point (x y). A depth map has a fixed number of codes instead."""

Item = TypeVar("Item")


class SpanError(ValueError):
    """Raised for a span that is cut short or of the wrong length, and for codes outside any span."""


@dataclass(frozen=True)
class Span:
    """The codes of a depth map, or the flat location bins of boxes or points."""

    modality: str
    """One of MODALITIES"""
    codes: tuple[int, ...]
    """Integers from 0, not ids of the language model"""

    def __post_init__(self) -> None:
        if self.modality not in MODALITIES:
            raise ValueError(f"modality must be one of {MODALITIES}, got {self.modality!r}")
        object.__setattr__(self, "codes", tuple(int(code) for code in self.codes))


class Role(NamedTuple):
    """The role of a perception token in a span."""

    kind: Literal["start", "end", "code", "interleave"]
    family: str = ""
    """The modality of a start or an end; "depth" or "location" (of boxes and points) for a code"""
    code: int = -1


def code_family(modality: str) -> str:
    return "depth" if modality == "depth" else "location"


def check_length(modality: str, count: int, depth_length: int) -> None:
    """Raise SpanError where `count` codes do not make a whole span."""
    if modality == "depth":
        if count != depth_length:
            raise SpanError(f"a depth span must hold exactly {depth_length} codes, got {count}")
    elif count % GROUP_SIZES[modality]:
        raise SpanError(
            f"a {modality} span must hold a multiple of {GROUP_SIZES[modality]} locations, got {count} locations"
        )


def swap_axes(codes: Iterable[int]) -> tuple[int, ...]:
    """Return flat codes with the two of each pair in the other order: x y from y x, and back."""
    flat = tuple(codes)
    return tuple(code for pair in zip(flat[1::2], flat[::2], strict=True) for code in pair)


def read_spans(
    items: Iterable[Item], roles: Mapping[Item, Role], depth_length: int, bare_boxes: bool = False
) -> list[Item | Span]:
    """Join every START, codes, END of `items` into a `Span`; items without a role stay as they are.

    Args:
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
            check_length(modality, len(codes), depth_length)
            read.append(Span(modality, tuple(codes)))
            modality = None
        elif role is not None and role.kind == "code" and role.family == code_family(modality):
            codes.append(role.code)
            if bare_boxes and len(codes) == GROUP_SIZES["boxes"]:
                read.append(Span(modality, swap_axes(codes)))
                modality = None
        else:
            found = "text" if role is None else f"{role.kind} {role.family}".strip()
            raise SpanError(
                f"expected a {code_family(modality)} code or the end of the {modality} span at position {position}, "
                f"got {found}; {remedy}"
            )
    if modality is not None:
        raise SpanError(f"the {modality} span is cut short after {len(codes)} codes; {remedy}")
    return read
