# SPDX-License-Identifier: Apache-2.0
"""What a ROS distribution has for messages, each None without one. The messages that they make are rclpy's."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

try:
    from sensor_msgs_py.point_cloud2 import create_cloud
except ImportError:
    create_cloud = None

PROBE = """
import numpy as np
from cv_bridge import CvBridge
bridge = CvBridge()
bridge.imgmsg_to_cv2(bridge.cv2_to_imgmsg(np.zeros((1, 1), np.uint8), "mono8"), "rgb8")
"""
PROBE_S = 60.0  # that it may take


def _cv_bridge() -> Any:
    """A CvBridge that works: one that was built for another numpy may end the process, so another one tries it."""
    if find_spec("cv_bridge") is None:
        return None
    try:
        subprocess.run([sys.executable, "-c", PROBE], capture_output=True, check=True, timeout=PROBE_S)
    except subprocess.SubprocessError:
        return None
    from cv_bridge import CvBridge

    return CvBridge()


cv_bridge = _cv_bridge()
