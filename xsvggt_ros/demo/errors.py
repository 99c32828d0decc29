# SPDX-License-Identifier: Apache-2.0
"""How far estimates of a synthetic room are from its truth, in the first frame's scale and pose: nothing is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import gmean

from xsvggt_ros.evaluation.metrics import DepthErrors, depth_errors, first_frame_errors, scene_scale
from xsvggt_ros.geometry import Array
from xsvggt_ros.rooms import RoomFrame


@dataclass(frozen=True)
class Errors:
    """Of N frames."""

    depth: list[DepthErrors]  # metres
    rotation: Array  # [N], degrees
    centre: Array  # [N], distance of the camera centres, metres

    def mean(self, part: slice = slice(None)) -> dict[str, float]:
        """abs_rel, delta_125, rotation and centre, in the mean over some of the frames."""
        depth = DepthErrors.mean(self.depth[part])
        rotation, centre = float(self.rotation[part].mean()), float(self.centre[part].mean())
        return {"abs_rel": depth.abs_rel, "delta_125": depth.delta_125, "rotation": rotation, "centre": centre}


def unit(truth: Sequence[RoomFrame]) -> float:
    """Metres in a unit of the model, which has the first frame's mean distance as 1."""
    return scene_scale(truth[0].depth, truth[0].intrinsics)


def errors(T_world_cam: Array, depth: Sequence[NDArray[np.float32]], truth: Sequence[RoomFrame]) -> Errors:
    """Errors of camera-to-world poses [N, 4, 4] and depth maps [h, w] in model units.

    Pixels whose depth is NaN do not count. Raises ValueError if N is below 2 or a depth map has only NaN.
    """
    scale = unit(truth)
    rotation, centre = first_frame_errors(T_world_cam, np.array([t.T_room_cam for t in truth]), scale)
    frames = [_depth_errors(scale * d, true_depth(t, d.shape)) for d, t in zip(depth, truth, strict=True)]
    return Errors(frames, rotation, scale * centre)


def trivial_errors(truth: Sequence[RoomFrame]) -> Errors:
    """Errors of a camera that never moves, and that says one depth everywhere: the first frame's geometric mean."""
    constant = np.full_like(truth[0].depth, gmean(truth[0].depth, axis=None) / unit(truth))
    return errors(np.tile(np.eye(4), (len(truth), 1, 1)), [constant] * len(truth), truth)


def true_depth(truth: RoomFrame, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """True depth at the pixels of a smaller map [h, w], metres; not interpolated, so that edges stay edges."""
    return cv2.resize(truth.depth, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.float32)


def relative_error(depth: NDArray[np.float32], truth: RoomFrame, scale: float) -> NDArray[np.float32]:
    """|predicted - true| / true [h, w] of a depth map [h, w] in units of `scale` metres."""
    expected = true_depth(truth, depth.shape)
    return np.abs(scale * depth - expected) / expected


def _depth_errors(depth: NDArray[np.float32], expected: NDArray[np.float32]) -> DepthErrors:
    known = np.isfinite(depth)
    return depth_errors(depth[known], expected[known])
