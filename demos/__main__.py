"""Start the demos: `python -m demos` for the shipped tiny models, `--model PATH` for another."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from dataclasses import dataclass

from train.loop.command_line import parse_config


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demos' server."""

    model: str | None = None
    """folder or hub name of a model with perception tokens; default: the shipped models/photo-tiny, where it is
    installed, and models/aurora-tiny"""
    reasoner: str | None = None
    """folder or hub name of a model that reasons over regions (train.interleave); default: the shipped
    models/chart-tiny"""
    host: str = "127.0.0.1"
    """address to listen on; 0.0.0.0 accepts other machines"""
    port: int = 7860
    device: str = "auto"
    """auto: a GPU if there is one"""
    share: bool = False
    """create a public link through Gradio's servers"""


def main(argv: list[str] | None = None) -> None:
    config = parse_config(DemoConfig, argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an orderly end, as by Ctrl-C
    # Whatever visitors send lies here, and goes with the process.
    with tempfile.TemporaryDirectory(prefix="perception-demos-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        serve(config)


def serve(config: DemoConfig) -> None:
    import torch

    from demos.app import build_demo, launch_settings
    from demos.offers import offers
    from perception.interleave.reasoner import Reasoner
    from perception.model.shipped import shipped

    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    reasoner = Reasoner.from_pretrained(config.reasoner or shipped("chart-tiny"), device)
    demo = build_demo(offers(config.model, device), reasoner)
    demo.launch(server_name=config.host, server_port=config.port, share=config.share, **launch_settings())


if __name__ == "__main__":
    main()
