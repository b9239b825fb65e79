"""A vectorised ray caster that renders images, exact depth and object ids of a batch of scenes.

The component of each ray along the camera's axis is 1, so the ray parameter of a hit *is* its depth along that axis in
metres, which is what a depth sensor reports. All objects stand upright on the floor y = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from perception.scenes.sampling import MAX_OBJECTS, SceneParameters, sample_scenes
from perception.scenes.styles import COLORS, SHAPES, TEXTURES, get_style

INFINITY = 1e9
MIN_VISIBLE_SHARE = 0.35
"""Smallest visible share of an object's outline. Objects with less are removed, so that counts are unambiguous."""
MIN_VISIBLE_AREA = 20 / 80**2
"""Smallest share of the image that a visible object covers; smaller ones are removed too"""


@dataclass(frozen=True)
class SceneObject:
    """A visible object of a scene."""

    color: str
    shape: str
    box_xyxy: tuple[float, float, float, float]
    """tight box of its visible pixels, in [0, 1] of the image"""
    depth: float
    """median depth of its visible pixels, metres"""
    visible_share: float
    """share of its outline that is visible"""

    @property
    def center_xy(self) -> tuple[float, float]:
        x1, y1, x2, y2 = self.box_xyxy
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class SceneBatch:
    """B rendered scenes of H x W pixels."""

    seeds: tuple[int, ...]
    style: str
    images: Tensor
    """(B, H, W, 3) uint8"""
    depth: Tensor
    """(B, H, W) float32, metres along the camera's axis; valid everywhere"""
    object_ids: Tensor
    """(B, H, W) int16; 0 is background, k is `objects[b][k - 1]`"""
    objects: list[list[SceneObject]]


class _Rays:
    """Components of ray origins and directions, each broadcastable to (N, P)."""

    def __init__(self, origin: Sequence[Tensor], direction: Sequence[Tensor]):
        self.ox, self.oy, self.oz = origin
        self.dx, self.dy, self.dz = direction


def _inside(t: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid & (t > 1e-3), t, INFINITY)


def _hit_sphere(rays: _Rays, radius: Tensor, height: Tensor) -> Tensor:
    oy = rays.oy - radius
    a = rays.dx**2 + rays.dy**2 + rays.dz**2
    b = rays.ox * rays.dx + oy * rays.dy + rays.oz * rays.dz
    c = rays.ox**2 + oy**2 + rays.oz**2 - radius**2
    disc = b * b - a * c
    return _inside((-b - disc.clamp_min(0).sqrt()) / a, disc > 0)


def _hit_cube(rays: _Rays, radius: Tensor, height: Tensor) -> Tensor:
    inverse_x, inverse_y, inverse_z = (1 / (d + (d.abs() < 1e-6) * 2e-6) for d in (rays.dx, rays.dy, rays.dz))
    near_x, far_x = (-radius - rays.ox) * inverse_x, (radius - rays.ox) * inverse_x
    near_y, far_y = (0 - rays.oy) * inverse_y, (height - rays.oy) * inverse_y
    near_z, far_z = (-radius - rays.oz) * inverse_z, (radius - rays.oz) * inverse_z
    enter = torch.maximum(torch.minimum(near_x, far_x), torch.minimum(near_y, far_y))
    enter = torch.maximum(enter, torch.minimum(near_z, far_z))
    leave = torch.minimum(torch.maximum(near_x, far_x), torch.maximum(near_y, far_y))
    leave = torch.minimum(leave, torch.maximum(near_z, far_z))
    return _inside(enter, enter < leave)


def _hit_cylinder(rays: _Rays, radius: Tensor, height: Tensor) -> Tensor:
    a = rays.dx**2 + rays.dz**2 + 1e-9
    b = rays.ox * rays.dx + rays.oz * rays.dz
    disc = b * b - a * (rays.ox**2 + rays.oz**2 - radius**2)
    side = (-b - disc.clamp_min(0).sqrt()) / a
    y = rays.oy + side * rays.dy
    side = _inside(side, (disc > 0) & (y > 0) & (y < height))
    top = (height - rays.oy) / torch.where(rays.dy.abs() < 1e-6, -1e-6, rays.dy)
    x, z = rays.ox + top * rays.dx, rays.oz + top * rays.dz
    return torch.minimum(side, _inside(top, x * x + z * z < radius**2))


