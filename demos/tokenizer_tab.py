"""The tokenizer tab: a depth map to its codes and back, by one of several tokenizers, and a mask likewise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from demos import tokenizing
from demos.guards import Refused
from demos.handlers import EXAMPLES, friendly
from perception.tokenizers.depth import DepthTokenizer
from perception.tokenizers.masks import MaskTokenizer

_BUTTONS = ["fullscreen", "download"]


def tokenizer_tab(tokenizers: Mapping[str, DepthTokenizer], masks: MaskTokenizer) -> None:
    """Add the tab.

    Args:
        tokenizers: by the names that a visitor reads; the first is chosen.
        masks: the tokenizer of masks, below those of depth.
    """
    names = list(tokenizers)
    nested = any(one.vqvae.config.nested for one in tokenizers.values())
    most = max(one.num_codes for one in tokenizers.values())
    with gr.Row():
        with gr.Column():
            file = gr.File(file_types=[".png", ".npy"], label="Depth map: 8- or 16-bit PNG, or NPY", type="filepath")
            inverse = gr.Checkbox(label="The file holds disparity or inverse depth (larger is nearer)")
            chosen = gr.Radio(names, value=names[0], label="Tokenizer", visible=len(names) > 1)
            budget = gr.Slider(1, most, most, step=1, label="First so many tokens (nested tokenizer)", visible=nested)
            run = gr.Button("Tokenize", variant="primary")
            maps = sorted(EXAMPLES.glob("depth-*.png"))
            gr.Examples([[str(path)] for path in maps], [file], label="Examples", cache_examples=False)
            figures = gr.JSON(label="What is lost")
        with gr.Column():
            with gr.Row():
                original = gr.Image(label="Depth map", interactive=False, format="png", buttons=_BUTTONS)
                decoded = gr.Image(label="From its tokens", interactive=False, format="png", buttons=_BUTTONS)
            error = gr.Image(label="Error", interactive=False, format="png", buttons=_BUTTONS, height=260)
            codes = gr.Dataframe(label="Codes: 0 far, larger is nearer", interactive=False, datatype="number")
    budgets = gr.Gallery(
        label="The same map at each budget of tokens (nested tokenizer)",
        columns=6,
        height=300,
        format="png",
        object_fit="contain",
        visible=nested,
        elem_id="token-budgets",
    )
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
            buttons=_BUTTONS,
            height=260,
            elem_id="token-map",
        )

    def named(name: str | None) -> DepthTokenizer:
        if name is not None and name not in tokenizers:
            raise Refused(f"there is no tokenizer {name!r} here; there is {', '.join(names)}")
        return tokenizers[name or names[0]]

    @friendly
    def on_run(path: str | None, larger_is_nearer: bool, tokens: float, name: str | None = None) -> tuple[Any, ...]:
        """Encode a depth map: the map, the decoded map, the error, the codes, their text, and figures."""
        tokenizer = named(name)
        first = int(tokens) if tokenizer.vqvae.config.nested else None
        view = tokenizing.tokenize(tokenizer, path, larger_is_nearer, first)
        return view.original, view.decoded, view.error, view.codes, view.text, view.figures

    @friendly
    def on_budgets(path: str | None, larger_is_nearer: bool, name: str | None = None) -> list[tuple[Any, str]]:
        """The map at each budget of a nested tokenizer, with the relative error of its depth."""
        tokenizer = named(name)
        if not tokenizer.vqvae.config.nested:
            return []
        found = tokenizing.compare_budgets(tokenizer, path, larger_is_nearer)
        return [(one.decoded, f"{one.tokens} tokens: AbsRel {one.figures['abs_rel']:.3f}") for one in found]

    outputs = [original, decoded, error, codes, text, figures]
    ran = run.click(on_run, [file, inverse, budget, chosen], outputs, api_name="tokenize")
    ran.success(on_budgets, [file, inverse, chosen], budgets, api_name="token_budgets")

    @friendly
    def on_back(text: str | None, name: str | None = None) -> Any:
        """The map (near is light) that a depth span stands for."""
        return tokenizing.detokenize(named(name), text)

    back.click(on_back, [text, chosen], [pasted], api_name="detokenize")
    _mask_part(masks)


def _mask_part(tokenizer: MaskTokenizer) -> None:
    codes = tokenizer.vqvae.config.num_codes
    gr.Markdown(f"### Masks\nThe mask of one thing is its box and {codes} codes, of pixels inside the box.")
    with gr.Row():
        with gr.Column():
            file = gr.File(file_types=["image"], label="Mask: light inside of one thing, dark outside", type="filepath")
            run = gr.Button("Tokenize the mask")
            paths = sorted(EXAMPLES.glob("mask-*.png"))
            gr.Examples([[str(path)] for path in paths], [file], label="Examples", cache_examples=False)
            figures = gr.JSON(label="What is kept")
        with gr.Column():
            with gr.Row():
                original = gr.Image(label="Mask", interactive=False, format="png", buttons=_BUTTONS)
                decoded = gr.Image(
                    label="From its tokens, over the mask",
                    interactive=False,
                    format="png",
                    buttons=_BUTTONS,
                    elem_id="mask-decoded",
                )
            text = gr.Textbox(label="The tokens of the mask", lines=2, buttons=["copy"], elem_id="mask-text")

    @friendly
    def on_mask(path: str | None) -> tuple[Any, ...]:
        """Encode a mask: the mask, the decoded mask over it, the text of its span, and figures."""
        view = tokenizing.tokenize_mask(tokenizer, path)
        return view.original, view.decoded, view.text, view.figures

    run.click(on_mask, [file], [original, decoded, text, figures], api_name="tokenize_mask")
