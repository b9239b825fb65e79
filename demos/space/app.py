"""Run the demos in a Gradio Space, from the top of a checkout, on every address of the Space's machine."""

from demos.__main__ import main

main(["--host", "0.0.0.0"])
