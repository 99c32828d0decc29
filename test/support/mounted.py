# SPDX-License-Identifier: Apache-2.0
"""A camera that is mounted on a robot, and what TF says of it."""

import numpy as np

from support.recordings import header, message
from xsvggt_ros.geometry import quaternion_xyzw, rigid

# A camera 0.2 m ahead of the base and 0.5 m above it, looking 30 degrees down: optical axes in base axes (REP 103).
SIN, COS = np.sin(np.pi / 6), np.cos(np.pi / 6)
PITCHED = np.array([[0.0, -SIN, COS], [-1.0, 0, 0], [0.0, -COS, -SIN]])
T_BASE_CAM = rigid(PITCHED, np.array([0.2, 0.0, 0.5]))


def mounting(T=T_BASE_CAM, parent="base_link", child="lens", stamp=0):
    """TransformStamped."""
    T = message(
        "geometry_msgs/msg/Transform",
        translation=message("geometry_msgs/msg/Vector3", **dict(zip("xyz", T[:3, 3], strict=True))),
        rotation=message("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", quaternion_xyzw(T[:3, :3]), strict=True))),
    )
    return message(
        "geometry_msgs/msg/TransformStamped", header=header(stamp, parent), child_frame_id=child, transform=T
    )
