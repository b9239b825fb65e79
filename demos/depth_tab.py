"""The depth tab: points are clicked, the map fills in as its tokens arrive, and an edited map changes the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from demos import depth
from demos.guards import Refused
from demos.handlers import MODEL_LIMITS, STATE_SECONDS, friendly, friendly_steps, place_in, scene_examples
from demos.pictures import SIDE, enlarged, surface
from perception.answers import POINT_LETTERS
from perception.model.perception_model import PerceptionModel

_BRUSHES = {"1 cell": 0, "3 x 3 cells": 1, "5 x 5 cells": 2}


def depth_tab(model: PerceptionModel) -> None:
    points, thought, cell = gr.State([]), gr.State(time_to_live=STATE_SECONDS), gr.State()
    size = depth.depth_tokenizer(model).vqvae.config.codebook_size
    with gr.Row():
        with gr.Column():
            image = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="Image", height=300)
            gr.Examples([[str(path)] for path in scene_examples()], [image], label="Examples", cache_examples=False)
            marked = gr.Image(
                label=f"Click 2 to {len(POINT_LETTERS)} points here",
                interactive=False,
                format="png",
                buttons=["fullscreen", "download"],
                height=360,
                elem_id="depth-points",
            )
            with gr.Row():
                ask = gr.Button("Which is closest?", variant="primary")
                clear, stop = gr.Button("Clear points"), gr.Button("Stop")
        with gr.Column():
            picture = gr.Image(
                label="The map it draws (click a cell to edit)",
                interactive=False,
                format="png",
                buttons=["fullscreen", "download"],
                height=420,
                elem_id="depth-map",
            )
            answer = gr.Textbox(label="Answer, read off the map", interactive=False, elem_id="depth-answer")
            direct = gr.Textbox(label="The same model, answering at once", interactive=False, elem_id="depth-direct")
            with gr.Group():
                level = gr.Slider(0, size - 1, value=size - 1, step=1, label="New code of the chosen cell (0 is far)")
                reach = gr.Radio(list(_BRUSHES), value="3 x 3 cells", label="Brush")
                change = gr.Button("Change the map and answer again")
            hint = gr.Markdown("Ask first; then click a cell of the map.", elem_id="depth-hint")
    with gr.Row():
        plot = gr.Plot(label="The map as a surface: drag to turn")
        truth = gr.Image(
            label="True depth (of examples)",
            interactive=False,
            format="png",
            buttons=["fullscreen", "download"],
            height=420,
        )
    outputs = [picture, answer, direct, thought, plot]

    def shown(view: depth.DepthView) -> tuple[Any, ...]:
        figure = surface(view.nearness) if view.thought.done else gr.skip()
        return view.picture, view.answer, view.direct, view.thought, figure

    @friendly
    def on_image(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return None, [], None, None
        return enlarged(depth.read_image(path)), [], depth.true_map(path), None

    @friendly
    def on_point(path: str | None, old: list[Any], event: gr.SelectData) -> tuple[Any, ...]:
        picture = depth.read_image(path)
        added = depth.add_point(old, place_in(event, *enlarged(picture).size))
        return depth.marked(picture, added), added

    @friendly
    def on_clear(path: str | None) -> tuple[Any, ...]:
        return (enlarged(depth.read_image(path)) if path else None), []

    @friendly_steps
    def on_ask(path: str | None, chosen: list[Any]) -> Iterator[tuple[Any, ...]]:
        for view in depth.judge(model, path, chosen):
            yield shown(view)

    @friendly_steps
    def by_numbers(path: str | None, places: Any) -> Iterator[tuple[Any, ...]]:
        """Name the closest of 2 to 5 points, [[x, y], ...] in [0, 1].

        Yields the map so far, the answer, and the answer of the same model without drawing.
        """
        for view in depth.judge(model, path, depth.checked_points(places)):
            yield shown(view)[:3]

    @friendly
    def on_cell(old: Any, event: gr.SelectData) -> tuple[Any, ...]:
        if old is None or not old.done:
            raise Refused("ask first; then edit the map")
        chosen = depth.cell_at(model, place_in(event, SIDE, SIDE))
        code = depth.code_at(model, old, chosen)
        said = f"Row {chosen[0] + 1}, column {chosen[1] + 1}: code {code}. Move the slider, then change the map."
        return depth.draw_cell(model, old, chosen), chosen, said

    @friendly_steps
    def on_change(
        old: Any, chosen: list[Any], place: Any, code: float, brush: str, said: str
    ) -> Iterator[tuple[Any, ...]]:
        if old is None or place is None:
            raise Refused("ask first, then click a cell of the map")
        for view in depth.rejudge(model, old, chosen, place, int(code), _BRUSHES.get(brush, 0)):
            picture, answer, _, new, figure = shown(view)
            yield picture, answer, said, new, figure

    hidden: dict[str, Any] = {"api_visibility": "private"}
    image.change(on_image, [image], [marked, points, truth, thought], **hidden)
    marked.select(on_point, [image, points], [marked, points], **hidden)
    clear.click(on_clear, [image], [marked, points], **hidden)
    asked = ask.click(on_ask, [image, points], outputs, **hidden, **MODEL_LIMITS)
    picture.select(on_cell, [thought], [picture, cell, hint], **hidden)
    changed = change.click(on_change, [thought, points, cell, level, reach, direct], outputs, **hidden, **MODEL_LIMITS)
    stop.click(None, cancels=[asked, changed], **hidden)
    # For programs: the points as numbers. Through components, so that no path of this machine can be named.
    places, named = gr.JSON(visible=False), gr.Button(visible=False)
    named.click(by_numbers, [image, places], [picture, answer, direct], api_name="depth", **MODEL_LIMITS)
