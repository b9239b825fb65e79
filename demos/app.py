"""The pages. All that thinks is in `counting`, `depth` and `tokenizing`; here it is put on Gradio's components."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from demos import counting, depth, tokenizing
from demos.guards import MAX_BYTES, MAX_QUESTION, Refused
from demos.pictures import surface
from perception.model import PerceptionModel
from perception.scenes.markers import LETTERS
from perception.tokenizers.depth import DepthTokenizer

EXAMPLES = Path(__file__).parent / "examples"
TITLE = "Perception tokens"
INTRO = (
    "# Perception tokens\n"
    "A vision-language model that draws before it answers: boxes to count, a depth map to judge distance. "
    "What it draws are tokens of its own; **edit them and its answer follows**."
)
CSS = ".narrow {max-width: 1200px; margin: auto}"
QUEUE_SIZE = 48
TIME_LIMIT = 60
"""seconds for one answer"""


def friendly(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose refusals are shown to the visitor as they are."""

    @wraps(function)
    def handler(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Refused as error:
            raise gr.Error(str(error), title="Not taken") from error

    return handler


def friendly_steps(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Like `friendly`, for handlers that stream."""

    @wraps(function)
    def handler(*arguments: Any) -> Iterator[Any]:
        try:
            yield from function(*arguments)
        except Refused as error:
            raise gr.Error(str(error), title="Not taken") from error

    return handler


def _place(event: gr.SelectData, image: Any) -> tuple[float, float]:
    """Where a picture (H, W, 3) was clicked, (x, y) in [0, 1]."""
    height, width = np.asarray(image).shape[:2]
    x, y = event.index
    return min(1.0, max(0.0, x / width)), min(1.0, max(0.0, y / height))


def _counting_tab(model: PerceptionModel) -> None:
    thought, boxes, corner = gr.State(), gr.State(), gr.State()
    with gr.Row():
        with gr.Column():
            image = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="Image", height=340)
            question = gr.Textbox(
                "How many objects are there?", label="Question", max_length=MAX_QUESTION, submit_btn=False
            )
            with gr.Row():
                ask, stop = gr.Button("Count", variant="primary"), gr.Button("Stop")
            examples = [[str(path), text] for path, text in _counting_examples()]
            gr.Examples(examples, [image, question], label="Examples", cache_examples=False)
        with gr.Column():
            picture = gr.Image(label="What it draws (click to edit)", interactive=False, format="png", height=420)
            answer = gr.Markdown("", label="Answer", elem_id="count-answer")
            direct = gr.Textbox(label="The same model, answering at once", interactive=False)
            tool = gr.Radio(["Add a box: click two corners", "Delete a box: click inside"], label="Edit the boxes")
            hint = gr.Markdown("")
    outputs = [picture, answer, direct, thought, boxes]

    def shown(view: counting.CountingView) -> tuple[Any, ...]:
        drawn = counting.boxes_of(view.thought, model) if view.thought.done else None
        return view.picture, view.answer, view.direct, view.thought, drawn

    @friendly_steps
    def on_ask(path: str | None, text: str | None) -> Iterator[tuple[Any, ...]]:
        for view in counting.count(model, path, text):
            yield shown(view)

    def on_click(
        tool: str | None, old: Any, current: Any, first: Any, said: str, event: gr.SelectData
    ) -> Iterator[tuple[Any, ...]]:
        try:
            if old is None or not old.done or current is None:
                raise Refused("ask first; then edit what was drawn")
            place = _place(event, counting.draw_boxes(old.image, None, counting._tokenizer(model)))
            if tool is None:
                raise Refused("choose below whether to add or delete a box")
            if tool.startswith("Add") and first is None:
                yield gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), place, "Now click the opposite corner."
                return
            edited = (
                counting.with_box(current, first, place)
                if tool.startswith("Add")
                else counting.without_box(current, place)
            )
            for view in counting.recount(model, old, edited.tolist()):
                yield (*shown(view)[:2], said, *shown(view)[3:], None, "Answered again from the edited boxes.")
        except Refused as error:
            raise gr.Error(str(error), title="Not taken") from error

    limits = {"concurrency_limit": 1, "concurrency_id": "model", "time_limit": TIME_LIMIT}
    asked = ask.click(on_ask, [image, question], outputs, api_name="count", **limits)
    submitted = question.submit(on_ask, [image, question], outputs, api_name=False, **limits)
    edited = picture.select(
        on_click,
        [tool, thought, boxes, corner, direct],
        [*outputs, corner, hint],
        api_name=False,
        **limits,
    )
    stop.click(None, cancels=[asked, submitted, edited], api_name=False)


def _depth_tab(model: PerceptionModel) -> None:
    points, thought, cell = gr.State([]), gr.State(), gr.State()
    size = depth.depth_tokenizer(model).vqvae.config.codebook_size
    with gr.Row():
        with gr.Column():
            image = gr.Image(type="filepath", sources=["upload", "webcam", "clipboard"], label="Image", height=300)
            gr.Examples([[str(path)] for path in _examples()], [image], label="Examples", cache_examples=False)
            marked = gr.Image(
                label=f"Click 2 to {len(LETTERS)} points here", interactive=False, format="png", height=340
            )
            with gr.Row():
                ask = gr.Button("Which is closest?", variant="primary")
                clear, stop = gr.Button("Clear points"), gr.Button("Stop")
        with gr.Column():
            picture = gr.Image(
                label="The map it draws (click a cell to edit)", interactive=False, format="png", height=420
            )
            answer = gr.Markdown("", label="Answer", elem_id="depth-answer")
            direct = gr.Textbox(label="The same model, answering at once", interactive=False)
            with gr.Group():
                level = gr.Slider(0, size - 1, value=size - 1, step=1, label="New value of the chosen cell (far to near)")
                reach = gr.Radio([("1 cell", 0), ("3 x 3", 1), ("5 x 5", 2)], value=1, label="Brush")
                change = gr.Button("Change the map and answer again")
            hint = gr.Markdown("")
        with gr.Column():
            truth = gr.Image(label="True depth (examples only)", interactive=False, format="png", height=300)
            plot = gr.Plot(label="The map as a surface: drag to turn")
    outputs = [picture, answer, direct, thought, plot]

    def shown(view: depth.DepthView) -> tuple[Any, ...]:
        figure = surface(view.nearness) if view.thought.done else gr.skip()
        return view.picture, view.answer, view.direct, view.thought, figure

    @friendly
    def on_image(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return None, [], None, None
        return depth.enlarged(depth.read_image(path)), [], depth.true_map(path), None

    def on_point(path: str | None, old: list[Any], event: gr.SelectData) -> tuple[Any, ...]:
        try:
            picture = depth.read_image(path)
            added = depth.add_point(old, _place(event, depth.enlarged(picture)))
            return depth.marked(picture, added), added
        except Refused as error:
            raise gr.Error(str(error), title="Not taken") from error

    @friendly_steps
    def on_ask(path: str | None, chosen: list[Any]) -> Iterator[tuple[Any, ...]]:
        for view in depth.judge(model, path, chosen):
            yield shown(view)

    def on_cell(old: Any, event: gr.SelectData) -> tuple[Any, ...]:
        try:
            if old is None or not old.done:
                raise Refused("ask first; then edit the map")
            tokenizer = depth.depth_tokenizer(model)
            nearness = depth.nearness_so_far(old.span("depth"), tokenizer)
            x, y = event.index
            side = depth.draw_map(nearness).height
            chosen = depth.cell_at(model, (min(0.999, x / side), min(0.999, y / side)))
            picture = depth.draw_map(nearness, grid=tokenizer.vqvae.config.grid_size, chosen=chosen)
            code = depth.code_at(model, old, chosen)
            return picture, chosen, f"Row {chosen[0] + 1}, column {chosen[1] + 1}: code {code}. Move the slider, then change it."
        except Refused as error:
            raise gr.Error(str(error), title="Not taken") from error

    @friendly_steps
    def on_change(old: Any, chosen: list[Any], place: Any, code: float, wide: int, said: str) -> Iterator[tuple[Any, ...]]:
        if old is None or place is None:
            raise Refused("ask first, then click a cell of the map")
        for view in depth.rejudge(model, old, chosen, place, int(code), int(wide)):
            found = shown(view)
            yield found[0], found[1], said, found[3], found[4]

    limits = {"concurrency_limit": 1, "concurrency_id": "model", "time_limit": TIME_LIMIT}
    image.change(on_image, [image], [marked, points, truth, thought], api_name=False)
    marked.select(on_point, [image, points], [marked, points], api_name=False)
    clear.click(lambda path: (depth.enlarged(depth.read_image(path)) if path else None, []), [image], [marked, points], api_name=False)
    asked = ask.click(on_ask, [image, points], outputs, api_name=False, **limits)
    picture.select(on_cell, [thought], [picture, cell, hint], api_name=False)
    changed = change.click(on_change, [thought, points, cell, level, reach, direct], outputs, api_name=False, **limits)
    stop.click(None, cancels=[asked, changed], api_name=False)

    def by_numbers(path: str | None, places: list[list[float]]) -> tuple[Any, str, str]:
        """Which of the points (x, y) in [0, 1] is closest: the map, the answer, and the answer at once."""
        chosen: list[tuple[float, float]] = []
        for x, y in places:
            chosen = depth.add_point(chosen, (float(x), float(y)))
        *_, view = depth.judge(model, path, chosen)
        return view.picture, view.answer, view.direct

    gr.api(friendly(by_numbers), api_name="depth", **{k: v for k, v in limits.items() if k != "time_limit"})


def _tokenizer_tab(tokenizer: DepthTokenizer) -> None:
    total, nested = tokenizer.num_codes, tokenizer.vqvae.config.nested
    with gr.Row():
        with gr.Column():
            file = gr.File(file_types=[".png", ".npy"], label="Depth map: 8- or 16-bit PNG, or NPY", type="filepath")
            inverse = gr.Checkbox(label="The file holds disparity or inverse depth (larger is nearer)")
            budget = gr.Slider(1, total, value=total, step=1, label="Tokens", interactive=nested, visible=nested)
            run = gr.Button("Tokenize", variant="primary")
            maps = sorted(EXAMPLES.glob("depth-*.png"))
            gr.Examples([[str(path)] for path in maps], [file], label="Examples", cache_examples=False)
            figures = gr.JSON(label="What is lost")
        with gr.Column():
            with gr.Row():
                original = gr.Image(label="Depth map", interactive=False, format="png")
                decoded = gr.Image(label="From its tokens", interactive=False, format="png")
            error = gr.Image(label="Error", interactive=False, format="png", height=260)
            codes = gr.Dataframe(label="Codes: 0 far, larger is nearer", interactive=False, datatype="number")
    text = gr.Textbox(label="The tokens: copy them, change them, decode them", lines=4, max_lines=8, buttons=["copy"])
    with gr.Row():
        back = gr.Button("Decode these tokens")
        pasted = gr.Image(label="The map of these tokens", interactive=False, format="png", height=260)

    @friendly
    def on_run(path: str | None, larger_is_nearer: bool, tokens: float) -> tuple[Any, ...]:
        view = tokenizing.tokenize(tokenizer, path, larger_is_nearer, int(tokens) if nested else None)
        return view.original, view.decoded, view.error, view.codes, view.text, view.figures

    outputs = [original, decoded, error, codes, text, figures]
    run.click(on_run, [file, inverse, budget], outputs, api_name="tokenize")
    back.click(friendly(lambda t: tokenizing.detokenize(tokenizer, t)), [text], [pasted], api_name="detokenize")


def _examples() -> list[Path]:
    return sorted(EXAMPLES.glob("scene-*.png"))


def _counting_examples() -> list[tuple[Path, str]]:
    questions = ("How many objects are there?", "How many cubes are there?", "How many red objects are there?")
    return [(path, questions[n % len(questions)]) for n, path in enumerate(_examples())]


def build_demo(model: PerceptionModel) -> gr.Blocks:
    """The page for a model, with a queue of bounded length; `launch_settings` go with it."""
    with gr.Blocks(title=TITLE, delete_cache=(600, 1800), analytics_enabled=False) as demo:
        gr.Markdown(INTRO)
        with gr.Tab("Counting"):
            _counting_tab(model)
        if model.depth_tokenizer is not None:
            with gr.Tab("Depth"):
                _depth_tab(model)
            with gr.Tab("Tokenizer"):
                _tokenizer_tab(DepthTokenizer(model.depth_tokenizer))
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=2)
    return demo


def launch_settings() -> dict[str, Any]:
    """What `launch` needs for a page that is safe to share."""
    return {
        "max_file_size": MAX_BYTES,
        "allowed_paths": [str(EXAMPLES)],
        "show_error": False,
        "theme": gr.themes.Soft(),
        "css": CSS,
    }
