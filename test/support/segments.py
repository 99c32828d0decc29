# SPDX-License-Identifier: Apache-2.0
"""Segments that no model has seen: frames of a room that is a cube, exact to the last bit of their depth."""

import numpy as np
from scipy.spatial.transform import Rotation

from support.recordings import picture
from xsvggt_ros.descriptor import CELLS, SIZE
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, rigid, transform
from xsvggt_ros.similarity import Similarity
from xsvggt_ros.status import StepStatus

HEIGHT, WIDTH = 42, 56
K = np.array([[40.0, 0, 27.5], [0, 40.0, 20.5], [0, 0, 1]])
HALF = 3.0  # of the cube's edge; the world's origin is its middle


def pose(turn=(0, 0, 0), at=(0, 0, 0)) -> Array:
    """T_world_cam of a camera turned by some degrees about each axis."""
    return rigid(Rotation.from_rotvec(turn, degrees=True).as_matrix(), np.array(at, float))


def some_similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    return Similarity(float(rng.uniform(0.3, 3)), Rotation.random(random_state=seed).as_matrix(), rng.normal(size=3))


def segment_at(T_world_first: Array, scale: float = 1.0) -> Similarity:
    """S_world_segment of one that begins there, whose unit is so many of the world's."""
    return Similarity(scale, T_world_first[:3, :3], T_world_first[:3, 3])


def seen(T_world_cam: Array, S_world_segment: Similarity | None = None, index: int = 0, place: int = 0) -> Frame:
    """What a camera sees of a cube's inside, as a segment has it. Other places look different, but are as large."""
    S = S_world_segment or Similarity()
    column, row = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    depth = _depth(T_world_cam, np.stack([column, row], -1))
    return Frame(
        index=index,
        T_first_cam=S.inverse().pose(T_world_cam),
        intrinsics=K,
        depth=(depth / S.scale).astype(np.float32),
        confidence=np.full((HEIGHT, WIDTH), 2.0, np.float32),
        image=picture(index, (HEIGHT, WIDTH)),
        status=StepStatus(frame=index),
        descriptor=_descriptor(T_world_cam, place),
    )


def far_from(S: Similarity, other: Similarity) -> float:
    """The largest of the differences of two similarities' numbers."""
    pairs = (S.scale, other.scale), (S.rotation, other.rotation), (S.translation, other.translation)
    return max(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs)


def _rays(pixels: Array) -> Array:
    return np.concatenate([(pixels - K[:2, 2]) / K[[0, 1], [0, 1]], np.ones((*pixels.shape[:-1], 1))], -1)


def _depth(T_world_cam: Array, pixels: Array) -> Array:
    rays, at = _rays(pixels) @ T_world_cam[:3, :3].T, T_world_cam[:3, 3]
    return ((np.copysign(HALF, rays) - at) / np.where(rays, rays, 1e-12)).min(-1)


def _descriptor(T_world_cam: Array, place: int) -> Array:
    """Smooth waves over the walls, seen in the middle of each cell."""
    rng = np.random.default_rng(place)
    waves, phases = rng.normal(size=(3, SIZE)), rng.uniform(0, 2 * np.pi, SIZE)
    column, row = np.meshgrid(
        (np.arange(CELLS[1]) + 0.5) * WIDTH / CELLS[1] - 0.5, (np.arange(CELLS[0]) + 0.5) * HEIGHT / CELLS[0] - 0.5
    )
    pixels = np.stack([column, row], -1).reshape(-1, 2)
    points = transform(T_world_cam, _rays(pixels) * _depth(T_world_cam, pixels)[:, None])
    return np.cos(points @ waves + phases).astype(np.float16)
