"""The depth tab: points are clicked, the map fills in as its tokens arrive, and an edited map changes the answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr

from demos import depth
from demos.guards import Refused
from demos.handlers import MODEL_LIMITS, STATE_SECONDS, friendly, friendly_steps, place_in, uploaded_image
from demos.offers import Offer, choice_of, examples_of, find_offer, shown_examples
from demos.pictures import SIDE, enlarged, surface
from perception.answers import POINT_LETTERS

_BRUSHES = {"1 cell": 0, "3 x 3 cells": 1, "5 x 5 cells": 2}


_FIRST = "Ask first; then click a cell of the map."


def _codes(offered: Mapping[str, Offer], name: str | None) -> int:
    """Number of codes of a model's maps."""
    return depth.depth_tokenizer(find_offer(offered, name)).vqvae.config.codebook_size


def depth_tab(offered: Mapping[str, Offer]) -> None:
    points, thought, cell = gr.State([]), gr.State(time_to_live=STATE_SECONDS), gr.State()
    size = _codes(offered, None)
    with gr.Row():
        with gr.Column():
            chosen = choice_of(offered, "depth-model")
            image = uploaded_image(sources=["upload", "webcam", "clipboard"], label="Image", height=300)
            examples = examples_of(offered, [image])
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
            hint = gr.Markdown(_FIRST, elem_id="depth-hint")
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
    def on_ask(path: str | None, clicked: list[Any], name: str | None) -> Iterator[tuple[Any, ...]]:
        for view in depth.judge(find_offer(offered, name), path, clicked):
            yield shown(view)

    @friendly_steps
    def by_numbers(path: str | None, places: Any, name: str | None = None) -> Iterator[tuple[Any, ...]]:
        """Name the closest of 2 to 5 points, [[x, y], ...] in [0, 1].

        Yields the map so far, the answer, and the answer of the same model without drawing.
        """
        for view in depth.judge(find_offer(offered, name), path, depth.checked_points(places)):
            yield shown(view)[:3]

    @friendly
    def on_cell(old: Any, name: str | None, event: gr.SelectData) -> tuple[Any, ...]:
        if old is None or not old.done:
            raise Refused("ask first; then edit the map")
        model = find_offer(offered, name)
        place = depth.cell_at(model, place_in(event, SIDE, SIDE))
        code = depth.code_at(model, old, place)
        said = f"Row {place[0] + 1}, column {place[1] + 1}: code {code}. Move the slider, then change the map."
        return depth.draw_cell(model, old, place), place, said

    @friendly_steps
    def on_change(
        old: Any, place: Any, code: float, brush: str, said: str, name: str | None
    ) -> Iterator[tuple[Any, ...]]:
        if old is None or place is None:
            raise Refused("ask first, then click a cell of the map")
        model = find_offer(offered, name)
        for view in depth.rejudge(model, old, place, int(code), _BRUSHES.get(brush, 0)):
            picture, answer, _, new, figure = shown(view)
            yield picture, answer, said, new, figure

    hidden: dict[str, Any] = {"api_visibility": "private"}
    image.change(on_image, [image], [marked, points, truth, thought], **hidden)
    marked.select(on_point, [image, points], [marked, points], **hidden)
    clear.click(on_clear, [image], [marked, points], **hidden)
    asked = ask.click(on_ask, [image, points, chosen], outputs, **hidden, **MODEL_LIMITS)
    picture.select(on_cell, [thought, chosen], [picture, cell, hint], **hidden)
    edit = [thought, cell, level, reach, direct, chosen]
    changed = change.click(on_change, edit, outputs, **hidden, **MODEL_LIMITS)
    stop.click(None, cancels=[asked, changed], **hidden)

    def on_model(name: str) -> tuple[Any, ...]:
        """What one model drew is not another's: the map goes, the image and its points stay."""
        most = _codes(offered, name) - 1
        return None, "", "", None, None, None, _FIRST, gr.update(maximum=most, value=most)

    chosen.change(on_model, chosen, [*outputs, cell, hint, level], cancels=[asked, changed], **hidden)
    chosen.change(shown_examples(offered), chosen, examples, **hidden)
    # For programs: the points as numbers. Through components, so that no path of this machine can be named.
    places, named = gr.JSON(visible=False), gr.Button(visible=False)
    named.click(by_numbers, [image, places, chosen], [picture, answer, direct], api_name="depth", **MODEL_LIMITS)
