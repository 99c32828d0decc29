# SPDX-License-Identifier: Apache-2.0
"""What a ROS distribution has for messages, each None without one. The messages that they make are rclpy's."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

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


def _cv_bridge() -> Any:
    """A CvBridge that works: one that was built for numpy 1 may end the process under numpy 2, so another tries it."""
    try:
        from cv_bridge import CvBridge
    except ImportError:
        return None
    if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        tried = subprocess.run([sys.executable, "-c", PROBE], capture_output=True)
        if tried.returncode:
            return None
    return CvBridge()


cv_bridge = _cv_bridge()
