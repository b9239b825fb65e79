"""The page: its tabs, its queue, and how it is served safely."""

from __future__ import annotations

from typing import Any

import gradio as gr

from demos.counting_tab import counting_tab
from demos.depth_tab import depth_tab
from demos.guards import MAX_BYTES
from demos.handlers import EXAMPLES
from demos.tokenizer_tab import tokenizer_tab
from perception.model import PerceptionModel
from perception.tokenizers.depth import DepthTokenizer

TITLE = "Perception tokens"
INTRO = (
    "# Perception tokens\n"
    "A vision-language model that draws before it answers: boxes to count, a depth map to judge distance. "
    "What it draws are tokens of its own; **edit them and its answer follows**."
)
QUEUE_SIZE = 48


def build_demo(model: PerceptionModel) -> gr.Blocks:
    """The page for a model, with a queue of bounded length; `launch_settings` go with it."""
    with gr.Blocks(title=TITLE, delete_cache=(600, 1800), analytics_enabled=False) as demo:
        gr.Markdown(INTRO)
        with gr.Tab("Counting"):
            counting_tab(model)
        if model.depth_tokenizer is not None:
            with gr.Tab("Depth"):
                depth_tab(model)
            with gr.Tab("Tokenizer"):
                tokenizer_tab(DepthTokenizer(model.depth_tokenizer))
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=2)
    return demo


def launch_settings() -> dict[str, Any]:
    """What `launch` needs for a page that is safe to share."""
    return {
        "max_file_size": MAX_BYTES,
        "allowed_paths": [str(EXAMPLES)],
        "show_error": False,
        "theme": gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    }
