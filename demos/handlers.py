"""Shared parts of the handlers of all tabs: friendly refusals, a time limit, clicked places, the examples."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from demos.guards import Refused

EXAMPLES = Path(__file__).parent / "examples"
TIME_LIMIT = 60.0
"""seconds for one answer"""
MODEL_LIMITS: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
"""One answer at a time: a second one beside it would make both slower."""
STATE_SECONDS = 1800
"""time for which the data of a visitor's page are kept"""


def uploaded_image(**settings: Any) -> gr.Image:
    """An input for an image, whose handlers get the file as the visitor sent it.

    Gradio decodes a file of another mode than RGB by rules of its own before any handler runs: deep grey becomes white,
    transparency black, a picture of any size is decoded, and what is no image fails without a word. All this is
    `read_image`'s to judge. An instance's own method, as a subclass would make Gradio write a stub beside this file.
    """
    image = gr.Image(type="filepath", **settings)
    decode = image.preprocess

    def as_sent(payload: Any) -> Any:
        is_file = payload is not None and payload.path is not None
        return payload.path if is_file else decode(payload)  # which takes an image inside an address ("data:...")

    image.preprocess = as_sent  # type: ignore[method-assign]
    return image


def refusal(error: Refused) -> gr.Error:
    """Message that the visitor reads as it is."""
    return gr.Error(str(error), print_exception=False)


def friendly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a handler so that its refusals are shown to the visitor as they are."""

    @wraps(function)
    def handler(*arguments: Any, **given: Any) -> Any:
        try:
            return function(*arguments, **given)
        except Refused as error:
            raise refusal(error) from error

    return handler


def friendly_steps(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Like `friendly`, for handlers that stream; they end at `TIME_LIMIT`."""

    @wraps(function)
    def handler(*arguments: Any, **given: Any) -> Iterator[Any]:
        begun = time.monotonic()
        try:
            for step in function(*arguments, **given):
                yield tuple(_in_own_file(value) for value in step)
                if time.monotonic() - begun > TIME_LIMIT:
                    raise Refused(
                        f"this took longer than {TIME_LIMIT:.0f} seconds and was stopped; try a smaller model"
                    )
        except Refused as error:
            raise refusal(error) from error

    return handler


def _in_own_file(value: Any) -> Any:
    """Give a picture a mark of its own in its PNG text; return anything else as it is.

    Gradio names files by their bytes and overwrites one of the same name, so a step with an unchanged picture would
    interrupt a visitor who is still fetching the last one.
    """
    if not isinstance(value, Image.Image):
        return value
    picture = value.copy()
    picture.info["step"] = uuid.uuid4().hex
    return picture


def place_in(event: gr.SelectData, width: int, height: int) -> tuple[float, float]:
    """Place (x, y) in [0, 1] at which a picture was clicked."""
    x, y = event.index
    return tuple(np.clip([x / width, y / height], 0, 0.9999).tolist())  # type: ignore[return-value]


def scene_examples() -> list[Path]:
    """Rendered scenes that ship with the demos."""
    return sorted(EXAMPLES.glob("scene-*.png"))
