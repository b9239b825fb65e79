"""The models of the counting and the depth tab, each with pictures and questions that suit it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from demos.guards import Refused
from demos.handlers import EXAMPLES, scene_examples
from perception.model.perception_model import PerceptionModel
from perception.model.shipped import shipped

PHOTOGRAPHS, SCENES = "photographs", "rendered scenes"
PHOTO_QUESTIONS = {
    "photo-chelsea.jpg": "How many cats are there?",
    "photo-rocket.jpg": "How many people are there?",
    "photo-coffee.jpg": "How many cups are there?",
}
"""By example; `demos/examples/README.md` names their sources"""
_SCENE_QUESTIONS = ("How many objects are there?", "How many cubes are there?", "How many spheres are there?")


@dataclass(frozen=True)
class Offer:
    """A model, and pictures of the kind that it knows."""

    model: PerceptionModel
    examples: tuple[tuple[Path, str], ...]
    """Pictures, each with a counting question"""


def of_photographs(model: PerceptionModel) -> Offer:
    return Offer(model, tuple((EXAMPLES / name, question) for name, question in PHOTO_QUESTIONS.items()))


def of_scenes(model: PerceptionModel) -> Offer:
    questions = (_SCENE_QUESTIONS[n % len(_SCENE_QUESTIONS)] for n in range(len(scene_examples())))
    return Offer(model, tuple(zip(scene_examples(), questions, strict=True)))


def offers(model: str | None, device: str) -> dict[str, Offer]:
    """Load what the page offers, by the names that a visitor reads: a model given, or those that ship.

    Of the shipped ones the model for photographs comes first, where this installation has it.
    """
    if model is not None:
        made = PerceptionModel.from_pretrained(model, device)
        names_things = bool(made.taught_things)  # as photo-tiny does: cats and cups, and no "objects" of scenes
        return {Path(model).name: of_photographs(made) if names_things else of_scenes(made)}
    scenes = {SCENES: of_scenes(PerceptionModel.from_pretrained(shipped("aurora-tiny"), device))}
    try:
        folder = shipped("photo-tiny")
    except ValueError:
        return scenes
    return {PHOTOGRAPHS: of_photographs(PerceptionModel.from_pretrained(folder, device))} | scenes


def find_offer(offered: Mapping[str, Offer], name: str | None) -> PerceptionModel:
    """Return the model of a name, the first one for None. Raises Refused for an unknown name."""
    if name is not None and name not in offered:
        raise Refused(f"there is no model {name!r} here; there is {', '.join(offered)}")
    return offered[name or next(iter(offered))].model


def choice_of(offered: Mapping[str, Offer], identity: str) -> gr.Radio:
    """A choice of the model, shown where there are several."""
    names = list(offered)
    return gr.Radio(names, value=names[0], label="Model for", visible=len(names) > 1, elem_id=identity)


def examples_of(offered: Mapping[str, Offer], inputs: Sequence[Any]) -> list[Any]:
    """Examples of each offer, those of the first one shown; a row has as many values as there are inputs.

    Returns:
        Their components, in the order of the offers; `shown_examples` shows those of another one.
    """
    made = []
    for number, offer in enumerate(offered.values()):
        rows = [[str(path), question][: len(inputs)] for path, question in offer.examples]
        examples = gr.Examples(rows, list(inputs), label="Examples", cache_examples=False, visible=number == 0)
        made.append(examples.dataset)
    return made


def shown_examples(offered: Mapping[str, Offer]) -> Callable[[str], list[Any]]:
    """The function that shows the examples of a chosen offer alone."""
    return lambda name: [gr.update(visible=name == other) for other in offered]
