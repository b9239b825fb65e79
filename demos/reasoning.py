"""Interleaved reasoning: a figure, a problem, and what each step of the solution looked at. Independent of Gradio."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from demos.guards import Refused, read_image, read_question
from demos.pictures import SIDE
from perception.interleave.reasoner import Reasoner, Reasoning, ReasoningStep, draw_step

MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class ReasoningView:
    """One state of the reasoning tab."""

    pictures: tuple[Image.Image, ...]
    """The figure at each step as the model first saw it, with the selected region in colour, and what a look at native
    resolution brought in"""
    words: tuple[str, ...]
    answer: str
    cost: str
    """How many visual tokens the model read"""

    @property
    def text(self) -> str:
        """All steps, numbered."""
        return "\n".join(f"{number}. {said}" for number, said in enumerate(self.words, start=1))


def solve(reasoner: Reasoner, image_path: str | None, question: str | None) -> ReasoningView:
    """Solve a problem about a figure.

    Raises:
        Refused: for an upload or a question that is not accepted, or a figure that this model cannot show by regions.
    """
    image, asked = read_image(image_path), read_question(question)
    try:
        reasoning: Reasoning = reasoner.solve(image, asked, MAX_NEW_TOKENS)
    except ValueError as error:
        raise Refused(str(error)) from error
    pictures = tuple(draw_step(reasoning.image, step, SIDE) for step in reasoning.steps)
    if not pictures:
        raise Refused("the model took no step at all on this figure; try one that looks like the examples")
    words = tuple(_looked(step) for step in reasoning.steps)
    answer = "no answer could be read" if reasoning.value is None else reasoning.value
    looked = sum(step.inserted for step in reasoning.steps)
    cost = f"{reasoning.visual_tokens}: {reasoning.visual_tokens - looked} of the figure, {looked} of looks"
    return ReasoningView(pictures, words, answer, cost)


def _looked(step: ReasoningStep) -> str:
    count = int(step.cells.sum())
    places = "nothing" if count == 0 else f"{count} {'place' if count == 1 else 'places'}"
    return f"{step.text or '..'}  (looked at {places})"
