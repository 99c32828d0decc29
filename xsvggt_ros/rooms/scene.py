# SPDX-License-Identifier: Apache-2.0
"""Furnished rooms as tensors: boxes, upright cylinders and spheres, a texture on every face, lamps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from matplotlib.colors import hsv_to_rgb
from torch import Tensor

from xsvggt_ros.rooms.room import Room
from xsvggt_ros.rooms.texture import PHOTOGRAPHS, TEXTURES, metres_of, need_photographs

FACES = 6  # of a box: -x, +x, -y, +y, -z, +z; a cylinder uses 0 (side), 4 and 5 (caps), a sphere 0
PATH_CLEARANCE = 0.4  # metres between the path and all that stands or hangs below HEADROOM
HEADROOM = 2.0
ATTEMPTS = 12  # to place a piece clear of the path; after that the room goes without it
Placed = tuple[np.ndarray, np.ndarray, float]  # centre [3], half-sizes [3], rotation about z


@dataclass(frozen=True)
class Piece:
    """A kind of furniture: half-sizes between `smallest` and `largest`, and where it goes."""

    smallest: tuple[float, float, float]
    largest: tuple[float, float, float]
    place: str  # floor, wall (standing against it), hung (on a wall), ceiling, top (of a cabinet or crate)
    textures: tuple[str, ...]
    equal: int = 1  # half-sizes that equal the first: 2 for a cylinder, 3 for a sphere


WOOD = ("planks", "wide planks", "brushed", "marble", "plaster")
PATTERN = ("checker", "stripes", "dots", "patchwork", "poster", "bricks", "small tiles", "grain", "clouds")
CABINET = Piece((0.3, 0.15, 0.3), (0.8, 0.35, 1.0), "wall", WOOD + PATTERN)
CRATE = Piece((0.15, 0.15, 0.15), (0.45, 0.4, 0.6), "floor", WOOD + PATTERN)
PICTURE = Piece((0.25, 0.015, 0.2), (0.7, 0.05, 0.5), "hung", ("poster", "patchwork", "dots", "clouds", "checker"))
COLUMN = Piece((0.12, 0.12, 1.7), (0.28, 0.28, 1.7), "floor", ("bricks", "stripes", "marble", "tiles", "stones"), 2)
DRUM = Piece((0.15, 0.15, 0.2), (0.35, 0.35, 0.55), "floor", WOOD + PATTERN, 2)
LAMPSHADE = Piece((0.15, 0.15, 0.05), (0.35, 0.35, 0.15), "ceiling", ("plaster", "brushed", "stripes"), 2)
BALL = Piece((0.12, 0.12, 0.12), (0.4, 0.4, 0.4), "floor", PATTERN, 3)
GLOBE = Piece((0.1, 0.1, 0.1), (0.22, 0.22, 0.22), "ceiling", PATTERN, 3)
FURNITURE = (PICTURE,) * 4 + (CABINET, CRATE) * 4 + (COLUMN, DRUM, DRUM, LAMPSHADE, BALL, BALL, GLOBE)
FLOOR = ("planks", "wide planks", "tiles", "small tiles", "checker", "stones", "marble", "grain", "patchwork")
WALL = ("plaster", "patchwork", "bricks", "stripes", "tiles", "grain", "wide planks", "stones", "dots", "marble")
CEILING = ("plaster", "grain", "tiles", "planks", "clouds")

BOOKS = Piece((0.05, 0.04, 0.06), (0.16, 0.12, 0.22), "top", PATTERN)
VASE = Piece((0.04, 0.04, 0.08), (0.12, 0.12, 0.22), "top", WOOD + PATTERN, 2)
TOY = Piece((0.05, 0.05, 0.04), (0.15, 0.12, 0.12), "floor", PATTERN)
STOOL = Piece((0.1, 0.1, 0.15), (0.2, 0.2, 0.3), "floor", WOOD, 2)
CLUTTER = (BOOKS,) * 4 + (TOY,) * 3 + (VASE, VASE, STOOL)
PHOTOGRAPHED_WALLS = ("photographed brick", "photographed gravel")


@dataclass(frozen=True)
class Style:
    """What rooms are furnished and lit with. Primitives by number: 0 is the room, then the pieces."""

    pieces: tuple[Piece, ...]  # boxes, cylinders and balls in this order
    lamps: int = 1  # the first is white, others have colours
    photographs: bool = False  # among the textures

    @cached_property
    def boxes(self) -> list[int]:
        return [ROOM, *self._those(lambda piece: piece.equal == 1)]

    @cached_property
    def rounds(self) -> list[int]:
        return self._those(lambda piece: piece.equal > 1)

    @cached_property
    def balls(self) -> list[int]:
        return self._those(lambda piece: piece.equal == 3)

    @cached_property
    def casters(self) -> list[int]:
        """Of shadows."""
        return self._those(lambda piece: piece.place in ("floor", "wall"))

    def _those(self, which: Callable[[Piece], bool]) -> list[int]:
        return [k for k, piece in enumerate(self.pieces, 1) if which(piece)]

    def textures(self) -> list[tuple[str, ...]]:
        """What may be on each face."""
        more, on_walls = (PHOTOGRAPHS, PHOTOGRAPHED_WALLS) if self.photographs else ((), ())
        of_room = [WALL + on_walls] * 4 + [FLOOR, CEILING]
        return of_room + [piece.textures + more for piece in self.pieces for _ in range(FACES)]


ROOM = 0
PLAIN = Style(FURNITURE)
VARIED = Style(tuple(sorted(FURNITURE + CLUTTER, key=lambda piece: piece.equal)), lamps=2, photographs=True)


@dataclass(frozen=True)
class Scene:
    """One room, or one for each frame to render: all tensors start with B = 1 or the number of frames.

    World axes as in Room, metres. P primitives: the room itself (a box seen from inside) and its furniture; L lamps.
    """

    style: Style
    centre: Tensor  # [B, P, 3]
    half: Tensor  # [B, P, 3] half-sizes along its own axes; radius, radius, half-height of a round one
    heading: Tensor  # [B, P, 2] cosine and sine of its rotation about z
    surface: Tensor  # [B, 11, P * FACES] see _surfaces
    lamp: Tensor  # [B, L, 3]
    glow: Tensor  # [B, L, 3] red, green and blue of each lamp; of a white one 1

    @staticmethod
    def cat(scenes: Sequence[Scene]) -> Scene:
        """One scene for each frame, from scenes of one style, of one or more frames."""
        parts = zip(*(scene._tensors() for scene in scenes), strict=True)
        return Scene(scenes[0].style, *(torch.cat(tensors) for tensors in parts))

    def of_frames(self, frames: int, device: torch.device) -> Scene:
        """Each scene for so many frames one after the other, on the device."""
        return Scene(self.style, *(x.to(device).repeat_interleave(frames, 0) for x in self._tensors()))

    def _tensors(self) -> tuple[Tensor, ...]:
        return self.centre, self.half, self.heading, self.surface, self.lamp, self.glow


def furnish(room: Room, device: str | torch.device = "cpu", style: Style = PLAIN) -> Scene:
    """The room with its furniture (B = 1), which keeps PATH_CLEARANCE from the room's path.

    Raises ValueError for a style with photographs if the package that has them is not installed.
    """
    if style.photographs:
        need_photographs()
    rng = np.random.default_rng([room.seed, 2])
    shell = np.array([*room.half, room.height / 2])
    placed = [(shell * [0, 0, 1], shell, 0.0)]
    for piece in style.pieces:
        placed.append(_place(rng, room, piece, placed))
    centre, half, yaw = (np.stack(column) for column in zip(*placed, strict=True))
    lamps = [[*rng.uniform(-0.5, 0.5, 2) * room.half, room.height - 0.3] for _ in range(style.lamps)]
    glow = [[1.0, 1.0, 1.0], *(rng.uniform(0.1, 1, 3) for _ in lamps[1:])]
    arrays = (centre, half, np.stack([np.cos(yaw), np.sin(yaw)], -1), _surfaces(rng, style.textures()), lamps, glow)
    return Scene(style, *(torch.tensor(np.array([array]), dtype=torch.float32, device=device) for array in arrays))


def _place(rng: np.random.Generator, room: Room, piece: Piece, placed: list[Placed]) -> Placed:
    """One piece, beside or on those that are placed; of no size, and below the floor, if there is no place for it."""
    for _ in range(ATTEMPTS):
        half = rng.uniform(piece.smallest, piece.largest)
        half[: piece.equal] = half[0]
        centre, yaw = _spot_on(rng, placed, half) if piece.place == "top" else _spot(rng, room, piece.place, half)
        if centre[2] - half[2] > HEADROOM or _distance(room.path, centre, half, yaw) > PATH_CLEARANCE:
            return centre, half, yaw
    return np.array([0.0, 0.0, -1.0]), np.zeros(3), 0.0


def _spot(rng: np.random.Generator, room: Room, place: str, half: np.ndarray) -> tuple[np.ndarray, float]:
    """A random centre and rotation; what is at a wall has its own y axis across it."""
    z = {"hung": rng.uniform(1.1, 1.7), "ceiling": room.height - half[2]}.get(place, half[2])
    if place in ("floor", "ceiling"):
        return np.array([*rng.uniform(-1, 1, 2) * (room.half - np.max(half[:2])), z]), rng.uniform(0, np.pi)
    axis, side = rng.integers(2), rng.choice([-1, 1])
    centre = np.array([0.0, 0.0, z])
    centre[axis] = side * (room.half[axis] - half[1])
    centre[1 - axis] = rng.uniform(-1, 1) * (room.half[1 - axis] - half[0])
    return centre, (1 - axis) * np.pi / 2


def _spot_on(rng: np.random.Generator, placed: list[Placed], half: np.ndarray) -> tuple[np.ndarray, float]:
    """On one of the pieces that stand on the floor and are large enough; below the floor if there is none."""
    wide = [(c, h, yaw) for c, h, yaw in placed[1:] if (h[:2] > half[:2]).all() and np.isclose(c[2], h[2])]
    if not wide:
        return np.array([0.0, 0.0, -2.0]), 0.0
    centre, under, yaw = wide[rng.integers(len(wide))]
    along, across = rng.uniform(-1, 1, 2) * (under - half)[:2]
    shift = [np.cos(yaw) * along - np.sin(yaw) * across, np.sin(yaw) * along + np.cos(yaw) * across]
    return centre + np.array([*shift, under[2] + half[2]]), yaw


def _distance(path: np.ndarray, centre: np.ndarray, half: np.ndarray, yaw: float) -> float:
    """Least distance in the plane between the path and the box."""
    offset = path[::10] - centre[:2]
    along = offset @ [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    return np.hypot(*np.maximum(np.abs(along) - half[:2], 0).T).min()


def _surfaces(rng: np.random.Generator, textures: list[tuple[str, ...]]) -> np.ndarray:
    """[11, faces]: texture, its edge in metres, shift u, shift v, two colours (linear r, g, b), strength of stains."""
    n = len(textures)
    names = [choices[rng.integers(len(choices))] for choices in textures]
    index = [(*TEXTURES, *PHOTOGRAPHS).index(name) for name in names]
    metres = [metres_of(name) for name in names] * rng.uniform(0.7, 1.4, n)
    hue = rng.uniform(0, 1, n)
    vivid = np.where(np.arange(n) < FACES, 0.5, 1.0)  # the room itself is calmer than what stands in it
    dark = (hue, vivid * rng.uniform(0.1, 0.8, n), rng.uniform(0.03, 0.25, n))
    bright = ((hue + rng.normal(0, 0.08, n)) % 1, vivid * rng.uniform(0.05, 0.7, n), rng.uniform(0.4, 0.9, n))
    colours = (component for hsv in (dark, bright) for component in hsv_to_rgb(np.stack(hsv, -1)).T)
    return np.stack([index, metres, *rng.uniform(0, 1, (2, n)), *colours, rng.uniform(0.2, 0.6, n)])