def _hit_cone(rays: _Rays, radius: Tensor, height: Tensor) -> Tensor:
    slope = (radius / height) ** 2
    below = height - rays.oy  # how far the origin lies below the apex
    a = rays.dx**2 + rays.dz**2 - slope * rays.dy**2
    a = torch.where(a.abs() < 1e-7, 1e-7, a)
    b = rays.ox * rays.dx + rays.oz * rays.dz + slope * below * rays.dy
    disc = b * b - a * (rays.ox**2 + rays.oz**2 - slope * below**2)
    root = disc.clamp_min(0).sqrt()
    hits = []
    for t in ((-b - root) / a, (-b + root) / a):
        y = rays.oy + t * rays.dy
        hits.append(_inside(t, (disc > 0) & (y > 0) & (y < height)))
    return torch.minimum(*hits)


HITS = {"sphere": _hit_sphere, "cube": _hit_cube, "cylinder": _hit_cylinder, "cone": _hit_cone}


def _cast(scenes: SceneParameters, origin: Tensor, direction: Tensor, present: Tensor) -> Tensor:
    """Ray parameter (B, M, P) at which each ray hits each object; `INFINITY` where it misses.

    Args:
        origin, direction: (3, B, P) or (3, B, 1).
    """
    batch, pixels = origin.shape[1], max(origin.shape[2], direction.shape[2])
    t = torch.full((batch, MAX_OBJECTS, pixels), INFINITY)
    for index, name in enumerate(SHAPES):
        scene, slot = torch.nonzero(present & (scenes.shape == index), as_tuple=True)
        if len(scene) == 0:
            continue
        x, z = scenes.position[scene, slot].unsqueeze(-1).unbind(1)  # each (N, 1)
        o, d = origin[:, scene], direction[:, scene]
        ox, oz, dx, dz = o[0] - x, o[2] - z, d[0], d[2]
        if name == "cube":
            cos, sin = scenes.yaw[scene, slot, None].cos(), scenes.yaw[scene, slot, None].sin()
            ox, oz = cos * ox - sin * oz, sin * ox + cos * oz
            dx, dz = cos * dx - sin * dz, sin * dx + cos * dz
        radius, height = scenes.radius[scene, slot, None], scenes.height[scene, slot, None]
        t[scene, slot] = HITS[name](_Rays((ox, o[1], oz), (dx, d[1], dz)), radius, height)
    return t


def _camera_rays(scenes: SceneParameters, size: int) -> tuple[Tensor, Tensor]:
    """Ray origins (3, B, 1), and ray directions (3, B, P) of the pixels in row-major order."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    half = (scenes.field_of_view / 2).tan()[:, None]
    right = axis.repeat(size)[None] * half  # (B, P)
    up = -axis.repeat_interleave(size)[None] * half
    pitch, yaw = scenes.camera_pitch[:, None], scenes.camera_yaw[:, None]
    ahead = pitch.cos() + up * pitch.sin()
    y = up * pitch.cos() - pitch.sin()
    x, z = right * yaw.cos() + ahead * yaw.sin(), ahead * yaw.cos() - right * yaw.sin()
    origin = torch.zeros(3, len(scenes.camera_height), 1)
    origin[1, :, 0] = scenes.camera_height
    return origin, torch.stack([x, y, z])


def _unit(vectors: Tensor) -> Tensor:
    """Normalise vectors (3, ...). `Tensor.norm` over the first axis is ten times slower on a CPU."""
    return vectors * (vectors * vectors).sum(0, keepdim=True).rsqrt()


def _pattern(kind: Tensor, u: Tensor, v: Tensor, phase: Tensor) -> Tensor:
    """Procedural texture in [-1, 1] at surface coordinates `u`, `v` (metres)."""
    checker = ((u.floor() + v.floor()) % 2) * 2 - 1
    stripes = torch.sign((6.28 * (u + 0.3 * v) + phase).sin())
    rings = (9 * v + phase).sin()
    blotches = (3.1 * u + phase).sin() * (2.7 * v + 2 * phase).sin() + 0.5 * (7.3 * u - 5.9 * v + phase).sin()
    out = torch.zeros_like(u)
    for name, values in (("checker", checker), ("stripes", stripes), ("rings", rings), ("blotches", blotches)):
        out = torch.where(kind == TEXTURES.index(name), values, out)
    return out


def _object_normals(scenes: SceneParameters, slot: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unit normals (3, B, P) and surface coordinates u, v (B, P) at points (3, B, P) of the objects `slot` (B, P)."""

    def of(values: Tensor) -> Tensor:
        return values.gather(1, slot)

    shape, radius, height = of(scenes.shape), of(scenes.radius), of(scenes.height)
    x, y, z = point[0] - of(scenes.position[..., 0]), point[1], point[2] - of(scenes.position[..., 1])
    cos, sin = of(scenes.yaw).cos(), of(scenes.yaw).sin()
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    sphere = torch.stack([x, y - radius, z]) / radius
    round_ = (x * x + z * z).sqrt().clamp_min(1e-6)
    is_top = (y > height - 1e-3)[None]
    cylinder = torch.where(is_top, torch.stack([zero, one, zero]), torch.stack([x / round_, zero, z / round_]))
    tilt = radius / height
    cone = torch.stack([x / round_, tilt, z / round_]) / (1 + tilt * tilt).sqrt()
    local_x, local_z = cos * x - sin * z, sin * x + cos * z
    on_x, on_z = local_x.abs() > radius - 1e-3, local_z.abs() > radius - 1e-3
    face_x, face_z = local_x.sign(), local_z.sign()
    cube = torch.where(
        on_x[None],
        torch.stack([cos * face_x, zero, -sin * face_x]),
        torch.where(on_z[None], torch.stack([sin * face_z, zero, cos * face_z]), torch.stack([zero, one, zero])),
    )
    normal = sphere
    for index, values in ((1, cube), (2, cylinder), (3, cone)):
        normal = torch.where((shape == index)[None], values, normal)
    around = torch.where(shape == 1, torch.where(on_x, local_z, local_x), torch.atan2(x, z) * radius)
    return normal, around / radius * 2, y / radius * 2


