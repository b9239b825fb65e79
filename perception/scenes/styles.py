"""The two styles of scenes: *standard* for training, and *shifted* for tests of generalisation."""

from __future__ import annotations

from dataclasses import dataclass

SHAPES = ("sphere", "cube", "cylinder", "cone")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")


@dataclass(frozen=True)
class Style:
    """Ranges from which scenes are drawn: lengths in metres, angles in degrees, colours as RGB in [0, 1]."""

    palette: tuple[tuple[float, float, float], ...]
    """one RGB triple per colour name, in the order of `COLORS`"""
    color_jitter: float
    radius: tuple[float, float]
    """half of an object's width"""
    height_ratio: tuple[float, float]
    """height divided by width of cylinders and cones; spheres and cubes are as high as wide"""
    camera_height: tuple[float, float]
    field_of_view: tuple[float, float]
    camera_yaw: float
    """largest turn of the camera to either side"""
    distance: tuple[float, float]
    """smallest and largest distance of an object's centre from the camera, along the floor"""
    wall_distance: tuple[float, float]
    light_azimuth: tuple[float, float]
    """direction of the light: 0 is behind the camera, 90 to its right"""
    light_elevation: tuple[float, float]
    light_color: tuple[float, float, float]
    ambient: tuple[float, float]
    floor_colors: tuple[tuple[float, float, float], ...]
    wall_colors: tuple[tuple[float, float, float], ...]
    floor_textures: tuple[str, ...]
    object_textures: tuple[str, ...]
    clutter: str
    """shape of the flat clutter on floor and wall: rectangles or discs"""
    texture_contrast: tuple[float, float]
    specular: float


TEXTURES = ("plain", "checker", "stripes", "rings", "blotches")

STANDARD = Style(
    palette=(
        (0.80, 0.10, 0.10),  # red
        (0.95, 0.50, 0.08),  # orange
        (0.93, 0.85, 0.15),  # yellow
        (0.12, 0.62, 0.16),  # green
        (0.15, 0.78, 0.82),  # cyan
        (0.12, 0.22, 0.82),  # blue
        (0.48, 0.14, 0.68),  # purple
        (0.96, 0.48, 0.72),  # pink
    ),
    color_jitter=0.06,
    radius=(0.38, 0.68),
    height_ratio=(0.9, 1.5),
    camera_height=(2.0, 3.4),
    field_of_view=(48.0, 58.0),
    camera_yaw=6.0,
    distance=(3.2, 8.2),
    wall_distance=(9.5, 11.5),
    light_azimuth=(-80.0, 40.0),
    light_elevation=(40.0, 70.0),
    light_color=(1.0, 0.98, 0.94),
    ambient=(0.3, 0.52),
    floor_colors=((0.55, 0.52, 0.48), (0.42, 0.42, 0.44), (0.66, 0.62, 0.54), (0.36, 0.33, 0.30)),
    wall_colors=((0.72, 0.72, 0.70), (0.60, 0.62, 0.66), (0.50, 0.48, 0.46), (0.80, 0.78, 0.72)),
    floor_textures=("plain", "checker", "blotches"),
    object_textures=("plain", "plain", "rings", "blotches"),
    clutter="rectangles",
    texture_contrast=(0.06, 0.22),
    specular=0.15,
)

SHIFTED = Style(
    palette=(
        (0.66, 0.08, 0.18),  # red
        (0.99, 0.60, 0.28),  # orange
        (0.82, 0.80, 0.32),  # yellow
        (0.10, 0.46, 0.26),  # green
        (0.40, 0.86, 0.78),  # cyan
        (0.22, 0.38, 0.70),  # blue
        (0.36, 0.22, 0.56),  # purple
        (0.98, 0.62, 0.66),  # pink
    ),
    color_jitter=0.06,
    radius=(0.32, 0.80),
    height_ratio=(0.7, 1.9),
    camera_height=(3.6, 4.6),
    field_of_view=(58.0, 66.0),
    camera_yaw=10.0,
    distance=(3.0, 8.8),
    wall_distance=(10.0, 13.0),
    light_azimuth=(60.0, 115.0),
    light_elevation=(30.0, 55.0),
    light_color=(1.0, 0.88, 0.72),
    ambient=(0.40, 0.54),
    floor_colors=((0.46, 0.52, 0.46), (0.56, 0.46, 0.38), (0.30, 0.34, 0.40), (0.70, 0.70, 0.74)),
    wall_colors=((0.46, 0.54, 0.56), (0.66, 0.58, 0.50), (0.34, 0.34, 0.40)),
    floor_textures=("stripes", "rings"),
    object_textures=("plain", "stripes", "checker"),
    clutter="discs",
    texture_contrast=(0.10, 0.26),
    specular=0.35,
)

STYLES = {"standard": STANDARD, "shifted": SHIFTED}


def get_style(name: str) -> Style:
    """The style called `name`. Raises ValueError with the known names if there is none."""
    if name not in STYLES:
        raise ValueError(f"unknown style {name!r}; known styles: {', '.join(STYLES)}")
    return STYLES[name]
