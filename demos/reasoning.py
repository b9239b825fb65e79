"""Interleaved reasoning: a figure, a problem, and what each step of the solution looked at. Independent of Gradio."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from demos.guards import Refused, read_image, read_question
from demos.pictures import SIDE
from perception.interleave.reasoner import Reasoner, Reasoning, draw_step

MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class ReasoningView:
    """One state of the reasoning tab."""

    pictures: tuple[Image.Image, ...]
    """The figure at each step, with the selected region in colour"""
    words: tuple[str, ...]
    answer: str

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
    pictures = tuple(draw_step(image, step, SIDE) for step in reasoning.steps)
    if not pictures:
        raise Refused("the model took no step at all on this figure; try one that looks like the examples")
    words = tuple(_looked(step.text, int(step.cells.sum())) for step in reasoning.steps)
    answer = "no answer could be read" if reasoning.value is None else reasoning.value
    return ReasoningView(pictures, words, answer)


def _looked(text: str, count: int) -> str:
    places = "nothing" if count == 0 else f"{count} {'place' if count == 1 else 'places'}"
    return f"{text or '..'}  (looked at {places})"
