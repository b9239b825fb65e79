"""Sequences of frames of one scene and camera, with one object moved, added or removed between frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from perception.scenes.render import SceneBatch, render_parameters
from perception.scenes.sampling import CANDIDATES, SceneParameters, sample_scenes
from perception.scenes.styles import get_style

CHANGES = ("move", "add", "remove", "none")
_STEP = (0.25, 0.8)
"""Metres that an object moves between two frames"""
_ROOM = 0.12
"""Metres between two objects at least"""


def render_frames(
    seed: int, count: int, style: str = "standard", image_size: int = 80, changes: Sequence[str] = CHANGES
) -> tuple[SceneBatch, list[str]]:
    """Render frames of one scene as a batch, and name the change before each frame.

    The first change is "first"; the others are "move", "add", "remove" or "none".

    Args:
        seed: seed of the scene and of the changes.
        count: number of frames.
        changes: the changes to choose from. If a change is impossible (no object, no room), the frame repeats: "none".

    Raises:
        ValueError: if `count` is below 1 or a change is unknown.
    """
    if count < 1 or not changes or set(changes) - set(CHANGES):
        raise ValueError(f"count must be at least 1 and changes out of {CHANGES}, got {count} and {tuple(changes)}")
    rng = np.random.default_rng((seed, 7))
    newest, happened = sample_scenes([seed], style), ["first"]
    frames = [newest]
    for _ in range(count - 1):
        change = str(rng.choice(list(changes)))
        after = _changed(newest, change, rng)
        happened.append("none" if after is None else change)
        newest = newest if after is None else after
        frames.append(newest)
    return render_parameters(_stack(frames), [seed] * count, image_size), happened


def _changed(scene: SceneParameters, change: str, rng: np.random.Generator) -> SceneParameters | None:
    """The scene (B = 1) after one change; None if nothing changes."""
    present = scene.present[0]
    slots = (~present if change == "add" else present).nonzero()[:, 0].tolist()
    if change == "none" or not slots:
        return None
    slot = int(rng.choice(slots))
    after = replace(scene, present=scene.present.clone(), position=scene.position.clone())
    if change == "remove":
        after.present[0, slot] = False
        return after
    place = _free_place(scene, slot, change, rng)
    if place is None:
        return None
    after.present[0, slot] = True
    after.position[0, slot] = torch.tensor(place)
    return after


def _free_place(scene: SceneParameters, slot: int, change: str, rng: np.random.Generator) -> tuple[float, float] | None:
    """A place (x, z) where the object touches no other, one step away if it moves; None if none is found."""
    style, half = get_style(scene.style), float(scene.field_of_view[0]) / 2
    others = scene.present[0].clone()
    others[slot] = False
    positions, radii = scene.position[0][others], scene.radius[0][others]
    x, z = scene.position[0, slot].tolist()
    for _ in range(CANDIDATES):
        if change == "move":
            angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(*_STEP)
            new_x, new_z = x + step * np.cos(angle), z + step * np.sin(angle)
        else:
            new_z = rng.uniform(*style.distance)
            new_x = rng.uniform(-1, 1)
            new_x *= max(0.5, new_z * np.tan(half) * 0.92 - 0.3)
        if not style.distance[0] <= new_z <= style.distance[1] or abs(new_x) > max(0.5, new_z * np.tan(half) * 0.92):
            continue
        gaps = (positions - torch.tensor([new_x, new_z], dtype=torch.float32)).norm(dim=1)
        if bool((gaps > radii + scene.radius[0, slot] + _ROOM).all()):
            return float(new_x), float(new_z)
    return None


def _stack(frames: Sequence[SceneParameters]) -> SceneParameters:
    """Concatenate scenes of one style."""
    names = [field.name for field in fields(SceneParameters) if field.name != "style"]
    joined: dict[str, Any] = {name: torch.cat([getattr(frame, name) for frame in frames]) for name in names}
    return replace(frames[0], **joined)
