# SPDX-License-Identifier: Apache-2.0
"""As on a machine without any ROS package: each of them, and everything in it, cannot be imported."""

import sys

from support.paths import ROOT

ROS = {
    "rclpy",
    "cv_bridge",
    "sensor_msgs_py",
    "tf2_ros",
    "tf_transformations",
    "launch",
    "launch_ros",
    "launch_testing",
}
ROS |= {"ament_index_python", "rosidl_runtime_py", "rpyutils"}

# First lines of a program for `python -c`.
WITHOUT_ROS = f"""
import sys
sys.path.insert(0, {str(ROOT / "test")!r})
from support.without_ros import hide_ros
hide_ros()
"""


def is_ros(name: str) -> bool:
    """Whether a module exists only where ROS does: rclpy and its like, and packages of messages, ours included."""
    top = name.partition(".")[0]
    return top in ROS or top.endswith(("_msgs", "_srvs", "_interfaces")) or f"{name}.".startswith("xsvggt_ros.msg.")


class _Absent:
    def find_spec(self, name, path=None, target=None):
        if is_ros(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide_ros() -> None:
    sys.meta_path.insert(0, _Absent())
    sys.modules["cv_bridge"] = None  # what asks whether there is one, is told so
