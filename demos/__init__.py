"""Gradio demos that show what a model draws: `python -m demos`."""
