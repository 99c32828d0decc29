# SPDX-License-Identifier: Apache-2.0
"""Nothing outside xsvggt_ros/ros needs ROS; messages/ takes cv_bridge where there is one."""

import ast
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT

PACKAGE = ROOT / "xsvggt_ros"
ROS = ("rclpy", "sensor_msgs_py", "tf2_ros", "tf_transformations", "launch", "rosidl_runtime_py")

WITHOUT_ROS = """
import sys

class NoRos:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {ros!r} or top == "cv_bridge" or top.endswith("_msgs") or name == "xsvggt_ros.msg":
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, NoRos())
import numpy as np
from xsvggt_ros import GeometryStream
frame = GeometryStream().step(np.zeros((84, 112, 3), np.uint8))
assert frame.depth.shape == (84, 112)
"""


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_only_the_ros_folder_imports_ros():
    files = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "ros" not in path.parents]
    assert files
    for path in files:
        for name in imported(path):
            top = name.split(".")[0]
            assert top not in ROS and not top.endswith("_msgs") and not name.startswith("xsvggt_ros.msg"), (path, name)


def test_the_core_runs_with_ros_absent():
    subprocess.run([sys.executable, "-c", WITHOUT_ROS.format(ros=ROS)], check=True, cwd=PACKAGE.parent)
