"""Procedurally rendered 3-D scenes with exact depth and boxes: the data that ships with the package."""

from perception.scenes.styles import COLORS, STYLES, SHAPES, Style, get_style
from perception.scenes.render import SceneBatch, SceneObject, render_scenes

__all__ = ["COLORS", "STYLES", "SHAPES", "Style", "SceneBatch", "SceneObject", "get_style", "render_scenes"]
