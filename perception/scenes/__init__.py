"""Procedurally rendered 3-D scenes with exact depth and boxes: the data that ships with the package."""

from perception.scenes.styles import COLORS, LOOKS, SHAPES, Look, get_look
from perception.scenes.render import SceneBatch, SceneObject, render_scenes

__all__ = ["COLORS", "LOOKS", "SHAPES", "Look", "SceneBatch", "SceneObject", "get_look", "render_scenes"]
