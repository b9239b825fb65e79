"""Gradio demos that make perception visible: `python -m demos`."""
