"""What a Gradio Space runs, from the top of a checkout: the demos on every address of the Space's machine."""

from demos.__main__ import main

main(["--host", "0.0.0.0"])
