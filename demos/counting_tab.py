"""The counting tab: boxes appear as their tokens arrive; dragging, adding or deleting one changes the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from demos import counting
from demos.guards import MAX_QUESTION, Refused
from demos.handlers import MODEL_LIMITS, STATE_SECONDS, friendly_steps, place_in, scene_examples
from demos.pictures import enlarged
from perception.model.perception_model import PerceptionModel

ADD = "Add a box: drag, or click two corners"
MOVE = "Move or resize a box: drag it, or a corner"
DELETE = "Delete a box: click inside"
# `drag.js` knows the first words of the tools and the ids of the fields.
_QUESTIONS = ("How many objects are there?", "How many cubes are there?", "How many spheres are there?")


def _examples() -> list[tuple[Path, str]]:
    return [(path, _QUESTIONS[n % len(_QUESTIONS)]) for n, path in enumerate(scene_examples())]


def counting_tab(model: PerceptionModel) -> None:
    thought, corner = gr.State(time_to_live=STATE_SECONDS), gr.State()
    with gr.Row():
        with gr.Column():
            image = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="Image", height=320)
            question = gr.Textbox(_QUESTIONS[0], label="Question", max_length=MAX_QUESTION)
            with gr.Row():
                ask, stop = gr.Button("Count", variant="primary"), gr.Button("Stop")
            examples = [[str(path), text] for path, text in _examples()]
            gr.Examples(examples, [image, question], label="Examples", cache_examples=False)
        with gr.Column():
            picture = gr.Image(
                label="What it draws (edit it below)",
                interactive=False,
                format="png",
                buttons=["fullscreen", "download"],
                height=420,
                elem_id="count-picture",
            )
            answer = gr.Textbox(label="Answer, counted from the boxes", interactive=False, elem_id="count-answer")
            direct = gr.Textbox(label="The same model, answering at once", interactive=False, elem_id="count-direct")
            tool = gr.Radio([ADD, MOVE, DELETE], label="Edit the boxes", elem_id="count-tool")
            hint = gr.Markdown("Count first; then choose a tool and edit the picture.", elem_id="count-hint")
            lying = gr.Textbox("[]", visible="hidden", elem_id="count-boxes", show_label=False)
            dragged = gr.Textbox(visible="hidden", elem_id="count-dragged", show_label=False)
    outputs = [picture, answer, direct, thought]

    def shown(view: counting.CountingView) -> tuple[Any, ...]:
        return view.picture, view.answer, view.direct, view.thought

    def again(old: Any, edited: np.ndarray, said: str) -> Iterator[tuple[Any, ...]]:
        """Outputs, corner and hint, as the answer grows from edited boxes."""
        for view in counting.recount(model, old, edited.tolist()):
            picture, answer, _, new = shown(view)
            hint = "Answered again, from the edited boxes." if new.done else gr.skip()
            yield picture, answer, said, new, None, hint

    def done(old: Any) -> Any:
        if old is None or not old.done:
            raise Refused("count first; then edit what was drawn")
        return old

    @friendly_steps
    def on_ask(path: str | None, text: str | None) -> Iterator[tuple[Any, ...]]:
        """Count by drawing boxes: the picture so far, the answer, and the same model's answer without drawing."""
        for view in counting.count(model, path, text):
            yield shown(view)

    @friendly_steps
    def on_click(
        chosen: str | None, old: Any, first: Any, said: str, event: gr.SelectData
    ) -> Iterator[tuple[Any, ...]]:
        boxes = counting.boxes_of(done(old), model)
        if chosen is None:
            raise Refused("choose below whether to add, to move or to delete a box")
        if chosen == MOVE:
            raise Refused("press on a box, or one of its corners, and drag it")
        place = place_in(event, *enlarged(old.image).size)
        if chosen == ADD and first is None:
            yield (*[gr.skip()] * 4, place, "Now click the opposite corner.")
            return
        edited = counting.with_box(boxes, first, place) if chosen == ADD else counting.without_box(boxes, place)
        yield from again(old, edited, said)

    @friendly_steps
    def on_drag(box: str, old: Any, said: str) -> Iterator[tuple[Any, ...]]:
        yield from again(old, counting.with_dragged(counting.boxes_of(done(old), model), box), said)

    def on_thought(new: Any) -> str:
        """The boxes that can be dragged, for the page."""
        return json.dumps(counting.boxes_of(new, model).tolist() if new is not None and new.done else [])

    asked = ask.click(on_ask, [image, question], outputs, api_name="count", **MODEL_LIMITS)
    submitted = question.submit(on_ask, [image, question], outputs, api_visibility="private", **MODEL_LIMITS)
    clicked = picture.select(
        on_click, [tool, thought, corner, direct], [*outputs, corner, hint], api_visibility="private", **MODEL_LIMITS
    )
    moved = dragged.change(
        on_drag, [dragged, thought, direct], [*outputs, corner, hint], api_visibility="private", **MODEL_LIMITS
    )
    for answered in (asked, submitted, clicked, moved):
        answered.then(on_thought, thought, lying, api_visibility="private", show_progress="hidden")
    tool.change(lambda: None, None, corner, api_visibility="private")
    stop.click(None, cancels=[asked, submitted, clicked, moved], api_visibility="private")
