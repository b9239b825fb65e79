"""The counting tab: boxes appear as their tokens arrive; dragging, adding or deleting one changes the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
import numpy as np

from demos import counting
from demos.guards import MAX_QUESTION, Refused
from demos.handlers import MODEL_LIMITS, STATE_SECONDS, friendly, friendly_steps, place_in, uploaded_image
from demos.offers import Offer, choice_of, examples_of, find_offer, shown_examples
from demos.pictures import enlarged
from perception.model.perception_model import PerceptionModel

ADD = "Add a box: drag, or click two corners"
MOVE = "Move or resize a box: drag it, or a corner"
DELETE = "Delete a box: click inside"
# `drag.js` knows the first words of the tools and the ids of the fields.
_FIRST = "Count first; then choose a tool and edit the picture."


def counting_tab(offered: Mapping[str, Offer]) -> None:
    thought, corner = gr.State(time_to_live=STATE_SECONDS), gr.State()
    asked_first = next(iter(offered.values())).examples[0][1]
    with gr.Row():
        with gr.Column():
            chosen = choice_of(offered, "count-model")
            image = uploaded_image(sources=["upload", "webcam", "clipboard"], label="Image", height=320)
            question = gr.Textbox(asked_first, label="Question", max_length=MAX_QUESTION)
            with gr.Row():
                ask, stop = gr.Button("Count", variant="primary"), gr.Button("Stop")
            examples = examples_of(offered, [image, question])
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
            hint = gr.Markdown(_FIRST, elem_id="count-hint")
            lying = gr.Textbox("[]", visible="hidden", elem_id="count-boxes", show_label=False)
            dragged = gr.Textbox(visible="hidden", elem_id="count-dragged", show_label=False)
    outputs = [picture, answer, direct, thought]

    def shown(view: counting.CountingView) -> tuple[Any, ...]:
        return view.picture, view.answer, view.direct, view.thought

    def again(model: PerceptionModel, old: Any, edited: np.ndarray, said: str) -> Iterator[tuple[Any, ...]]:
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
    def on_ask(path: str | None, text: str | None, name: str | None = None) -> Iterator[tuple[Any, ...]]:
        """Count by drawing boxes: the picture so far, the answer, and the same model's answer without drawing."""
        for view in counting.count(find_offer(offered, name), path, text):
            yield shown(view)

    @friendly_steps
    def on_click(
        used: str | None, old: Any, first: Any, said: str, name: str | None, event: gr.SelectData
    ) -> Iterator[tuple[Any, ...]]:
        model = find_offer(offered, name)
        boxes = counting.boxes_of(done(old), model)
        if used is None:
            raise Refused("choose below whether to add, to move or to delete a box")
        if used == MOVE:
            raise Refused("press on a box, or one of its corners, and drag it")
        place = place_in(event, *enlarged(old.image).size)
        if used == ADD and first is None:
            yield (*[gr.skip()] * 4, place, "Now click the opposite corner.")
            return
        edited = counting.with_box(boxes, first, place) if used == ADD else counting.without_box(boxes, place)
        yield from again(model, old, edited, said)

    @friendly_steps
    def on_drag(box: str, old: Any, said: str, name: str | None) -> Iterator[tuple[Any, ...]]:
        model = find_offer(offered, name)
        yield from again(model, old, counting.with_dragged(counting.boxes_of(done(old), model), box), said)

    @friendly
    def on_thought(new: Any, name: str | None) -> str:
        """The boxes that can be dragged, for the page."""
        known = new is not None and new.done
        return json.dumps(counting.boxes_of(new, find_offer(offered, name)).tolist() if known else [])

    hidden: dict[str, Any] = {"api_visibility": "private"}
    edited = [*outputs, corner, hint]
    asked = ask.click(on_ask, [image, question, chosen], outputs, api_name="count", **MODEL_LIMITS)
    submitted = question.submit(on_ask, [image, question, chosen], outputs, **hidden, **MODEL_LIMITS)
    clicked = picture.select(on_click, [tool, thought, corner, direct, chosen], edited, **hidden, **MODEL_LIMITS)
    moved = dragged.change(on_drag, [dragged, thought, direct, chosen], edited, **hidden, **MODEL_LIMITS)
    for answered in (asked, submitted, clicked, moved):
        answered.then(on_thought, [thought, chosen], lying, show_progress="hidden", **hidden)
    tool.change(lambda: None, None, corner, **hidden)
    running = [asked, submitted, clicked, moved]
    stop.click(None, cancels=running, **hidden)
    # What one model drew is not another's: the drawing goes, the image and the question stay.
    emptied = (None, "", "", None, None, _FIRST, "[]")
    chosen.change(lambda: emptied, None, [*edited, lying], cancels=running, **hidden)
    chosen.change(shown_examples(offered), chosen, examples, **hidden)
