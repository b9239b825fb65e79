"""Procedurally rendered 3-D scenes with exact depth and boxes: training data that needs no download."""

from perception.scenes.render import SceneBatch, SceneObject, render_scenes
from perception.scenes.styles import COLORS, SHAPES, STYLES, Style, get_style

__all__ = ["COLORS", "SHAPES", "STYLES", "SceneBatch", "SceneObject", "Style", "get_style", "render_scenes"]
