"""Perception tokens by name and by id, spans of them, and their rows in a model."""
