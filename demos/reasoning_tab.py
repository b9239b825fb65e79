"""The reasoning tab: a slider goes over the steps of a solution, each with the region that it looked at."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demos import reasoning
from demos.guards import MAX_QUESTION
from demos.handlers import EXAMPLES, MODEL_LIMITS, STATE_SECONDS, friendly, uploaded_image
from perception.interleave.reasoner import Reasoner


def reasoning_tab(reasoner: Reasoner) -> None:
    found = gr.State(time_to_live=STATE_SECONDS)
    figures = sorted(EXAMPLES.glob("chart-*.png"))
    with gr.Row():
        with gr.Column():
            image = uploaded_image(sources=["upload", "clipboard"], label="Figure", height=320)
            question = gr.Textbox(_QUESTIONS["bars"], label="Problem", max_length=MAX_QUESTION)
            solve = gr.Button("Solve", variant="primary")
            examples = [[str(path), _QUESTIONS[path.stem.split("-")[1]]] for path in figures]
            gr.Examples(examples, [image, question], label="Examples", cache_examples=False)
        with gr.Column():
            step = gr.Slider(1, 2, value=1, step=1, label="Step", interactive=True, elem_id="reason-step")
            picture = gr.Image(
                label="What this step looked at",
                interactive=False,
                format="png",
                buttons=["fullscreen", "download"],
                height=420,
                elem_id="reason-picture",
            )
            said = gr.Textbox(label="This step", interactive=False, elem_id="reason-said")
            words = gr.Textbox(label="All steps", interactive=False, lines=4, elem_id="reason-words")
            answer = gr.Textbox(label="Answer", interactive=False, elem_id="reason-answer")
            cost = gr.Textbox(label="Visual tokens that it read", interactive=False, elem_id="reason-cost")

    @friendly
    def on_solve(path: str | None, text: str | None) -> tuple[Any, ...]:
        view = reasoning.solve(reasoner, path, text)
        count = len(view.pictures)
        slider = gr.Slider(1, max(2, count), value=1, step=1, label=f"Step (of {count})")
        return view.pictures[0], view.words[0], view.text, view.answer, view.cost, slider, view

    @friendly
    def on_step(number: float, view: reasoning.ReasoningView | None) -> tuple[Any, ...]:
        if view is None:
            return gr.skip(), gr.skip()
        place = min(len(view.pictures), max(1, int(number))) - 1
        return view.pictures[place], view.words[place]

    @friendly
    def by_program(path: str | None, text: str | None) -> tuple[Any, ...]:
        """Solve a problem about a figure: the steps with what they looked at, and the answer."""
        view = reasoning.solve(reasoner, path, text)
        return view.text, view.answer

    hidden: dict[str, Any] = {"api_visibility": "private"}
    outputs = [picture, said, words, answer, cost, step, found]
    solve.click(on_solve, [image, question], outputs, **hidden, **MODEL_LIMITS)
    question.submit(on_solve, [image, question], outputs, **hidden, **MODEL_LIMITS)
    step.change(on_step, [step, found], [picture, said], **hidden)
    named = gr.Button(visible=False)
    named.click(by_program, [image, question], [words, answer], api_name="reason", **MODEL_LIMITS)


_QUESTIONS = {
    "bars": "Find A + F.",
    "curve": "Find H + N.",
    "table": "Find 2 * C.",
    "polygon": "Find G + T.",
    "places": "Find H + B.",
}
"""question per family of the examples"""
