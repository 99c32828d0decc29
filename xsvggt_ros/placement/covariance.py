# SPDX-License-Identifier: Apache-2.0
"""How sure a pose is said to be."""

from __future__ import annotations

import numpy as np

from xsvggt_ros.geometry import Array
from xsvggt_ros.placement.placement import Placed

UNKNOWN_VARIANCE = 1e6  # what robot_localization and Nav2 take as no information
NOMINAL_DRIFT = 0.05  # of the distance
NOMINAL_NOISE = 0.01  # metres
NOMINAL_ROTATION = 0.05  # radians


def pose_covariance(placed: Placed) -> Array:
    """Row-major [36] of x, y, z, roll, pitch, yaw, for ~/odometry.

    The model estimates none: positions get the nominal drift, or the scale's spread if that is more, times the
    distance from the origin; with no scale they are unknown. Joins of segments add what shared images are apart by.
    """
    relative = max(NOMINAL_DRIFT, np.nan_to_num(placed.scale.scale_spread))
    distance = np.linalg.norm(placed.T_odom_child[:3, 3])
    position = (NOMINAL_NOISE + relative * distance) ** 2 if placed.scale.scale_source != "none" else UNKNOWN_VARIANCE
    rotation = NOMINAL_ROTATION**2
    if segment := placed.frame.segment:
        rotation += segment.variance[0]
        position += segment.variance[1] * placed.scale.scale**2
    return np.diag([position] * 3 + [rotation] * 3).ravel()
