# SPDX-License-Identifier: Apache-2.0
"""What a costmap takes from a frame: points of obstacles, and how far the camera sees nothing in the way."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import NodeConfig, ObstacleConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array

Points = NDArray[np.float32]

NEIGHBOURS = np.ones((3, 3), np.uint8)
EARLY = 0.1  # of the time between two clouds: a frame that comes so much before its time is in time
SAMPLES = 10_000  # of an image's confidences, at most, that tell the least of them


def why_no_obstacles(config: NodeConfig) -> str:
    """What the settings lack for obstacles, and the remedy; empty: nothing."""
    lacking = []
    if not config.base_frame:
        lacking.append("base_frame, now empty (the robot's base, whose TF has the camera)")
    if config.scale.source == "none":
        lacking.append("scale.source, now none (where metres come from, for example odometry)")
    return f"set {' and '.join(lacking)}; see docs/nav2.md" if lacking else ""


class Pace:
    """Says of which frames to make a cloud, so that there are `rate` of them in a second of their stamps."""

    def __init__(self) -> None:
        self._newest_ns = self._last_ns = -math.inf  # of these frames; when the last cloud was due

    def due(self, stamp_ns: int, rate: float) -> bool:
        """Whether it is time for one; asked of each frame with depth, in order. A stamp that goes back begins anew."""
        period_ns = 1e9 / rate
        if stamp_ns < self._newest_ns:
            self._last_ns = -math.inf
        self._newest_ns = stamp_ns
        if stamp_ns - self._last_ns < (1 - EARLY) * period_ns:
            return False
        on_time = self._last_ns + period_ns
        self._last_ns = on_time if stamp_ns - on_time < period_ns else stamp_ns  # no frame's lateness adds up
        return True


def obstacle_points(frame: Frame, T_base_cam: Array, config: ObstacleConfig, threshold: float = 1.0) -> Points:
    """Points [N, 3] of what stands in the robot's way, in its base's axes: one of each voxel that has some.

    frame: in metres. T_base_cam [4, 4]: its z is up. threshold: least confidence, beside `config.doubt`. Depth that is
    not finite makes no point. Raises ValueError for a frame without depth.
    """
    depth, sure, x, y = _thinned(frame, config, threshold)
    rotation, origin = T_base_cam[:3, :3].astype(np.float32), T_base_cam[:3, 3]
    height = depth * (rotation[2, 0] * x + (rotation[2, 1] * y + rotation[2, 2])[:, None])  # above the camera's
    low, high = (np.float32(limit - origin[2]) for limit in (config.min_height, config.max_height))
    wanted = sure & (height >= low) & (height <= high) & (depth * _lengths(x, y) <= np.float32(config.max_range))
    if config.edge_angle:
        wanted &= _smooth(depth, x, config.edge_angle)
    return _voxels(_points(depth, wanted, x, y), T_base_cam, config.voxel)


def sight_ends(frame: Frame, T_base_cam: Array, config: ObstacleConfig, threshold: float = 1.0) -> Points:
    """Points [N, 3] up to which the camera sees, on floor and ceiling too, in the base's axes; one of each voxel.

    Lines of sight that are longer than the range end there. Arguments and errors as `obstacle_points`.
    """
    depth, sure, x, y = _thinned(frame, config, threshold)
    depth = np.minimum(depth, np.float32(config.max_range) / _lengths(x, y))
    return _voxels(_points(depth, sure & (depth > 0), x, y), T_base_cam, config.voxel)


def _thinned(
    frame: Frame, config: ObstacleConfig, threshold: float
) -> tuple[Points, NDArray[np.bool_], Points, Points]:
    """Depth [h, w] of as many rows and columns as voxels at the greatest range need, whether it is sure [h, w], and
    where the lines of sight of columns [w] and rows [h] are at depth 1."""
    if not frame.status.dense:
        raise ValueError("the frame has no obstacles, since its depth was not computed: set dense to always")
    K = frame.intrinsics
    stride = max(1, math.floor(config.voxel * min(K[0, 0], K[1, 1]) / config.max_range))
    thin = (slice(None, None, stride),) * 2
    depth = np.ascontiguousarray(frame.depth[thin])
    x = (np.arange(depth.shape[1]) * stride - K[0, 2]) / K[0, 0]
    y = (np.arange(depth.shape[0]) * stride - K[1, 2]) / K[1, 1]
    return depth, _sure(frame.confidence[thin], config.doubt, threshold), x.astype(np.float32), y.astype(np.float32)


def _sure(confidence: Points, doubt: float, threshold: float) -> NDArray[np.bool_]:
    """Where the confidence [h, w] is enough, and not among the least, whose share is `doubt`; of equals, all are."""
    stride = math.ceil(math.sqrt(confidence.size / SAMPLES))
    sample = confidence[::stride, ::stride].ravel()
    rank = int(doubt * sample.size)
    return confidence >= max(np.float32(threshold), np.partition(sample, rank)[rank])


def _smooth(depth: Points, x: Points, angle: float) -> NDArray[np.bool_]:
    """Where the surface that depth [h, w] shows is seen at more than that angle, degrees.

    Between an object and what is behind it networks, and interpolation, put points that are on neither: from pixel to
    neighbour the depth then changes by many times a pixel's width. x [w]: columns at depth 1.
    """
    width = 2 * abs(x[1] - x[0]) if len(x) > 1 else 0.0  # of the neighbourhood, at depth 1
    with np.errstate(over="ignore", invalid="ignore"):
        spread = cv2.dilate(depth, NEIGHBOURS) - cv2.erode(depth, NEIGHBOURS)
        return spread <= np.float32(width / math.tan(math.radians(angle))) * depth  # NaN is not


def _lengths(x: Points, y: Points) -> Points:
    """Of the lines of sight [h, w] from depth 0 to 1."""
    return np.sqrt(x * x + (y * y + 1)[:, None])


def _points(depth: Points, wanted: NDArray[np.bool_], x: Points, y: Points) -> Points:
    """Points [3, N] in the camera's axes."""
    return np.stack([(x * depth)[wanted], (y[:, None] * depth)[wanted], depth[wanted]])


def _voxels(points_cam: Points, T_base_cam: Array, size: float) -> Points:
    """One of each voxel's points: [3, N] in the camera's axes -> [M, 3] in the base's; edges of `size` metres."""
    T = T_base_cam.astype(np.float32)
    points = T[:3, :3] @ points_cam + T[:3, 3:]
    corner = np.floor(points.min(1, initial=np.inf, keepdims=True) / size) * size
    cells = ((points - corner.astype(np.float32)) * np.float32(1 / size)).astype(np.int32)  # from 0 on
    sides = cells.max(1, initial=0).astype(np.int64) + 1
    number = (cells[0].astype(np.int64) * sides[1] + cells[1]) * sides[2] + cells[2]  # numpy 1 would stay in 32 bits
    new = np.flatnonzero(np.diff(number, prepend=-1))  # neighbours mostly share one: that leaves little to sort
    _, first = np.unique(number[new], return_index=True)
    return np.ascontiguousarray(points[:, new[first]].T)
