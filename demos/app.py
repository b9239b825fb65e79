"""The page: its tabs, its queue, and how it is served safely."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from demos.counting_tab import counting_tab
from demos.depth import depth_tokenizer
from demos.depth_tab import depth_tab
from demos.guards import MAX_BYTES
from demos.handlers import EXAMPLES
from demos.offers import Offer
from demos.reasoning_tab import reasoning_tab
from demos.tokenizer_tab import tokenizer_tab
from perception.interleave.reasoner import Reasoner
from perception.model.shipped import shipped
from perception.tokenizers.depth import DepthTokenizer
from perception.tokenizers.masks import MaskTokenizer

TITLE = "Perception tokens"
INTRO = (
    "# Perception tokens\n"
    "A vision-language model that draws before it answers: boxes to count, a depth map to judge distance, regions of a "
    "figure to reason over. What it draws are tokens of its own; **edit them and its answer follows**."
)
DRAG = Path(__file__).parent / "drag.js"
"""Script for boxes that follow the pointer"""
NESTED = "depth-scenes-100-nested"
MASKS = "masks-scenes-16"
QUEUE_SIZE = 48
_NAMES = """<script>
new MutationObserver(() => {
  document.querySelectorAll(".empty[aria-label]:not([role])").forEach((empty) => empty.setAttribute("role", "img"));
  document.querySelectorAll("button.gallery-item:not([aria-label])").forEach((button) =>
    button.setAttribute("aria-label", "Example " + (1 + [...button.parentElement.children].indexOf(button))));
}).observe(document, {childList: true, subtree: true});
</script>"""
"""Script that names Gradio's empty and example pictures for screen readers."""


def _theme() -> gr.themes.Base:
    """Soft theme with the contrast that small text needs, and fonts of the visitor's own machine."""
    return gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        link_text_color="*primary_700",
        color_accent="*primary_600",
        checkbox_label_background_fill_selected="*primary_700",
    )


def _tokenizers(own: DepthTokenizer) -> dict[str, DepthTokenizer]:
    """The model's own tokenizer, and the nested one that ships with the package."""
    nested = DepthTokenizer.from_pretrained(shipped(NESTED))
    total = nested.num_codes
    return {f"the model's own: {own.num_codes} tokens": own, f"nested: any first ones of {total}": nested}


def _trained_on(offered: Mapping[str, Offer]) -> str:
    """Say what the models were trained on; empty if they do not tell."""
    data = {name: offer.model.trained_on for name, offer in offered.items() if offer.model.trained_on}
    if len(offered) == 1:
        said = [f"The model of the first two tabs was trained on {text}." for text in data.values()]
    else:
        said = [f"The model for {name} was trained on {text}." for name, text in data.items()]
    know = "it knows" if len(offered) == 1 else "they know"
    return " ".join([*said, f"Of other pictures {know} little."]) if said else ""


def build_demo(offered: Mapping[str, Offer], reasoner: Reasoner | None = None) -> gr.Blocks:
    """Build the page for some models, with a queue of bounded length; `launch_settings` go with it.

    Args:
        offered: at least one, by the names that a visitor reads; the first is chosen.
        reasoner: shows interleaved reasoning in a tab of its own.
    """
    drawing = {name: offer for name, offer in offered.items() if offer.model.depth_tokenizer is not None}
    with gr.Blocks(title=TITLE, delete_cache=(600, 1800), analytics_enabled=False) as demo:
        gr.Markdown(INTRO)
        if said := _trained_on(offered):
            gr.Markdown(said)
        with gr.Tab("Counting"):
            counting_tab(offered)
        if drawing:
            with gr.Tab("Depth"):
                depth_tab(drawing)
        if reasoner is not None:
            with gr.Tab("Reasoning"):
                reasoning_tab(reasoner)
        if drawing:
            with gr.Tab("Tokenizer"):
                first = next(iter(drawing.values())).model
                tokenizer_tab(_tokenizers(depth_tokenizer(first)), MaskTokenizer.from_pretrained(shipped(MASKS)))
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=2)
    return demo


def launch_settings() -> dict[str, Any]:
    """Settings of `launch` for a page that is safe to share."""
    return {
        "max_file_size": MAX_BYTES,
        "allowed_paths": [str(EXAMPLES)],
        "show_error": False,
        "theme": _theme(),
        "head": _NAMES + f"<script>{DRAG.read_text(encoding='utf-8')}</script>",
    }