def _decal_shade(scenes: SceneParameters, u: Tensor, v: Tensor, wall: Tensor, rgb: Tensor) -> Tensor:
    """Paint flat clutter over the background colours `rgb` (3, B, P)."""
    discs = get_style(scenes.style).clutter == "discs"
    for decal in scenes.decals.unbind(1):
        on_wall, cu, cv, su, sv, shade, yaw, strength = (c[:, None] for c in decal.unbind(1))
        du, dv = u - cu, v - cv
        du, dv = (yaw.cos() * du - yaw.sin() * dv) / su, (yaw.sin() * du + yaw.cos() * dv) / sv
        inside = (du * du + dv * dv < 1) if discs else (du.abs() < 1) & (dv.abs() < 1)
        weight = (inside & (wall == (on_wall > 0.5))) * strength  # (B, P)
        rgb = rgb * (1 - weight) + shade * weight
    return rgb


def _shade(
    scenes: SceneParameters, origin: Tensor, direction: Tensor, hit: Tensor, slot: Tensor, t_back: Tensor
) -> Tensor:
    """Colours (B, P, 3) in [0, 1]: Lambert shading with shadows, some gloss, and procedural textures."""
    is_object = hit < t_back  # (B, P)
    t = torch.minimum(hit, t_back)
    point = origin + t * direction  # (3, B, P)
    normal, u, v = _object_normals(scenes, slot, point)
    wall = ~is_object & (point[1] > 1e-2)
    background = torch.zeros_like(point)
    background[1] = (~wall).float()
    background[2] = -wall.float()
    normal = torch.where(is_object[None], normal, background)
    back_u, back_v = point[0], torch.where(wall, point[1], point[2])
    back_rgb = torch.where(wall[None], scenes.wall_rgb.T[..., None], scenes.floor_rgb.T[..., None])  # (3, B, P)
    back_rgb = _decal_shade(scenes, back_u, back_v, wall, back_rgb)
    rgb = torch.where(
        is_object[None], scenes.rgb.gather(1, slot[..., None].expand(-1, -1, 3)).permute(2, 0, 1), back_rgb
    )
    kind = torch.where(is_object, scenes.texture.gather(1, slot), torch.where(wall, 0, scenes.floor_texture[:, None]))
    contrast = torch.where(is_object, scenes.texture_contrast.gather(1, slot), scenes.floor_contrast[:, None])
    phase = scenes.texture_phase.gather(1, slot) * is_object
    u, v = torch.where(is_object, u, back_u), torch.where(is_object, v, back_v)
    rgb = rgb * (1 + contrast * _pattern(kind, u, v, phase))

    light = scenes.light.T[..., None]  # (3, B, 1)
    lambert = (normal * light).sum(0).clamp_min(0)  # (B, P)
    shadow = (_cast(scenes, point + 2e-3 * normal, light, scenes.present).amin(1) < INFINITY).float()
    lambert = lambert * (1 - shadow)
    half = light - _unit(direction)
    half = _unit(half)
    gloss = get_style(scenes.style).specular * (normal * half).sum(0).clamp_min(0) ** 24 * (1 - shadow) * is_object
    ambient = scenes.ambient[:, None]
    lit = rgb * (ambient + (1 - ambient) * 1.25 * lambert * scenes.light_rgb.T[..., None]) + gloss
    return lit.clamp(0, 1).permute(1, 2, 0)


