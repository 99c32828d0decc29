# SPDX-License-Identifier: Apache-2.0
"""Ray casting: colour and exact depth of furnished rooms, many frames at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xsvggt_ros.rooms import texture
from xsvggt_ros.rooms.scene import FACES, ROOM, Scene

RAYS = {"cpu": 10_000, "cuda": 4_000_000}  # cast at once; on a CPU the temporaries then stay in its cache
AMBIENT, LAMP = 0.3, 2.8  # light from everywhere, and right at the lamp
MISS = 1e30
STAINS = list(texture.TEXTURES).index("plaster")  # over every surface, so that no two places look the same
STAINS_METRES = 5.3


@torch.inference_mode()
def render(
    scene: Scene, T_room_cam: np.ndarray | Tensor, intrinsics: np.ndarray, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Colour [S, height, width, 3] in [0, 1] and depth [S, height, width] in metres, float32, on the scene's device.

    scene: one room for all frames, or one for each. T_room_cam [S, 4, 4]: optical camera axes (x right, y down,
    z forward). intrinsics [3, 3], or [S, 3, 3]: pixel centres at integers. Depth is the z coordinate, in camera axes,
    of what the ray through the pixel's centre meets first.
    """
    T_room_cam = torch.as_tensor(T_room_cam).to(scene.centre)
    rays_cam = _rays_cam(intrinsics, height, width).to(scene.centre)
    blocks = rays_cam.split(max(1, RAYS[rays_cam.device.type] // len(T_room_cam)), -1)
    pixel = 1 / torch.as_tensor(intrinsics[..., 0, 0]).to(scene.centre)[..., None]  # their width at depth 1
    colour, depth = zip(*(_cast(scene, T_room_cam, block, pixel) for block in blocks), strict=True)
    size = (height, width)
    return torch.cat(colour, 2).unflatten(2, size).movedim(1, 3), torch.cat(depth, 1).unflatten(1, size)


def _rays_cam(intrinsics: np.ndarray, height: int, width: int) -> Tensor:
    """Where the pixels' rays are at z = 1, in camera axes: float32 [(S,) 3, height * width]."""
    v, u = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1).double()
    return (torch.from_numpy(np.linalg.inv(intrinsics)) @ pixels).float()


def _cast(scene: Scene, T_room_cam: Tensor, rays_cam: Tensor, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Colour [S, 3, N] and depth [S, N] along rays [(S,) 3, N]; width of a pixel at depth 1 [(S,) 1]."""
    origin, rays = T_room_cam[:, :3, 3], T_room_cam[:, :3, :3] @ rays_cam  # [S, 3], [S, 3, N]
    depth, primitive = _distances(scene, scene.style.boxes + scene.style.rounds, origin, rays).min(1)
    point = origin[..., None] + depth[:, None] * rays
    normal, u, v, face = _hit(scene, point, primitive)
    slope = (normal * rays).sum(1)
    footprint = pixel * depth * rays_cam.square().sum(-2).sqrt() / slope.abs().clamp(min=1e-3)  # metres on the surface
    albedo = _albedo(_look_up(scene.surface, primitive * FACES + face), u, v, footprint)
    light = _light(scene, point, -normal * slope.sign()[:, None])
    return (1 - (-albedo * light).exp()).sqrt(), depth  # film: highlights saturate softly; display gamma


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """Columns of a table [B, K, n] at index [S, N] -> [K, S, N]; B is 1 or S."""
    first = torch.arange(len(table), device=index.device)[:, None] * table.shape[2]
    return table.movedim(1, 0).flatten(1).index_select(1, (first + index).flatten()).unflatten(1, index.shape)


def _distances(scene: Scene, primitives: list[int], origin: Tensor, rays: Tensor) -> Tensor:
    """[S, p, N]: multiples of the rays [S, 3, N] at which they enter (the room: leave) each; huge: they miss it."""
    half, offset = scene.half[:, primitives], origin[:, None] - scene.centre[:, primitives]  # [B, p, 3], [S, p, 3]
    boxes = sum(k in scene.style.boxes for k in primitives)  # come first
    box = _box_sides(half[:, :boxes], scene.heading[:, primitives[:boxes]], offset[:, :boxes], rays)
    balls = [k in scene.style.balls for k in primitives[boxes:]]
    side = _round_sides(half[:, boxes:], balls, offset[:, boxes:], rays)
    enter, leave = _slab(offset[..., 2:], rays[:, 2:], half[..., 2:])
    enter = torch.maximum(enter, torch.cat([box[0], side[0]], 1)).relu_()  # what lies behind is left before 0
    leave = torch.minimum(leave, torch.cat([box[1], side[1]], 1))
    distance = enter + (enter - leave + 1e-6).relu_().mul_(MISS)  # much faster than where()
    if primitives[0] == ROOM:
        distance[:, 0] = leave[:, 0]
    return distance


def _slab(offset: Tensor, rays: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays that start at `offset` enter and leave |x| <= half."""
    inverse = 1 / rays
    one, other = (-half - offset) * inverse, (half - offset) * inverse
    return torch.minimum(one, other), torch.maximum(one, other)


def _box_sides(half: Tensor, heading: Tensor, offset: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave boxes without top and bottom."""
    cos, sin = heading.unbind(-1)
    R_box_world = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 2)  # [B, p, 2, 2]
    rays = (R_box_world.flatten(1, 2) @ rays[:, :2]).unflatten(1, (-1, 2))  # [S, p, 2, N]
    offset = R_box_world @ offset[..., :2, None]  # [S, p, 2, 1]
    x, y = (_slab(offset[:, :, k], rays[:, :, k], half[:, :, k, None]) for k in (0, 1))
    return torch.maximum(x[0], y[0]), torch.minimum(x[1], y[1])


def _round_sides(half: Tensor, balls: list[bool], offset: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave spheres, or cylinders without top and bottom (which do without z)."""
    weight = offset.new_tensor([(1, 1, ball) for ball in balls])  # [p, 3]
    offset = offset * weight
    # The discriminant from the cross product (Lagrange's identity) does not cancel far from the centre.
    cross = torch.linalg.cross(offset[..., None, :], weight.diag_embed()[None]).mT  # [S, p, 3, 3]
    miss = (cross.flatten(1, 2) @ rays).square().unflatten(1, (-1, 3)).sum(2)  # [S, p, N]
    square = weight @ rays.square()
    reach = (half[..., :1].square() * square - miss).relu().sqrt()  # 0 where the ray passes by
    middle, inverse = -offset @ rays, 1 / square
    return (middle - reach) * inverse, (middle + reach) * inverse


def _hit(scene: Scene, point: Tensor, primitive: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Outward normal [S, 3, N]; place u, v on the face in metres, and the face's number, [S, N]."""
    table = torch.cat([scene.centre, scene.half, scene.heading], 2).mT  # [B, 8, P]
    *centre, half_x, half_y, half_z, cos, sin = _look_up(table, primitive)
    x, y, z = (point[:, k] - centre[k] for k in range(3))
    x, y = cos * x + sin * y, cos * y - sin * x
    out_x, out_y, out_z = x.abs() / half_x, y.abs() / half_y, z.abs() / half_z  # the largest is 1, on a box
    ball, is_round = primitive >= scene.style.balls[0], primitive >= scene.style.rounds[0]
    side = is_round & (ball | (out_z < torch.hypot(out_x, out_y)))
    # Which components the normal has: one for a box or a cap, two for a cylinder's side, three for a ball.
    in_x = side | ~is_round & (out_x >= out_y) & (out_x >= out_z)
    in_y = side | ~is_round & (out_y > out_x) & (out_y >= out_z)
    in_z = ball | ~(in_x | in_y)
    nx, ny, nz = x * in_x, y * in_y, z * in_z
    normal = torch.stack([cos * nx - sin * ny, sin * nx + cos * ny, nz], 1)
    normal = normal * normal.square().sum(1, keepdim=True).rsqrt()
    u = torch.where(side, torch.atan2(y, x) * half_x, torch.where(in_x, y, x))
    v = torch.where(in_x | in_y, z, y)
    face = torch.where(side, 0, 2 * in_y + 4 * in_z + (nx + ny + nz > 0))
    return normal, u, v, face


def _albedo(surface: Tensor, u: Tensor, v: Tensor, footprint: Tensor) -> Tensor:
    """Share of light given back, [S, 3, N]; surface [11, S, N] as in Scene, the rest [S, N] in metres."""
    name, metres, shift_u, shift_v, *_, contrast = surface
    name = name.to(torch.int32)
    pattern = texture.sample(name, u / metres + shift_u, v / metres + shift_v, footprint / metres)
    u, v, footprint = (length / STAINS_METRES for length in (u, v, footprint))
    stains = texture.sample(torch.full_like(name, STAINS), u + shift_v, v + shift_u, footprint)
    return (surface[4:7].lerp(surface[7:10], pattern) * (1 + contrast * (2 * stains - 1))).movedim(0, 1)


def _light(scene: Scene, point: Tensor, normal: Tensor) -> Tensor:
    """What falls on the surface, [S, 3, N]; normals face the camera."""
    reach = scene.half[:, ROOM, :2].square().mean(1, keepdim=True)  # larger rooms have stronger lamps
    light = torch.full_like(point, AMBIENT)
    for lamp, glow in zip(scene.lamp.unbind(1), scene.glow.unbind(1), strict=True):
        rays = point - lamp[..., None]  # from the lamp, of which 1 reaches the point
        shadow = _distances(scene, scene.style.casters, lamp, rays).amin(1) < 0.999
        square = rays.square().sum(1)
        lambert = -(rays * normal).sum(1).clamp(max=0) * square.rsqrt()
        lit = LAMP * lambert * ~shadow / (1 + square / reach)
        light = light + lit[:, None] * glow[..., None]
    return light
