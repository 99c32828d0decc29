# SPDX-License-Identifier: Apache-2.0
"""The scale from the ground: how high the camera is, over how far below it the stream sees the floor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xsvggt_ros.config import ScaleConfig
from xsvggt_ros.frame import Frame
from xsvggt_ros.geometry import Array
from xsvggt_ros.placement.scale.ratio import KEPT, RunningRatio
from xsvggt_ros.status import ScaleStatus

CELLS = 20  # that the image's shorter side is divided into, at least
LEVEL = np.cos(np.deg2rad(25.0))  # how much the ground may slope, or the camera that is taken as level tilt
LEAST_SHARE = 0.02  # of all cells, that a plane has
BAND = 0.05  # a cell is on a plane if their distances along its ray differ by a smaller share,
DEVIATIONS = 2 * 1.4826  # and by fewer median deviations of those that do: two standard deviations
BELOW = 0.2  # a cell is below a plane if it is further than the plane by this share
ROUNDS = 10


class CameraHeight:
    """The scale from the camera's height above the ground (source camera_height).

    A measurement is 1 over the distance of the lowest level plane that a frame shows. Down is that of the base or,
    where the mounting is unknown, of the first camera, which is taken as level.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forgets what was measured."""
        self._ratios = RunningRatio()

    def rescale(self, factor: float) -> None:
        """As ScaleSource."""
        self._ratios.rescale(factor, keep=KEPT)

    def update(self, frame: Frame, stamp_ns: int, T_base_cam: Array | None, config: ScaleConfig) -> ScaleStatus:
        """Takes a frame in the model's unit; of T_base_cam [4, 4] only the rotation counts."""
        # Row of a rotation: where an axis of the target points, in the camera. Optical y and -z of a base are down.
        down_cam = frame.T_first_cam[1, :3] if T_base_cam is None else -T_base_cam[2, :3]
        distance = ground_distance(frame.depth, frame.intrinsics, down_cam)
        if distance is not None:
            self._ratios.add(1 / distance)
        return self._ratios.status(config, times=config.camera_height)


def ground_distance(depth: NDArray[np.float32], intrinsics: Array, down_cam: Array) -> float | None:
    """Distance of the camera from the ground that depth [h, w] shows, in its unit; None if it shows none.

    The ground is the lowest plane of some size that is level, and almost nothing is below it. down_cam: unit [3].

    A plane is m [3] with m @ p = 1 for its points p: it is 1 / |m| away, in direction m. Along a ray (x, y, 1) the
    inverse depth is then m @ (x, y, 1), linear in x and y: its gradient gives m, and in a fit to it all the noise is in
    the dependent variable, so that it does not shift the plane.
    """
    rays, nearness = _cells(depth, intrinsics)  # [n, m, 3], [n, m]
    planes = _tangents(rays, nearness)
    level = planes @ down_cam > LEVEL * np.linalg.norm(planes, axis=-1)
    least = LEAST_SHARE * level.size
    plane = _lowest(planes[level], rays[level], nearness[level], least)
    for _ in range(ROUNDS):
        if plane is not None:
            plane = _refit(plane, rays[level], nearness[level], least)
    if plane is None or plane @ down_cam < LEVEL * np.linalg.norm(plane):
        return None
    below = rays @ plane > (1 + BELOW) * nearness
    return None if below.sum() > least else float(1 / np.linalg.norm(plane))


def _cells(depth: NDArray[np.float32], intrinsics: Array) -> tuple[Array, Array]:
    """Rays (x, y, 1) [n, m, 3] and median inverse depth [n, m] of square cells; rows left over are at the top."""
    side = max(1, min(depth.shape) // CELLS)
    n, m = depth.shape[0] // side, depth.shape[1] // side
    top = depth.shape[0] - n * side
    cells = depth[top:, : m * side].reshape(n, side, m, side).swapaxes(1, 2).reshape(n, m, -1)
    row, column = top + (np.arange(n) + 0.5) * side - 0.5, (np.arange(m) + 0.5) * side - 0.5  # of the cells' centres
    x, y = (column - intrinsics[0, 2]) / intrinsics[0, 0], (row - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([*np.meshgrid(x, y), np.ones((n, m))], axis=-1), np.median(1 / cells.astype(np.float64), axis=-1)


def _tangents(rays: Array, nearness: Array) -> Array:
    """The plane [n, m, 3] at every cell."""
    along_y, along_x = np.gradient(nearness, rays[:, 0, 1], rays[0, :, 0])
    return np.stack([along_x, along_y, nearness - along_x * rays[..., 0] - along_y * rays[..., 1]], axis=-1)


def _lowest(planes: Array, rays: Array, nearness: Array, least: float) -> Array | None:
    """The plane [3] of the planes' median direction that lies lowest of those near which enough cells [N] are."""
    if len(planes) < least:
        return None
    normal = np.median(planes / np.linalg.norm(planes, axis=-1, keepdims=True), axis=0)
    normal /= np.linalg.norm(normal)
    heights = rays @ normal / nearness
    logs = np.sort(np.log(heights[heights > 0]))
    close = np.searchsorted(logs, logs + BAND) - np.searchsorted(logs, logs - BAND)
    enough = np.flatnonzero(close >= least)
    return normal / np.exp(logs[enough[-1]]) if len(enough) else None


def _refit(plane: Array, rays: Array, nearness: Array, least: float) -> Array | None:
    """The plane [3] through those of the cells [N] that are on the given one; relative errors, least squares."""
    expected = rays @ plane
    error = np.abs(expected / nearness - 1)
    on = error < BAND
    if on.sum() < least:
        return None
    on &= error <= DEVIATIONS * np.median(error[on])
    refit, *_ = np.linalg.lstsq(rays[on] / expected[on, None], nearness[on] / expected[on], rcond=None)
    return refit.astype(np.float64)
