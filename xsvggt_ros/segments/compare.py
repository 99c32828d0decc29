# SPDX-License-Identifier: Apache-2.0
"""Whether two frames of one segment show the same place, by their depths and by what the encoder says of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.descriptor import CELLS, centre
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array, inverse, transform

SAMPLES = 14  # columns of a frame that are looked at
WITHIN = 0.1  # logarithm of two depths that agree
LEAST_CELLS = 6  # seen by both, that can be compared
NEAR = 1e-6


def overlap(a: Frame, b: Frame) -> float:
    """Mean share of each frame's points that lie within the other's image."""
    return _both_ways(_inside, a, b)


def agreement(a: Frame, b: Frame) -> float:
    """Mean share of each frame's points that the other sees at their depth."""
    return _both_ways(_agreeing, a, b)


def match(a: Frame, b: Frame, mean: Array) -> float:
    """Mean cosine of what the encoder says where both see the same points; -1 where they see too few."""
    return _both_ways(lambda x, y: _matching(x, y, mean), a, b)


def _both_ways(share: Callable[[Frame, Frame], float], a: Frame, b: Frame) -> float:
    return (share(a, b) + share(b, a)) / 2


def _inside(a: Frame, b: Frame) -> float:
    return float(_project(a, *_sampled(b))[2].mean())


def _agreeing(a: Frame, b: Frame) -> float:
    pixels, depth, inside = _project(a, *_sampled(b))
    height, width = a.depth.shape
    column, row = np.rint(pixels).astype(int).T
    there = a.depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return float((inside & (np.abs(np.log(np.maximum(depth, NEAR) / there)) < WITHIN)).mean())


def _matching(a: Frame, b: Frame, mean: Array) -> float:
    """Of the middles of b's cells."""
    assert a.descriptor is not None and b.descriptor is not None
    middles = _middles(*b.depth.shape)
    pixels, _, inside = _project(a, middles, b)
    if inside.sum() < LEAST_CELLS:
        return -1.0
    height, width = a.depth.shape
    cells = (pixels + 0.5) * [CELLS[1] / width, CELLS[0] / height] - 0.5
    seen = _bilinear(centre(a.descriptor, mean).reshape(*CELLS, -1), cells)
    cosines = (seen * centre(b.descriptor, mean)).sum(-1) / np.maximum(np.linalg.norm(seen, axis=-1), NEAR)
    return float(cosines[inside].mean())


def _sampled(frame: Frame) -> tuple[Array, Frame]:
    """Pixels [N, 2] all over a frame."""
    height, width = frame.depth.shape
    step = max(1, width // SAMPLES)
    column, row = np.meshgrid(np.arange(step // 2, width, step), np.arange(step // 2, height, step))
    return np.stack([column, row], -1).reshape(-1, 2).astype(float), frame


def _middles(height: int, width: int) -> Array:
    """Pixels [cells, 2] in the middle of each."""
    column, row = np.meshgrid(
        (np.arange(CELLS[1]) + 0.5) * width / CELLS[1], (np.arange(CELLS[0]) + 0.5) * height / CELLS[0]
    )
    return np.stack([column, row], -1).reshape(-1, 2) - 0.5


def _project(a: Frame, pixels: Array, b: Frame) -> tuple[Array, Array, Array]:
    """Where a sees what b sees at pixels [N, 2]: pixels [N, 2], depth [N], and whether in front and inside [N]."""
    column, row = np.rint(pixels).astype(int).T
    depth = b.depth[np.clip(row, 0, b.depth.shape[0] - 1), np.clip(column, 0, b.depth.shape[1] - 1)].astype(float)
    x = (pixels[:, 0] - b.intrinsics[0, 2]) / b.intrinsics[0, 0] * depth
    y = (pixels[:, 1] - b.intrinsics[1, 2]) / b.intrinsics[1, 1] * depth
    points = transform(inverse(a.T_first_cam) @ b.T_first_cam, np.stack([x, y, depth], -1))
    z = np.maximum(points[:, 2], NEAR)
    seen = points[:, :2] / z[:, None] * a.intrinsics[[0, 1], [0, 1]] + a.intrinsics[:2, 2]
    height, width = a.depth.shape
    inside = (points[:, 2] > NEAR) & (seen >= -0.5).all(-1) & (seen < [width - 0.5, height - 0.5]).all(-1)
    return np.where(inside[:, None], seen, 0.0), points[:, 2], inside


def _bilinear(table: NDArray, at: Array) -> NDArray:
    """Table [h, w, c] at places [N, 2] (x, y), those outside at its edge -> [N, c]."""
    height, width = table.shape[:2]
    x, y = np.clip(at[:, 0], 0, width - 1), np.clip(at[:, 1], 0, height - 1)
    left, top = np.minimum(x.astype(int), width - 2), np.minimum(y.astype(int), height - 2)
    right_share, low_share = (x - left)[:, None], (y - top)[:, None]
    upper = (1 - right_share) * table[top, left] + right_share * table[top, left + 1]
    lower = (1 - right_share) * table[top + 1, left] + right_share * table[top + 1, left + 1]
    return (1 - low_share) * upper + low_share * lower
