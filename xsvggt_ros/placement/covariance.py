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
    distance from the origin; with no scale they are unknown.
    """
    relative = max(NOMINAL_DRIFT, np.nan_to_num(placed.scale.scale_spread))
    distance = np.linalg.norm(placed.T_odom_child[:3, 3])
    position = (NOMINAL_NOISE + relative * distance) ** 2 if placed.scale.scale_source != "none" else UNKNOWN_VARIANCE
    return np.diag([position] * 3 + [NOMINAL_ROTATION**2] * 3).ravel()