def _drop_hidden(hits: Tensor, t_back: Tensor, present: Tensor) -> Tensor:
    """Mask (B, M) of objects that are visible enough. Removing one can only uncover others."""
    nearest, slot = hits.min(1)
    seen = nearest < t_back
    area = hits.shape[-1]
    visible = torch.zeros(present.shape).scatter_add_(1, slot, seen.float())  # (B, M)
    own = (hits < t_back[:, None]).float().sum(-1)
    return present & (visible >= MIN_VISIBLE_SHARE * own.clamp_min(1)) & (visible >= MIN_VISIBLE_AREA * area)


def _describe(
    scenes: SceneParameters, slots: Tensor, depth: Tensor, own: Tensor
) -> tuple[Tensor, list[list[SceneObject]]]:
    """Object ids (B, H, W), renumbered in row-major order of the boxes, and the objects in that order."""
    size = slots.shape[-1]
    ids, objects = torch.zeros_like(slots, dtype=torch.int16), []
    for b in range(len(slots)):
        found = []
        for slot in slots[b].unique().tolist():
            if slot < 0:
                continue
            mask = slots[b] == slot
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
            found.append((box, slot, mask))
        found.sort(key=lambda item: (item[0][1], item[0][0]))
        described = []
        for number, (box, slot, mask) in enumerate(found, start=1):
            ids[b][mask] = number
            described.append(
                SceneObject(
                    color=COLORS[int(scenes.color[b, slot])],
                    shape=SHAPES[int(scenes.shape[b, slot])],
                    box_xyxy=(box[0] / size, box[1] / size, box[2] / size, box[3] / size),
                    depth=float(depth[b][mask].median()),
                    visible_share=float(mask.sum() / own[b, slot].clamp_min(1)),
                )
            )
        objects.append(described)
    return ids, objects


@torch.no_grad()
def render_scenes(seeds: Sequence[int], style: str = "standard", image_size: int = 80) -> SceneBatch:
    """Render one scene per seed.

    Args:
        seeds: non-negative integers; a scene depends only on its seed and the style.
        style: "standard" or "shifted".
        image_size: pixels per side of the square images.

    Raises:
        ValueError: if the style is unknown, a seed is negative, or `image_size` is below 16.
    """
    return render_parameters(sample_scenes(seeds, style), seeds, image_size)


@torch.no_grad()
def render_parameters(scenes: SceneParameters, seeds: Sequence[int], image_size: int = 80) -> SceneBatch:
    """Render scenes with these parameters; `seeds` name them. Raises ValueError if `image_size` is below 16."""
    if image_size < 16:
        raise ValueError(f"image_size must be at least 16, got {image_size}")
    origin, direction = _camera_rays(scenes, image_size)
    to_floor = torch.where(direction[1] < -1e-6, -origin[1] / direction[1], INFINITY)
    to_wall = torch.where(direction[2] > 1e-6, (scenes.wall_distance[:, None]) / direction[2], INFINITY)
    t_back = torch.minimum(to_floor, to_wall)  # (B, P)
    hits = _cast(scenes, origin, direction, scenes.present)  # (B, M, P)
    kept = _drop_hidden(hits, t_back, scenes.present)
    scenes = replace(scenes, present=kept)
    hits = torch.where(kept[..., None], hits, INFINITY)
    nearest, slot = hits.min(1)  # (B, P)
    colors = _shade(scenes, origin, direction, nearest, slot, t_back)
    depth = torch.minimum(nearest, t_back).reshape(-1, image_size, image_size)
    own = (hits < t_back[:, None]).float().sum(-1)
    slots = torch.where(nearest < t_back, slot, -1).reshape(-1, image_size, image_size)
    ids, objects = _describe(scenes, slots, depth, own)
    images = (colors.reshape(-1, image_size, image_size, 3) * 255).round().to(torch.uint8)
    return SceneBatch(tuple(int(s) for s in seeds), scenes.style, images, depth, ids, objects)
