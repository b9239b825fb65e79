"""The tokenizer tab: a depth map to its codes and back."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demos import tokenizing
from demos.handlers import EXAMPLES, friendly
from perception.tokenizers.depth import DepthTokenizer


def tokenizer_tab(tokenizer: DepthTokenizer) -> None:
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
                original = gr.Image(
                    label="Depth map", interactive=False, format="png", buttons=["fullscreen", "download"]
                )
                decoded = gr.Image(
                    label="From its tokens", interactive=False, format="png", buttons=["fullscreen", "download"]
                )
            error = gr.Image(
                label="Error", interactive=False, format="png", buttons=["fullscreen", "download"], height=260
            )
            codes = gr.Dataframe(label="Codes: 0 far, larger is nearer", interactive=False, datatype="number")
    text = gr.Textbox(
        label="The tokens: copy them, change them, decode them",
        lines=4,
        max_lines=8,
        buttons=["copy"],
        elem_id="token-text",
    )
    with gr.Row():
        back = gr.Button("Decode these tokens")
        pasted = gr.Image(
            label="The map of these tokens",
            interactive=False,
            format="png",
            buttons=["fullscreen", "download"],
            height=260,
            elem_id="token-map",
        )

    @friendly
    def on_run(path: str | None, larger_is_nearer: bool, tokens: float) -> tuple[Any, ...]:
        """A depth map's codes: the map, what its tokens decode to, the error, the codes, their text, and figures."""
        view = tokenizing.tokenize(tokenizer, path, larger_is_nearer, int(tokens) if nested else None)
        return view.original, view.decoded, view.error, view.codes, view.text, view.figures

    outputs = [original, decoded, error, codes, text, figures]
    run.click(on_run, [file, inverse, budget], outputs, api_name="tokenize")

    @friendly
    def on_back(text: str | None) -> Any:
        """The map (near is light) that a depth span stands for."""
        return tokenizing.detokenize(tokenizer, text)

    back.click(on_back, [text], [pasted], api_name="detokenize")
